//! A node that finds out that it stands on something that is not so: it ends what it does, and the process begins anew.

use std::sync::OnceLock;

use tokio_util::sync::CancellationToken;

/// Told once, by whoever finds it out.
#[derive(Default)]
pub struct Anew {
    begun: CancellationToken,
    why: OnceLock<String>,
}

impl Anew {
    /// From now on nobody is served; the first reason counts.
    pub fn begin(&self, why: String) {
        tracing::error!(why, "this node begins anew");
        let _ = self.why.set(why);
        self.begun.cancel();
    }

    /// Why, if it does.
    pub fn why(&self) -> Option<&str> {
        self.why.get().map(String::as_str)
    }

    /// Waits until it does.
    pub async fn begun(&self) {
        self.begun.cancelled().await;
    }
}
