//! Placing an order: one transaction, and honesty about its outcome.
//!
//! Tried a second time only when nothing can have been committed: the failure came before COMMIT was sent, and it was the
//! connection's or the server's concurrency control. After COMMIT was sent there is no second try, ever.

use tokio_postgres::error::SqlState;

use super::pool::{CHARGE, INSERT_ORDER, INSERT_PAYMENT, Lent, ORDER_BY_KEY, Pool, PoolError};

/// What a client asks for.
#[derive(Clone, Debug)]
pub(super) struct NewOrder {
    /// The client's idempotency key.
    pub(super) key: String,
    pub(super) customer: i64,
    /// Decimal text, checked.
    pub(super) amount: String,
}

/// What became of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Placed {
    New {
        order: i64,
        payment: i64,
    },
    /// The key was used before for the same order.
    Repeated {
        order: i64,
        payment: Option<i64>,
    },
    /// The key was used before for another order.
    KeyTaken {
        order: i64,
    },
    NoSuchCustomer,
}

/// Why it is not known to be placed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    /// Nothing was committed.
    #[error("not placed: no connection")]
    Pool(#[from] PoolError),
    /// Nothing was committed.
    #[error("not placed: failed before commit")]
    BeforeCommit(#[source] tokio_postgres::Error),
    /// The server answered COMMIT with an error: nothing was committed.
    #[error("not placed: commit was refused")]
    CommitRefused(#[source] tokio_postgres::Error),
    /// COMMIT was sent, and the answer did not come.
    #[error("outcome unknown: the connection broke after commit was sent")]
    Unknown(#[source] tokio_postgres::Error),
}

impl PlaceError {
    /// The connection was lost when nothing can have been committed.
    pub(super) fn lost_before_commit(&self) -> bool {
        let Self::BeforeCommit(error) = self else { return false };
        error.is_closed() || error.code().is_none_or(is_shutdown)
    }

    fn may_try_again(&self) -> bool {
        let crowded = [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED];
        let Self::BeforeCommit(error) = self else { return false };
        self.lost_before_commit() || error.code().is_some_and(|code| crowded.contains(code))
    }
}

/// Class 57P0x: the backend was terminated. Class 08: the connection failed.
fn is_shutdown(code: &SqlState) -> bool {
    code.code().starts_with("57P0") || code.code().starts_with("08")
}

/// Places the order, at most twice tried.
pub(super) async fn place(pool: &Pool, order: &NewOrder) -> Result<Placed, PlaceError> {
    match attempt(pool, order, false).await {
        Err(error) if error.may_try_again() => {
            tracing::info!(%error, "nothing was committed: trying once more on a new connection");
            attempt(pool, order, true).await
        }
        outcome => outcome,
    }
}

async fn attempt(pool: &Pool, order: &NewOrder, fresh: bool) -> Result<Placed, PlaceError> {
    let mut lent = pool.lend(fresh).await?;
    let placed = match in_transaction(&mut lent, order).await {
        Ok(placed @ Placed::New { .. }) => {
            commit(&lent).await?;
            placed
        }
        Ok(other) => {
            lent.client().batch_execute("ROLLBACK").await.map_err(PlaceError::BeforeCommit)?;
            other
        }
        Err(error) => {
            // Dropping the connection would do as well; a rollback keeps it.
            if lent.client().batch_execute("ROLLBACK").await.is_ok() {
                lent.give_back(pool);
            }
            return Err(PlaceError::BeforeCommit(error));
        }
    };
    lent.give_back(pool);
    Ok(placed)
}

/// Everything between BEGIN and COMMIT.
async fn in_transaction(lent: &mut Lent, order: &NewOrder) -> Result<Placed, tokio_postgres::Error> {
    let insert_order = lent.prepared(INSERT_ORDER).await?;
    let insert_payment = lent.prepared(INSERT_PAYMENT).await?;
    let charge = lent.prepared(CHARGE).await?;
    let by_key = lent.prepared(ORDER_BY_KEY).await?;
    let client = lent.client();
    client.batch_execute("BEGIN").await?;
    let inserted = client.query_opt(&insert_order, &[&order.key, &order.customer, &order.amount]).await;
    let inserted = match inserted {
        Err(error) if error.code() == Some(&SqlState::FOREIGN_KEY_VIOLATION) => {
            return Ok(Placed::NoSuchCustomer);
        }
        inserted => inserted?,
    };
    let Some(inserted) = inserted else {
        // Committed by somebody else before, or while the insert waited for it.
        let existing = client.query_one(&by_key, &[&order.key]).await?;
        let id: i64 = existing.try_get(0)?;
        let same = existing.try_get::<_, i64>(1)? == order.customer
            && existing.try_get::<_, String>(2)? == order.amount;
        return Ok(if same {
            Placed::Repeated { order: id, payment: existing.try_get(3)? }
        } else {
            Placed::KeyTaken { order: id }
        });
    };
    let id: i64 = inserted.try_get(0)?;
    let payment: i64 = client.query_one(&insert_payment, &[&id, &order.amount]).await?.try_get(0)?;
    match client.execute(&charge, &[&order.customer, &order.amount]).await {
        // The foreign key has found the customer already; still, never half an order.
        Ok(0) => Ok(Placed::NoSuchCustomer),
        Ok(_) => Ok(Placed::New { order: id, payment }),
        Err(error) => Err(error),
    }
}

pub(super) async fn commit(lent: &Lent) -> Result<(), PlaceError> {
    match lent.client().batch_execute("COMMIT").await {
        Ok(()) => Ok(()),
        // A backend that is terminated while it waits for a replica has committed, and says 57P01.
        Err(error) if error.code().is_some_and(|code| !is_shutdown(code)) && !error.is_closed() => {
            Err(PlaceError::CommitRefused(error))
        }
        Err(error) => Err(PlaceError::Unknown(error)),
    }
}
