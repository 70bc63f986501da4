//! Roles, permissions, and who asks.

use std::collections::BTreeSet;
use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use serde::{Deserialize, Serialize};

/// What a caller may do, each including the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Also does all that is done with a resource: moves, takeovers, freezes, verifications, seeding anew, its sections.
    Operator,
    /// Also reserves and releases, reloads, changes who may do what, and reads the audit.
    Admin,
}

impl Role {
    /// Every role, the weakest first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// The role of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a route needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Nothing: probes of liveness, the page that asks for a token.
    Public,
    /// [`Role::Viewer`].
    Read,
    /// [`Role::Operator`].
    Operate,
    /// [`Role::Admin`].
    Administer,
}

impl Permission {
    /// The weakest role that has it; none: everybody.
    pub fn role(self) -> Option<Role> {
        match self {
            Self::Public => None,
            Self::Read => Some(Role::Viewer),
            Self::Operate => Some(Role::Operator),
            Self::Administer => Some(Role::Admin),
        }
    }
}

/// Which resources a caller knows of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every one.
    All,
    /// These.
    Resources(BTreeSet<String>),
}

impl Scope {
    /// Whether `resource` is within.
    pub fn has(&self, resource: &str) -> bool {
        match self {
            Self::All => true,
            Self::Resources(names) => names.contains(resource),
        }
    }
}

/// How the caller proved who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// Not at all: a loopback listener that asks nobody.
    Open,
    /// A token.
    Token,
    /// A token, once, and a cookie since.
    Session,
    /// A client certificate.
    Certificate,
    /// A token of the OpenID Connect issuer.
    Oidc,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// For the history and the audit.
    pub name: String,
    /// What tells people apart: the issuer's subject, whatever else its tokens say; otherwise the name.
    pub person: String,
    /// The token's id, the certificate's name or the subject; none: nobody proved who asks.
    pub id: Option<String>,
    /// What it may do.
    pub role: Role,
    /// To which resources.
    pub scope: Scope,
    /// How that is known.
    pub via: Via,
}

impl Caller {
    /// Longest name that is taken from a header, characters.
    const NAME: usize = 100;

    /// Somebody on this machine, where the listener asks nobody: by the name it gives, if any.
    pub(super) fn open(named: Option<&str>) -> Self {
        let name = named.filter(|name| !name.is_empty()).unwrap_or("api");
        let name: String = name.chars().take(Self::NAME).collect();
        Self { person: name.clone(), name, id: None, role: Role::Admin, scope: Scope::All, via: Via::Open }
    }

    /// Whether it may do this.
    pub fn may(&self, permission: Permission) -> bool {
        permission.role().is_none_or(|least| self.role >= least)
    }

    /// Whether it may know of this resource.
    pub fn knows(&self, resource: &str) -> bool {
        self.scope.has(resource)
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    /// The caller that the guard let in; on a public route that may be nobody, with no name and the weakest role.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_else(|| Self {
            name: String::new(),
            person: String::new(),
            id: None,
            role: Role::Viewer,
            scope: Scope::Resources(BTreeSet::new()),
            via: Via::Open,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_has_what_the_weaker_ones_have() {
        let caller = |role| Caller { role, ..Caller::open(None) };
        let may = |role| {
            [Permission::Public, Permission::Read, Permission::Operate, Permission::Administer]
                .map(|permission| caller(role).may(permission))
        };
        assert_eq!(may(Role::Viewer), [true, true, false, false]);
        assert_eq!(may(Role::Operator), [true, true, true, false]);
        assert_eq!(may(Role::Admin), [true; 4]);
        assert_eq!(Role::from_name("operator"), Some(Role::Operator));
        assert_eq!(Role::from_name("Operator"), None);
    }

    #[test]
    fn a_scope_ends_where_it_says() {
        let some = Scope::Resources(BTreeSet::from(["orders".to_owned()]));
        assert!(some.has("orders") && !some.has("order") && Scope::All.has("order"));
    }
}
