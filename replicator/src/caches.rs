//! Caches: what the primary's server has in memory is read into the shadow's before a move, so that the first clients do not read it from disk.
//!
//! What is warm is said by the extension `pg_buffercache` (which blocks) and by the statistics (how often blocks of each relation were asked for); `pg_prewarm` reads.
//! A relation's blocks lie otherwise on each side, but in about the same order: a table is copied in the order of its blocks, an index is sorted. So
//! what is warm is told in slices, parts of a relation's length. Both extensions come with PostgreSQL ("Additional Supplied Modules") and only a superuser can make them.

use std::collections::HashMap;
use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row, Statement};

use crate::clock;
use crate::error::Error;
use crate::preflight::{Finding, Severity};

/// The extension that reads into a cache.
const READER: &str = "pg_prewarm";
/// The extension that says what a cache holds.
const WITNESS: &str = "pg_buffercache";
/// Of a slice of which less than this share is warm the rest is not worth reading.
const SPARSE: i64 = 10;
/// How much one statement reads: 64 MiB.
const AT_ONCE: i64 = 8192;

/// Each relation of the user's, with its TOAST table and that one's index.
const RELATION: &str = "\
WITH relation AS MATERIALIZED ( \
 SELECT p.id, n.nspname::text AS schema, c.relname::text AS name, p.part, pg_catalog.pg_relation_filenode(p.id) AS file, d.oid AS database, \
  CASE c.reltablespace WHEN 0 THEN d.dattablespace ELSE c.reltablespace END AS space, \
  pg_catalog.pg_relation_size(p.id) / pg_catalog.current_setting('block_size')::int AS blocks \
 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
 JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database() \
 CROSS JOIN LATERAL (SELECT c.oid AS id, 'main' AS part \
  UNION ALL SELECT c.reltoastrelid, 'toast' WHERE c.reltoastrelid <> 0 \
  UNION ALL SELECT i.indexrelid, 'toast index' FROM pg_catalog.pg_index i WHERE i.indrelid = c.reltoastrelid AND c.reltoastrelid <> 0) p \
 WHERE c.relkind IN ('r', 'm', 'i') AND c.relpersistence = 'p' \
  AND n.nspname NOT IN ('information_schema', 'godwit') AND n.nspname !~ '^pg_')";

/// How often blocks of each relation were asked for.
const ASKED: &str = "\
SELECT schema, name, part, 0::bigint, 1::bigint, blocks, pg_catalog.pg_stat_get_blocks_fetched(id), blocks FROM relation \
WHERE blocks > 0 AND pg_catalog.pg_stat_get_blocks_fetched(id) > 0";

/// Where the relations of these names are.
const THERE: &str = "\
SELECT schema, name, part, id, blocks FROM relation \
WHERE blocks > 0 AND (schema, name) IN (SELECT * FROM unnest($1::text[], $2::text[]))";

/// One that was dropped meanwhile is left out.
const READ: &str = "\
SELECT coalesce(pg_catalog.sum({schema}.pg_prewarm(s.id::regclass, s.mode, 'main', s.first, s.last)), 0)::bigint \
FROM unnest($1::oid[], $2::text[], $3::bigint[], $4::bigint[]) AS s (id, mode, first, last) \
JOIN pg_catalog.pg_class c ON c.oid = s.id";

/// What was read into a cache; in blocks of the server, mostly 8 KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// Read.
    pub blocks: i64,
    /// Warm at the source and not read: there was no room, no time, or a relation changed meanwhile.
    pub left: i64,
}

/// The relation of a name, its TOAST table, or that one's index.
type Name = (String, String, String);

/// A part of a relation that is warm at the source.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Warm {
    name: Name,
    /// Which slice of how many.
    slice: i64,
    slices: i64,
    /// Blocks of the slice that are in memory.
    cached: i64,
    /// How often they are used, in whatever unit.
    heat: i64,
    /// Blocks of the relation.
    blocks: i64,
}

/// Blocks of a relation at the target, the last one included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    relation: u32,
    first: i64,
    last: i64,
    mode: Mode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Into the server's own buffers.
    Buffer,
    /// Into the operating system's cache.
    Read,
}

/// Blocks that may be read into each.
#[derive(Clone, Copy, Debug)]
struct Room {
    buffers: i64,
    system: i64,
}

/// Reads into the caches of `target` what is warm at `source`, the most used first, for at most about `within`.
///
/// `None` where the target's database has no `pg_prewarm`. Needs SELECT on the relations; `pg_monitor` at the source for what its buffers hold, without which whole
/// relations are read by how often they were asked for.
pub async fn fill(source: &Client, target: &Client, within: Duration) -> Result<Option<Filled>, Error> {
    let until = clock::now() + within;
    let Some(schema) = extension(target, READER).await? else { return Ok(None) };
    let (cached, asked) = (cached(source).await?, warm(source, ASKED).await.map_err(unread)?);
    let there = there(target, cached.iter().chain(&asked)).await?;
    let (stretches, mut left) = plan(cached, asked, &there, room(target).await?);
    let reads = target.prepare(&READ.replace("{schema}", &schema)).await.map_err(unread)?;
    let mut filled = Filled::default();
    for batch in batches(&stretches) {
        let wanted: i64 = batch.iter().map(Stretch::blocks).sum();
        let read = if clock::now() < until { read(target, &reads, &batch).await? } else { 0 };
        filled.blocks += read;
        left += wanted - read;
    }
    Ok(Some(Filled { left, ..filled }))
}

/// What a person should know of a database that is larger than `over` bytes, and whose cache cannot be filled.
pub async fn lacking(client: &Client, over: i64) -> Result<Option<Finding>, Error> {
    let unread = |error| Error::database("cannot read how large the database is")(error);
    let sql = "SELECT pg_catalog.pg_database_size(pg_catalog.current_database())";
    let size: i64 = client.query_one(sql, &[]).await.and_then(|row| row.try_get(0)).map_err(unread)?;
    if size <= over || extension(client, READER).await?.is_some() {
        return Ok(None);
    }
    Ok(Some(Finding {
        severity: Severity::Warning,
        subject: READER.into(),
        problem:
            "is not in the database: after a move the first clients read from disk what was in memory before"
                .into(),
        remedy: Some(format!(
            "CREATE EXTENSION {READER}; CREATE EXTENSION {WITNESS}, as superuser on both sides; or warm_up.caches: leave"
        )),
    }))
}

/// The schema of an extension, quoted.
async fn extension(client: &Client, name: &str) -> Result<Option<String>, Error> {
    let sql = "SELECT pg_catalog.quote_ident(n.nspname) FROM pg_catalog.pg_extension e \
        JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = $1";
    let found = client.query_opt(sql, &[&name]).await.map_err(unread)?;
    found.map(|row| row.try_get(0)).transpose().map_err(unread)
}

/// What the server's own buffers hold; nothing where that cannot be seen.
async fn cached(client: &Client) -> Result<Vec<Warm>, Error> {
    let Some(schema) = extension(client, WITNESS).await? else { return Ok(Vec::new()) };
    // Slices of a mebibyte or more.
    let sql = format!(
        ", sliced AS (SELECT *, greatest(1, least(4096, blocks / 128)) AS slices FROM relation WHERE blocks > 0) \
         SELECT s.schema, s.name, s.part, least(b.relblocknumber * s.slices / s.blocks, s.slices - 1), s.slices, \
          pg_catalog.count(*), pg_catalog.sum(b.usagecount)::bigint, s.blocks \
         FROM sliced s JOIN {schema}.pg_buffercache b ON b.relfilenode = s.file AND b.reltablespace = s.space AND b.reldatabase = s.database \
         WHERE b.relforknumber = 0 GROUP BY 1, 2, 3, 4, 5, 8"
    );
    match warm(client, &sql).await {
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Ok(Vec::new()),
        answer => answer.map_err(unread),
    }
}

async fn warm(client: &Client, sql: &str) -> Result<Vec<Warm>, tokio_postgres::Error> {
    let rows = client.query(&format!("{RELATION} {sql}"), &[]).await?;
    let of = |row: &Row| -> Result<Warm, tokio_postgres::Error> {
        Ok(Warm {
            name: name(row)?,
            slice: row.try_get(3)?,
            slices: row.try_get(4)?,
            cached: row.try_get(5)?,
            heat: row.try_get(6)?,
            blocks: row.try_get(7)?,
        })
    };
    rows.iter().map(of).collect()
}

fn name(row: &Row) -> Result<Name, tokio_postgres::Error> {
    Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
}

/// Identity and length of those of the relations that this database has.
async fn there(
    client: &Client,
    warm: impl Iterator<Item = &Warm>,
) -> Result<HashMap<Name, (u32, i64)>, Error> {
    let (schemas, names): (Vec<&str>, Vec<&str>) =
        warm.map(|it| (it.name.0.as_str(), it.name.1.as_str())).unzip();
    let rows = client.query(&format!("{RELATION} {THERE}"), &[&schemas, &names]).await.map_err(unread)?;
    let of = |row: &Row| Ok((name(row)?, (row.try_get(3)?, row.try_get(4)?)));
    rows.iter().map(of).collect::<Result<_, tokio_postgres::Error>>().map_err(unread)
}

/// A quarter of the server's buffers is left to what it does besides.
async fn room(client: &Client) -> Result<Room, Error> {
    let sql = "SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name IN ('shared_buffers', 'effective_cache_size') ORDER BY name DESC";
    let rows = client.query(sql, &[]).await.map_err(unread)?;
    let sizes = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>().map_err(unread)?;
    let [buffers, all] = sizes[..] else {
        return Err(Error::Protocol("the server does not say how large its caches are".into()));
    };
    Ok(Room { buffers: buffers / 4 * 3, system: (all - buffers).max(0) })
}

/// What is read, the most used first, and how many blocks have no room.
///
/// What the source's buffers hold goes into the target's, and into the system's cache where those are full; then, whole, what was asked for besides.
fn plan(
    cached: Vec<Warm>,
    asked: Vec<Warm>,
    there: &HashMap<Name, (u32, i64)>,
    mut room: Room,
) -> (Vec<Stretch>, i64) {
    let known = !cached.is_empty();
    let mut planned: HashMap<u32, i64> = HashMap::new();
    let (mut stretches, mut left) = (Vec::new(), 0);
    for (list, buffers) in [(cached, true), (asked, !known)] {
        let mut list: Vec<_> = list.into_iter().filter(|it| !it.is_sparse()).collect();
        list.sort_by(|one, other| {
            let by_heat = other.density().total_cmp(&one.density());
            by_heat.then_with(|| (&one.name, one.slice).cmp(&(&other.name, other.slice)))
        });
        for warm in list {
            let Some(&(relation, blocks)) = there.get(&warm.name) else { continue };
            let (first, last) = warm.at(blocks);
            let (size, before) = (last - first + 1, planned.entry(relation).or_default());
            if !buffers && *before >= blocks {
                continue;
            }
            let mode = if buffers && size <= room.buffers {
                room.buffers -= size;
                Mode::Buffer
            } else if size <= room.system {
                room.system -= size;
                Mode::Read
            } else {
                left += size;
                continue;
            };
            *before += size;
            stretches.push(Stretch { relation, first, last, mode });
        }
    }
    (stretches, left)
}

impl Warm {
    /// Blocks of the slice.
    fn size(&self) -> i64 {
        (self.blocks / self.slices).max(1)
    }

    fn is_sparse(&self) -> bool {
        self.cached * SPARSE < self.size()
    }

    #[allow(clippy::cast_precision_loss)] // An order, nothing else.
    fn density(&self) -> f64 {
        self.heat as f64 / self.size() as f64
    }

    /// The same slice of a relation of so many blocks: its first and its last block. What it shares with its neighbours belongs to it, too.
    fn at(&self, blocks: i64) -> (i64, i64) {
        let first = blocks * self.slice / self.slices;
        let end = (blocks * (self.slice + 1) + self.slices - 1) / self.slices;
        (first, end.max(first + 1) - 1)
    }
}

impl Stretch {
    fn blocks(&self) -> i64 {
        self.last - self.first + 1
    }
}

/// Cut so that none reads more than [`AT_ONCE`], and together for as long as they do not.
fn batches(stretches: &[Stretch]) -> Vec<Vec<Stretch>> {
    let pieces = stretches.iter().flat_map(|whole| {
        let starts = (whole.first..=whole.last).step_by(AT_ONCE as usize);
        starts.map(|first| Stretch { first, last: (first + AT_ONCE - 1).min(whole.last), ..*whole })
    });
    let (mut batches, mut size) = (Vec::<Vec<Stretch>>::new(), AT_ONCE);
    for piece in pieces {
        if size + piece.blocks() > AT_ONCE {
            batches.push(Vec::new());
            size = 0;
        }
        size += piece.blocks();
        batches.last_mut().expect("pushed above").push(piece);
    }
    batches
}

/// How many blocks were read: fewer where a relation was dropped or cut off meanwhile.
async fn read(client: &Client, reads: &Statement, batch: &[Stretch]) -> Result<i64, Error> {
    let modes: Vec<&str> = batch
        .iter()
        .map(|it| match it.mode {
            Mode::Buffer => "buffer",
            Mode::Read => "read",
        })
        .collect();
    let relations: Vec<u32> = batch.iter().map(|it| it.relation).collect();
    let firsts: Vec<i64> = batch.iter().map(|it| it.first).collect();
    let lasts: Vec<i64> = batch.iter().map(|it| it.last).collect();
    let answer = client.query_one(reads, &[&relations, &modes, &firsts, &lasts]).await;
    match answer.and_then(|row| row.try_get(0)) {
        Ok(blocks) => Ok(blocks),
        Err(error) if error.as_db_error().is_some() && !client.is_closed() => {
            tracing::debug!(%error, "a part of the cache is not filled");
            Ok(0)
        }
        Err(error) => Err(Error::database("cannot fill the cache")(error)),
    }
}

fn unread(error: tokio_postgres::Error) -> Error {
    Error::database("cannot read what is in memory")(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warm(name: &str, slice: (i64, i64), cached: i64, heat: i64, blocks: i64) -> Warm {
        let name = ("public".into(), name.into(), "main".into());
        Warm { name, slice: slice.0, slices: slice.1, cached, heat, blocks }
    }

    fn there(relations: &[(&str, u32, i64)]) -> HashMap<Name, (u32, i64)> {
        let named = |&(name, id, blocks): &(&str, u32, i64)| {
            (("public".into(), name.into(), "main".into()), (id, blocks))
        };
        relations.iter().map(named).collect()
    }

    fn shown(stretches: &[Stretch]) -> Vec<(u32, i64, i64, bool)> {
        stretches.iter().map(|it| (it.relation, it.first, it.last, it.mode == Mode::Buffer)).collect()
    }

    #[test]
    fn the_most_used_comes_first_and_what_has_no_room_goes_on_to_the_system() {
        let there = there(&[("cold", 1, 100), ("hot", 2, 60), ("huge", 3, 5_000), ("tail", 4, 1_000)]);
        let cached = vec![
            warm("cold", (0, 1), 100, 100, 100),
            warm("tail", (9, 10), 90, 400, 1_000),
            warm("tail", (3, 10), 9, 4_000, 1_000),
            warm("hot", (0, 1), 60, 600, 60),
            warm("gone", (0, 1), 60, 6_000, 60),
        ];
        let asked = vec![
            warm("hot", (0, 1), 60, 1_000, 60),
            warm("tail", (0, 1), 1_000, 900, 1_000),
            warm("huge", (0, 1), 5_000, 9, 5_000),
        ];
        let room = Room { buffers: 170, system: 1_200 };
        let (stretches, left) = plan(cached, asked.clone(), &there, room);
        let expected = [(2, 0, 59, true), (4, 900, 999, true), (1, 0, 99, false), (4, 0, 999, false)];
        assert_eq!((shown(&stretches), left), (expected.to_vec(), 5_000));

        // Where the source does not say what its buffers hold.
        let (stretches, left) = plan(Vec::new(), asked, &there, room);
        assert_eq!((shown(&stretches), left), (vec![(2, 0, 59, true), (4, 0, 999, false)], 5_000));
    }

    #[test]
    fn a_slice_is_the_same_part_of_a_longer_and_of_a_shorter_relation() {
        for (slice, of, blocks, expected) in [
            ((0, 1), 10, 10, (0, 9)),
            ((9, 10), 1_000, 1_000, (900, 999)),
            ((9, 10), 1_000, 55, (49, 54)),
            ((9, 10), 1_000, 100_000, (90_000, 99_999)),
            ((2, 4_096), 524_288, 1, (0, 0)),
            ((4_095, 4_096), 524_288, 3, (2, 2)),
        ] {
            assert_eq!(warm("t", slice, 1, 1, of).at(blocks), expected, "{slice:?} of {blocks}");
        }
    }

    #[test]
    fn no_statement_reads_more_than_its_share() {
        let stretch = |relation, first, last| Stretch { relation, first, last, mode: Mode::Read };
        let all = [stretch(1, 0, 9), stretch(2, 5, 5 + 2 * AT_ONCE), stretch(3, 7, 7)];
        let batches = batches(&all);
        let sizes: Vec<Vec<i64>> =
            batches.iter().map(|it| it.iter().map(Stretch::blocks).collect()).collect();
        assert_eq!(sizes, [vec![10], vec![AT_ONCE], vec![AT_ONCE], vec![1, 1]]);
        assert_eq!(
            (batches[1][0].last + 1, batches[2][0].last + 1),
            (batches[2][0].first, batches[3][0].first)
        );
    }
}
