//! What the operator wants: when a move pays and what it may cost.

use std::time::Duration;

use crate::units::{ByteCount, Ratio};
use crate::zones;

/// How far Godwit may go by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Scores only.
    Observe,
    /// Proposes; a person starts the move.
    Advise,
    /// Moves by itself.
    Auto,
}

/// What to do when the drain takes too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDrainTimeout {
    /// Abort the cutover: the old primary serves on.
    Abort,
    /// End the transactions that are still open at the PostgreSQL front; what is still open by HTTP aborts all the same.
    Terminate,
}

/// What sessions at the PostgreSQL front that only read by default do while a cutover waits for the others' open transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadsDuringHold {
    /// They wait as well.
    Wait,
    /// They go on until those are over, and are awaited then.
    GoOn,
}

/// What becomes of an old primary after its soak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AfterRetire {
    /// It is the shadow from then on.
    #[default]
    Keep,
    /// Its driver ends it; the resource has no shadow until a person wants one.
    Deprovision,
}

/// When a move is taken back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TakeBack {
    /// How much more of the requests fails since than before, as a share of all.
    pub failures: Ratio,
    /// For how long after a move; zero: never.
    pub within: Duration,
}

impl Default for TakeBack {
    fn default() -> Self {
        Self { failures: Ratio::new(0.1).unwrap_or_default(), within: Duration::from_secs(300) }
    }
}

/// What becomes of the shadow's materialized views before a move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MaterializedViews {
    /// They are filled anew: nothing else brings them what the primary's hold.
    #[default]
    Refresh,
    /// They stay as they are.
    Leave,
}

/// What becomes of tables without a primary key or another replica identity: a server that publishes them refuses to update and delete their rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeylessTables {
    /// A database that has such a table is not moved, and the table not published.
    #[default]
    Refuse,
    /// They are given one: an index of columns that are never NULL, or all that a row has (`REPLICA IDENTITY FULL`).
    Identify,
}

/// What becomes of the rows of unlogged tables in a move: no stream carries them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnloggedTables {
    /// A database that has such a table is not moved.
    #[default]
    Refuse,
    /// They are gone, as after a crash of their server.
    Empty,
    /// They are carried under the hold.
    Carry,
}

/// What becomes of what extensions keep for their users (jobs of `pg_cron`, say): no stream carries it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeptByExtensions {
    /// The shadow's follow, but for what an extension acts on by itself: that comes under the hold, and is on the primary only.
    #[default]
    Carry,
    /// It stays as it is on either side.
    Leave,
}

/// What becomes of the caches of the shadow's server before a move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Caches {
    /// What is in memory at the primary's is read into them.
    #[default]
    Fill,
    /// They hold what they hold.
    Leave,
}

/// What a mirrored read says of who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Reads with Authorization or Cookie are not mirrored.
    #[default]
    Skip,
    /// They are mirrored without these.
    Strip,
    /// They are mirrored as they are: the shadow is trusted as the primary is.
    Send,
}

/// Which reads the shadow is asked as well, before a move.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MirrorRules {
    /// Share of the safe reads.
    pub share: Ratio,
    /// Beginnings of the paths that may be asked; empty: all.
    pub paths: Vec<String>,
    /// What they say of who asks.
    pub credentials: Credentials,
}

/// Which commits wait for the shadow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicationMode {
    /// None.
    Async,
    /// All that their session's `synchronous_commit` lets wait.
    Sync,
    /// Those that write a critical table.
    Hybrid,
}

impl ReplicationMode {
    /// The mode of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Async, Self::Sync, Self::Hybrid].into_iter().find(|mode| mode.name() == name)
    }

    /// The name in files and views.
    pub fn name(self) -> &'static str {
        match self {
            Self::Async => "async",
            Self::Sync => "sync",
            Self::Hybrid => "hybrid",
        }
    }
}

/// What is done to the shadow's schema where it is not its primary's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaFollows {
    /// A person orders it.
    Manual,
    /// What the primary has besides is made.
    Additions,
    /// And what is gone there goes.
    All,
}

impl SchemaFollows {
    /// The name in files and views.
    pub fn name(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Additions => "additions",
            Self::All => "all",
        }
    }
}

/// What to do when a stream's slot was lost or given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reseed {
    /// A person orders it.
    Manual,
    /// Seed the shadow anew.
    Auto,
}

/// How much WAL the slots of a resource may keep on the primary's disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlotRules {
    /// Above it the slot is dropped, and the shadow must be seeded anew.
    pub budget: ByteCount,
    /// Share of the budget at which somebody is told.
    pub alarm: Ratio,
    /// What follows a dropped slot.
    pub reseed: Reseed,
}

impl SlotRules {
    /// Bytes at which somebody is told.
    pub fn alarm_at(&self) -> ByteCount {
        ByteCount((self.budget.0 as f64 * self.alarm.get()) as u64)
    }
}

/// Weights of the Migration Score's terms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// Of the predicted latency increase.
    pub latency: f64,
    /// Of the cost difference.
    pub cost: f64,
    /// Of the utilisation difference.
    pub utilization: f64,
}

/// No forecast reaches further than so many steps.
pub const MOST_STEPS: usize = 4096;
/// The outermost quantile that is forecast: a bound beyond it would be this one under another name.
pub const MOST_CONFIDENCE: f64 = 0.95;
/// A smaller budget would be used up by a slot that nobody is behind with.
const SMALLEST_BUDGET: ByteCount = ByteCount(32 << 20);
/// A fact that an extra guard may look at. The list is closed: each has one meaning and one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardedFact {
    /// Bytes that the shadow is behind.
    LagBytes,
    /// Median forecast of the request path's p95, milliseconds.
    LatencyMs,
    /// Median forecast of the primary's probe, milliseconds.
    PrimaryProbeMs,
    /// Median forecast of the shadow's probe, milliseconds.
    ShadowProbeMs,
    /// Share of mirrored reads that the shadow answered otherwise, or not at all, 0..=1.
    MirroredDifferent,
    /// In-flight / capacity of the primary, 0..=1.
    PrimaryUtilization,
    /// The same of the shadow.
    ShadowUtilization,
    /// Cost of the primary, per hour.
    PrimaryCost,
    /// Cost of the shadow at the same capacity, per hour.
    ShadowCost,
    /// Round trip time to the shadow's zone, milliseconds.
    ShadowRttMs,
    /// Share of packets lost on the way there, 0..=1.
    ShadowLoss,
    /// For how long the route there has not changed, milliseconds.
    ShadowRouteAge,
}

impl GuardedFact {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::LagBytes,
        Self::LatencyMs,
        Self::PrimaryProbeMs,
        Self::ShadowProbeMs,
        Self::MirroredDifferent,
        Self::PrimaryUtilization,
        Self::ShadowUtilization,
        Self::PrimaryCost,
        Self::ShadowCost,
        Self::ShadowRttMs,
        Self::ShadowLoss,
        Self::ShadowRouteAge,
    ];

    /// The name in files and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::LagBytes => "lag_bytes",
            Self::LatencyMs => "latency_ms",
            Self::PrimaryProbeMs => "primary_probe_ms",
            Self::ShadowProbeMs => "shadow_probe_ms",
            Self::MirroredDifferent => "mirrored_different",
            Self::PrimaryUtilization => "primary_utilization",
            Self::ShadowUtilization => "shadow_utilization",
            Self::PrimaryCost => "primary_cost",
            Self::ShadowCost => "shadow_cost",
            Self::ShadowRttMs => "shadow_rtt_ms",
            Self::ShadowLoss => "shadow_loss",
            Self::ShadowRouteAge => "shadow_route_age_ms",
        }
    }

    /// What its numbers are of; a share is `%`.
    pub fn unit(self) -> &'static str {
        match self {
            Self::LagBytes => "bytes",
            Self::MirroredDifferent
            | Self::PrimaryUtilization
            | Self::ShadowUtilization
            | Self::ShadowLoss => "%",
            Self::PrimaryCost | Self::ShadowCost => "/h",
            Self::LatencyMs
            | Self::PrimaryProbeMs
            | Self::ShadowProbeMs
            | Self::ShadowRttMs
            | Self::ShadowRouteAge => "ms",
        }
    }
}

/// How requests that were held are released: so many at once, and twice as many again after each pause, in order of arrival.
/// Connections and caches of a new primary are cold; the whole backlog at once would meet them so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// Released at once, at least 1.
    pub first: u32,
    /// The pause, 1 ms to 1 s.
    pub every: Duration,
}

impl Default for Release {
    /// Ten thousand are out within 70 ms, a hundred at once.
    fn default() -> Self {
        Self { first: 100, every: Duration::from_millis(10) }
    }
}

/// The side on which a fact must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// Strictly below.
    Below(f64),
    /// Strictly above.
    Above(f64),
}

impl Bound {
    /// Whether this value is on that side.
    #[must_use]
    pub fn admits(self, value: f64) -> bool {
        match self {
            Self::Below(limit) => value < limit,
            Self::Above(limit) => value > limit,
        }
    }
}

/// A further condition: an unknown fact does not meet it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExtraGuard {
    /// Which fact.
    pub fact: GuardedFact,
    /// Where it must be.
    pub bound: Bound,
    /// It also binds a move that an operator starts.
    pub binds_operator: bool,
}

/// Raw parts of a [`Policy`]; every field is public so that a parser can fill it, [`Policy::new`] checks it.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyParts {
    /// Its name.
    pub name: String,
    /// How far Godwit may go.
    pub mode: Mode,
    /// Weights of the terms, each ≥ 0 and finite.
    pub weights: Weights,
    /// Score above which moving pays.
    pub threshold: f64,
    /// For how long it must stay above.
    pub sustain: Duration,
    /// How far ahead to forecast.
    pub horizon: Duration,
    /// One step of the forecast.
    pub step: Duration,
    /// Confidence of the lower bound, 0.5 to [`MOST_CONFIDENCE`].
    pub confidence: f64,
    /// Score that a move itself costs.
    pub disruption: f64,
    /// How far the lower bound may fall below what it must clear before the time above it begins anew.
    pub hysteresis: f64,
    /// Shortest time between two moves.
    pub cooldown: Duration,
    /// After how long a move that was undone is tried again by itself; longer each time.
    pub retry_after: Duration,
    /// Most moves in 24 h.
    pub max_moves_per_day: u32,
    /// Further conditions on single facts.
    pub guards: Vec<ExtraGuard>,
    /// How long a proposal can be approved.
    pub proposal_expires: Duration,
    /// How many people must approve a move that the score does not make by itself; one: whoever asks for it is enough.
    pub approvals: u32,
    /// Lag above which no cutover starts.
    pub max_lag: ByteCount,
    /// Longest hold before a cutover gives up.
    pub max_hold: Duration,
    /// Longest wait for requests in flight.
    pub drain_timeout: Duration,
    /// What then.
    pub on_drain_timeout: OnDrainTimeout,
    /// What sessions that only read do meanwhile.
    pub reads_during_hold: ReadsDuringHold,
    /// How those who were held are released.
    pub release: Release,
    /// When a move after which requests fail is taken back.
    pub take_back: TakeBack,
    /// Keep a shadow.
    pub shadow_enabled: bool,
    /// Capacity of the shadow, share of the primary's.
    pub shadow_capacity: Ratio,
    /// Where the shadow may live, and what matters in choosing.
    pub zones: zones::Rules,
    /// Which commits wait for the shadow.
    pub replication: ReplicationMode,
    /// Critical tables, `schema.table`; only in hybrid mode.
    pub critical: Vec<String>,
    /// How long a commit may wait, or the link be down, before replication falls back to asynchronous.
    pub fallback_after: Duration,
    /// How long the shadow must have been caught up before commits wait again.
    pub fallback_back: Duration,
    /// Sessions that make a shadow's initial copy, 1 to 32.
    pub copy_sessions: u32,
    /// Bytes per second that the copy may read from the primary; none: no bound.
    pub copy_rate: Option<ByteCount>,
    /// What is done by itself to the shadow's schema.
    pub schema: SchemaFollows,
    /// What becomes of tables without a key.
    pub keyless: KeylessTables,
    /// What becomes of unlogged tables.
    pub unlogged: UnloggedTables,
    /// What becomes of what extensions keep.
    pub extensions: KeptByExtensions,
    /// What slots may keep of the WAL.
    pub slot: SlotRules,
    /// How long the old primary soaks at full capacity before it is retired to a shadow.
    pub retire_after: Duration,
    /// Retire only after a clean verification.
    pub require_verified: bool,
    /// What becomes of it then.
    pub after_retire: AfterRetire,
    /// Which reads the shadow is asked as well.
    pub mirror: MirrorRules,
    /// What becomes of the shadow's materialized views before a move.
    pub materialized_views: MaterializedViews,
    /// What becomes of the caches of the shadow's server before a move.
    pub caches: Caches,
}

impl Default for PolicyParts {
    fn default() -> Self {
        Self {
            name: "default".into(),
            mode: Mode::Observe,
            weights: Weights { latency: 1.0, cost: 0.3, utilization: 0.2 },
            threshold: 0.25,
            sustain: Duration::from_secs(180),
            horizon: Duration::from_secs(1800),
            step: Duration::from_secs(10),
            confidence: 0.8,
            disruption: 0.05,
            hysteresis: 0.0,
            cooldown: Duration::from_secs(3600),
            retry_after: Duration::from_secs(60),
            max_moves_per_day: 2,
            guards: Vec::new(),
            proposal_expires: Duration::from_secs(1800),
            approvals: 1,
            max_lag: ByteCount(16 << 20),
            max_hold: Duration::from_millis(500),
            drain_timeout: Duration::from_secs(5),
            on_drain_timeout: OnDrainTimeout::Abort,
            reads_during_hold: ReadsDuringHold::Wait,
            release: Release::default(),
            take_back: TakeBack::default(),
            shadow_enabled: true,
            shadow_capacity: Ratio::new(0.25).unwrap_or_default(),
            zones: zones::Rules::default(),
            replication: ReplicationMode::Async,
            critical: Vec::new(),
            fallback_after: Duration::from_secs(5),
            fallback_back: Duration::from_secs(30),
            copy_sessions: 4,
            copy_rate: None,
            schema: SchemaFollows::Manual,
            keyless: KeylessTables::Refuse,
            unlogged: UnloggedTables::Refuse,
            extensions: KeptByExtensions::Carry,
            slot: SlotRules {
                budget: ByteCount(8 << 30),
                alarm: Ratio::new(0.5).unwrap_or_default(),
                reseed: Reseed::Manual,
            },
            retire_after: Duration::from_secs(24 * 3600),
            require_verified: true,
            after_retire: AfterRetire::Keep,
            mirror: MirrorRules::default(),
            materialized_views: MaterializedViews::default(),
            caches: Caches::default(),
        }
    }
}

/// A rule that the parts break; `key` is the dotted key of the policy file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {what}")]
pub struct PolicyError {
    /// `score.threshold` and the like.
    pub key: &'static str,
    /// What is wrong and what would be right.
    pub what: String,
}

/// A checked policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy(PolicyParts);

impl Policy {
    /// Checks every rule and returns all that are broken.
    pub fn new(parts: PolicyParts) -> Result<Self, Vec<PolicyError>> {
        let mut broken = Vec::new();
        let mut rule = |key, holds: bool, what: &str| {
            if !holds {
                broken.push(PolicyError { key, what: what.to_owned() });
            }
        };
        let p = &parts;
        let weight = |w: f64| w.is_finite() && w >= 0.0;
        rule("name", !p.name.is_empty(), "must not be empty");
        rule("score.weights.latency", weight(p.weights.latency), "must be a number of at least 0");
        rule("score.weights.cost", weight(p.weights.cost), "must be a number of at least 0");
        rule("score.weights.utilization", weight(p.weights.utilization), "must be a number of at least 0");
        rule("score.threshold", p.threshold.is_finite() && p.threshold > 0.0, "must be above 0");
        rule("score.disruption", p.disruption.is_finite() && p.disruption >= 0.0, "must be at least 0");
        let band = p.hysteresis.is_finite() && p.hysteresis >= 0.0;
        rule(
            "score.hysteresis",
            band && p.hysteresis < p.threshold + p.disruption,
            "must be at least 0 and below threshold + disruption",
        );
        rule(
            "score.confidence",
            (0.5..=MOST_CONFIDENCE).contains(&p.confidence),
            "must be between 0.5 and 0.95: no quantile further out is forecast",
        );
        rule("score.step", p.step >= Duration::from_millis(100), "must be at least 100ms");
        rule("score.horizon", p.horizon >= p.step, "must be at least one step (score.step)");
        rule(
            "score.horizon",
            steps(p) <= MOST_STEPS,
            "must be at most 4096 steps (score.step): no forecast reaches further",
        );
        rule("score.sustain", p.sustain >= p.step, "must be at least one step (score.step)");
        rule("limits.max_moves_per_day", p.max_moves_per_day > 0, "must be at least 1");
        rule("limits.max_hold", !p.max_hold.is_zero(), "must be above 0");
        rule("limits.drain_timeout", !p.drain_timeout.is_zero(), "must be above 0");
        rule("limits.release.first", p.release.first > 0, "must be at least 1");
        let pace = Duration::from_millis(1)..=Duration::from_secs(1);
        rule("limits.release.every", pace.contains(&p.release.every), "must be 1ms to 1s");
        let finite = |guard: &ExtraGuard| match guard.bound {
            Bound::Below(limit) | Bound::Above(limit) => limit.is_finite(),
        };
        rule("limits.guards", p.guards.iter().all(finite), "must have numbers as limits");
        let minute = Duration::from_secs(60);
        rule("limits.proposal_expires", p.proposal_expires >= minute, "must be at least 1m");
        rule("limits.approvals", (1..=9).contains(&p.approvals), "must be 1 to 9");
        let hybrid = p.replication == ReplicationMode::Hybrid;
        rule(
            "replication.mode",
            !hybrid || !p.critical.is_empty(),
            "hybrid needs critical: [schema.table, …]",
        );
        rule(
            "replication.critical",
            hybrid || p.critical.is_empty(),
            "critical tables need mode: hybrid; leave them out",
        );
        let second = Duration::from_secs(1);
        rule("replication.fallback.after", p.fallback_after >= second, "must be at least 1s");
        rule("replication.fallback.back", p.fallback_back >= second, "must be at least 1s");
        rule("replication.copy.sessions", (1..=32).contains(&p.copy_sessions), "must be 1 to 32");
        let least = ByteCount(64 << 10);
        rule(
            "replication.copy.rate",
            p.copy_rate.is_none_or(|rate| rate >= least),
            "must be at least 64KiB a second",
        );
        rule(
            "replication.slot.budget",
            p.slot.budget >= SMALLEST_BUDGET,
            "must be at least 32MiB: the server keeps WAL in segments of 16 MiB",
        );
        rule("replication.slot.alarm", p.slot.alarm.get() > 0.0, "must be above 0% and at most 100%");
        rule("shadow.capacity", p.shadow_capacity.get() > 0.0, "must be above 0% and at most 100%");
        let [distance, history, cost] =
            [p.zones.weights.distance, p.zones.weights.history, p.zones.weights.cost];
        rule("shadow.choose.distance", weight(distance), "must be a number of at least 0");
        rule("shadow.choose.history", weight(history), "must be a number of at least 0");
        rule("shadow.choose.cost", weight(cost), "must be a number of at least 0");
        rule("shadow.choose", distance + history + cost > 0.0, "must have a weight above 0");
        let nearest = p.zones.min_distance_km;
        rule(
            "shadow.zones.min_distance_km",
            (0.0..=20_000.0).contains(&nearest),
            "must be between 0 and 20000 kilometres",
        );
        if broken.is_empty() { Ok(Self(parts)) } else { Err(broken) }
    }

    /// Steps in the horizon, at least one.
    pub fn horizon_steps(&self) -> usize {
        steps(self).max(1)
    }
}

fn steps(parts: &PolicyParts) -> usize {
    let steps = parts.horizon.as_millis() / parts.step.as_millis().max(1);
    usize::try_from(steps).unwrap_or(usize::MAX)
}

impl std::ops::Deref for Policy {
    type Target = PolicyParts;

    fn deref(&self) -> &PolicyParts {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_forecast_can_answer_is_refused() {
        let with = |step: Duration, horizon: Duration, confidence: f64| {
            let parts = PolicyParts { horizon, step, confidence, ..PolicyParts::default() };
            Policy::new(parts)
                .map(drop)
                .map_err(|broken| broken.into_iter().map(|rule| rule.key).collect::<Vec<_>>())
        };
        let (tenth, minute) = (Duration::from_millis(100), Duration::from_secs(60));
        assert_eq!(with(tenth, minute * 30, 0.8), Err(vec!["score.horizon"]));
        assert_eq!(with(tenth, tenth * 4096, 0.95), Ok(()));
        assert_eq!(with(tenth, tenth * 4097, 0.99), Err(vec!["score.confidence", "score.horizon"]));
    }
}
