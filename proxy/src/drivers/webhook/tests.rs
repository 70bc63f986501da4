use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes as Body;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::IntoResponse;

use super::super::contract::Placement;
use super::*;
use crate::feeds::external::Secret;
use crate::feeds::external::egress::Network;
use crate::feeds::external::webhook::verify;

#[derive(Clone, Debug)]
struct Seen {
    method: Method,
    path: String,
    key: Option<String>,
    signed: Result<(), String>,
}

type Turn = (u16, Vec<(&'static str, String)>, &'static str);

#[derive(Clone, Default)]
struct Service {
    turns: Arc<Mutex<Vec<Turn>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

async fn turn(
    State(service): State<Service>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> axum::response::Response {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok().map(str::to_owned));
    let signature = text(HEADER);
    let signed = verify(&secret(), signature.as_deref(), &body, None, clock::now()).map(drop);
    let path = uri.path().to_owned();
    service.seen.lock().unwrap().push(Seen { method, path, key: text("idempotency-key"), signed });
    let (status, headers, body) = service.turns.lock().unwrap().remove(0);
    let mut response = (StatusCode::from_u16(status).unwrap(), body).into_response();
    for (name, value) in headers {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

fn secret() -> Secret {
    Secret("s3cret".into())
}

/// A driver, and the service that answers it with `turns`.
async fn driver(turns: Vec<Turn>) -> (Webhook, Service) {
    let service = Service { turns: Arc::new(Mutex::new(turns)), ..Service::default() };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let router = Router::new().fallback(turn).with_state(service.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let settings = WebhookDriver {
        url: format!("http://{address}/driver").parse().unwrap(),
        secret: secret(),
        authority: None,
    };
    let egress = Egress { hosts: vec![], networks: vec![Network::parse("127.0.0.1").unwrap()] };
    (Webhook::new(settings, egress), service)
}

fn request(operation: Option<&str>, deadline: Duration) -> Request {
    let placement = Placement { resource: "orders".into(), zone: "b".into(), full: 4, database: None };
    let mut request = Request::asking("scale", &placement, &serde_json::Value::Null, deadline);
    request.operation = operation.map(str::to_owned);
    request
}

const LONG: Duration = Duration::from_secs(30);
const DONE: &str = r#"{"result": {"ready": 2, "capacity": 2, "database": true}}"#;

#[tokio::test]
async fn an_answer_that_comes_later_is_fetched_and_failures_are_sent_again() {
    let progress = r#"{"progress": {"done": 0.1, "message": "makes it"}}"#;
    let (driver, service) = driver(vec![
        (503, vec![], ""),
        (202, vec![("location", "/jobs/7".to_owned())], ""),
        (202, vec![], progress),
        (404, vec![], ""),
        (200, vec![], DONE),
    ])
    .await;
    // The job is lost at the fourth turn: it is posted again under the same id.
    let outcome = driver.ask(&request(Some("op-7"), LONG)).await.unwrap();
    assert_eq!(outcome.status().unwrap().ready, 2);
    let seen = service.seen.lock().unwrap().clone();
    assert!(seen.iter().all(|one| one.signed.is_ok()), "{seen:#?}");
    assert!(seen.iter().all(|one| one.key.as_deref() == Some("op-7")), "{seen:#?}");
    let calls: Vec<String> = seen.iter().map(|one| format!("{} {}", one.method, one.path)).collect();
    assert_eq!(calls, ["POST /driver", "POST /driver", "GET /jobs/7", "GET /jobs/7", "POST /driver"]);
}

#[tokio::test]
async fn a_question_is_asked_once_and_refusals_are_final() {
    let refusal = r#"{"error": {"kind": "refused", "message": "no such zone"}}"#;
    for (turn, kind, what) in [
        ((503, vec![], ""), DriverErrorKind::Failed, "answered 503"),
        ((200, vec![], refusal), DriverErrorKind::Refused, "no such zone"),
        ((422, vec![], refusal), DriverErrorKind::Refused, "answered 422: no such zone"),
        ((409, vec![], ""), DriverErrorKind::Busy, "answered 409"),
        ((302, vec![("location", "/else".to_owned())], ""), DriverErrorKind::Refused, "answered 302"),
        ((200, vec![], "{}"), DriverErrorKind::Failed, "exactly one of"),
        ((202, vec![], ""), DriverErrorKind::Failed, "without Location"),
        (
            (202, vec![("location", "http://169.254.169.254/jobs".to_owned())], ""),
            DriverErrorKind::Refused,
            "metadata",
        ),
        (
            (202, vec![("location", "http://other.example/jobs".to_owned())], ""),
            DriverErrorKind::Refused,
            "other.example is not the host",
        ),
        ((202, vec![("location", "file:///etc/passwd".to_owned())], ""), DriverErrorKind::Refused, "to file"),
    ] {
        let (driver, service) = driver(vec![turn]).await;
        let error = driver.ask(&request(None, LONG)).await.unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(what), "{error}");
        assert_eq!(service.seen.lock().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_deadline_names_what_went_wrong_last() {
    let (driver, _) = driver((0..100).map(|_| (500, vec![], "")).collect()).await;
    let error = driver.ask(&request(Some("op"), Duration::from_secs(1))).await.unwrap_err();
    assert_eq!(error.kind(), DriverErrorKind::NotReady);
    assert!(error.to_string().contains("not done within 1s: answered 500"), "{error}");
}

#[tokio::test]
async fn an_address_that_egress_does_not_allow_is_never_asked() {
    let (driver, service) = driver(vec![]).await;
    let driver = Webhook { egress: Egress::default(), ..driver };
    let error = driver.ask(&request(None, LONG)).await.unwrap_err();
    assert!(error.to_string().contains("127.0.0.1 is this machine"), "{error}");
    assert!(service.seen.lock().unwrap().is_empty());
}
