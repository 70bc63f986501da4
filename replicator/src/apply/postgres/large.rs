//! One large source transaction, applied in parts inside one open target transaction.
//!
//! Each part is planned while the one before it is being written, and runs behind a savepoint; a part that fails as a
//! batch is taken back and applied again by halves. At any time two parts are in memory. Nothing commits before
//! [`Large::end`]; dropping it drops the connection, and the server takes all of it back.

use tokio_util::task::AbortOnDropHandle;

use super::catalog::Tables;
use super::met::Met;
use super::plan::{self, Item, Order, Statement};
use super::session::{Checkpoint, Failure, Session};
use crate::change::{Change, LargeHeader, MARKER_PREFIX};
use crate::error::Error;
use crate::lsn::Lsn;

pub(super) struct Large {
    /// The tables that it changes, as far as it has come.
    pub(super) met: Met,
    header: LargeHeader,
    marker: Option<u64>,
    state: State,
}

enum State {
    Free(Box<Session>),
    Writing(AbortOnDropHandle<(Box<Session>, Result<(), Error>)>),
    /// An error came out, or a call was dropped half way.
    Broken,
}

impl Large {
    /// Opens the transaction.
    pub(super) async fn begin(session: Session, header: LargeHeader) -> Result<Self, Error> {
        session.begin().await?;
        Ok(Self { met: Met::default(), header, marker: None, state: State::Free(Box::new(session)) })
    }

    pub(super) fn end_lsn(&self) -> Lsn {
        self.header.end_lsn
    }

    pub(super) fn commit_lsn(&self) -> Lsn {
        self.header.commit_lsn
    }

    /// The generation of the newest end marker in it.
    pub(super) fn marker(&self) -> Option<u64> {
        self.marker
    }

    /// The session, once the part before is written; it comes back by [`Large::go_on`].
    pub(super) async fn session(&mut self) -> Result<Box<Session>, Error> {
        match std::mem::replace(&mut self.state, State::Broken) {
            State::Free(session) => Ok(session),
            State::Writing(task) => {
                let (session, result) = task
                    .await
                    .map_err(|error| Error::Link(format!("the writer of a part ended: {error}")))?;
                result.map(|()| session)
            }
            State::Broken => Err(Error::Protocol("a large transaction goes on after it failed".into())),
        }
    }

    pub(super) fn go_on(&mut self, session: Box<Session>) {
        self.state = State::Free(session);
    }

    /// The next changes, of tables that are known.
    pub(super) async fn part(&mut self, changes: Vec<Change>, tables: &Tables) -> Result<(), Error> {
        for change in &changes {
            if let Change::Message { prefix, content } = change
                && prefix == MARKER_PREFIX
            {
                let generation = std::str::from_utf8(content).ok().and_then(|text| text.parse().ok());
                self.marker = generation.or(self.marker);
            }
        }
        let statements = plan::plan(&items(&changes, self.end_lsn()), Order::Net, tables)?;
        let session = self.session().await?;
        let writing = write(session, statements, changes, self.end_lsn(), tables.clone());
        self.state = State::Writing(AbortOnDropHandle::new(tokio::spawn(writing)));
        Ok(())
    }

    /// Commits it with its checkpoint.
    pub(super) async fn end(mut self, step: &Checkpoint) -> Result<Session, Error> {
        let session = self.session().await?;
        session.end(step).await?;
        Ok(*session)
    }
}

fn items(changes: &[Change], lsn: Lsn) -> Vec<Item<'_>> {
    changes.iter().map(|change| (lsn, change)).collect()
}

async fn write(
    mut session: Box<Session>,
    statements: Vec<Statement>,
    changes: Vec<Change>,
    lsn: Lsn,
    tables: Tables,
) -> (Box<Session>, Result<(), Error>) {
    let result = match session.attempt(&statements).await {
        Ok(()) => Ok(()),
        Err(Failure::Error(error)) => Err(error),
        Err(Failure::Batch) => {
            drop(statements);
            session.in_parts(&items(&changes, lsn), &tables).await
        }
    };
    (session, result)
}
