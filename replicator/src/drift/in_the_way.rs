//! What keeps a column of the shadow's from getting another type: views, triggers, policies, rules, functions, columns and publications that
//! use it.

use tokio_postgres::Client;

use crate::error::Error;
use crate::fence::refused;

/// SQL for the shadow that drops what uses this column: the next comparison makes it again. `column` begins with its quoted name.
///
/// # Errors
/// [`Error::Unready`] where something of it would not be made again, with what a person is to drop.
pub(super) async fn dropped(shadow: &Client, table: &str, column: &str) -> Result<Vec<String>, Error> {
    let found = shadow.query(include_str!("in_the_way.sql"), &[&table, &column]).await;
    let found = found.map_err(refused(&format!("look for what uses a column of {table}")))?;
    let (made, lost): (Vec<_>, Vec<_>) =
        found.iter().map(|row| (row.get(0), row.get(1))).partition(|(_, made): &(String, bool)| *made);
    if lost.is_empty() {
        return Ok(made.into_iter().map(|(sql, _)| sql).collect());
    }
    let lost: Vec<&str> = lost.iter().map(|(sql, _)| sql.trim_end_matches(" CASCADE")).collect();
    Err(Error::Unready(format!(
        "{table}: ALTER COLUMN {column}: not all of what uses it is made again by itself: drop that on the shadow first, and make it again afterwards ({})",
        lost.join("; ")
    )))
}
