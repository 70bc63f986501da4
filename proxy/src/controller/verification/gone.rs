//! Tables that were found to differ and that neither side has any more, or has by another name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Client;

use super::{Known, LARGE_OBJECTS, Verifications, save};
use crate::causes::chain;
use crate::clock;
use crate::controller::databases::Purpose;
use crate::lock::lock;

/// How often they are looked for.
const EVERY: Duration = Duration::from_secs(10);

/// When they were last looked for, and what was found.
#[derive(Default)]
pub(super) struct Looked {
    at: Option<std::time::Instant>,
    /// The number of each, in the database of this zone.
    numbers: (String, BTreeMap<String, u32>),
}

/// What became of a table.
#[derive(Debug, PartialEq)]
enum Became {
    There(u32),
    Called(String),
    Gone,
}

impl Verifications {
    /// By what numbers a verification finds the tables: they may be called otherwise when one that differs is looked for.
    pub(super) async fn number(&self, primary: &str, source: &Client) -> Result<(), tokio_postgres::Error> {
        let tables = "SELECT format('%I.%I', n.nspname, c.relname), c.oid FROM pg_catalog.pg_class c \
            JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r'";
        let tables = source.query(tables, &[]).await?;
        let numbers = tables.iter().map(|row| (row.get(0), row.get(1))).collect();
        lock(&self.looked).numbers = (primary.to_owned(), numbers);
        Ok(())
    }

    /// Tables that differ, and that both sides have dropped since, differ no more: nobody could copy them anew. Does not wait.
    pub(in crate::controller) fn look_after(self: &Arc<Self>, primary: &str, shadow: &str) {
        let differing = lock(&self.known).differing.iter().any(|table| table != LARGE_OBJECTS);
        let now = clock::monotonic();
        {
            let mut looked = lock(&self.looked);
            if !differing || looked.at.is_some_and(|at| now.saturating_duration_since(at) < EVERY) {
                return;
            }
            looked.at = Some(now);
        }
        let (own, primary, shadow) = (self.clone(), primary.to_owned(), shadow.to_owned());
        tokio::spawn(async move {
            if let Err(why) = own.look(&primary, &shadow).await {
                tracing::debug!(why, "whether tables that differ are still there is not known");
            }
        });
    }

    async fn look(&self, primary: &str, shadow: &str) -> Result<(), String> {
        let mut tables: Vec<String> = lock(&self.known).differing.iter().cloned().collect();
        tables.retain(|table| table != LARGE_OBJECTS);
        let source = self.databases.get(primary, Purpose::Control).await.map_err(chain)?;
        let target = self.databases.get(shadow, Purpose::Control).await.map_err(chain)?;
        let before = {
            let looked = lock(&self.looked);
            if looked.numbers.0 == primary { looked.numbers.1.clone() } else { BTreeMap::new() }
        };
        let found = became(&source, &target, &tables, &before).await.map_err(chain)?;
        // What only one side has by that name is renamed, or dropped, on the other one too, or is to be.
        let mut numbers = before;
        for (table, became) in &found {
            let known = numbers.remove(table);
            match became {
                Became::There(number) => drop(numbers.insert(table.clone(), *number)),
                Became::Called(name) => numbers.extend(known.map(|number| (name.clone(), number))),
                Became::Gone => {}
            }
        }
        lock(&self.looked).numbers = (primary.to_owned(), numbers);
        let mut known = lock(&self.known);
        if known.became(found) {
            drop(tokio::spawn(save(self.shelf.clone(), self.kept(self.view(), &known))));
        }
        Ok(())
    }
}

impl Known {
    /// Whether that changes what is known.
    fn became(&mut self, found: Vec<(String, Became)>) -> bool {
        let mut changed = false;
        for (table, became) in found {
            let name = match became {
                Became::There(_) => continue,
                Became::Called(name) => Some(name),
                Became::Gone => None,
            };
            tracing::info!(
                table,
                name,
                "a table that was found to differ was dropped or renamed on both sides"
            );
            changed |= self.differing.remove(&table);
            let found = self.found.remove(&table);
            if let Some(name) = name {
                self.differing.insert(name.clone());
                self.found.extend(found.then_some(name));
            }
        }
        changed
    }
}

/// What became of each of these; nothing is said of what only one side has by that name.
async fn became(
    source: &Client,
    target: &Client,
    tables: &[String],
    before: &BTreeMap<String, u32>,
) -> Result<Vec<(String, Became)>, tokio_postgres::Error> {
    let there = "SELECT name, pg_catalog.to_regclass(name)::oid FROM unnest($1::text[]) name";
    let called = "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class c \
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1";
    let (on_source, on_target) =
        (source.query(there, &[&tables]).await?, target.query(there, &[&tables]).await?);
    let mut found = Vec::new();
    for (source_row, target_row) in on_source.iter().zip(&on_target) {
        let table: String = source_row.get(0);
        match (source_row.get::<_, Option<u32>>(1), target_row.get::<_, Option<u32>>(1)) {
            (Some(number), Some(_)) => found.push((table, Became::There(number))),
            (None, None) => {
                let renamed = match before.get(&table) {
                    Some(number) => source.query_opt(called, &[number]).await?.map(|row| row.get(0)),
                    None => None,
                };
                found.push((table, renamed.map_or(Became::Gone, Became::Called)));
            }
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_differs_no_more_and_what_is_renamed_still_does() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let mut known = Known {
            differing: names(&["public.gone", "public.old", "public.there"]),
            found: names(&["public.gone", "public.old"]),
            ..Known::default()
        };
        let there = ("public.there".to_owned(), Became::There(7));
        assert!(!known.became(vec![there]));
        let gone = ("public.gone".to_owned(), Became::Gone);
        assert!(known.became(vec![gone, ("public.old".to_owned(), Became::Called("public.new".into()))]));
        assert_eq!(known.differing, names(&["public.new", "public.there"]));
        assert_eq!(known.found, names(&["public.new"]));
    }
}
