//! What Godwit's role must be allowed on a server and in a database, and why: nothing of it is superuser.
//!
//! Pure: text in, SQL out. A superuser (or whoever else may grant it) runs the script once on each side, source and target
//! alike, since each becomes the other after a move. [`crate::preflight`] finds what is missing of it.
//!
//! Source: PostgreSQL documentation, "Database Roles", "Predefined Roles", `GRANT … ON PARAMETER` (15 and later).

use crate::postgres::{quote_ident, quote_literal};

/// Whose rights, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a question of its own")]
pub struct Needs {
    /// Godwit's role.
    pub role: String,
    /// The database of the resource.
    pub database: String,
    /// The role that owns the database and what is in it; must not be superuser.
    pub owner: String,
    /// Roles of the application: they must exist on both sides, since what they may do travels with the copy.
    pub app_roles: Vec<String>,
    /// Commits may wait for the shadow (modes sync and hybrid).
    pub synchronous: bool,
    /// Tables have row security, which would hide rows from the copy.
    pub row_security: bool,
    /// What is in memory at the primary is read into the shadow's before a move (`caches`).
    pub caches: bool,
    /// Who connects to the PostgreSQL front proves to be who he says by his role's verifier, for which the database is asked (`auth: query`).
    pub verifiers: bool,
    /// What extensions keep for their users is carried; those that are there when the script runs.
    pub extensions: bool,
}

/// One statement and its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// SQL without a semicolon.
    pub sql: String,
    /// Why it is needed.
    pub why: &'static str,
}

/// Parameters that Godwit sets in its sessions; only a superuser may, without a grant.
pub const PARAMETERS: [(&str, &str); 2] = [
    (
        "session_replication_role",
        "the applier passes the fence, and fires no triggers of the application (15 or later: before, only a superuser may)",
    ),
    ("deadlock_timeout", "a vacuum that has a table locked gives way to the fence at once"),
];

/// Functions that are nobody's but a superuser's, without a grant. They are granted in each database.
pub const FUNCTIONS: [(&str, &str); 3] = [
    (
        "pg_replication_origin_create(text)",
        "changes that it applies are marked, so that they are not sent back",
    ),
    ("pg_replication_origin_oid(text)", "whether the mark is there already"),
    ("pg_replication_origin_session_setup(text)", "one applier of a stream at a time"),
];

/// Extensions that come with PostgreSQL and that only a superuser can make.
const EXTENSIONS: [(&str, &str); 2] = [
    (
        "pg_prewarm",
        "the caches of the next primary are filled before a move, where the server has the extension",
    ),
    ("pg_buffercache", "and it is known with what"),
];

/// What lets this role ask for the verifiers of all roles.
pub fn verifiers_granted(role: &str) -> String {
    format!("GRANT SELECT ON pg_catalog.pg_authid TO {}", quote_ident(role))
}

/// What is needed, in the order in which it is granted. Safe to run again.
pub fn grants(needs: &Needs) -> Vec<Grant> {
    let (role, owner, database) =
        (quote_ident(&needs.role), quote_ident(&needs.owner), quote_ident(&needs.database));
    let mut all = vec![
        made(&needs.role, "LOGIN", "Godwit's own role; give it a password or a certificate"),
        granted(
            format!("ALTER ROLE {role} LOGIN INHERIT REPLICATION"),
            "slots, and sessions that stream from them",
        ),
        made(&needs.owner, "NOLOGIN", "the owner, on the target too: the copy gives it what it makes"),
        granted(
            format!("ALTER DATABASE {database} OWNER TO {owner}"),
            "only a database's owner can take CONNECT from the application, and let schemas and publications be made. Takes from whoever \
             owned it the right to make schemas, and from 15 on tables in public; a role that makes them is given it by GRANT CREATE ON \
             SCHEMA public (docs/privileges.md has how the tables of an application change hands)",
        ),
        granted(
            format!("GRANT {owner} TO {role}"),
            "reads and writes every row; fence triggers, publications, TRUNCATE and ALTER TABLE ask for ownership",
        ),
    ];
    all.push(granted(
        format!("ALTER ROLE {role} IN DATABASE {database} SET search_path = public"),
        "a name without a schema means the application's: a role called godwit would find Godwit's own schema first",
    ));
    for app in &needs.app_roles {
        all.push(made(
            app,
            "LOGIN",
            "a role of the application, on the target too: what it may do travels with the copy",
        ));
    }
    for (parameter, why) in PARAMETERS {
        all.push(granted(from_15(&format!("GRANT SET ON PARAMETER {parameter} TO {role}")), why));
    }
    for (function, why) in FUNCTIONS {
        all.push(granted(format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {role}"), why));
    }
    all.push(granted(
        format!("GRANT pg_signal_backend TO {role}"),
        "a cutover ends the application's sessions; not those of superusers: no role can be granted that",
    ));
    all.push(granted(
        format!("GRANT pg_read_all_stats TO {role}"),
        "who is connected, who holds a lock, how far the walsenders are",
    ));
    all.push(granted(
        format!("GRANT SELECT ON pg_catalog.pg_largeobject TO {role}"),
        "large objects, which are no rows of the application's: without it a database that has some stays where it is",
    ));
    if needs.caches {
        for (extension, why) in EXTENSIONS {
            all.push(granted(extended(extension), why));
        }
        all.push(granted(format!("GRANT pg_monitor TO {role}"), "what the primary's buffers hold"));
    }
    if needs.verifiers {
        all.push(granted(
            verifiers_granted(&needs.role),
            "the PostgreSQL front asks for roles' verifiers: nobody can log in there without them",
        ));
    }
    if needs.extensions {
        all.push(granted(
            kept(&needs.role),
            "what extensions keep for their users, which is not the owner's: it is read, and written where the service moves to. Whoever may write jobs of pg_cron \
             and passes row security acts as anybody there",
        ));
    }
    if needs.row_security {
        all.push(granted(
            format!("ALTER ROLE {role} BYPASSRLS"),
            "tables with row security: the copy and the comparison must see every row",
        ));
    }
    if needs.synchronous {
        for (sql, why) in [
            (
                from_15(&format!("GRANT ALTER SYSTEM ON PARAMETER synchronous_standby_names TO {role}")),
                "modes sync and hybrid: which standbys commits wait for",
            ),
            (
                format!("GRANT EXECUTE ON FUNCTION pg_catalog.pg_reload_conf() TO {role}"),
                "and that the server reads it",
            ),
            (
                format!("GRANT pg_read_all_settings TO {role}"),
                "and where the setting came from, to put it back",
            ),
        ] {
            all.push(granted(sql, why));
        }
    }
    all
}

/// The same as a script for psql, each statement under its reason.
pub fn script(needs: &Needs) -> String {
    let mut text = format!(
        "-- What {} needs for the database {}; run as a superuser in that database, on both sides.\n\\set ON_ERROR_STOP on\n",
        needs.role.escape_debug(),
        needs.database.escape_debug()
    );
    for grant in grants(needs) {
        text.push_str(&format!("\n-- {}\n{};\n", grant.why, grant.sql));
    }
    text
}

fn granted(sql: String, why: &'static str) -> Grant {
    Grant { sql, why }
}

/// An extension, where the server has it.
fn extended(name: &str) -> String {
    format!(
        "DO $do$ BEGIN IF EXISTS (SELECT FROM pg_available_extensions WHERE name = '{name}') THEN \
         CREATE EXTENSION IF NOT EXISTS {name}; END IF; END $do$"
    )
}

/// A grant on a parameter: PostgreSQL 14 cannot read one, and the script would end there. What the role may not do there, preflight says.
fn from_15(sql: &str) -> String {
    let (tag, sql) = (tag(sql), quote_literal(sql));
    format!(
        "DO {tag} BEGIN IF current_setting('server_version_num')::int >= 150000 THEN EXECUTE {sql}; END IF; END {tag}"
    )
}

/// What quotes a block that has this name in it.
fn tag(name: &str) -> String {
    let mut tag = "$do$".to_owned();
    while name.contains(&tag) {
        tag.insert(1, '_');
    }
    tag
}

/// Tables and sequences that extensions keep something in for their users.
fn kept(role: &str) -> String {
    let (tag, role) = (tag(role), quote_literal(role));
    format!(
        "DO {tag} DECLARE kept record; BEGIN \
         FOR kept IN SELECT DISTINCT n.nspname, c.relname, c.relkind = 'S' AS counts FROM pg_extension e, unnest(e.extconfig) AS t(id), pg_class c, pg_namespace n \
           WHERE c.oid = t.id AND c.relkind IN ('r', 'S') AND n.oid = c.relnamespace ORDER BY 1, 2 LOOP \
         EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', kept.nspname, {role}); \
         EXECUTE format('GRANT %s %I.%I TO %I', CASE WHEN kept.counts THEN 'SELECT, UPDATE ON SEQUENCE' ELSE 'SELECT, INSERT, DELETE ON' END, \
           kept.nspname, kept.relname, {role}); END LOOP; END {tag}"
    )
}

/// A role, where there is none of that name.
fn made(name: &str, attributes: &str, why: &'static str) -> Grant {
    let tag = tag(name);
    let sql = format!(
        "DO {tag} BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {}) THEN CREATE ROLE {} {attributes}; \
         END IF; END {tag}",
        quote_literal(name),
        quote_ident(name)
    );
    Grant { sql, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_statement_stands_under_its_reason() {
        let needs = Needs {
            role: "godwit".into(),
            database: "orders".into(),
            owner: "orders_owner".into(),
            app_roles: vec!["orders_app".into()],
            synchronous: true,
            row_security: true,
            caches: true,
            verifiers: true,
            extensions: true,
        };
        insta::assert_snapshot!(script(&needs));
        let less = Needs {
            app_roles: Vec::new(),
            synchronous: false,
            row_security: false,
            caches: false,
            verifiers: false,
            extensions: false,
            ..needs.clone()
        };
        assert_eq!(grants(&less).len(), 14);
        // No statement by itself that PostgreSQL 14 could not read.
        assert!(
            !grants(&needs)
                .iter()
                .any(|grant| grant.sql.starts_with("GRANT") && grant.sql.contains("PARAMETER"))
        );
        assert!(!script(&less).contains("SUPERUSER"));
    }

    #[test]
    fn names_are_quoted_wherever_they_stand() {
        let needs = Needs {
            role: "a \"b\"".into(),
            database: "d;--".into(),
            owner: "o'$do$".into(),
            app_roles: Vec::new(),
            synchronous: false,
            row_security: false,
            caches: false,
            verifiers: false,
            extensions: true,
        };
        let text = script(&needs);
        assert!(text.contains("ALTER DATABASE \"d;--\" OWNER TO \"o'$do$\""), "{text}");
        let parameter = "$do$ BEGIN IF current_setting('server_version_num')::int >= 150000 THEN EXECUTE 'GRANT SET ON PARAMETER deadlock_timeout TO \"a \"\"b\"\"\"'; END IF; END $do$;";
        assert!(text.contains(parameter), "{text}");
        assert!(
            text.contains("rolname = 'o''$do$') THEN CREATE ROLE \"o'$do$\" NOLOGIN; END IF; END $_do$"),
            "{text}"
        );
    }
}
