//! A connection to the next primary, made while its client waits.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::super::backend::Backend;
use super::super::front::Active;
use super::Unprepared;

type Making = JoinHandle<Result<Backend, Unprepared>>;

/// A connection that is being made to this zone; abandoned when dropped.
#[derive(Default)]
pub(super) struct Ready(Option<(Arc<str>, Making)>);

impl Drop for Ready {
    fn drop(&mut self) {
        if let Some((_, making)) = &self.0 {
            making.abort();
        }
    }
}

impl Ready {
    /// Begins to make one.
    pub(super) fn begin(
        zone: Arc<str>,
        making: impl Future<Output = Result<Backend, Unprepared>> + Send + 'static,
    ) -> Self {
        Self(Some((zone, tokio::spawn(making))))
    }

    /// The connection, if it leads to where the primary is now and lives. One that leads elsewhere is not waited for.
    pub(super) async fn made(&mut self, active: &Active) -> Option<Backend> {
        let (zone, making) = self.0.take()?;
        if zone != active.zone {
            making.abort();
            return None;
        }
        let backend = making.await.ok().and_then(Result::ok)?.living(true).await?;
        Some(Backend { generation: active.generation, ..backend })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_waits_for_a_connection_to_where_nobody_goes() {
        let (held, ended) = tokio::sync::oneshot::channel::<()>();
        let mut ready = Ready::begin("b".into(), async move {
            let _held = held;
            std::future::pending().await
        });
        let active = Active { generation: 0, zone: "a".into() };
        let made = futures_util::poll!(std::pin::pin!(ready.made(&active)));
        assert!(matches!(made, std::task::Poll::Ready(None)));
        assert!(ended.await.is_err(), "it is not made any further");
    }
}
