//! Commits that wait for the shadow: the walsender of a stream's slot as a synchronous standby of the primary.
//!
//! PostgreSQL matches `synchronous_standby_names` with the `application_name` of a walsender; that of a stream is its
//! slot's name. Logical walsenders count. A commit waits for what is in the setting, at the level that its session's
//! `synchronous_commit` says; what the stream reports is durable on the target.
//!
//! [`machine`] decides when commits wait; [`Armed::join`] and [`leave`] change the setting, keeping what the operator has
//! there ([`names`]).
//!
//! # The guard
//! A server whose synchronous standby is gone lets commits wait for ever, whatever became of the client that asked for it. So
//! before the name goes in, two sessions run a loop *in the primary* (`install.sql`): it needs neither this process nor the
//! path to it, and takes the name out when nobody streams, or a commit has waited, for longer than the policy allows. It does
//! not survive a restart of the server, nor an operator who ends its sessions.
//!
//! # Several resources of one server
//! There is one setting for all of them, no lock that they could share (advisory locks are of one database), and what a guard
//! will write is fixed before it watches. So a guard takes every name of Godwit's out and leaves the operator's: the others fall
//! back early, and come back. And whoever writes the setting looks afterwards whether each name in it has a guard that watches: one
//! that has none may have been read just before its guard took it out, and would be waited for for ever.
//!
//! # Rights
//! A superuser; or, from PostgreSQL 15 on, `ALTER SYSTEM ON PARAMETER synchronous_standby_names`, `EXECUTE` on
//! `pg_reload_conf()`, `pg_monitor` and `pg_signal_backend`: see [`findings`].

pub mod machine;
pub mod names;

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_postgres::Client;

use self::names::StandbyNames;
use crate::error::Error;
use crate::fence::{literal, refused, rows};
use crate::postgres::{Dsn, connect};
use crate::preflight::{Finding, Severity};

/// How long a changed setting may take to be seen by a session.
const EFFECT: Duration = Duration::from_secs(5);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(20);
/// How long the lanes of other resources may take to put up their guards, and to take notice of each other.
const OTHERS: Duration = Duration::from_secs(1);
/// One commit may come back late by chance; not so many.
const PROOFS: usize = 5;
/// Where the way is long, fewer will do: nobody is late by chance for so long.
const LONG: Duration = Duration::from_secs(1);
/// What the server shows of the session that tries it in `pg_stat_activity`.
const PROBES: &str = "godwit-probe";
/// Settings of a guard's session; those that the server's version does not know are left out.
const GUARD_SETTINGS: &str = "SELECT pg_catalog.set_config(s.name, s.value, false) FROM (VALUES \
    ('synchronous_commit', 'local'), ('statement_timeout', '0'), ('transaction_timeout', '0'), \
    ('idle_session_timeout', '0'), ('idle_in_transaction_session_timeout', '0'), ('lock_timeout', '0'), \
    ('client_connection_check_interval', '0'), ('default_transaction_read_only', 'off'), \
    ('search_path', 'pg_catalog')) s(name, value) JOIN pg_catalog.pg_settings USING (name)";

/// What a server says of a lane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// The setting.
    pub setting: String,
    /// It names the lane.
    pub named: bool,
    /// A walsender streams from its slot, and counts as `sync`, `quorum`, `potential` or `async`.
    pub state: Option<String>,
    /// Sessions whose commits wait, for whatever standby.
    pub waiting: u32,
    /// Why a guard took the name out.
    pub fell_back: Option<String>,
}

/// Looks at the primary; one round trip.
pub async fn observe(client: &Client, slot: &str) -> Result<Observation, Error> {
    let installed = "SELECT pg_catalog.to_regclass('godwit.synchronous') IS NOT NULL";
    let look = format!(
        "SELECT pg_catalog.current_setting('synchronous_standby_names'), \
         (SELECT r.sync_state {} AND r.state = 'streaming'), \
         (SELECT count(*) FROM pg_catalog.pg_stat_activity a WHERE a.wait_event = 'SyncRep')",
        of_walsender(slot)
    );
    let (installed, answer) = tokio::join!(client.simple_query(installed), client.simple_query(&look));
    let context = "look at the synchronous standbys";
    let (installed, answer) =
        (rows(installed.map_err(refused(context))?), rows(answer.map_err(refused(context))?));
    let row = answer.first().ok_or_else(|| Error::Protocol(format!("{context}: no answer")))?;
    let setting = row.get(0).unwrap_or_default().to_owned();
    let named = StandbyNames::parse(&setting).is_ok_and(|names| names.contains(slot));
    let mut fell_back = None;
    if !named && installed.first().and_then(|row| row.get(0)) == Some("t") {
        let why = format!("SELECT fell_back FROM godwit.synchronous WHERE slot = {}", literal(slot));
        let why = rows(client.simple_query(&why).await.map_err(refused(context))?);
        fell_back = why.first().and_then(|row| row.get(0)).map(str::to_owned);
    }
    Ok(Observation {
        setting,
        named,
        state: row.get(1).map(str::to_owned),
        waiting: row.get(2).and_then(|count| count.parse().ok()).unwrap_or_default(),
        fell_back,
    })
}

/// What keeps the primary from waiting for `slot`: each with the SQL that mends it.
pub async fn findings(client: &Client, slot: &str) -> Result<Vec<Finding>, Error> {
    let context = "check the rights for synchronous replication";
    let version = rows(client.simple_query("SHOW server_version_num").await.map_err(refused(context))?);
    let version: u32 =
        version.first().and_then(|row| row.get(0)).and_then(|text| text.parse().ok()).unwrap_or_default();
    let parameter = if version >= 150_000 {
        "has_parameter_privilege('synchronous_standby_names', 'ALTER SYSTEM')"
    } else {
        "false"
    };
    let sql = format!(
        "SELECT quote_ident(current_user), rolsuper, {parameter}, \
         has_function_privilege('pg_catalog.pg_reload_conf()', 'EXECUTE'), \
         pg_has_role('pg_read_all_stats', 'USAGE') AND pg_has_role('pg_read_all_settings', 'USAGE'), \
         pg_has_role('pg_signal_backend', 'USAGE'), current_setting('synchronous_standby_names'), \
         (SELECT source FROM pg_settings WHERE name = 'synchronous_standby_names') \
         FROM pg_roles WHERE rolname = current_user"
    );
    let answer = rows(client.simple_query(&sql).await.map_err(refused(context))?);
    let row = answer.first().ok_or_else(|| Error::Protocol(format!("{context}: no answer")))?;
    let role = row.get(0).unwrap_or_default();
    let may = |at: usize| row.get(1) == Some("t") || row.get(at) == Some("t");
    let mut found = Vec::new();
    let mut lacks = |what: &str, remedy: String| {
        found.push(Finding {
            severity: Severity::Blocker,
            subject: role.to_owned(),
            problem: format!("{what}: commits cannot wait for the shadow"),
            remedy: Some(remedy),
        });
    };
    if !may(2) {
        lacks(
            "may not set synchronous_standby_names",
            format!(
                "GRANT ALTER SYSTEM ON PARAMETER synchronous_standby_names TO {role} (15 or later), or SUPERUSER"
            ),
        );
    }
    if !may(3) {
        lacks(
            "may not reload the configuration",
            format!("GRANT EXECUTE ON FUNCTION pg_reload_conf() TO {role}"),
        );
    }
    if !may(4) {
        lacks("may not see walsenders and settings", format!("GRANT pg_monitor TO {role}"));
    }
    if !may(5) {
        lacks("may not end other sessions", format!("GRANT pg_signal_backend TO {role}"));
    }
    let setting = row.get(6).unwrap_or_default();
    let source = row.get(7).unwrap_or_default();
    let merged = StandbyNames::parse(setting).and_then(|names| names.with(slot));
    let refusal = match merged {
        Err(why) => Some(why),
        Ok(_) if !matches!(source, "default" | "configuration file" | "") => {
            Some(format!("is given by the server's {source}, which ALTER SYSTEM does not change"))
        }
        Ok(_) => None,
    };
    found.extend(refusal.map(|problem| Finding {
        severity: Severity::Blocker,
        subject: "synchronous_standby_names".into(),
        problem,
        remedy: None,
    }));
    Ok(found)
}

/// Commits wait for the lane as long as this is kept and [`leave`] was not called; dropping it ends nothing.
#[derive(Debug)]
pub struct Armed {
    guards: Vec<JoinHandle<()>>,
}

impl Armed {
    /// Puts guards up and `slot` into the setting; returns when a session of the server sees it as a synchronous
    /// standby. Takes over what an earlier process left.
    ///
    /// # Errors
    /// [`Error::Unready`] when the setting cannot be joined. Half of it may be done: call [`leave`].
    pub async fn join(client: &Client, dsn: &Dsn, slot: &str, after: Duration) -> Result<Self, Error> {
        let context = "make commits wait for the shadow";
        if let Some(finding) = findings(client, slot).await?.first() {
            let remedy =
                finding.remedy.as_ref().map(|remedy| format!(" (mend: {remedy})")).unwrap_or_default();
            return Err(Error::Unready(format!("{}: {}{remedy}", finding.subject, finding.problem)));
        }
        client.batch_execute(include_str!("install.sql")).await.map_err(refused(context))?;
        let before = Before::note(client, slot).await?;
        let (first, second) = tokio::try_join!(
            Guard::open(dsn, slot),
            // It has nothing to run after its loop: the loop never ends.
            Guard::open(dsn, slot),
        )?;
        let pids = [first.pid, second.pid];
        let arguments = |release: bool| {
            let arguments = serde_json::json!({
                "slot": slot,
                "after_ms": u64::try_from(after.as_millis()).unwrap_or(u64::MAX).clamp(100, i32::MAX as u64),
                "release": release,
                "alone": before.setting.is_empty(),
            });
            format!("CALL godwit.guard_synchronous({}::jsonb)", literal(&arguments.to_string()))
        };
        let guards = vec![
            first.run(vec![arguments(false), before.restore(), "SELECT pg_reload_conf()".into()]),
            second.run(vec![arguments(true)]),
        ];
        end_guards(client, slot, &pids).await?;
        write(client, &set(&before.joined)).await?;
        let mut written = crate::clock::now();
        let prober = connect(dsn, PROBES).await?;
        let deadline = written + EFFECT;
        loop {
            let now = observe(client, slot).await?;
            if let Some(why) = now.fell_back {
                // Its own guard took it out: nobody would let go who waits for it now.
                return Err(Error::Unready(format!("{context}: {why}")));
            }
            let counts = now.named && matches!(now.state.as_deref(), Some("sync" | "quorum"));
            let mut unguarded = unguarded(client, &now.setting).await?;
            if counts && unguarded.is_empty() && commits_wait(&prober, slot).await? {
                return Ok(Self { guards });
            }
            let guarded = !unguarded.iter().any(|name| name == slot);
            unguarded.retain(|name| name != slot);
            if written.elapsed() > OTHERS && !(now.named && unguarded.is_empty()) {
                // Another resource's lane wrote what it had read before, or left its name behind.
                written = crate::clock::now();
                if now.named {
                    write(client, &set(&without(&now.setting, &unguarded)?)).await?;
                } else {
                    let before = Before::note(client, slot).await?;
                    write(client, &set(&before.joined)).await?;
                }
            }
            if crate::clock::now() > deadline {
                let why = if counts && !guarded {
                    "its guard does not watch".to_owned()
                } else if counts {
                    "commits do not wait yet, since the server's checkpointer has not read the setting"
                        .to_owned()
                } else {
                    format!(
                        "the server does not count {slot} as a synchronous standby (setting {:?}, walsender {})",
                        now.setting,
                        now.state.unwrap_or_else(|| "not there".into())
                    )
                };
                return Err(Error::Unready(format!("{context}: {why}")));
            }
            sleep(LOOK).await;
        }
    }

    /// Both guards still watch, as far as this side of their connections knows.
    pub fn guarded(&self) -> bool {
        self.guards.iter().all(|guard| !guard.is_finished())
    }
}

/// SQL that puts `setting` into `postgresql.auto.conf`.
fn set(setting: &str) -> String {
    format!("ALTER SYSTEM SET synchronous_standby_names = {}", literal(setting))
}

async fn write(client: &Client, alter: &str) -> Result<(), Error> {
    let context = "change synchronous_standby_names";
    client.batch_execute(alter).await.map_err(refused(context))?;
    client.batch_execute("SELECT pg_reload_conf()").await.map_err(refused(context))
}

fn without(setting: &str, slots: &[String]) -> Result<String, Error> {
    let names = StandbyNames::parse(setting).map_err(Error::Unready)?;
    Ok(slots.iter().fold(names, |names, slot| names.without(slot)).to_string())
}

/// The slots of Godwit's in `setting` that no guard watches which would take them out; of all databases.
async fn unguarded(client: &Client, setting: &str) -> Result<Vec<String>, Error> {
    let mut slots = StandbyNames::parse(setting).map_err(Error::Unready)?.own();
    if slots.is_empty() {
        return Ok(slots);
    }
    // The second guard goes on for ever, and the first session stays connected when its loop is over.
    let watching = "SELECT application_name FROM pg_catalog.pg_stat_activity WHERE application_name LIKE 'godwit guard %' \
                    AND (state = 'disabled' OR state = 'active' AND query LIKE 'CALL godwit.guard_synchronous(%\"release\":false%')";
    let watching = rows(client.simple_query(watching).await.map_err(refused("look for guards"))?);
    slots.retain(|slot| !watching.iter().any(|row| row.get(0) == Some(&guard_name(slot))));
    Ok(slots)
}

/// SQL: of `pg_stat_replication r`, whoever streams from `slot`.
fn of_walsender(slot: &str) -> String {
    format!(
        "FROM pg_catalog.pg_stat_replication r JOIN pg_catalog.pg_replication_slots s ON s.active_pid = r.pid \
         WHERE s.slot_name = {}",
        literal(slot)
    )
}

/// Whether commits wait. A server counts a walsender as synchronous as soon as that has read the setting; commits wait for it once the
/// checkpointer has as well, and nothing shows that but a commit: one that does not wait is back before the standby has it.
async fn commits_wait(prober: &Client, slot: &str) -> Result<bool, Error> {
    let probe = format!(
        "BEGIN; SET LOCAL synchronous_commit = on; \
         SELECT pg_catalog.set_config('godwit.probe', pg_catalog.pg_logical_emit_message(true, 'godwit.probe', '')::text, false); COMMIT; \
         SELECT r.flush_lsn > pg_catalog.current_setting('godwit.probe')::pg_lsn {}",
        of_walsender(slot)
    );
    let enough = crate::clock::now() + LONG;
    for _ in 0..PROOFS {
        let Ok(answer) = tokio::time::timeout(EFFECT, prober.simple_query(&probe)).await else {
            // It waits indeed.
            return Ok(true);
        };
        let answer = rows(answer.map_err(refused("see whether commits wait"))?);
        if answer.last().and_then(|row| row.get(0)) != Some("t") {
            return Ok(false);
        }
        if crate::clock::now() > enough {
            break;
        }
    }
    Ok(true)
}

/// Takes `slot` out of the setting, puts back what was there before, and ends the guards; returns when a session of the
/// server no longer sees it. Idempotent: where nothing is to be undone, nothing is done.
///
/// Commits that wait for nobody else are released. What the operator changed meanwhile is kept, and so are other resources' slots.
pub async fn leave(client: &Client, slot: &str) -> Result<(), Error> {
    let context = "let commits go on without the shadow";
    let noted = Before::read(client, slot).await?;
    let undo = undo(noted.as_ref(), &setting(client).await?, slot);
    if noted.is_none() && undo.is_none() {
        return Ok(());
    }
    if let Some(undo) = &undo {
        write(client, undo).await?;
    }
    let deadline = crate::clock::now() + EFFECT;
    let left = loop {
        let now = setting(client).await?;
        if !StandbyNames::parse(&now).is_ok_and(|names| names.contains(slot)) {
            break now;
        }
        if crate::clock::now() > deadline {
            return Err(Error::Unready(format!(
                "{context}: the server does not read its configuration again"
            )));
        }
        sleep(LOOK).await;
    };
    if undo.is_some() && StandbyNames::parse(&left).is_ok() {
        let unguarded = unguarded(client, &left).await?;
        if !unguarded.is_empty() {
            write(client, &set(&without(&left, &unguarded)?)).await?;
        }
    }
    end_guards(client, slot, &[]).await?;
    if noted.is_some() {
        let forget = format!("DELETE FROM godwit.synchronous WHERE slot = {}", literal(slot));
        client.batch_execute(&forget).await.map_err(refused(context))?;
    }
    Ok(())
}

/// What takes `slot` out of the setting; none: it is not in there, and what is was set since we joined.
fn undo(noted: Option<&Before>, setting: &str, slot: &str) -> Option<String> {
    let names = StandbyNames::parse(setting).ok().filter(|names| names.contains(slot));
    match (names.map(|names| names.without(slot)), noted) {
        (Some(rest), Some(before)) if StandbyNames::parse(&before.setting).is_ok_and(|was| was == rest) => {
            Some(before.restore())
        }
        (Some(rest), _) => Some(set(&rest.to_string())),
        // A guard took it out, or no session has seen it yet.
        (None, Some(before)) if setting == before.setting => Some(before.restore()),
        (None, _) => None,
    }
}

/// The slots of `resource` that are in the setting, or were to be: all but `keep`.
pub async fn left_over(client: &Client, resource: &str, keep: Option<&str>) -> Result<Vec<String>, Error> {
    let context = "look for synchronous standbys of earlier generations";
    let mut slots = StandbyNames::parse(&setting(client).await?)
        .map_or_else(|_| Vec::new(), |names| names.names().to_vec());
    let installed = client.simple_query("SELECT pg_catalog.to_regclass('godwit.synchronous')").await;
    if rows(installed.map_err(refused(context))?).first().and_then(|row| row.get(0)).is_some() {
        let noted =
            client.simple_query("SELECT slot FROM godwit.synchronous").await.map_err(refused(context))?;
        slots.extend(rows(noted).iter().filter_map(|row| row.get(0).map(str::to_owned)));
    }
    slots.retain(|slot| crate::postgres::slot::is_slot_of(slot, resource) && Some(slot.as_str()) != keep);
    slots.sort_unstable();
    slots.dedup();
    Ok(slots)
}

async fn setting(client: &Client) -> Result<String, Error> {
    let answer = client.simple_query("SHOW synchronous_standby_names").await;
    let answer = rows(answer.map_err(refused("read synchronous_standby_names"))?);
    Ok(answer.first().and_then(|row| row.get(0)).unwrap_or_default().to_owned())
}

/// What the operator has in `setting`, where Godwit has put something there.
fn of_operator(setting: &str) -> Option<String> {
    let names = StandbyNames::parse(setting).ok()?;
    (!names.own().is_empty()).then(|| names.of_operator().to_string())
}

/// What the setting was before a lane joined it.
struct Before {
    /// Without Godwit's names: those of other resources have their own guards.
    setting: String,
    /// It came from `postgresql.auto.conf`.
    persisted: bool,
    joined: String,
}

impl Before {
    /// Writes down what there is, before it is changed; what an earlier process wrote down counts where its change still
    /// stands.
    async fn note(client: &Client, slot: &str) -> Result<Self, Error> {
        let context = "note synchronous_standby_names";
        let now = setting(client).await?;
        let names = StandbyNames::parse(&now).map_err(Error::Unready)?;
        if let Some(before) = Self::read(client, slot).await?
            && before.joined == now
        {
            let forget =
                format!("UPDATE godwit.synchronous SET fell_back = NULL WHERE slot = {}", literal(slot));
            client.batch_execute(&forget).await.map_err(refused(context))?;
            return Ok(before);
        }
        let origin = "SELECT source, coalesce(sourcefile, '') FROM pg_catalog.pg_settings \
                      WHERE name = 'synchronous_standby_names'";
        let origin = rows(client.simple_query(origin).await.map_err(refused(context))?);
        let persisted = origin
            .first()
            .is_some_and(|row| row.get(1).is_some_and(|file| file.ends_with("postgresql.auto.conf")));
        let joined = names.without(slot).with(slot).map_err(Error::Unready)?.to_string();
        let this = match of_operator(&now) {
            // The entry is Godwit's.
            Some(setting) => Self { persisted: !setting.is_empty(), setting, joined },
            None => Self { setting: now, persisted, joined },
        };
        let note = format!(
            "INSERT INTO godwit.synchronous (slot, before, persisted, joined) VALUES ({}, {}, {}, {}) \
             ON CONFLICT (slot) DO UPDATE SET before = EXCLUDED.before, persisted = EXCLUDED.persisted, \
             joined = EXCLUDED.joined, fell_back = NULL, updated_at = now()",
            literal(slot),
            literal(&this.setting),
            this.persisted,
            literal(&this.joined)
        );
        client.batch_execute(&note).await.map_err(refused(context))?;
        Ok(this)
    }

    async fn read(client: &Client, slot: &str) -> Result<Option<Self>, Error> {
        let context = "read what synchronous_standby_names was";
        let installed = client.simple_query("SELECT pg_catalog.to_regclass('godwit.synchronous')").await;
        if rows(installed.map_err(refused(context))?).first().and_then(|row| row.get(0)).is_none() {
            return Ok(None);
        }
        let sql = format!(
            "SELECT before, persisted, joined FROM godwit.synchronous WHERE slot = {}",
            literal(slot)
        );
        let answer = rows(client.simple_query(&sql).await.map_err(refused(context))?);
        Ok(answer.first().map(|row| {
            let text = |at: usize| row.get(at).unwrap_or_default().to_owned();
            let setting = text(0);
            let setting = of_operator(&setting).unwrap_or(setting);
            Self { setting, persisted: row.get(1) == Some("t"), joined: text(2) }
        }))
    }

    fn restore(&self) -> String {
        if self.persisted {
            set(&self.setting)
        } else {
            "ALTER SYSTEM RESET synchronous_standby_names".into()
        }
    }
}

struct Guard {
    client: Client,
    pid: i32,
}

impl Guard {
    async fn open(dsn: &Dsn, slot: &str) -> Result<Self, Error> {
        let context = "open a guard's session";
        let client = connect(dsn, &guard_name(slot)).await?;
        client.batch_execute(GUARD_SETTINGS).await.map_err(refused(context))?;
        let row = client.query_one("SELECT pg_catalog.pg_backend_pid()", &[]).await;
        let pid = row.map_err(Error::database(context))?.get(0);
        Ok(Self { client, pid })
    }

    /// Everything is sent at once: the server goes through it whatever becomes of this side.
    fn run(self, statements: Vec<String>) -> JoinHandle<()> {
        tokio::spawn(async move {
            let sent = statements.iter().map(|statement| self.client.simple_query(statement));
            // Each is written when it is first polled, in order.
            for ended in futures_util::future::join_all(sent).await {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a guard of synchronous replication ended");
                }
            }
        })
    }
}

/// What the server shows a guard as.
fn guard_name(slot: &str) -> String {
    format!("godwit guard {slot}").chars().take(63).collect()
}

/// Ends the guards of `slot` but those named.
async fn end_guards(client: &Client, slot: &str, keep: &[i32]) -> Result<(), Error> {
    client
        .execute(
            "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity \
             WHERE application_name = $1 AND datname = current_database() AND pid <> ALL ($2) AND pid <> pg_backend_pid()",
            &[&guard_name(slot), &keep],
        )
        .await
        .map(drop)
        .map_err(Error::database("end the guards of synchronous replication"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_since_the_lane_joined_stays() {
        let before = |setting: &str, persisted, joined: &str| Before {
            setting: setting.into(),
            persisted,
            joined: joined.into(),
        };
        let (reset, set) =
            ("ALTER SYSTEM RESET synchronous_standby_names", "ALTER SYSTEM SET synchronous_standby_names = ");
        let alone = before("", false, "FIRST 1 (\"us\")");
        let beside = before("a", true, "FIRST 2 (\"us\", \"a\")");
        let later = before("", false, "FIRST 2 (\"us\", \"godwit_x_g1\")");
        for (noted, setting, expected) in [
            (&alone, "FIRST 1 (\"us\")", Some(reset.to_owned())),
            (&beside, "FIRST 2 (\"us\", \"a\")", Some(format!("{set}'a'"))),
            // Somebody added a standby to ours.
            (&alone, "FIRST 2 (\"us\", \"b\")", Some(format!("{set}'FIRST 1 (\"b\")'"))),
            // The guard was here, or nobody has read what we wrote.
            (&alone, "", Some(reset.to_owned())),
            (&beside, "a", Some(format!("{set}'a'"))),
            // Somebody took a standby out that is gone, or put one in, and us out with that.
            (&beside, "", None),
            (&alone, "b", None),
            (&beside, "FIRST 1 (c)", None),
            // Another resource joined, before or since.
            (&alone, "FIRST 2 (\"us\", \"godwit_x_g1\")", Some(format!("{set}'FIRST 1 (\"godwit_x_g1\")'"))),
            (&later, "FIRST 2 (\"us\", \"godwit_x_g1\")", Some(format!("{set}'FIRST 1 (\"godwit_x_g1\")'"))),
            (&later, "FIRST 1 (\"us\")", Some(reset.to_owned())),
        ] {
            assert_eq!(undo(Some(noted), setting, "us"), expected, "{setting:?} after {:?}", noted.joined);
        }
        assert_eq!(undo(None, "a", "us"), None);
        assert_eq!(undo(None, "us", "us"), Some(format!("{set}''")));
    }
}
