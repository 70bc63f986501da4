//! Whether the clients of one primary could log in at the next: tried beforehand, with what they proved themselves by here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::backend::{Backend, Identity, NoBackend};
use super::front::PostgresFront;
use crate::causes::chain;
use crate::lock::lock;

/// So many roles are remembered.
const ROLES: usize = 256;
/// A fence leaves a login as it is, and takes the right to connect.
const FENCED: &str = "42501";
/// What it proved itself by is not what the server knows.
const WRONG: &str = "28P01";

/// Each role that has logged in, as it did last.
#[derive(Debug, Default)]
pub(super) struct Roles(Mutex<BTreeMap<String, Identity>>);

impl Roles {
    /// It could log in.
    pub(super) fn learn(&self, identity: &Identity) {
        let mut known = lock(&self.0);
        let full = known.len() >= ROLES;
        match known.get_mut(&identity.user) {
            Some(last) if last.secret == identity.secret => {}
            Some(last) => *last = identity.clone(),
            None if full => {}
            None => {
                known.insert(identity.user.clone(), identity.clone());
            }
        }
    }

    fn forget(&self, identity: &Identity) {
        let mut known = lock(&self.0);
        if known.get(&identity.user).is_some_and(|last| last.secret == identity.secret) {
            known.remove(&identity.user);
        }
    }
}

impl PostgresFront {
    /// What would keep the front's clients out of `zone`'s database after a move there; one line for each role. Logs in there as each
    /// role that has logged in here, one after the other, and leaves at once.
    pub async fn rehearse(&self, zone: &str) -> Vec<String> {
        let roles: Vec<Identity> = lock(&self.roles.0).values().cloned().collect();
        let mut found = Vec::new();
        for identity in roles {
            let Some(error) = self.keeps_out(&identity, zone).await else { continue };
            // What has changed since, here as well, or a role that is gone, is no matter of the move.
            let here = self.active();
            if self.keeps_out(&identity, &here.zone).await.is_some() {
                self.roles.forget(&identity);
                continue;
            }
            // What it proves itself by is another there: a password, or its salt.
            let mend = match &error {
                NoBackend::Login(_) => true,
                NoBackend::Refused(error, _) => error.sqlstate == WRONG,
                _ => false,
            };
            let (role, from) = (&identity.user, &here.zone);
            let mend = if mend {
                format!(
                    " (mend: give role {role} at {zone} the password line that pg_dumpall --roles-only has at {from})"
                )
            } else {
                String::new()
            };
            let why = chain(error);
            found.push(format!("role {role} cannot log in at {zone} as it does at {from}: {why}{mend}"));
        }
        found
    }

    /// Why this role cannot log in there; none: it can, or nobody could say.
    async fn keeps_out(&self, identity: &Identity, zone: &str) -> Option<NoBackend> {
        let zone: Arc<str> = zone.into();
        match Backend::open(self.dsn(&zone)?, identity, 0, &zone).await {
            Ok(backend) => {
                backend.close().await;
                None
            }
            Err(NoBackend::Refused(error, _)) if error.sqlstate == FENCED => None,
            // Whether it is there at all is watched elsewhere.
            Err(NoBackend::Unreachable(_) | NoBackend::Lost(_) | NoBackend::TimedOut) => None,
            Err(error) => Some(error),
        }
    }
}
