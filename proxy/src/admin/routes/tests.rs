use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt as _;
use migration::cutover::{Event, Limits, State as Machine, Trigger, step};
use migration::policy::{Policy, PolicyParts};
use migration::units::{Timestamp, Zone};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::*;
use crate::admin::access::oidc::Oidc;
use crate::admin::access::{Identities, Role, Via};
use crate::audit::{Audit, Settings};
use crate::clock;
use crate::config;
use crate::controller::events::Events;
use crate::controller::view::GateView;
use crate::feeds::external::board::FeedBoard;
use crate::history::{History, Retention};
use crate::leading::running::Running;
use crate::leading::standing::{Standing, Why};
use crate::store::{Journal, NewToken, Tokens};

mod oidc;

struct Api {
    state: AdminState,
    router: Router,
    tokens: Arc<Tokens>,
    _directory: tempfile::TempDir,
}

impl Api {
    fn new(required: bool) -> Self {
        Self::with(required, false, None)
    }

    /// With an audit that cannot be written, if so; and with callers of an issuer.
    fn with(required: bool, unwritable: bool, oidc: Option<Oidc>) -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let file = directory.path().join("godwit.yaml");
        let text = "node: { name: edge-1, zone: here, state: state }
\
                    zones: { here: {}, there: {} }
\
                    resources: { orders: { fronts: { http: { listen: 127.0.0.1:1 } }, primary: here, policy: p, \
                    placements: { here: { http: [\"127.0.0.1:2\"], postgres: { dsn: \"postgres://x@127.0.0.1/x\" } }, \
                    there: { http: [\"127.0.0.1:3\"], postgres: { dsn: \"postgres://y@127.0.0.1:4/x\" } } } } }
\
                    feeds: { prices: { file: x, map: ., use: cost, every: 1m, resource: orders } }
";
        std::fs::create_dir(directory.path().join("policies")).expect("a folder");
        std::fs::write(
            directory.path().join("policies/p.yaml"),
            "mode: observe
",
        )
        .expect("a policy");
        std::fs::write(&file, text).expect("the file");
        let config = Arc::new(config::load(&file).expect("a valid configuration"));
        let tokens = Arc::new(Tokens::open(directory.path()).expect("tokens"));
        if unwritable {
            std::fs::write(directory.path().join("audit"), "in the way").expect("a file");
        }
        let settings =
            Settings { directory: directory.path().join("audit"), node: "n".into(), rotate: 1 << 20 };
        let audit = Audit::start(settings).expect("a thread");
        let journal = Arc::new(Journal::open(directory.path()).expect("a journal"));
        let state = AdminState {
            history: History::start(directory.path(), Retention::default()).expect("a history"),
            freezes: Arc::new(crate::controller::freezes::Freezes::open(journal.clone()).expect("none yet")),
            journal,
            identities: Arc::new(
                Identities::new(tokens.clone(), Vec::new(), required, false).with_oidc(oidc),
            ),
            audit,
            events: Arc::new(Events::new(clock::now(), CancellationToken::new())),
            metrics: None,
            feeds: FeedBoard::new(config.feeds.values().cloned()),
            changes: None,
            standing: None,
            answers: Arc::default(),
            sent: Arc::default(),
            running: Running::new(config),
        };
        Self { router: router(state.clone(), TaskTracker::new()), state, tokens, _directory: directory }
    }

    fn token(&self, role: Role, resources: &[&str]) -> String {
        let resources = (!resources.is_empty()).then(|| resources.iter().map(ToString::to_string).collect());
        let new = NewToken { name: role.name().to_owned(), role, resources, expires_s: None };
        self.tokens.create(new, "test", clock::now()).expect("a token").token
    }

    async fn ask(
        &self,
        method: &Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, Response) {
        let mut request = Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "127.0.0.1:9900");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        let request = request.body(Body::from(body.to_owned())).expect("a request");
        let response = self.router.clone().oneshot(request).await.expect("infallible");
        (response.status().as_u16(), response)
    }

    async fn status(&self, method: &Method, path: &str, token: Option<&str>) -> u16 {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<(&str, &str)> =
            bearer.iter().map(|value| ("authorization", value.as_str())).collect();
        self.ask(method, path, &headers, "").await.0
    }
}

#[tokio::test]
async fn every_route_asks_for_what_it_needs() {
    let api = Api::new(true);
    let tokens = Role::ALL.map(|role| (role, api.token(role, &[])));
    let (_, table) = routes().finish();
    assert!(table.len() > 15, "the table has the routes");
    for (pattern, methods) in table.iter() {
        let path = pattern.replace("{id}", "orders").replace("{mid}", "m1");
        for (method, needs) in methods {
            let nobody = api.status(method, &path, None).await;
            assert_eq!(
                nobody == 401,
                *needs != Permission::Public,
                "{method} {path} without a token: {nobody}"
            );
            let wrong = api.status(method, &path, Some("gdw_guess_guess")).await;
            assert_eq!(wrong == 401, *needs != Permission::Public, "{method} {path}, wrong token: {wrong}");
            for (role, token) in &tokens {
                let refused = needs.role().is_some_and(|least| *role < least);
                let status = api.status(method, &path, Some(token)).await;
                assert_eq!(status == 403, refused, "{method} {path} as {role}: {status}");
                assert_ne!(status, 401, "{method} {path} as {role}");
            }
        }
    }
}

#[tokio::test]
async fn what_is_of_the_whole_node_is_not_for_a_token_of_some_resources() {
    const WHOLE: [(Method, &str); 12] = [
        (Method::POST, "/api/v1/resources"),
        (Method::DELETE, "/api/v1/resources/{id}"),
        (Method::POST, "/api/v1/freezes"),
        (Method::DELETE, "/api/v1/freezes"),
        (Method::GET, "/api/v1/config"),
        (Method::POST, "/api/v1/config/reload"),
        (Method::POST, "/api/v1/lead"),
        (Method::GET, "/api/v1/log"),
        (Method::PUT, "/api/v1/log"),
        (Method::DELETE, "/api/v1/log"),
        (Method::GET, "/api/v1/audit"),
        (Method::GET, "/metrics"),
    ];
    let api = Api::new(true);
    let token = format!("Bearer {}", api.token(Role::Admin, &["orders"]));
    let (_, table) = routes().finish();
    let mut seen = 0;
    for (pattern, methods) in table.iter() {
        let path = pattern.replace("{id}", "orders").replace("{mid}", "m1");
        for (method, _) in methods {
            let (status, answer) = api.ask(method, &path, &[("authorization", &token)], "").await;
            let whole = WHOLE.contains(&(method.clone(), *pattern));
            assert_eq!(status == 403, whole, "{method} {path}: {status}");
            if whole {
                let body = answer.into_body().collect().await.expect("a body").to_bytes();
                let problem: Problem = serde_json::from_slice(&body).expect("a problem");
                assert!(problem.kind.ends_with("#scope"), "{method} {path}: {problem:?}");
                seen += 1;
            }
        }
    }
    assert_eq!(seen, WHOLE.len());
}

#[tokio::test]
async fn a_refusal_says_what_is_wrong() {
    let api = Api::new(true);
    let (status, response) = api.ask(&Method::GET, "/api/v1/whoami", &[], "").await;
    assert_eq!(
        (status, response.headers()["www-authenticate"].as_bytes()),
        (401, &b"Bearer realm=\"godwit\""[..])
    );
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let viewer = format!("Bearer {}", api.token(Role::Viewer, &[]));
    let headers = [("authorization", viewer.as_str())];
    let (_, response) = api.ask(&Method::POST, "/api/v1/resources/orders/migrations", &headers, "").await;
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    let problem: Problem = serde_json::from_slice(&body).expect("a problem");
    assert_eq!(problem.detail, "viewer is viewer; this needs the role operator");
    assert_eq!(api.status(&Method::PATCH, "/api/v1/whoami", None).await, 405);
    assert_eq!(api.status(&Method::GET, "/api/v2/whoami", None).await, 404);
    let (status, _) = api.ask(&Method::GET, "/livez", &[("host", "evil.example")], "").await;
    assert_eq!(status, 403);
}

#[tokio::test]
async fn a_feed_that_is_asked_and_one_that_is_not_there_take_no_post() {
    let api = Api::new(true);
    for name in ["prices", "nowhere"] {
        let path = format!("/api/v1/feeds/{name}");
        let (status, response) = api.ask(&Method::POST, &path, &[], "said").await;
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        let problem: Problem = serde_json::from_slice(&body).expect("a problem");
        let expected = format!("feed {name:?} is not posted to: it has no `webhook` in the configuration");
        assert_eq!((status, problem.detail), (404, expected));
    }
}

#[tokio::test]
async fn a_scope_hides_what_is_outside() {
    let api = Api::new(true);
    let token = api.token(Role::Admin, &["billing"]);
    assert_eq!(api.status(&Method::GET, "/api/v1/resources/orders", Some(&token)).await, 404);
    assert_eq!(api.status(&Method::GET, "/api/v1/feeds/prices", Some(&token)).await, 404);
    let all = api.token(Role::Viewer, &[]);
    assert_eq!(api.status(&Method::GET, "/api/v1/feeds/prices", Some(&all)).await, 200);
    // Nor can it be left by a token of one's own making.
    let bearer = format!("Bearer {}", api.token(Role::Admin, &["orders"]));
    let with = [("authorization", bearer.as_str())];
    let make = |body: &'static str| api.ask(&Method::POST, "/api/v1/tokens", &with, body);
    assert_eq!(make("{\"name\":\"x\",\"role\":\"viewer\"}").await.0, 403);
    // Whether the others are there is not told.
    for other in ["billing", "none"] {
        let body = format!("{{\"name\":\"x\",\"role\":\"viewer\",\"resources\":[\"{other}\"]}}");
        assert_eq!(api.ask(&Method::POST, "/api/v1/tokens", &with, &body).await.0, 403, "{other}");
    }
    assert_eq!(make("{\"name\":\"x\",\"role\":\"admin\",\"resources\":[\"orders\"]}").await.0, 201);
    assert_eq!(api.status(&Method::GET, "/api/v1/resources", Some(&token)).await, 200);
    // Nor are the others' tokens there, zones and moves.
    let read = |path: &'static str, token: String| {
        let api = &api;
        async move {
            let bearer = format!("Bearer {token}");
            let (status, answer) = api.ask(&Method::GET, path, &[("authorization", &bearer)], "").await;
            assert_eq!(status, 200, "{path}");
            let body = answer.into_body().collect().await.expect("a body").to_bytes();
            serde_json::from_slice::<Vec<serde_json::Value>>(&body).expect("a list")
        }
    };
    let theirs = read("/api/v1/tokens", token.clone()).await;
    assert!(theirs.iter().all(|one| one["resources"][0] == "billing") && theirs.len() == 1, "{theirs:?}");
    for (id, status) in [(id_of(&all), 404), (id_of(&bearer), 404), (id_of(&token), 204), ("none", 404)] {
        let path = format!("/api/v1/tokens/{id}");
        let billing = api.token(Role::Admin, &["billing"]);
        assert_eq!(api.status(&Method::DELETE, &path, Some(&billing)).await, status, "{id}");
    }
    let (billing, root) = (api.token(Role::Admin, &["billing"]), api.token(Role::Admin, &[]));
    for zone in read("/api/v1/zones", billing.clone()).await {
        assert_eq!(zone["resources"].as_array().map(Vec::len), Some(0), "{zone}");
    }
    assert_eq!(read("/api/v1/zones", root.clone()).await[0]["resources"][0], "orders");
    assert_eq!(api.status(&Method::GET, "/metrics", Some(&billing)).await, 403);
    assert_eq!(api.status(&Method::GET, "/metrics", Some(&root)).await, 404, "none are recorded here");
    for (at, resource) in ["billing", "orders", "orders"].into_iter().enumerate() {
        moved(&api.state.journal, resource, at as u64);
    }
    assert_eq!(read("/api/v1/history?limit=1", billing.clone()).await[0]["resource"], "billing");
    assert_eq!(read("/api/v1/history?limit=1", root.clone()).await[0]["resource"], "orders");
    assert_eq!(read("/api/v1/history?resource=orders", billing).await.len(), 0);
    assert_eq!(read("/api/v1/history?resource=orders", root).await.len(), 2);
}

#[test]
fn a_probe_names_what_its_caller_may_read() {
    let view = |phase: &str, problems: &[&str]| {
        let problems = problems.iter().map(ToString::to_string).collect();
        Arc::new(ResourceView { phase: phase.into(), problems, ..ResourceView::default() })
    };
    let asked = |scope: Option<Scope>| {
        let views = [("billing", view("idle", &["no shadow"])), ("orders", view("shadowing", &[]))];
        let (name, person) = ("ann".to_owned(), "ann".to_owned());
        let caller = |scope| Caller { name, person, id: None, role: Role::Viewer, scope, via: Via::Token };
        readiness(views.into_iter(), scope.map(caller).as_ref(), false)
    };
    let orders = Scope::Resources(["orders".to_owned()].into());
    assert_eq!(asked(None), (true, None));
    assert_eq!(asked(Some(orders)), (true, Some("ok   orders shadowing\n".into())));
    let all = "ok   billing idle\nwarn billing no shadow\nok   orders shadowing\n";
    assert_eq!(asked(Some(Scope::All)), (true, Some(all.into())));
}

#[test]
fn a_node_that_holds_requests_leads() {
    let gate = Some(GateView { closed: true, ..GateView::default() });
    let holds = Arc::new(ResourceView { gate, ..ResourceView::default() });
    let asked = |leads| readiness(std::iter::once(("orders", holds.clone())), None, leads).0;
    assert_eq!((asked(false), asked(true)), (false, true));
}

fn id_of(token: &str) -> &str {
    token.split('_').nth(1).expect("an id")
}

/// A migration of the resource has begun.
fn moved(journal: &Journal, resource: &str, at: u64) {
    let now = Timestamp(at);
    let mut state = Machine::first(resource, Zone::from("here"), Zone::from("there"), now);
    let limits = Limits::of(&Policy::new(PolicyParts::default()).expect("a policy"));
    let (id, trigger) = (format!("m{at}"), Trigger::Operator("ann".into()));
    let asked = Event::MigrateRequested { id, to: "there".into(), trigger, limits };
    for event in [Event::ShadowEnabled, Event::StreamUp, asked] {
        state = step(&state, event, now).expect("a step").0;
    }
    journal.append(&state, "Requested", now, None).expect("journal");
}

#[tokio::test]
async fn who_stands_by_decides_nothing() {
    let mut api = Api::new(false);
    let body = "{\"why\":\"a sale\"}";
    let freezes = "/api/v1/freezes";
    assert_eq!(api.ask(&Method::POST, freezes, &[], body).await.0, 200);
    let lead = AdminState { standing: Some(Arc::default()), ..api.state.clone() };
    api.router = router(lead, TaskTracker::new());
    for (method, path) in [
        (Method::POST, freezes),
        (Method::DELETE, freezes),
        (Method::GET, freezes),
        (Method::GET, "/api/v1/history"),
    ] {
        let body = if method == Method::POST { body } else { "" };
        let (status, response) = api.ask(&method, path, &[], body).await;
        let problem = response.into_body().collect().await.expect("a body").to_bytes();
        let problem: Problem = serde_json::from_slice(&problem).expect("a problem");
        assert_eq!((status, problem.kind.ends_with("#standby")), (503, true), "{method} {path}: {problem:?}");
    }
    assert_eq!(api.state.freezes.views(clock::now()).len(), 1, "none came, none was lifted");
    let answered = async |path: &str, body: &str| {
        let (status, response) = api.ask(&Method::POST, path, &[], body).await;
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, serde_json::from_slice::<serde_json::Value>(&body).expect("JSON"))
    };
    let (status, refused) = answered("/api/v1/config/reload", "{}").await;
    let detail = "this node stands by: starts; it reads its files when it leads";
    assert_eq!((status, refused["detail"].as_str()), (503, Some(detail)));
    let (status, told) = answered("/api/v1/lead", "{\"without_primary\":true}").await;
    let why = told["why"].as_str().expect("why");
    assert!(status == 202 && why.starts_with("it was told to lead all the same, "), "{status} {why}");
}

#[tokio::test]
async fn who_stands_by_tells_anybody_no_more_than_who_leads() {
    let mut api = Api::new(true);
    let standing = Arc::new(Standing::default());
    api.router =
        router(AdminState { standing: Some(standing.clone()), ..api.state.clone() }, TaskTracker::new());
    let why = "nobody knows who leads orders: here does not answer: password authentication failed";
    let (all, some) = (api.token(Role::Viewer, &[]), api.token(Role::Admin, &["billing"]));
    let told = async |path: &str, token: Option<&String>| {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let with: Vec<_> = bearer.iter().map(|value| ("authorization", value.as_str())).collect();
        let (_, response) = api.ask(&Method::GET, path, &with, "").await;
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        String::from_utf8_lossy(&body).into_owned()
    };
    let leads = Why::Led("one on a".into());
    for (said, brief) in
        [(why.to_owned().into(), "it is not known who leads"), (leads, "node one on a leads")]
    {
        standing.say(said);
        let whole = standing.says();
        for path in ["/readyz", "/readyz?verbose"] {
            assert_eq!(told(path, None).await, format!("this node stands by: {brief}\n"), "{path}");
        }
        for path in ["/readyz?verbose", "/api/v1/lead", "/api/v1/resources", "/api/v1/resources/billing"] {
            let text = told(path, Some(&some)).await;
            assert!(text.contains(brief), "{path}: {text}");
            assert!(path.ends_with("billing") || told(path, Some(&all)).await.contains(&whole), "{path}");
        }
    }
}

#[tokio::test]
async fn a_token_opens_a_session_for_a_browser() {
    let api = Api::new(true);
    let token = api.token(Role::Operator, &[]);
    let body = serde_json::json!({ "token": token }).to_string();
    let (status, _) = api.ask(&Method::POST, "/api/v1/session", &[], "{\"token\":\"gdw_x_y\"}").await;
    assert_eq!(status, 401);
    let (status, response) = api.ask(&Method::POST, "/api/v1/session", &[], &body).await;
    assert_eq!(status, 200);
    let cookie = response.headers()["set-cookie"]
        .to_str()
        .expect("text")
        .split(';')
        .next()
        .expect("a pair")
        .to_owned();
    let with = [("cookie", cookie.as_str())];
    assert_eq!(api.ask(&Method::GET, "/api/v1/whoami", &with, "").await.0, 200);
    // What another site sends with this cookie changes nothing.
    let foreign = [("cookie", cookie.as_str()), ("origin", "http://evil.example")];
    assert_eq!(api.ask(&Method::DELETE, "/api/v1/session", &foreign, "").await.0, 403);
    let id = token.split('_').nth(1).expect("an id");
    assert!(api.tokens.revoke(id, "test", clock::now()).expect("revoke"));
    assert_eq!(api.ask(&Method::GET, "/api/v1/whoami", &with, "").await.0, 401, "revoked with its token");
}

#[tokio::test]
async fn an_open_listener_asks_nobody_but_believes_no_wrong_token() {
    let api = Api::new(false);
    assert_eq!(api.status(&Method::GET, "/api/v1/whoami", None).await, 200);
    assert_eq!(api.status(&Method::GET, "/api/v1/whoami", Some("gdw_x_y")).await, 401);
    let viewer = api.token(Role::Viewer, &[]);
    assert_eq!(api.status(&Method::GET, "/api/v1/tokens", Some(&viewer)).await, 403);
}

#[tokio::test]
async fn tokens_are_made_shown_once_and_taken_back() {
    let api = Api::new(false);
    let make = |body: &'static str| api.ask(&Method::POST, "/api/v1/tokens", &[], body);
    for wrong in [
        "{\"name\":\"\",\"role\":\"viewer\"}",
        "{\"name\":\"x\",\"role\":\"root\"}",
        "{\"name\":\"x\",\"role\":\"viewer\",\"resources\":[\"nothing\"]}",
        "{\"name\":\"x\",\"role\":\"viewer\",\"resources\":[]}",
        "{\"name\":\"x\",\"role\":\"viewer\",\"expires_s\":0}",
        "{\"name\":\"x\",\"role\":\"viewer\",\"until\":1}",
        "[",
    ] {
        assert_eq!(make(wrong).await.0, 400, "{wrong}");
    }
    let (status, response) = make("{\"name\":\"ci\",\"role\":\"viewer\",\"expires_s\":60}").await;
    assert_eq!((status, response.headers()["cache-control"].as_bytes()), (201, &b"no-store"[..]));
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    let issued: crate::store::Issued = serde_json::from_slice(&body).expect("a token");
    let (_, list) = api.ask(&Method::GET, "/api/v1/tokens", &[], "").await;
    let list = list.into_body().collect().await.expect("a body").to_bytes();
    assert!(!String::from_utf8_lossy(&list).contains(&issued.token));
    let path = format!("/api/v1/tokens/{}", issued.view.id);
    assert_eq!(api.status(&Method::GET, "/api/v1/whoami", Some(&issued.token)).await, 200);
    assert_eq!(api.status(&Method::DELETE, &path, None).await, 204);
    assert_eq!(api.status(&Method::GET, "/api/v1/whoami", Some(&issued.token)).await, 401);
    assert_eq!(api.status(&Method::DELETE, "/api/v1/tokens/none", None).await, 404);
}

#[tokio::test]
async fn a_change_is_in_the_audit_before_it_is_made() {
    let api = Api::new(true);
    let admin = format!("Bearer {}", api.token(Role::Admin, &[]));
    let viewer = format!("Bearer {}", api.token(Role::Viewer, &[]));
    let (as_admin, as_viewer) = ([("authorization", admin.as_str())], [("authorization", viewer.as_str())]);
    let body = "{\"name\":\"ci\",\"role\":\"viewer\"}";
    assert_eq!(api.ask(&Method::POST, "/api/v1/tokens", &as_admin, body).await.0, 201);
    assert_eq!(api.ask(&Method::POST, "/api/v1/tokens", &as_viewer, body).await.0, 403);
    let billing = api.token(Role::Admin, &["billing"]);
    assert_eq!(api.status(&Method::DELETE, "/api/v1/resources/orders", Some(&billing)).await, 404);
    let list = || async {
        let (_, answer) = api.ask(&Method::GET, "/api/v1/audit", &as_admin, "").await;
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        let records: Vec<serde_json::Value> = serde_json::from_slice(&body).expect("records");
        records
    };
    // The outcome is noted, not waited for.
    let mut records = list().await;
    while records.len() < 5 {
        tokio::task::yield_now().await;
        records = list().await;
    }
    let said: Vec<String> = records.iter().rev().map(|record| record["kind"].to_string()).collect();
    assert_eq!(said, ["\"opened\"", "\"call\"", "\"outcome\"", "\"refused\"", "\"refused\""]);
    let (call, outcome) = (&records[3], &records[2]);
    assert_eq!(records[0]["why"], "admin is let in for other resources");
    assert_eq!((&call["who"]["name"], &call["body"]["name"]), (&"admin".into(), &"ci".into()));
    assert_eq!(call["who"]["id"], id_of(&admin), "which token it was");
    assert_eq!((&outcome["call"], &outcome["status"]), (&call["call"], &201.into()));
    assert_eq!(outcome["answer"]["token"], "(not recorded)");
    assert_eq!(api.status(&Method::GET, "/api/v1/audit?limit=x", None).await, 401);
    assert_eq!(api.ask(&Method::GET, "/api/v1/audit?limit=x", &as_admin, "").await.0, 400);
}

#[tokio::test]
async fn what_became_of_a_call_is_found_by_its_resource_and_by_its_caller() {
    let api = Api::new(true);
    let viewer = format!("Bearer {}", api.token(Role::Viewer, &[]));
    let admin = format!("Bearer {}", api.token(Role::Admin, &[]));
    let ask = async |token: &str, method: Method, path: &str, body: &str| {
        api.ask(&method, path, &[("authorization", token)], body).await
    };
    let reserved = "{\"name\":\"orders\"}";
    for (token, path, body, status) in [
        (&admin, "/api/v1/resources/orders/takeover", "", 404),
        (&admin, "/api/v1/resources/%6Frders/migrations", "", 404),
        (&admin, "/api/v1/resources/cart/migrations", "", 404),
        (&viewer, "/api/v1/resources/%6frders/reseed", "", 403),
        (&admin, "/api/v1/resources", reserved, 503),
    ] {
        assert_eq!(ask(token, Method::POST, path, body).await.0, status, "{path}");
    }
    let found = async |query: &str, count: usize| {
        loop {
            let (_, answer) = ask(&admin, Method::GET, &format!("/api/v1/audit?{query}"), "").await;
            let body = answer.into_body().collect().await.expect("a body").to_bytes();
            let records: Vec<serde_json::Value> = serde_json::from_slice(&body).expect("records");
            // An outcome is noted, not waited for.
            if records.len() >= count {
                let said = |record: &serde_json::Value| format!("{} {}", record["kind"], record["status"]);
                return records.iter().rev().map(said).collect::<Vec<_>>().join(", ").replace('"', "");
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(
        found("resource=orders", 7).await,
        "call null, outcome 404, call null, outcome 404, refused null, call null, outcome 503"
    );
    assert_eq!(found("resource=cart", 2).await, "call null, outcome 404");
    assert_eq!(found("who=viewer", 1).await, "refused null");
    assert_eq!(found("who=admin&limit=2", 2).await, "call null, outcome 503");
}

#[tokio::test]
async fn without_the_audit_nothing_changes_and_everything_is_read() {
    let api = Api::with(false, true, None);
    let body = "{\"name\":\"ci\",\"role\":\"viewer\"}";
    assert_eq!(api.ask(&Method::POST, "/api/v1/tokens", &[], body).await.0, 503);
    assert!(api.tokens.list().expect("list").is_empty());
    assert_eq!(api.status(&Method::GET, "/api/v1/resources", None).await, 200);
}
