//! Tests with controllers that run, of services without a database.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use migration::cutover::{Phase, State};
use migration::policy::Mode;
use migration::units::Generation;
use serde_json::json;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::changes::{self, ChangeError, Changes};
use super::comparison::Comparison;
use super::fronts::Fronts;
use super::running::Running;
use super::{Anew, Leading, Shared, lead, ledger_directory};
use crate::audit::{self, Audit};
use crate::clock;
use crate::config::samples;
use crate::controller::events::Events;
use crate::controller::freezes::Freezes;
use crate::controller::view::ResourceView;
use crate::controller::{Command, Denied, ResourceHandle};
use crate::drivers::Endpoint;
use crate::drivers::ledger::{Ledger, Made, Maker};
use crate::feeds::external::board::FeedBoard;
use crate::feeds::learning::Learner;
use crate::fronts::latencies::Recorder;
use crate::fronts::routes::{ResourceFront, Routes};
use crate::history::History;
use crate::links::Links;
use crate::store::{Journal, OverlayFile};

const PATIENCE: Duration = Duration::from_secs(60);

/// A policy whose step stays until a restart.
const QUICK: &str = "mode: auto\nscore: { step: 1s, horizon: 1h }\n";
const FREEZE: &str =
    "limits: { freeze: [{ from: \"0 8 * * FRI\", for: 2h, zone: Europe/Berlin, why: x }] }\n";

fn write_policy(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(format!("policies/{name}.yaml")), text).unwrap();
}

/// A node that leads `shop`, and what else is in its configuration; nothing listens at its front.
struct Whole {
    runtime: Runtime,
    running: Arc<Running>,
    changes: Changes,
    shop: ResourceHandle,
    front: Arc<ResourceFront>,
    journal: Arc<Journal>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Whole {
    /// `placements` is of `shop`, which stands where `state` says; `driver` is what the driver `fleet` does, for `sh`.
    fn start(folder: &Path, placements: &str, driver: &str, policy: &str, state: &State) -> Self {
        Self::with(folder, placements, driver, ("p", policy), state)
    }

    /// As [`Self::start`], of a resource that has another name where `state` says so, and with a policy of this name.
    fn with(
        folder: &Path,
        placements: &str,
        driver: &str,
        (policy_name, policy): (&str, &str),
        state: &State,
    ) -> Self {
        let name = state.resource.as_str();
        let (script, states) = (folder.join("driver.sh"), folder.join("state"));
        let text = format!(
            "node: {{ name: n, zone: near, state: {} }}\nzones: {{ near: {{}}, far: {{}} }}\n\
             drivers: {{ fleet: {{ exec: {{ argv: [\"/bin/sh\", \"{}\"], every: 200ms, deadline: 30m }} }} }}\n\
             resources: {{ {name}: {{ fronts: {{ http: {{ listen: \"127.0.0.1:9\" }} }}, primary: near, policy: {policy_name}, \
             placements: {placements} }} }}\n",
            states.display(),
            script.display()
        );
        let file = samples::write(folder, &text);
        std::fs::write(&script, driver).unwrap();
        write_policy(folder, policy_name, policy);
        let config = Arc::new(changes::load(&file).unwrap());
        let journal = Arc::new(Journal::open(&states).unwrap());
        journal.append(state, "Tested", clock::now(), None).unwrap();
        let recorder = Recorder::with(None);
        let begun = config.resources.values().map(|resource| lead(&config, resource, &journal).unwrap());
        let led: Vec<_> = begun.map(|begun| begun.build(&config, &recorder).unwrap()).collect();
        let fronts: Vec<_> = led.iter().filter_map(|led| led.front.clone()).collect();
        let front = fronts.iter().find(|front| *front.name == *name).unwrap().clone();
        let runtime = Runtime::new().unwrap();
        let inside = runtime.enter();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let audited = audit::Settings { directory: states.join("audit"), node: "n".into(), rotate: 1 << 20 };
        let leading = Arc::new(Leading::new(Shared {
            recorder,
            links: Arc::new(Links::new(&config).unwrap()),
            learner: Learner::start(&states, 1).unwrap(),
            audit: Audit::start(audited).unwrap(),
            events: Arc::new(Events::new(clock::now(), stop.clone())),
            history: History::start(&states, config.node.history).unwrap(),
            freezes: Arc::new(Freezes::open(journal.clone()).unwrap()),
            feeds: FeedBoard::new([]),
            journal: journal.clone(),
            config: config.clone(),
            holder: None,
            anew: Arc::new(Anew::default()),
            stop: stop.clone(),
            tasks: tasks.clone(),
        }));
        let running = Running::new(config);
        for led in led {
            let name = led.name().to_owned();
            running.joins(&name, leading.start(led));
        }
        let shop = running.resources()[name].clone();
        let overlay = Arc::new(OverlayFile::open(&states).unwrap());
        let comparison = Arc::new(Comparison::new(file.clone(), overlay.clone()));
        let fronts = Fronts::new(Routes::new(&fronts).unwrap(), fronts, Vec::new(), 1, Arc::default());
        let changes = Changes::new(file, overlay, running.clone(), leading, fronts, comparison);
        drop(inside);
        Self { runtime, running, changes, shop, front, journal, stop, tasks }
    }

    /// Waits until that is so of its view.
    fn until(&self, what: &str, is_so: impl Fn(&ResourceView) -> bool) {
        self.runtime.block_on(async {
            let looks = async {
                while !is_so(&self.shop.view.load()) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            let seen = tokio::time::timeout(PATIENCE, looks).await;
            assert!(seen.is_ok(), "{what}: {:#?}", self.shop.view.load());
        });
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        self.stop.cancel();
        self.tasks.close();
        self.runtime.block_on(self.tasks.wait());
    }
}

fn at(primary: &str, shadow: &str, generation: u64) -> State {
    let first = State::first("shop", primary.into(), shadow.into(), clock::now());
    State { generation: Generation(generation), ..first }
}

const BOTH: &str = "{ near: { http: [\"127.0.0.1:2\"] }, far: { http: [\"127.0.0.1:3\"] } }";
const DRIVEN: &str = "{ near: { http: [\"127.0.0.1:2\"] }, far: { driver: fleet } }";

#[test]
fn a_reload_does_not_say_that_it_applied_what_does_not_fit_the_step() {
    for [shop, p, q] in [["shop", "p", "q"], ["shop.eu", "p.v2", "q.v2"]] {
        let folder = tempfile::tempdir().unwrap();
        let policy = |mode: &str, step: &str, horizon: &str| {
            format!("mode: {mode}\nscore: {{ step: {step}, horizon: {horizon} }}\n")
        };
        let state = State { resource: shop.into(), ..at("near", "far", 1) };
        let first = policy("auto", "1s", "1h");
        let whole = Whole::with(folder.path(), BOTH, "", (p, &first), &state);
        let reload = |policies: &[(&str, String)]| {
            for (name, text) in policies {
                write_policy(folder.path(), name, text);
            }
            whole.runtime.block_on(whole.changes.reload()).unwrap()
        };
        let mode = || whole.shop.live.load().policy.mode;
        let differ =
            || whole.changes.config().differences.iter().map(|one| one.key.clone()).collect::<Vec<_>>();
        let of_p = |keys: &[&str]| keys.iter().map(|key| format!("policies.{p}.{key}")).collect::<Vec<_>>();
        let done = reload(&[(p, policy("observe", "10s", "6h"))]);
        assert!(done.applied.is_empty(), "{done:?}");
        assert_eq!(done.needs_restart, of_p(&["score.step"]));
        let why = format!("{shop}: score.step stays 1s until a restart");
        assert!(done.refused[0].starts_with(&why), "{done:?}");
        assert_eq!(mode(), Mode::Auto);
        assert_eq!(differ(), of_p(&["mode", "score.horizon", "score.step"]));

        let done = reload(&[(p, policy("observe", "10s", "1h"))]);
        assert_eq!((done.applied, done.refused), (of_p(&["mode"]), vec![]));
        assert_eq!(mode(), Mode::Observe);

        // Another policy with another step, and a service that nobody leads.
        let file = folder.path().join("godwit.yaml");
        let text = std::fs::read_to_string(&file).unwrap();
        let text = text.replace(&format!("policy: {p}"), &format!("policy: {q}"));
        let more = format!(
            "  {{ till: {{ fronts: {{ http: {{ listen: \"127.0.0.1:8\" }} }}, primary: near, policy: {q}, placements: {BOTH} }}, {shop}:"
        );
        std::fs::write(&file, text.replace(&format!("{{ {shop}:"), &more)).unwrap();
        let done = reload(&[(q, policy("advise", "10s", "1h"))]);
        assert_eq!(mode(), Mode::Advise);
        assert!(done.applied.iter().all(|key| key.starts_with(&format!("policies.{q}."))), "{done:?}");
        assert!(!done.applied.is_empty() && done.refused.is_empty(), "{done:?}");
        let waits = ["resources.till.policy".to_owned(), format!("resources.{shop}.policy")];
        for key in waits.into_iter().chain(of_p(&["score.step"])) {
            assert!(done.needs_restart.contains(&key), "{done:?}");
        }
    }
}

#[test]
fn workers_that_a_restart_gives_other_places_keep_their_number_until_then() {
    let folder = tempfile::tempdir().unwrap();
    let driver = "read -r request\necho \"$request\" >> \"$0.log\"\n\
                  echo '{\"result\": {\"ready\": 2, \"capacity\": 2, \"database\": true}}'\n";
    let policy = "mode: observe\nshadow: { enabled: false }\n";
    let (two, one) = ("http: [\"127.0.0.1:3\", \"127.0.0.1:4\"]", "http: [\"127.0.0.1:3\"]");
    let placements = format!("{{ near: {{ http: [\"127.0.0.1:2\"] }}, far: {{ driver: fleet, {two} }} }}");
    let whole = Whole::start(folder.path(), &placements, driver, policy, &at("far", "near", 2));
    let file = folder.path().join("godwit.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let reload = |http: &str| {
        std::fs::write(&file, text.replace(two, http)).unwrap();
        whole.runtime.block_on(whole.changes.reload()).unwrap()
    };
    let has = || {
        let configured = whole.running.config().resources["shop"].placements["far"].capacity;
        assert_eq!(whole.shop.live.load().placements["far"].capacity, configured);
        configured
    };
    let key = |of: &str| format!("resources.shop.placements.far.{of}");
    let done = reload(one);
    assert_eq!((done.applied, done.needs_restart), (vec![], vec![key("http")]));
    assert_eq!(has(), 2);
    let done = reload(&format!("{one}, capacity: 1"));
    assert_eq!((done.applied, done.needs_restart), (vec![], vec![key("capacity"), key("http")]));
    assert_eq!(has(), 2);
    let scale = |zone: &str| {
        let value = json!({ "capacity": { zone: 1 } });
        whole.runtime.block_on(whole.changes.set("shop", "scaling", Some(&value), "ann", |_| Ok(())))
    };
    assert!(matches!(scale("far"), Err(ChangeError::Conflict(why)) if why.contains("restart")));
    assert_eq!(scale("near").unwrap().after, json!({ "capacity": { "far": 2, "near": 1 } }));
    let log = std::fs::read_to_string(folder.path().join("driver.sh.log")).unwrap_or_default();
    assert!(!log.contains("\"scale\""), "{log}");

    let done = reload(&format!("{two}, capacity: 1"));
    assert_eq!((done.applied, done.needs_restart), (vec![key("capacity")], vec![]));
    assert_eq!(has(), 1);
}

#[test]
fn what_workers_of_a_zone_cost_is_applied_and_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let whole = Whole::start(folder.path(), BOTH, "", QUICK, &at("near", "far", 1));
    let file = folder.path().join("godwit.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    for (far, cost) in [("far: { cost: 2/h }", Some(2.0)), ("far: { country: IE }", None)] {
        std::fs::write(&file, text.replacen("far: {}", far, 1)).unwrap();
        let done = whole.runtime.block_on(whole.changes.reload()).unwrap();
        let rest: &[&str] = if cost.is_some() { &[] } else { &["zones.far.country"] };
        assert_eq!(done.applied, ["zones.far.cost"]);
        assert_eq!(done.needs_restart, rest);
        assert_eq!(whole.shop.live.load().placements["far"].cost_per_hour, cost);
        assert_eq!(whole.running.config().zones["far"].cost_per_hour, cost);
    }
}

#[test]
fn a_reservation_that_is_refused_is_not_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let start = || Whole::start(folder.path(), BOTH, "", QUICK, &at("near", "far", 1));
    let whole = start();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let spec = |listen: &str, upstream: serde_json::Value| {
        json!({
            "fronts": {"http": {"listen": listen}}, "primary": "near", "policy": "p",
            "placements": {"near": {"http": ["127.0.0.1:4"]}, "far": {"http": ["127.0.0.1:5"], "upstream": upstream}},
        })
    };
    let reserve = |spec: &serde_json::Value, dry_run| {
        whole.runtime.block_on(async {
            let reserved = whole.changes.reserve("till", spec, "ann", dry_run).await;
            reserved.map(drop).map_err(|error| error.to_string())
        })
    };
    let refused = |spec: &serde_json::Value, why: &str| {
        let told = reserve(spec, false).unwrap_err();
        assert!(told.contains(why), "{told}");
        assert!(!whole.changes.reserved("till"));
        assert!(!whole.running.config().resources.contains_key("till"));
    };
    let (listen, plain) = (free.to_string(), json!({}));
    let unreadable = spec(&listen, json!({"tls": {"ca": "nowhere.pem", "name": "till.example"}}));
    assert!(reserve(&unreadable, true).unwrap_err().contains("nowhere.pem"));
    refused(&unreadable, "nowhere.pem");
    let mut fronts = spec(&listen, plain.clone());
    fronts["fronts"]["http"]["tls"] = json!({"certificates": [{"cert": "no.pem", "key": "no.key"}]});
    assert!(reserve(&fronts, true).is_err());
    refused(&fronts, "no.pem");
    // Nothing that is written is in the way, what runs is.
    let file = folder.path().join("godwit.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("127.0.0.1:9", "127.0.0.1:8")).unwrap();
    refused(&spec("127.0.0.1:9", plain.clone()), "127.0.0.1:9");
    drop(whole);

    let whole = start();
    assert!(!whole.changes.reserved("till"));
    let fits = spec(&listen, plain);
    whole.runtime.block_on(whole.changes.reserve("till", &fits, "ann", false)).unwrap();
    assert!(whole.changes.reserved("till"));
    drop(whole);
    assert!(start().running.resources().contains_key("till"));
}

#[test]
fn a_policy_that_does_not_fit_the_step_holds_back_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| write_policy(folder.path(), name, text);
    std::fs::create_dir(folder.path().join("policies")).unwrap();
    write("q", "mode: auto\nname: of-desk\n");
    let desk = format!(
        "fronts: {{ http: {{ listen: \"127.0.0.1:8\" }} }}, primary: near, policy: of-desk, placements: {BOTH}"
    );
    let placements = format!("{BOTH} }}, desk: {{ {desk}");
    let whole = Whole::start(folder.path(), &placements, "", QUICK, &at("near", "far", 1));
    write("p", &format!("mode: observe\nscore: {{ step: 10s, horizon: 6h }}\n{FREEZE}"));
    write("q", "mode: observe\nname: of-desk\n");
    let file = folder.path().join("godwit.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("127.0.0.1:3\"]", "127.0.0.1:3\"], cost: 3/h", 2)).unwrap();
    let done = whole.runtime.block_on(whole.changes.reload()).unwrap();
    let costs = ["desk", "shop"].map(|name| format!("resources.{name}.placements.far.cost"));
    let applied: Vec<_> =
        ["policies.p.limits.freeze", "policies.q.mode"].map(str::to_owned).into_iter().chain(costs).collect();
    assert_eq!(done.applied, applied, "{done:?}");
    assert_eq!(done.refused.len(), 1, "{done:?}");
    let shop = whole.shop.live.load();
    assert_eq!((shop.policy.mode, shop.freeze.len()), (Mode::Auto, 1));
    assert_eq!(shop.placements["far"].cost_per_hour, Some(3.0));
    let differ = whole.changes.config().differences.iter().map(|one| one.key.clone()).collect::<Vec<_>>();
    assert_eq!(differ, ["policies.p.mode", "policies.p.score.horizon", "policies.p.score.step"]);
}

#[test]
fn the_freezes_of_a_policy_that_waits_count_and_are_not_called_applied() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("policies")).unwrap();
    let write = |name: &str, text: &str| write_policy(folder.path(), name, text);
    let other = "mode: observe\nscore: { step: 10s, horizon: 6h }\n";
    write("q", other);
    let whole = Whole::start(folder.path(), BOTH, "", QUICK, &at("near", "far", 1));
    let file = folder.path().join("godwit.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("policy: p", "policy: q", 1)).unwrap();
    write("q", &format!("{other}{FREEZE}"));
    for _ in 0..2 {
        let done = whole.runtime.block_on(whole.changes.reload()).unwrap();
        assert_eq!((done.applied.len(), done.refused.len()), (0, 1), "{done:?}");
        let shop = whole.shop.live.load();
        assert_eq!((shop.policy.name.as_str(), shop.freeze.len()), ("p", 1));
        // What was taken away counts until a restart, and that it does not yet is no secret.
        write("q", other);
    }
}

#[test]
fn requests_go_to_where_the_driver_says_by_now_that_the_primary_is() {
    let folder = tempfile::tempdir().unwrap();
    made_far(folder.path(), None);
    // It says so as soon as it may.
    let driver = "until [ -e \"$0.go\" ]; do sleep 0.01; done\n\
                  echo '{\"result\": {\"ready\": 1, \"capacity\": 1, \"database\": true, \"http\": [\"127.0.0.1:7\"]}}'\n";
    let policy = "mode: observe\nshadow: { enabled: false }\n";
    let whole = Whole::start(folder.path(), DRIVEN, driver, policy, &at("far", "near", 2));
    let upstreams = || whole.front.pool.load().upstreams();
    assert_eq!(upstreams(), ["127.0.0.1:6".parse().unwrap()]);
    std::fs::write(folder.path().join("driver.sh.go"), "").unwrap();
    whole.until("it is elsewhere", |_| upstreams() == ["127.0.0.1:7".parse().unwrap()]);
}

/// Notes that a driver has made what runs in `far`; where.
fn made_far(folder: &Path, driver: Option<Maker>) -> PathBuf {
    let ledger = ledger_directory(&folder.join("state"), "shop", "far");
    let known = Endpoint { http: vec!["127.0.0.1:6".into()], dsn: None };
    Made { capacity: Some(1), endpoint: Some(known), driver }.keep(&ledger).unwrap();
    ledger
}

#[test]
fn a_primarys_driver_that_fails_at_the_start_is_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    made_far(folder.path(), None);
    let driver = "[ -e \"$0.go\" ] || { echo '{\"error\": {\"kind\": \"failed\", \"message\": \"not now\"}}'; exit; }\n\
                  echo '{\"result\": {\"ready\": 1, \"capacity\": 1, \"database\": true, \"http\": [\"127.0.0.1:7\"]}}'\n";
    let policy =
        "mode: observe\nscore: { step: 200ms, horizon: 10s, sustain: 1s }\nshadow: { enabled: false }\n";
    let whole = Whole::start(folder.path(), DRIVEN, driver, policy, &at("far", "near", 2));
    let upstreams = || whole.front.pool.load().upstreams();
    let fails = |view: &ResourceView| {
        view.problems.iter().any(|problem| problem.starts_with("what runs in far is not its driver's yet"))
    };
    whole.until("it fails", fails);
    std::fs::write(folder.path().join("driver.sh.go"), "").unwrap();
    whole.until("it is asked again", |_| upstreams() == ["127.0.0.1:7".parse().unwrap()]);
    whole.until("nothing is wrong with it", |view| !fails(view));
}

#[test]
fn a_shadow_that_followed_before_it_had_a_driver_is_scaled_for_a_move() {
    let folder = tempfile::tempdir().unwrap();
    let driver = "read -r request\necho \"$request\" >> \"$0.log\"\n\
                  echo '{\"result\": {\"ready\": 1, \"capacity\": 1, \"database\": true}}'\n";
    let policy = "mode: observe\nscore: { step: 200ms, horizon: 10s, sustain: 1s }\n";
    let placements = "{ near: { http: [\"127.0.0.1:2\"] }, far: { driver: fleet, http: [\"127.0.0.1:3\"] } }";
    let state = State { phase: Phase::Shadowing, ..at("near", "far", 1) };
    let whole = Whole::start(folder.path(), placements, driver, policy, &state);
    let ledger = ledger_directory(&folder.path().join("state"), "shop", "far");
    whole.until("it is its driver's", |_| Ledger::provisioned(&ledger).unwrap());
    whole.until("something is known of it", |view| view.decision.is_some());
    let migrate = |reply| Command::Migrate { to: None, by: "ann".into(), dry_run: false, reply };
    whole.runtime.block_on(whole.shop.ask(migrate)).unwrap().unwrap();
    let log = || std::fs::read_to_string(folder.path().join("driver.sh.log")).unwrap_or_default();
    whole.until("its driver is asked", |_| log().contains("\"verb\":\"scale\""));
    assert!(!log().contains("\"verb\":\"provision\""), "{}", log());
}

#[test]
fn a_shadow_that_another_driver_made_is_not_moved_to() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = made_far(folder.path(), Some(Maker { name: "cloud".into(), kind: "webhook".into() }));
    let driver = "read -r request\necho \"$request\" >> \"$0.log\"\n\
                  echo '{\"result\": {\"ready\": 1, \"capacity\": 1, \"database\": true, \"http\": [\"127.0.0.1:7\"]}}'\n";
    let policy = "mode: observe\nscore: { step: 200ms, horizon: 10s, sustain: 1s }\n";
    let state = State { phase: Phase::Shadowing, ..at("near", "far", 1) };
    let whole = Whole::start(folder.path(), DRIVEN, driver, policy, &state);
    let other = |view: &ResourceView| {
        view.problems.iter().any(|problem| {
            problem.starts_with("what runs in far is not its driver's yet")
                && problem.contains("the webhook driver cloud")
        })
    };
    whole.until("it is said", |view| other(view) && view.decision.is_some());
    let migrate = || {
        let migrate = |reply| Command::Migrate { to: None, by: "ann".into(), dry_run: false, reply };
        whole.runtime.block_on(whole.shop.ask(migrate)).unwrap()
    };
    assert!(matches!(migrate(), Err(Denied::Guards(_))));
    assert!(!folder.path().join("driver.sh.log").exists(), "this one was asked");
    // As it says.
    std::fs::remove_file(ledger.join("godwit-driver.json")).unwrap();
    whole.until("it is this driver's", |view| !other(view));
    migrate().unwrap();
}

#[test]
fn that_a_shadow_could_not_be_given_more_workers_is_said_until_it_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let driver = "read -r request\n\
                  case \"$request\" in\n\
                  *'\"scale\"'*) echo '{\"error\": {\"kind\": \"failed\", \"message\": \"no room\"}}'; exit ;;\n\
                  esac\n\
                  has=1; [ ! -e \"$0.go\" ] || has=4\n\
                  echo \"{\\\"result\\\": {\\\"ready\\\": $has, \\\"capacity\\\": $has, \\\"database\\\": true, \\\"http\\\": [\\\"127.0.0.1:7\\\"]}}\"\n";
    let policy = |share: &str| {
        format!(
            "mode: observe\nscore: {{ step: 200ms, horizon: 10s, sustain: 1s }}\nshadow: {{ capacity: {share} }}\n"
        )
    };
    let placements = "{ near: { http: [\"127.0.0.1:2\"] }, far: { driver: fleet, capacity: 4 } }";
    let whole = Whole::start(folder.path(), placements, driver, &policy("25%"), &at("near", "far", 1));
    let failed =
        |view: &ResourceView| view.problems.iter().any(|problem| problem.starts_with("adjust_shadow failed"));
    let decided = |view: &ResourceView| view.decision.as_ref().map(|decision| decision.at_ms);
    whole.until("there is a shadow", |view| view.phase == "shadowing" && decided(view).is_some());
    write_policy(folder.path(), "p", &policy("100%"));
    whole.runtime.block_on(whole.changes.reload()).unwrap();
    whole.until("it is refused", failed);
    for _ in 0..3 {
        let before = decided(&whole.shop.view.load());
        whole.until("a step later", |view| decided(view) > before);
        assert!(failed(&whole.shop.view.load()), "it has one worker still");
    }
    std::fs::write(folder.path().join("driver.sh.go"), "").unwrap();
    whole.until("it has them", |view| !failed(view));
}

#[test]
fn that_a_shadow_could_not_be_scaled_down_is_over_when_it_has_no_more_than_it_should() {
    let folder = tempfile::tempdir().unwrap();
    // From the first move on it says nothing and does nothing, until it may.
    let driver = "read -r request\n\
                  no() { echo '{\"error\": {\"kind\": \"failed\", \"message\": \"not now\"}}'; exit; }\n\
                  case \"$request\" in\n\
                  *'\"scale\"'*) rm -f \"$0.told\"; touch \"$0.broken\"; until [ -e \"$0.told\" ]; do sleep 0.01; done; no ;;\n\
                  *'\"status\"'*) if [ -e \"$0.broken\" ] && [ ! -e \"$0.go\" ]; then touch \"$0.told\"; no; fi ;;\n\
                  esac\n\
                  echo '{\"result\": {\"ready\": 1, \"capacity\": 1, \"database\": true, \"http\": [\"127.0.0.1:7\"]}}'\n";
    let whole = Whole::start(
        folder.path(),
        DRIVEN,
        driver,
        "mode: observe\nscore: { step: 200ms, horizon: 10s, sustain: 1s }\n",
        &at("near", "far", 1),
    );
    let failed =
        |view: &ResourceView| view.problems.iter().any(|problem| problem.starts_with("scale_down failed"));
    whole.until("there is a shadow", |view| view.phase == "shadowing" && view.decision.is_some());
    let migrate = |reply| Command::Migrate { to: None, by: "ann".into(), dry_run: false, reply };
    whole.runtime.block_on(whole.shop.ask(migrate)).unwrap().unwrap();
    whole.until("the move is undone", failed);
    std::fs::write(folder.path().join("driver.sh.go"), "").unwrap();
    whole.until("all is as it should be", |view| !failed(view));
}

#[test]
fn a_primary_that_took_over_as_small_as_a_shadow_grows() {
    let folder = tempfile::tempdir().unwrap();
    let states = folder.path().join("state");
    let state = State { phase: Phase::Shadowing, ..at("far", "near", 2) };
    Journal::open(&states).unwrap().note_lost(&state, clock::now()).unwrap();
    made_far(folder.path(), None);
    let driver = "read -r request\n\
                  case \"$request\" in\n\
                  *'\"scale\"'*) until [ -e \"$0.go\" ]; do sleep 0.01; done; touch \"$0.done\" ;;\n\
                  esac\n\
                  has=1; [ ! -e \"$0.done\" ] || has=4\n\
                  echo \"{\\\"result\\\": {\\\"ready\\\": $has, \\\"capacity\\\": $has, \\\"database\\\": true, \\\"http\\\": [\\\"127.0.0.1:6\\\"]}}\"\n";
    let policy = "mode: observe\nscore: { step: 200ms, horizon: 10s, sustain: 1s }\n";
    let placements = "{ near: { http: [\"127.0.0.1:2\"] }, far: { driver: fleet, capacity: 4 } }";
    let whole = Whole::start(folder.path(), placements, driver, policy, &state);
    let lacks = |view: &ResourceView| {
        view.problems.iter().any(|problem| problem.starts_with("far took over with too few workers"))
    };
    whole.until("it is said", lacks);
    std::fs::write(folder.path().join("driver.sh.go"), "").unwrap();
    let capacity = |view: &ResourceView| {
        let far = view.placements.iter().find(|placement| placement.zone == "far");
        far.and_then(|far| far.capacity)
    };
    whole.until("it has them", |view| !lacks(view) && capacity(view) == Some(4));
}

#[test]
fn a_primary_is_left_as_large_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let driver = "read -r request\necho \"$request\" >> \"$0.log\"\n\
                  echo '{\"result\": {\"ready\": 10, \"capacity\": 10, \"database\": true}}'\n";
    let placements = "{ near: { driver: fleet, http: [\"127.0.0.1:2\"] }, far: { http: [\"127.0.0.1:3\"] } }";
    let policy = "mode: observe\nshadow: { enabled: false }\n";
    let whole = Whole::start(folder.path(), placements, driver, policy, &at("near", "far", 1));
    let log = || std::fs::read_to_string(folder.path().join("driver.sh.log")).unwrap_or_default();
    whole.until("it is looked at", |_| log().matches("\"verb\":\"status\"").count() >= 3);
    // What the shadow should have is nothing to the primary.
    write_policy(folder.path(), "p", "mode: observe\nshadow: { enabled: false, capacity: 25% }\n");
    let done = whole.runtime.block_on(whole.changes.reload()).unwrap();
    assert_eq!(done.applied, ["policies.p.shadow.capacity"]);
    let before = log().matches("\"verb\":\"status\"").count();
    whole.until("it is looked at again", |_| log().matches("\"verb\":\"status\"").count() > before + 1);
    assert!(!log().contains("\"operation\""), "{}", log());
}

#[test]
fn a_move_gives_its_driver_all_the_time_that_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let driver = "read -r request\n\
                  case \"$request\" in *'\"scale\"'*) sleep 600 ;; esac\n\
                  echo '{\"result\": {\"ready\": 1, \"capacity\": 1, \"database\": true, \"http\": [\"127.0.0.1:7\"]}}'\n";
    let policy = "mode: observe\nscore: { step: 200ms, horizon: 10s, sustain: 1s }\n";
    let whole = Whole::start(folder.path(), DRIVEN, driver, policy, &at("near", "far", 1));
    whole.until("there is a shadow", |view| view.phase == "shadowing" && view.decision.is_some());
    let migrate = |reply| Command::Migrate { to: None, by: "ann".into(), dry_run: false, reply };
    whole.runtime.block_on(whole.shop.ask(migrate)).unwrap().unwrap();
    let run = whole.journal.latest("shop").unwrap().unwrap().run.unwrap();
    assert!(run.limits.scale > Duration::from_mins(30), "{:?}", run.limits);
}
