//! A session that reads parts of a copy.
//!
//! It speaks the protocol itself: a server sends each row as a message of its own, and a client that hands these on one by one spends
//! more on that than on all else that becomes of a row. Here they leave the receive buffer together.

use bytes::BytesMut;

use super::{Part, snapshot_sql};
use crate::error::Error;
use crate::postgres::Dsn;
use crate::postgres::connection::{Connection, Purpose};
use crate::postgres::rows::Rows;

/// Inside a transaction that sees what a snapshot saw. Dropping it within a part ends the session.
pub struct Reader {
    connection: Connection,
    /// The part that is under way.
    rows: Rows,
    context: String,
}

impl Reader {
    /// Opens it; the snapshot can still be imported.
    pub async fn open(dsn: &Dsn, name: &str, snapshot: &str) -> Result<Self, Error> {
        let mut connection = Connection::open(dsn, name, Purpose::Sql).await?;
        connection.query(&snapshot_sql(snapshot), &format!("use snapshot {snapshot}")).await?;
        Ok(Self { connection, rows: Rows::default(), context: String::new() })
    }

    /// Asks for the rows of `part`, in its COPY format; those of the part before were read to their end.
    pub async fn begin(&mut self, part: &Part) -> Result<(), Error> {
        self.context = format!("copy {}.{}", part.table.schema, part.table.name);
        self.connection.copy_out(&part.copy_out_sql(), &self.context).await?;
        self.rows = Rows::new(part.table.binary);
        Ok(())
    }

    /// Appends rows to `data`, which holds less than `enough` bytes, until it holds that many, in the middle of a row where it must be;
    /// gives how many began. False: the part is over. After an error the session cannot be used.
    pub async fn read(&mut self, data: &mut BytesMut, enough: usize) -> Result<(u32, bool), Error> {
        let before = self.rows.count;
        loop {
            let over = self.connection.take_rows(&mut self.rows, data, enough, &self.context)?;
            if over {
                self.connection.end_of_copy(&self.context).await?;
            }
            if over || data.len() >= enough {
                return Ok((self.rows.count - before, !over));
            }
            let received = self.connection.fill().await;
            received.map_err(|source| Error::Io { context: self.context.clone(), source })?;
        }
    }
}
