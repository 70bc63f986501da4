//! The two processes of a simulated session: the shipped machines, driven by hand.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::target::{Gate, GatedTarget};
use super::wan::Way;
use crate::apply::Target;
use crate::error::Error;
use crate::lsn::Lsn;
use crate::pump::receive::{Applier, Done};
use crate::session::{Framing, Receiver, Sender, Work};
use crate::wire::{Frame, KeptTable, Resume};

type Resumed = Result<(Box<dyn Target>, Resume, Vec<KeptTable>), Error>;
type Doing<T> = Pin<Box<dyn Future<Output = T>>>;

fn poll_once<T>(doing: &mut Doing<T>) -> Poll<T> {
    doing.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// The end at the source.
pub(super) enum SourceProcess {
    /// Waits for the resume and for what the target holds of a copy that broke.
    Opening { framing: Framing, resume: Option<Resume>, kept: Vec<KeptTable> },
    /// Makes the initial copy; `point` is where the stream goes on.
    Copying { sender: Sender, frames: VecDeque<Frame>, point: Lsn },
    /// Reads the slot from this transaction on. Of a large one that is on its way: the pieces to come.
    Streaming { sender: Sender, next: usize, pieces: Option<VecDeque<Bytes>> },
}

impl SourceProcess {
    pub(super) fn sender(&mut self) -> Option<&mut Sender> {
        match self {
            Self::Opening { .. } => None,
            Self::Copying { sender, .. } | Self::Streaming { sender, .. } => Some(sender),
        }
    }

    /// Puts what it has to say on its way; `most` messages.
    pub(super) fn flush(&mut self, way: &mut Way, most: usize) {
        let Some(sender) = self.sender() else { return };
        for _ in 0..most {
            let Some(message) = sender.poll_message() else { return };
            way.enter(message);
        }
    }

    /// Ends it as the shell does: the reason goes out, then the direction is closed.
    pub(super) fn end(mut self, error: &Error, way: &mut Way, now: Instant) {
        if let Some(sender) = self.sender() {
            sender.handle_failure(error, now);
        }
        self.flush(way, usize::MAX);
        way.closed = true;
    }
}

/// The end at the target.
pub(super) struct TargetProcess {
    pub(super) gate: Gate,
    pub(super) state: TargetState,
    /// Encoded bytes of work that is not done.
    pub(super) held: u64,
    window: u64,
    synchronous: bool,
}

pub(super) enum TargetState {
    /// Takes the target over. The framing is there until it is used.
    Resuming(Option<Box<Framing>>, Doing<Resumed>),
    /// Applies.
    Running {
        receiver: Box<Receiver>,
        work: mpsc::UnboundedSender<Work>,
        done: mpsc::UnboundedReceiver<Done>,
        applier: Doing<Result<(), Error>>,
    },
}

impl TargetProcess {
    pub(super) fn start(mut target: GatedTarget, framing: Framing, window: u64, synchronous: bool) -> Self {
        let gate = target.gate.clone();
        let resuming = async move {
            let resume = target.resume().await?;
            let kept = if resume.copied { Vec::new() } else { target.kept().await? };
            if resume.copied {
                target.late().await?;
            }
            Ok((Box::new(target) as Box<dyn Target>, resume, kept))
        };
        let state = TargetState::Resuming(Some(Box::new(framing)), Box::pin(resuming));
        Self { gate, state, held: 0, window, synchronous }
    }

    pub(super) fn running(&self) -> bool {
        matches!(self.state, TargetState::Running { .. })
    }

    /// A message for it.
    pub(super) fn handle_message(&mut self, message: Bytes, now: Instant) -> Result<(), Error> {
        let TargetState::Running { receiver, work, .. } = &mut self.state else { return Ok(()) };
        receiver.handle_message(message, now)?;
        while let Some(next) = receiver.poll_work() {
            self.held += match &next {
                Work::Copy(frame) => frame.payload_len() as u64,
                Work::Transaction { bytes, .. } => *bytes,
                Work::LargePiece(piece) => piece.len() as u64,
                Work::Source(_) | Work::LargeBegin(_) | Work::LargeEnd | Work::Position(_) => 0,
            };
            // An applier that has ended ends the process at its next step.
            let _ = work.send(next);
        }
        Ok(())
    }

    /// Lets the target's work go on as far as its gate allows.
    pub(super) fn advance(&mut self, now: Instant) -> Result<(), Error> {
        match &mut self.state {
            TargetState::Resuming(framing, resuming) => {
                let Poll::Ready(resumed) = poll_once(resuming) else { return Ok(()) };
                let (target, resume, kept) = resumed?;
                let framing = framing.take().map_or_else(|| Framing::new(now), |framing| *framing);
                let (work, todo) = mpsc::unbounded_channel();
                let (tell, done) = mpsc::unbounded_channel();
                let applier = Applier::new(target, self.synchronous, resume, tell).run(todo);
                let receiver = Box::new(Receiver::with_window(framing, resume, kept, self.window, now));
                let applier = Box::pin(tokio::task::unconstrained(applier));
                self.state = TargetState::Running { receiver, work, done, applier };
                Ok(())
            }
            TargetState::Running { receiver, done, applier, .. } => {
                let ended = poll_once(applier);
                while let Ok(done) = done.try_recv() {
                    if let Done::Held(bytes) = done {
                        self.held -= bytes;
                    }
                    done.tell(receiver, now);
                }
                match ended {
                    Poll::Ready(Err(error)) => Err(error),
                    Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
                }
            }
        }
    }

    pub(super) fn tick(&mut self, now: Instant) -> Result<(), Error> {
        match &mut self.state {
            TargetState::Running { receiver, .. } => receiver.handle_tick(now),
            TargetState::Resuming(..) => Ok(()),
        }
    }

    pub(super) fn flush(&mut self, way: &mut Way, most: usize) {
        for _ in 0..most {
            let message = match &mut self.state {
                TargetState::Running { receiver, .. } => receiver.poll_message(),
                TargetState::Resuming(framing, _) => {
                    framing.as_mut().and_then(|framing| framing.poll_message())
                }
            };
            let Some(message) = message else { return };
            way.enter(message);
        }
    }

    pub(super) fn end(mut self, error: &Error, way: &mut Way, now: Instant) {
        match &mut self.state {
            TargetState::Running { receiver, .. } => receiver.handle_failure(error, now),
            TargetState::Resuming(Some(framing), _) => {
                framing.push(&Frame::Failed { kind: error.kind(), reason: crate::error::chain(error) }, now);
            }
            TargetState::Resuming(None, _) => {}
        }
        self.flush(way, usize::MAX);
        way.closed = true;
    }
}
