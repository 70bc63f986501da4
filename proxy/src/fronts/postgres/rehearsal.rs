//! Whether the clients of one primary could log in at the next: tried beforehand, with what they proved themselves by here.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};

use super::backend::{Backend, Identity, NoBackend};
use super::front::PostgresFront;
use crate::causes::chain;
use crate::clock;
use crate::lock::lock;

/// So many roles are remembered.
const ROLES: usize = 256;
/// So many are tried at a time.
const AT_A_TIME: usize = 8;
/// For so long it is believed that one could log in.
const BELIEVED: Duration = Duration::from_mins(10);
/// A fence leaves a login as it is, and takes the right to connect.
const FENCED: &str = "42501";
/// What it proved itself by is not what the server knows.
const WRONG: &str = "28P01";

/// Each role that has logged in, as it did last.
#[derive(Debug, Default)]
pub(super) struct Roles(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// How many logins there were.
    logins: u64,
    /// With which of them was its last.
    roles: BTreeMap<String, (u64, Identity)>,
    /// By zone and role: when it was last found to be let in, and with what.
    fine: BTreeMap<(String, String), (Instant, Identity)>,
}

impl Roles {
    /// It could log in. Of too many the one is forgotten that did so longest ago.
    pub(super) fn learn(&self, identity: &Identity) {
        let mut known = lock(&self.0);
        let Known { logins, roles, fine } = &mut *known;
        *logins += 1;
        if let Some((last, same)) = roles.get_mut(&identity.user) {
            *last = *logins;
            if same.secret != identity.secret {
                *same = identity.clone();
            }
            return;
        }
        if roles.len() >= ROLES {
            let oldest = roles.iter().min_by_key(|(_, (last, _))| *last).map(|(role, _)| role.clone());
            if let Some(role) = oldest {
                roles.remove(&role);
                fine.retain(|(_, of), _| *of != role);
            }
        }
        roles.insert(identity.user.clone(), (*logins, identity.clone()));
    }

    fn forget(&self, identity: &Identity) {
        let mut known = lock(&self.0);
        if known.roles.get(&identity.user).is_some_and(|(_, last)| last.secret == identity.secret) {
            known.roles.remove(&identity.user);
        }
    }

    /// Each with when it was last found fine there as it logs in now, the longest untried first.
    fn all(&self, zone: &str) -> Vec<(Option<Instant>, Identity)> {
        let known = lock(&self.0);
        let when = |identity: &Identity| {
            let (at, same) = known.fine.get(&(zone.to_owned(), identity.user.clone()))?;
            (same.secret == identity.secret).then_some(*at)
        };
        let roles = known.roles.values();
        let mut all: Vec<_> = roles.map(|(_, identity)| (when(identity), identity.clone())).collect();
        all.sort_by_key(|(at, _)| *at);
        all
    }

    fn is_fine(&self, identity: &Identity, zone: &str) {
        let key = (zone.to_owned(), identity.user.clone());
        lock(&self.0).fine.insert(key, (clock::monotonic(), identity.clone()));
    }
}

/// What was found by those of them that ended in time, a few at a time; and which did.
async fn in_time<T>(
    tries: Vec<impl Future<Output = (usize, Option<T>)>>,
    within: Duration,
) -> (Vec<T>, BTreeSet<usize>) {
    let (mut found, mut ended) = (Vec::new(), BTreeSet::new());
    let mut outcomes = pin!(stream::iter(tries).buffer_unordered(AT_A_TIME));
    let all = async {
        while let Some((number, outcome)) = outcomes.next().await {
            ended.insert(number);
            found.extend(outcome);
        }
    };
    let _ = tokio::time::timeout(within, all).await;
    (found, ended)
}

impl PostgresFront {
    /// What would keep the front's clients out of `zone`'s database after a move there; one line for each role, and one for those that there
    /// was no time for and that are not known to be let in. Logs in there as each role that has logged in here, and leaves at once.
    pub async fn rehearse(&self, zone: &str, within: Duration) -> Vec<String> {
        let roles = self.roles.all(zone);
        let tries = roles.iter().enumerate().map(async |(number, (_, identity))| {
            let outcome = self.is_kept_out(identity, zone).await;
            if outcome.is_none() {
                self.roles.is_fine(identity, zone);
            }
            (number, outcome)
        });
        let (mut found, tried) = in_time(tries.collect(), within).await;
        found.sort();
        let now = clock::monotonic();
        let is_open = |(number, (at, _)): &(usize, &(Option<Instant>, Identity))| {
            !tried.contains(number) && at.is_none_or(|at| now.duration_since(at) > BELIEVED)
        };
        let left = roles.iter().enumerate().filter(is_open).count();
        if left > 0 {
            let of = roles.len();
            found.push(format!("{left} of {of} roles could not be tried at {zone} in time"));
        }
        found
    }

    /// What keeps this role out there and not here, for a person.
    async fn is_kept_out(&self, identity: &Identity, zone: &str) -> Option<String> {
        let error = self.keeps_out(identity, zone).await?;
        // What has changed since, here as well, or a role that is gone, is no matter of the move.
        let here = self.active();
        if self.keeps_out(identity, &here.zone).await.is_some() {
            self.roles.forget(identity);
            return None;
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
        Some(format!("role {role} cannot log in at {zone} as it does at {from}: {why}{mend}"))
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

#[cfg(test)]
mod tests {
    use super::super::protocol::scram::Secret;
    use super::*;

    fn role(user: &str, secret: &str) -> Identity {
        Identity { user: user.into(), parameters: Vec::new(), secret: Secret::Password(secret.into()) }
    }

    #[test]
    fn who_logged_in_longest_ago_is_forgotten_first() {
        let roles = Roles::default();
        for number in 0..ROLES {
            roles.learn(&role(&format!("r{number:03}"), "s"));
        }
        roles.learn(&role("r000", "s"));
        roles.learn(&role("a", "s"));
        let known: Vec<_> = roles.all("b").into_iter().map(|(_, identity)| identity.user).collect();
        assert_eq!(known.len(), ROLES);
        assert!(["a", "r000", "r002", "r255"].iter().all(|role| known.iter().any(|known| known == role)));
        assert!(!known.iter().any(|known| known == "r001"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_found_is_told_where_others_do_not_answer() {
        let outcome = |number: usize| async move {
            match number {
                0 => std::future::pending().await,
                1 => (number, None),
                _ => (number, Some(number)),
            }
        };
        let (mut found, ended) = in_time((0..20).map(outcome).collect(), Duration::from_secs(1)).await;
        found.sort_unstable();
        assert_eq!((found, ended), ((2..20).collect(), (1..20).collect()));
    }

    #[test]
    fn who_was_not_tried_for_long_is_tried_first() {
        let roles = Roles::default();
        for user in ["a", "b", "c"] {
            roles.learn(&role(user, "s"));
        }
        let order = || roles.all("far").into_iter().map(|(_, identity)| identity.user).collect::<Vec<_>>();
        roles.is_fine(&role("a", "s"), "far");
        roles.is_fine(&role("b", "s"), "far");
        roles.is_fine(&role("c", "s"), "near");
        assert_eq!(order(), ["c", "a", "b"]);
        roles.is_fine(&role("a", "s"), "far");
        assert_eq!(order(), ["c", "b", "a"]);
        // It logs in otherwise since then.
        roles.learn(&role("a", "t"));
        assert_eq!(order(), ["a", "c", "b"]);
    }
}
