//! A connection with all that a session has, made while its client waits: to the next primary ahead, or to the one that there is.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::super::backend::{Backend, Identity};
use super::super::front::{Active, PostgresFront};
use super::super::protocol::state::State;
use super::{REST, Unprepared, open};
use crate::clock;

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

/// A new connection with all the session has, tried for as long as a client may be held.
pub(super) async fn again(
    front: &PostgresFront,
    identity: &Identity,
    state: &State,
) -> Result<Backend, Unprepared> {
    let deadline = clock::tick() + front.turnstile.longest();
    loop {
        match prepare_here(front, identity, state).await {
            Err(Unprepared::None(error)) if error.passes() && clock::tick() < deadline => {
                tokio::time::sleep(REST).await;
            }
            made => return made,
        }
    }
}

/// One to where the primary is now.
pub(super) async fn prepare_here(
    front: &PostgresFront,
    identity: &Identity,
    state: &State,
) -> Result<Backend, Unprepared> {
    let active = front.active();
    prepare(front, identity, active.generation, &active.zone, state).await
}

pub(super) async fn prepare(
    front: &PostgresFront,
    identity: &Identity,
    generation: u64,
    zone: &Arc<str>,
    state: &State,
) -> Result<Backend, Unprepared> {
    let mut backend = open(front, identity, generation, zone, false).await.map_err(Unprepared::None)?;
    if state.is_empty() {
        return Ok(backend);
    }
    match backend.replay(state, front.catalogue_in(zone).as_deref()).await {
        Ok(lost) if lost.is_empty() => Ok(backend),
        Ok(lost) => {
            backend.close().await;
            Err(Unprepared::Lost(lost))
        }
        Err(error) => Err(Unprepared::None(error)),
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
