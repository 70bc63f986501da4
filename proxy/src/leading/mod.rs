//! What a node leads: each resource's front, controller and what belongs to them, built, started and ended.
//!
//! Most are there from the start. A resource that the API reserves joins while the node runs, on a listener of its own or
//! as another host of one that is there; one that is dropped leaves again.

mod adopting;
mod anew;
pub mod changes;
pub mod comparison;
pub mod election;
pub mod fronts;
pub mod holder;
mod known;
mod placing;
mod probing;
mod remembered;
mod renamed;
pub mod running;
pub mod standing;
pub mod successor;
pub mod taken_out;
#[cfg(test)]
mod whole;

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use migration::cutover::{State, Trigger};
use migration::units::{Generation, Timestamp, Zone};
use replicator::lead::Candidate;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::{Audit, Entry as Audited};
use crate::clock;
use crate::config::model::{Config, Driver, OutsideDriver, Resource, Way};
use crate::controller::ResourceHandle;
use crate::controller::databases::Databases;
use crate::controller::effects::{Endpoints, Hands, ZoneDriver};
use crate::controller::events::Events;
use crate::controller::freezes::Freezes;
use crate::controller::large_objects::LargeObjects;
use crate::controller::live::Live;
use crate::controller::machine::{Machine, Memory, taking_back};
use crate::controller::measure::Measure;
use crate::controller::slots::SlotWatch;
use crate::controller::streams::Streams;
use crate::controller::verification::Verifications;
use crate::drivers::contract::DatabaseNames;
use crate::drivers::exec::Exec;
use crate::drivers::ledger::Maker;
use crate::drivers::outside::{Carrier, Outside};
use crate::drivers::process::ProcessProvisioning;
use crate::drivers::webhook::Webhook;
use crate::drivers::{self, Provisioning, contract};
use crate::feeds::external::board::FeedBoard;
use crate::feeds::learning::Learner;
use crate::fronts::health;
use crate::fronts::latencies::Recorder;
use crate::fronts::pools::{LookingUp, Pool, Reach};
use crate::fronts::postgres::{Active, PostgresFront};
use crate::fronts::routes::ResourceFront;
use crate::history::History;
use crate::links::Links;
use crate::lock::lock;
use crate::store::{Journal, PlacedRow};

use known::Known;

pub use anew::Anew;
pub use placing::{Placed, candidates, settle};

/// Under the state directory: what drivers outside remember.
const DRIVERS: &str = "drivers";

/// A resource that this node leads: what its controller starts from.
pub struct Led {
    live: Arc<Live>,
    state: State,
    /// Its primary could not be asked whether that is so.
    unheard: bool,
    /// Where its shadow was, if that is another zone by now.
    replaced: Option<Zone>,
    /// Its front; none on a node that only serves the link.
    pub front: Option<Arc<ResourceFront>>,
    /// Its PostgreSQL front, likewise.
    pub postgres: Option<Arc<PostgresFront>>,
    reaches: BTreeMap<String, Arc<Reach>>,
    drivers: BTreeMap<String, ZoneDriver>,
}

impl Led {
    /// The resource's name.
    pub fn name(&self) -> &str {
        &self.live.name
    }
}

/// A resource whose front is yet to be built: its endpoints are being looked up.
pub struct Begun {
    live: Arc<Live>,
    state: State,
    unheard: bool,
    replaced: Option<Zone>,
    drivers: BTreeMap<String, ZoneDriver>,
    looking: BTreeMap<String, LookingUp>,
}

/// Reads where each resource stands that has a front, and begins to look its endpoints up. Databases and names that are lost are waited for
/// once, side by side.
pub fn lead_all(config: &Config, journal: &Journal) -> Result<Vec<Begun>> {
    std::thread::scope(|scope| {
        let fronted = config.resources.values().filter(|resource| resource.has_front());
        let begin = |resource| scope.spawn(move || lead(config, resource, journal));
        let beginning: Vec<_> = fronted.map(begin).collect();
        let begun = beginning.into_iter().map(|one| one.join().unwrap_or_else(|panic| resume_unwind(panic)));
        begun.collect()
    })
}

/// As [`lead_all`], of one.
fn lead(config: &Config, resource: &Resource, journal: &Journal) -> Result<Begun> {
    let name = &resource.name;
    let now = clock::now();
    let others = config.node.lease.is_some();
    let Known { state: known, replaced, placed, left, went_on, zones: [primary, shadow] } =
        known::read(config, resource, journal, now)?;
    let located = located(config, resource, &primary, &shadow)?;
    let newest = left.as_ref().or(known.as_ref());
    let found = remembered::state(&located, [&primary, &shadow], newest, others, went_on, now)?;
    if known.is_none() && found.is_none() && placed.is_none() {
        renamed::refuse(config, &located, &primary)?;
    }
    let unheard = found.as_ref().map_or(left.is_some(), |found| found.unheard);
    let ends_others = others || found.is_some();
    let lost = found.as_ref().is_some_and(|found| found.lost);
    let elsewhere = placed.and_then(|placed| elsewhere(resource, placed, known.as_ref(), now));
    let state = match (found.map(|found| found.state).or(left).or(elsewhere), known) {
        (Some(state), _) => {
            journal.append(&state, "Adopted", now, None)?;
            state
        }
        (None, Some(state)) => {
            if replaced.is_some() {
                journal.append(&state, "ShadowReplaced", now, None)?;
            }
            if !ends_others {
                journal.end_unknown(&state, now)?;
            }
            state
        }
        (None, None) => {
            let first = State::first(name, primary.as_str().into(), shadow.as_str().into(), now);
            journal.append(&first, "FirstStart", now, None)?;
            first
        }
    };
    if ends_others
        && let Some(asked) = journal.end_others(&state, now)?
        && let Some(why) = Trigger::failures(&asked)
    {
        // The node that took the move back had no time to leave that.
        journal.freeze(&taking_back::freeze(&state, why, now))?;
    }
    if lost {
        journal.note_lost(&state, now)?;
    }
    if let Some(before) = &replaced {
        // That a placement elsewhere was given back says nothing of this one.
        journal.forget_retirement(name)?;
        let shadow = &state.shadow;
        tracing::warn!(resource = %name, %before, %shadow, "the configuration has the shadow in another zone: what is in the old one is not touched");
    }
    let mut begun = begin(config, resource, state)?;
    if resource.http.is_some()
        && let Some(looking) = begun.looking.get_mut(&*begun.state.primary.0)
    {
        looking.needs_one();
    }
    Ok(Begun { unheard, replaced, ..begun })
}

/// Where another node had the resource, if its databases did not say, and the journal (`known`) says something else.
fn elsewhere(resource: &Resource, placed: PlacedRow, known: Option<&State>, now: Timestamp) -> Option<State> {
    let PlacedRow { primary, shadow, generation } = placed;
    let [primary, shadow] = [primary, shadow].map(|zone| Zone::from(zone.as_str()));
    let first =
        |primary: &Zone, shadow: &Zone| State::first(&resource.name, primary.clone(), shadow.clone(), now);
    if resource.has_database() {
        // Who serves, the databases say; where a move was under way, the journal knows where to.
        let known =
            known.filter(|known| known.run.is_none() && ![&primary, &shadow].contains(&&known.shadow))?;
        let other = if known.primary == primary {
            shadow
        } else if known.primary == shadow {
            primary
        } else {
            return None;
        };
        return Some(State { generation: known.generation, ..first(&known.primary, &other) });
    }
    let mut state = first(&primary, &shadow);
    state.generation = state.generation.max(Generation(generation));
    let Some(known) = known else { return Some(state) };
    state.generation = state.generation.max(known.generation);
    // Nobody has heard of that move, or it would be there.
    if known.run.is_some() && known.primary != primary && known.generation == state.generation {
        state.generation = state.generation.next();
    }
    let same = |known: &State| {
        (known.generation, &known.primary, &known.shadow) == (state.generation, &primary, &shadow)
    };
    (!same(known)).then_some(state)
}

/// As [`lead_all`] for a resource that is to be reserved, and builds it; writes nothing down. One that had its name before left its generation behind:
/// databases may know it.
pub fn lead_anew(
    config: &Config,
    resource: &Resource,
    journal: &Journal,
    shadow: &str,
    recorder: &Arc<Recorder>,
) -> Result<Led> {
    let name = &resource.name;
    let before = journal.latest(name)?;
    let others = config.node.lease.is_some();
    // Another node may have ended it.
    if !others && before.as_ref().is_some_and(|state| state.run.is_some()) {
        bail!("resource {name}: the journal has a migration of it under way; start godwit with it as it was");
    }
    let mut state = State::first(name, resource.primary.as_str().into(), shadow.into(), clock::now());
    let placed = if others { journal.placed(name)? } else { None };
    let placed = placed.map(|placed| Generation(placed.generation));
    let before = before.map(|before| before.generation).into_iter().chain(placed);
    state.generation = before.fold(state.generation, Generation::max);
    begin(config, resource, state)?.build(config, recorder)
}

/// Writes down where a resource that is reserved stands.
pub fn note_reserved(config: &Config, led: &Led, journal: &Journal) -> Result<()> {
    let now = clock::now();
    journal.append(&led.state, "Reserved", now, None)?;
    if config.node.lease.is_some() {
        journal.end_others(&led.state, now)?;
    }
    Ok(())
}

/// The resource with what its drivers' ledgers know of where those zones' placements are.
fn located(config: &Config, resource: &Resource, primary: &str, shadow: &str) -> Result<Resource> {
    let settled = settle(config, resource, primary, shadow)?;
    let drivers = drivers_of(config, &settled)?;
    let live = Live::new(settled);
    learn(&live, &drivers)?;
    let mut located = resource.clone();
    located.placements.extend(live.load().placements.clone());
    Ok(located)
}

fn learn(live: &Live, drivers: &BTreeMap<String, ZoneDriver>) -> Result<()> {
    for (zone, driver) in drivers {
        if let Some(endpoint) = driver.does.known_endpoint() {
            let learned = live.learn(zone, &endpoint, driver.password.as_ref());
            learned.map_err(|why| anyhow::anyhow!("resource {}, zone {zone}: {why}", live.name))?;
        }
    }
    Ok(())
}

fn begin(config: &Config, resource: &Resource, state: State) -> Result<Begun> {
    let resource = settle(config, resource, &state.primary.0, &state.shadow.0)?;
    let drivers = drivers_of(config, &resource)?;
    let live = Live::new(resource);
    learn(&live, &drivers)?;
    let placements = live.load().placements.clone();
    let looking = placements.into_iter().map(|(zone, placement)| (zone, LookingUp::begin(&placement.http)));
    Ok(Begun { looking: looking.collect(), live, state, unheard: false, replaced: None, drivers })
}

impl Begun {
    /// Builds its front for where it stands: closed where a database may be fenced.
    pub fn build(self, config: &Config, recorder: &Arc<Recorder>) -> Result<Led> {
        let Self { live, state, unheard, replaced, drivers, mut looking } = self;
        let settings = live.load();
        let name = &settings.name;
        let mut reaches = BTreeMap::new();
        for (zone, placement) in &settings.placements {
            let Some(looking) = looking.remove(zone) else { continue };
            let context = || format!("resource {name}, zone {zone}");
            let reach = Reach::looked_up(&placement.upstream, looking).with_context(context)?;
            reaches.insert(zone.clone(), Arc::new(reach));
        }
        let front = settings.http.as_ref().map(|http| {
            let mut upstreams = reaches.get(&*state.primary.0).map(|reach| reach.endpoints()).unwrap_or_default();
            // A driver runs as many workers as there are to be: the first ones.
            let primary = settings.placements.get(&*state.primary.0).filter(|_| drivers.contains_key(&*state.primary.0));
            if let Some(placement) = primary {
                upstreams.truncate(placement.capacity as usize);
            }
            let pool = Pool::new(state.generation.0, &*state.primary.0, &upstreams);
            let reaches = reaches.iter().map(|(zone, reach)| (zone.as_str().into(), reach.clone())).collect();
            let front = ResourceFront::reaching(name.as_str(), http, config.node.hold, pool, reaches)
                .with_context(|| format!("resource {name}: the access log cannot be opened"))?;
            if state.starts_closed() {
                tracing::warn!(resource = %name, phase = state.phase.name(), "starting with the gate closed: a cutover was under way");
                front.gate.close();
            }
            anyhow::Ok(front)
        });
        let postgres = settings.postgres.as_ref().map(|front| {
            let active = Active { generation: state.generation.0, zone: state.primary.0.clone() };
            let front = PostgresFront::new(&settings, front, config.node.hold, active, recorder)
                .with_context(|| format!("resource {name}, the PostgreSQL front"))?;
            if state.starts_closed() {
                front.turnstile.close();
            }
            anyhow::Ok(front)
        });
        let (front, postgres) = (front.transpose()?, postgres.transpose()?);
        Ok(Led { live, state, unheard, replaced, front, postgres, reaches, drivers })
    }
}

/// What every resource's controller uses.
pub struct Shared {
    /// Collects latencies.
    pub recorder: Arc<Recorder>,
    /// To nodes of other zones.
    pub links: Arc<Links>,
    /// The network that forecasters share.
    pub learner: Learner,
    /// Where what is done is written down.
    pub audit: Audit,
    /// Who listens hears of changes here.
    pub events: Arc<Events>,
    /// What was measured.
    pub history: History,
    /// What operators froze.
    pub freezes: Arc<Freezes>,
    /// What other services say.
    pub feeds: FeedBoard,
    /// Where each resource stands.
    pub journal: Arc<Journal>,
    /// The node's state directory is in it.
    pub config: Arc<Config>,
    /// By what the databases know this node, where several may lead.
    pub holder: Option<Candidate>,
    /// Has the node begin anew.
    pub anew: Arc<Anew>,
    /// Ends everything.
    pub stop: CancellationToken,
    /// Everything that runs.
    pub tasks: TaskTracker,
}

/// Starts and ends controllers.
pub struct Leading {
    shared: Shared,
    /// Ends one resource's controller.
    stops: Mutex<BTreeMap<String, (CancellationToken, TaskTracker)>>,
}

impl Leading {
    /// None runs yet.
    pub fn new(shared: Shared) -> Self {
        Self { shared, stops: Mutex::default() }
    }

    /// What the controllers use.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Starts a resource's controller and what belongs to it.
    pub fn start(&self, led: Led) -> ResourceHandle {
        let Led { live, state, unheard, replaced, front, postgres, reaches, drivers } = led;
        let shared = &self.shared;
        let (stop, own) = (shared.stop.child_token(), TaskTracker::new());
        let resource = live.load();
        if let Some(before) = replaced {
            shared.audit.note(Audited::Changed {
                resource: resource.name.clone(),
                by: "configuration".to_owned(),
                section: "placements".to_owned(),
                before: serde_json::json!({ "shadow": before.to_string() }),
                after: serde_json::json!({ "shadow": state.shadow.to_string() }),
            });
        }
        // Another node may have opened what a takeover that has not begun is to open.
        if unheard || state.run.as_ref().is_some_and(|run| run.taken_over && !run.sequenced) {
            let (journal, anew) = (shared.journal.clone(), shared.anew.clone());
            let hears = remembered::hear(resource.clone(), state.clone(), journal, anew);
            own.spawn(stop.clone().run_until_cancelled_owned(hears));
        }
        let databases = Arc::new(Databases::new(live.clone()));
        let streams = Arc::new(Streams::new(
            live.clone(),
            databases.clone(),
            shared.links.clone(),
            shared.journal.clone(),
        ));
        let large_objects = Arc::new(LargeObjects::new(live.clone(), databases.clone()));
        let verifications = Arc::new(Verifications::new(
            &shared.config.node.state,
            databases.clone(),
            streams.clone(),
            large_objects.clone(),
        ));
        let board = probing::probe(&live, &stop, &own);
        let measure = Measure::new(live.clone(), shared.recorder.reader(), board, shared.feeds.clone());
        measure.watch(&drivers, &databases, &stop);
        let zones = resource.placements.values().filter(|placement| placement.has_database());
        let zones = zones.map(|placement| placement.zone.clone()).collect();
        let slots = SlotWatch::start(&resource.name, zones, &databases, resource.policy.step, &stop);
        let (reports, answers) = tokio::sync::mpsc::unbounded_channel();
        let anew = shared.anew.clone();
        let hands = Arc::new(Hands::new(
            live,
            front,
            postgres,
            databases,
            streams.clone(),
            drivers,
            Endpoints::new(reaches),
            large_objects,
            shared.journal.clone(),
            shared.audit.clone(),
            shared.events.clone(),
            shared.holder.clone(),
            Box::new(move |why| anew.begin(why)),
            reports,
        ));
        if let Some(front) = &hands.front {
            own.spawn(front.mirror.clone().serve(stop.clone()));
            own.spawn(stop.clone().run_until_cancelled_owned(health::keep(front.clone())));
        }
        let (machine, handle) = Machine::new(
            hands.clone(),
            state,
            measure,
            slots,
            verifications.clone(),
            answers,
            Memory {
                seed: crate::rng::seed(),
                learner: Some(shared.learner.clone()),
                history: shared.history.clone(),
                freezes: shared.freezes.clone(),
            },
        );
        machine.follow_beside(&stop);
        adopting::begin(&shared.config, &hands, &handle.view, &stop, &own);
        let stopped = stop.clone();
        own.spawn(async move {
            Box::pin(machine.run(stopped)).await;
            verifications.stop("godwit was stopped");
            streams.stop().await;
        });
        own.close();
        let ended = own.clone();
        shared.tasks.spawn(async move { ended.wait().await });
        self.stops().insert(resource.name.clone(), (stop, own));
        handle
    }

    /// Ends a resource's controller, and returns when all of it has ended. The databases stay as they are.
    pub async fn end(&self, name: &str) {
        let Some((stop, tasks)) = self.stops().remove(name) else { return };
        stop.cancel();
        tasks.wait().await;
    }

    fn stops(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, (CancellationToken, TaskTracker)>> {
        lock(&self.stops)
    }
}

/// The drivers of a resource's placements, by zone.
pub fn drivers_of(config: &Config, resource: &Resource) -> Result<BTreeMap<String, ZoneDriver>> {
    let mut found = BTreeMap::new();
    for (zone, placement) in &resource.placements {
        let named = placement.driver.as_ref().and_then(|name| config.drivers.get_key_value(name));
        let Some((name, driver)) = named else { continue };
        let maker = Maker { name: name.clone(), kind: driver.kind().to_owned() };
        found.insert(zone.clone(), driver_of(config, resource, zone, driver, maker)?);
    }
    Ok(found)
}

#[cfg_attr(
    feature = "kubernetes",
    expect(clippy::unnecessary_wraps, reason = "what a build lacks is an error in another")
)]
fn driver_of(
    config: &Config,
    resource: &Resource,
    zone: &str,
    driver: &Driver,
    maker: Maker,
) -> Result<ZoneDriver> {
    let place = contract_placement(resource, zone);
    let directory = ledger_directory(&config.node.state, &resource.name, zone);
    let (does, deadline): (Arc<dyn Provisioning>, _) = match driver {
        Driver::Process(settings) => {
            (Arc::new(ProcessProvisioning::new(settings.clone())), drivers::DEADLINE)
        }
        Driver::Outside(OutsideDriver { way, parameters, every, deadline, .. }) => {
            let carrier: Box<dyn Carrier> = match way {
                Way::Exec(settings) => Box::new(Exec::new(settings.clone())),
                Way::Webhook(settings) => {
                    Box::new(Webhook::new(settings.clone(), config.node.egress.clone()))
                }
            };
            let outside = Outside::new(carrier, place, parameters.clone(), directory, *every);
            (Arc::new(outside.named(maker)), *deadline)
        }
        #[cfg(feature = "kubernetes")]
        Driver::Kubernetes(settings) => (
            Arc::new(
                crate::drivers::kubernetes::Kubernetes::driver(settings.clone(), place, directory)
                    .named(maker),
            ),
            settings.deadline,
        ),
        #[cfg(not(feature = "kubernetes"))]
        Driver::Kubernetes(_) => bail!("this build has no kubernetes driver"),
    };
    Ok(ZoneDriver { does, deadline, password: driver.password().cloned() })
}

fn contract_placement(resource: &Resource, zone: &str) -> contract::Placement {
    let database = resource.placements.values().find_map(|placement| placement.postgres.as_ref());
    contract::Placement {
        resource: resource.name.clone(),
        zone: zone.to_owned(),
        full: resource.placements.get(zone).map_or(1, |placement| placement.capacity),
        database: database.map(|database| DatabaseNames {
            name: database.dsn.get_dbname().unwrap_or_default().to_owned(),
            role: database.dsn.get_user().unwrap_or_default().to_owned(),
            app_roles: database.app_roles.clone(),
        }),
    }
}

/// Of names that are safe in file names.
fn ledger_directory(state: &Path, resource: &str, zone: &str) -> std::path::PathBuf {
    drivers_directory(state).join(format!("{resource}@{zone}"))
}

/// Where drivers outside have their ledgers.
pub fn drivers_directory(state: &Path) -> std::path::PathBuf {
    state.join(DRIVERS)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use migration::cutover::{Phase, Run};

    use super::*;
    use crate::config::samples;
    use crate::drivers::Endpoint;
    use crate::drivers::ledger::Made;

    const CONFIG: &str = "node: { name: n, zone: near, state: state, lease: 3s }\n\
                          zones: { near: { grid: west, location: [53, -6] }, far: { grid: central, location: [52, 4] }, \
                          farther: { grid: east, location: [40, 20] } }\n\
                          drivers: { fleet: { exec: { argv: [\"/bin/false\"] } } }\n\
                          resources: { web: { fronts: { http: { listen: \"127.0.0.1:10\" } }, primary: near, policy: p, \
                          placements: { near: { http: [\"127.0.0.1:3\"] }, far: { http: [\"127.0.0.1:4\"] } } }, \
                          orders: { location: flexible, driver: fleet, fronts: { http: { listen: \"127.0.0.1:9\" } }, \
                          primary: near, policy: p, placements: { near: { http: [\"127.0.0.1:2\"], \
                          postgres: { dsn: \"postgres://x@127.0.0.1:1/x\" } } } } }\n";

    /// Moved from there, and nothing else of it is done.
    fn committed(
        State { primary, shadow, generation, since, resource: name, .. }: State,
        resource: &Resource,
    ) -> State {
        let limits = migration::cutover::Limits::of(&resource.policy);
        let before = State { generation, ..State::first(&name, primary.clone(), shadow.clone(), since) };
        let run = before.undoing("m1", limits, "x", since).run;
        let run = run.map(|run| Run { taken_over: true, held_since: Some(since), ..run });
        let first = State::first(&name, shadow, primary, since);
        State { generation: generation.next(), phase: Phase::Committed, run, ..first }
    }

    #[test]
    fn an_endpoint_that_is_not_found_keeps_nobody_from_being_served() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let text = format!(
            "node: {{name: edge, zone: west, state: {}}}\nzones: {{west: {{country: IE}}, east: {{country: DE}}}}\n\
             resources:\n  shop:\n    fronts: {{http: {{listen: \"127.0.0.1:8000\"}}}}\n    primary: west\n    policy: p\n    \
             placements:\n      west: {{http: [\"127.0.0.1:8001\"]}}\n      east: {{http: [\"nowhere.invalid:80\"]}}\n",
            state.display()
        );
        let config = crate::config::load(&samples::write(folder.path(), &text)).unwrap();
        let journal = Journal::open(&state).unwrap();
        let begun = lead(&config, &config.resources["shop"], &journal).unwrap();
        let led = begun.build(&config, &Recorder::with(None)).unwrap();
        assert_eq!(led.front.unwrap().pool.load().upstreams(), ["127.0.0.1:8001".parse().unwrap()]);
        assert_eq!(led.reaches["east"].not_found(), ["nowhere.invalid:80"]);
    }

    #[test]
    fn what_another_node_had_made_and_where_is_known_to_the_next_leader() {
        let folder = tempfile::tempdir().unwrap();
        let config = crate::config::load(&samples::write(folder.path(), CONFIG)).unwrap();
        let resource = &config.resources["orders"];
        let now = clock::now();
        let chosen = placing::first(&config, resource, None).unwrap().1;
        let elsewhere = if chosen == "far" { "farther" } else { "far" };

        let left = tempfile::tempdir().unwrap();
        let other = Journal::open(left.path()).unwrap();
        let state = State::first("orders", elsewhere.into(), "near".into(), now);
        other.append(&state, "Tested", now, None).unwrap();
        let dsn = Some("postgres://y@127.0.0.1:1/y".to_owned());
        let made = Made {
            capacity: Some(2),
            endpoint: Some(Endpoint { http: vec!["127.0.0.1:7".into()], dsn }),
            driver: None,
        };
        made.keep(&ledger_directory(left.path(), "orders", elsewhere)).unwrap();
        let made = Made::all(&drivers_directory(left.path()));
        let legacy = other.leaves(crate::store::Overlay::default(), made).unwrap();

        let journal = Journal::open(&config.node.state).unwrap();
        journal.inherits(&legacy).unwrap();
        let name = format!("orders@{elsewhere}");
        legacy.made[&name].clone().keep(&ledger_directory(&config.node.state, "orders", elsewhere)).unwrap();
        let led = lead(&config, resource, &journal).unwrap().build(&config, &Recorder::new()).unwrap();
        assert_eq!((&*led.state.primary.0, &*led.state.shadow.0), ("near", elsewhere));
        let known = &led.live.load().placements[elsewhere];
        assert_eq!(known.http, ["127.0.0.1:7"]);
        assert_eq!(known.postgres.as_ref().unwrap().dsn.get_user(), Some("y"), "it would not be asked");
        assert!(led.drivers[elsewhere].does.provisioned().unwrap());
        assert_eq!(journal.placed("orders").unwrap(), None);
    }

    #[test]
    fn a_service_without_a_database_stays_where_another_node_has_moved_it() {
        let folder = tempfile::tempdir().unwrap();
        let config = crate::config::load(&samples::write(folder.path(), CONFIG)).unwrap();
        let resource = &config.resources["web"];
        let now = clock::now();
        let at = |primary: &str, shadow: &str, generation| State {
            generation: Generation(generation),
            ..State::first("web", primary.into(), shadow.into(), now)
        };
        let (moved, back, first) = (at("far", "near", 2), at("near", "far", 3), at("near", "far", 1));
        let left = tempfile::tempdir().unwrap();
        let other = Journal::open(left.path()).unwrap();
        other.append(&first, "Tested", now, None).unwrap();
        let leaves = || other.leaves(crate::store::Overlay::default(), BTreeMap::new()).unwrap();
        let not_heard_of_it = leaves();
        other.append(&moved, "Tested", now, None).unwrap();
        let legacy = leaves();
        let committed = committed(first.clone(), resource);
        let mut of_before = serde_json::to_value(&legacy).unwrap();
        of_before["tables"]["placed"][0].as_object_mut().unwrap().remove("generation").unwrap();
        let of_before = crate::store::Legacy::read(&of_before.to_string()).unwrap();
        for (known, legacy, expected) in [
            (None, &legacy, &moved),
            (Some(&first), &legacy, &moved),
            (Some(&moved), &legacy, &moved),
            // The newest that was left could not be read.
            (Some(&back), &legacy, &back),
            (Some(&committed), &legacy, &moved),
            // Its move was not left, and another node has led since: it was served where it was before.
            (Some(&committed), &not_heard_of_it, &back),
            (None, &of_before, &at("far", "near", 1)),
            (Some(&first), &of_before, &at("far", "near", 1)),
        ] {
            let own = tempfile::tempdir().unwrap();
            let journal = Journal::open(own.path()).unwrap();
            if let Some(known) = known {
                journal.append(known, "Tested", now, None).unwrap();
            }
            journal.inherits(legacy).unwrap();
            let led =
                lead(&config, resource, &journal).unwrap().build(&config, &Recorder::with(None)).unwrap();
            let stands = |state: &State| (state.generation, state.primary.clone(), state.shadow.clone());
            assert_eq!(stands(&led.state), stands(expected), "{known:?}");
            assert_eq!(led.front.unwrap().pool.load().zone, expected.primary.0);
            assert_eq!(journal.latest("web").unwrap().as_ref().map(stands), Some(stands(expected)));
            assert_eq!(journal.placed("web").unwrap(), None);
        }
    }

    #[test]
    fn a_primary_is_where_another_node_had_it_if_no_database_answers() {
        let folder = tempfile::tempdir().unwrap();
        let config = crate::config::load(&samples::write(folder.path(), CONFIG)).unwrap();
        let resource = &config.resources["orders"];
        let now = clock::now();
        let at = |primary: &str, shadow: &str, generation| State {
            generation: Generation(generation),
            ..State::first("orders", primary.into(), shadow.into(), now)
        };
        let (first, moved, back) = (at("near", "far", 1), at("far", "near", 2), at("near", "far", 3));
        let left = tempfile::tempdir().unwrap();
        let other = Journal::open(left.path()).unwrap();
        other.append(&moved, "Tested", now, None).unwrap();
        let legacy = other.leaves(crate::store::Overlay::default(), BTreeMap::new()).unwrap();
        for (known, expected, unheard) in [
            (None, &moved, true),
            (Some(&first), &moved, true),
            (Some(&moved), &moved, false),
            (Some(&back), &back, false),
        ] {
            let own = tempfile::tempdir().unwrap();
            let journal = Journal::open(own.path()).unwrap();
            if let Some(known) = known {
                journal.append(known, "Tested", now, None).unwrap();
            }
            journal.inherits(&legacy).unwrap();
            let begun = lead(&config, resource, &journal).unwrap();
            let stands = |state: &State| (state.generation, state.primary.clone(), state.shadow.clone());
            assert_eq!((stands(&begun.state), begun.unheard), (stands(expected), unheard), "{known:?}");
            assert_eq!(journal.latest("orders").unwrap().as_ref().map(stands), Some(stands(expected)));
        }
    }

    /// Another node has led since, which ended it and gave the name back.
    #[test]
    fn a_name_whose_run_may_have_ended_elsewhere_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let now = clock::now();
        for lease in [true, false] {
            let text = if lease { CONFIG.to_owned() } else { CONFIG.replace(", lease: 3s", "") };
            let config = crate::config::load(&samples::write(folder.path(), &text)).unwrap();
            let resource = &config.resources["web"];
            let first = State::first("web", "near".into(), "far".into(), now);
            let moved = committed(State { generation: Generation(3), ..first }, resource);
            let own = tempfile::tempdir().unwrap();
            let journal = Journal::open(own.path()).unwrap();
            journal.append(&moved, "Tested", now, None).unwrap();
            let led = lead_anew(&config, resource, &journal, "far", &Recorder::with(None));
            assert_eq!(led.is_ok(), lease, "{:?}", led.err());
            let Some(led) = led.ok() else { continue };
            assert_eq!(
                (&*led.state.primary.0, led.state.generation, &led.state.run),
                ("near", Generation(4), &None)
            );
        }
    }

    #[test]
    fn a_shadow_is_where_another_node_has_it_if_the_databases_do_not_say() {
        let folder = tempfile::tempdir().unwrap();
        let config = crate::config::load(&samples::write(folder.path(), CONFIG)).unwrap();
        let placed = |primary: &str, shadow: &str| PlacedRow {
            primary: primary.into(),
            shadow: shadow.into(),
            generation: 4,
        };
        let now = clock::now();
        let known =
            State { generation: Generation(3), ..State::first("orders", "near".into(), "far".into(), now) };
        let shadow = |placed, known| {
            let state = elsewhere(&config.resources["orders"], placed, known, now)?;
            assert_eq!((&*state.primary.0, state.generation), ("near", Generation(3)));
            Some(state.shadow.to_string())
        };
        assert_eq!(shadow(placed("near", "farther"), Some(&known)).as_deref(), Some("farther"));
        assert_eq!(shadow(placed("farther", "near"), Some(&known)).as_deref(), Some("farther"));
        assert_eq!(shadow(placed("far", "near"), Some(&known)), None);
        assert_eq!(shadow(placed("far", "near"), None), None);
        let limits = migration::cutover::Limits::of(&config.resources["orders"].policy);
        let moving = known.clone().undoing("m1", limits, "x", now);
        assert_eq!(shadow(placed("near", "farther"), Some(&moving)), None);
    }
}
