//! A shadow takes over from a primary that is lost: with what it has, and nothing of the lost one after that.
//!
//! What had not reached it is not there. Its rows are those of one point of the primary's history (of each lane, where there are two): the
//! applier writes whole transactions in the order of their commits. Sequences are in no stream: they follow beside it
//! ([`follow_sequences`]), and are put ahead of what the rows show and of what may have been drawn since ([`advance_sequences`]).

use std::collections::HashSet;

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::beside::Sides;
use crate::drift::fill;
use crate::error::Error;
use crate::fence::{refused, sql_generation};
use crate::lsn::Lsn;
use crate::sequences::{self, SequenceState};

/// How many numbers a sequence skips when its shadow takes over: more than are drawn between two looks at it, and while the last
/// commits were on their way.
pub const SKIPPED: i64 = 10_000;

/// Tables of the shadow's, as `schema.table`, whose rows are still being copied.
///
/// # Errors
/// [`Error::Database`].
pub async fn unfilled(shadow: &Client) -> Result<Vec<String>, Error> {
    fill::unfilled(shadow).await
}

/// Ends what applies these streams here, for good: sessions of theirs end, and any that come later are refused. How far the first has
/// applied; none: it has no checkpoint.
///
/// # Errors
/// [`Error::Database`]. It may be repeated.
pub async fn cut_off(client: &Client, streams: &[String], generation: u64) -> Result<Option<Lsn>, Error> {
    let failed = |error| refused("end what applies the old stream")(error);
    let generation = sql_generation(generation)?;
    // Before: one that is busy holds the row. After: one that came in between.
    fill::end_appliers(client).await.map_err(failed)?;
    let mine =
        "UPDATE godwit.progress SET generation = $2 WHERE stream = ANY ($1) RETURNING stream, applied_lsn";
    let applied = client.query(mine, &[&streams, &generation]).await.map_err(failed)?;
    fill::end_appliers(client).await.map_err(failed)?;
    let first = applied.iter().find(|row| Some(row.get::<_, &str>(0)) == streams.first().map(String::as_str));
    Ok(first.map(|row| Lsn(row.get::<_, PgLsn>(1).into())))
}

/// Ends what Godwit still does beside the stream to a shadow that takes over, such as a pass of large objects that waits for a primary that is
/// gone: it holds the row that says whose generation this is, and would keep it for hours.
///
/// # Errors
/// [`Error::Database`].
pub async fn clear_the_way(client: &Client) -> Result<(), Error> {
    let end = "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a \
        WHERE a.datname = pg_catalog.current_database() AND a.application_name LIKE 'godwit%' AND a.usename = current_user \
          AND a.pid <> pg_catalog.pg_backend_pid() AND EXISTS (SELECT FROM pg_catalog.pg_locks l \
            WHERE l.pid = a.pid AND l.relation = 'godwit.epoch'::regclass AND l.mode = 'RowShareLock' AND l.granted)";
    client.query(end, &[]).await.map(drop).map_err(refused("end what is under way beside the stream"))
}

/// Puts every sequence that is in use ahead: of the highest value in the columns that draw from it, and [`SKIPPED`] numbers further, or a
/// tenth of what is left of it. Values that it cannot give say nothing of it, and nobody could put it there. Those that cycle stay. May be
/// repeated; then it skips again.
///
/// # Errors
/// [`Error::Database`].
pub async fn advance_sequences(client: &Client) -> Result<(), Error> {
    let advance = format!(
        "DO $godwit$ DECLARE s record; seen bigint; one text; room numeric; BEGIN \
           FOR s IN \
             SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS named, q.seqincrement AS step, q.seqmin, q.seqmax, \
               pg_catalog.pg_sequence_last_value(c.oid) AS last, \
               ARRAY(SELECT format('SELECT %s(%I)::bigint FROM %I.%I', CASE WHEN q.seqincrement > 0 THEN 'max' ELSE 'min' END, a.attname, tn.nspname, t.relname) \
                     FROM (SELECT d.refobjid AS rel, d.refobjsubid AS num FROM pg_catalog.pg_depend d \
                             WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid \
                               AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i') \
                           UNION SELECT f.adrelid, f.adnum FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_attrdef f ON f.oid = d.objid \
                             WHERE d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = c.oid) u \
                     JOIN pg_catalog.pg_class t ON t.oid = u.rel AND t.relkind IN ('r', 'p') JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace \
                     JOIN pg_catalog.pg_attribute a ON a.attrelid = u.rel AND a.attnum = u.num \
                     WHERE a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)) AS columns \
             FROM godwit.sequence_states() known JOIN pg_catalog.pg_namespace n ON n.nspname = known.schema \
             JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = known.name \
             JOIN pg_catalog.pg_sequence q ON q.seqrelid = c.oid WHERE NOT q.seqcycle \
           LOOP \
             seen := s.last; \
             FOREACH one IN ARRAY s.columns LOOP \
               DECLARE found bigint; BEGIN \
                 EXECUTE one INTO found; \
                 CONTINUE WHEN found IS NULL OR found NOT BETWEEN s.seqmin AND s.seqmax; \
                 seen := CASE WHEN s.step > 0 THEN greatest(seen, found) ELSE least(seen, found) END; \
               END; \
             END LOOP; \
             CONTINUE WHEN seen IS NULL; \
             room := CASE WHEN s.step > 0 THEN s.seqmax::numeric - seen ELSE seen::numeric - s.seqmin END; \
             PERFORM pg_catalog.setval(s.oid::regclass, \
               (seen + sign(s.step) * least(abs(s.step::numeric) * {SKIPPED}, trunc(room / 10)))::bigint, true); \
           END LOOP; \
         END $godwit$"
    );
    client.batch_execute(&advance).await.map_err(refused("put the sequences ahead"))
}

/// Brings the shadow's sequences on to where the primary's are, and none back: what is read here may be old when it is written. The
/// shadow says itself where its own are: it may have been emptied since the last look, or not have had one then.
///
/// # Errors
/// [`Error::Fenced`] where the database is another generation's by now; [`Error::Database`].
pub async fn follow_sequences(sides: Sides<'_>) -> Result<(), Error> {
    let (there, here) = tokio::try_join!(sequences::read(sides.source), sequences::read(sides.shadow))?;
    let here: HashSet<&SequenceState> = here.iter().collect();
    let moved: Vec<&SequenceState> =
        there.iter().filter(|state| state.is_called && !here.contains(state)).collect();
    if !moved.is_empty() {
        let sql = format!("{}{}", sides.guard_sql()?, sequences::forward_sql(&moved));
        sides.shadow.batch_execute(&sql).await.map_err(refused("bring the sequences on"))?;
    }
    Ok(())
}
