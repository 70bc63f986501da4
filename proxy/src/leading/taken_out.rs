//! Resources that are in the configuration no more: what they have in their databases stays until a person takes it away.

use anyhow::Result;
use migration::cutover::{Outcome, Phase, State};
use migration::units::Timestamp;

use crate::config::model::Config;
use crate::store::{Ended, Journal, StoreError};

/// Says at the start which there are, and what is to be done about them.
pub fn warn(config: &Config, journal: &Journal) -> Result<()> {
    for state in journal.kept()?.iter().filter(|state| !config.resources.contains_key(&state.resource)) {
        let State { resource, primary, shadow, generation, phase, .. } = state;
        tracing::warn!(
            %resource, %primary, %shadow, %generation, phase = phase.name(),
            "it is in the configuration no more: its replication slots keep WAL on its primary until they are dropped (docs/operations.md, \"Taking a \
             resource out\"); godwit release {resource} says that this is done"
        );
    }
    Ok(())
}

/// A person says that nothing is left of it; false: the journal has nothing of it either.
///
/// # Errors
/// In words: it is being moved.
pub(super) fn forget(
    journal: &Journal,
    name: &str,
    now: Timestamp,
) -> Result<Result<bool, String>, StoreError> {
    let Some(state) = journal.latest(name)?.filter(|state| state.phase != Phase::Idle) else {
        return Ok(Ok(false));
    };
    let ended = match &state.run {
        Some(run) if state.phase == Phase::Soaking => {
            Some(Ended { run: &run.id, outcome: &Outcome::Superseded, retirement: None })
        }
        Some(run) => {
            let (id, phase) = (&run.id, state.phase.name());
            return Ok(Err(format!(
                "its migration {id} is under way ({phase}): put {name} back into the files, and take it out when that is over"
            )));
        }
        None => None,
    };
    let idle = State { phase: Phase::Idle, run: None, since: now, ..state.clone() };
    journal.append(&idle, "Released", now, ended)?;
    Ok(Ok(true))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::samples;

    #[test]
    fn what_is_left_of_a_resource_is_told_until_a_person_says_that_it_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let now = Timestamp(5);
        let at = |name: &str, phase| State {
            phase,
            ..State::first(name, "near".into(), "far".into(), Timestamp(1))
        };
        let limits = migration::cutover::Limits::of(&samples::orders().policy);
        let moving = at("moving", Phase::Shadowing).undoing("m1", limits, "x", now);
        for state in [at("orders", Phase::Shadowing), at("quiet", Phase::Idle), moving] {
            journal.append(&state, "Tested", now, None).unwrap();
        }
        let left = || journal.kept().unwrap().into_iter().map(|state| state.resource).collect::<Vec<_>>();
        assert_eq!(left(), ["moving", "orders"]);
        assert_eq!(forget(&journal, "unknown", now).unwrap(), Ok(false));
        assert_eq!(forget(&journal, "quiet", now).unwrap(), Ok(false));
        assert_eq!(forget(&journal, "orders", now).unwrap(), Ok(true));
        assert!(forget(&journal, "moving", now).unwrap().unwrap_err().contains("m1 is under way (aborting)"));
        assert_eq!(left(), ["moving"]);
    }
}
