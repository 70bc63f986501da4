//! Whether the clients of one primary could log in at the next: tried beforehand, with what they proved themselves by here.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};

use super::backend::{Backend, Identity, NoBackend};
use super::front::PostgresFront;
use super::protocol::message::ServerError;
use super::protocol::scram::Failed;
use crate::causes::chain;
use crate::clock;
use crate::lock::lock;

/// So many roles are remembered.
const ROLES: usize = 256;
/// So many are tried at a time.
const AT_A_TIME: usize = 8;
/// For so long it is believed that one could log in.
const BELIEVED: Duration = Duration::from_mins(10);
/// It lacks a right.
const DENIED: &str = "42501";
/// Says so of the right to connect, which is what a fence takes; it leaves a login as it is.
const FENCE: &str = "CheckMyDatabase";
/// Says so of a role that is to read changes.
const STREAMS: &str = "InitPostgres";
/// What it proved itself by is not what the server knows.
const WRONG: &str = "28P01";

/// A role, and whether it reads changes: a server asks more of it then.
pub(super) type Login = (String, bool);

fn login(identity: &Identity) -> Login {
    (identity.user.clone(), identity.replicates())
}

/// Each role that has logged in, as it did last.
#[derive(Debug, Default)]
pub(super) struct Roles(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// How many logins there were.
    logins: u64,
    /// With which of them was its last.
    roles: BTreeMap<Login, (u64, Identity)>,
    /// By zone: when it was last found to be let in, and with what.
    fine: BTreeMap<(String, Login), (Instant, Identity)>,
    /// How many clients are there.
    present: BTreeMap<Login, usize>,
}

impl Roles {
    /// Its client has proven itself so just now, and it could log in.
    pub(super) fn learn(&self, identity: &Identity) {
        self.could_log_in(identity, true);
    }

    /// It could log in by what its client proved itself by when it came; who came later may have done so by another password.
    pub(super) fn learn_again(&self, identity: &Identity) {
        self.could_log_in(identity, false);
    }

    /// Of too many the one is forgotten that did so longest ago.
    fn could_log_in(&self, identity: &Identity, newest: bool) {
        let mut known = lock(&self.0);
        let Known { logins, roles, fine, .. } = &mut *known;
        *logins += 1;
        let login = login(identity);
        if let Some((last, same)) = roles.get_mut(&login) {
            *last = *logins;
            if newest && same.secret != identity.secret {
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
        roles.insert(login, (*logins, identity.clone()));
    }

    /// The same session with what its role has proven itself by last, if that is something else.
    pub(super) fn newest(&self, identity: &Identity) -> Option<Identity> {
        let known = lock(&self.0);
        let (_, last) = known.roles.get(&login(identity))?;
        (last.secret != identity.secret).then(|| Identity { secret: last.secret.clone(), ..identity.clone() })
    }

    /// A client of this role is there, until it leaves.
    pub(super) fn comes(&self, identity: &Identity) -> Login {
        let login = login(identity);
        *lock(&self.0).present.entry(login.clone()).or_default() += 1;
        login
    }

    pub(super) fn leaves(&self, login: &Login) {
        let mut known = lock(&self.0);
        if let Some(count) = known.present.get_mut(login) {
            *count -= 1;
            if *count == 0 {
                known.present.remove(login);
            }
        }
    }

    fn present(&self, identity: &Identity) -> usize {
        lock(&self.0).present.get(&login(identity)).copied().unwrap_or_default()
    }

    fn forget(&self, identity: &Identity) {
        let mut known = lock(&self.0);
        let Known { roles, fine, .. } = &mut *known;
        let login = login(identity);
        if roles.get(&login).is_some_and(|(_, last)| last.secret == identity.secret) {
            roles.remove(&login);
            fine.retain(|(_, of), _| *of != login);
        }
    }

    /// Each with when it was last found fine there as it logs in now, the longest untried first.
    fn all(&self, zone: &str) -> Vec<(Option<Instant>, Identity)> {
        let known = lock(&self.0);
        let when = |identity: &Identity| {
            let (at, same) = known.fine.get(&(zone.to_owned(), login(identity)))?;
            (same.secret == identity.secret).then_some(*at)
        };
        let roles = known.roles.values();
        let mut all: Vec<_> = roles.map(|(_, identity)| (when(identity), identity.clone())).collect();
        all.sort_by_key(|(at, _)| *at);
        all
    }

    fn is_fine(&self, identity: &Identity, zone: &str) {
        let mut known = lock(&self.0);
        let login = login(identity);
        // It may have been forgotten meanwhile.
        if known.roles.contains_key(&login) {
            known.fine.insert((zone.to_owned(), login), (clock::monotonic(), identity.clone()));
        }
    }
}

/// What a login came to.
enum Tried {
    /// It is let in, or will be once a fence is lifted.
    In,
    Out(NoBackend),
    /// Nobody could say.
    Unknown,
}

/// What was found by those of them that ended in time, a few at a time; and which of them know what they were to find.
async fn in_time<T>(
    tries: Vec<impl Future<Output = (Option<usize>, Option<T>)>>,
    within: Duration,
) -> (Vec<T>, BTreeSet<usize>) {
    let (mut found, mut ended) = (Vec::new(), BTreeSet::new());
    let mut outcomes = pin!(stream::iter(tries).buffer_unordered(AT_A_TIME));
    let all = async {
        while let Some((number, outcome)) = outcomes.next().await {
            ended.extend(number);
            found.extend(outcome);
        }
    };
    let _ = tokio::time::timeout(within, all).await;
    (found, ended)
}

impl PostgresFront {
    /// What would keep the front's clients out of `zone`'s database after a move there; one line for each role, and one for those that could
    /// not be tried, or not in time, and that are not known to be let in. Logs in there as each role that has logged in here, and leaves at once.
    pub async fn rehearse(&self, zone: &str, within: Duration) -> Vec<String> {
        let roles = self.roles.all(zone);
        let tries = roles.iter().enumerate().map(async |(number, (_, identity))| {
            match self.log_in(identity, zone).await {
                Tried::In => {
                    self.roles.is_fine(identity, zone);
                    (Some(number), None)
                }
                Tried::Out(error) => (Some(number), self.keeps_out(identity, zone, error).await),
                Tried::Unknown => (None, None),
            }
        });
        let (mut found, tried) = in_time(tries.collect(), within).await;
        found.sort();
        found.dedup();
        let now = clock::monotonic();
        let is_open = |(number, (at, _)): &(usize, &(Option<Instant>, Identity))| {
            !tried.contains(number) && at.is_none_or(|at| now.duration_since(at) > BELIEVED)
        };
        let left = roles.iter().enumerate().filter(is_open).count();
        if left > 0 {
            let of = roles.len();
            found.push(format!("{left} of {of} roles could not be tried at {zone}"));
        }
        found
    }

    /// What keeps this role out there and not here, for a person.
    async fn keeps_out(&self, identity: &Identity, zone: &str, error: NoBackend) -> Option<String> {
        // What has changed since, here as well, or a role that is gone, is no matter of the move. Whatever else there is here (no room for
        // another connection of the role, say) is of this moment.
        let here = self.active();
        let (role, from) = (&identity.user, &here.zone);
        if let Tried::Out(error) = self.log_in(identity, from).await
            && refuses_login(&error)
        {
            // A server lets those stay who are there. They come along by what somebody proves himself by who logs in later.
            let left = if knows_another_secret(&error) { self.roles.present(identity) } else { 0 };
            // A server says the same of a role that is gone or has expired: nobody could log in as that.
            if left == 0 || matches!(self.verifier(role).await, Ok(None)) {
                self.roles.forget(identity);
                return None;
            }
            return Some(format!(
                "clients of role {role} that logged in before its password was changed at {from} would be thrown out: {left} (mend: connect \
                 through the front as {role} once, or end them)"
            ));
        }
        let password = || {
            format!(
                " (mend: give role {role} at {zone} the password line that pg_dumpall --roles-only has at {from})"
            )
        };
        let mend = match &error {
            // What it proves itself by is another there: a password, or its salt.
            NoBackend::Login(_) => password(),
            error if knows_another_secret(error) => password(),
            NoBackend::Refused(error, _) if is_denied(error) && error.routine == STREAMS => {
                format!(" (mend: ALTER ROLE {role} REPLICATION at {zone})")
            }
            _ => String::new(),
        };
        let why = chain(error);
        Some(format!("role {role} cannot log in at {zone} as it does at {from}: {why}{mend}"))
    }

    /// Logs in there as this role, and leaves.
    async fn log_in(&self, identity: &Identity, zone: &str) -> Tried {
        let zone: Arc<str> = zone.into();
        let Some(dsn) = self.dsn(&zone) else { return Tried::Unknown };
        match Backend::open(dsn, identity, 0, &zone).await {
            Ok(backend) => {
                backend.close().await;
                Tried::In
            }
            // Where the server does not say who says so, it is taken for the fence.
            Err(NoBackend::Refused(error, _))
                if is_denied(&error) && matches!(&*error.routine, FENCE | "") =>
            {
                Tried::In
            }
            Err(NoBackend::Unreachable(_) | NoBackend::Lost(_) | NoBackend::TimedOut) => Tried::Unknown,
            Err(error) => Tried::Out(error),
        }
    }
}

fn is_denied(error: &ServerError) -> bool {
    error.sqlstate == DENIED
}

/// Whether the server knows the role by something else than what it proves itself by.
pub(super) fn knows_another_secret(error: &NoBackend) -> bool {
    match error {
        NoBackend::Login(failed) => *failed == Failed::OtherVerifier,
        NoBackend::Refused(error, _) => error.sqlstate == WRONG,
        _ => false,
    }
}

/// Whether a role that is kept out so is so at any time: by what it proves itself by, what it may do, or what it asks to begin with.
fn refuses_login(error: &NoBackend) -> bool {
    match error {
        NoBackend::Login(_) | NoBackend::Method(_) => true,
        // Of this moment: no room for it, a server that starts or ends, one that is broken.
        NoBackend::Refused(error, _) => !error.is_of_server() && !error.sqlstate.starts_with("55"),
        _ => false,
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

    #[test]
    fn a_role_that_reads_changes_is_another_login() {
        let roles = Roles::default();
        let parameters = vec![("replication".into(), "database".into())];
        roles.learn(&role("cdc", "s"));
        roles.learn(&Identity { parameters, ..role("cdc", "s") });
        let replicates =
            || roles.all("b").iter().map(|(_, identity)| identity.replicates()).collect::<Vec<_>>();
        assert_eq!(replicates(), [false, true]);
        roles.forget(&role("cdc", "s"));
        assert_eq!(replicates(), [true]);
    }

    #[test]
    fn who_came_before_a_password_was_changed_goes_on_by_the_new_one() {
        let roles = Roles::default();
        roles.learn(&role("app", "old"));
        let (old, new) = (role("app", "old"), role("app", "new"));
        assert!(roles.newest(&old).is_none() && roles.newest(&role("other", "old")).is_none());
        roles.learn(&new);
        let parameters = vec![("options".into(), "-c a.b=c".into())];
        let old = Identity { parameters, ..old };
        let newest = roles.newest(&old).expect("another");
        assert_eq!((newest.options(), &newest.secret), (Some("-c a.b=c"), &new.secret));
        // It may log in by the old one where that is not changed yet.
        roles.learn_again(&old);
        assert!(roles.newest(&old).is_some() && roles.newest(&new).is_none());
        let logins = [roles.comes(&old), roles.comes(&new)];
        assert_eq!(roles.present(&old), 2);
        for login in &logins {
            roles.leaves(login);
        }
        assert_eq!(roles.present(&old), 0);
    }

    #[test]
    fn of_a_role_that_is_forgotten_nothing_stays() {
        let roles = Roles::default();
        roles.learn(&role("gone", "s"));
        roles.is_fine(&role("gone", "s"), "b");
        roles.forget(&role("gone", "s"));
        roles.is_fine(&role("gone", "s"), "b");
        assert!(lock(&roles.0).fine.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_found_is_told_where_others_do_not_answer() {
        let outcome = |number: usize| async move {
            match number {
                0 => std::future::pending().await,
                1 => (Some(number), None),
                2 => (None, None),
                _ => (Some(number), Some(number)),
            }
        };
        let (mut found, ended) = in_time((0..20).map(outcome).collect(), Duration::from_secs(1)).await;
        found.sort_unstable();
        let told: Vec<_> = (3..20).collect();
        assert_eq!((found, ended), (told.clone(), told.into_iter().chain([1]).collect()));
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
