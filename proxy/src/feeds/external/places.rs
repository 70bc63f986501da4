//! Which zones a feed speaks of, and by which names.

use migration::units::Timestamp;

use super::finding::Finding;

/// A zone and the names a feed may give it.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// The configured zone.
    pub zone: String,
    /// Other names: patterns in lower case, `*` stands for anything.
    pub names: Vec<String>,
    /// Cloud or owner.
    pub provider: Option<String>,
    /// The provider's name of it.
    pub region: Option<String>,
    /// ISO 3166-1 alpha-2.
    pub country: Option<String>,
    /// Latitude and longitude, degrees.
    pub location: Option<(f64, f64)>,
}

impl Place {
    fn is_called(&self, name: &str) -> bool {
        let name = name.to_lowercase();
        self.zone.to_lowercase() == name || self.names.iter().any(|pattern| matches(pattern, &name))
    }
}

/// The zones of a feed.
#[derive(Clone, Debug, PartialEq)]
pub enum Places {
    /// All that the feed says is about this one.
    One(Place),
    /// The feed says which.
    Named(Vec<Place>),
}

impl Places {
    /// Every zone, in the configured order.
    pub fn all(&self) -> &[Place] {
        match self {
            Self::One(place) => std::slice::from_ref(place),
            Self::Named(places) => places,
        }
    }

    /// Whether the feed speaks of `zone`.
    pub fn include(&self, zone: &str) -> bool {
        self.all().iter().any(|place| place.zone == zone)
    }

    /// Puts zones in the place of the feed's own names. Gives back how many findings were about other places, and left
    /// out for that.
    pub fn assign(&self, findings: Vec<Finding>) -> (Vec<Finding>, usize) {
        let before = findings.len();
        let kept: Vec<Finding> = findings.into_iter().filter_map(|finding| self.one(finding)).collect();
        let left_out = before - kept.len();
        (kept, left_out)
    }

    fn one(&self, mut finding: Finding) -> Option<Finding> {
        let zones = finding.zones_mut();
        match self {
            Self::One(place) => *zones = vec![place.zone.clone()],
            Self::Named(_) if zones.is_empty() => {}
            Self::Named(places) => {
                let called = |place: &&Place| zones.iter().any(|name| place.is_called(name));
                let found: Vec<String> =
                    places.iter().filter(called).map(|place| place.zone.clone()).collect();
                if found.is_empty() {
                    return None;
                }
                *zones = found;
            }
        }
        Some(finding)
    }
}

/// When a value was measured, at the latest `now`: a clock that runs ahead must not keep a value fresh for ever.
pub fn measured(at: Option<Timestamp>, fetched: Timestamp, now: Timestamp) -> Timestamp {
    at.unwrap_or(fetched).min(now)
}

/// Whether `text` fits `pattern`, in which `*` stands for anything. Linear in both but for the stars.
pub fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.len() >= last.len() && rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::super::finding::{Event, Value};
    use super::*;

    fn place(zone: &str, names: &[&str]) -> Place {
        Place {
            zone: zone.into(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            provider: None,
            region: None,
            country: None,
            location: None,
        }
    }

    fn value(zones: &[&str]) -> Finding {
        let zones = zones.iter().map(|zone| (*zone).to_owned()).collect();
        Finding::Value(Value { zones, value: 1.0, ..Value::default() })
    }

    #[test]
    fn patterns() {
        assert!(matches("eu-west-1", "eu-west-1") && !matches("eu-west-1", "eu-west-1a"));
        assert!(matches("*eu-west-1*", "amazon - eu-west-1 (ireland)"));
        assert!(matches("*.example", "a.example") && !matches("*.example", "example"));
        assert!(matches("a*b*c", "a1b2c") && !matches("a*b*c", "a1c2b"));
        // The same letters must not be used twice.
        assert!(!matches("ab*ba", "aba") && matches("ab*ba", "abba"));
        assert!(matches("*", "") && matches("*", "x") && !matches("", "x"));
    }

    #[test]
    fn findings_are_assigned_by_name_and_others_left_out() {
        let places = Places::Named(vec![place("west", &["eu-west-1", "ie"]), place("central", &["de"])]);
        let found = vec![value(&["EU-WEST-1"]), value(&["us-east-1"]), value(&["DE", "IE"]), value(&[])];
        let (kept, left_out) = places.assign(found);
        let zones: Vec<&[String]> = kept.iter().map(Finding::zones).collect();
        assert_eq!(zones, [vec!["west".to_owned()], vec!["west".into(), "central".into()], vec![]]);
        assert_eq!(left_out, 1);
    }

    #[test]
    fn a_feed_of_one_zone_speaks_of_nothing_else() {
        let event = Finding::Event(Event { zones: vec!["circuit 7".into()], ..Event::default() });
        let (kept, left_out) = Places::One(place("west", &[])).assign(vec![event, value(&[])]);
        assert!(kept.iter().all(|finding| finding.zones() == ["west"]) && kept.len() == 2 && left_out == 0);
    }

    #[test]
    fn a_value_from_the_future_is_as_old_as_now() {
        let now = Timestamp(1000);
        assert_eq!(measured(Some(Timestamp(9000)), Timestamp(500), now), now);
        assert_eq!(measured(Some(Timestamp(100)), Timestamp(500), now), Timestamp(100));
        assert_eq!(measured(None, Timestamp(500), now), Timestamp(500));
    }
}
