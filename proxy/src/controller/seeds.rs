//! When what was last seeded anew, also before this process began.

use std::collections::BTreeMap;
use std::time::Instant;

use migration::units::Timestamp;

use crate::causes::chain;
use crate::clock;
use crate::store::Journal;

/// By table; without one, of the whole shadow.
pub(super) fn of(journal: &Journal, resource: &str) -> BTreeMap<Option<String>, Instant> {
    let seeds = journal.seeds(resource).unwrap_or_else(|error| {
        tracing::warn!(resource, error = chain(error), "when the shadow was seeded anew is not known");
        Vec::new()
    });
    let (now, here) = (clock::now(), clock::monotonic());
    // A clock that was set back makes it no later than now.
    let moment = |at: Timestamp| here.checked_sub(now.since(at)).unwrap_or(here);
    seeds.into_iter().map(|(table, at)| (table, moment(at))).collect()
}

/// It is done.
pub(super) fn note(journal: &Journal, resource: &str, table: Option<&str>) {
    if let Err(error) = journal.note_seed(resource, table, clock::now()) {
        tracing::warn!(resource, table, error = chain(error), "that it was seeded anew is not written down");
    }
}
