//! What the target's catalog says of a table that the stream changes. Types go by name: OIDs differ between clusters.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Statement};

use super::window;
use crate::apply::window::Window;
use crate::change::{Change, Relation, ReplicaIdentity};
use crate::drift::fill;
use crate::drift::target_table;
use crate::error::Error;
use crate::lsn::Lsn;
use crate::postgres::quote_ident;
use crate::postgres::slot::filled;

/// A table of the stream, matched with the target's.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) relation: Arc<Relation>,
    /// Quoted `schema.table`.
    pub(super) sql_name: String,
    /// `schema.table` for people.
    pub(super) label: String,
    pub(super) columns: Vec<TargetColumn>,
    /// Indexes of the columns that tell a row; empty when nothing does.
    pub(super) key: Vec<usize>,
    /// Quoted names of columns that the stream does not bring, but for generated ones. None: a row can be deleted and inserted again without
    /// loss.
    pub(super) others: Vec<String>,
    /// Something on the target acts on each change (triggers that are enabled for replicas): nothing is reordered.
    pub(super) watched: bool,
    /// It has partitions of its own, which `ONLY` would leave out.
    pub(super) partitioned: bool,
}

/// One column, in stream order.
#[derive(Debug)]
pub(super) struct TargetColumn {
    pub(super) sql_name: String,
    /// Quoted `schema.type`, without modifiers: an assignment enforces those, a cast would cut values silently.
    pub(super) type_name: String,
    /// A cast from text is another function than the type's input function: COPY, and the source, mean that one.
    pub(super) by_input: bool,
    pub(super) transport: Transport,
    /// `OPERATOR(schema.=)` of the unique index that the column is in.
    pub(super) equals: String,
    /// `GENERATED ALWAYS AS IDENTITY`.
    pub(super) always_identity: bool,
}

/// How a column's values travel as statement parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// `bigint`, binary.
    Int8,
    /// `integer`, binary.
    Int4,
    /// `smallint`, binary.
    Int2,
    /// Text that the server converts.
    Text,
}

impl Transport {
    fn of(type_oid: u32) -> Self {
        match Type::from_oid(type_oid) {
            Some(Type::INT8) => Self::Int8,
            Some(Type::INT4) => Self::Int4,
            Some(Type::INT2) => Self::Int2,
            _ => Self::Text,
        }
    }

    /// The element type and its array.
    pub(super) fn types(self) -> (Type, Type) {
        match self {
            Self::Int8 => (Type::INT8, Type::INT8_ARRAY),
            Self::Int4 => (Type::INT4, Type::INT4_ARRAY),
            Self::Int2 => (Type::INT2, Type::INT2_ARRAY),
            Self::Text => (Type::TEXT, Type::TEXT_ARRAY),
        }
    }

    /// The array's name in SQL.
    pub(super) fn array_name(self) -> &'static str {
        match self {
            Self::Int8 => "pg_catalog._int8",
            Self::Int4 => "pg_catalog._int4",
            Self::Int2 => "pg_catalog._int2",
            Self::Text => "pg_catalog._text",
        }
    }
}

/// The table is one by its OID ([`target_table`]), which the planner must see: everything else is then looked up by that, and no catalogue is read whole.
/// Columns (one row without a name if there are none); for each whether it is in the key of the best unique index (its replica identity, where it has one), and the equality of a unique index that it is in.
const COLUMNS: &str = concat!(
    "\
WITH c AS (SELECT c.oid, c.relkind, c.relreplident, n.nspname, c.relname \
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
      WHERE c.oid = ",
    target_table!(),
    "), \
best AS (SELECT i.indkey::int2[] AS attnums, i.indnkeyatts FROM c JOIN pg_catalog.pg_index i ON i.indrelid = c.oid \
         WHERE i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL \
           AND NOT EXISTS (SELECT FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) AS k(attnum) \
             JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum WHERE NOT ",
    filled!(),
    ") \
         ORDER BY CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END DESC, i.indnkeyatts, i.indexrelid \
         LIMIT 1), \
watched AS (SELECT EXISTS (SELECT FROM c JOIN pg_catalog.pg_trigger t ON t.tgrelid = c.oid \
                           WHERE t.tgenabled IN ('A', 'R') AND NOT t.tgisinternal) \
                OR EXISTS (SELECT FROM c JOIN pg_catalog.pg_rewrite r ON r.ev_class = c.oid \
                           WHERE r.ev_enabled IN ('A', 'R')) AS yes) \
SELECT a.attname::text, pg_catalog.quote_ident(tn.nspname) || '.' || pg_catalog.quote_ident(t.typname), t.oid, \
       a.attidentity = 'a', a.attgenerated <> '', \
       coalesce(a.attnum = ANY (best.attnums[0:best.indnkeyatts - 1]), false), \
       coalesce(equality.name, 'OPERATOR(pg_catalog.=)'), watched.yes, c.relkind = 'p', c.nspname::text, c.relname::text, \
       ARRAY(SELECT i.name FROM godwit.identities i WHERE i.source_table = $3 AND i.target_table = c.oid AND i.target_column = a.attnum), \
       t.typdelim = ',' AND EXISTS (SELECT FROM pg_catalog.pg_cast k WHERE k.castsource = 'pg_catalog.text'::pg_catalog.regtype \
         AND k.casttarget IN (t.oid, t.typbasetype) AND k.castmethod = 'f' \
         AND (k.oid >= 16384 OR k.casttarget = 'pg_catalog.regclass'::pg_catalog.regtype)) \
FROM c CROSS JOIN watched LEFT JOIN best ON true \
LEFT JOIN (pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
           JOIN pg_catalog.pg_namespace tn ON tn.oid = t.typnamespace) \
  ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
LEFT JOIN LATERAL ( \
  SELECT 'OPERATOR(' || pg_catalog.quote_ident(n.nspname) || '.' || o.oprname || ')' AS name \
  FROM pg_catalog.pg_index i CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) AS k(attnum, class) \
  JOIN pg_catalog.pg_opclass oc ON oc.oid = k.class \
  JOIN pg_catalog.pg_am am ON am.oid = oc.opcmethod AND am.amname = 'btree' \
  JOIN pg_catalog.pg_amop ao ON ao.amopfamily = oc.opcfamily AND ao.amoplefttype = oc.opcintype \
    AND ao.amoprighttype = oc.opcintype AND ao.amopstrategy = 3 \
  JOIN pg_catalog.pg_operator o ON o.oid = ao.amopopr JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace \
  WHERE i.indrelid = c.oid AND i.indisunique AND k.attnum = a.attnum \
  ORDER BY i.indisprimary DESC, i.indexrelid LIMIT 1) equality ON true"
);

struct Found {
    column: TargetColumn,
    generated: bool,
    in_best: bool,
}

impl Table {
    /// Looks the table up; none: the target has none like it. One round trip.
    async fn load(
        client: &Client,
        columns: &Statement,
        relation: Arc<Relation>,
    ) -> Result<Option<Self>, Error> {
        let label = format!("{}.{}", relation.schema, relation.name);
        let rows = client
            .query(columns, &[&relation.schema, &relation.name, &relation.id])
            .await
            .map_err(Error::database(format!("look up {label} on the target")))?;
        let Some(first) = rows.first() else { return Ok(None) };
        let (watched, partitioned) = (first.get(7), first.get(8));
        let sql_name = format!("{}.{}", quote_ident(first.get(9)), quote_ident(first.get(10)));
        let mut known: HashMap<String, Found> =
            rows.iter().filter_map(|row| Some((row.get::<_, Option<String>>(0)?, found(row)))).collect();
        // What was called otherwise, and is called by no name of these now.
        let former = |name: &str, known: &HashMap<String, Found>| -> Option<String> {
            let row =
                rows.iter().find(|row| row.get::<_, Vec<String>>(11).iter().any(|former| former == name))?;
            let now: String = row.get(0);
            let free = known.contains_key(&now) && relation.columns.iter().all(|column| column.name != now);
            free.then_some(now)
        };
        let mut columns = Vec::with_capacity(relation.columns.len());
        let mut best = Vec::new();
        for (at, column) in relation.columns.iter().enumerate() {
            let name = if known.contains_key(&column.name) {
                Some(column.name.clone())
            } else {
                former(&column.name, &known)
            };
            let found = name.and_then(|name| known.remove(&name)).ok_or_else(|| {
                let name = &column.name;
                Error::Unready(format!(
                    "column {name} of {label} is not on the target: it comes with the schema, or with its table anew (godwit reseed RESOURCE --table '{label}')"
                ))
            })?;
            if found.in_best {
                best.push(at);
            }
            columns.push(found.column);
        }
        if known.values().any(|found| found.in_best) {
            best.clear();
        }
        // Logical decoding leaves generated columns out: what it says of the key may be said of many rows.
        let cut = known.values().any(|found| found.generated && found.in_best);
        let key = match relation.identity {
            ReplicaIdentity::Default | ReplicaIdentity::Index if cut => Vec::new(),
            ReplicaIdentity::Default | ReplicaIdentity::Index => {
                (0..relation.columns.len()).filter(|at| relation.columns[*at].key).collect()
            }
            // The stream marks every column as key, or none: a unique index finds rows faster and once.
            ReplicaIdentity::Full | ReplicaIdentity::Nothing => best,
        };
        let others = known.into_values().filter(|found| !found.generated);
        let mut others: Vec<String> = others.map(|found| found.column.sql_name).collect();
        // The same statement each time.
        others.sort();
        Ok(Some(Self { relation, sql_name, label, columns, key, others, watched, partitioned }))
    }
}

fn found(row: &tokio_postgres::Row) -> Found {
    let name: String = row.get(0);
    Found {
        column: TargetColumn {
            sql_name: quote_ident(&name),
            type_name: row.get(1),
            transport: Transport::of(row.get(2)),
            always_identity: row.get(3),
            equals: row.get(6),
            by_input: row.get(12),
        },
        generated: row.get(4),
        in_best: row.get(5),
    }
}

/// Descriptions of one table that are kept from one group of changes to the next.
const DESCRIPTIONS: usize = 8;

/// The tables that the stream has touched in this session.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    /// By the source's OID, the newest description last: a group may see a table before and after it was altered.
    by_id: HashMap<u32, Vec<Arc<Table>>>,
    /// [`COLUMNS`], prepared once: to plan it takes longer than to answer it, the longer the more tables there are.
    columns: Option<Statement>,
}

impl Tables {
    /// The target's table for this description, if it was looked up.
    pub(super) fn find(&self, relation: &Arc<Relation>) -> Option<&Arc<Table>> {
        self.by_id
            .get(&relation.id)?
            .iter()
            .rev()
            .find(|table| Arc::ptr_eq(&table.relation, relation) || table.relation == *relation)
    }

    /// The first description among these changes, each with where it committed, that was not looked up yet; but for what is skipped.
    pub(super) fn missing<'a>(
        &self,
        mut changes: impl Iterator<Item = (Lsn, &'a Change)>,
        window: &Window,
    ) -> Option<&'a Arc<Relation>> {
        // Many changes in a row are of one table. One that is skipped here may not be at the next commit.
        let mut known: Option<&Arc<Relation>> = None;
        changes.find_map(|(commit, change)| {
            change.relations().iter().find(|relation| {
                if known.is_some_and(|known| Arc::ptr_eq(known, relation)) {
                    return false;
                }
                if self.find(relation).is_some() {
                    known = Some(relation);
                    return false;
                }
                !window.skips(relation, commit)
            })
        })
    }

    /// Looks up what is missing, and then which of the changes the tables have already. A table that is being filled is waited for.
    pub(super) async fn look_up<'a>(
        &mut self,
        client: &Client,
        stream: &str,
        window: &mut Window,
        changes: impl Iterator<Item = (Lsn, &'a Change)> + Clone,
    ) -> Result<(), Error> {
        if self.missing(changes.clone(), window).is_none() {
            return Ok(());
        }
        self.forget();
        let mut waited = false;
        loop {
            // Whoever sees a table sees its position.
            *window = window::read(client, stream).await?;
            let Some(relation) = self.missing(changes.clone(), window) else { return Ok(()) };
            let columns = self.prepared(client).await?;
            match Table::load(client, &columns, Arc::clone(relation)).await? {
                Some(table) => self.know(Arc::new(table)),
                None if !waited => {
                    fill::over(client).await?;
                    waited = true;
                }
                None => {
                    let (schema, name) = (&relation.schema, &relation.name);
                    return Err(Error::Unready(format!("table {schema}.{name} is not on the target")));
                }
            }
        }
    }

    /// The look-up of a table, for this session.
    async fn prepared(&mut self, client: &Client) -> Result<Statement, Error> {
        if let Some(columns) = &self.columns {
            return Ok(columns.clone());
        }
        let columns = client.prepare_typed(COLUMNS, &[Type::TEXT, Type::TEXT, Type::OID]).await;
        let columns = columns.map_err(Error::database("prepare the look-up of tables on the target"))?;
        Ok(self.columns.insert(columns).clone())
    }

    /// Remembers a table, for this description of it. None is forgotten for that: one transaction may have altered a table any number of times,
    /// and what it needs must be there together.
    pub(super) fn know(&mut self, table: Arc<Table>) {
        self.by_id.entry(table.relation.id).or_default().push(table);
    }

    /// Before a group is looked up: all but the newest descriptions of each table.
    fn forget(&mut self) {
        for known in self.by_id.values_mut() {
            known.drain(..known.len().saturating_sub(DESCRIPTIONS));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_looked_up_once_one_of_its_changes_is_not_skipped() {
        let relation = Arc::new(Relation {
            id: 1,
            schema: "public".into(),
            name: "late".into(),
            identity: ReplicaIdentity::Default,
            columns: Vec::new(),
        });
        let window = Window::new([(("public".to_owned(), "late".to_owned()), Lsn(100))]);
        let change = Change::Insert { relation: relation.clone(), new: Vec::new() };
        let tables = Tables::default();
        let before = [(Lsn(50), &change), (Lsn(99), &change)];
        assert!(tables.missing(before.into_iter(), &window).is_none(), "its rows have both");
        let after = [(Lsn(50), &change), (Lsn(100), &change)];
        assert_eq!(tables.missing(after.into_iter(), &window), Some(&relation));
    }

    #[test]
    fn all_shapes_that_a_table_has_in_one_transaction_are_known_together() {
        let shape = |number: usize| {
            Arc::new(Relation {
                id: 1,
                schema: "public".into(),
                name: format!("t{number}"),
                identity: ReplicaIdentity::Default,
                columns: Vec::new(),
            })
        };
        let shapes: Vec<_> = (0..3 * DESCRIPTIONS).map(shape).collect();
        let mut tables = Tables::default();
        for relation in &shapes {
            let table = Table {
                relation: Arc::clone(relation),
                sql_name: String::new(),
                label: String::new(),
                columns: Vec::new(),
                key: Vec::new(),
                others: Vec::new(),
                watched: false,
                partitioned: false,
            };
            tables.know(Arc::new(table));
        }
        assert!(shapes.iter().all(|shape| tables.find(shape).is_some()));
        tables.forget();
        let known = shapes.iter().map(|shape| tables.find(shape).is_some());
        assert!(known.eq((0..shapes.len()).map(|number| number >= shapes.len() - DESCRIPTIONS)));
    }
}
