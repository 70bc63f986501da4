//! What a token says of who shows it, once its signature is known to be the issuer's: pure.

use std::collections::BTreeSet;

use migration::units::Timestamp;
use serde_json::{Map, Value};

use super::Rejected;
use crate::admin::access::{Role, Scope};
use crate::config::model::OidcRules;

/// Longest subject, characters (OpenID Connect Core, section 2).
const SUBJECT: usize = 255;
/// Longest name beside it.
const NAME: usize = 100;
/// Most groups of a token that are looked at.
const GROUPS: usize = 2000;

/// Who shows a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    /// The subject, behind a name that people know if the rules name a claim with one.
    pub(super) name: String,
    /// The subject alone: the same in each of this person's tokens, whatever claims they have.
    pub(super) id: String,
    /// When the token ends.
    pub(super) ends: Timestamp,
}

/// Whether the claims are of this issuer, for this node, and of this time; and whose.
pub(super) fn check(
    rules: &OidcRules,
    payload: &[u8],
    now: Timestamp,
) -> Result<(Subject, Map<String, Value>), Rejected> {
    let claims: Map<String, Value> =
        serde_json::from_slice(payload).map_err(|_| Rejected::Malformed("its claims are no JSON object"))?;
    if text(&claims, "iss")? != rules.issuer {
        return Err(Rejected::Issuer);
    }
    if !audiences(&claims)?.iter().any(|audience| rules.audiences.iter().any(|ours| ours == audience)) {
        return Err(Rejected::Audience);
    }
    if !rules.clients.is_empty() {
        // `azp` of OpenID Connect; access tokens of RFC 9068 call it `client_id`.
        let client =
            if claims.contains_key("azp") { text(&claims, "azp") } else { text(&claims, "client_id") };
        if !client.is_ok_and(|client| rules.clients.iter().any(|ours| ours == client)) {
            return Err(Rejected::Client);
        }
    }
    let ends = moment(&claims, "exp")?.ok_or(Rejected::Claim("exp"))?;
    if now >= ends.after(rules.leeway) {
        return Err(Rejected::Expired);
    }
    for name in ["nbf", "iat"] {
        if moment(&claims, name)?.is_some_and(|begins| begins > now.after(rules.leeway)) {
            return Err(Rejected::Early);
        }
    }
    let subject = text(&claims, "sub")?;
    let fits = |text: &str, most: usize| {
        !text.is_empty() && text.chars().count() <= most && !text.chars().any(char::is_control)
    };
    if !fits(subject, SUBJECT) {
        return Err(Rejected::Claim("sub"));
    }
    let known_as = rules.name.as_deref().and_then(|claim| claims.get(claim)?.as_str());
    let name = match known_as.filter(|name| fits(name, NAME)) {
        Some(name) => format!("{name} ({subject})"),
        None => subject.to_owned(),
    };
    Ok((Subject { name, id: subject.to_owned(), ends }, claims))
}

/// What the groups of the claims give: the strongest role of any, for the resources of all that give this one.
pub(super) fn grant(rules: &OidcRules, claims: &Map<String, Value>) -> Option<(Role, Scope)> {
    let groups = groups(claims, &rules.groups);
    let given = || rules.roles.iter().filter(|rule| groups.contains(rule.group.as_str()));
    let role = given().map(|rule| rule.role).max()?;
    let mut resources = BTreeSet::new();
    for rule in given().filter(|rule| rule.role == role) {
        match &rule.scope {
            Scope::All => return Some((role, Scope::All)),
            Scope::Resources(names) => resources.extend(names.iter().cloned()),
        }
    }
    Some((role, Scope::Resources(resources)))
}

/// The groups at `claim`: the claim of that very name (a URL is one), or else the path of names between its dots
/// (`realm_access.roles`). One text is one group.
fn groups<'a>(claims: &'a Map<String, Value>, claim: &str) -> BTreeSet<&'a str> {
    let found = claims.get(claim).or_else(|| {
        let (first, rest) = claim.split_once('.')?;
        rest.split('.').try_fold(claims.get(first)?, |value, name| value.get(name))
    });
    match found {
        Some(Value::String(one)) => BTreeSet::from([one.as_str()]),
        Some(Value::Array(all)) => all.iter().take(GROUPS).filter_map(Value::as_str).collect(),
        _ => BTreeSet::new(),
    }
}

fn text<'a>(claims: &'a Map<String, Value>, name: &'static str) -> Result<&'a str, Rejected> {
    claims.get(name).and_then(Value::as_str).ok_or(Rejected::Claim(name))
}

/// One text, or a list of them (RFC 7519, section 4.1.3).
fn audiences(claims: &Map<String, Value>) -> Result<Vec<&str>, Rejected> {
    let all = match claims.get("aud") {
        Some(Value::String(one)) => Some(vec![one.as_str()]),
        Some(Value::Array(all)) => all.iter().map(Value::as_str).collect(),
        _ => None,
    };
    all.ok_or(Rejected::Claim("aud"))
}

/// A NumericDate: seconds since 1970, perhaps with a fraction (RFC 7519, section 2).
fn moment(claims: &Map<String, Value>, name: &'static str) -> Result<Option<Timestamp>, Rejected> {
    /// Year 9999.
    const LAST_S: f64 = 253_402_300_800.0;
    let Some(value) = claims.get(name) else { return Ok(None) };
    let seconds = value.as_f64().filter(|seconds| (0.0..=LAST_S).contains(seconds));
    let seconds = seconds.ok_or(Rejected::Claim(name))?;
    Ok(Some(Timestamp((seconds * 1000.0) as u64)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::super::tests::TIMES;
    use super::*;
    use crate::config::model::GroupRule;

    fn rules() -> OidcRules {
        let rule = |group: &str, role, resources: &[&str]| GroupRule {
            group: group.to_owned(),
            role,
            scope: match resources {
                [] => Scope::All,
                names => Scope::Resources(names.iter().map(ToString::to_string).collect()),
            },
        };
        OidcRules {
            issuer: "https://login.example/ops".into(),
            keys: None,
            authority: None,
            audiences: vec!["godwit".into(), "godwit-ui".into()],
            clients: vec![],
            algorithms: vec![],
            groups: "groups".into(),
            name: None,
            leeway: Duration::from_secs(30),
            times: TIMES,
            roles: vec![
                rule("all-view", Role::Viewer, &[]),
                rule("shop", Role::Operator, &["orders"]),
                rule("web", Role::Operator, &["web"]),
                rule("sre", Role::Admin, &[]),
            ],
        }
    }

    const NOW: Timestamp = Timestamp(1_000_000_000);

    fn good() -> Value {
        json!({ "iss": "https://login.example/ops", "aud": "godwit", "sub": "s-1", "exp": 1_000_600, "iat": 999_990,
                "azp": "godwit-cli", "groups": ["shop", "other"], "email": "ann@example.com" })
    }

    fn with(changes: &[(&str, Value)]) -> Result<Subject, Rejected> {
        verdict(&rules(), changes)
    }

    fn verdict(rules: &OidcRules, changes: &[(&str, Value)]) -> Result<Subject, Rejected> {
        let mut claims = good();
        for (name, value) in changes {
            if value.is_null() {
                claims.as_object_mut().expect("an object").remove(*name);
            } else {
                claims[*name] = value.clone();
            }
        }
        check(rules, claims.to_string().as_bytes(), NOW).map(|(subject, _)| subject)
    }

    #[test]
    fn a_good_one_names_its_subject() {
        let subject = with(&[]).expect("good");
        assert_eq!(subject, Subject { name: "s-1".into(), id: "s-1".into(), ends: Timestamp(1_000_600_000) });
        let named = OidcRules { name: Some("email".into()), ..rules() };
        assert_eq!(verdict(&named, &[]).expect("good").name, "ann@example.com (s-1)");
        assert_eq!(verdict(&named, &[("email", json!("a\nb"))]).expect("good").name, "s-1");
        assert!(with(&[("aud", json!(["elsewhere", "godwit-ui"]))]).is_ok());
        assert!(with(&[("exp", json!(1_000_000.5))]).is_ok(), "half a second is left");
    }

    #[test]
    fn each_claim_is_checked() {
        let wrong = |name: &str, value: Value| with(&[(name, value)]).expect_err(name);
        assert_eq!(wrong("iss", json!("https://login.example/ops/")), Rejected::Issuer);
        assert_eq!(wrong("iss", json!(["https://login.example/ops"])), Rejected::Claim("iss"));
        assert_eq!(wrong("aud", json!("godwit2")), Rejected::Audience);
        assert_eq!(wrong("aud", json!([])), Rejected::Audience);
        assert_eq!(wrong("aud", json!(["godwit", 7])), Rejected::Claim("aud"));
        assert_eq!(wrong("aud", Value::Null), Rejected::Claim("aud"));
        assert_eq!(wrong("exp", Value::Null), Rejected::Claim("exp"));
        assert_eq!(wrong("exp", json!("1000600")), Rejected::Claim("exp"));
        assert_eq!(wrong("exp", json!(-1)), Rejected::Claim("exp"));
        assert_eq!(wrong("exp", json!(1e300)), Rejected::Claim("exp"));
        assert_eq!(wrong("exp", json!(999_970)), Rejected::Expired, "the leeway is over");
        assert!(with(&[("exp", json!(999_971))]).is_ok(), "a second of the leeway is left");
        assert_eq!(wrong("nbf", json!(1_000_031)), Rejected::Early);
        assert!(with(&[("nbf", json!(1_000_030))]).is_ok());
        assert_eq!(wrong("iat", json!(1_000_031)), Rejected::Early);
        assert_eq!(wrong("iat", json!("now")), Rejected::Claim("iat"));
        assert_eq!(wrong("sub", json!("")), Rejected::Claim("sub"));
        assert_eq!(wrong("sub", json!("s\u{1b}[31m")), Rejected::Claim("sub"));
        assert_eq!(wrong("sub", json!("s".repeat(256))), Rejected::Claim("sub"));
        assert_eq!(
            check(&rules(), b"[]", NOW).unwrap_err(),
            Rejected::Malformed("its claims are no JSON object")
        );
    }

    #[test]
    fn clients_are_asked_for_where_they_are_named() {
        let named = OidcRules { clients: vec!["godwit-cli".into()], ..rules() };
        assert!(verdict(&named, &[]).is_ok());
        assert_eq!(verdict(&named, &[("azp", json!("other"))]), Err(Rejected::Client));
        assert_eq!(verdict(&named, &[("azp", Value::Null)]), Err(Rejected::Client));
        let renamed = [("azp", Value::Null), ("client_id", json!("godwit-cli"))];
        assert!(verdict(&named, &renamed).is_ok());
        let both = [("azp", json!("other")), ("client_id", json!("godwit-cli"))];
        assert_eq!(verdict(&named, &both), Err(Rejected::Client));
    }

    #[test]
    fn the_strongest_role_counts_for_the_resources_of_its_groups() {
        let granted =
            |groups: Value| grant(&rules(), json!({ "groups": groups }).as_object().expect("an object"));
        let of = |names: &[&str]| Scope::Resources(names.iter().map(ToString::to_string).collect());
        assert_eq!(granted(json!(["shop"])), Some((Role::Operator, of(&["orders"]))));
        assert_eq!(
            granted(json!(["shop", "web", "all-view"])),
            Some((Role::Operator, of(&["orders", "web"])))
        );
        assert_eq!(granted(json!(["shop", "sre"])), Some((Role::Admin, Scope::All)));
        assert_eq!(granted(json!("all-view")), Some((Role::Viewer, Scope::All)));
        for none in [json!([]), json!(["SRE", "sre ", 7, null]), json!({ "sre": true }), Value::Null] {
            assert_eq!(granted(none.clone()), None, "{none}");
        }
    }

    #[test]
    fn groups_may_be_deep_or_under_a_url() {
        let claims = json!({ "realm_access": { "roles": ["sre"] }, "https://godwit.example/groups": ["web"], "a.b": ["x"],
                             "a": { "b": ["y"] } });
        let claims = claims.as_object().expect("an object");
        let found = |claim: &str| groups(claims, claim).into_iter().collect::<Vec<_>>().join(",");
        assert_eq!(found("realm_access.roles"), "sre");
        assert_eq!(found("https://godwit.example/groups"), "web");
        assert_eq!(found("a.b"), "x", "a claim of that very name comes first");
        assert_eq!(found("realm_access"), "");
        assert_eq!(found("realm_access.roles.0"), "");
    }
}
