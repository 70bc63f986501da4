//! What follows beside the stream, since no logical decoding carries it: between which databases, and when that may still be written.

use tokio_postgres::{Client, SimpleQueryMessage};

use crate::error::Error;
use crate::fence::{literal, sql_generation};
use crate::postgres::block;

/// From where to where something is carried beside the stream of a generation.
#[derive(Clone, Copy, Debug)]
pub struct Sides<'a> {
    /// The primary's database.
    pub source: &'a Client,
    /// The shadow's, fenced for `generation`.
    pub shadow: &'a Client,
    /// The resource.
    pub resource: &'a str,
    /// The stream's generation.
    pub generation: u64,
}

/// The database that follows in a generation.
#[derive(Clone, Copy, Debug)]
pub struct Shadow<'a> {
    /// It, fenced for `generation`.
    pub client: &'a Client,
    /// The resource.
    pub resource: &'a str,
    /// The stream's generation.
    pub generation: u64,
}

impl Sides<'_> {
    /// [`Shadow::guard_sql`] of the shadow.
    pub(crate) fn guard_sql(self) -> Result<String, Error> {
        let Self { shadow: client, resource, generation, .. } = self;
        Shadow { client, resource, generation }.guard_sql()
    }
}

impl Shadow<'_> {
    /// SQL that goes before what is written on the shadow: the database is the shadow of this generation until the transaction ends, or it
    /// fails. So nothing that comes late writes where a primary is.
    pub(crate) fn guard_sql(self) -> Result<String, Error> {
        self.guarded("")
    }

    /// The same of what a migration writes for its end, which is the newest one to have claimed the way back from here: what an undone one
    /// sends late is not written over it.
    pub(crate) fn guard_sql_of(self, run: &str) -> Result<String, Error> {
        let (resource, run) = (literal(self.resource), literal(run));
        self.guarded(&format!(
            "PERFORM FROM godwit.way_back WHERE resource = {resource} AND run = {run} FOR SHARE; \
             IF NOT FOUND THEN RAISE EXCEPTION 'a later migration is under way' USING ERRCODE = 'ZG002'; END IF; "
        ))
    }

    fn guarded(self, more: &str) -> Result<String, Error> {
        let (resource, generation) = (literal(self.resource), sql_generation(self.generation)?);
        let guard = format!(
            "BEGIN \
             PERFORM FROM godwit.epoch WHERE resource = {resource} AND generation = {generation} AND fenced FOR SHARE; \
             IF NOT FOUND THEN RAISE EXCEPTION 'the database is not the shadow of generation {generation}' USING ERRCODE = 'ZG002'; END IF; \
             {more}END"
        );
        Ok(format!("SET LOCAL synchronous_commit = local; {};\n", block(&guard)))
    }
}

/// Rows that one INSERT writes.
const AT_ONCE: usize = 500;

/// A row as the server sent it: NULL is none.
pub(crate) type Values<'a> = Vec<Option<&'a str>>;

/// The rows of each statement of a message.
pub(crate) fn answers(answer: &[SimpleQueryMessage]) -> impl Iterator<Item = Vec<Values<'_>>> {
    answer.split(|message| matches!(message, SimpleQueryMessage::CommandComplete(_))).map(|messages| {
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at)).collect()),
            _ => None,
        });
        rows.collect()
    })
}

/// Adds to `sql` what writes these rows of these columns; `null` is what stands for a column's NULL, where that is not it. None: a row has other columns.
pub(crate) fn insert<'a>(
    name: &str,
    columns: &[String],
    null: impl Fn(usize) -> Option<&'a str>,
    rows: &[Values<'_>],
    sql: &mut String,
) -> Option<()> {
    if columns.is_empty() {
        sql.push_str(&format!(
            "INSERT INTO {name} SELECT FROM pg_catalog.generate_series(1, {});\n",
            rows.len()
        ));
        return Some(());
    }
    for some in rows.chunks(AT_ONCE) {
        sql.push_str(&format!("INSERT INTO {name} ({}) OVERRIDING SYSTEM VALUE VALUES ", columns.join(", ")));
        for (at, row) in some.iter().enumerate() {
            if row.len() != columns.len() {
                return None;
            }
            let written = row.iter().enumerate().map(|(column, value)| match value {
                Some(value) => literal(value),
                None => null(column).unwrap_or("NULL").to_owned(),
            });
            sql.push_str(if at == 0 { "(" } else { ", (" });
            sql.push_str(&written.collect::<Vec<_>>().join(", "));
            sql.push(')');
        }
        sql.push_str(";\n");
    }
    Some(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_written_as_they_were_read() {
        let columns = vec!["id".into(), "\"Said\"".into()];
        let mut sql = String::new();
        let mut rows = vec![vec![Some("1"), Some("it's \\ so")], vec![Some("2"), None]];
        insert("public.t", &columns, |_| None, &rows, &mut sql).unwrap();
        assert_eq!(
            sql,
            "INSERT INTO public.t (id, \"Said\") OVERRIDING SYSTEM VALUE VALUES ('1',  E'it''s \\\\ so'), ('2', NULL);\n"
        );
        sql.clear();
        insert("t", &columns, |at| (at == 1).then_some("current_database()"), &rows[1..], &mut sql).unwrap();
        assert_eq!(
            sql,
            "INSERT INTO t (id, \"Said\") OVERRIDING SYSTEM VALUE VALUES ('2', current_database());\n"
        );
        rows.push(vec![Some("3")]);
        assert_eq!(insert("t", &columns, |_| None, &rows, &mut sql), None, "a row of another table");
        let many = vec![vec![Some("1"), None]; AT_ONCE + 1];
        sql.clear();
        insert("t", &columns, |_| None, &many, &mut sql).unwrap();
        assert_eq!(sql.matches("INSERT INTO").count(), 2);
        sql.clear();
        insert("public.none", &[], |_| None, &[vec![], vec![]], &mut sql).unwrap();
        assert_eq!(sql, "INSERT INTO public.none SELECT FROM pg_catalog.generate_series(1, 2);\n");
    }
}
