//! What is written of large objects on the shadow.

use std::collections::BTreeSet;
use std::pin::pin;

use futures_util::TryStreamExt;
use tokio_postgres::types::{Oid, ToSql};

use super::{Object, READ, Sides};
use crate::clock;
use crate::copy::Pace;
use crate::error::Error;
use crate::fence::{literal, refused, rows, sql_generation};
use crate::postgres::{quote_ident, quote_literal};

const WRITE: &str = "write large objects";

/// Bytes that one statement writes.
const AT_ONCE: usize = 1 << 20;
/// Bytes that one `lo_put` writes, if they stand beside each other.
const IN_ONE: usize = 256 << 10;

/// What is to be done with some objects of the shadow's.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Only the shadow has them, or they are made anew.
    pub drop: Vec<Oid>,
    /// Made, and all of their pages written.
    pub make: Vec<Oid>,
    /// Only these pages are written.
    pub pages: Vec<(Oid, Vec<i32>)>,
    /// Owner, rights and comment: what they should be, and what they were.
    pub around: Vec<(Oid, Object, Option<Object>)>,
}

impl Plan {
    /// Writes all of it.
    pub(super) fn anew(&mut self, number: Oid, there: bool) {
        if there {
            self.drop.push(number);
        }
        self.make.push(number);
    }
}

/// In one transaction of the shadow's; how many objects it touched.
pub(super) async fn carry_out(sides: Sides<'_>, plan: &Plan, pace: &mut Pace) -> Result<u64, Error> {
    let made: BTreeSet<Oid> = plan.make.iter().copied().collect();
    let dropped = plan.drop.iter().filter(|number| !made.contains(number)).count();
    let touched = (dropped + plan.around.len()) as u64;
    if touched == 0 {
        return Ok(0);
    }
    begin(sides).await?;
    let failed = |error| refused(WRITE)(error);
    let each = [
        ("SELECT count(pg_catalog.lo_unlink(number)) FROM unnest($1::oid[]) AS o (number)", &plan.drop),
        ("SELECT count(pg_catalog.lo_create(number)) FROM unnest($1::oid[]) AS o (number)", &plan.make),
    ];
    for (sql, which) in each {
        if !which.is_empty() {
            sides.shadow.execute(sql, &[which]).await.map_err(failed)?;
        }
    }
    // Asked before: nothing else can be asked of a session while rows come from it.
    let page_size =
        sides.source.query_one("SELECT pg_catalog.current_setting('block_size')::bigint / 4", &[]);
    let page_size: i64 = page_size.await.map_err(refused(READ))?.get(0);
    if !plan.make.is_empty() {
        let whole = "SELECT loid, pageno, data FROM pg_catalog.pg_largeobject WHERE loid = ANY ($1) ORDER BY loid, pageno";
        let pages = sides.source.query_raw(whole, [&plan.make]).await.map_err(refused(READ))?;
        put(sides, pages, page_size, pace).await?;
    }
    for (number, stale) in &plan.pages {
        let some = "SELECT l.loid, l.pageno, l.data FROM unnest($2::int[]) AS p (page) \
            JOIN pg_catalog.pg_largeobject l ON l.loid = $1 AND l.pageno = p.page ORDER BY l.pageno";
        let parameters: [&(dyn ToSql + Sync); 2] = [number, stale];
        let pages = sides.source.query_raw(some, parameters).await.map_err(refused(READ))?;
        put(sides, pages, page_size, pace).await?;
    }
    let mut around = String::new();
    for (number, object, other) in &plan.around {
        // One that is made anew is the role's, with what rights that comes with.
        let other = other.as_ref().filter(|_| !made.contains(number));
        around.push_str(&around_sql(*number, object, other)?);
    }
    sides.shadow.batch_execute(&around).await.map_err(failed)?;
    sides.shadow.batch_execute("COMMIT").await.map_err(failed)?;
    Ok(touched)
}

/// Writes down what the shadow has: all that a snapshot with this horizon showed.
pub(super) async fn note(sides: Sides<'_>, horizon: u64) -> Result<(), Error> {
    begin(sides).await?;
    let generation = sql_generation(sides.generation)?;
    // Whatever writes here later has a higher number.
    let sql = "INSERT INTO godwit.large_objects AS l (resource, generation, horizon, own) \
        VALUES ($1, $2, $3, pg_catalog.pg_current_xact_id()::text::bigint + 1) ON CONFLICT (resource) DO UPDATE \
        SET generation = EXCLUDED.generation, horizon = EXCLUDED.horizon, own = EXCLUDED.own";
    let failed = |error| refused(WRITE)(error);
    sides
        .shadow
        .execute(sql, &[&sides.resource, &generation, &horizon.cast_signed()])
        .await
        .map_err(failed)?;
    sides.shadow.batch_execute("COMMIT").await.map_err(failed)
}

/// Begins a transaction, in which the database is the shadow of this generation until it ends.
async fn begin(sides: Sides<'_>) -> Result<(), Error> {
    let sql = format!(
        "BEGIN; SET LOCAL synchronous_commit = local; \
         SELECT true FROM godwit.epoch WHERE resource = {} AND generation = {} AND fenced FOR SHARE",
        literal(sides.resource),
        sql_generation(sides.generation)?
    );
    let found = rows(sides.shadow.simple_query(&sql).await.map_err(refused(WRITE))?);
    if found.is_empty() {
        return Err(Error::Fenced(format!(
            "large objects are not written: the database is not the shadow of generation {}",
            sides.generation
        )));
    }
    Ok(())
}

/// Pieces of objects that one statement writes.
#[derive(Default)]
struct Pieces {
    numbers: Vec<Oid>,
    places: Vec<i64>,
    data: Vec<Vec<u8>>,
    bytes: usize,
}

impl Pieces {
    fn add(&mut self, number: Oid, place: i64, data: &[u8]) {
        self.bytes += data.len();
        if let (Some(of), Some(from), Some(piece)) =
            (self.numbers.last(), self.places.last(), self.data.last_mut())
            && *of == number
            && from + piece.len() as i64 == place
            && piece.len() < IN_ONE
        {
            piece.extend_from_slice(data);
            return;
        }
        self.numbers.push(number);
        self.places.push(place);
        self.data.push(data.to_vec());
    }

    async fn write(&mut self, sides: Sides<'_>) -> Result<(), Error> {
        let sql = "SELECT count(*) FROM (SELECT pg_catalog.lo_put(number, place, data) \
            FROM unnest($1::oid[], $2::bigint[], $3::bytea[]) AS p (number, place, data) OFFSET 0) put";
        let parameters: [&(dyn ToSql + Sync); 3] = [&self.numbers, &self.places, &self.data];
        sides.shadow.execute(sql, &parameters).await.map_err(refused(WRITE))?;
        *self = Self::default();
        Ok(())
    }
}

/// Writes pages, which come by object and number.
async fn put(
    sides: Sides<'_>,
    pages: tokio_postgres::RowStream,
    page_size: i64,
    pace: &mut Pace,
) -> Result<(), Error> {
    let (mut pages, mut pieces) = (pin!(pages), Pieces::default());
    while let Some(page) = pages.try_next().await.map_err(refused(READ))? {
        let (number, place, data): (Oid, i32, &[u8]) = (page.get(0), page.get(1), page.get(2));
        pieces.add(number, i64::from(place) * page_size, data);
        if pieces.bytes >= AT_ONCE {
            tokio::time::sleep(pace.take(pieces.bytes as u64, clock::now())).await;
            pieces.write(sides).await?;
        }
    }
    if pieces.bytes > 0 {
        tokio::time::sleep(pace.take(pieces.bytes as u64, clock::now())).await;
        pieces.write(sides).await?;
    }
    Ok(())
}

/// Who may do what: of everybody where there is no name.
type Right = (Option<String>, String, bool);

fn rights(object: &Object) -> Result<Vec<Right>, Error> {
    serde_json::from_str(&object.rights)
        .map_err(|error| Error::Protocol(format!("the rights of a large object cannot be read: {error}")))
}

/// Whether its owner may write it, and so the role that is a member of the owner: that can be taken from an owner.
pub(super) fn may_write(object: &Object) -> Result<bool, Error> {
    let owner = Some(&object.owner);
    Ok(rights(object)?.iter().any(|(grantee, right, _)| grantee.as_ref() == owner && right == "UPDATE"))
}

/// Gives an object its owner, rights and comment. `other`: what it is now; none: as it was made.
fn around_sql(number: Oid, object: &Object, other: Option<&Object>) -> Result<String, Error> {
    use std::fmt::Write as _;

    let mut sql = String::new();
    let owner = quote_ident(&object.owner);
    if other.is_none_or(|other| other.owner != object.owner) {
        let _ = writeln!(sql, "ALTER LARGE OBJECT {number} OWNER TO {owner};");
    }
    let wanted = rights(object)?;
    let given = match other {
        // They go with the ownership.
        None => ["SELECT", "UPDATE"].map(|right| (Some(object.owner.clone()), right.into(), false)).into(),
        Some(other) => rights(other)?,
    };
    if wanted != given {
        let who =
            |grantee: &Option<String>| grantee.as_ref().map_or("PUBLIC".into(), |role| quote_ident(role));
        let mut had: BTreeSet<String> = given.iter().map(|(grantee, ..)| who(grantee)).collect();
        had.insert(owner);
        for grantee in had {
            let _ = writeln!(sql, "REVOKE ALL ON LARGE OBJECT {number} FROM {grantee} CASCADE;");
        }
        for (grantee, right, grantable) in &wanted {
            let grantable = if *grantable { " WITH GRANT OPTION" } else { "" };
            let _ = writeln!(sql, "GRANT {right} ON LARGE OBJECT {number} TO {}{grantable};", who(grantee));
        }
    }
    if other.and_then(|other| other.comment.as_ref()) != object.comment.as_ref() {
        let comment = object.comment.as_deref().map_or("NULL".into(), quote_literal);
        let _ = writeln!(sql, "COMMENT ON LARGE OBJECT {number} IS {comment};");
    }
    Ok(sql)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(owner: &str, rights: &str, comment: Option<&str>) -> Object {
        let (owner, rights) = (owner.into(), rights.into());
        Object { owner, rights, comment: comment.map(Into::into), pages: 0, digest: None }
    }

    #[test]
    fn pages_that_stand_beside_each_other_are_one_piece() {
        let mut pieces = Pieces::default();
        for (number, place, length) in [(7, 0, 2048), (7, 2048, 2048), (7, 8192, 10), (9, 8202, 5)] {
            pieces.add(number, place, &vec![1; length]);
        }
        let lengths: Vec<usize> = pieces.data.iter().map(Vec::len).collect();
        assert_eq!(
            (pieces.numbers, pieces.places, lengths),
            (vec![7, 7, 9], vec![0, 8192, 8202], vec![4096, 10, 5])
        );
        assert_eq!(pieces.bytes, 4111);
    }

    #[test]
    fn what_is_as_it_should_be_is_left() {
        let usual = r#"[["o'w", "SELECT", false], ["o'w", "UPDATE", false]]"#;
        let made = object("o'w", usual, None);
        assert_eq!(around_sql(7, &made, None).expect("readable"), "ALTER LARGE OBJECT 7 OWNER TO \"o'w\";\n");
        assert_eq!(around_sql(7, &made, Some(&made)).expect("readable"), "");
    }

    #[test]
    fn rights_and_comments_are_exactly_what_they_were() {
        let usual = r#"[["a", "SELECT", false], ["a", "UPDATE", false]]"#;
        let wanted = r#"[[null, "SELECT", false], ["b", "UPDATE", true]]"#;
        let sql = around_sql(7, &object("a", wanted, Some("it's")), Some(&object("a", usual, None)));
        assert_eq!(
            sql.expect("readable"),
            "REVOKE ALL ON LARGE OBJECT 7 FROM \"a\" CASCADE;\n\
             GRANT SELECT ON LARGE OBJECT 7 TO PUBLIC;\n\
             GRANT UPDATE ON LARGE OBJECT 7 TO \"b\" WITH GRANT OPTION;\n\
             COMMENT ON LARGE OBJECT 7 IS 'it''s';\n"
        );
        let sql = around_sql(7, &object("a", usual, None), Some(&object("a", wanted, Some("it's"))));
        assert!(sql.expect("readable").ends_with("COMMENT ON LARGE OBJECT 7 IS NULL;\n"));
        assert!(around_sql(7, &object("a", "{}", None), None).is_err());
    }
}
