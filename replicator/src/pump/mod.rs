//! The shell around a session: database, link, clock and status. Decisions are in [`crate::session`].
//!
//! [`maintain`] keeps one stream alive from the side that opens the link; [`serve_link`] answers on the other side.
//! Inside one process, [`LocalPeer`] stands for the other side.

mod changes;
pub(crate) mod copying;
mod progress;
pub(crate) mod receive;
mod send;
mod transport;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::copy::CopyOptions;
use crate::error::chain;
use crate::error::{Cause, Error, ErrorKind};
use crate::link::{Dial, Link, Peer, memory};
use crate::postgres::Dsn;
use crate::postgres::slot::Lane;
use crate::spill::Spill;
use crate::status::{OpenWork, Phase, StreamStatus};
use crate::wire::{Frame, Hello, Role, Speaks};
use transport::Joined;

pub use crate::wire::StreamSpec;

/// How often heartbeats, lag and silence are looked at.
const TICK: Duration = Duration::from_millis(250);

/// How long either side may take over its part of the opening, and the other say nothing meanwhile.
const OPENING: Duration = Duration::from_secs(30);

/// Waits between attempts: doubled from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The half of a stream that runs here.
#[derive(Clone, Debug)]
pub enum LocalEnd {
    /// The source is here: send.
    Source {
        /// The source database.
        dsn: Dsn,
        /// Where `pg_dump` is, if not on the path.
        bin: Option<PathBuf>,
        /// Where its open transactions go when they outgrow the memory.
        spill: Spill,
        /// How the initial copy is made.
        copy: CopyOptions,
    },
    /// The target is here: receive and apply.
    Target {
        /// The target database.
        dsn: Dsn,
    },
}

impl LocalEnd {
    fn role(&self) -> Role {
        match self {
            Self::Source { .. } => Role::Push,
            Self::Target { .. } => Role::Pull,
        }
    }
}

/// What an answering side gives to a stream.
#[derive(Debug)]
pub struct Answer {
    /// Its half.
    pub end: LocalEnd,
    /// Where its status goes.
    pub status: watch::Sender<StreamStatus>,
    /// Ends it.
    pub cancel: CancellationToken,
}

async fn run_end(
    end: &LocalEnd,
    spec: &StreamSpec,
    joined: Joined,
    status: &watch::Sender<StreamStatus>,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    match end {
        LocalEnd::Source { dsn, bin, spill, copy } => {
            send::run(send::Source { dsn, bin: bin.clone(), spill, copy }, spec, joined, status, cancel).await
        }
        LocalEnd::Target { dsn } => {
            let target = crate::apply::postgres::PostgresTarget::new(dsn.clone(), spec.clone())?;
            receive::run(Box::new(target), spec.synchronous, joined, status, cancel).await
        }
    }
}

/// Compression is for the way between zones.
fn speaks(link: &dyn Link) -> Speaks {
    Speaks::this(link.peer().is_some())
}

/// Opens one session over `link` and runs this side's half: a source pushes, a target pulls.
pub async fn start(
    end: &LocalEnd,
    spec: &StreamSpec,
    link: Box<dyn Link>,
    status: &watch::Sender<StreamStatus>,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let speaks = speaks(&*link);
    let there = if end.role() == Role::Push { &spec.target_zone } else { &spec.source_zone };
    if let Some(peer) = link.peer() {
        let may = peer.may(&spec.resource, there, link.scoped());
        may.map_err(|why| Error::Unready(format!("refused here: {why}")))?;
    }
    let mut joined = Joined::new(link);
    let hello = Hello { role: end.role(), spec: spec.clone(), speaks };
    joined.say(&Frame::Hello(hello)).await?;
    match joined.hear(OPENING).await? {
        Frame::Welcome(agreed) => {
            joined.framing.agree(agreed)?;
            run_end(end, spec, joined, status, cancel).await
        }
        Frame::Refuse { reason } => Err(Error::Unready(format!("the other side refuses: {reason}"))),
        other => Err(Error::Protocol(format!("frame kind {} for an answer", other.kind()))),
    }
}

/// Slot, publication and origin must be those of a lane of the resource: who may take part is said by resource, and another's may be in
/// the same database.
fn own_names(spec: &StreamSpec) -> Result<(), String> {
    let StreamSpec { resource, generation, slot, publication, origin, .. } = spec;
    let own = |lane: Lane| {
        *slot == lane.slot_name(resource, *generation)
            && *publication == lane.publication_name(resource)
            && *origin == lane.origin_name(resource)
    };
    if own(Lane::Main) || own(Lane::Critical) {
        return Ok(());
    }
    Err(format!("slot {slot}, publication {publication}, origin {origin}: no lane of {resource} has these"))
}

/// Answers on a link that the other side opened: asks `resolve` what to do for its hello, and does it.
///
/// `resolve` also gets the authenticated other side (`None` inside one process); its error text goes to the other side.
/// What the other side's certificate does not let it do, and names that are not its resource's, are refused before. A half that does not fit the role asked for is refused here.
pub async fn serve_link(
    link: Box<dyn Link>,
    resolve: impl Fn(&Hello, Option<&Peer>) -> Result<Answer, String> + Send,
) -> Result<(), Error> {
    let peer = link.peer().cloned();
    let speaks = speaks(&*link);
    let scoped = link.scoped();
    let mut joined = Joined::new(link);
    let hello = match joined.hear(OPENING).await? {
        Frame::Hello(hello) => hello,
        other => return Err(Error::Protocol(format!("frame kind {} for a hello", other.kind()))),
    };
    let answer = speaks.agree(hello.speaks).and_then(|agreed| {
        let there = if hello.role == Role::Push { &hello.spec.source_zone } else { &hello.spec.target_zone };
        if let Some(peer) = &peer {
            peer.may(&hello.spec.resource, there, scoped)?;
        }
        own_names(&hello.spec)?;
        let answer = resolve(&hello, peer.as_ref())?;
        if answer.end.role() == hello.role {
            return Err("both sides have the same half of the stream".into());
        }
        Ok((answer, agreed))
    });
    match answer {
        Ok((answer, agreed)) => {
            joined.say(&Frame::Welcome(agreed)).await?;
            joined.framing.agree(agreed)?;
            let end = Box::pin(run_end(&answer.end, &hello.spec, joined, &answer.status, &answer.cancel));
            let result = end.await;
            tell(&result, &answer.status, Told { retrying: true, counted: true });
            result
        }
        Err(reason) => {
            joined.say(&Frame::Refuse { reason: reason.clone() }).await?;
            joined.close().await;
            Err(Error::Unready(format!("refused stream {}: {reason}", hello.spec.slot)))
        }
    }
}

/// Keeps a stream alive: dials, runs, and after an error dials again, more slowly each time, until told to stop. So it does where the error waits for a
/// person: what is mended within a moment, as a schema that follows by itself, is not waited for much longer, and commits may wait for the stream. The same
/// failure counts once in 5 s then, as at the slowest pace.
///
/// Ends by itself only when fenced ([`ErrorKind::Never`]).
pub async fn maintain(
    dial: &dyn Dial,
    spec: &StreamSpec,
    end: &LocalEnd,
    status: &watch::Sender<StreamStatus>,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let result = keep_alive(dial, spec, end, status, cancel).await;
    // Nobody will come back for it.
    if let LocalEnd::Source { copy, .. } = end {
        copy.snapshots.release(&spec.slot);
    }
    result
}

async fn keep_alive(
    dial: &dyn Dial,
    spec: &StreamSpec,
    end: &LocalEnd,
    status: &watch::Sender<StreamStatus>,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let mut wait = BACKOFF.0;
    let mut counted: Option<((Cause, String), Instant)> = None;
    loop {
        let began = crate::clock::now();
        let attempt = async { start(end, spec, dial.dial().await?, status, cancel).await };
        let result = tokio::select! {
            () = cancel.cancelled() => Ok(()),
            result = attempt => result,
        };
        let never = matches!(&result, Err(error) if error.kind() == ErrorKind::Never);
        // Tried often, what waits for a person fails often: it is one failure, and no alert's business before it has lasted.
        let repeated = match &result {
            Err(error) if error.kind() == ErrorKind::Operator => {
                let (failure, now) = ((error.cause(), chain(error)), crate::clock::now());
                let repeated = counted
                    .as_ref()
                    .is_some_and(|(before, at)| *before == failure && now.duration_since(*at) < BACKOFF.1);
                if !repeated {
                    counted = Some((failure, now));
                }
                repeated
            }
            _ => false,
        };
        tell(&result, status, Told { retrying: !never, counted: !repeated });
        match result {
            Ok(()) if cancel.is_cancelled() => return Ok(()),
            Err(error) if never => return Err(error),
            Ok(()) => {}
            Err(error) if repeated => {
                tracing::debug!(
                    stream = spec.slot,
                    error = explained(&error),
                    "stream broke for the same reason"
                );
            }
            Err(error) => {
                tracing::warn!(
                    stream = spec.slot,
                    error = explained(&error),
                    cause = error.label(),
                    "stream broke; it will be resumed"
                );
            }
        }
        if began.elapsed() > BACKOFF.1 {
            wait = BACKOFF.0;
        }
        tokio::select! {
            () = cancel.cancelled() => {
                status.send_modify(|status| status.phase = Phase::Stopped);
                return Ok(());
            }
            () = tokio::time::sleep(wait) => {}
        }
        wait = (wait * 2).min(BACKOFF.1);
    }
}

/// What a failure is told as.
struct Told {
    /// It will be tried again.
    retrying: bool,
    /// It is one more of its cause.
    counted: bool,
}

/// How a half of a stream has ended.
fn tell(result: &Result<(), Error>, status: &watch::Sender<StreamStatus>, Told { retrying, counted }: Told) {
    status.send_modify(|status| {
        status.open = OpenWork::default();
        status.phase = match result {
            Ok(()) => Phase::Stopped,
            Err(error) => {
                *status.failures.entry(error.cause()).or_default() += u64::from(counted);
                Phase::Failed { error: explained(error), retrying }
            }
        };
    });
}

/// The error, and what to do about it where it does not say so itself.
fn explained(error: &Error) -> String {
    match error.cause() {
        Cause::Unready | Cause::Fenced | Cause::Link => chain(error),
        cause => format!("{}; to do: {}", chain(error), cause.policy().advice),
    }
}

/// The other side of a stream in this process: each dial starts a task that answers over a memory link.
pub struct LocalPeer {
    end: LocalEnd,
    options: memory::Options,
    running: std::sync::Mutex<Option<AbortOnDropHandle<()>>>,
    newest: std::sync::Mutex<Option<memory::Cut>>,
}

impl LocalPeer {
    /// The other half; it ends with this value.
    pub fn new(end: LocalEnd, options: memory::Options) -> Arc<Self> {
        Arc::new(Self { end, options, running: None.into(), newest: None.into() })
    }

    /// Breaks the newest link, for tests.
    pub fn cut(&self) {
        if let Some(cut) = self.newest.lock().unwrap_or_else(std::sync::PoisonError::into_inner).as_ref() {
            cut.cut();
        }
    }
}

#[async_trait]
impl Dial for LocalPeer {
    async fn dial(&self) -> Result<Box<dyn Link>, Error> {
        let (near, far, cut) = memory::pair(self.options);
        let end = self.end.clone();
        let task = tokio::spawn(async move {
            let answer = move |_: &Hello, _: Option<&Peer>| {
                Ok(Answer {
                    end: end.clone(),
                    status: watch::Sender::new(StreamStatus::default()),
                    cancel: CancellationToken::new(),
                })
            };
            if let Err(error) = serve_link(Box::new(far), answer).await {
                tracing::debug!(error = chain(&error), "the local half of a stream ended");
            }
        });
        // The older half is aborted: one at a time.
        *self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
            Some(AbortOnDropHandle::new(task));
        *self.newest.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(cut);
        Ok(Box::new(near))
    }
}

#[cfg(test)]
mod tests;
