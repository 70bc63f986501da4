//! Facts are awaited: no test sleeps for as long as something may take.

use std::time::Duration;

use anyhow::{Context as _, Result};

/// How long a fact is waited for; far more than it takes, since the machine may do other work as well.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// How long until it is looked again.
pub const PAUSE: Duration = Duration::from_millis(20);

/// Waits until `fact` holds. Errors: its own, or that it did not come to hold within [`PATIENCE`], by the name `what`.
pub async fn until(what: &str, mut fact: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let holds = async {
        while !fact().await? {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, holds).await.with_context(|| format!("waited in vain: {what}"))?
}
