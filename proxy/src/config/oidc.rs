//! `node.admin.oidc`: the issuer whose tokens count, and what its groups give.

use std::time::Duration;

use url::{Host, Url};

use super::admin::{role, scope};
use super::feeds::absolute;
use super::load::Surroundings;
use super::model::{GroupRule, OidcRules};
use super::walk::Item;
use crate::admin::access::oidc::KeyTimes;
use crate::admin::access::oidc::jws::Algorithm;
use crate::feeds::external::egress::Egress;

/// Signatures that count unless the file says otherwise.
const ALGORITHMS: [Algorithm; 3] = [Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa];
const LEEWAY: Duration = Duration::from_secs(30);
const LEEWAY_MOST: Duration = Duration::from_secs(300);
const REFRESH: Duration = Duration::from_hours(1);
const REFRESH_LEAST: Duration = Duration::from_secs(60);
/// Between two inquiries for keys: new ones are known after that at the latest.
const PAUSE: Duration = Duration::from_secs(10);
const KEEP: Duration = Duration::from_hours(24);
const KEEP_MOST: Duration = Duration::from_hours(24 * 7);

/// `{issuer, keys, ca, audience, clients, algorithms, groups, name, leeway, refresh, keep, roles}`.
pub(super) fn read(item: &Item<'_>, around: &Surroundings<'_>, egress: Option<&Egress>) -> Option<OidcRules> {
    let mut section = item.section()?;
    let issuer = section.required("issuer", "issuer: https://login.example, as its tokens have it in `iss`");
    let issuer = issuer.and_then(|item| issuer_of(&item, egress));
    let keys = section.optional("keys").map(|item| {
        let url = absolute(&item, item.text("the URL of a set of keys")?)?;
        may_be_asked(&item, &url, egress).then_some(url)
    });
    let authority = section.optional("ca").map(|item| item.path(around.folder));
    let audiences =
        section.required("audience", "audience: [godwit], what its tokens for this node have in `aud`");
    let audiences = audiences.and_then(|item| texts(&item, "audiences", "at least one"));
    let clients =
        section.optional("clients").map(|item| texts(&item, "clients", "one at least, or leave it out: all"));
    let algorithms = section.optional("algorithms").map(|item| {
        let named = item.list("algorithms")?;
        let named = named.iter().map(|item| item.choice(&Algorithm::ALL)).collect::<Option<Vec<_>>>()?;
        if named.is_empty() {
            item.wrong("is empty", "such as [RS256, ES256]");
        }
        (!named.is_empty()).then_some(named)
    });
    let groups = section.optional("groups").map(|item| item.text("the name of a claim"));
    let name = section.optional("name").map(|item| item.text("the name of a claim, such as email"));
    let mut span = |name: &'static str, default: Duration, least: Duration, most: Duration, bounds: &str| {
        let Some(item) = section.optional(name) else { return Some(default) };
        let span = item.duration()?;
        let fits = (least..=most).contains(&span);
        if !fits {
            item.wrong("is out of range", bounds);
        }
        fits.then_some(span)
    };
    let leeway = span("leeway", LEEWAY, Duration::ZERO, LEEWAY_MOST, "at most 5m");
    let refresh = span("refresh", REFRESH, REFRESH_LEAST, KEEP, "from 1m to 24h");
    let keep = span("keep", KEEP, refresh.unwrap_or(REFRESH), KEEP_MOST, "at least `refresh`, at most 7d");
    let roles = section.required("roles", "roles: [{group: GROUP, role: ROLE}], what its groups give");
    let roles = roles.and_then(|item| {
        let rules = item.list("{group, role}")?;
        if rules.is_empty() {
            item.wrong("is empty: nobody would have a role", "{group: GROUP, role: viewer}");
            return None;
        }
        rules.iter().map(rule).collect::<Option<Vec<_>>>()
    });
    section.finish();
    Some(OidcRules {
        issuer: issuer?,
        keys: keys.map_or(Some(None), |keys| keys.map(Some))?,
        authority: authority.map_or(Some(None), |path| path.map(Some))?,
        audiences: audiences?,
        clients: clients.unwrap_or_else(|| Some(Vec::new()))?,
        algorithms: algorithms.unwrap_or_else(|| Some(ALGORITHMS.to_vec()))?,
        groups: groups.unwrap_or(Some("groups"))?.to_owned(),
        name: name.map_or(Some(None), |name| name.map(|name| Some(name.to_owned())))?,
        leeway: leeway?,
        times: KeyTimes { refresh: refresh?, keep: keep?, pause: PAUSE },
        roles: roles?,
    })
}

/// Kept to the letter: tokens must have the same.
fn issuer_of(item: &Item<'_>, egress: Option<&Egress>) -> Option<String> {
    let text = item.text("the issuer's URL")?;
    let url = absolute(item, text)?;
    if url.query().is_some() || url.fragment().is_some() {
        item.wrong("has a query or a fragment", "the issuer's URL as its tokens have it in `iss`");
        return None;
    }
    may_be_asked(item, &url, egress).then(|| text.to_owned())
}

/// Over TLS, or on this machine; and within `node.egress`.
fn may_be_asked(item: &Item<'_>, url: &Url, egress: Option<&Egress>) -> bool {
    let here = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    if url.scheme() != "https" && !here {
        item.wrong("has no TLS: who answers in its place would let anybody in", "https://…");
        return false;
    }
    match egress.map(|egress| egress.host(url, url)) {
        Some(Err(why)) => {
            item.wrong("cannot be asked", why);
            false
        }
        // Of an egress that is wrong itself there is a problem already.
        _ => true,
    }
}

fn texts(item: &Item<'_>, what: &str, right: &str) -> Option<Vec<String>> {
    let all = item.list(what)?;
    if all.is_empty() {
        item.wrong("is empty", right);
        return None;
    }
    all.iter().map(|item| item.text("text").map(str::to_owned)).collect()
}

/// `{group, role, resources}`.
fn rule(item: &Item<'_>) -> Option<GroupRule> {
    let mut section = item.section()?;
    let group =
        section.required("group", "group: a group of the issuer").and_then(|item| item.text("a group"));
    let role = section.required("role", "role: viewer, operator or admin").and_then(|item| role(&item));
    let scope = scope(&mut section);
    section.finish();
    Some(GroupRule { group: group?.to_owned(), role: role?, scope: scope? })
}
