//! Asks the shadow what clients were answered by the primary.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::HOST;
use http::{HeaderName, HeaderValue, Request};
use http_body_util::{BodyExt as _, Empty};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{Aim, Mirror, Read};
use crate::fronts::pools::asking::{Failure, Open};
use crate::lock::lock;

/// Reads under way at once.
const AT_ONCE: usize = 16;
/// How long the shadow may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Says to the service what it is.
pub(crate) const MARK: HeaderName = HeaderName::from_static("godwit-mirror");

impl Mirror {
    /// Asks until `stop`. There is one such task for each mirror.
    pub async fn serve(self: Arc<Self>, stop: CancellationToken) {
        let taken = lock(&self.waiting).take();
        let Some(mut waiting) = taken else { return };
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        let mut next = 0_usize;
        loop {
            let read = tokio::select! {
                () = stop.cancelled() => return,
                read = waiting.recv() => match read { Some(read) => read, None => return },
            };
            // The queue fills and drops while all turns are taken.
            let turn = tokio::select! {
                () = stop.cancelled() => return,
                turn = turns.clone().acquire_owned() => match turn { Ok(turn) => turn, Err(_) => return },
            };
            next = next.wrapping_add(1);
            let mirror = self.clone();
            tokio::spawn(async move {
                mirror.ask(&read, next).await;
                drop(turn);
            });
        }
    }

    async fn ask(&self, read: &Read, next: usize) {
        let aim = self.aim.load_full();
        let Some(target) = aim.targets.get(next % aim.targets.len().max(1)) else { return };
        match tokio::time::timeout(PATIENCE, aim.answer(*target, read)).await {
            Ok(Ok((status, took))) => self.note(read, status, took, &aim.zone),
            Ok(Err(_)) | Err(_) => self.failed(read, &aim.zone),
        }
    }
}

impl Aim {
    /// The status that an endpoint answers, and how long it takes until the header of its answer is there.
    async fn answer(&self, target: SocketAddr, read: &Read) -> Result<(u16, Duration), Failure> {
        let address = self.reach.reached_at(target);
        if let Some(kept) = self.kept(address)
            // It may have ended at this moment.
            && let Ok(answer) = self.ask(address, kept, read).await
        {
            return Ok(answer);
        }
        let began = crate::clock::monotonic();
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let open = self.reach.greet(stream).await?.open().await?;
        let connecting = began.elapsed();
        let (status, took) = self.ask(address, open, read).await?;
        Ok((status, connecting + took))
    }

    fn kept(&self, address: SocketAddr) -> Option<Open> {
        let mut idle = lock(&self.idle);
        idle.retain(|(_, open)| !open.has_ended());
        let at = idle.iter().rposition(|(there, _)| *there == address)?;
        Some(idle.swap_remove(at).1)
    }

    async fn ask(
        &self,
        address: SocketAddr,
        mut open: Open,
        read: &Read,
    ) -> Result<(u16, Duration), Failure> {
        let began = crate::clock::monotonic();
        let path = read.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder().method(read.method.clone()).uri(path).body(Empty::new())?;
        let headers = request.headers_mut();
        headers.clone_from(&read.headers);
        headers.insert(MARK, HeaderValue::from_static("1"));
        if !headers.contains_key(HOST) {
            headers.insert(HOST, HeaderValue::from_str(&address.to_string())?);
        }
        let response = open.ask(request).await?;
        // As at the primary, where the rest takes as long as its client lets it.
        let took = began.elapsed();
        let status = response.status().as_u16();
        let mut body = response.into_body();
        // To its end, as the client reads it; nothing of it is kept.
        while let Some(frame) = body.frame().await {
            frame?;
        }
        let mut idle = lock(&self.idle);
        if idle.len() < AT_ONCE {
            idle.push((address, open));
        }
        Ok((status, took))
    }
}
