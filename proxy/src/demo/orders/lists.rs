//! `POST /lists`: one SERIALIZABLE transaction that appends to lists and reads them, for checkers of histories.
//!
//! `{"ops": [["append", 3, 17], ["read", 5]]}` is answered with the same operations, reads with what they saw. The table is not
//! part of the service's own schema: [`super::schema::lists`] makes it where it is wanted.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_postgres::error::SqlState;

use super::place::{PlaceError, commit};
use super::pool::{Lent, Pool};
use super::{answer, no_database, sql_state};
use crate::causes::chain;

const APPEND: &str = "INSERT INTO lists (id, elements) VALUES ($1, ARRAY[$2::bigint]) \
     ON CONFLICT (id) DO UPDATE SET elements = lists.elements || excluded.elements";
const READ: &str = "SELECT elements FROM lists WHERE id = $1";
/// Operations of one transaction.
const MOST: usize = 100;

/// A transaction.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Lists {
    ops: Vec<Op>,
}

/// As JSON: `["append", list, value]`, `["read", list]`, `["read", list, [value, …]]`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
enum Op {
    Append(Append, i64, i64),
    Read(Read, i64),
    Seen(Read, i64, Vec<i64>),
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Append {
    Append,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Read {
    Read,
}

/// Runs it, at most twice tried, by the rules of [`super::place`].
pub(super) async fn run(pool: &Pool, lists: Lists) -> Response {
    if lists.ops.is_empty() || lists.ops.len() > MOST {
        let why = format!("ops must have 1 to {MOST} operations");
        return answer(StatusCode::UNPROCESSABLE_ENTITY, "bad-ops", &why);
    }
    let done = match attempt(pool, &lists, false).await {
        Err(error) if error.lost_before_commit() => attempt(pool, &lists, true).await,
        done => done,
    };
    match done {
        Ok(ops) => Json(json!({ "ops": ops })).into_response(),
        Err(PlaceError::BeforeCommit(error) | PlaceError::CommitRefused(error)) if crowded(&error) => {
            answer(StatusCode::CONFLICT, "not-serializable", "nothing was committed: others came first")
        }
        Err(error) => {
            tracing::warn!(error = %chain(&error), "transaction on lists not done");
            match &error {
                PlaceError::Pool(error) => no_database(error),
                PlaceError::BeforeCommit(source) | PlaceError::CommitRefused(source) => {
                    let why = format!("nothing was committed; {}", sql_state(source));
                    answer(StatusCode::SERVICE_UNAVAILABLE, "not-done", &why)
                }
                PlaceError::Unknown(_) => {
                    let why = "the connection broke after commit was sent";
                    answer(StatusCode::SERVICE_UNAVAILABLE, "outcome-unknown", why)
                }
            }
        }
    }
}

fn crowded(error: &tokio_postgres::Error) -> bool {
    let codes = [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED];
    error.code().is_some_and(|code| codes.contains(code))
}

async fn attempt(pool: &Pool, lists: &Lists, fresh: bool) -> Result<Vec<Op>, PlaceError> {
    let mut lent = pool.lend(fresh).await?;
    match in_transaction(&mut lent, lists).await {
        Ok(ops) => {
            commit(&lent).await?;
            lent.give_back(pool);
            Ok(ops)
        }
        Err(error) => {
            if lent.client().batch_execute("ROLLBACK").await.is_ok() {
                lent.give_back(pool);
            }
            Err(PlaceError::BeforeCommit(error))
        }
    }
}

async fn in_transaction(lent: &mut Lent, lists: &Lists) -> Result<Vec<Op>, tokio_postgres::Error> {
    let (append, read) = (lent.prepared(APPEND).await?, lent.prepared(READ).await?);
    let client = lent.client();
    client.batch_execute("BEGIN ISOLATION LEVEL SERIALIZABLE").await?;
    let mut done = Vec::with_capacity(lists.ops.len());
    for op in &lists.ops {
        match op {
            Op::Append(_, list, value) => {
                client.execute(&append, &[list, value]).await?;
                done.push(op.clone());
            }
            Op::Read(_, list) | Op::Seen(_, list, _) => {
                let row = client.query_opt(&read, &[list]).await?;
                let seen = row.map_or(Ok(Vec::new()), |row| row.try_get(0))?;
                done.push(Op::Seen(Read::Read, *list, seen));
            }
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_read_and_written_as_short_lists() {
        let text = r#"{"ops":[["append",3,17],["read",5],["read",6,[1,2]]]}"#;
        let lists: Lists = serde_json::from_str(text).expect("valid");
        assert!(matches!(lists.ops[..], [Op::Append(_, 3, 17), Op::Read(_, 5), Op::Seen(_, 6, _)]));
        assert_eq!(serde_json::to_string(&lists).expect("plain"), text);
        assert!(serde_json::from_str::<Lists>(r#"{"ops":[["delete",3,17]]}"#).is_err());
    }
}
