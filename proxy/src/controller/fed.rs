//! What feeds say of one resource's zones, for a step: they replace what is configured, and say so.

use std::collections::BTreeMap;
use std::time::Duration;

use migration::units::Timestamp;
use migration::world::Fact;

use super::signals::Fed;
use crate::config::model::Resource;
use crate::feeds::external::board::FeedBoard;

/// `configured`: cost at full capacity by zone, per hour.
pub(super) fn read(
    board: &FeedBoard,
    resource: &Resource,
    configured: &BTreeMap<String, Option<f64>>,
    now: Timestamp,
) -> Fed {
    let (mut fed, mut costs) = (Fed::default(), BTreeMap::new());
    let zones: Vec<&str> = resource.placements.keys().map(String::as_str).collect();
    for (zone, placement) in &resource.placements {
        let cost = board.cost(&resource.name, zone, now);
        let full = |cost: Fact<f64>| cost.map(|worker| worker * f64::from(placement.capacity));
        costs.insert(zone.clone(), cost.map(full));
        let policy = &resource.policy;
        let steps = policy.horizon_steps().min(predictor::MAX_HORIZON);
        let foreseen = board.foreseen(&resource.name, zone, now, policy.step, steps);
        if !foreseen.is_empty() {
            fed.foreseen.insert(zone.clone(), foreseen);
        }
        if board.has_path(&resource.name, zone) {
            fed.paths.insert(zone.clone(), board.path(&resource.name, zone, now));
        }
        if let Some(busy) = board.utilization(&resource.name, zone, now) {
            fed.utilization.insert(zone.clone(), busy);
        }
    }
    fed.cost = of_one_source(costs, configured);
    (fed.maintenance, fed.maintenance_unknown) = board.maintenance(&resource.name, &zones, now);
    fed
}

/// Costs that can be compared: a feed may price something else (a core, say) than the configuration does (a worker). Either every zone's is
/// from feeds, or every zone's from the configuration; where not all have it there either, what no feed says is unknown.
pub(super) fn of_one_source(
    fed: BTreeMap<String, Option<Fact<f64>>>,
    configured: &BTreeMap<String, Option<f64>>,
) -> BTreeMap<String, Fact<f64>> {
    let own = |zone: &str| configured.get(zone).copied().flatten();
    let unsaid = |zone: &String| Fact::unknown(format!("no feed says what {zone} costs"));
    let is_known = |cost: &Option<Fact<f64>>| cost.as_ref().is_some_and(|cost| cost.value().is_some());
    let lacking = fed.iter().find(|(_, cost)| !is_known(cost));
    let Some((zone, lacking)) = lacking.filter(|_| fed.values().any(is_known)) else {
        let spoken = fed.into_iter().filter_map(|(zone, cost)| Some((zone, cost?)));
        return spoken.map(|(zone, cost)| (zone.clone(), or_configured(cost, own(&zone)))).collect();
    };
    let why = lacking.clone().unwrap_or_else(|| unsaid(zone));
    let all_configured = fed.keys().all(|zone| own(zone).is_some());
    fed.into_iter()
        .map(|(zone, cost)| {
            let cost = match cost {
                Some(cost) if !all_configured => cost,
                None if !all_configured => unsaid(&zone),
                _ => or_configured(Fact::unknown(why.why_unknown().unwrap_or_default()), own(&zone)),
            };
            (zone, cost)
        })
        .collect()
}

/// What is unknown is what was configured, if that was; it stays unknown otherwise, and is never 0.
fn or_configured(fed: Fact<f64>, configured: Option<f64>) -> Fact<f64> {
    match (fed, configured) {
        (Fact::Unknown { why }, Some(cost)) => {
            Fact::known(cost, Duration::ZERO, format!("configuration, because {why}"))
        }
        (fed, _) => fed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_feed_says_of_one_zone_is_not_compared_with_what_is_configured_for_the_other() {
        fn zones<T>(west: T, east: T) -> BTreeMap<String, T> {
            BTreeMap::from([("west".to_owned(), west), ("east".to_owned(), east)])
        }
        let said = |cost| Some(Fact::known(cost, Duration::ZERO, "feed opencost"));
        let stale = || Some(Fact::unknown("feed opencost is 2 h old"));
        let both = |fed, west, east| {
            let costs = of_one_source(fed, &zones(west, east));
            ["west", "east"].map(|zone| costs.get(zone).and_then(|cost| cost.value().copied()))
        };
        // A core costs 0.03, a worker 1.6.
        let fed = || zones(said(0.03), stale());
        assert_eq!(both(fed(), Some(1.6), Some(1.2)), [Some(1.6), Some(1.2)]);
        assert_eq!(both(fed(), Some(1.6), None), [Some(0.03), None]);
        assert_eq!(both(fed(), None, Some(1.2)), [Some(0.03), None]);
        // A zone of which no feed speaks would have its configured cost.
        assert_eq!(both(zones(said(0.03), None), None, Some(1.2)), [Some(0.03), None]);
        assert_eq!(both(zones(said(0.03), None), Some(1.6), Some(1.2)), [Some(1.6), Some(1.2)]);
        assert_eq!(both(zones(said(0.03), said(0.02)), Some(1.6), Some(1.2)), [Some(0.03), Some(0.02)]);
        assert_eq!(both(zones(stale(), stale()), Some(1.6), None), [Some(1.6), None]);
        assert!(of_one_source(zones(None, None), &zones(Some(1.6), Some(1.2))).is_empty());
        let costs = of_one_source(zones(said(0.03), None), &zones(Some(1.6), Some(1.2)));
        let Fact::Known { source, .. } = &costs["west"] else { panic!("{costs:?}") };
        assert_eq!(source, "configuration, because no feed says what east costs");
    }

    #[test]
    fn an_unknown_cost_is_the_configured_one_or_stays_unknown() {
        let unknown = || Fact::<f64>::unknown("feed opencost is 2 h old, 15 min are allowed");
        match or_configured(unknown(), Some(1.6)) {
            Fact::Known { value, source, .. } => {
                assert!((value - 1.6).abs() < f64::EPSILON);
                assert_eq!(source, "configuration, because feed opencost is 2 h old, 15 min are allowed");
            }
            Fact::Unknown { why } => panic!("{why}"),
        }
        assert_eq!(or_configured(unknown(), None), unknown());
        let known = Fact::known(0.5, Duration::from_secs(3), "feed opencost");
        assert_eq!(or_configured(known.clone(), Some(1.6)), known);
    }
}
