//! Makes tables that the shadow lacks, with their rows.
//!
//! Those of a release, or of a new tenant, are many, and small: they are made together, in one transaction, of one dump. What
//! cannot be done together is done one by one.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::{
    APPLICATION, Locks, Sides, Told, begin, copied, described, end_appliers, ends, enums, published, record,
    undo, whole,
};
use crate::drift::sync::derived;
use crate::error::{Error, chain};
use crate::fence::refused;
use crate::postgres::{connect, quote_literal};
use crate::schema;
use crate::schema::statements::{Kind, Statement, joined, statements};

/// So many at most are made together: each of their locks has a place in the servers' memory.
const AT_ONCE: usize = 100;
/// Tables of more bytes are filled each by itself: the stream may wait for the end of all that are filled together.
const SMALL: i64 = 8 << 20;

/// The tables that were made, and how many rows each has; none: its rows are not published: it is partitioned, and its partitions have
/// them, or it is unlogged.
pub(in crate::drift) type Made = BTreeMap<String, Option<u64>>;

/// Makes one table, which the shadow lacks.
pub(super) async fn table(sides: Sides<'_>, name: &str) -> Result<Option<u64>, Error> {
    only(made(sides, &[name], Locks::Waits, false).await?, name)
}

/// Makes one table in the place of the shadow's, whose columns are in another order than its source's. What hangs on that, and holds no rows, is
/// made again by the next comparison, and so are foreign keys: while it is filled, they would keep what they join locked.
pub(super) async fn again(sides: Sides<'_>, name: &str) -> Result<Option<u64>, Error> {
    untied(sides.shadow.1, name).await?;
    only(made(sides, &[name], Locks::Waits, true).await?, name)
}

/// Takes a table's foreign keys away, to others and from others.
async fn untied(shadow: &Client, name: &str) -> Result<(), Error> {
    let failed = |error| refused(&format!("take the foreign keys of table {name} away"))(error);
    begin(shadow).await.map_err(failed)?;
    let ties = "SELECT format('ALTER TABLE %s DROP CONSTRAINT %I; ', conrelid::regclass, conname) FROM pg_catalog.pg_constraint \
        WHERE contype = 'f' AND conparentid = 0 AND conrelid <> confrelid AND pg_catalog.to_regclass($1) IN (conrelid, confrelid)";
    let ties = shadow.query(ties, &[&name]).await.map_err(failed)?;
    if !ties.is_empty() {
        // Whoever waits for one of these tables may hold another.
        end_appliers(shadow).await.map_err(failed)?;
    }
    let dropped: String = ties.iter().map(|row| row.get::<_, &str>(0)).collect();
    shadow.batch_execute(&format!("{dropped}COMMIT")).await.map_err(failed)
}

fn only(mut made: Made, name: &str) -> Result<Option<u64>, Error> {
    made.remove(name).ok_or_else(|| Error::Unready(format!("fill table {name}: it is none that is copied")))
}

/// Makes as many of these tables as can be made together: those that the shadow lacks, and that are small.
pub(in crate::drift) async fn tables(sides: Sides<'_>, names: &[&str]) -> Made {
    let mut done = Made::new();
    if names.len() < 2 {
        return done;
    }
    let small = match small(sides, names).await {
        Ok(small) => small,
        Err(error) => {
            tracing::info!(error = chain(&error), "tables are made one by one");
            return done;
        }
    };
    let small: Vec<&str> = small.iter().map(String::as_str).collect();
    for some in small.chunks(AT_ONCE).filter(|some| some.len() > 1) {
        match made(sides, some, Locks::Tries, false).await {
            Ok(made) => done.extend(made),
            Err(error) => {
                tracing::info!(error = chain(&error), tables = some.len(), "tables are made one by one");
            }
        }
    }
    done
}

/// Those that the shadow lacks, and that are small.
async fn small(sides: Sides<'_>, names: &[&str]) -> Result<Vec<String>, Error> {
    let lacking = "SELECT name FROM unnest($1::text[]) WITH ORDINALITY AS t(name, place) \
        WHERE pg_catalog.to_regclass(name) IS NULL ORDER BY place";
    let lacking = sides.shadow.1.query(lacking, &[&names]).await.map_err(refused("fill tables"))?;
    let lacking: Vec<&str> = lacking.iter().map(|row| row.get(0)).collect();
    let small = "SELECT name FROM unnest($1::text[]) WITH ORDINALITY AS t(name, place) \
        JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(name) \
        WHERE pg_catalog.pg_table_size(c.oid) <= $2 ORDER BY place";
    let small = sides.source.1.query(small, &[&lacking, &SMALL]).await.map_err(refused("fill tables"))?;
    Ok(small.iter().map(|row| row.get(0)).collect())
}

/// Makes these tables, and fills those whose rows are published; gives which of them are whole. `again`: the shadow's go first.
async fn made(sides: Sides<'_>, names: &[&str], locks: Locks, again: bool) -> Result<Made, Error> {
    let dump = schema::dump_tables(sides.source.0, sides.bin, sides.source.1, names).await?;
    let reader = connect(sides.source.0, APPLICATION).await?;
    let made = loaded(sides, names, &dump, (&reader, locks), again).await;
    if made.is_err() {
        undo(sides).await;
    }
    made
}

async fn loaded(
    sides: Sides<'_>,
    names: &[&str],
    dump: &str,
    (reader, locks): (&Client, Locks),
    again: bool,
) -> Result<Made, Error> {
    let shadow = sides.shadow.1;
    let failed = |error| {
        let of = names.first().unwrap_or(&"");
        let more = if names.len() > 1 { format!(" and {} more", names.len() - 1) } else { String::new() };
        refused(&format!("fill table {of}{more}"))(error)
    };
    // One that is gone by now is found out when it is locked.
    let apart = "SELECT name FROM unnest($1::text[]) name JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(name) \
        WHERE NOT (relkind = 'r' AND relpersistence = 'p')";
    let apart = sides.source.1.query(apart, &[&names]).await.map_err(failed)?;
    let mut made: Made = apart.iter().map(|row| (row.get(0), None)).collect();
    let plain: Vec<&str> = names.iter().copied().filter(|name| !made.contains_key(*name)).collect();
    begin(shadow).await.map_err(failed)?;
    let _told = Told(sides.filling);
    if again {
        for name in names {
            dropped(shadow, name, reader).await?;
        }
    }
    // What is in the dump is there soon.
    let dump = without_dangling(shadow, names, dump, again).await.map_err(failed)?;
    schema::load(shadow, &dump).await?;
    // No client may write there, also while others are still to be made.
    let fence = "SELECT godwit.put_trigger(of.schema, of.name) FROM godwit.fenced_tables() of \
        JOIN unnest($1::text[]) made ON of.id = pg_catalog.to_regclass(made) WHERE NOT of.done";
    shadow.query(fence, &[&names]).await.map_err(failed)?;
    if !plain.is_empty() {
        let (position, locked) = published(sides, &plain, locks, reader).await.map_err(failed)?;
        let found = described(&locked, reader).await?;
        record(shadow, &found, position, reader).await.map_err(failed)?;
        let have_rows = with_rows(reader, &locked).await.map_err(failed)?;
        for (name, table) in &found {
            let rows = if have_rows.contains(name) { copied(sides, name, table, reader).await? } else { 0 };
            made.insert(name.clone(), Some(rows));
        }
        let done: Vec<&str> = made.keys().map(String::as_str).collect();
        whole(shadow, &done).await.map_err(failed)?;
        // The others are filled as those are whose rows are not whole.
        let rest: Vec<&str> = plain.into_iter().filter(|name| !done.contains(name)).collect();
        let unfilled = "INSERT INTO godwit.unfilled (target_table) \
            SELECT c.oid FROM unnest($1::text[]) name JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(name)";
        shadow.execute(unfilled, &[&rest]).await.map_err(failed)?;
    }
    // Appliers that knew the source's table before the shadow's was dropped would bring what the new one's rows show already: also those that knew it
    // by a number that it has no more, and wait for what was just dropped here. Another table that has got its name they look up.
    let numbers = "SELECT c.oid FROM unnest($1::text[]) name JOIN pg_catalog.pg_class c ON c.oid = pg_catalog.to_regclass(name)";
    let numbers = sides.source.1.query(numbers, &[&names]).await.map_err(failed)?;
    let numbers: Vec<u32> = numbers.iter().map(|row| row.get(0)).collect();
    let met =
        "SELECT EXISTS (SELECT FROM godwit.identities WHERE source_column = 0 AND source_table = ANY ($1))";
    let met: bool = shadow.query_one(met, &[&numbers]).await.map_err(failed)?.get(0);
    let end = if again || met { format!("{}; COMMIT", ends()) } else { "COMMIT".into() };
    shadow.batch_execute(&end).await.map_err(failed)?;
    Ok(made)
}

/// Within the open transaction: takes a table away that is to be made anew, and its types where the source's are others by now.
async fn dropped(shadow: &Client, name: &str, reader: &Client) -> Result<(), Error> {
    let failed = |error| refused(&format!("make table {name} anew"))(error);
    let lock = format!("LOCK TABLE ONLY {name} IN ACCESS EXCLUSIVE MODE");
    shadow.batch_execute(&lock).await.map_err(failed)?;
    // Whoever waits for this table may hold one that refers to it.
    end_appliers(shadow).await.map_err(failed)?;
    enums::exchange(shadow, name, reader).await?;
    let rest = if derived(shadow, name).await.map_err(failed)? { "CASCADE" } else { "RESTRICT" };
    let whole = format!(
        "DELETE FROM godwit.unfilled WHERE target_table = pg_catalog.to_regclass({})",
        quote_literal(name)
    );
    shadow.batch_execute(&format!("{whole}; DROP TABLE {name} {rest}")).await.map_err(failed)?;
    enums::tidy(shadow).await.map_err(failed)
}

/// Which of these tables have any, under the reader's snapshot.
async fn with_rows(reader: &Client, names: &[String]) -> Result<Vec<String>, tokio_postgres::Error> {
    let any: Vec<String> = names.iter().map(|name| format!("EXISTS (SELECT FROM ONLY {name})")).collect();
    let any = reader.query_one(&format!("SELECT ARRAY[{}]::boolean[]", any.join(", ")), &[]).await?;
    let any: Vec<bool> = any.get(0);
    Ok(names.iter().zip(any).filter(|(_, any)| *any).map(|(name, _)| name.clone()).collect())
}

/// The dump of tables without their foreign keys to others that the shadow lacks: two new ones may refer to each other. They are made once both
/// are there, as any that is missing. Of tables that are made `again`, without all to others.
async fn without_dangling(
    shadow: &Client,
    names: &[&str],
    dump: &str,
    again: bool,
) -> Result<String, tokio_postgres::Error> {
    let statements = statements(dump);
    let refers_to = |statement: &Statement| match &statement.kind {
        Kind::ForeignKey { table, refers_to, .. } if table != refers_to => Some(refers_to.clone()),
        _ => None,
    };
    let mut others: Vec<String> = statements.iter().filter_map(refers_to).collect();
    others.sort();
    others.dedup();
    if others.is_empty() {
        return Ok(dump.to_owned());
    }
    let missing = "SELECT name FROM unnest($1::text[]) name WHERE pg_catalog.to_regclass(name) IS NULL \
        AND pg_catalog.parse_ident(name) <> ALL (SELECT pg_catalog.parse_ident(made) FROM unnest($2::text[]) made)";
    let left_out: Vec<String> = if again {
        others
    } else {
        shadow.query(missing, &[&others, &names]).await?.iter().map(|row| row.get(0)).collect()
    };
    if left_out.is_empty() {
        return Ok(dump.to_owned());
    }
    let stays = |one: &Statement| refers_to(one).is_none_or(|to| !left_out.contains(&to));
    Ok(joined(statements.into_iter().filter(stays)))
}
