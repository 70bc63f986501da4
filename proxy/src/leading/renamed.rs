//! A resource that nobody knows, at a database that knows another one: a name that was changed in the files. What that one did (its fence, its moves, its
//! slots) is not this one's, and its first primary may be far behind.

use std::time::Duration;

use anyhow::{Result, bail};
use replicator::fence::{self, OtherResource};

use crate::causes::chain;
use crate::config::model::{Config, Resource};
use crate::config::same_database;

/// How long the database may take to say which resources it knows.
const PATIENCE: Duration = Duration::from_secs(5);

/// Refuses a first start in zone `primary` where the database there was fenced or moved to by a resource that is not configured with it.
///
/// One that cannot be asked is as one that knows none.
pub(super) fn refuse(config: &Config, resource: &Resource, primary: &str) -> Result<()> {
    let name = &resource.name;
    let Some(database) = resource.placements.get(primary).and_then(|placement| placement.postgres.as_ref())
    else {
        return Ok(());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = async {
        let client = replicator::postgres::connect(&database.dsn, "godwit-control").await?;
        fence::others(&client, name).await
    };
    let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, asked).await });
    // A look-up without an answer is not waited for.
    runtime.shutdown_background();
    let known = match answer {
        Ok(Ok(known)) => known,
        Ok(Err(error)) => {
            let error = chain(&error);
            tracing::debug!(resource = %name, zone = primary, %error, "the database cannot be asked which resources it knows");
            return Ok(());
        }
        Err(_) => return Ok(()),
    };
    let configured = |other: &OtherResource| {
        let placements =
            config.resources.get(&other.name).into_iter().flat_map(|other| other.placements.values());
        placements
            .filter_map(|placement| placement.postgres.as_ref())
            .any(|theirs| same_database(theirs, database))
    };
    let Some(other) = known.into_iter().find(|other| !configured(other)) else { return Ok(()) };
    let OtherResource { name: before, generation, fenced } = other;
    let is = if fenced { "is fenced by" } else { "was moved to by" };
    bail!(
        "resource {name}: nobody knows it, and its database in {primary} {is} resource {before}, generation {generation}, which is not \
         configured there. Name the resource {before} again; if {before} is gone for good, see docs/operations.md, \"A renamed resource\""
    )
}
