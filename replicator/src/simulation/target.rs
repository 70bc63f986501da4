//! A target whose every step waits until the simulation lets it go on, or makes it fail before or after its work.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use async_trait::async_trait;
use bytes::Bytes;

use super::world::Sabotage;
use crate::apply::Target;
use crate::apply::memory::MemoryTarget;
use crate::change::{Change, LargeHeader, Transaction};
use crate::error::Error;
use crate::identity::SourceId;
use crate::lsn::Lsn;
use crate::wire::{CopyStart, CopyTable, KeptTable, Resume};

/// What the simulation says to a target that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permit {
    Go,
    /// Before the work: it is not done. After the work: it is done and the reply is lost.
    Fail,
}

/// Where a target waits before its work and before its reply.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    permit: Option<Permit>,
    broke: Option<&'static str>,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One in stock: else a target would run on through many steps at once.
    pub(super) fn give(&self, permit: Permit) {
        self.state().permit.get_or_insert(permit);
    }

    /// Where it broke.
    pub(super) fn broke(&self) -> Option<&'static str> {
        self.state().broke
    }

    async fn pass(&self, at: &'static str) -> Result<(), Error> {
        match poll_fn(|_| self.state().permit.take().map_or(Poll::Pending, Poll::Ready)).await {
            Permit::Go => Ok(()),
            Permit::Fail => {
                self.state().broke = Some(at);
                Err(Error::Link(at.into()))
            }
        }
    }
}

/// The memory target behind a gate.
pub(super) struct GatedTarget {
    pub(super) inner: MemoryTarget,
    pub(super) gate: Gate,
    pub(super) sabotage: Sabotage,
}

impl GatedTarget {
    /// Before a write.
    fn sabotage(&mut self) {
        match self.sabotage {
            Sabotage::NoFence => self.inner.disarm(),
            Sabotage::NoWindow => self.inner.forget_window(),
            Sabotage::None
            | Sabotage::ReportReceived
            | Sabotage::ForgetCheckpoint
            | Sabotage::AnySnapshot
            | Sabotage::NoFlush => {}
        }
    }
}

#[async_trait]
impl Target for GatedTarget {
    async fn resume(&mut self) -> Result<Resume, Error> {
        self.gate.pass("resume: not done").await?;
        let done = self.inner.resume().await;
        self.gate.pass("resume: reply lost").await?;
        done
    }

    async fn late(&mut self) -> Result<(), Error> {
        self.gate.pass("late: not done").await?;
        self.inner.late().await
    }

    async fn source(&mut self, id: SourceId) -> Result<(), Error> {
        self.inner.source(id).await
    }

    async fn apply(&mut self, group: &[Transaction], flush: bool) -> Result<(), Error> {
        self.gate.pass("apply: not done").await?;
        self.sabotage();
        let done = self.inner.apply(group, flush && self.sabotage != Sabotage::NoFlush).await;
        if self.sabotage == Sabotage::ForgetCheckpoint
            && let Some(first) = group.first()
        {
            self.inner.forget_checkpoint(first.commit_lsn);
        }
        self.gate.pass("apply: reply lost").await?;
        done
    }

    async fn begin_large(&mut self, header: LargeHeader) -> Result<(), Error> {
        self.gate.pass("begin_large: not done").await?;
        self.inner.begin_large(header).await
    }

    async fn apply_part(&mut self, changes: Vec<Change>) -> Result<(), Error> {
        self.gate.pass("apply_part: not done").await?;
        self.inner.apply_part(changes).await
    }

    async fn end_large(&mut self) -> Result<(), Error> {
        self.gate.pass("end_large: not done").await?;
        self.sabotage();
        let done = self.inner.end_large().await;
        self.gate.pass("end_large: reply lost").await?;
        done
    }

    async fn checkpoint(&mut self, lsn: Lsn) -> Result<(), Error> {
        self.gate.pass("checkpoint: not done").await?;
        let done = self.inner.checkpoint(lsn).await;
        self.gate.pass("checkpoint: reply lost").await?;
        done
    }

    async fn kept(&mut self) -> Result<Vec<KeptTable>, Error> {
        self.gate.pass("kept: not done").await?;
        self.inner.kept().await
    }

    async fn begin_copy(&mut self, start: &CopyStart) -> Result<(), Error> {
        self.gate.pass("begin_copy: not done").await?;
        if self.sabotage == Sabotage::AnySnapshot {
            self.inner.claim(start.snapshot);
        }
        let done = self.inner.begin_copy(start).await;
        self.gate.pass("begin_copy: reply lost").await?;
        done
    }

    async fn load_schema(&mut self, sql: &str, post: bool) -> Result<(), Error> {
        self.inner.load_schema(sql, post).await
    }

    async fn begin_part(&mut self, part: u32, table: &CopyTable) -> Result<(), Error> {
        self.inner.begin_part(part, table).await
    }

    async fn copy_rows(&mut self, part: u32, data: Bytes) -> Result<(), Error> {
        self.gate.pass("copy_rows: not done").await?;
        let done = self.inner.copy_rows(part, data).await;
        self.gate.pass("copy_rows: reply lost").await?;
        done
    }

    async fn end_part(&mut self, part: u32, rows: u64) -> Result<(), Error> {
        self.gate.pass("end_part: not done").await?;
        let done = self.inner.end_part(part, rows).await;
        self.gate.pass("end_part: reply lost").await?;
        done
    }

    async fn end_copy(&mut self, consistent_point: Lsn) -> Result<Lsn, Error> {
        self.gate.pass("end_copy: not done").await?;
        let done = self.inner.end_copy(consistent_point).await;
        self.gate.pass("end_copy: reply lost").await?;
        done
    }
}
