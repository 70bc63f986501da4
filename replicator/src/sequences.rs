//! Sequences: logical decoding does not carry them, so a cutover reads all of them exactly and sets all of them at once.

use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::beside::Shadow;
use crate::error::Error;
use crate::fence::{literal, refused, rows};

/// The exact state of one sequence.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SequenceState {
    /// Schema name, unquoted.
    pub schema: String,
    /// Sequence name, unquoted.
    pub name: String,
    /// Value of the last `nextval`, or the one it will return when `is_called` is false.
    pub last_value: i64,
    /// Whether `nextval` must step before it returns.
    pub is_called: bool,
}

impl SequenceState {
    pub(crate) fn from_json(value: &Value) -> Option<Self> {
        Some(Self {
            schema: value.get("schema")?.as_str()?.to_owned(),
            name: value.get("name")?.as_str()?.to_owned(),
            last_value: value.get("last_value")?.as_i64()?,
            is_called: value.get("is_called")?.as_bool()?,
        })
    }
}

/// Reads every user sequence, those of identity and serial columns included; extension members are left out.
///
/// Needs `fence::install` in this database and SELECT on the sequences. One round trip.
pub async fn read(client: &Client) -> Result<Vec<SequenceState>, Error> {
    let sql = "SELECT schema, name, last_value, is_called FROM godwit.sequence_states()";
    let answer = client.simple_query(sql).await.map_err(refused("cannot read the sequences"))?;
    rows(answer)
        .iter()
        .map(|row| {
            Some(SequenceState {
                schema: row.get(0)?.to_owned(),
                name: row.get(1)?.to_owned(),
                last_value: row.get(2)?.parse().ok()?,
                is_called: row.get(3)? == "t",
            })
        })
        .collect::<Option<_>>()
        .ok_or_else(|| Error::Protocol("a sequence cannot be read".into()))
}

/// Sets every sequence of the shadow to exactly this state, in one transaction and one round trip.
///
/// When some are missing on this database nothing is set: [`Error::Unready`], naming them. Needs UPDATE on the
/// sequences. Repeating it is harmless as long as nobody draws values: one that comes when the database serves, is another generation's
/// shadow, or was claimed by a later migration than `run` ([`crate::fence::claim_way_back`]), is refused ([`Error::Fenced`]), or numbers that
/// clients have drawn would be given again.
pub async fn apply(shadow: Shadow<'_>, run: &str, states: &[SequenceState]) -> Result<(), Error> {
    if states.is_empty() {
        return Ok(());
    }
    let sql = shadow.guard_sql_of(run)? + &apply_sql(states);
    let answer = shadow.client.simple_query(&sql).await.map_err(refused("cannot set the sequences"))?;
    let missing: Vec<String> = rows(answer).iter().filter_map(|row| row.get(0).map(str::to_owned)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Unready(format!("sequences missing on the target: {}", missing.join(", "))))
}

/// Each of these states with the number of its sequence here; NULL: it is missing.
fn wanted_sql<'a>(states: impl Iterator<Item = &'a SequenceState>) -> String {
    let wanted: Vec<Value> =
        states.map(|s| json!({"s": s.schema, "n": s.name, "v": s.last_value, "c": s.is_called})).collect();
    format!(
        // Looked up one by one: the planner knows nothing of how many they are, and may compare each with every other.
        "SELECT w.*, (SELECT f.oid FROM pg_catalog.pg_class f
                      WHERE f.oid = pg_catalog.to_regclass(pg_catalog.format('%I.%I', w.s, w.n)) AND f.relkind = 'S') AS id
           FROM pg_catalog.jsonb_to_recordset({}::jsonb) AS w (s text, n text, v bigint, c boolean)",
        literal(&Value::from(wanted).to_string())
    )
}

/// Sets those that are behind these states; none goes back.
pub(crate) fn forward_sql(states: &[&SequenceState]) -> String {
    format!(
        "SELECT pg_catalog.count(pg_catalog.setval(w.id::regclass, w.v, true)) FROM ({}) w
         JOIN pg_catalog.pg_sequence q ON q.seqrelid = w.id, pg_catalog.pg_sequence_last_value(w.id) AS here
         WHERE w.c AND (here IS NULL OR CASE WHEN q.seqincrement > 0 THEN w.v > here ELSE w.v < here END)",
        wanted_sql(states.iter().copied())
    )
}

/// Lists the missing ones; sets all when there are none. The uncorrelated NOT EXISTS is decided before any `setval`.
fn apply_sql(states: &[SequenceState]) -> String {
    format!(
        "WITH wanted AS MATERIALIZED ({}),
         done AS MATERIALIZED (
           SELECT pg_catalog.count(pg_catalog.setval(id::regclass, v, c)) FROM wanted
           WHERE NOT EXISTS (SELECT FROM wanted WHERE id IS NULL))
         SELECT pg_catalog.format('%I.%I', s, n) FROM wanted WHERE id IS NULL
         UNION ALL SELECT NULL FROM done",
        wanted_sql(states.iter())
    )
}
