//! Where a resource's two placements are: as configured, or in a zone that is chosen for the shadow.

use anyhow::{Context, Result, bail};

use crate::clock;
use crate::config::model::{Config, Placement, Provided, Resource};
use crate::controller::zones::{self, ChoiceView};
use crate::feeds::external::board::FeedBoard;

/// A zone that was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// The shadow's zone.
    pub zone: String,
    /// Every candidate, judged.
    pub choice: ChoiceView,
}

/// The shadow's zone: chosen, or the one that the placements give.
pub(super) fn place(config: &Config, resource: &Resource, feeds: Option<&FeedBoard>) -> Result<Placed> {
    if resource.flexible.is_some() {
        return choose(config, resource, feeds);
    }
    let (_, zone) = first(config, resource, feeds)?;
    let choice = ChoiceView {
        resource: resource.name.clone(),
        primary: resource.primary.clone(),
        shadow: zone.clone(),
        chosen: Some(zone.clone()),
        candidates: Vec::new(),
    };
    Ok(Placed { zone, choice })
}

/// Primary and shadow of a resource that was never led before.
pub(super) fn first(
    config: &Config,
    resource: &Resource,
    feeds: Option<&FeedBoard>,
) -> Result<(String, String)> {
    let primary = resource.primary.clone();
    if resource.flexible.is_some() {
        let placed = choose(config, resource, feeds)?;
        tracing::info!(resource = %resource.name, zone = %placed.zone, "the shadow's zone is chosen");
        return Ok((primary, placed.zone));
    }
    let Some(other) = resource.other(&primary) else {
        bail!(
            "resource {}: this version moves between two placements; there is only {primary}",
            resource.name
        );
    };
    Ok((primary, other.zone.clone()))
}

/// Chooses the shadow's zone among those where something can provision it.
///
/// # Errors
/// Every zone is refused; the error says why, zone by zone.
pub(super) fn choose(config: &Config, resource: &Resource, feeds: Option<&FeedBoard>) -> Result<Placed> {
    let choice = candidates(config, resource, feeds);
    let refusals = || {
        let each = choice.candidates.iter().map(|one| format!("{}: {}", one.zone, one.why.join(", ")));
        each.collect::<Vec<_>>().join("; ")
    };
    let zone = choice.chosen.clone().with_context(|| {
        format!("resource {}: no zone will do for its shadow: {}", resource.name, refusals())
    })?;
    Ok(Placed { zone, choice })
}

/// Judges every zone for the shadow of a resource that is not led yet: nothing was measured in them.
pub fn candidates(config: &Config, resource: &Resource, feeds: Option<&FeedBoard>) -> ChoiceView {
    let drives = |zone: &str| match resource.placements.get(zone) {
        // Complete, or with a driver.
        Some(_) => true,
        None => resource.flexible.as_ref().is_some_and(|flexible| flexible.driver.is_some()),
    };
    zones::first_choice(config, resource, feeds, drives, clock::now())
}

/// The resource with exactly these two placements. One that the configuration does not have is its driver's to make.
pub fn settle(config: &Config, resource: &Resource, primary: &str, shadow: &str) -> Result<Resource> {
    let mut settled = resource.clone();
    settled.placements.retain(|zone, _| zone == primary || zone == shadow);
    let missing: Vec<&str> =
        [primary, shadow].into_iter().filter(|zone| !resource.placements.contains_key(*zone)).collect();
    for zone in missing {
        let name = &resource.name;
        let like = resource.placements.get(&resource.primary);
        let like =
            like.with_context(|| format!("resource {name} has no placement in {}", resource.primary))?;
        let driver = resource.flexible.as_ref().and_then(|flexible| flexible.driver.clone());
        let driver = driver.with_context(|| {
            format!("resource {name} has a placement in {zone}, says the journal; give it there, or a driver")
        })?;
        settled.placements.insert(
            zone.to_owned(),
            Placement {
                zone: zone.to_owned(),
                http: Vec::new(),
                upstream: like.upstream.clone(),
                probe: like.probe.clone(),
                postgres: None,
                capacity: like.capacity,
                cost_per_hour: config.zones.get(zone).and_then(|zone| zone.cost_per_hour),
                driver: Some(driver),
                provided: Provided { http: true, postgres: like.postgres.is_some() },
            },
        );
    }
    Ok(settled)
}
