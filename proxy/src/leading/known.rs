//! Which two zones a resource has: by the journal, by what another node left, or by the configuration on a first start.

use anyhow::{Result, bail};
use migration::cutover::{Phase, State};
use migration::units::{Generation, Timestamp, Zone};

use super::placing;
use crate::config::model::{Config, Resource};
use crate::store::{Journal, PlacedRow};

/// What is known before the databases are asked.
pub(super) struct Known {
    /// What the journal says; its shadow is where the configuration has it by now.
    pub(super) state: Option<State>,
    /// The zone that the journal has for the shadow, where the configuration has no placement there any more.
    pub(super) replaced: Option<Zone>,
    /// Where another node had it, if that is not older, and fits.
    pub(super) placed: Option<PlacedRow>,
    /// The same as a state, where only its primary knows more.
    pub(super) left: Option<State>,
    /// Another node has led since the journal's newest generation, without it.
    pub(super) went_on: bool,
    /// Primary and shadow, as far as that is known.
    pub(super) zones: [String; 2],
}

/// Reads it; changes nothing.
///
/// # Errors
/// The configuration lacks a zone in which the resource is.
pub(super) fn read(config: &Config, resource: &Resource, journal: &Journal, now: Timestamp) -> Result<Known> {
    let name = &resource.name;
    let state = journal.latest(name)?;
    // Where another node may have led it, a journal of one's own may be old.
    let placed = if config.node.lease.is_some() { journal.placed(name)? } else { None };
    let placed = placed.map(|placed| as_configured(resource, placed));
    let fits =
        |placed: &PlacedRow| placing::settle(config, resource, &placed.primary, &placed.shadow).is_ok();
    // Not the newest that was left may be what could be read of it.
    let newer = |placed: &PlacedRow| {
        let unheard_of = |known: &State| !resource.has_database() && known.run.is_some();
        let not_older = |known: &State| placed.generation >= known.generation.0 || unheard_of(known);
        placed.generation == 0 || state.as_ref().is_none_or(not_older)
    };
    let went_on = placed.iter().zip(&state).any(|(placed, known)| placed.generation < known.generation.0);
    let placed = placed.filter(|placed| fits(placed) && newer(placed));
    let left = placed.as_ref().and_then(|placed| left_newer(resource, placed, state.as_ref(), now));
    let (zones, replaced, state) = match (placed.clone(), state) {
        // Which of the two serves, the databases say.
        (Some(PlacedRow { primary, shadow, .. }), state)
            if resource.has_database() && shadow == resource.primary =>
        {
            ([shadow, primary], None, state)
        }
        (Some(PlacedRow { primary, shadow, .. }), state) => ([primary, shadow], None, state),
        (None, Some(state)) => {
            let (state, replaced) = where_it_is(resource, state, now)?;
            ([state.primary.to_string(), state.shadow.to_string()], replaced, Some(state))
        }
        (None, None) => {
            let (primary, shadow) = placing::first(config, resource, None)?;
            ([primary, shadow], None, None)
        }
    };
    Ok(Known { state, replaced, placed, left, went_on, zones })
}

/// The same with a shadow that the configuration has, where it has none in that zone any more.
fn as_configured(resource: &Resource, placed: PlacedRow) -> PlacedRow {
    let has = |zone: &str| resource.flexible.is_some() || resource.placements.contains_key(zone);
    let other = resource.other(&placed.primary).filter(|_| has(&placed.primary) && !has(&placed.shadow));
    PlacedRow { shadow: other.map_or(placed.shadow, |other| other.zone.clone()), ..placed }
}

/// The journal's state with a shadow that the configuration has, and the zone that its shadow had if that is another one.
fn where_it_is(resource: &Resource, state: State, now: Timestamp) -> Result<(State, Option<Zone>)> {
    let has = |zone: &Zone| resource.flexible.is_some() || resource.placements.contains_key(&*zone.0);
    let State { resource: name, primary, shadow, .. } = &state;
    if !has(primary) {
        bail!(
            "resource {name}: the journal says that it is served in {primary}, and the configuration has no placement there. Give it that placement \
             again, with the zone's old name; it can be left by godwit migrate, or where it is lost by godwit takeover (docs/operations.md, \"A zone is \
             left\")"
        );
    }
    if has(shadow) {
        return Ok((state, None));
    }
    if let Some(run) = &state.run {
        bail!(
            "resource {name}: its migration {} from {} to {} is not over ({}), and the configuration has no placement in {shadow}. Give it that \
             placement again until it is: godwit status {name} tells, and where the old primary soaks godwit retire {name} ends that",
            run.id,
            run.from,
            run.to,
            state.phase.name()
        );
    }
    let Some(other) = resource.other(&primary.0) else {
        bail!("resource {name}: the configuration has no placement of it but the one in {primary}");
    };
    let next = Zone::from(other.zone.as_str());
    let replaced = shadow.clone();
    Ok((State { shadow: next, phase: Phase::Idle, since: now, ..state }, Some(replaced)))
}

/// Where another node had the resource with a database, if that is newer than the journal (`known`), or than a first start. Only its primary
/// knows more: it is to be heard.
fn left_newer(
    resource: &Resource,
    placed: &PlacedRow,
    known: Option<&State>,
    now: Timestamp,
) -> Option<State> {
    let newest = known.map_or(Generation(1), |known| known.generation);
    let generation = Generation(placed.generation);
    let [primary, shadow] = [&placed.primary, &placed.shadow].map(|zone| Zone::from(zone.as_str()));
    (resource.has_database() && generation > newest)
        .then(|| State { generation, ..State::first(&resource.name, primary, shadow, now) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use migration::cutover::Limits;

    use super::*;
    use crate::config::samples;

    #[test]
    fn a_shadow_is_where_the_configuration_has_it_and_a_primary_is_not() {
        let resource = samples::orders();
        let at = |primary: &str, shadow: &str| State {
            generation: Generation(3),
            phase: Phase::Shadowing,
            ..State::first("orders", primary.into(), shadow.into(), Timestamp(1))
        };
        let now = Timestamp(9);
        assert_eq!(where_it_is(&resource, at("far", "near"), now).unwrap(), (at("far", "near"), None));
        let (state, replaced) = where_it_is(&resource, at("far", "gone"), now).unwrap();
        assert_eq!(replaced, Some("gone".into()));
        let expected = State { phase: Phase::Idle, since: now, ..at("far", "near") };
        assert_eq!(state, expected, "of the same generation, and begun anew");
        let error = where_it_is(&resource, at("gone", "near"), now).unwrap_err().to_string();
        assert!(error.contains("served in gone") && error.contains("godwit takeover"), "{error}");
        let limits = Limits::of(&resource.policy);
        let moves = at("far", "gone").undoing("m1", limits, "x", now);
        let error = where_it_is(&resource, moves, now).unwrap_err().to_string();
        assert!(error.contains("migration m1 from far to gone is not over (aborting)"), "{error}");
    }
}
