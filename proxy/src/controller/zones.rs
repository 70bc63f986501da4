//! Which zone the shadow should live in: what the configuration and the last measurements say of each, judged by
//! [`migration::zones`].

use std::collections::BTreeMap;
use std::time::Duration;

use migration::units::Timestamp;
use migration::world::Fact;
use migration::zones::{Candidate, Judged, Place, Verdict, broken, choose};
use serde::{Deserialize, Serialize};

use super::fed::of_one_source;
use super::view::ResourceView;
use crate::config::model::{Config, Resource, Zone};
use crate::feeds::external::board::FeedBoard;

/// A configured zone, with what the catalogue adds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ZoneView {
    /// Its name.
    pub name: String,
    /// Cloud or owner.
    pub provider: Option<String>,
    /// The provider's name of it.
    pub region: Option<String>,
    /// ISO 3166-1 alpha-2.
    pub country: Option<String>,
    /// Who balances the electricity there.
    pub grid: Option<String>,
    /// Latitude and longitude, degrees.
    pub location: Option<[f64; 2]>,
    /// The resources that have a placement there.
    pub resources: Vec<String>,
}

/// A candidate, judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CandidateView {
    /// Its name.
    pub zone: String,
    /// `chosen`, `lost`, `refused`.
    pub verdict: String,
    /// Why it was not chosen; empty: it was.
    pub why: Vec<String>,
    /// Weighted mean of the terms, 0 to 1, less is better.
    pub burden: f64,
    /// Distance, history, cost.
    pub terms: Vec<BurdenView>,
}

/// A term of a candidate's burden.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BurdenView {
    /// `distance`, `history`, `cost`.
    pub name: String,
    /// 0 to 1; what is unknown counts as 1.
    pub burden: f64,
    /// Its share of all weights.
    pub weight: f64,
    /// The numbers that went in.
    pub detail: String,
}

/// What a choice answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ChoiceView {
    /// The resource.
    pub resource: String,
    /// Where it is served.
    pub primary: String,
    /// Where its shadow is now.
    pub shadow: String,
    /// The zone that fits best; none: every one is refused.
    pub chosen: Option<String>,
    /// Every candidate: the chosen one first, then by burden, then the refused.
    pub candidates: Vec<CandidateView>,
}

/// Every configured zone.
pub fn zones(config: &Config) -> Vec<ZoneView> {
    let with_placement = |name: &str| {
        let has = |resource: &&Resource| resource.placements.contains_key(name);
        config.resources.values().filter(has).map(|resource| resource.name.clone()).collect()
    };
    config
        .zones
        .iter()
        .map(|(name, zone)| ZoneView {
            name: name.clone(),
            provider: zone.provider.clone(),
            region: zone.region.clone(),
            country: zone.country.clone(),
            grid: zone.grid.clone(),
            location: zone.location.map(|at| [at.latitude(), at.longitude()]),
            resources: with_placement(name),
        })
        .collect()
}

/// Latency spikes a day by zone, or why there is no rate; or why the history cannot be read.
pub type Spikes = Result<BTreeMap<String, Result<f64, String>>, String>;

/// Judges every zone of the configuration for the shadow of `resource`, by what its view and feeds say now and by its history.
pub fn choice(
    config: &Config,
    resource: &Resource,
    view: &ResourceView,
    spikes: &Spikes,
    feeds: &FeedBoard,
    now: Timestamp,
) -> ChoiceView {
    let zones: Vec<_> = config.zones.iter().collect();
    let costs = costs(&zones, &view.primary, resource, |zone| feeds.cost(&resource.name, zone, now));
    let candidate = |((name, zone), cost): ((&String, &Zone), Fact<f64>)| Candidate {
        place: place(name, zone),
        latency_ms: latency(name, view),
        spikes_per_day: spikes_per_day(name, spikes),
        cost,
    };
    let all: Vec<Candidate> = zones.into_iter().zip(costs).map(candidate).collect();
    let primary = all.iter().find(|candidate| *candidate.place.zone.0 == *view.primary);
    // The primary is a placement, and each placement names a zone of the configuration.
    let judged = primary.map(|primary| choose(&resource.policy.zones, primary, &all));
    ChoiceView {
        resource: view.name.clone(),
        primary: view.primary.clone(),
        shadow: view.shadow.clone(),
        chosen: judged.as_ref().and_then(|choice| Some(choice.chosen()?.to_string())),
        candidates: judged.iter().flat_map(|choice| &choice.0).map(candidate_view).collect(),
    }
}

/// Judges the zones for the shadow of a resource of which nothing was measured yet; where nothing `drives` a placement, none
/// can be made.
pub fn first_choice(
    config: &Config,
    resource: &Resource,
    feeds: Option<&FeedBoard>,
    drives: impl Fn(&str) -> bool,
    now: Timestamp,
) -> ChoiceView {
    let unmeasured = || Fact::unknown("no placement there, so nothing is measured");
    let candidate = |((name, zone), cost): ((&String, &Zone), Fact<f64>)| Candidate {
        place: place(name, zone),
        latency_ms: unmeasured(),
        spikes_per_day: unmeasured(),
        cost,
    };
    let (all, without): (Vec<_>, Vec<_>) =
        config.zones.iter().partition(|(name, _)| **name == resource.primary || drives(name));
    let fed = |zone: &str| feeds.and_then(|feeds| feeds.cost(&resource.name, zone, now));
    let costs = costs(&all, &resource.primary, resource, fed);
    let all: Vec<Candidate> = all.into_iter().zip(costs).map(candidate).collect();
    let primary = all.iter().find(|candidate| *candidate.place.zone.0 == *resource.primary);
    let judged = primary.map(|primary| choose(&resource.policy.zones, primary, &all));
    let mut candidates: Vec<CandidateView> =
        judged.iter().flat_map(|choice| &choice.0).map(candidate_view).collect();
    candidates.extend(without.into_iter().map(|(name, _)| CandidateView {
        zone: name.clone(),
        verdict: "refused".into(),
        why: vec!["no driver provisions there".into()],
        burden: 1.0,
        terms: Vec::new(),
    }));
    ChoiceView {
        resource: resource.name.clone(),
        primary: resource.primary.clone(),
        shadow: String::new(),
        chosen: judged.as_ref().and_then(|choice| Some(choice.chosen()?.to_string())),
        candidates,
    }
}

fn place(name: &str, zone: &Zone) -> Place {
    Place {
        zone: name.into(),
        provider: zone.provider.clone(),
        region: zone.region.clone(),
        country: zone.country.clone(),
        grid: zone.grid.clone(),
        location: zone.location,
    }
}

/// What a worker costs in each of these zones, in their order: by one source in the primary and wherever the shadow may be. The others are
/// only shown.
fn costs(
    zones: &[(&String, &Zone)],
    primary: &str,
    resource: &Resource,
    fed: impl Fn(&str) -> Option<Fact<f64>>,
) -> Vec<Fact<f64>> {
    let primary = zones.iter().find(|(name, _)| *name == primary).map(|(name, zone)| place(name, zone));
    let rules = &resource.policy.zones;
    let counts = |(name, zone): &(&String, &Zone)| {
        primary.as_ref().is_some_and(|primary| {
            *primary.zone.0 == **name || broken(rules, primary, &place(name, zone)).is_empty()
        })
    };
    let counting = zones.iter().copied().filter(counts);
    let mut all = of_one(configured(counting, resource), &fed);
    let alone = |zone| of_one(configured(std::iter::once(zone), resource), &fed);
    zones
        .iter()
        .filter_map(|(name, zone)| all.remove(*name).or_else(|| alone((*name, *zone)).remove(*name)))
        .collect()
}

/// Of all of them what feeds say, or of all of them what is configured.
fn of_one(
    configured: BTreeMap<String, Option<f64>>,
    fed: impl Fn(&str) -> Option<Fact<f64>>,
) -> BTreeMap<String, Fact<f64>> {
    let said = configured.keys().map(|zone| (zone.clone(), fed(zone))).collect();
    let mut costs = of_one_source(said, &configured);
    let unsaid = |configured: Option<f64>| match configured {
        Some(cost) => Fact::known(cost, Duration::ZERO, "configuration"),
        None => Fact::unknown("no cost is configured"),
    };
    let cost = |(zone, configured)| {
        let cost = costs.remove(&zone).unwrap_or_else(|| unsaid(configured));
        (zone, cost)
    };
    configured.into_iter().map(cost).collect()
}

/// The forecast of the probe there, which is measured alike in every zone.
fn latency(zone: &str, view: &ResourceView) -> Fact<f64> {
    let Some(placement) = view.placements.iter().find(|placement| placement.zone == zone) else {
        return Fact::unknown("no placement there, so nothing is measured");
    };
    match placement.forecast_ms {
        Some(ms) => Fact::known(ms, Duration::ZERO, "forecast of the probe"),
        None => Fact::unknown("too few probes to forecast from"),
    }
}

/// Spikes of the probe there, as [`crate::history::spikes`] defines them.
fn spikes_per_day(zone: &str, spikes: &Spikes) -> Fact<f64> {
    match spikes.as_ref().map(|by_zone| by_zone.get(zone)) {
        Ok(Some(Ok(rate))) => Fact::known(*rate, Duration::ZERO, "history of the probe"),
        Ok(Some(Err(why))) | Err(why) => Fact::unknown(why.clone()),
        Ok(None) => Fact::unknown("no placement there, so nothing is measured"),
    }
}

/// Per worker and hour, by zone.
fn configured<'z>(
    zones: impl Iterator<Item = (&'z String, &'z Zone)>,
    resource: &Resource,
) -> BTreeMap<String, Option<f64>> {
    let cost = |(name, zone): (&String, &Zone)| {
        let placement = resource.placements.get(name).and_then(|placement| placement.cost_per_hour);
        (name.clone(), placement.or(zone.cost_per_hour))
    };
    zones.map(cost).collect()
}

fn candidate_view(judged: &Judged) -> CandidateView {
    let (verdict, why) = match &judged.verdict {
        Verdict::Chosen => ("chosen", Vec::new()),
        Verdict::Lost { to, by, most_in } => {
            ("lost", vec![format!("{to} has {by:.3} less, most of it in {most_in}")])
        }
        Verdict::Refused(why) => ("refused", why.clone()),
    };
    CandidateView {
        zone: judged.zone.to_string(),
        verdict: verdict.into(),
        why,
        burden: judged.burden,
        terms: judged
            .terms
            .iter()
            .map(|term| BurdenView {
                name: term.name.into(),
                burden: term.burden,
                weight: term.weight,
                detail: term.detail.clone(),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_feed_says_of_one_zone_is_not_compared_with_what_is_configured_for_another() {
        let by_zone = |costs: [Option<f64>; 3]| {
            ["east", "north", "west"].map(str::to_owned).into_iter().zip(costs).collect::<BTreeMap<_, _>>()
        };
        let of = |own: [Option<f64>; 3], fed: [Option<f64>; 3]| {
            let fed = by_zone(fed);
            let said = |zone: &str| Some(Fact::known(fed[zone]?, Duration::ZERO, "feed opencost"));
            of_one(by_zone(own), said).values().map(|cost| cost.value().copied()).collect::<Vec<_>>()
        };
        // A core costs 0.03, a worker 1.6.
        let workers = [Some(1.6), Some(1.2), Some(1.4)];
        assert_eq!(of(workers, [Some(0.03), None, Some(0.04)]), workers);
        assert_eq!(
            of([Some(1.6), None, Some(1.4)], [Some(0.03), None, Some(0.04)]),
            [Some(0.03), None, Some(0.04)]
        );
        let cores = [Some(0.03), Some(0.05), Some(0.04)];
        assert_eq!(of(workers, cores), cores);
        assert_eq!(of([Some(1.6), None, Some(1.4)], [None; 3]), [Some(1.6), None, Some(1.4)]);
    }

    #[test]
    fn a_zone_where_the_shadow_may_not_be_takes_nobodys_price_away() {
        use crate::config::{load, samples};
        let folder = tempfile::tempdir().expect("temporary directory");
        let costly = "near: { cost: 1.60/h }, far: { cost: 1.60/h }, us: { cost: 1.60/h } }";
        let text = samples::ORDERS.replacen("near: {}, far: {} }", costly, 1);
        let file = samples::write(folder.path(), &text);
        std::fs::write(
            folder.path().join("policies/p.yaml"),
            "shadow: { zones: { deny: [us], min_distance_km: 0, same_grid: true } }\n",
        )
        .expect("write");
        let config = load(&file).expect("valid");
        let resource = &config.resources["orders"];
        let zones: Vec<_> = config.zones.iter().collect();
        let fed = |zone: &str| (zone != "us").then(|| Fact::known(0.03, Duration::ZERO, "feed opencost"));
        let costs = costs(&zones, "near", resource, fed);
        let costs: Vec<_> = costs.iter().map(|cost| cost.value().copied()).collect();
        assert_eq!(costs, [Some(0.03), Some(0.03), Some(1.6)]);
    }
}
