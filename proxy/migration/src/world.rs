//! Every fact that a decision may use, frozen at one moment.

use std::time::Duration;

use crate::cutover::Phase;
use crate::units::{ByteCount, Timestamp, Zone};

/// A fact with its provenance, or why there is none.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact<T> {
    /// Known.
    Known {
        /// The value.
        value: T,
        /// How old it is.
        age: Duration,
        /// Where it comes from.
        source: String,
    },
    /// Not known; a decision must not assume it.
    Unknown {
        /// Why not.
        why: String,
    },
}

impl<T> Fact<T> {
    /// A fact seen just now.
    pub fn known(value: T, age: Duration, source: impl Into<String>) -> Self {
        Self::Known { value, age, source: source.into() }
    }

    /// Why there is none.
    pub fn unknown(why: impl Into<String>) -> Self {
        Self::Unknown { why: why.into() }
    }

    /// The value, if known.
    pub fn value(&self) -> Option<&T> {
        match self {
            Self::Known { value, .. } => Some(value),
            Self::Unknown { .. } => None,
        }
    }

    /// How old it is, if known.
    pub fn age(&self) -> Option<Duration> {
        match self {
            Self::Known { age, .. } => Some(*age),
            Self::Unknown { .. } => None,
        }
    }

    /// Why it is unknown.
    pub fn why_unknown(&self) -> Option<&str> {
        match self {
            Self::Known { .. } => None,
            Self::Unknown { why } => Some(why),
        }
    }

    /// The same, so much later.
    #[must_use]
    pub fn aged(self, by: Duration) -> Self {
        match self {
            Self::Known { value, age, source } => Self::Known { value, age: age.saturating_add(by), source },
            unknown @ Self::Unknown { .. } => unknown,
        }
    }

    /// The same provenance, another value.
    pub fn map<U>(&self, change: impl FnOnce(&T) -> U) -> Fact<U> {
        match self {
            Self::Known { value, age, source } => {
                Fact::Known { value: change(value), age: *age, source: source.clone() }
            }
            Self::Unknown { why } => Fact::Unknown { why: why.clone() },
        }
    }
}

/// A latency forecast over the horizon: the middle step's quantiles, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outlook {
    /// Lower confidence bound.
    pub lower_ms: f64,
    /// Median.
    pub median_ms: f64,
    /// Upper confidence bound.
    pub upper_ms: f64,
}

/// A time in which nothing is to be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freeze {
    /// Who or what froze: an operator's name, or the window as it is configured.
    pub by: String,
    /// Why.
    pub why: String,
    /// Until when; none: until somebody ends it.
    pub until: Option<Timestamp>,
    /// An operator's freeze also stops operators; a window of the policy only stops Godwit.
    pub binds_operator: bool,
}

/// A window in which a provider works on a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maintenance {
    /// The zone.
    pub zone: Zone,
    /// The provider's words.
    pub title: String,
    /// When it begins.
    pub starts: Timestamp,
    /// When it ends; none: the provider does not say.
    pub ends: Option<Timestamp>,
    /// Which feed says so.
    pub source: String,
}

/// The way to a zone, as it is measured from here.
#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    /// Round trip time, milliseconds.
    pub rtt_ms: Fact<f64>,
    /// Share of packets that are lost, 0..=1.
    pub loss: Fact<f64>,
    /// For how long the route has been the one that it is, milliseconds.
    pub route_age_ms: Fact<f64>,
}

impl Path {
    /// The same, so much later.
    #[must_use]
    pub fn aged(self, by: Duration) -> Self {
        Self {
            rtt_ms: self.rtt_ms.aged(by),
            loss: self.loss.aged(by),
            route_age_ms: self.route_age_ms.aged(by),
        }
    }

    /// Nothing is known of it.
    pub fn unknown(why: &str) -> Self {
        Self { rtt_ms: Fact::unknown(why), loss: Fact::unknown(why), route_age_ms: Fact::unknown(why) }
    }
}

/// Whether a move to a zone may be judged by its service, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// It answers.
    Answers,
    /// It does not, and this is why.
    Silent(String),
    /// Nobody can say, and this is why.
    Unjudged(String),
}

/// What is known of a resource at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct World {
    /// Who serves.
    pub primary: Zone,
    /// Who follows.
    pub shadow: Zone,
    /// Where the machine stands.
    pub phase: Phase,
    /// The migration under way.
    pub running: Option<String>,
    /// The latency to compare with, milliseconds (p95 of the request path): what is usual for this resource, or what the
    /// shadow is expected to give where that is lower.
    pub baseline_ms: Fact<f64>,
    /// Forecast of the request path's p95 where it is served now.
    pub latency: Fact<Outlook>,
    /// Forecast of the probe of the primary.
    pub primary_probe: Fact<Outlook>,
    /// Forecast of the same probe of the shadow.
    pub shadow_probe: Fact<Outlook>,
    /// The primary's probe has failed several times in a row, and does so still: why it is unknown. Where it is only not known, nothing
    /// says that the primary is any worse than it was.
    pub primary_fails: bool,
    /// Forecast of the p95, at the primary, of reads that the shadow was asked as well.
    pub primary_mirrored: Fact<Outlook>,
    /// Forecast of the p95 of the same reads at the shadow.
    pub shadow_mirrored: Fact<Outlook>,
    /// Of these, the share that the shadow answered with another status or not at all, 0..=1.
    pub mirrored_different: Fact<f64>,
    /// Cost of the primary at full capacity, per hour.
    pub primary_cost: Fact<f64>,
    /// Cost of the shadow at the same capacity, per hour.
    pub shadow_cost: Fact<f64>,
    /// In-flight / capacity of the primary, 0..=1.
    pub primary_utilization: Fact<f64>,
    /// The same of the shadow.
    pub shadow_utilization: Fact<f64>,
    /// The way to the shadow.
    pub shadow_path: Path,
    /// Bytes that the shadow is behind.
    pub lag: Fact<ByteCount>,
    /// Maintenance of either zone that is not over, soonest first.
    pub maintenance: Vec<Maintenance>,
    /// Why there may be maintenance that is not known; none: every calendar is fresh, or there is none.
    pub maintenance_unknown: Option<String>,
    /// The shadow's service, which clients would meet.
    pub shadow_service: Service,
    /// What stands in the way in the databases, e.g. a prepared transaction.
    pub blockers: Vec<String>,
    /// End of the last committed migration.
    pub last_move: Option<Timestamp>,
    /// Committed migrations in the last 24 h.
    pub moves_last_day: u32,
    /// When so many of them have left that window that one may follow; none: one may now.
    pub moves_ease: Option<Timestamp>,
    /// Migrations that were undone.
    pub undone: Undone,
    /// Freezes in effect now.
    pub freezes: Vec<Freeze>,
    /// Since when the score has been above the threshold without a break: the time that was counted, back from the moment of this
    /// world.
    pub above_since: Option<Timestamp>,
}

/// Migrations that were begun since the last commit and undone, within 24 h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Undone {
    /// How many.
    pub count: u32,
    /// When the last of them ended.
    pub last: Option<Timestamp>,
}

/// Reads that both sides were asked.
const MIRRORED: &str = "mirrored reads";
/// Probes of both sides.
const PROBE: &str = "probe";

/// Forecasts of the same thing in both zones.
#[derive(Clone, Copy, Debug)]
pub struct SideBySide<'a> {
    /// What is forecast: `mirrored reads` or `probe`.
    pub of: &'static str,
    /// In the primary.
    pub primary: &'a Fact<Outlook>,
    /// In the shadow.
    pub shadow: &'a Fact<Outlook>,
}

impl World {
    /// A shadow that follows, and nothing else that is known, for this reason: where a world is made up, the rest of one.
    #[must_use]
    pub fn unknown(primary: &str, shadow: &str, why: &str) -> Self {
        Self {
            primary: primary.into(),
            shadow: shadow.into(),
            phase: Phase::Shadowing,
            running: None,
            baseline_ms: Fact::unknown(why),
            latency: Fact::unknown(why),
            primary_probe: Fact::unknown(why),
            shadow_probe: Fact::unknown(why),
            primary_fails: false,
            primary_mirrored: Fact::unknown(why),
            shadow_mirrored: Fact::unknown(why),
            mirrored_different: Fact::unknown(why),
            primary_cost: Fact::unknown(why),
            shadow_cost: Fact::unknown(why),
            primary_utilization: Fact::unknown(why),
            shadow_utilization: Fact::unknown(why),
            shadow_path: Path::unknown(why),
            lag: Fact::unknown(why),
            maintenance: Vec::new(),
            maintenance_unknown: None,
            shadow_service: Service::Unjudged(why.to_owned()),
            blockers: Vec::new(),
            last_move: None,
            moves_last_day: 0,
            moves_ease: None,
            undone: Undone::default(),

            freezes: Vec::new(),
            above_since: None,
        }
    }

    /// What is compared between the zones: the same reads, asked of both, where that is known, else their probes.
    ///
    /// A zone whose probe fails now is judged by that: reads were mirrored before it failed.
    pub fn side_by_side(&self) -> SideBySide<'_> {
        let known = [&self.primary_probe, &self.shadow_probe, &self.primary_mirrored, &self.shadow_mirrored];
        if known.iter().all(|fact| fact.value().is_some()) {
            let (primary, shadow) = (&self.primary_mirrored, &self.shadow_mirrored);
            return SideBySide { of: MIRRORED, primary, shadow };
        }
        SideBySide { of: PROBE, primary: &self.primary_probe, shadow: &self.shadow_probe }
    }

    /// What the request path would take from the shadow, milliseconds (p95), and by what it is judged: the forecast here, changed as
    /// what is compared side by side differs.
    ///
    /// Of reads that were mirrored the difference and the ratio both say how; the one that promises less is taken, for they may be
    /// lighter or heavier than the rest. Never less than the shadow's probe.
    pub fn expected_from_shadow(&self) -> Option<(f64, &'static str)> {
        let both = self.side_by_side();
        let median = |fact: &Fact<Outlook>| fact.value().map(|outlook| outlook.median_ms);
        let (here, primary, shadow) = (median(&self.latency)?, median(both.primary)?, median(both.shadow)?);
        let by_difference = here - primary + shadow;
        let by_ratio = here * shadow / primary.max(f64::MIN_POSITIVE);
        let there = if both.of == MIRRORED { by_difference.max(by_ratio) } else { by_difference };
        Some((there.max(median(&self.shadow_probe)?), both.of))
    }

    /// Below which median of the shadow, of what is compared side by side, [`Self::expected_from_shadow`] is below `there`. None: that is not
    /// known, or no median is low enough.
    pub fn shadow_median_for(&self, there: f64) -> Option<f64> {
        let both = self.side_by_side();
        let median = |fact: &Fact<Outlook>| fact.value().map(|outlook| outlook.median_ms);
        let (here, primary) = (median(&self.latency)?, median(both.primary)?);
        let by_difference = there - here + primary;
        let shadow = if both.of == MIRRORED {
            let reachable = median(&self.shadow_probe)? < there;
            reachable.then(|| by_difference.min(there * primary / here.max(f64::MIN_POSITIVE)))?
        } else {
            by_difference.min(there)
        };
        (shadow > 0.0).then_some(shadow)
    }
}

#[cfg(test)]
#[path = "world/tests.rs"]
mod tests;
