//! The window of a PostgreSQL target: kept in the records that the copy left.

use tokio_postgres::types::PgLsn;

use super::{PostgresTarget, not_open};
use crate::apply::window::Window;
use crate::error::Error;
use crate::lsn::Lsn;

impl PostgresTarget {
    /// Reads the positions from the records that the copy left.
    pub(super) async fn read_window(&mut self) -> Result<(), Error> {
        let client = &self.session.as_ref().ok_or_else(not_open)?.client;
        let rows = client
            .query(
                "SELECT schema_name, table_name, max(position) FROM godwit.copied_parts WHERE stream = $1 GROUP BY 1, 2",
                &[&self.spec.slot],
            )
            .await
            .map_err(Error::database("read the tables' positions"))?;
        let position =
            |row: &tokio_postgres::Row| ((row.get(0), row.get(1)), Lsn(row.get::<_, PgLsn>(2).into()));
        self.window = Window::new(rows.iter().map(position));
        Ok(())
    }

    /// Once the checkpoint has passed every table's position: what had to wait for that. A crash in between is made good by
    /// the next session, before it applies anything.
    pub(super) async fn settle(&mut self) -> Result<(), Error> {
        if !self.window.is_open() || self.expected < self.window.settled() {
            return Ok(());
        }
        self.run_late().await?;
        tracing::info!(stream = self.spec.slot, at = %self.expected, "the tables of a copy that broke are at one point");
        self.window = Window::default();
        Ok(())
    }
}
