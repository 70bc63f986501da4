//! From raw measurements to the facts of a [`World`]: one value per step and series, each with its forecaster.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use migration::aftermath::Answers;
use migration::cutover::State;
use migration::decide::{above_since, rests_on_latency};
use migration::policy::{GuardedFact, Policy};
use migration::units::{ByteCount, Timestamp, Zone};
use migration::world::{Fact, Freeze, Maintenance, Outlook, Path, Service, Undone, World};
use predictor::{Ensemble, Forecaster, Inputs, Outlook as Forecast, Settings};

pub use super::same_reads::Mirrored;
use super::same_reads::SameReads;
use super::warm::{Warm, Warmer};
use crate::feeds::learning::Learner;

/// How many steps of the request path's p95 the baseline looks back on.
pub(super) const BASELINE_STEPS: usize = 240;
/// How many of them must be there before there is a baseline.
const BASELINE_MINIMUM: usize = 12;

/// The longest day, in steps, of which forecasters look for the shape.
const LONGEST_DAY: u128 = 20_000;
/// Steps that are put away while the history is replayed, at most.
const MEANWHILE: usize = 4096;
/// A step that comes later than so many after the one before counts as so many.
const LATEST: u32 = 2;
/// A forecaster makes an example to learn from at every so many steps.
const EXAMPLES_EVERY: usize = 8;

/// What was measured in one step.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// p95 of the request path, milliseconds; none: no request in this step.
    pub request_p95_ms: Option<f64>,
    /// Requests that the primary's zone was asked since the last step.
    pub answers: Answers,
    /// Probe by zone: milliseconds that the answer took over a connection that was there, or why it failed.
    pub probes_ms: BTreeMap<String, Result<f64, String>>,
    /// Zones whose probe has failed several times in a row, and did so just now.
    pub probes_fail: BTreeSet<String>,
    /// They are SQL probes: clients speak to the database.
    pub probed_by_sql: bool,
    /// What the primary's database took to write and commit a row, milliseconds; none: it was not asked, or failed.
    pub heartbeat_ms: Option<f64>,
    /// Utilisation by zone.
    pub utilization: BTreeMap<String, Result<f64, String>>,
    /// Cost at full capacity by zone, per hour.
    pub cost: BTreeMap<String, Option<f64>>,
    /// Reads that both zones were asked since the last step that told of any.
    pub mirrored: Option<Mirrored>,
    /// Of the mirrored reads of late, the share that the shadow answered otherwise or not at all; none: hardly any.
    pub mirrored_different: Option<f64>,
    /// Bytes the shadow is behind, or why that is unknown.
    pub lag: Option<Result<u64, String>>,
    /// What stands in the way in the databases.
    pub blockers: Vec<String>,
    /// The shadow's service; none: nobody looked.
    pub shadow_service: Option<Service>,
    /// What feeds say of both zones.
    pub fed: Fed,
}

/// What feeds say, in place of what is configured or measured here.
#[derive(Clone, Debug, Default)]
pub struct Fed {
    /// Cost at full capacity by zone, per hour; a zone of which no feed speaks is missing.
    pub cost: BTreeMap<String, Fact<f64>>,
    /// Utilisation by zone, 0 to 1; a zone of which no feed speaks is missing.
    pub utilization: BTreeMap<String, Fact<f64>>,
    /// The way to each zone of which a feed speaks.
    pub paths: BTreeMap<String, Path>,
    /// Maintenance of either zone that is not over.
    pub maintenance: Vec<Maintenance>,
    /// Why there may be more of it.
    pub maintenance_unknown: Option<String>,
    /// What is known of this step and those to come, by zone, for the forecasters; a zone of which nothing is known is missing.
    pub foreseen: BTreeMap<String, Vec<Inputs>>,
}

/// What forecasters are fed of one step.
struct Taken {
    at: Timestamp,
    primary: String,
    request: Option<f64>,
    probes: BTreeMap<String, Option<f64>>,
    mirrored: Option<Mirrored>,
    /// What is known of this step and those after it, by zone.
    foreseen: BTreeMap<String, Vec<Inputs>>,
}

/// What history says of moves.
#[derive(Clone, Debug, Default)]
pub struct Moves {
    /// The last commit.
    pub last: Option<Timestamp>,
    /// Commits in the last 24 h, the oldest first.
    pub last_day: Vec<Timestamp>,
    /// Migrations that were undone.
    pub undone: Undone,
}

/// The series of one resource.
pub struct Signals {
    settings: Settings,
    learner: Option<Learner>,
    pace: Duration,
    /// The newest step, and when it ended.
    newest: Option<(u64, Timestamp)>,
    /// Request path, by the zone that served: a new series begins with each move.
    requests: Ensemble,
    served_by: String,
    probes: BTreeMap<String, Ensemble>,
    /// Mirrored reads, between the zones of now.
    mirrored: Option<SameReads>,
    /// The newest values of the request path, by step, whichever zone served.
    history: VecDeque<(u64, f64)>,
    /// From where, where to, and for how long the score of that move has cleared what is needed, as counted at each step.
    above: Option<([Zone; 2], Duration)>,
    /// What the newest step is worth of that; none: it is counted.
    uncounted: Option<Duration>,
    measured: Measured,
    request: Option<f64>,
    /// Steps that were taken while the history is replayed; none: it is not.
    meanwhile: Option<Vec<Taken>>,
    replayed: usize,
}

impl Signals {
    /// Knows nothing yet. One value comes every `step`; without a `learner` the shipped network stays as it is.
    pub fn new(seed: u64, step: Duration, learner: Option<Learner>) -> Self {
        let day = 86_400_000 / step.as_millis().max(1);
        let settings = Settings {
            period: (day <= LONGEST_DAY).then(|| usize::try_from(day).ok()).flatten(),
            network: predictor::model::shipped(),
            examples_every: if learner.is_some() { EXAMPLES_EVERY } else { 0 },
            seed,
            ..Settings::default()
        };
        Self {
            pace: step,
            newest: None,
            requests: Ensemble::new(settings.clone()),
            settings,
            learner,
            served_by: String::new(),
            probes: BTreeMap::new(),
            mirrored: None,
            history: VecDeque::new(),
            above: None,
            uncounted: None,
            measured: Measured::default(),
            request: None,
            meanwhile: None,
            replayed: 0,
        }
    }

    /// Makes forecasters that are fed from the history, elsewhere. Until [`Self::adopt`] the steps that are observed are kept.
    pub fn warmer(&mut self) -> Warmer {
        self.meanwhile = Some(Vec::new());
        Warmer { settings: self.settings.clone(), step: self.pace }
    }

    /// Goes on with forecasters that have seen the history, and with what was observed meanwhile.
    pub fn adopt(&mut self, warm: Warm) {
        let Some(meanwhile) = self.meanwhile.take().filter(|_| !warm.is_empty()) else { return };
        let first = meanwhile.first().map(|taken| taken.primary.as_str());
        // After a move meanwhile the request path is another one.
        if first.is_none_or(|primary| primary == warm.served_by) {
            self.requests = warm.requests;
            self.served_by = warm.served_by;
            self.replayed = warm.replayed;
        } else {
            self.served_by.clear();
        }
        self.probes = warm.probes;
        self.history = warm.usual;
        self.newest = Some(warm.newest);
        for taken in meanwhile {
            self.take(taken);
        }
    }

    /// The history cannot be replayed.
    pub fn start_cold(&mut self) {
        self.meanwhile = None;
    }

    /// Values of the request path that its forecaster was fed from the history.
    pub fn replayed(&self) -> usize {
        self.replayed
    }

    /// Takes the measurements of the step that ends at `at`, by a clock that does not jump. `moving`: the gate was closed in it, and its
    /// latencies are not the zone's.
    pub fn observe(&mut self, primary: &str, measured: Measured, moving: bool, at: Timestamp) {
        let passed = self.newest.map_or(Duration::ZERO, |(_, before)| at.since(before));
        // In a pause nobody looked.
        self.uncounted = Some(passed.min(self.pace.saturating_mul(LATEST)));
        self.request = measured.request_p95_ms.filter(|_| !moving);
        let probe =
            |(zone, value): (&String, &Result<f64, String>)| (zone.clone(), value.as_ref().ok().copied());
        let taken = Taken {
            at,
            primary: primary.to_owned(),
            request: self.request,
            probes: measured.probes_ms.iter().map(probe).collect(),
            mirrored: measured.mirrored.clone().filter(|_| !moving),
            foreseen: measured.fed.foreseen.clone(),
        };
        self.take(taken);
        self.exchange();
        self.measured = measured;
    }

    /// What is known by now of the lag, of what stands in the way, and of the shadow's service; whether that says something else to the
    /// guards of this policy.
    pub fn correct(
        &mut self,
        lag: Option<Result<u64, String>>,
        blockers: Vec<String>,
        service: Service,
        policy: &Policy,
    ) -> bool {
        let passes = |bytes: u64| -> Vec<bool> {
            let guards = policy.guards.iter().filter(|guard| guard.fact == GuardedFact::LagBytes);
            let extra = guards.map(|guard| guard.bound.admits(bytes as f64));
            extra.chain([bytes <= policy.max_lag.0]).collect()
        };
        let near = |lag: &Option<Result<u64, String>>| match lag {
            Some(Ok(bytes)) => Ok(passes(*bytes)),
            Some(Err(why)) => Err(Some(why.clone())),
            None => Err(None),
        };
        let measured = &mut self.measured;
        let service = Some(service);
        let changed = measured.blockers != blockers
            || near(&measured.lag) != near(&lag)
            || measured.shadow_service != service;
        (measured.lag, measured.blockers, measured.shadow_service) = (lag, blockers, service);
        changed
    }

    fn take(&mut self, taken: Taken) {
        let step = self.newest.map_or(1, |(newest, at)| {
            let pace = u64::try_from(self.pace.as_millis()).unwrap_or(u64::MAX).max(1);
            let passed = taken.at.0.saturating_sub(at.0).saturating_add(pace / 2) / pace;
            newest + passed.max(1)
        });
        self.newest = Some((step, taken.at));
        if self.served_by != taken.primary {
            self.requests = Ensemble::new(self.settings.clone());
            self.replayed = 0;
            taken.primary.clone_into(&mut self.served_by);
        }
        let foreseen = |zone: &str| taken.foreseen.get(zone).map_or(&[][..], Vec::as_slice);
        self.requests.observe_knowing(step, taken.request, foreseen(&taken.primary));
        if let Some(value) = taken.request {
            self.history.push_back((step, value));
            if self.history.len() > BASELINE_STEPS {
                self.history.pop_front();
            }
        }
        for (zone, value) in &taken.probes {
            self.probes
                .entry(zone.clone())
                .or_insert_with(|| Ensemble::new(self.settings.clone()))
                .observe_knowing(step, *value, foreseen(zone));
        }
        SameReads::take(
            &mut self.mirrored,
            &self.settings,
            step,
            &taken.primary,
            taken.mirrored.as_ref(),
            foreseen,
        );
        if let Some(meanwhile) = &mut self.meanwhile {
            meanwhile.push(taken);
            if meanwhile.len() > MEANWHILE {
                self.meanwhile = None;
            }
        }
    }

    /// Hands over what there is to learn, and takes the newest network.
    fn exchange(&mut self) {
        let Some(learner) = &self.learner else { return };
        let newest = learner.network();
        let mirrored = self.mirrored.iter_mut().flat_map(SameReads::sides_mut);
        for forecaster in self.probes.values_mut().chain([&mut self.requests]).chain(mirrored) {
            for example in forecaster.take_examples() {
                // A thread that is behind drops examples; there are always more.
                learner.learn(example);
            }
            forecaster.set_network(newest.clone());
        }
        self.settings.network = Some(newest);
    }

    /// The forecaster of the request path.
    pub fn requests(&self) -> &Ensemble {
        &self.requests
    }

    /// What was measured last.
    pub fn measured(&self) -> &Measured {
        &self.measured
    }

    /// The request path's p95 that the last step brought, milliseconds; none: no request, or a cutover disturbed it.
    pub fn request(&self) -> Option<f64> {
        self.request
    }

    /// Each zone's probe forecast over the policy's horizon.
    pub fn probe_outlooks(&self, policy: &Policy) -> impl Iterator<Item = (&String, Forecast)> {
        let steps = policy.horizon_steps();
        self.probes.iter().map(move |(zone, forecaster)| (zone, forecaster.forecast(steps)))
    }

    /// The zone whose request path is forecast.
    pub fn served_by(&self) -> &str {
        &self.served_by
    }

    /// The facts at `now`. `age` is how long ago the last step ended.
    pub fn world(
        &mut self,
        policy: &Policy,
        state: &State,
        moves: Moves,
        freezes: Vec<Freeze>,
        age: Duration,
        now: Timestamp,
    ) -> World {
        let primary = state.primary.to_string();
        let shadow = state.shadow.to_string();
        // Right after a move what the last step measured is of the zone that served then.
        let is_of_primary = self.served_by == primary;
        let fed = &self.measured.fed;
        let mirrored = |side: usize, zone: &str| {
            let reads = self.mirrored.as_ref().and_then(|reads| reads.between(&primary, &shadow));
            match reads {
                Some(sides) => self.outlook(&sides[side], policy, age, format!("mirrored reads in {zone}")),
                None => Fact::unknown("no reads were mirrored yet"),
            }
        };
        let mut world = World {
            primary: state.primary.clone(),
            shadow: state.shadow.clone(),
            phase: state.phase,
            running: state.run.as_ref().map(|run| run.id.clone()),
            baseline_ms: self.usual(age),
            latency: if is_of_primary { self.request_outlook(policy, age) } else { not_since(&primary) },
            primary_probe: self.primary_probe(&primary, policy, age),
            shadow_probe: self.probe_outlook(&shadow, policy, age),
            primary_fails: self.measured.probes_fail.contains(&primary),
            primary_mirrored: mirrored(0, &primary),
            shadow_mirrored: mirrored(1, &shadow),
            mirrored_different: match self.measured.mirrored_different.filter(|_| is_of_primary) {
                Some(share) => Fact::known(share, age, "mirrored reads"),
                None => Fact::unknown("hardly any reads were mirrored of late"),
            },
            primary_cost: self.cost(&primary, age),
            shadow_cost: self.cost(&shadow, age),
            primary_utilization: self.utilization(&primary, &primary, age),
            shadow_utilization: self.utilization(&shadow, &primary, age),
            shadow_path: fed.paths.get(&shadow).map_or_else(
                || Path::unknown(&format!("no feed of use path speaks of {shadow}")),
                |path| path.clone().aged(age),
            ),
            lag: match &self.measured.lag {
                Some(Ok(bytes)) => Fact::known(ByteCount(*bytes), age, "replication stream"),
                Some(Err(why)) => Fact::unknown(why.clone()),
                None => Fact::unknown("no stream runs"),
            },
            maintenance: fed.maintenance.clone(),
            maintenance_unknown: fed.maintenance_unknown.clone(),
            shadow_service: (self.measured.shadow_service.clone())
                .unwrap_or_else(|| Service::Unjudged("nobody looked yet".into())),
            blockers: self.measured.blockers.clone(),
            last_move: moves.last,
            moves_last_day: u32::try_from(moves.last_day.len()).unwrap_or(u32::MAX),
            moves_ease: migration::decide::moves_ease(policy, &moves.last_day),
            undone: moves.undone,
            freezes,
            above_since: None,
        };
        world.baseline_ms = baseline(&world);
        self.count_above(policy, &mut world, age, now);
        world
    }

    /// For how long the score has cleared what is needed. Only a step begins that, and each adds what it is worth once, if it brought what
    /// says so; between two of them it grows up to the next.
    fn count_above(&mut self, policy: &Policy, world: &mut World, age: Duration, now: Timestamp) {
        let way = [world.primary.clone(), world.shadow.clone()];
        let before = self.above.take().filter(|(of, _)| *of == way).map(|(_, time)| time);
        let (counts, begins) = (self.uncounted.take(), before.is_none());
        if begins && counts.is_none() {
            return;
        }
        let told = self.request.is_some() || !rests_on_latency(policy, world);
        let time = before.map(|time| time + counts.filter(|_| told).unwrap_or_default());
        let shown =
            time.map(|time| u64::try_from((time + age.min(self.pace)).as_millis()).unwrap_or(u64::MAX));
        world.above_since = shown.map(|ms| Timestamp(now.0.saturating_sub(ms)));
        world.above_since = above_since(policy, world, now);
        self.above = world.above_since.map(|_| (way, time.unwrap_or_default()));
    }

    /// Cost of `zone` at full capacity, per hour: what a feed says, else what is configured. `age` is how long ago the last step ended.
    pub fn cost(&self, zone: &str, age: Duration) -> Fact<f64> {
        let configured = || match self.measured.cost.get(zone).copied() {
            Some(Some(value)) => Fact::known(value, Duration::ZERO, "configuration"),
            None => Fact::unknown(format!("the cost of {zone} was not looked up yet")),
            Some(None) => Fact::unknown(format!("no cost is configured for {zone}")),
        };
        self.measured.fed.cost.get(zone).map_or_else(configured, |cost| cost.clone().aged(age))
    }

    /// How busy `zone` is while `primary` serves: what a feed says, else what was counted.
    pub fn utilization(&self, zone: &str, primary: &str, age: Duration) -> Fact<f64> {
        let counted = || match self.measured.utilization.get(zone) {
            _ if self.served_by != primary => not_since(primary),
            Some(Ok(value)) => Fact::known(*value, age, "in-flight / capacity"),
            Some(Err(why)) => Fact::unknown(why.clone()),
            None => Fact::unknown(format!("the utilisation of {zone} was not measured yet")),
        };
        self.measured.fed.utilization.get(zone).map_or_else(counted, |busy| busy.clone().aged(age))
    }

    /// Median forecast of a zone's probe, milliseconds.
    pub fn probe_forecast(&self, zone: &str, policy: &Policy) -> Option<f64> {
        match self.probes.get(zone)?.forecast(policy.horizon_steps()) {
            Forecast::Forecast(forecast) => Some(forecast.over_horizon(0.5)),
            Forecast::Abstained(_) => None,
        }
    }

    /// The request path's forecast by step and quantile, milliseconds, for metrics.
    pub fn request_forecast(&self, policy: &Policy) -> Option<predictor::Forecast> {
        match self.requests.forecast(policy.horizon_steps()) {
            Forecast::Forecast(forecast) => Some(forecast),
            Forecast::Abstained(_) => None,
        }
    }

    /// What is usual: the lower quartile of the last steps' p95, whichever zone served.
    fn usual(&self, age: Duration) -> Fact<f64> {
        if self.history.len() < BASELINE_MINIMUM {
            return Fact::unknown(format!(
                "no usual latency yet: {} of {BASELINE_MINIMUM} steps with requests",
                self.history.len()
            ));
        }
        let mut sorted: Vec<f64> = self.history.iter().map(|(_, value)| *value).collect();
        sorted.sort_by(f64::total_cmp);
        let newest =
            self.newest.zip(self.history.back()).map(|((now, _), (then, _))| now.saturating_sub(*then));
        let age = self.since(newest, age);
        Fact::known(sorted[sorted.len() / 4], age, "usual on the request path")
    }

    /// How old a value is that came so many steps before the newest, which ended `age` ago.
    fn since(&self, steps: Option<u64>, age: Duration) -> Duration {
        let steps = u32::try_from(steps.unwrap_or(0)).unwrap_or(u32::MAX);
        age.saturating_add(self.pace.saturating_mul(steps))
    }

    fn outlook(
        &self,
        forecaster: &Ensemble,
        policy: &Policy,
        age: Duration,
        source: String,
    ) -> Fact<Outlook> {
        let steps = forecaster.age().and_then(|steps| u64::try_from(steps).ok());
        outlook(forecaster, policy, self.since(steps, age), source)
    }

    fn request_outlook(&self, policy: &Policy, age: Duration) -> Fact<Outlook> {
        self.outlook(&self.requests, policy, age, format!("request path in {}", self.served_by))
    }

    /// Of the primary a failure that stands alone, or a probe that is late, says little: until it has failed several times in a row, what was
    /// measured last stands, as long as any forecast does.
    fn primary_probe(&self, zone: &str, policy: &Policy, age: Duration) -> Fact<Outlook> {
        let last =
            self.probes.get(zone).filter(|_| !self.measured.probes_fail.contains(zone)).map(|forecaster| {
                self.outlook(forecaster, policy, age, format!("{} of {zone}", self.probe_name()))
            });
        last.filter(|last| last.value().is_some()).unwrap_or_else(|| self.probe_outlook(zone, policy, age))
    }

    fn probe_name(&self) -> &'static str {
        if self.measured.probed_by_sql { "SQL probe" } else { "HTTP probe" }
    }

    fn probe_outlook(&self, zone: &str, policy: &Policy, age: Duration) -> Fact<Outlook> {
        let probe = self.probe_name();
        match (self.measured.probes_ms.get(zone), self.probes.get(zone)) {
            (Some(Err(why)), _) => Fact::unknown(format!("the {probe} of {zone} fails: {why}")),
            (Some(Ok(_)), Some(forecaster)) => {
                self.outlook(forecaster, policy, age, format!("{probe} of {zone}"))
            }
            _ => Fact::unknown(format!("{zone} was not probed yet")),
        }
    }
}

fn not_since<T>(primary: &str) -> Fact<T> {
    Fact::unknown(format!("nothing was measured since {primary} serves"))
}

/// The lower of what is usual and what the shadow would give: a zone that has become slow for good must not count as
/// usual while a better one stands by.
fn baseline(world: &World) -> Fact<f64> {
    match (&world.baseline_ms, world.expected_from_shadow()) {
        (Fact::Known { value, .. }, Some((there, by))) if there < *value => {
            let both = world.side_by_side();
            let by_forecasts = [&world.latency, both.primary, both.shadow];
            let age = by_forecasts.into_iter().filter_map(Fact::age).max().unwrap_or_default();
            Fact::known(there, age, format!("expected from the shadow by {by}"))
        }
        (usual, _) => usual.clone(),
    }
}

fn outlook(forecaster: &dyn Forecaster, policy: &Policy, age: Duration, source: String) -> Fact<Outlook> {
    match forecaster.forecast(policy.horizon_steps()) {
        Forecast::Forecast(forecast) => {
            let value = Outlook {
                lower_ms: forecast.over_horizon(1.0 - policy.confidence),
                median_ms: forecast.over_horizon(0.5),
                upper_ms: forecast.over_horizon(policy.confidence),
            };
            Fact::known(value, age, source)
        }
        Forecast::Abstained(abstained) => Fact::unknown(format!("{source}: {}", abstained.why)),
    }
}

#[cfg(test)]
#[path = "signals/failing.rs"]
mod failing_tests;
#[cfg(test)]
mod tests {
    use migration::cutover::Phase;
    use migration::decide::decide;
    use migration::policy::{Bound, ExtraGuard, PolicyParts};

    use super::*;

    #[test]
    fn right_after_a_move_what_was_measured_before_is_not_the_new_primarys() {
        let policy = Policy::new(PolicyParts { sustain: Duration::from_secs(10), ..PolicyParts::default() });
        let policy = policy.expect("valid");
        let mut signals = Signals::new(1, policy.step, None);
        let mut state = State::first("orders", "west".into(), "east".into(), Timestamp(0));
        state.phase = Phase::Shadowing;
        let at = |signals: &mut Signals, state: &State, seconds: u64| {
            let now = Timestamp(seconds * 1000);
            (signals.world(&policy, state, Moves::default(), Vec::new(), Duration::ZERO, now), now)
        };
        for second in (0..20).map(|step| step * 10) {
            let measured = Measured {
                request_p95_ms: Some(300.0),
                probes_ms: [("west".to_owned(), Ok(280.0)), ("east".to_owned(), Ok(10.0))].into(),
                utilization: [("west".to_owned(), Ok(0.9)), ("east".to_owned(), Ok(0.0))].into(),
                cost: [("west".to_owned(), Some(2.0)), ("east".to_owned(), Some(1.0))].into(),
                mirrored_different: Some(0.5),
                ..Measured::default()
            };
            signals.observe("west", measured, false, Timestamp(second * 1000));
            at(&mut signals, &state, second);
        }
        let (world, now) = at(&mut signals, &state, 190);
        assert!(world.latency.value().is_some_and(|outlook| outlook.median_ms > 250.0), "{world:?}");
        assert!(world.above_since.is_some_and(|since| since < now), "{:?}", decide(&policy, &world, now));
        std::mem::swap(&mut state.primary, &mut state.shadow);
        let (world, now) = at(&mut signals, &state, 191);
        let why = Some("nothing was measured since east serves");
        assert_eq!(world.latency.why_unknown(), why);
        assert_eq!(world.shadow_utilization.why_unknown(), why);
        assert_eq!(world.mirrored_different.value(), None);
        assert!(world.expected_from_shadow().is_none());
        assert!(world.above_since.is_none_or(|since| since == now), "that was of the way there");
    }

    /// Slow in the west, better in the east.
    fn slow(requests: bool) -> Measured {
        Measured {
            request_p95_ms: requests.then_some(300.0),
            probes_ms: [("west".to_owned(), Ok(280.0)), ("east".to_owned(), Ok(10.0))].into(),
            ..Measured::default()
        }
    }

    /// A resource that is looked at every 10 s, and whose score must last for three minutes.
    struct Looked {
        signals: Signals,
        state: State,
        policy: Policy,
        /// Of the clock that does not jump, milliseconds.
        at: u64,
    }

    impl Looked {
        fn new() -> Self {
            let policy = Policy::new(PolicyParts::default()).expect("valid");
            let mut state = State::first("orders", "west".into(), "east".into(), Timestamp(0));
            state.phase = Phase::Shadowing;
            Self { signals: Signals::new(1, policy.step, None), state, policy, at: 100_000_000 }
        }

        fn steps(&mut self, count: usize, requests: bool) {
            for _ in 0..count {
                self.at += 10_000;
                self.signals.observe("west", slow(requests), false, Timestamp(self.at));
                self.sustained(0, 0);
            }
        }

        /// For how long the score counts as above, in seconds, when the wall clock is `off`, so many seconds after the step; none: it
        /// is not.
        fn sustained(&mut self, off: i64, age: u64) -> Option<u64> {
            let now = Timestamp(self.at.saturating_add_signed(off * 1000) + age * 1000);
            let age = Duration::from_secs(age);
            let world = self.signals.world(&self.policy, &self.state, Moves::default(), Vec::new(), age, now);
            world.above_since.map(|since| now.since(since).as_secs())
        }
    }

    #[test]
    fn a_score_lasts_by_its_steps_and_not_by_the_wall_clock() {
        let mut looked = Looked::new();
        looked.steps(40, true);
        let before = looked.sustained(0, 0).expect("above");
        assert!(before >= 180, "{before}");
        assert_eq!(looked.sustained(-3600, 0), Some(before), "the clock was put back");
        assert_eq!(looked.sustained(3600, 0), Some(before), "the clock was put forward");
        assert_eq!(looked.sustained(0, 4), Some(before + 4), "between two steps");
        assert_eq!(looked.sustained(0, 3600), Some(before + 10), "the next step is late");
        looked.steps(2, true);
        assert_eq!(looked.sustained(0, 0), Some(before + 20));
    }

    #[test]
    fn a_pause_is_a_gap_and_no_time_in_which_a_score_lasted() {
        let mut looked = Looked::new();
        looked.steps(40, true);
        let before = looked.sustained(0, 0).expect("above");
        // The process stood still for 5 minutes.
        looked.at += 300_000;
        looked.steps(1, true);
        assert_eq!(looked.sustained(0, 0), Some(before + 20));
        looked.at += 3_600_000;
        looked.steps(1, false);
        assert_eq!(looked.signals.requests().abstentions().of_late(predictor::Reason::Stale), 1);
        assert_eq!(looked.sustained(0, 0), None, "no forecast says so any more");
    }

    #[test]
    fn what_nobody_asked_for_does_not_last() {
        let mut looked = Looked::new();
        looked.steps(40, true);
        let before = looked.sustained(0, 0).expect("above");
        looked.steps(20, false);
        assert_eq!(looked.sustained(0, 0), Some(before), "the forecast stands, and nothing confirms it");
        looked.steps(1, true);
        assert_eq!(looked.sustained(0, 0), Some(before + 10));
        let mut parts = (*looked.policy).clone();
        parts.weights.cost = 1.0;
        looked.policy = Policy::new(parts).expect("valid");
        let before = looked.sustained(0, 0).expect("above");
        looked.at += 10_000;
        let cost = [("west".to_owned(), Some(2.0)), ("east".to_owned(), Some(1.0))].into();
        looked.signals.observe("west", Measured { cost, ..slow(false) }, false, Timestamp(looked.at));
        assert_eq!(
            looked.sustained(0, 0),
            Some(before + 10),
            "the price says so whether anybody asks or not"
        );
    }

    #[test]
    fn a_fact_is_as_old_as_the_value_that_it_rests_on() {
        let mut looked = Looked::new();
        looked.steps(20, true);
        looked.steps(30, false);
        let fed = Fact::known(0.5, Duration::from_secs(60), "feed");
        looked.signals.measured.fed.utilization.insert("east".into(), fed.clone());
        looked.signals.measured.fed.cost.insert("east".into(), fed);
        let (now, age) = (Timestamp(looked.at + 4000), Duration::from_secs(4));
        let world =
            looked.signals.world(&looked.policy, &looked.state, Moves::default(), Vec::new(), age, now);
        let seconds = |age: Option<Duration>| age.expect("known").as_secs();
        assert_eq!(seconds(world.latency.age()), 304);
        assert_eq!(
            seconds(world.baseline_ms.age()),
            304,
            "expected from the shadow by what is forecast here"
        );
        assert_eq!(seconds(looked.signals.usual(age).age()), 304);
        assert_eq!(seconds(world.primary_probe.age()), 4, "it was probed in the last step");
        assert_eq!(seconds(world.shadow_utilization.age()), 64);
        assert_eq!(seconds(world.shadow_cost.age()), 64);
    }

    #[test]
    fn a_probe_is_called_what_it_is() {
        let policy = Policy::new(PolicyParts::default()).expect("valid");
        let state = State::first("orders", "west".into(), "east".into(), Timestamp(0));
        for (probed_by_sql, why) in
            [(true, "the SQL probe of east fails: refused"), (false, "the HTTP probe of east fails: refused")]
        {
            let probes_ms = [("east".to_owned(), Err("refused".to_owned()))].into();
            let mut signals = Signals::new(1, policy.step, None);
            let measured = Measured { probes_ms, probed_by_sql, ..Measured::default() };
            signals.observe("west", measured, false, Timestamp(1));
            let moves = Moves::default();
            let world = signals.world(&policy, &state, moves, Vec::new(), Duration::ZERO, Timestamp(1));
            assert_eq!(world.shadow_probe.why_unknown(), Some(why));
        }
    }

    #[test]
    fn a_lag_says_something_else_where_any_guard_judges_it_otherwise() {
        let fact = GuardedFact::LagBytes;
        let guard = |bound| ExtraGuard { fact, bound, binds_operator: true };
        let guards = vec![guard(Bound::Below(100.0))];
        let policy = |guards| {
            let parts = PolicyParts { guards, max_lag: ByteCount(1000), ..PolicyParts::default() };
            Policy::new(parts).expect("valid")
        };
        let (strict, plain) = (policy(guards), policy(Vec::new()));
        let mut signals = Signals::new(0, Duration::from_secs(1), None);
        let mut changes =
            |lag: u64, policy: &Policy| signals.correct(Some(Ok(lag)), Vec::new(), Service::Answers, policy);
        changes(50, &strict);
        assert_eq!(
            [60, 500, 600, 2000, 2001].map(|lag| changes(lag, &strict)),
            [false, true, false, true, false]
        );
        changes(50, &plain);
        assert_eq!([500, 2000].map(|lag| changes(lag, &plain)), [false, true]);
    }
}
