//! A few connections to the database, each checked before it is lent.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use replicator::postgres::{Dsn, connect_apart};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::{Client, Statement};
use tokio_util::task::AbortOnDropHandle;

use crate::lock::lock;

/// Longest wait for a connection to come back.
const WAIT: Duration = Duration::from_secs(10);
/// Longest attempt to open one, unless the connection string says otherwise.
const CONNECT: Duration = Duration::from_secs(3);

/// The SQL that the service runs.
pub(super) const INSERT_ORDER: &str = "INSERT INTO orders (key, customer_id, amount) \
     VALUES ($1, $2, $3::text::numeric) ON CONFLICT (key) DO NOTHING RETURNING id";
pub(super) const INSERT_PAYMENT: &str =
    "INSERT INTO payments (order_id, amount) VALUES ($1, $2::text::numeric) RETURNING id";
pub(super) const CHARGE: &str = "UPDATE customers SET balance = balance + $2::text::numeric WHERE id = $1";
pub(super) const ORDER_BY_KEY: &str = "SELECT o.id, o.customer_id, o.amount::text, p.id FROM orders o \
     LEFT JOIN payments p ON p.order_id = o.id WHERE o.key = $1 ORDER BY p.id LIMIT 1";
pub(super) const ORDER_BY_ID: &str = "SELECT o.key, o.customer_id, o.amount::text, o.placed_at::text, p.id \
     FROM orders o LEFT JOIN payments p ON p.order_id = o.id WHERE o.id = $1 ORDER BY p.id LIMIT 1";
pub(super) const CUSTOMER_BY_ID: &str = "SELECT name, balance::text, \
     (SELECT count(*) FROM orders WHERE customer_id = $1) FROM customers WHERE id = $1";

/// No connection could be lent.
#[derive(Debug, thiserror::Error)]
pub(super) enum PoolError {
    /// All connections are in use, and none came back.
    #[error("no database connection became free within {WAIT:?}")]
    Exhausted,
    /// A new connection failed.
    #[error("cannot connect to the database")]
    Connect(#[source] replicator::Error),
}

/// Connections to one database.
#[derive(Debug)]
pub(super) struct Pool {
    dsn: Dsn,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

/// One connection and the statements it has prepared.
struct Connection {
    client: Client,
    statements: Vec<(&'static str, Statement)>,
    _driver: AbortOnDropHandle<()>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// A connection on loan. It is closed when dropped, unless it is given back in a clean state with [`Lent::give_back`]:
/// a handler that dies in the middle of a transaction leaves none behind.
#[derive(Debug)]
pub(super) struct Lent {
    connection: Connection,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    /// A pool of at most `connections`; opens none yet.
    pub(super) fn new(mut dsn: Dsn, connections: usize) -> Arc<Self> {
        if dsn.get_connect_timeout().is_none() {
            dsn.connect_timeout(CONNECT);
        }
        Arc::new(Self { dsn, idle: Mutex::default(), permits: Arc::new(Semaphore::new(connections.max(1))) })
    }

    fn pop(&self) -> Option<Connection> {
        lock(&self.idle).pop()
    }

    /// Lends a connection that was alive a moment ago: an idle one, or with `fresh` always a new one.
    pub(super) async fn lend(&self, fresh: bool) -> Result<Lent, PoolError> {
        let permit = tokio::time::timeout(WAIT, self.permits.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = permit else { return Err(PoolError::Exhausted) };
        while let Some(connection) = if fresh { None } else { self.pop() } {
            // An empty statement: it finds the end of a connection that nobody has read yet.
            if !connection.client.is_closed() && connection.client.simple_query("").await.is_ok() {
                return Ok(Lent { connection, _permit: permit });
            }
            tracing::info!("a database connection was closed while it was idle");
        }
        let (client, driver) = connect_apart(&self.dsn, "demo-orders").await.map_err(PoolError::Connect)?;
        let driver = tokio::spawn(async move {
            if let Err(error) = driver.await {
                tracing::info!(%error, "database connection ended");
            }
        });
        let driver = AbortOnDropHandle::new(driver);
        let connection = Connection { client, statements: Vec::new(), _driver: driver };
        Ok(Lent { connection, _permit: permit })
    }
}

impl Lent {
    pub(super) fn client(&self) -> &Client {
        &self.connection.client
    }

    /// The statement for this SQL, prepared once per connection.
    pub(super) async fn prepared(&mut self, sql: &'static str) -> Result<Statement, tokio_postgres::Error> {
        let known = self.connection.statements.iter().find(|(text, _)| *text == sql);
        if let Some((_, statement)) = known {
            return Ok(statement.clone());
        }
        let statement = self.connection.client.prepare(sql).await?;
        self.connection.statements.push((sql, statement.clone()));
        Ok(statement)
    }

    /// Back to the pool; the connection must be outside any transaction.
    pub(super) fn give_back(self, pool: &Pool) {
        let Self { connection, _permit: permit } = self;
        if !connection.client.is_closed() {
            lock(&pool.idle).push(connection);
        }
        drop(permit);
    }
}
