//! tokio-postgres doing what every driver in `tests/drivers` does, on two connections that are opened once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::{SinkExt, TryStreamExt};
use tokio_postgres::{Config, Statement};

use super::Session;

/// Plays rounds until it is told to end.
pub(super) struct Rounds {
    one: Session,
    other: Session,
    prepared: Statement,
    table: String,
}

/// The table that rounds are played in, and types that go with it.
pub(super) fn table(name: &str) -> String {
    format!(
        "CREATE TABLE {name} (id bigint PRIMARY KEY, round bigint, note text); GRANT ALL ON {name} TO orders_app;
         CREATE TYPE {name}_mood AS ENUM ('glad', 'sad'); CREATE TYPE {name}_pair AS (mood {name}_mood, number bigint);"
    )
}

impl Rounds {
    pub(super) async fn start(config: &Config, table: &str) -> Result<Self> {
        let (one, other) = (Session::start(config).await, Session::start(config).await);
        one.client.batch_execute(&format!("SET work_mem = '7MB'; LISTEN {table}")).await?;
        let prepared = one
            .client
            .prepare(&format!("SELECT id, note, current_setting('work_mem') FROM {table} WHERE id = $1"))
            .await?;
        Ok(Self { one, other, prepared, table: table.to_owned() })
    }

    pub(super) async fn play(mut self, played: &AtomicU64, ended: &AtomicBool) -> Result<()> {
        while !ended.load(SeqCst) {
            let number = i64::try_from(played.load(SeqCst))?;
            self.round(number).await.with_context(|| format!("round {number}"))?;
            played.fetch_add(1, SeqCst);
        }
        let count = format!("SELECT count(*) FROM {}", self.table);
        let rows: i64 = self.one.client.query_one(&count, &[]).await?.get(0);
        ensure!(rows as u64 == played.load(SeqCst) * 6, "{rows} rows after {played:?} rounds");
        Ok(())
    }

    async fn round(&mut self, number: i64) -> Result<()> {
        let (table, first) = (&self.table, number * 10);
        let client = &mut self.one.client;
        let insert = format!("INSERT INTO {table} VALUES ($1, $2, 'new')");
        let transaction = client.transaction().await?;
        transaction.execute(&insert, &[&first, &number]).await?;
        transaction.execute(&format!("UPDATE {table} SET note = 'changed' WHERE id = $1"), &[&first]).await?;
        let row =
            transaction.query_one(&format!("SELECT note FROM {table} WHERE id = $1"), &[&first]).await?;
        ensure!(row.get::<_, &str>(0) == "changed");
        transaction.commit().await?;
        let transaction = client.transaction().await?;
        transaction.execute(&insert, &[&(first + 9), &number]).await?;
        transaction.rollback().await?;

        let row = client.query_one(&self.prepared, &[&first]).await?;
        let found: (i64, &str, &str) = (row.get(0), row.get(1), row.get(2));
        ensure!(found == (first, "changed", "7MB"), "{found:?}");

        let mut rows = Box::pin(client.copy_in::<_, Bytes>(&format!("COPY {table} FROM STDIN")).await?);
        for row in 1..6 {
            rows.send(format!("{}\t{number}\tcopied\n", first + row).into()).await?;
        }
        ensure!(rows.as_mut().finish().await? == 5);
        let query = format!("COPY (SELECT id FROM {table} WHERE round = {number} ORDER BY id) TO STDOUT");
        let chunks: Vec<Bytes> = client.copy_out(&query).await?.try_collect().await?;
        let expected: Vec<String> = (0..6).map(|row| format!("{}\n", first + row)).collect();
        ensure!(chunks.concat() == expected.concat().as_bytes(), "{chunks:?}");

        let payload = number.to_string();
        self.other.client.execute("SELECT pg_notify($1, $2)", &[table, &payload]).await?;
        let (channel, heard, _) = self.one.notification().await;
        ensure!(channel == *table && heard == payload, "{channel} {heard}");
        Ok(())
    }
}
