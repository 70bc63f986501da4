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
    let mut fed = Fed::default();
    let zones: Vec<&str> = resource.placements.keys().map(String::as_str).collect();
    for (zone, placement) in &resource.placements {
        if let Some(cost) = board.cost(&resource.name, zone, now) {
            let cost = cost.map(|worker| worker * f64::from(placement.capacity));
            let own = configured.get(zone).copied().flatten();
            fed.cost.insert(zone.clone(), or_configured(cost, own));
        }
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
    (fed.maintenance, fed.maintenance_unknown) = board.maintenance(&resource.name, &zones, now);
    fed
}

/// What is unknown is what was configured, if that was; it stays unknown otherwise, and is never 0.
pub(super) fn or_configured(fed: Fact<f64>, configured: Option<f64>) -> Fact<f64> {
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
