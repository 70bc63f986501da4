//! A small order service on PostgreSQL: what the playground moves. Run as `godwit demo-orders`.
//!
//! `POST /orders {key, customer, amount}` · `GET /orders/{id}` · `GET /customers/{id}` · `GET /healthz` (the process is up)
//! · `GET /readyz` (the database answers) · `POST /lists` (for checkers of histories). A key makes a POST safe to repeat: the same key gives the same order. Idle
//! keep-alive connections are never closed by the service, except when it ends.

use crate::causes::chain;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use self::place::{NewOrder, PlaceError, Placed};
use self::pool::{CUSTOMER_BY_ID, Lent, ORDER_BY_ID, Pool, PoolError};

mod lists;
mod place;
mod pool;
pub mod schema;

/// Longest key, bytes.
const KEY_BYTES: usize = 200;
/// Largest amount in cents: what `numeric(12, 2)` holds.
const MOST_CENTS: u64 = 999_999_999_999;
/// Longest look at the database for `/readyz`.
const READY: Duration = Duration::from_secs(2);

/// How the service runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Its database.
    pub dsn: replicator::postgres::Dsn,
    /// Most connections to it.
    pub connections: usize,
}

/// Listens and serves until SIGTERM or SIGINT; then finishes the requests in flight.
pub async fn run(options: Options) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let listener = TcpListener::bind(options.listen).await?;
    tracing::info!(listen = %options.listen, "order service listens");
    let ended = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("order service ends");
    };
    serve(listener, options.dsn, options.connections, ended).await
}

/// Serves on `listener` until `ended`; then finishes the requests in flight.
pub async fn serve(
    listener: TcpListener,
    dsn: replicator::postgres::Dsn,
    connections: usize,
    ended: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let pool = Pool::new(dsn, connections);
    let routes = Router::new()
        .route("/orders", post(place_order))
        .route("/orders/{id}", get(order))
        .route("/customers/{id}", get(customer))
        .route("/lists", post(lists))
        .route("/healthz", get(|| async { Json(json!({"status": "up"})) }))
        .route("/readyz", get(ready))
        .with_state(pool);
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "nodelay");
        }
    });
    axum::serve(listener, routes).with_graceful_shutdown(ended).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OrderRequest {
    key: String,
    customer: i64,
    amount: Value,
}

async fn place_order(
    State(pool): State<Arc<Pool>>,
    request: Result<Json<OrderRequest>, JsonRejection>,
) -> Response {
    let request = match request {
        Ok(Json(request)) => request,
        Err(rejection) => return answer(rejection.status(), "bad-request", &rejection.body_text()),
    };
    if request.key.is_empty() || request.key.len() > KEY_BYTES {
        let why = format!("key must have 1 to {KEY_BYTES} bytes");
        return answer(StatusCode::UNPROCESSABLE_ENTITY, "bad-key", &why);
    }
    let Some(amount) = amount(&request.amount) else {
        let why = "amount must be above 0 with at most two decimals, such as \"12.34\"";
        return answer(StatusCode::UNPROCESSABLE_ENTITY, "bad-amount", why);
    };
    let order = NewOrder { key: request.key, customer: request.customer, amount };
    let key = order.key.clone();
    // A task of its own: a client that leaves must not stop a transaction between two statements.
    let placed = tokio::spawn(async move { place::place(&pool, &order).await }).await;
    let body = |order: i64, payment: Option<i64>| Json(json!({"id": order, "payment": payment, "key": key}));
    match placed {
        Ok(Ok(Placed::New { order, payment })) => {
            (StatusCode::CREATED, body(order, Some(payment))).into_response()
        }
        Ok(Ok(Placed::Repeated { order, payment })) => (StatusCode::OK, body(order, payment)).into_response(),
        Ok(Ok(Placed::KeyTaken { order })) => {
            let why = format!("this key placed order {order} for another customer or amount");
            answer(StatusCode::CONFLICT, "key-taken", &why)
        }
        Ok(Ok(Placed::NoSuchCustomer)) => answer(StatusCode::NOT_FOUND, "no-such-customer", "not placed"),
        Ok(Err(error)) => not_placed(&error),
        Err(_panicked) => {
            answer(StatusCode::INTERNAL_SERVER_ERROR, "outcome-unknown", "ask again with the same key")
        }
    }
}

async fn lists(
    State(pool): State<Arc<Pool>>,
    request: Result<Json<lists::Lists>, JsonRejection>,
) -> Response {
    match request {
        // A task of its own, as for an order.
        Ok(Json(request)) => match tokio::spawn(async move { lists::run(&pool, request).await }).await {
            Ok(response) => response,
            Err(_panicked) => {
                answer(StatusCode::INTERNAL_SERVER_ERROR, "outcome-unknown", "the service failed")
            }
        },
        Err(rejection) => answer(rejection.status(), "bad-request", &rejection.body_text()),
    }
}

fn not_placed(error: &PlaceError) -> Response {
    tracing::warn!(error = %chain(error), "order not placed");
    let (name, why) = match error {
        PlaceError::Pool(error) => return no_database(error),
        PlaceError::BeforeCommit(source) => {
            ("not-placed", format!("nothing was committed; {}", sql_state(source)))
        }
        PlaceError::CommitRefused(source) => {
            ("not-placed", format!("commit was refused; {}", sql_state(source)))
        }
        PlaceError::Unknown(_) => (
            "outcome-unknown",
            "the connection broke after commit was sent: the order may or may not exist; ask again with the same key"
                .to_owned(),
        ),
    };
    answer(StatusCode::SERVICE_UNAVAILABLE, name, &why)
}

async fn order(State(pool): State<Arc<Pool>>, Path(id): Path<i64>) -> Response {
    match read(&pool, ORDER_BY_ID, id).await {
        Ok(Some(row)) => {
            let found = || -> Result<Value, tokio_postgres::Error> {
                Ok(json!({
                    "id": id,
                    "key": row.try_get::<_, String>(0)?,
                    "customer": row.try_get::<_, i64>(1)?,
                    "amount": row.try_get::<_, String>(2)?,
                    "placed_at": row.try_get::<_, String>(3)?,
                    "payment": row.try_get::<_, Option<i64>>(4)?,
                }))
            };
            found()
                .map_or_else(|error| not_read(&ReadError::Failed(error)), |found| Json(found).into_response())
        }
        Ok(None) => answer(StatusCode::NOT_FOUND, "no-such-order", "there is no order of this number"),
        Err(error) => not_read(&error),
    }
}

async fn customer(State(pool): State<Arc<Pool>>, Path(id): Path<i64>) -> Response {
    match read(&pool, CUSTOMER_BY_ID, id).await {
        Ok(Some(row)) => {
            let found = || -> Result<Value, tokio_postgres::Error> {
                Ok(json!({
                    "id": id,
                    "name": row.try_get::<_, String>(0)?,
                    "balance": row.try_get::<_, String>(1)?,
                    "orders": row.try_get::<_, i64>(2)?,
                }))
            };
            found()
                .map_or_else(|error| not_read(&ReadError::Failed(error)), |found| Json(found).into_response())
        }
        Ok(None) => answer(StatusCode::NOT_FOUND, "no-such-customer", "there is no customer of this number"),
        Err(error) => not_read(&error),
    }
}

async fn ready(State(pool): State<Arc<Pool>>) -> Response {
    let asked = async {
        let lent = pool.lend(false).await?;
        lent.give_back(&pool);
        Ok(())
    };
    match tokio::time::timeout(READY, asked).await {
        Ok(Ok(())) => Json(json!({"status": "ready"})).into_response(),
        Ok(Err(error)) => no_database(&error),
        Err(_) => {
            answer(StatusCode::SERVICE_UNAVAILABLE, "no-database", "the database did not answer in time")
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error("read failed")]
    Failed(#[source] tokio_postgres::Error),
}

/// Reads one row; a read changes nothing, so a broken connection is replaced once.
async fn read(pool: &Pool, sql: &'static str, id: i64) -> Result<Option<tokio_postgres::Row>, ReadError> {
    let attempt = async |fresh| {
        let mut lent: Lent = pool.lend(fresh).await?;
        let statement = lent.prepared(sql).await.map_err(ReadError::Failed)?;
        let row = lent.client().query_opt(&statement, &[&id]).await.map_err(ReadError::Failed)?;
        lent.give_back(pool);
        Ok(row)
    };
    match attempt(false).await {
        Err(ReadError::Failed(error)) => {
            tracing::info!(error = %chain(&error), "read failed: trying once more on a new connection");
            attempt(true).await
        }
        outcome => outcome,
    }
}

fn not_read(error: &ReadError) -> Response {
    tracing::warn!(error = %chain(error), "not read");
    match error {
        ReadError::Pool(error) => no_database(error),
        ReadError::Failed(error) => answer(StatusCode::SERVICE_UNAVAILABLE, "not-read", &sql_state(error)),
    }
}

fn no_database(error: &PoolError) -> Response {
    tracing::warn!(error = %chain(error), "no database");
    let code = match error {
        PoolError::Connect(replicator::Error::Database { source, .. }) => sql_state(source),
        PoolError::Connect(_) => "the database is not to be reached".to_owned(),
        PoolError::Exhausted => "every connection is in use".to_owned(),
    };
    answer(StatusCode::SERVICE_UNAVAILABLE, "no-database", &format!("nothing was committed; {code}"))
}

/// The code only: a database's own words are not for clients.
fn sql_state(error: &tokio_postgres::Error) -> String {
    error.code().map_or_else(
        || "the connection to the database broke".to_owned(),
        |code| format!("the database answered {}", code.code()),
    )
}

fn answer(status: StatusCode, name: &str, why: &str) -> Response {
    (status, Json(json!({"error": name, "detail": why}))).into_response()
}

/// The amount as PostgreSQL prints `numeric(12, 2)`; a number or decimal text.
fn amount(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let (whole, decimals) = text.split_once('.').unwrap_or((&text, "00"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(decimals) || whole.len() > 10 || decimals.len() > 2 {
        return None;
    }
    let cents: u64 = format!("{whole}{decimals:0<2}").parse().ok()?;
    (1..=MOST_CENTS).contains(&cents).then(|| format!("{}.{:02}", cents / 100, cents % 100))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reads_amounts_exactly_or_not_at_all() {
        let read = |value: Value| amount(&value);
        assert_eq!(read(json!("12.34")).as_deref(), Some("12.34"));
        assert_eq!(read(json!(12.3)).as_deref(), Some("12.30"));
        assert_eq!(read(json!(7)).as_deref(), Some("7.00"));
        assert_eq!(read(json!("007.5")).as_deref(), Some("7.50"));
        assert_eq!(read(json!("9999999999.99")).as_deref(), Some("9999999999.99"));
        for wrong in
            [json!("12.345"), json!(0), json!(-1), json!("1e3"), json!(1e300), json!("."), json!(null)]
        {
            assert_eq!(read(wrong.clone()), None, "{wrong}");
        }
    }
}
