//! Choosing the shadow's zone: filters first, then distance, history and cost.
//!
//! A filter that a zone breaks takes it out, and so does a fact that a filter needs and that is not known: nothing is assumed
//! about where data may live. What is left is ranked by a weighted mean of three burdens, each between 0 (none) and 1:
//!
//! | term     | burden                                             | half of it at                  | when unknown |
//! |----------|----------------------------------------------------|--------------------------------|--------------|
//! | distance | d / (d + 2,000 km), great circle to the primary    | 2,000 km                       | 1            |
//! | history  | mean of l / (l + l primary) and s / (s + 1 a day)  | the primary's latency; 1 spike | 1, each half |
//! | cost     | c / (c + c primary)                                | the primary's price            | 1            |
//!
//! The scales do not depend on the other candidates: a zone that is added or taken away never changes how the rest are
//! ordered. The answer names every candidate with its terms and why it lost.

use crate::units::Zone;
use crate::world::Fact;

/// Kilometres at which the burden of distance is one half: about 20 ms there and back in fibre.
const HALF_DISTANCE_KM: f64 = 2_000.0;
/// Spikes a day at which their burden is one half.
const HALF_SPIKES: f64 = 1.0;
/// The mean radius of the Earth (IUGG), km.
const EARTH_RADIUS_KM: f64 = 6_371.009;

/// A point on the Earth, degrees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Location {
    latitude: f64,
    longitude: f64,
}

impl Location {
    /// `None` outside ±90 and ±180 degrees or when not a number.
    pub fn new(latitude: f64, longitude: f64) -> Option<Self> {
        let inside = (-90.0..=90.0).contains(&latitude) && (-180.0..=180.0).contains(&longitude);
        inside.then_some(Self { latitude, longitude })
    }

    /// Latitude, degrees north.
    pub fn latitude(self) -> f64 {
        self.latitude
    }

    /// Longitude, degrees east.
    pub fn longitude(self) -> f64 {
        self.longitude
    }

    /// Along the great circle (haversine formula, on a sphere: within 0.6 % of the ellipsoid), km.
    pub fn distance_km(self, other: Self) -> f64 {
        let [phi, other_phi] = [self.latitude, other.latitude].map(f64::to_radians);
        let half = |from: f64, to: f64| ((to - from).to_radians() / 2.0).sin().powi(2);
        let chord = half(self.latitude, other.latitude)
            + phi.cos() * other_phi.cos() * half(self.longitude, other.longitude);
        2.0 * EARTH_RADIUS_KM * chord.clamp(0.0, 1.0).sqrt().asin()
    }
}

/// What is known of where a zone is. Left out: not known.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// Its name, as configured.
    pub zone: Zone,
    /// Cloud or owner.
    pub provider: Option<String>,
    /// The provider's name of it.
    pub region: Option<String>,
    /// ISO 3166-1 alpha-2.
    pub country: Option<String>,
    /// Who balances the electricity there.
    pub grid: Option<String>,
    /// Where it is.
    pub location: Option<Location>,
}

impl Place {
    /// Whether `pattern` means this zone: its name, `provider/region`, or `provider/*`.
    fn is(&self, pattern: &str) -> bool {
        if pattern == &*self.zone.0 {
            return true;
        }
        match (pattern.split_once('/'), self.provider.as_deref()) {
            (Some((provider, "*")), Some(own)) => provider == own,
            (Some((provider, region)), Some(own)) => {
                provider == own && Some(region) == self.region.as_deref()
            }
            _ => false,
        }
    }
}

/// A zone and what speaks for or against it.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Where it is.
    pub place: Place,
    /// What users would wait there, p95 of the forecast, milliseconds.
    pub latency_ms: Fact<f64>,
    /// Latency spikes seen there, a day.
    pub spikes_per_day: Fact<f64>,
    /// One worker, an hour, in the currency of all prices.
    pub cost: Fact<f64>,
}

/// Weights of the terms, each at least 0, not all 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// Of the distance to the primary.
    pub distance: f64,
    /// Of latency and its spikes.
    pub history: f64,
    /// Of the price.
    pub cost: f64,
}

/// What the operator allows and prefers.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Only these: names, `provider/region` or `provider/*`. Empty: all.
    pub allow: Vec<String>,
    /// Never these.
    pub deny: Vec<String>,
    /// Countries that may hold the data, ISO 3166-1 alpha-2. Empty: all.
    pub residency: Vec<String>,
    /// Nearer than this, one disaster takes both.
    pub min_distance_km: f64,
    /// Whether the primary's electricity grid will do.
    pub same_grid: bool,
    /// What matters how much.
    pub weights: Weights,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            deny: Vec::new(),
            residency: Vec::new(),
            min_distance_km: 100.0,
            same_grid: false,
            weights: Weights { distance: 0.3, history: 0.4, cost: 0.3 },
        }
    }
}

/// One term of a candidate's burden.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    /// `distance`, `history` or `cost`.
    pub name: &'static str,
    /// 0 to 1; what is unknown counts as 1.
    pub burden: f64,
    /// Its share of all weights.
    pub weight: f64,
    /// The numbers that went in, or why there are none.
    pub detail: String,
}

/// How a candidate fared.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It is the one.
    Chosen,
    /// Another has less burden.
    Lost {
        /// That one.
        to: Zone,
        /// How much less.
        by: f64,
        /// The term that made most of the difference.
        most_in: &'static str,
    },
    /// Filters that it breaks, in words.
    Refused(Vec<String>),
}

/// A candidate, judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// Which.
    pub zone: Zone,
    /// Its terms: distance, history, cost.
    pub terms: [Term; 3],
    /// Their weighted mean, 0 to 1, less is better.
    pub burden: f64,
    /// How it fared.
    pub verdict: Verdict,
}

/// The answer: every candidate, the chosen one first, then by burden, then the refused ones; all by name where equal.
#[must_use]
#[derive(Clone, Debug, PartialEq)]
pub struct Choice(pub Vec<Judged>);

impl Choice {
    /// The chosen zone; none when every candidate is refused.
    pub fn chosen(&self) -> Option<&Zone> {
        self.0.first().filter(|first| first.verdict == Verdict::Chosen).map(|first| &first.zone)
    }
}

/// Chooses the zone for the shadow of what runs at `primary`. The primary's own zone is no candidate: it is passed over.
pub fn choose(rules: &Rules, primary: &Candidate, candidates: &[Candidate]) -> Choice {
    let mut judged: Vec<Judged> = candidates
        .iter()
        .filter(|candidate| candidate.place.zone != primary.place.zone)
        .map(|candidate| {
            let terms = terms(&rules.weights, primary, candidate);
            let burden = terms.iter().map(|term| term.burden * term.weight).sum();
            let verdict = Verdict::Refused(broken(rules, &primary.place, &candidate.place));
            Judged { zone: candidate.place.zone.clone(), terms, burden, verdict }
        })
        .collect();
    let refused = |one: &Judged| matches!(&one.verdict, Verdict::Refused(why) if !why.is_empty());
    judged.sort_by(|a, b| {
        let by_burden = if refused(a) { std::cmp::Ordering::Equal } else { a.burden.total_cmp(&b.burden) };
        refused(a).cmp(&refused(b)).then(by_burden).then_with(|| a.zone.cmp(&b.zone))
    });
    let fit = judged.partition_point(|one| !refused(one));
    if let [best, others @ ..] = &mut judged[..fit] {
        best.verdict = Verdict::Chosen;
        for other in others {
            other.verdict = lost(other, best);
        }
    }
    Choice(judged)
}

fn lost(other: &Judged, best: &Judged) -> Verdict {
    let difference = |at: usize| (other.terms[at].burden - best.terms[at].burden) * best.terms[at].weight;
    let most = (0..best.terms.len()).max_by(|a, b| difference(*a).total_cmp(&difference(*b))).unwrap_or(0);
    Verdict::Lost { to: best.zone.clone(), by: other.burden - best.burden, most_in: best.terms[most].name }
}

/// The filters that `place` breaks; none: it may be chosen.
pub fn broken(rules: &Rules, primary: &Place, place: &Place) -> Vec<String> {
    let mut broken = Vec::new();
    if let Some(pattern) = rules.deny.iter().find(|pattern| place.is(pattern)) {
        broken.push(format!("denied by `{pattern}`"));
    }
    if !rules.allow.is_empty() && !rules.allow.iter().any(|pattern| place.is(pattern)) {
        broken.push(format!("not among the allowed: {}", rules.allow.join(", ")));
    }
    if !rules.residency.is_empty() {
        match &place.country {
            Some(country) if rules.residency.iter().any(|allowed| allowed.eq_ignore_ascii_case(country)) => {}
            Some(country) => broken.push(format!("data may not live in {country}")),
            None => broken.push("its country is not known, and data may live in some only".to_owned()),
        }
    }
    if rules.min_distance_km > 0.0 {
        match distance(primary, place) {
            Some(km) if km >= rules.min_distance_km => {}
            Some(km) => broken.push(format!("{km:.0} km away, at least {:.0} wanted", rules.min_distance_km)),
            None => broken
                .push(format!("its distance is not known, at least {:.0} km wanted", rules.min_distance_km)),
        }
    }
    if place.region.is_some() && place.provider == primary.provider && place.region == primary.region {
        broken.push("the same region as the primary".to_owned());
    }
    if !rules.same_grid {
        match (&primary.grid, &place.grid) {
            (Some(own), Some(other)) if own != other => {}
            (Some(own), Some(_)) => broken.push(format!("the same electricity grid as the primary, {own}")),
            (None, _) => broken.push("the primary's electricity grid is not known".to_owned()),
            (_, None) => broken.push("its electricity grid is not known".to_owned()),
        }
    }
    broken
}

fn distance(from: &Place, to: &Place) -> Option<f64> {
    Some(from.location?.distance_km(to.location?))
}

fn terms(weights: &Weights, primary: &Candidate, candidate: &Candidate) -> [Term; 3] {
    let total = weights.distance + weights.history + weights.cost;
    let term = |name, weight: f64, (burden, detail): (f64, String)| Term {
        name,
        burden,
        weight: if total > 0.0 { weight / total } else { 0.0 },
        detail,
    };
    [
        term("distance", weights.distance, distance_burden(&primary.place, &candidate.place)),
        term("history", weights.history, history_burden(primary, candidate)),
        term("cost", weights.cost, cost_burden(primary, candidate)),
    ]
}

fn distance_burden(primary: &Place, place: &Place) -> (f64, String) {
    match distance(primary, place) {
        Some(km) => (share(km, HALF_DISTANCE_KM), format!("{km:.0} km from {}", primary.zone)),
        None if primary.location.is_none() => (1.0, format!("the location of {} is not known", primary.zone)),
        None => (1.0, "its location is not known".to_owned()),
    }
}

fn history_burden(primary: &Candidate, candidate: &Candidate) -> (f64, String) {
    let (latency, latency_detail) = match (quantity(&candidate.latency_ms), quantity(&primary.latency_ms)) {
        (Ok(there), Ok(here)) => (share(there, here), format!("{there:.1} ms against {here:.1}")),
        (Err(why), _) => (1.0, format!("latency unknown: {why}")),
        (_, Err(why)) => (1.0, format!("the primary's latency unknown: {why}")),
    };
    let (spikes, spikes_detail) = match quantity(&candidate.spikes_per_day) {
        Ok(spikes) => (share(spikes, HALF_SPIKES), format!("{spikes:.1} spikes a day")),
        Err(why) => (1.0, format!("spikes unknown: {why}")),
    };
    (f64::midpoint(latency, spikes), format!("{latency_detail}; {spikes_detail}"))
}

fn cost_burden(primary: &Candidate, candidate: &Candidate) -> (f64, String) {
    match (quantity(&candidate.cost), quantity(&primary.cost)) {
        (Ok(there), Ok(here)) => (share(there, here), format!("{there:.3}/h against {here:.3}/h")),
        (Err(why), _) => (1.0, format!("price unknown: {why}")),
        (_, Err(why)) => (1.0, format!("the primary's price unknown: {why}")),
    }
}

/// A finite number of at least 0, or why there is none.
fn quantity(fact: &Fact<f64>) -> Result<f64, String> {
    match fact {
        Fact::Known { value, .. } if value.is_finite() && *value >= 0.0 => Ok(*value),
        Fact::Known { value, source, .. } => Err(format!("{source} says {value}")),
        Fact::Unknown { why } => Err(why.clone()),
    }
}

/// `value / (value + half)`; no burden where both are nothing.
fn share(value: f64, half: f64) -> f64 {
    if value > 0.0 { value / (value + half) } else { 0.0 }
}

#[cfg(test)]
mod tests;
