//! Large objects: what a database keeps under numbers of its own (`lo_create`, Hibernate's `@Lob`, …), in pages of a table of the server's that
//! logical decoding does not carry and that takes no trigger.
//!
//! They are carried in passes. One reads, in one snapshot of the source, which objects were written by transactions from a *horizon* on: the oldest
//! transaction that ran when the pass before took its snapshot. Whatever that did not show is of such a transaction or of a subtransaction of
//! one, which has a higher number; a number that has gone round counts as new, so that too much is looked at and nothing is missed.
//! What was written is compared, object by object, and what differs is written. Without a horizon, everything is compared. The last pass is made while nobody
//! writes, under a fence ([`crate::fence::close`] tells what came since the one before), so that then nothing is missing.
//!
//! An object's number, pages, owner, rights and comment are what is carried; a comment that is taken away, which leaves no trace, by a digest of all that
//! each pass compares. On both sides the role must be allowed to read
//! `pg_largeobject` ([`crate::grants`]).
//!
//! Source: PostgreSQL documentation, "Large Objects", `pg_largeobject`, "System Columns"; `inv_api.c` (each `lo_truncate` writes a page).

mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use futures_util::TryStreamExt;
use serde::Deserialize;
use tokio_postgres::types::{Oid, ToSql, Type};
use tokio_postgres::{Client, Row};

use crate::beside::Sides;
use crate::clock;
use crate::copy::Pace;
use crate::error::Error;
use crate::fence::{refused, sql_generation};
use crate::verify::{Kind, TableDigest};

/// Objects that are compared at a time, and written in one transaction: each takes a lock.
const AT_ONCE: usize = 200;
/// Pages of which an object is not written anew for the sake of a few.
const MANY_PAGES: i64 = 128;

/// What a primary's database says of its large objects when nobody writes any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Left {
    /// How many there are.
    pub objects: u64,
    /// How many were written since the horizon that was asked for; none: nothing was asked for, or the role may not read them.
    pub written: Option<u64>,
}

impl Left {
    /// Nothing came since a pass that found this many objects.
    pub fn nothing_since(&self, objects: u64) -> bool {
        self.objects == objects && (objects == 0 || self.written == Some(0))
    }
}

/// What a snapshot of the source shows.
struct Seen {
    objects: u64,
    /// The oldest transaction that ran.
    horizon: u64,
    /// Objects that were written since the horizon that was asked for; none: nothing was asked for.
    written: Option<Vec<Oid>>,
    /// A digest of all comments.
    comments: String,
}

/// How far a pass is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Objects that were compared.
    pub compared: u64,
    /// Of so many.
    pub of: u64,
}

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Objects on the source, and so on the shadow.
    pub objects: u64,
    /// Where the next pass may begin.
    pub horizon: u64,
    /// Objects that were written or dropped on the shadow.
    pub changed: u64,
    /// How long it took to find what was written.
    pub looked: Duration,
}

/// Whether either side has large objects at all.
pub async fn any(source: &Client, shadow: &Client) -> Result<bool, Error> {
    let any = async |client: &Client| -> Result<bool, Error> {
        let row = client.query_one("SELECT EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata)", &[]);
        Ok(row.await.map_err(refused("look for large objects"))?.get(0))
    };
    let (here, there) = tokio::join!(any(source), any(shadow));
    Ok(here? || there?)
}

/// All large objects as if they were a table whose rows are objects and their pages; none: there are none, or the role may not read them.
pub(crate) async fn digest(client: &Client) -> Result<Option<TableDigest>, Error> {
    let readable = "SELECT pg_catalog.has_table_privilege('pg_catalog.pg_largeobject', 'SELECT') \
        AND EXISTS (SELECT FROM pg_catalog.pg_largeobject_metadata)";
    if !client.query_one(readable, &[]).await.map_err(refused(READ))?.get::<_, bool>(0) {
        return Ok(None);
    }
    let sql = "SELECT count(*), sum(pg_catalog.hashtextextended(part, 0)::numeric + 9223372036854775808)::text FROM ( \
          SELECT pg_catalog.concat_ws(' ', m.oid, pg_catalog.pg_get_userbyid(m.lomowner)) AS part FROM pg_catalog.pg_largeobject_metadata m \
          UNION ALL SELECT pg_catalog.concat_ws(' ', l.loid, l.pageno, pg_catalog.md5(l.data)) FROM pg_catalog.pg_largeobject l) p";
    let row = client.query_one(sql, &[]).await.map_err(refused(READ))?;
    let hash = row.get::<_, &str>(1).parse();
    let hash = hash.map_err(|_| Error::Protocol("the hash of the large objects cannot be read".into()))?;
    Ok(Some(TableDigest { table: "large objects".into(), rows: row.get::<_, i64>(0).cast_unsigned(), hash }))
}

/// Makes the shadow's large objects those of the source, as one snapshot shows them.
///
/// `tell` hears how far it is. What a pass that breaks has done stays; the next one begins where it did.
///
/// # Errors
/// [`Error::Fenced`] where the shadow is none of this generation (any more); [`Error::Unready`] where the role may not read
/// `pg_largeobject` or the servers' pages are of different sizes; what the servers say.
pub async fn carry(sides: Sides<'_>, pace: &mut Pace, tell: impl Fn(Progress)) -> Result<Carried, Error> {
    ended(sides, async {
        let since = horizon(sides).await?;
        pass(sides, since, Compare::All, pace, tell).await
    })
    .await
}

/// The same in few round trips, where nobody writes on the source any more: exact then. `since`: the horizon of the pass before, of the same
/// generation.
///
/// # Errors
/// As [`carry`].
pub async fn settle(sides: Sides<'_>, since: u64) -> Result<Carried, Error> {
    let mut pace = Pace::new(None);
    ended(sides, pass(sides, Some(since), Compare::Large, &mut pace, |_| ())).await
}

/// No session is left within a transaction.
async fn ended(
    sides: Sides<'_>,
    pass: impl Future<Output = Result<Carried, Error>>,
) -> Result<Carried, Error> {
    let done = pass.await;
    if done.is_err() {
        // The failure itself is what is told.
        let _ = tokio::join!(sides.source.batch_execute("ROLLBACK"), sides.shadow.batch_execute("ROLLBACK"));
    }
    done
}

/// What is compared before it is written.
#[derive(Clone, Copy, Debug)]
enum Compare {
    All,
    /// Objects of many pages only: the others are written anew.
    Large,
}

const READ: &str = "read large objects";
/// A digest of all comments, as an expression: an object whose comment was taken away does not look as if it was written.
const COMMENTS: &str = "(SELECT pg_catalog.concat_ws(' ', count(*), sum(pg_catalog.hashtextextended( \
    pg_catalog.concat_ws(' ', d.objoid, d.description), 0)::numeric)) \
    FROM pg_catalog.pg_description d WHERE d.classoid = 'pg_catalog.pg_largeobject'::pg_catalog.regclass)";

/// From which transaction of the source on something may be missing on the shadow; none: anything may.
async fn horizon(sides: Sides<'_>) -> Result<Option<u64>, Error> {
    let generation = sql_generation(sides.generation)?;
    // An old primary is the shadow since its fence, when both had the same.
    let there = "SELECT (SELECT l.horizon FROM godwit.large_objects l WHERE l.resource = $1 AND l.generation = $2), \
        EXISTS (SELECT FROM godwit.epoch e WHERE e.resource = $1 AND e.generation = $2 AND e.fenced AND e.marker_lsn IS NOT NULL), \
        pg_catalog.current_setting('block_size')";
    let here = "SELECT (SELECT l.own FROM godwit.large_objects l WHERE l.resource = $1 AND l.generation = $2), \
        pg_catalog.current_setting('block_size')";
    let of: [&(dyn ToSql + Sync); 2] = [&sides.resource, &generation];
    let (there, here) = tokio::join!(sides.shadow.query_one(there, &of), sides.source.query_one(here, &of));
    let (there, here) = (there.map_err(refused(READ))?, here.map_err(refused(READ))?);
    let (page, other): (&str, &str) = (here.get(1), there.get(2));
    if page != other {
        return Err(Error::Unready(format!(
            "large objects cannot be carried: the servers' blocks are of {page} and of {other} bytes"
        )));
    }
    let own = here.get::<_, Option<i64>>(0).filter(|_| there.get(1));
    Ok(there.get::<_, Option<i64>>(0).or(own).map(i64::cast_unsigned))
}

async fn seen(client: &Client, since: Option<u64>) -> Result<Seen, Error> {
    let sql =
        format!("SELECT objects, horizon, readable, written, {COMMENTS} FROM godwit.large_objects_since($1)");
    let since = since.map(u64::cast_signed);
    let since: [(&(dyn ToSql + Sync), _); 1] = [(&since, Type::INT8)];
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
    let (begun, row) = tokio::join!(client.batch_execute(begin), client.query_typed_one(&sql, &since));
    begun.map_err(refused(READ))?;
    let row = row.map_err(refused(READ))?;
    let [objects, horizon] = [0, 1].map(|at| row.get::<_, i64>(at).cast_unsigned());
    if objects > 0 && !row.get::<_, bool>(2) {
        return Err(Error::Unready(format!(
            "there are {objects} large objects, and the role may not read pg_largeobject"
        )));
    }
    Ok(Seen { objects, horizon, written: row.get(3), comments: row.get(4) })
}

async fn pass(
    sides: Sides<'_>,
    since: Option<u64>,
    compare: Compare,
    pace: &mut Pace,
    tell: impl Fn(Progress),
) -> Result<Carried, Error> {
    let begun = clock::now();
    let seen = seen(sides.source, since).await?;
    let looked = clock::now().saturating_duration_since(begun);
    let mut changed = 0;
    match &seen.written {
        Some(written) => {
            let mut progress = Progress { compared: 0, of: written.len() as u64 };
            for some in written.chunks(AT_ONCE) {
                tell(progress);
                changed += alike(sides, some, &[], compare, pace).await?;
                progress.compared += some.len() as u64;
            }
            // Nothing was written: the horizon that is written down does as well.
            let note = (progress.of > 0).then_some(seen.horizon);
            // The shadow has all of the source's by now: where it has as many, it has no others.
            let (objects, comments) = write::note(sides, note).await?;
            if objects != seen.objects {
                changed += by_number(sides, pace).await?;
            }
            if comments != seen.comments {
                changed += by_comment(sides, pace).await?;
            }
        }
        None => {
            let mut progress = Progress { compared: 0, of: seen.objects };
            let mut after: i64 = 0;
            loop {
                tell(progress);
                let (these, upto) = next_numbers(sides.source, after).await?;
                let others = numbers(sides.shadow, after, upto).await?;
                let extra: Vec<Oid> =
                    others.into_iter().filter(|number| these.binary_search(number).is_err()).collect();
                changed += alike(sides, &these, &extra, compare, pace).await?;
                progress.compared += these.len() as u64;
                match upto {
                    Some(upto) => after = upto,
                    None => break,
                }
            }
            write::note(sides, Some(seen.horizon)).await?;
        }
    }
    sides.source.batch_execute("COMMIT").await.map_err(refused(READ))?;
    Ok(Carried { objects: seen.objects, horizon: seen.horizon, changed, looked })
}

/// The next numbers after `after`, sorted, and up to where no other is; none: there are no more.
async fn next_numbers(client: &Client, after: i64) -> Result<(Vec<Oid>, Option<i64>), Error> {
    let sql = format!(
        "SELECT oid FROM pg_catalog.pg_largeobject_metadata WHERE oid > $1::bigint::oid ORDER BY oid LIMIT {AT_ONCE}"
    );
    let rows = client.query(&sql, &[&after]).await.map_err(refused(READ))?;
    let these: Vec<Oid> = rows.iter().map(|row| row.get(0)).collect();
    let upto = these.last().filter(|_| these.len() == AT_ONCE).map(|last| i64::from(*last));
    Ok((these, upto))
}

/// The numbers after `after`, sorted, up to `upto` where that is given.
async fn numbers(client: &Client, after: i64, upto: Option<i64>) -> Result<Vec<Oid>, Error> {
    let sql = "SELECT oid FROM pg_catalog.pg_largeobject_metadata WHERE oid > $1::bigint::oid AND oid <= $2::bigint::oid ORDER BY oid";
    let upto = upto.unwrap_or(i64::from(Oid::MAX));
    let rows = client.query(sql, &[&after, &upto]).await.map_err(refused(READ))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Drops what only the shadow has; and makes what it lacks, whoever dropped that there.
async fn by_number(sides: Sides<'_>, pace: &mut Pace) -> Result<u64, Error> {
    let (here, there) = (numbers(sides.source, 0, None).await?, numbers(sides.shadow, 0, None).await?);
    let less = |these: &[Oid], others: &[Oid]| -> Vec<Oid> {
        these.iter().copied().filter(|number| others.binary_search(number).is_err()).collect()
    };
    let (missing, extra) = (less(&here, &there), less(&there, &here));
    let mut changed = 0;
    for some in extra.chunks(AT_ONCE) {
        changed += alike(sides, &[], some, Compare::All, pace).await?;
    }
    for some in missing.chunks(AT_ONCE) {
        changed += alike(sides, some, &[], Compare::All, pace).await?;
    }
    Ok(changed)
}

/// Makes alike what has another comment.
async fn by_comment(sides: Sides<'_>, pace: &mut Pace) -> Result<u64, Error> {
    let comments = async |client: &Client| -> Result<BTreeSet<(Oid, String)>, Error> {
        let sql = "SELECT objoid, pg_catalog.md5(description) FROM pg_catalog.pg_description \
            WHERE classoid = 'pg_catalog.pg_largeobject'::pg_catalog.regclass";
        let rows = client.query(sql, &[]).await.map_err(refused(READ))?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    };
    let (here, there) = tokio::join!(comments(sides.source), comments(sides.shadow));
    let (here, there) = (here?, there?);
    let differ: BTreeSet<Oid> = here.symmetric_difference(&there).map(|(number, _)| *number).collect();
    let differ: Vec<Oid> = differ.into_iter().collect();
    let mut changed = 0;
    for some in differ.chunks(AT_ONCE) {
        changed += alike(sides, some, &[], Compare::All, pace).await?;
    }
    Ok(changed)
}

/// An object as it is on one side.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Object {
    owner: String,
    /// `[[grantee or null: everybody, privilege, grantable], …]`, sorted.
    rights: String,
    comment: Option<String>,
    pages: i64,
    /// Of its pages; none: it has none.
    digest: Option<String>,
}

impl Object {
    fn same_pages(&self, other: &Self) -> bool {
        self.pages == other.pages && self.digest == other.digest
    }
}

async fn objects(client: &Client, which: &[Oid]) -> Result<BTreeMap<Oid, Object>, Error> {
    let sql = format!("{} WHERE m.oid = ANY ($1)", include_str!("objects.sql"));
    let rows = client.query_typed(&sql, &[(&which, Type::OID_ARRAY)]).await.map_err(refused(READ))?;
    let object = |row: Row| {
        let object = Object {
            owner: row.get(1),
            rights: row.get(2),
            comment: row.get(3),
            pages: row.get(4),
            digest: row.get(5),
        };
        (row.get(0), object)
    };
    Ok(rows.into_iter().map(object).collect())
}

/// Which objects, of these or of all, are not the same on both sides now: either side may just be written. At most the share `duty` of the time is
/// spent on it.
///
/// # Errors
/// What the servers say; also where the role may not read `pg_largeobject`.
pub async fn differing(
    source: &Client,
    shadow: &Client,
    only: Option<&[Oid]>,
    duty: f64,
) -> Result<Vec<(Oid, Kind)>, Error> {
    let mut found = Vec::new();
    let all;
    let only = if let Some(only) = only {
        only
    } else {
        let (here, there) = (numbers(source, 0, None).await?, numbers(shadow, 0, None).await?);
        let both: BTreeSet<Oid> = here.into_iter().chain(there).collect();
        all = both.into_iter().collect::<Vec<_>>();
        &all
    };
    for some in only.chunks(AT_ONCE) {
        let begun = clock::now();
        let (here, there) = tokio::join!(objects(source, some), objects(shadow, some));
        let (here, there) = (here?, there?);
        found.extend(some.iter().filter_map(|number| match (here.get(number), there.get(number)) {
            (Some(_), None) => Some((*number, Kind::Missing)),
            (None, Some(_)) => Some((*number, Kind::Extra)),
            (one, other) if one != other => Some((*number, Kind::Changed)),
            _ => None,
        }));
        let took = clock::now().saturating_duration_since(begun);
        tokio::time::sleep(took.mul_f64((1.0 / duty.clamp(0.01, 1.0)) - 1.0)).await;
    }
    Ok(found)
}

/// Makes these objects on the shadow as they are on the source, and drops `extra`; how many were touched.
async fn alike(
    sides: Sides<'_>,
    these: &[Oid],
    extra: &[Oid],
    compare: Compare,
    pace: &mut Pace,
) -> Result<u64, Error> {
    let (here, mut there) = match compare {
        Compare::All => {
            let (here, there) = tokio::join!(objects(sides.source, these), objects(sides.shadow, these));
            (here?, there?)
        }
        Compare::Large => {
            let here = objects(sides.source, these).await?;
            let large = here.iter().filter(|(_, object)| object.pages > MANY_PAGES);
            let large: Vec<Oid> = large.map(|(number, _)| *number).collect();
            let there =
                if large.is_empty() { BTreeMap::new() } else { objects(sides.shadow, &large).await? };
            (here, there)
        }
    };
    let mut plan = write::Plan { drop: extra.to_vec(), ..write::Plan::default() };
    for (number, object) in here {
        let mut other = there.remove(&number);
        if other.as_ref() == Some(&object) {
            continue;
        }
        let stale = match &other {
            Some(other) if other.same_pages(&object) => Some(Vec::new()),
            Some(other) if other.pages > MANY_PAGES && write::may_write(other)? => {
                stale_pages(sides, number).await?
            }
            _ => None,
        };
        match stale {
            Some(pages) if pages.is_empty() => {}
            Some(pages) => plan.pages.push((number, pages)),
            None => {
                other = None;
                plan.make.push(number);
            }
        }
        plan.around.push((number, object, other));
    }
    write::carry_out(sides, &plan, pace).await
}

/// The pages of an object that differ; none: it is to be written anew, since the shadow's has pages that it has not, or longer ones, or one is
/// empty.
async fn stale_pages(sides: Sides<'_>, number: Oid) -> Result<Option<Vec<i32>>, Error> {
    let pages = async |client: &Client| -> Result<BTreeMap<i32, (i32, String)>, Error> {
        let sql = "SELECT pageno, octet_length(data), pg_catalog.md5(data) FROM pg_catalog.pg_largeobject WHERE loid = $1";
        let rows = client.query_raw(sql, [&number]).await.map_err(refused(READ))?;
        let mut rows = pin!(rows);
        let mut pages = BTreeMap::new();
        while let Some(row) = rows.try_next().await.map_err(refused(READ))? {
            pages.insert(row.get(0), (row.get(1), row.get(2)));
        }
        Ok(pages)
    };
    let (here, there) = tokio::join!(pages(sides.source), pages(sides.shadow));
    let (here, mut there) = (here?, there?);
    let mut stale = Vec::new();
    for (page, (length, digest)) in here {
        match there.remove(&page) {
            Some((other, _)) if other > length => return Ok(None),
            Some((_, same)) if same == digest => {}
            _ if length == 0 => return Ok(None),
            _ => stale.push(page),
        }
    }
    Ok(Some(stale).filter(|_| there.is_empty()))
}
