//! `godwit grants`: what Godwit's role must be allowed, as SQL for whoever may grant it. Asks no node and no database.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use migration::policy::{Caches, ReplicationMode};
use replicator::grants::{Needs, grants, script};
use serde_json::json;

use super::Output;
use super::check;
use crate::config::model::{Database, PostgresAuth, Resource};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The resource: its databases, roles and mode are taken from the configuration.
    #[arg(required_unless_present = "database", conflicts_with_all = ["database", "role", "app_roles", "synchronous", "caches", "verifiers"])]
    resource: Option<String>,
    /// The configuration that names the resource.
    #[arg(short, long, value_name = "FILE", default_value = "/etc/godwit/godwit.yaml")]
    config: PathBuf,
    /// A database, without a configuration.
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// Godwit's role in it.
    #[arg(long, value_name = "NAME", default_value = "godwit")]
    role: String,
    /// The role that owns, or shall own, the database and its tables; not a superuser, and not the application's.
    #[arg(long, value_name = "NAME")]
    owner: String,
    /// A role of the application; may be repeated.
    #[arg(long = "app-role", value_name = "NAME")]
    app_roles: Vec<String>,
    /// Commits may wait for the shadow (replication.mode sync or hybrid).
    #[arg(long)]
    synchronous: bool,
    /// Tables have row security.
    #[arg(long)]
    row_security: bool,
    /// What is in memory is read into the shadow's before a move (warm_up.caches fill).
    #[arg(long)]
    caches: bool,
    /// Who connects to the PostgreSQL front proves to be who he says by his role's verifier (auth query).
    #[arg(long)]
    verifiers: bool,
    /// What extensions keep for their users is carried (replication.extensions carry). Run the script once they are there.
    #[arg(long)]
    extensions: bool,
}

pub(super) fn run(arguments: &Arguments, output: Output) -> Result<ExitCode> {
    let needs = match (&arguments.resource, &arguments.database) {
        (Some(name), _) => {
            // Check says what is wrong with it.
            let Ok(config) = crate::config::load(&arguments.config) else {
                return Ok(check::run(&arguments.config, output));
            };
            let resource = config.resources.get(name);
            of_resource(resource.with_context(|| format!("there is no resource {name:?}"))?, arguments)?
        }
        (None, Some(database)) => vec![(
            None,
            Needs {
                role: arguments.role.clone(),
                database: database.clone(),
                owner: arguments.owner.clone(),
                app_roles: arguments.app_roles.clone(),
                synchronous: arguments.synchronous,
                row_security: arguments.row_security,
                caches: arguments.caches,
                verifiers: arguments.verifiers,
                extensions: arguments.extensions,
            },
        )],
        (None, None) => bail!("name a resource or --database"),
    };
    super::out(text(&needs, output)?)?;
    Ok(ExitCode::SUCCESS)
}

/// One for each zone that has a database.
fn of_resource(resource: &Resource, arguments: &Arguments) -> Result<Vec<(Option<String>, Needs)>> {
    let front = resource.postgres.as_ref();
    let verifiers = front.is_some_and(|front| front.auth == PostgresAuth::Query(None));
    let needs = |zone: &str, database: &Database| {
        let name = |name: Option<&str>| name.unwrap_or_default().to_owned();
        let needs = Needs {
            role: name(database.dsn.get_user()),
            database: name(database.dsn.get_dbname()),
            owner: arguments.owner.clone(),
            app_roles: database.app_roles.clone(),
            synchronous: resource.policy.replication != ReplicationMode::Async,
            row_security: arguments.row_security,
            caches: resource.policy.caches == Caches::Fill,
            verifiers,
            extensions: arguments.extensions,
        };
        (Some(zone.to_owned()), needs)
    };
    let all: Vec<_> = resource
        .placements
        .iter()
        .filter_map(|(zone, placement)| Some(needs(zone, placement.postgres.as_ref()?)))
        .collect();
    if all.is_empty() {
        bail!("resource {:?} has no database in this configuration", resource.name);
    }
    if let Some((_, needs)) = all.iter().find(|(_, needs)| needs.role == needs.owner) {
        bail!(
            "{:?} is Godwit's own role: the owner is another, of which Godwit's becomes a member",
            needs.role
        );
    }
    Ok(all)
}

fn text(needs: &[(Option<String>, Needs)], output: Output) -> Result<String> {
    if output == Output::Json {
        let scripts: Vec<_> = needs
            .iter()
            .map(|(zone, needs)| {
                let grants: Vec<_> =
                    grants(needs).into_iter().map(|it| json!({ "sql": it.sql, "why": it.why })).collect();
                json!({ "zone": zone, "database": needs.database, "role": needs.role, "statements": grants })
            })
            .collect();
        return Ok(format!("{}\n", serde_json::to_string_pretty(&scripts)?));
    }
    let scripts = needs.iter().map(|(zone, needs)| match zone {
        Some(zone) => format!("-- {zone}\n{}", script(needs)),
        None => script(needs),
    });
    Ok(scripts.collect::<Vec<_>>().join("\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_of_two_zones_stand_one_after_the_other() {
        let needs = Needs {
            role: "godwit".into(),
            database: "orders".into(),
            owner: "keeper".into(),
            app_roles: Vec::new(),
            synchronous: false,
            row_security: false,
            caches: false,
            verifiers: false,
            extensions: false,
        };
        let both = [(Some("a".to_owned()), needs.clone()), (Some("b".to_owned()), needs)];
        let shown = text(&both, Output::Table).expect("text");
        assert_eq!(shown.matches("GRANT \"keeper\" TO \"godwit\";").count(), 2);
        assert!(shown.starts_with("-- a\n") && shown.contains("\n\n-- b\n"), "{shown}");
        let json: serde_json::Value =
            serde_json::from_str(&text(&both, Output::Json).expect("text")).expect("JSON");
        assert_eq!(json[1]["zone"], "b");
        assert_eq!(json[0]["statements"].as_array().map(Vec::len), Some(14));
    }
}
