//! What can only be seen with both databases at hand.
//!
//! The source says what it makes use of (`needs.sql`), the target what it lacks of that (`offers.sql`).

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::{Finding, Severity, filled, findings, holds, paths, rows, strings};
use crate::error::Error;
use crate::fence::{literal, refused};
use crate::postgres::quote_ident;
use crate::{changes, extensions};

/// Extensions that the role can make in this database, or that are there.
const MAKEABLE: &str = "SELECT extname FROM pg_extension UNION \
    SELECT v.name FROM pg_available_extension_versions v JOIN pg_available_extensions a \
      ON a.name = v.name AND a.default_version = v.version \
    WHERE (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) OR NOT v.superuser OR v.trusted";

/// What the target lacks of the source: extensions and what they were configured with, passwords, roles and their rights, collations, what the server is built with and
/// knows, settings, encoding, standbys, the right time. Blockers first.
pub async fn compare(source: &Client, target: &Client) -> Result<Vec<Finding>, Error> {
    compare_for(source, target, true, Severity::Warning).await
}

/// The same for moves that leave, or carry, what extensions keep for their users.
pub async fn compare_for(
    source: &Client,
    target: &Client,
    carried: bool,
    logins: Severity,
) -> Result<Vec<Finding>, Error> {
    let mut found = Vec::from_iter(one_server(source, target).await?);
    let sql = "SELECT extname::text, quote_ident(extname), CASE WHEN nspname NOT IN ('public', 'pg_catalog') THEN quote_ident(nspname) END \
        FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace ORDER BY 1";
    let installed = source.query(sql, &[]).await.map_err(refused("cannot list extensions"))?;
    let available = strings(target, "SELECT name FROM pg_available_extensions").await?;
    let makeable = strings(target, MAKEABLE).await?;
    for row in installed {
        let (name, quoted, schema): (String, String, Option<String>) = (row.get(0), row.get(1), row.get(2));
        if makeable.contains(&name) {
            continue;
        }
        let (problem, remedy) = if available.contains(&name) {
            (
                "the source uses this extension; on the target only a superuser can make it",
                match schema {
                    Some(schema) => format!(
                        "CREATE SCHEMA IF NOT EXISTS {schema}; CREATE EXTENSION {quoted} SCHEMA {schema}, as superuser in the target's database"
                    ),
                    None => format!("CREATE EXTENSION {quoted}, as superuser in the target's database"),
                },
            )
        } else {
            (
                "the source uses this extension; the target server does not have it",
                format!("install the package of extension {name} on the target's server"),
            )
        };
        let problem = problem.to_owned();
        found.push(Finding { severity: Severity::Blocker, subject: name, problem, remedy: Some(remedy) });
    }
    found.extend(superusers(source, target).await?);
    found.extend(encodings(source, target).await?);
    found.extend(extensions::findings(source, target, carried).await?);
    found.extend(passwords(source, target, logins).await?);
    found.extend(lacks(source, target).await?);
    found.extend(settings(source, target).await?);
    found.extend(paths::lost(source).await?);
    found.extend(clocks(source, target).await?);
    found.sort();
    Ok(found)
}

/// Origins are of a whole server: the applier of the way back would wait for that of the way there, which ends after it.
async fn one_server(source: &Client, target: &Client) -> Result<Option<Finding>, Error> {
    // A clone has the system identifier of what it was made of.
    let sql =
        "SELECT system_identifier, date_part('epoch', pg_postmaster_start_time()) FROM pg_control_system()";
    let ask = async |client: &Client| {
        let row = client.query_one(sql, &[]).await.map_err(refused("cannot tell which server this is"))?;
        Ok::<(i64, f64), Error>((row.get(0), row.get(1)))
    };
    let (source, target) = tokio::try_join!(ask(source), ask(target))?;
    Ok((source == target).then(|| Finding {
        severity: Severity::Blocker,
        subject: "server".into(),
        problem: "source and target are databases of one server: the stream of a way back cannot run beside that of the way there".into(),
        remedy: Some("a server for each zone, which may be another cluster on the same machine".into()),
    }))
}

/// How many of a kind are named one by one.
const NAMED: usize = 20;

/// What belongs to superusers, or what only they can make: a copy by a role that is none leaves it, and so the target is to have it before the copy.
///
/// # Errors
/// [`Error::Database`].
pub async fn superusers(source: &Client, target: &Client) -> Result<Vec<Finding>, Error> {
    let sql = filled(include_str!("superusers.sql"));
    let read = async |client: &Client| {
        let answer =
            client.simple_query(&sql).await.map_err(refused("cannot read what belongs to superusers"))?;
        let rows = rows(answer);
        let rows = rows.iter().map(|row| {
            let [described, made, otherwise, left] = [0, 1, 2, 3].map(|at| row.get(at).map(str::to_owned));
            Some((described?, made, otherwise?, left? == "t"))
        });
        let rows = rows.collect::<Option<Vec<_>>>();
        rows.ok_or_else(|| Error::Protocol("what belongs to superusers cannot be read".into()))
    };
    let me = "SELECT quote_ident(rolname) FROM pg_roles WHERE rolname = current_user AND NOT rolsuper";
    let Some(role) = strings(source, me).await?.pop() else { return Ok(Vec::new()) };
    let (here, there) = tokio::try_join!(read(source), read(target))?;
    let there: HashSet<String> =
        there.into_iter().filter(|(.., left)| *left).map(|(described, ..)| described).collect();
    let lacking: Vec<_> =
        here.into_iter().filter(|(described, .., left)| !(*left && there.contains(described))).collect();
    let more = lacking.len().saturating_sub(NAMED);
    let mut found: Vec<_> = lacking
        .into_iter()
        .take(NAMED)
        .map(|(subject, made, otherwise, left)| Finding {
            severity: Severity::Blocker,
            problem: if left {
                format!("is a superuser's, and role {role} is none: the copy leaves it, and the target does not have it")
            } else {
                format!("only a superuser can make it, and role {role} is none: the copy would stop there")
            },
            remedy: Some(if left {
                let made = made.unwrap_or_else(|| format!("make {subject} as pg_dump of the source has it"));
                format!("{made}, as superuser in the target's database; or here {otherwise}")
            } else {
                otherwise
            }),
            subject,
        })
        .collect();
    if more > 0 {
        found.push(Finding {
            severity: Severity::Blocker,
            subject: format!("{more} more"),
            problem: "are superusers', and the target does not have them".into(),
            remedy: Some("REASSIGN OWNED BY … TO …, a role that is not superuser".into()),
        });
    }
    Ok(found)
}

/// What the source's database makes use of and the target does not offer.
async fn lacks(source: &Client, target: &Client) -> Result<Vec<Finding>, Error> {
    let carried = changes::carried(source).await?.iter().map(|slot| literal(slot)).collect::<Vec<_>>();
    let carried = format!("ARRAY[{}]::name[]", carried.join(", "));
    let needs = filled(include_str!("needs.sql")).replace("{{carried}}", &carried);
    let needs = strings(source, &needs).await?.concat();
    let fenced = holds(target, "connect_grants", "true").await?;
    // Tried rather than looked up: no catalogue says so. Only where it matters: a server's log has an error of it.
    let needs_xml = needs.contains("\"kind\": \"xml\"");
    let xml = match if needs_xml { target.batch_execute("SELECT '<a/>'::xml").await } else { Ok(()) } {
        Ok(()) => true,
        Err(error) if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => false,
        Err(error) => return Err(refused("cannot check the database")(error)),
    };
    let sql = filled(include_str!("offers.sql"))
        .replace("{{fenced}}", &fenced.to_string())
        .replace("{{xml}}", &xml.to_string())
        .replace("{{needs}}", &literal(&needs));
    findings(target, &sql).await
}

/// Digests of what roles prove themselves by.
const VERIFIERS: &str = "SELECT rolname::text || ' ' || md5(rolpassword) FROM pg_authid \
    WHERE rolcanlogin AND rolpassword IS NOT NULL AND NOT rolsuper AND rolname <> current_user";

/// Roles that could log in on the source and not on the target, as far as the role may read that on both (it needs that for a
/// PostgreSQL front that asks the database).
async fn passwords(source: &Client, target: &Client, severity: Severity) -> Result<Vec<Finding>, Error> {
    let mut sides = Vec::new();
    for side in [source, target] {
        // Tried, it would be an error in the server's log each time.
        let may = "SELECT true WHERE pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT')";
        if strings(side, may).await?.is_empty() {
            return Ok(Vec::new());
        }
        let rows = side.query(VERIFIERS, &[]).await.map_err(refused("cannot compare passwords"))?;
        sides.push(rows.iter().map(|row| row.get(0)).collect::<Vec<String>>());
    }
    let role = |line: &str| line.rsplit_once(' ').map(|(role, _)| role.to_owned());
    let there: Vec<String> = sides[1].iter().filter_map(|line| role(line)).collect();
    let other = sides[0].iter().filter(|line| !sides[1].contains(line)).filter_map(|line| role(line));
    let found = other.map(|role| Finding {
        severity,
        problem: if there.contains(&role) {
            "has another password on the target, or the same with another salt: through the PostgreSQL front, or with the source's, it \
             cannot log in after a move"
        } else {
            "has a password on the source and none on the target: it cannot log in after a move"
        }
        .into(),
        remedy: Some(format!("ALTER ROLE {} PASSWORD '…' on the target, as pg_dumpall --roles-only of the source has it", quote_ident(&role))),
        subject: role,
    });
    Ok(found.collect())
}

/// Settings that functions have of their own.
const SET: &str = "SELECT DISTINCT ON (setting) setting, p.oid::regprocedure::text FROM pg_proc p, \
      unnest(p.proconfig) entry, split_part(entry, '=', 1) setting \
    WHERE p.oid >= 16384 AND NOT EXISTS (SELECT FROM pg_depend d \
      WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e') ORDER BY 1, 2";
/// Which of these settings the role may not give to a function.
const UNSETTABLE: &str = "SELECT s FROM unnest($1::text[]) s LEFT JOIN pg_settings p ON p.name = s \
    WHERE NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AND coalesce(p.context, 'superuser') <> 'user'";

/// Functions that only a superuser, or whoever was granted it, could make on the target: for a setting of theirs.
async fn settings(source: &Client, target: &Client) -> Result<Vec<Finding>, Error> {
    let unread = |error| refused("cannot compare settings of functions")(error);
    let set = source.query(SET, &[]).await.map_err(unread)?;
    let names: Vec<&str> = set.iter().map(|row| row.get(0)).collect();
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let version = crate::schema::server_version(target).await?;
    let grantable = version >= 150_000;
    // The function is newer than the oldest server.
    let sql =
        format!("{UNSETTABLE}{}", if grantable { " AND NOT has_parameter_privilege(s, 'SET')" } else { "" });
    let refused: Vec<String> =
        target.query(&sql, &[&names]).await.map_err(unread)?.iter().map(|row| row.get(0)).collect();
    let role = strings(target, "SELECT quote_ident(current_user)").await?.concat();
    let of = |row: &tokio_postgres::Row| {
        let (setting, function): (String, String) = (row.get(0), row.get(1));
        refused.contains(&setting).then(|| Finding {
            severity: Severity::Blocker,
            problem: format!("has SET {setting}, which role {role} may not set on the target: the copy would stop there"),
            remedy: Some(if grantable {
                format!("GRANT SET ON PARAMETER {setting} TO {role} on the target")
            } else {
                format!("before PostgreSQL 15 only a superuser may: ALTER FUNCTION {function} RESET {setting}, or a newer server")
            }),
            subject: format!("function {function}"),
        })
    };
    Ok(set.iter().filter_map(of).collect())
}

/// Clocks that are so far apart are told, seconds: less is what commits in two sessions differ by on one server.
const APART: f64 = 0.5;
/// A server is asked so often; the quickest answer counts.
const ASKED: usize = 3;

/// What a server's clock said, seconds, between two moments here.
#[derive(Clone, Copy, Debug)]
struct Reading {
    said: f64,
    asked: Instant,
    took: Duration,
}

/// The server's clock.
async fn clock(client: &Client) -> Result<Reading, Error> {
    let mut best: Option<Reading> = None;
    for _ in 0..ASKED {
        let asked = crate::clock::now();
        let row = client.query_one("SELECT extract(epoch FROM clock_timestamp())::float8", &[]).await;
        let said = row.map_err(refused("cannot read a server's clock"))?.get(0);
        let took = crate::clock::now().duration_since(asked);
        if best.is_none_or(|best| took < best.took) {
            best = Some(Reading { said, asked, took });
        }
    }
    best.ok_or_else(|| Error::Protocol("a clock was not read".into()))
}

/// By how many seconds the second clock is ahead of the first, where that is more than [`APART`] whenever within the answers they were read.
fn ahead(one: Reading, other: Reading) -> Option<f64> {
    let passed = other.asked.saturating_duration_since(one.asked).as_secs_f64();
    let (half, half_other) = (one.took.as_secs_f64() / 2.0, other.took.as_secs_f64() / 2.0);
    let ahead = other.said - one.said - (passed + half_other - half);
    (ahead.abs() - half - half_other > APART).then_some(ahead)
}

/// Whether time goes on after a move.
async fn clocks(source: &Client, target: &Client) -> Result<Option<Finding>, Error> {
    let Some(ahead) = ahead(clock(source).await?, clock(target).await?) else { return Ok(None) };
    let means = if ahead < 0.0 {
        "behind the source's: after a move now() goes back, and what is stamped with it comes before what was written last"
    } else {
        "ahead of the source's: after a move what is stamped with now() is of a time to come, and after a move back it comes before what was written last"
    };
    Ok(Some(Finding {
        severity: Severity::Warning,
        subject: "clock".into(),
        problem: format!("the target's is {:.1} s {means}", ahead.abs()),
        remedy: Some("let NTP set the clocks of both servers (chrony, systemd-timesyncd)".into()),
    }))
}

/// Encoding, and how the database sorts text.
async fn encodings(source: &Client, target: &Client) -> Result<Vec<Finding>, Error> {
    let mut found = Vec::new();
    let properties = "SELECT p FROM pg_database d, to_jsonb(d) j, unnest(ARRAY[pg_encoding_to_char(encoding)::text, \
        concat_ws(' ', datcollate, datctype, nullif(j ->> 'datlocprovider', 'c'), \
                  coalesce(j ->> 'datlocale', j ->> 'daticulocale')), coalesce(j ->> 'datcollversion', '')]) p \
      WHERE datname = current_database()";
    let (here, there) = (strings(source, properties).await?, strings(target, properties).await?);
    let ([encoding, collation, version], [encoding_there, collation_there, version_there]) =
        (here.as_slice(), there.as_slice())
    else {
        return Err(Error::Protocol("how a database sorts cannot be read".into()));
    };
    if encoding != encoding_there {
        found.push(Finding {
            severity: Severity::Blocker,
            subject: "encoding".into(),
            problem: format!("differs: {encoding} and {encoding_there}"),
            remedy: Some(format!("CREATE DATABASE … ENCODING '{encoding}' TEMPLATE template0 on the target")),
        });
    } else if collation != collation_there {
        found.push(Finding {
            severity: Severity::Warning,
            subject: "collation".into(),
            problem: format!(
                "differs ({collation} and {collation_there}): text sorts differently after the move"
            ),
            remedy: Some("CREATE DATABASE … LC_COLLATE … LC_CTYPE … TEMPLATE template0 on the target".into()),
        });
    } else if version != version_there && !version.is_empty() && !version_there.is_empty() {
        found.push(Finding {
            severity: Severity::Warning,
            subject: "collation".into(),
            problem: format!(
                "{collation} is version {version} on the source and {version_there} on the target: \
                 text may sort differently after the move"
            ),
            remedy: Some("the same version of the operating system (or of ICU) on both".into()),
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_apart_where_no_delay_explains_it() {
        let start = crate::clock::now();
        let read = |said: f64, at: u64, took: u64| Reading {
            said,
            asked: start + Duration::from_millis(at),
            took: Duration::from_millis(took),
        };
        assert_eq!(ahead(read(100.0, 0, 2), read(105.0, 5_000, 2)), None);
        assert_eq!(ahead(read(100.0, 0, 2), read(104.6, 5_000, 2)), None);
        assert_eq!(ahead(read(100.0, 0, 2), read(102.0, 5_000, 2)), Some(-3.0));
        assert_eq!(ahead(read(100.0, 0, 2), read(108.0, 5_000, 2)), Some(3.0));
        // It may have been read right at the end of a long wait.
        assert_eq!(ahead(read(100.0, 0, 2), read(102.0, 0, 3_000)), None);
    }
}
