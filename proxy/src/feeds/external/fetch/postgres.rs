//! What each database of a resource says to one query that answers a number.

use std::time::Duration;

use replicator::postgres::{Dsn, connect_for};
use serde_json::{Map, Value, json};
use tokio::task::JoinSet;
use tokio_postgres::SimpleQueryMessage;

use super::{Fetched, Validators, seconds};
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

/// Asks all at once, each for a little less than `limit`, so that one that hangs takes nobody else's answer with it; `{"ZONE": NUMBER, …}` of those
/// that answered. None of them: why not.
pub(super) async fn numbers(asked: &Databases, limit: Duration) -> Result<Fetched, Failure> {
    let limit = limit * 9 / 10;
    let asking = asked.databases.iter().cloned().map(|(zone, dsn)| {
        let query = asked.query.clone();
        (zone, async move { number(&dsn, &query, limit).await })
    });
    let found = gather(asking, limit).await?;
    let bytes = Value::Object(found).to_string().into_bytes();
    Ok(Fetched::Bytes { bytes, at: None, validators: Validators::default() })
}

async fn gather<A>(
    asked: impl Iterator<Item = (String, A)>,
    limit: Duration,
) -> Result<Map<String, Value>, Failure>
where
    A: Future<Output = Result<f64, String>> + Send + 'static,
{
    let mut asking = JoinSet::new();
    for (zone, answer) in asked {
        asking.spawn(async move {
            let late = |_| Err(format!("no answer within {}", seconds(limit)));
            (zone, tokio::time::timeout(limit, answer).await.unwrap_or_else(late))
        });
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
    Ok(found)
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_database_that_hangs_takes_no_other_answer_with_it() {
        let hangs = |hangs: bool| async move {
            if hangs {
                std::future::pending::<()>().await;
            }
            Ok::<_, String>(0.5)
        };
        let asked = |all: [(&'static str, bool); 2]| {
            all.into_iter().map(move |(zone, one)| (zone.to_owned(), hangs(one)))
        };
        let limit = Duration::from_millis(50);
        let found = gather(asked([("a", false), ("b", true)]), limit).await.unwrap();
        assert_eq!(Value::Object(found), json!({"a": 0.5}));
        let failure = gather(asked([("b", true), ("a", true)]), limit).await.unwrap_err();
        let said = failure.to_string();
        assert!(said.contains("a: no answer within 0.05 s; b: no answer within 0.05 s"), "{said}");
    }

    #[tokio::test]
    async fn each_is_given_less_time_than_the_feed_has() {
        // It accepts and says nothing.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let dsn = format!("postgres://u@{}/d", silent.local_addr().unwrap()).parse().unwrap();
        let databases = vec![("a".to_owned(), dsn)];
        let limit = Duration::from_millis(500);
        let asked = Databases { databases, query: "select 1".into() };
        let failure = numbers(&asked, limit).await.unwrap_err();
        assert!(failure.to_string().contains("a: no answer within 0.45 s"), "{failure}");
    }
}
