//! What the board says to a decision, and whether a finding fits what its feed is for: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use migration::units::Timestamp;
use migration::world::{Fact, Maintenance, Path};

use super::board::{FeedBoard, FeedState};
use super::finding::{Event, Finding, Value};
use super::places::{Places, measured};
use super::{Feed, Use};

/// An event without an end is believed to last for so long after its feed last had it.
const OPEN_END: Duration = Duration::from_secs(7 * 24 * 3600);
/// Units of a cost, in hours.
const COSTS: [(&str, f64); 4] = [("/h", 1.0), ("/d", 24.0), ("/month", 730.0), ("/year", 8760.0)];
/// Units of a utilisation, as a share.
const SHARES: [(&str, f64); 2] = [("ratio", 1.0), ("%", 0.01)];
/// Numbers about the way to a zone, with their units; the first is meant where none is said.
const WAYS: [(&str, &[(&str, f64)]); 4] = [
    (RTT, &[("ms", 1.0), ("s", 1000.0)]),
    (LOSS, &SHARES),
    (ROUTE_AGE, &[("s", 1000.0), ("ms", 1.0)]),
    ("hops", &[("", 1.0)]),
];
const RTT: &str = "rtt";
const LOSS: &str = "loss";
const ROUTE_AGE: &str = "route_age";
/// Busier than this is taken for a percentage without its unit.
const BUSIEST: f64 = 2.0;

/// Whether `finding` is of use to `feed`; why not, and what would be right.
pub fn fits(feed: &Feed, finding: &Finding) -> Result<(), String> {
    match (feed.serves, finding) {
        (Use::Cost | Use::Utilization, Finding::Event(event)) => Err(format!(
            "a feed of {} gives numbers, and this is an event: {:?}; `use: maintenance` or `use: events`",
            feed.serves.name(),
            event.title
        )),
        (Use::Cost | Use::Utilization, Finding::Value(value)) => {
            if value.zones.is_empty() && matches!(feed.places, Places::Named(_)) {
                return Err("a value names no zone; give the feed `zone: ZONE`, or let its map give {zone: …}".into());
            }
            number(feed.serves, value).map(drop)
        }
        (Use::Path, Finding::Value(value)) => number(feed.serves, value).map(drop),
        (Use::Maintenance, Finding::Value(_)) => {
            Err("a feed of maintenance gives events, and this is a number; {event: \"maintenance\", title, starts, ends}".into())
        }
        _ => Ok(()),
    }
}

/// The number in the unit of its use: cost for an hour, a share, or what each number about a way has.
fn number(serves: Use, value: &Value) -> Result<f64, String> {
    let units: &[(&str, f64)] = match serves {
        Use::Cost => &COSTS,
        Use::Path => {
            let name = value.name.as_deref().unwrap_or_default();
            let known = WAYS.iter().find(|(known, _)| *known == name);
            let names = WAYS.map(|(name, _)| name).join(", ");
            known.ok_or_else(|| format!("{name:?} is no number of a path; known here: {names}"))?.1
        }
        _ => &SHARES,
    };
    let unit = value.unit.as_deref().unwrap_or(units[0].0);
    let Some((_, size)) = units.iter().find(|(name, _)| *name == unit) else {
        let known: Vec<&str> = units.iter().map(|(name, _)| *name).collect();
        return Err(format!("{unit:?} is no unit of {}; known here: {}", serves.name(), known.join(", ")));
    };
    if value.value < 0.0 {
        return Err(format!("{} is negative", value.value));
    }
    if serves == Use::Cost {
        return Ok(value.value / size);
    }
    let share = value.value * size;
    if serves == Use::Path && value.name.as_deref() != Some(LOSS) {
        return Ok(share);
    }
    if share > BUSIEST {
        return Err(format!(
            "{} is no share of 0 to 1; give it `unit: \"%\"` if it is a percentage",
            value.value
        ));
    }
    Ok(share.min(1.0))
}

/// What a feed's values were when they were last told.
#[derive(Clone, Debug)]
pub struct Said {
    fetched: Timestamp,
    /// The newest of each name.
    measured: BTreeMap<String, Timestamp>,
}

impl FeedBoard {
    /// Cost of one worker in `zone` for an hour; `None`: no feed speaks of that.
    pub fn cost(&self, resource: &str, zone: &str, now: Timestamp) -> Option<Fact<f64>> {
        self.number(Use::Cost, None, resource, zone, now)
    }

    /// How busy `resource` is in `zone`, 0 to 1; `None`: no feed speaks of that.
    pub fn utilization(&self, resource: &str, zone: &str, now: Timestamp) -> Option<Fact<f64>> {
        self.number(Use::Utilization, None, resource, zone, now)
    }

    /// The way to `zone`; what no feed speaks of is unknown.
    pub fn path(&self, resource: &str, zone: &str, now: Timestamp) -> Path {
        let of = |name: &'static str| {
            let unsaid = || Fact::unknown(format!("no feed of use path says {name} of {zone}"));
            self.number(Use::Path, Some(name), resource, zone, now).unwrap_or_else(unsaid)
        };
        Path { rtt_ms: of(RTT), loss: of(LOSS), route_age_ms: of(ROUTE_AGE) }
    }

    /// Whether any feed is about the way to `zone`.
    pub fn has_path(&self, resource: &str, zone: &str) -> bool {
        self.speaking(Use::Path, resource, zone).next().is_some()
    }

    /// Values that feeds said since the last time and that count, with their times; `said` remembers what that was. A value that is no newer than
    /// the last of its name is none. Forecasts of a feed are not among them. Each is named by its feed, then by zone and number where it has them.
    pub fn said(&self, said: &mut BTreeMap<String, Said>, now: Timestamp) -> Vec<(String, f64, Timestamp)> {
        let mut found = Vec::new();
        for (feed, state) in self.all() {
            let last = said.get(&feed.name);
            let new = |at: &Timestamp| last.is_none_or(|last| last.fetched < *at);
            let Some(at) = state.at.filter(new).filter(|_| state.stale(feed, now).is_none()) else {
                continue;
            };
            let before = |series: &str| last.and_then(|last| last.measured.get(series)).copied();
            let mut said_now = Said { fetched: at, measured: BTreeMap::new() };
            for finding in &state.understood.findings {
                let Finding::Value(value) = finding else { continue };
                let measured = measured(value.at, at, now);
                if value.about.is_some() || now.since(measured) > feed.stale_after {
                    continue;
                }
                let zones = if value.zones.is_empty() { &[String::new()][..] } else { &value.zones[..] };
                for zone in zones {
                    let zone = Some(zone).filter(|zone| !zone.is_empty());
                    let parts = [Some(&feed.name), zone, value.name.as_ref()].into_iter().flatten();
                    let series = parts.map(String::as_str).collect::<Vec<_>>().join(".");
                    let newest = said_now.measured.entry(series.clone()).or_insert(measured);
                    *newest = measured.max(*newest);
                    if before(&series).is_none_or(|before| before < measured) {
                        found.push((series, value.value, measured));
                    }
                }
            }
            said.insert(feed.name.clone(), said_now);
        }
        found
    }

    pub(super) fn speaking(
        &self,
        serves: Use,
        resource: &str,
        zone: &str,
    ) -> impl Iterator<Item = (&Feed, FeedState)> {
        self.all().filter_map(move |(feed, state)| {
            let of_resource = feed.resource.as_deref().is_none_or(|own| own == resource);
            (feed.serves == serves && of_resource && feed.places.include(zone))
                .then(|| (&**feed, (*state).clone()))
        })
    }

    /// The first feed that knows; else why the first one does not.
    fn number(
        &self,
        serves: Use,
        name: Option<&str>,
        resource: &str,
        zone: &str,
        now: Timestamp,
    ) -> Option<Fact<f64>> {
        let mut unknown = None;
        for (feed, state) in self.speaking(serves, resource, zone) {
            let fact = of_zone(feed, &state, zone, name, now);
            if fact.value().is_some() {
                return Some(fact);
            }
            unknown.get_or_insert(fact);
        }
        unknown
    }

    /// Maintenance of `zones` that is not over, soonest first, and why there may be more: a window that was announced
    /// stays one when its feed falls silent.
    pub fn maintenance(
        &self,
        resource: &str,
        zones: &[&str],
        now: Timestamp,
    ) -> (Vec<Maintenance>, Option<String>) {
        let (mut windows, mut unknown) = (Vec::new(), BTreeSet::new());
        for zone in zones {
            for (feed, state) in self.speaking(Use::Maintenance, resource, zone) {
                unknown.extend(state.stale(feed, now));
                unknown.extend(unread(feed, &state.understood.notes));
                let said = state.at.unwrap_or(now);
                let fresh = state.stale(feed, now).is_none();
                for finding in &state.understood.findings {
                    let Finding::Event(event) = finding else { continue };
                    let goes_on = || fresh && under_way(event, &state.understood.findings, now);
                    let ends = event.ends.filter(|ends| now <= *ends || !goes_on());
                    if over(event.starts, ends, said, now) {
                        continue;
                    }
                    if event.zones.is_empty() {
                        unknown.insert(format!(
                            "feed {} announces {:?} and names no zone",
                            feed.name, event.title
                        ));
                    }
                    if !event.zones.iter().any(|named| named == zone) {
                        continue;
                    }
                    windows.push(Maintenance {
                        zone: (*zone).into(),
                        title: event.title.clone(),
                        starts: event.starts,
                        ends,
                        source: format!("feed {}", feed.name),
                    });
                }
            }
        }
        windows.sort_by_key(|window| window.starts);
        let unknown: Vec<String> = unknown.into_iter().collect();
        (windows, (!unknown.is_empty()).then(|| unknown.join("; ")))
    }
}

/// What a feed's decoder could not read may be the window that matters.
fn unread(feed: &Feed, notes: &[String]) -> Option<String> {
    let more = match notes.len() {
        0 => return None,
        1 => String::new(),
        several => format!(" (and {} more)", several - 1),
    };
    Some(format!("feed {} was not read as a whole: {}{more}", feed.name, notes[0]))
}

/// Whether its feed says that it goes on, whatever end was planned. A calendar says so of every occurrence of an event: the newest one that has begun
/// is meant.
fn under_way(event: &Event, said: &[Finding], now: Timestamp) -> bool {
    let newer = |finding: &Finding| {
        matches!(finding, Finding::Event(other) if other.under_way && other.id == event.id
            && other.starts > event.starts && other.starts <= now)
    };
    event.under_way && (event.id.is_none() || !said.iter().any(newer))
}

/// `said`: when its feed last had it.
fn over(starts: Timestamp, ends: Option<Timestamp>, said: Timestamp, now: Timestamp) -> bool {
    ends.unwrap_or_else(|| starts.max(said).after(OPEN_END)) < now
}

/// The newest number of `zone`; with a `name`, of that name.
fn of_zone(feed: &Feed, state: &FeedState, zone: &str, name: Option<&str>, now: Timestamp) -> Fact<f64> {
    if let Some(why) = state.stale(feed, now) {
        return Fact::unknown(why);
    }
    let fetched = state.at.unwrap_or(now);
    let said = || {
        state.understood.findings.iter().filter_map(|finding| match finding {
            Finding::Value(value)
                if value.about.is_none()
                    && name.is_none_or(|name| value.name.as_deref() == Some(name))
                    && value.zones.iter().any(|named| named == zone) =>
            {
                Some((measured(value.at, fetched, now), value))
            }
            _ => None,
        })
    };
    let newest = said().max_by_key(|(at, _)| *at);
    let what = || name.map_or_else(String::new, |name| format!("{name} of "));
    let Some((at, value)) = newest else {
        return Fact::unknown(format!("feed {} says nothing of {}{zone}", feed.name, what()));
    };
    let differs = |(also, other): &(Timestamp, &Value)| {
        *also == at && (other.value.to_bits(), &other.unit) != (value.value.to_bits(), &value.unit)
    };
    if let Some((_, other)) = said().find(differs) {
        // Which of several places is meant nobody said.
        return Fact::unknown(format!(
            "feed {} says both {} and {} of {}{zone}: name one place in its `zones`, or have its `map` make one value of them",
            feed.name,
            other.value,
            value.value,
            what()
        ));
    }
    let age = now.since(at);
    if age > feed.stale_after {
        return Fact::unknown(format!(
            "what feed {} says of {zone} is {} old, {} are allowed",
            feed.name,
            super::moment::span(age),
            super::moment::span(feed.stale_after)
        ));
    }
    match number(feed.serves, value) {
        Ok(number) => Fact::known(number, age, format!("feed {}", feed.name)),
        Err(why) => Fact::unknown(format!("feed {}: {why}", feed.name)),
    }
}

#[cfg(test)]
mod tests;
