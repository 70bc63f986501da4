//! A transaction in parts: one target transaction, a savepoint before each part.
//!
//! A part that meets a unique constraint as a batch is taken back to its savepoint and applied row by row, as a small
//! transaction would be. What came before it stays in the same transaction.

use tokio_postgres::types::ToSql;

use super::plan::{self, Order};
use super::{Checkpoint, Failure, Pipeline, PostgresTarget, Session, failure, not_open, signed, texts};
use crate::change::{Change, LargeHeader, Transaction};
use crate::error::Error;

/// What is known of it while its parts come.
pub(super) struct Large {
    header: LargeHeader,
    marker: Option<u64>,
}

impl PostgresTarget {
    pub(super) async fn open_large(&mut self, header: LargeHeader) -> Result<(), Error> {
        let session = self.session.as_mut().ok_or_else(not_open)?;
        let context = format!("begin transaction {} of the source", header.xid);
        session.client.batch_execute("BEGIN").await.map_err(Error::database(context))?;
        session.large = Some(Large { header, marker: None });
        Ok(())
    }

    pub(super) async fn large_part(&mut self, changes: Vec<Change>) -> Result<(), Error> {
        let session = self.session.as_mut().ok_or_else(not_open)?;
        let large = session.large.as_mut().ok_or_else(not_open)?;
        large.marker = changes.iter().filter_map(Change::marker).next_back().or(large.marker);
        let part = [large.header.clone().with(changes)];
        match session.part(&part, Order::Lanes).await {
            Ok(()) => return Ok(()),
            Err(Failure::Error(error)) if !matches!(error, Error::Conflict { .. }) => return Err(error),
            Err(_) => {}
        }
        session
            .client
            .batch_execute("ROLLBACK TO SAVEPOINT part")
            .await
            .map_err(Error::database("go back before a part that met a constraint"))?;
        match session.part(&part, Order::Rows).await {
            Ok(()) => Ok(()),
            Err(Failure::Error(error)) => Err(error),
            Err(Failure::Batch) => {
                Err(Error::Protocol("a single row was refused as if it were a batch".into()))
            }
        }
    }

    pub(super) async fn close_large(&mut self) -> Result<(), Error> {
        let session = self.session.as_mut().ok_or_else(not_open)?;
        let Large { header, marker } = session.large.take().ok_or_else(not_open)?;
        let checkpoint = Checkpoint {
            to: header.end_lsn,
            from: self.expected,
            marker: marker.map(signed).transpose()?,
            stream: &self.spec.slot,
            generation: self.generation,
        };
        match session.finish(checkpoint).await {
            Ok(()) => {}
            Err(Failure::Error(error)) => return Err(error),
            Err(Failure::Batch) => {
                return Err(Error::Conflict {
                    table: "the commit".into(),
                    lsn: header.end_lsn,
                    what: "a deferred constraint refuses the transaction".into(),
                });
            }
        }
        self.expected = header.end_lsn;
        Ok(())
    }
}

impl Session {
    /// Everything of a part at once, one wait. Leaves savepoint `part` behind it when it fails.
    async fn part(&mut self, part: &[Transaction], order: Order) -> Result<(), Failure> {
        self.look_up(part).await?;
        let tables = &self.tables;
        let statements = plan::plan(part, order, |relation| tables.get(&relation.id).cloned())?;
        self.prepare(&statements).await?;
        let client = &self.client;
        let mut arrays = Vec::with_capacity(statements.len());
        for statement in &statements {
            arrays.push(
                statement.parameters.iter().map(|column| texts(column)).collect::<Result<Vec<_>, _>>()?,
            );
        }
        let mut pipeline = Pipeline::default();
        pipeline.push(async { client.batch_execute("SAVEPOINT part").await }).await;
        for (statement, arrays) in statements.iter().zip(&arrays) {
            let Some(prepared) = self.statements.get(&statement.sql) else {
                return Err(Error::Protocol("a statement was not prepared".into()).into());
            };
            pipeline
                .push(async move {
                    let parameters: Vec<&(dyn ToSql + Sync)> =
                        arrays.iter().map(|array| array as &(dyn ToSql + Sync)).collect();
                    client.execute(prepared, &parameters).await.map(drop)
                })
                .await;
        }
        pipeline.push(async { client.batch_execute("RELEASE SAVEPOINT part").await }).await;
        let Some((at, error)) = pipeline.finish().await else { return Ok(()) };
        Err(match at.checked_sub(1) {
            None => Error::database("begin a part of a transaction")(error).into(),
            Some(at) => failure(&statements, at, error),
        })
    }
}
