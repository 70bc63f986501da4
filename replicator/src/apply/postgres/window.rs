//! The window of a PostgreSQL target: kept in the records that a copy, or the filling of one table, left.

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use super::PostgresTarget;
use crate::apply::window::{Position, Window};
use crate::error::Error;
use crate::lsn::Lsn;

/// Reads the positions that were recorded for this stream.
pub(super) async fn read(client: &Client, stream: &str) -> Result<Window, Error> {
    let positions = "SELECT schema_name, table_name, max(position), max(source_table) FROM godwit.copied_parts \
        WHERE stream = $1 GROUP BY 1, 2";
    let rows =
        client.query(positions, &[&stream]).await.map_err(Error::database("read the tables' positions"))?;
    let position = |row: &tokio_postgres::Row| {
        let at = Lsn(row.get::<_, PgLsn>(2).into());
        ((row.get(0), row.get(1)), Position { at, table: row.get(3) })
    };
    Ok(Window::new(rows.iter().map(position)))
}

impl PostgresTarget {
    /// Once the checkpoint has passed every table's position: what had to wait for that. A crash in between is made good by
    /// the next session, before it applies anything.
    pub(super) async fn settle(&mut self) -> Result<(), Error> {
        if !self.window.is_open() || self.expected < self.window.settled() {
            return Ok(());
        }
        self.run_late().await?;
        tracing::info!(stream = self.spec.slot, at = %self.expected, "the tables are at one point");
        self.window = Window::default();
        Ok(())
    }
}
