//! Godwit's schema beside sessions that use its tables.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use godwit_tests::postgres::TestCluster;
use replicator::fence;

/// What a dump does first, of Godwit's tables alone.
pub(crate) const READ_ALL: &str = "BEGIN; DO $$ DECLARE t regclass; BEGIN \
    FOR t IN SELECT oid FROM pg_class WHERE relnamespace = 'godwit'::regnamespace AND relkind = 'r' LOOP \
      EXECUTE format('LOCK TABLE %s IN ACCESS SHARE MODE', t); \
    END LOOP; END $$";

#[tokio::test]
async fn who_reads_its_tables_holds_nobody_up_that_installs_it() -> Result<()> {
    let cluster = TestCluster::start(15)?;
    let (admin, reader) = (cluster.connect("postgres").await?, cluster.connect("postgres").await?);
    let install = async || {
        let install = fence::install(&admin, "orders", 1);
        tokio::time::timeout(Duration::from_secs(20), install).await.context("it waits for the reader")
    };
    install().await??;
    reader.batch_execute(READ_ALL).await?;
    reader.batch_execute("LOCK TABLE godwit.identities IN ROW EXCLUSIVE MODE").await?;
    install().await??;

    // Made by an older version: it is told who is in the way, and nobody stays behind who waits.
    reader.batch_execute("COMMIT").await?;
    admin.batch_execute("ALTER TABLE godwit.epoch DROP COLUMN run").await?;
    reader.batch_execute(READ_ALL).await?;
    let refused = install().await?.err().context("the table is in use")?.to_string();
    ensure!(refused.contains("table godwit.epoch stayed locked (held by pid "), "{refused}");
    reader.batch_execute("COMMIT").await?;
    install().await??;
    admin.batch_execute("SELECT run FROM godwit.epoch").await?;
    Ok(())
}
