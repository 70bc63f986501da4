//! Which cluster a stream comes from: a checkpoint counts only for the one whose WAL it is a position in.
//!
//! `initdb` gives a cluster its system identifier; a restore and a promotion keep it and begin a new timeline. Equal
//! positions of different timelines are different changes, so neither may be streamed on from.

use std::fmt;

use tokio_postgres::Client;

use crate::error::{Error, chain};
use crate::fence::{self, not_installed};
use crate::lsn::Lsn;
use crate::postgres::connection::{Connection, TextRow};

/// A cluster and the line of its history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceId {
    /// `system_identifier`, as `initdb` chose it.
    pub system: u64,
    /// Timeline, from 1; a promotion makes the next.
    pub timeline: u32,
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "system {} timeline {}", self.system, self.timeline)
    }
}

impl SourceId {
    /// As `godwit.progress` keeps it: the identifier in the form that `pg_control_system` shows.
    pub(crate) fn stored(self) -> (i64, i64) {
        (self.system.cast_signed(), i64::from(self.timeline))
    }

    /// Back from [`Self::stored`].
    pub(crate) fn from_stored(system: Option<i64>, timeline: Option<i64>) -> Option<Self> {
        Some(Self { system: system?.cast_unsigned(), timeline: u32::try_from(timeline?).ok()? })
    }

    /// Nothing when `found` is this one.
    ///
    /// # Errors
    /// [`Error::AnotherSource`] otherwise.
    pub fn expect(self, found: Self, stream: &str) -> Result<(), Error> {
        if found == self {
            return Ok(());
        }
        let what = if found.system == self.system {
            format!("its history forked: it was restored or promoted ({self} became {found})")
        } else {
            format!("it is another cluster ({found}, not {self})")
        };
        Err(Error::AnotherSource { stream: stream.to_owned(), what })
    }
}

/// What a server says of itself on a replication connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identified {
    pub(crate) id: SourceId,
    /// How far its WAL is written.
    pub(crate) position: Lsn,
}

impl Identified {
    /// Refuses a checkpoint that this server cannot go on from.
    pub(crate) fn check(&self, known: Option<SourceId>, applied: Lsn, stream: &str) -> Result<(), Error> {
        if let Some(known) = known {
            known.expect(self.id, stream)?;
        }
        let Some(what) = self.behind(applied) else { return Ok(()) };
        Err(Error::AnotherSource { stream: stream.to_owned(), what })
    }

    /// Why its history ends before `applied`, if it does. A server that has lost nothing but what was not durable is never behind: only what is
    /// durable is sent.
    fn behind(&self, applied: Lsn) -> Option<String> {
        (applied > self.position).then(|| {
            format!(
                "its WAL ended at {}, before what the target has already ({applied}): it was restored from an older copy",
                self.position
            )
        })
    }
}

/// [`Identified::check`] at the beginning of a session. One that was behind it once is not the right one either when its WAL has grown past
/// it, with other changes: that is written down there, until a new copy begins ([`forgive`]).
pub(crate) async fn check_history(
    source: &Client,
    found: &Identified,
    known: Option<SourceId>,
    applied: Lsn,
    stream: &str,
) -> Result<(), Error> {
    if let Some(known) = known {
        known.expect(found.id, stream)?;
    }
    let context = || format!("ask whether the source has all of {stream}");
    let seen = "SELECT why FROM godwit.fallen_behind WHERE stream = $1";
    let seen = match source.query_opt(seen, &[&stream]).await {
        Err(error) if not_installed(&error) => None,
        row => row.map_err(Error::database(context()))?.map(|row| row.get(0)),
    };
    if let Some(what) = seen {
        return Err(Error::AnotherSource { stream: stream.to_owned(), what });
    }
    if let Some(what) = found.behind(applied)
        && let Err(error) = note_behind(source, stream, &what).await
    {
        // Tried again with the next session.
        tracing::warn!(
            stream,
            error = chain(&error),
            "that the source is an older copy cannot be written down there"
        );
    }
    found.check(known, applied, stream)
}

async fn note_behind(source: &Client, stream: &str, why: &str) -> Result<(), Error> {
    // An older version may have prepared it.
    fence::install_schema(source).await?;
    let sql = "INSERT INTO godwit.fallen_behind (stream, why) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    let noted = source.execute(sql, &[&stream, &why]).await;
    noted.map(drop).map_err(Error::database("note that the source is an older copy"))
}

/// A new copy is made of this source: whatever it lacked, the target does not have any more.
///
/// # Errors
/// [`Error::Database`].
pub async fn forgive(source: &Client, stream: &str) -> Result<(), Error> {
    match source.execute("DELETE FROM godwit.fallen_behind WHERE stream = $1", &[&stream]).await {
        Err(error) if not_installed(&error) => Ok(()),
        done => done.map(drop).map_err(Error::database("begin anew with this source")),
    }
}

/// Asks on this connection: what follows on it comes from the server that answers.
pub(crate) async fn ask(connection: &mut Connection) -> Result<Identified, Error> {
    let context = "identify the source";
    let rows = connection.query("IDENTIFY_SYSTEM", context).await?;
    rows.first()
        .and_then(parse)
        .ok_or_else(|| Error::Protocol(format!("{context}: the answer makes no sense")))
}

fn parse(row: &TextRow) -> Option<Identified> {
    let field = |at: usize| std::str::from_utf8(row.get(at)?.as_deref()?).ok();
    let id = SourceId { system: field(0)?.parse().ok()?, timeline: field(1)?.parse().ok()? };
    Some(Identified { id, position: field(2)?.parse().ok()? })
}

/// The same over SQL. `None` in recovery, where the timeline may still change. Needs no rights.
pub async fn of(client: &Client) -> Result<Option<SourceId>, Error> {
    Ok(look(client).await?.map(|found| found.id))
}

/// The same for a source, which must not be in recovery.
pub(crate) async fn identify(client: &Client) -> Result<Identified, Error> {
    look(client)
        .await?
        .ok_or_else(|| Error::Unready("the source is in recovery: a standby is no source".into()))
}

async fn look(client: &Client) -> Result<Option<Identified>, Error> {
    let row = client
        .query_opt(
            // The name of a WAL file begins with its timeline; pg_control_checkpoint still tells the old one after a promotion.
            "SELECT (pg_catalog.pg_control_system()).system_identifier, \
                    ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8))::bit(32)::bigint, \
                    pg_catalog.pg_current_wal_flush_lsn()::text \
             WHERE NOT pg_catalog.pg_is_in_recovery()",
            &[],
        )
        .await
        .map_err(Error::database("identify the database's cluster"))?;
    let Some(row) = row else { return Ok(None) };
    let id = SourceId::from_stored(row.get(0), row.get(1));
    let position = row.get::<_, &str>(2).parse().ok();
    let found = id.zip(position).map(|(id, position)| Identified { id, position });
    found.map(Some).ok_or_else(|| Error::Protocol("the source's identity makes no sense".into()))
}

/// Which source the checkpoint of `stream` belongs to, as the target knows; needs schema `godwit`.
pub async fn of_checkpoint(target: &Client, stream: &str) -> Result<Option<SourceId>, Error> {
    let row = target
        .query_opt("SELECT source_system, source_timeline FROM godwit.progress WHERE stream = $1", &[&stream])
        .await
        .map_err(Error::database(format!("read the source of {stream}")))?;
    Ok(row.and_then(|row| SourceId::from_stored(row.get(0), row.get(1))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: SourceId = SourceId { system: 7_712_259_040_289_284_019, timeline: 1 };

    #[test]
    fn only_the_same_history_is_gone_on_with() {
        let at = |id, position| Identified { id, position: Lsn(position) };
        assert!(at(KNOWN, 9).check(Some(KNOWN), Lsn(9), "s").is_ok());
        assert!(at(KNOWN, 9).check(None, Lsn(9), "s").is_ok());
        let why = |found: Identified| {
            found.check(Some(KNOWN), Lsn(9), "godwit_orders_g1").expect_err("refused").to_string()
        };
        insta::assert_snapshot!(
            [
                why(at(SourceId { system: 5, ..KNOWN }, 9)),
                why(at(SourceId { timeline: 2, ..KNOWN }, 9)),
                why(at(KNOWN, 8)),
            ]
            .join("\n")
        );
    }

    #[test]
    fn every_identifier_can_be_stored() {
        let id = SourceId { system: u64::MAX, timeline: u32::MAX };
        let (system, timeline) = id.stored();
        assert_eq!(SourceId::from_stored(Some(system), Some(timeline)), Some(id));
        assert_eq!(SourceId::from_stored(None, Some(1)), None);
    }
}
