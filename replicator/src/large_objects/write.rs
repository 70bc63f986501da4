//! What is written of large objects on the shadow.

use std::collections::BTreeSet;
use std::pin::pin;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::TryStreamExt;
use tokio_postgres::types::{Oid, ToSql, Type};

use super::{COMMENTS, Object, READ};
use crate::beside::Sides;
use crate::clock;
use crate::copy::Pace;
use crate::error::Error;
use crate::fence::{literal, refused, rows, sql_generation};
use crate::postgres::{quote_ident, quote_literal};

const WRITE: &str = "write large objects";
/// `INV_WRITE` of `libpq/libpq-fs.h`.
const INV_WRITE: i32 = 0x20000;

/// Bytes that are sent together.
const AT_ONCE: usize = 1 << 20;
/// Bytes that one `lo_put` writes, if they stand beside each other.
const IN_ONE: usize = 256 << 10;

/// What is to be done with some objects of the shadow's.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Only the shadow has them.
    pub drop: Vec<Oid>,
    /// Made, whether they are there or not, and all of their pages written.
    pub make: Vec<Oid>,
    /// Only these pages are written.
    pub pages: Vec<(Oid, Vec<i32>)>,
    /// Owner, rights and comment: what they should be, and what they are; none: what they are made with.
    pub around: Vec<(Oid, Object, Option<Object>)>,
}

/// In one transaction of the shadow's; how many objects it touched.
pub(super) async fn carry_out(sides: Sides<'_>, plan: &Plan, pace: &mut Pace) -> Result<u64, Error> {
    let touched = (plan.drop.len() + plan.around.len()) as u64;
    if touched == 0 {
        return Ok(0);
    }
    let mut batch = Batch { sides, sql: begin_sql(sides)?, bytes: 0, pace };
    let listed = |numbers: &[Oid]| numbers.iter().map(Oid::to_string).collect::<Vec<_>>().join(",");
    let gone = [&plan.drop[..], &plan.make[..]].concat();
    if !gone.is_empty() {
        let (gone, made) = (listed(&gone), listed(&plan.make));
        batch.sql.push_str(&format!(
            "SELECT count(pg_catalog.lo_unlink(oid)) FROM pg_catalog.pg_largeobject_metadata WHERE oid IN ({gone});\n\
             SELECT count(pg_catalog.lo_create(number)) FROM unnest('{{{made}}}'::oid[]) AS o (number);\n"
        ));
    }
    if !plan.make.is_empty() {
        let whole = "SELECT loid, pageno, data, pg_catalog.current_setting('block_size')::bigint / 4 \
            FROM pg_catalog.pg_largeobject WHERE loid = ANY ($1) ORDER BY loid, pageno";
        let which: (&(dyn ToSql + Sync), _) = (&plan.make, Type::OID_ARRAY);
        batch.put(sides.source.query_typed_raw(whole, [which]).await.map_err(refused(READ))?).await?;
    }
    for (number, stale) in &plan.pages {
        let some = "SELECT l.loid, l.pageno, l.data, pg_catalog.current_setting('block_size')::bigint / 4 \
            FROM unnest($2::int[]) AS p (page) \
            JOIN pg_catalog.pg_largeobject l ON l.loid = $1 AND l.pageno = p.page ORDER BY l.pageno";
        let which: [(&(dyn ToSql + Sync), _); 2] = [(number, Type::OID), (stale, Type::INT4_ARRAY)];
        batch.put(sides.source.query_typed_raw(some, which).await.map_err(refused(READ))?).await?;
    }
    for (number, object, other) in &plan.around {
        batch.sql.push_str(&around_sql(*number, object, other.as_ref())?);
    }
    batch.sql.push_str("COMMIT");
    batch.send().await?;
    Ok(touched)
}

/// Writes down what the shadow has: all that a snapshot with this horizon showed, if there is one. How many objects it has, and a digest of
/// their comments.
pub(super) async fn note(sides: Sides<'_>, horizon: Option<u64>) -> Result<(u64, String), Error> {
    let mut sql = String::new();
    if let Some(horizon) = horizon {
        // Whatever writes here later has a higher number.
        sql = format!(
            "{} INSERT INTO godwit.large_objects AS l (resource, generation, horizon, own) \
             VALUES ({}, {}, {horizon}, pg_catalog.pg_current_xact_id()::text::bigint + 1) ON CONFLICT (resource) DO UPDATE \
             SET generation = EXCLUDED.generation, horizon = EXCLUDED.horizon, own = EXCLUDED.own; COMMIT; ",
            begin_sql(sides)?,
            literal(sides.resource),
            sql_generation(sides.generation)?
        );
    }
    sql.push_str(&format!("SELECT count(*), {COMMENTS} FROM pg_catalog.pg_largeobject_metadata"));
    let found = rows(sides.shadow.simple_query(&sql).await.map_err(refused(WRITE))?);
    let told = found.last().and_then(|row| Some((row.get(0)?.parse().ok()?, row.get(1)?.to_owned())));
    told.ok_or_else(|| Error::Protocol("the server does not count its large objects".into()))
}

/// Begins a transaction, in which the database is the shadow of this generation until it ends; or fails, if it is not.
fn begin_sql(sides: Sides<'_>) -> Result<String, Error> {
    Ok(format!("BEGIN; {}", sides.guard_sql()?))
}

/// Statements that are sent together.
struct Batch<'a> {
    sides: Sides<'a>,
    sql: String,
    /// Of objects in it.
    bytes: usize,
    pace: &'a mut Pace,
}

impl Batch<'_> {
    async fn send(&mut self) -> Result<(), Error> {
        tokio::time::sleep(self.pace.take(self.bytes as u64, clock::now())).await;
        let sql = std::mem::take(&mut self.sql);
        self.bytes = 0;
        self.sides.shadow.batch_execute(&sql).await.map_err(refused(WRITE))
    }

    /// Writes pages, which come by object and number, with how long one is.
    async fn put(&mut self, pages: tokio_postgres::RowStream) -> Result<(), Error> {
        let (mut pages, mut piece) = (pin!(pages), Piece::default());
        while let Some(page) = pages.try_next().await.map_err(refused(READ))? {
            let (place, data, size): (i32, &[u8], i64) = (page.get(1), page.get(2), page.get(3));
            let next = Piece {
                number: page.get(0),
                place: u64::from(place.unsigned_abs()) * size.unsigned_abs(),
                data: data.to_vec(),
            };
            self.bytes += data.len();
            if let Some(whole) = piece.join(next) {
                self.sql.push_str(&whole.sql());
            }
            if self.sql.len() >= AT_ONCE {
                self.send().await?;
            }
        }
        self.sql.push_str(&piece.sql());
        Ok(())
    }
}

/// Bytes of an object that stand beside each other.
#[derive(Debug, Default, PartialEq, Eq)]
struct Piece {
    number: Oid,
    place: u64,
    data: Vec<u8>,
}

impl Piece {
    /// Takes `next` in, or becomes it; then what it was before is whole.
    fn join(&mut self, next: Self) -> Option<Self> {
        let beside = self.number == next.number
            && !self.data.is_empty()
            && !next.data.is_empty()
            && self.place + self.data.len() as u64 == next.place
            && self.data.len() < IN_ONE;
        if beside {
            self.data.extend_from_slice(&next.data);
            return None;
        }
        Some(std::mem::replace(self, next))
    }

    fn sql(&self) -> String {
        let Self { number, place, data } = self;
        if *number == 0 {
            return String::new();
        }
        if data.is_empty() {
            // A page without bytes, as truncating leaves it. What comes after it is written later.
            return format!(
                "SELECT pg_catalog.lo_truncate64(pg_catalog.lo_open({number}, {INV_WRITE}), {place});\n"
            );
        }
        let data = BASE64.encode(data);
        format!("SELECT pg_catalog.lo_put({number}, {place}, pg_catalog.decode('{data}', 'base64'));\n")
    }
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
        let (mut piece, mut whole) = (Piece::default(), Vec::new());
        for (number, place, length) in
            [(7, 0, 2048), (7, 2048, 2048), (7, 4096, 0), (7, 8192, 10), (9, 8202, 5)]
        {
            whole.extend(piece.join(Piece { number, place, data: vec![1; length] }));
        }
        whole.push(piece);
        let told: Vec<_> = whole.iter().map(|piece| (piece.number, piece.place, piece.data.len())).collect();
        assert_eq!(told, [(0, 0, 0), (7, 0, 4096), (7, 4096, 0), (7, 8192, 10), (9, 8202, 5)]);
        assert_eq!(whole[0].sql(), "");
        assert_eq!(whole[2].sql(), "SELECT pg_catalog.lo_truncate64(pg_catalog.lo_open(7, 131072), 4096);\n");
        assert_eq!(
            whole[4].sql(),
            "SELECT pg_catalog.lo_put(9, 8202, pg_catalog.decode('AQEBAQE=', 'base64'));\n"
        );
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
