//! What each database of a resource says to one query that answers a number.

use std::time::Duration;

use replicator::postgres::{Dsn, connect_for};
use serde_json::{Map, Value, json};
use tokio::task::JoinSet;
use tokio_postgres::SimpleQueryMessage;

use super::{Fetched, Validators};
use crate::causes::chain;
use crate::feeds::external::{Failure, Reason};

/// The share of all connections that are at work now, this one left out.
pub const ACTIVITY: &str = "select count(*) filter (where state <> 'idle' and pid <> pg_backend_pid() \
     and backend_type = 'client backend')::float8 / current_setting('max_connections')::float8 from pg_stat_activity";

/// Where to ask what.
#[derive(Clone, Debug)]
pub struct Databases {
    /// By zone.
    pub databases: Vec<(String, Dsn)>,
    /// One row, one column, a number.
    pub query: String,
}

/// Asks all at once, each for at most `limit`; `{"ZONE": NUMBER, …}` of those that answered. None of them: why not.
pub(super) async fn numbers(asked: &Databases, limit: Duration) -> Result<Fetched, Failure> {
    let mut asking = JoinSet::new();
    for (zone, dsn) in asked.databases.clone() {
        let query = asked.query.clone();
        asking.spawn(async move { (zone, number(&dsn, &query, limit).await) });
    }
    let (mut found, mut failed) = (Map::new(), Vec::new());
    while let Some(answer) = asking.join_next().await {
        match answer {
            Ok((zone, Ok(number))) => drop(found.insert(zone, json!(number))),
            Ok((zone, Err(why))) => failed.push(format!("{zone}: {why}")),
            Err(_) => failed.push("asking broke down: report this as a defect of Godwit".into()),
        }
    }
    if found.is_empty() {
        failed.sort();
        return Err(Failure::source(Reason::Database, failed.join("; ")));
    }
    let bytes = Value::Object(found).to_string().into_bytes();
    Ok(Fetched::Bytes { bytes, at: None, validators: Validators::default() })
}

async fn number(dsn: &Dsn, query: &str, limit: Duration) -> Result<f64, String> {
    let connecting = connect_for(dsn, "godwit-feed", limit).await;
    let (client, connection) = connecting.map_err(|error| chain(&error))?;
    // Ends with this question: a set aborts what it holds when it is dropped.
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        // Its error also reaches the query.
        let _ = connection.await;
    });
    let answer = client.simple_query(query).await.map_err(|error| chain(&error))?;
    let rows: Vec<_> = answer
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        })
        .collect();
    let [row] = rows.as_slice() else { return Err(format!("the query gives {} rows, not one", rows.len())) };
    if row.len() != 1 {
        return Err(format!("the query gives {} columns, not one", row.len()));
    }
    let text = row.get(0).unwrap_or("null");
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
    number.ok_or_else(|| {
        format!("the query gives {:?}, not a number", text.chars().take(40).collect::<String>())
    })
}
