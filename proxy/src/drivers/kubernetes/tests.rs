//! Against a small server that speaks the API's shapes for one Deployment and one Cluster.

use std::sync::{Arc, Mutex};

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};

use super::super::contract::DatabaseNames;
use super::super::{Action, Operation, PlacementStatus, Provisioning, Wanted};
use super::*;
use crate::config::model::Workload;

/// Of the deployment: what says which pods are its own.
const SELECTOR: &str = "app=orders";
/// How many of its pods are still ending: one less each time somebody looks.
const ENDING: &str = "pods that are ending";

/// Objects by name; pods become ready as soon as they are wanted.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<BTreeMap<String, Value>>>);

type Reply = (StatusCode, Json<Value>);

fn missing(name: &str) -> Reply {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("{name} not found"), "reason": "NotFound", "code": 404 });
    (StatusCode::NOT_FOUND, Json(status))
}

fn merged(into: &mut Value, patch: &Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merged(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch.clone(),
    }
}

fn settle(object: &mut Value) {
    if object["kind"] == "Cluster" {
        let asleep = object["metadata"]["annotations"][HIBERNATION] == "on";
        let instances = if asleep { json!(0) } else { object["spec"]["instances"].clone() };
        object["status"]["readyInstances"] = instances;
    } else {
        object["status"]["readyReplicas"] = object["spec"]["replicas"].clone();
    }
}

impl Server {
    fn with(objects: &[Value]) -> Self {
        let server = Self::default();
        for object in objects {
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            let mut object = object.clone();
            settle(&mut object);
            server.0.lock().unwrap().insert(name, object);
        }
        server
    }

    fn object(&self, name: &str) -> Value {
        self.0.lock().unwrap()[name].clone()
    }

    async fn driver(&self, home: &std::path::Path) -> Outside {
        let workload = Workload { kind: WorkloadKind::Deployment, name: "orders".into() };
        self.driver_of(Some(workload), Some(1), home).await
    }

    /// Where it answers from now on.
    async fn serve(&self) -> std::net::SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let scaled = |object: &Value| {
            json!({ "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": object["metadata"],
                "spec": { "replicas": object["spec"]["replicas"] },
                "status": { "replicas": object["spec"]["replicas"], "selector": SELECTOR } })
        };
        let pods = |State(server): State<Self>, Query(query): Query<BTreeMap<String, String>>| async move {
            assert_eq!(query["labelSelector"], SELECTOR);
            let mut all = server.0.lock().unwrap();
            let ending = all.get(ENDING).and_then(Value::as_u64).unwrap_or(0);
            all.insert(ENDING.to_owned(), json!(ending.saturating_sub(1)));
            let pod = json!({ "kind": "Pod", "apiVersion": "v1", "metadata": { "name": "orders-1" } });
            let items = if ending > 0 { vec![pod] } else { vec![] };
            Json(json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items }))
        };
        let read = |State(server): State<Self>, Path(name): Path<String>| async move {
            let all = server.0.lock().unwrap();
            all.get(&name).map_or_else(|| missing(&name), |object| (StatusCode::OK, Json(object.clone())))
        };
        let change = |State(server): State<Self>, Path(name): Path<String>, Json(patch): Json<Value>| async move {
            let mut all = server.0.lock().unwrap();
            let ending = all.get(ENDING).and_then(Value::as_u64).unwrap_or(0);
            let asleep = patch["metadata"]["annotations"][HIBERNATION] == "on";
            assert!(!asleep || ending == 0, "{ending} pods see their database go");
            let Some(object) = all.get_mut(&name) else { return missing(&name) };
            merged(object, &patch);
            settle(object);
            (StatusCode::OK, Json(object.clone()))
        };
        let read_scale = move |State(server): State<Self>, Path(name): Path<String>| async move {
            let all = server.0.lock().unwrap();
            all.get(&name).map_or_else(|| missing(&name), |object| (StatusCode::OK, Json(scaled(object))))
        };
        let change_scale = move |State(server): State<Self>,
                                 Path(name): Path<String>,
                                 Json(patch): Json<Value>| async move {
            let mut all = server.0.lock().unwrap();
            let Some(object) = all.get_mut(&name) else { return missing(&name) };
            merged(object, &patch);
            settle(object);
            if let Some(most) = object["metadata"]["annotations"]["most"].as_str() {
                object["spec"]["replicas"] = json!(most.parse::<u32>().unwrap());
            }
            (StatusCode::OK, Json(scaled(object)))
        };
        let deployments = "/apis/apps/v1/namespaces/shop/deployments/{name}";
        let router = Router::new()
            .route(deployments, get(read).patch(change))
            .route(&format!("{deployments}/scale"), get(read_scale).patch(change_scale))
            .route("/api/v1/namespaces/shop/pods", get(pods))
            .route("/apis/postgresql.cnpg.io/v1/namespaces/shop/clusters/{name}", get(read).patch(change))
            // A merge patch has a media type of its own.
            .layer(axum::middleware::map_request(|mut request: axum::extract::Request| async move {
                let json = axum::http::HeaderValue::from_static("application/json");
                request.headers_mut().insert(axum::http::header::CONTENT_TYPE, json);
                request
            }))
            .with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        // Whoever else in this process made it: there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        address
    }

    async fn driver_of(
        &self,
        workload: Option<Workload>,
        instances: Option<u32>,
        home: &std::path::Path,
    ) -> Outside {
        let file = home.join("kubeconfig");
        kubeconfig(&file, self.serve().await);
        let settings = KubernetesDriver {
            kubeconfig: Some(file),
            context: None,
            namespace: "shop".into(),
            workload,
            cluster: Some("orders-db".into()),
            instances,
            http: vec!["10.0.0.1:8000".into()],
            every: Duration::from_secs(15),
            deadline: Duration::from_secs(10),
            password: None,
        };
        let names = DatabaseNames { name: "orders".into(), role: "godwit".into(), app_roles: vec![] };
        let placement =
            Placement { resource: "orders".into(), zone: "b".into(), full: 4, database: Some(names) };
        Kubernetes::driver(settings, placement, home.to_owned())
    }
}

fn kubeconfig(file: &std::path::Path, server: std::net::SocketAddr) {
    let text = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{ "name": "it", "cluster": { "server": format!("http://{server}") } }],
        "users": [{ "name": "it", "user": {} }],
        "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it" } }] });
    std::fs::write(file, text.to_string()).unwrap();
}

fn deployment(annotations: Value) -> Value {
    json!({ "kind": "Deployment", "apiVersion": "apps/v1", "spec": { "replicas": 0 },
        "metadata": { "name": "orders", "namespace": "shop", "annotations": annotations } })
}

fn cluster() -> Value {
    json!({ "kind": "Cluster", "apiVersion": "postgresql.cnpg.io/v1", "spec": { "instances": 0 },
        "metadata": { "name": "orders-db", "namespace": "shop", "annotations": { HIBERNATION: "on" } } })
}

#[tokio::test]
async fn objects_are_claimed_scaled_and_put_to_sleep() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::with(&[deployment(json!({})), cluster()]);
    let driver = server.driver(home.path()).await;
    let settings = BTreeMap::from([("max_connections", "300"), ("max_wal_senders", "5")]);
    let settings = settings.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let wanted = Wanted { capacity: 1, settings };
    let plan = driver.plan(Action::Provision, &wanted).await.unwrap();
    assert_eq!(
        plan.steps,
        ["scale orders from 0 to 1 replicas", "run the cluster orders-db with 2 settings of the primary's"]
    );
    let status = driver.provision(&Operation::new("op-1"), &wanted).await.unwrap();
    assert!(status.ready == 1 && status.database, "{status:?}");
    let database = server.object("orders-db");
    assert_eq!(database["metadata"]["annotations"][HIBERNATION], "off");
    assert_eq!(database["metadata"]["annotations"][OURS], "orders.b");
    assert_eq!(database["spec"]["postgresql"]["parameters"], json!({ "max_connections": "300" }));
    let endpoint = driver.endpoint().await.unwrap();
    assert_eq!(endpoint.dsn.as_deref(), Some("postgres://godwit@orders-db-rw.shop.svc:5432/orders"));
    assert_eq!(driver.scale(&Operation::new("op-2"), 4).await.unwrap().ready, 4);
    driver.deprovision(&Operation::new("op-3")).await.unwrap();
    assert_eq!(server.object("orders")["spec"]["replicas"], 0);
    assert_eq!(server.object("orders-db")["metadata"]["annotations"][HIBERNATION], "on");
}

#[tokio::test]
async fn what_serves_somebody_else_or_is_not_there_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::with(&[deployment(json!({ OURS: "cart.b" })), cluster()]);
    let driver = server.driver(home.path()).await;
    let error = driver.provision(&Operation::new("op"), &1.into()).await.unwrap_err();
    assert_eq!(error.kind(), DriverErrorKind::Refused);
    assert!(error.to_string().contains("serves cart.b"), "{error}");
    assert_eq!(server.object("orders")["spec"]["replicas"], 0);

    let nothing = Server::with(&[]);
    let home = tempfile::tempdir().unwrap();
    let driver = nothing.driver(home.path()).await;
    let error = driver.provision(&Operation::new("op"), &1.into()).await.unwrap_err();
    assert!(error.kind() == DriverErrorKind::Refused && error.to_string().contains("not found"), "{error}");
}

#[tokio::test]
async fn without_a_workload_only_the_cluster_is_waited_for() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::with(&[cluster()]);
    let driver = server.driver_of(None, Some(1), home.path()).await;
    let status = |ready| PlacementStatus { ready, capacity: ready, database: true };
    assert_eq!(driver.provision(&Operation::new("op-1"), &1.into()).await.unwrap(), status(1));
    assert_eq!(driver.scale(&Operation::new("op-2"), 3).await.unwrap(), status(3));
    assert_eq!(driver.status().await.unwrap(), status(4), "whoever runs them runs all");
    driver.deprovision(&Operation::new("op-3")).await.unwrap();
    assert_eq!(server.object("orders-db")["metadata"]["annotations"][HIBERNATION], "on");
}

#[tokio::test]
async fn a_primary_is_claimed_and_keeps_its_size() {
    let home = tempfile::tempdir().unwrap();
    let (mut workers, mut database) = (deployment(json!({})), cluster());
    workers["spec"]["replicas"] = json!(10);
    database["spec"]["instances"] = json!(3);
    database["metadata"]["annotations"] = json!({});
    let server = Server::with(&[workers, database]);
    let driver = server.driver(home.path()).await;
    let status = driver.adopt(&Operation::new("adopt"), 4).await.unwrap();
    assert_eq!(status, PlacementStatus { ready: 10, capacity: 10, database: true });
    assert_eq!(server.object("orders")["spec"]["replicas"], 10);
    assert_eq!(server.object("orders-db")["spec"], json!({ "instances": 3 }));
    for name in ["orders", "orders-db"] {
        assert_eq!(server.object(name)["metadata"]["annotations"], json!({ OURS: "orders.b" }));
    }
    // From now on it is this placement's, to be scaled and ended.
    assert_eq!(driver.scale(&Operation::new("scale"), 2).await.unwrap().ready, 2);
    driver.deprovision(&Operation::new("end")).await.unwrap();

    let other = Server::with(&[deployment(json!({ OURS: "cart.b" })), cluster()]);
    let home = tempfile::tempdir().unwrap();
    let error = other.driver(home.path()).await.adopt(&Operation::new("adopt"), 4).await.unwrap_err();
    assert_eq!(error.kind(), DriverErrorKind::Refused, "{error}");
}

#[tokio::test]
async fn a_primary_that_could_not_be_claimed_is_scaled_and_ended_all_the_same() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::with(&[]);
    let driver = server.driver(home.path()).await;
    driver.adopt(&Operation::new("adopt"), 4).await.unwrap_err();
    let mut database = cluster();
    database["spec"]["instances"] = json!(3);
    database["metadata"]["annotations"] = json!({});
    for mut object in [deployment(json!({})), database] {
        settle(&mut object);
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        server.0.lock().unwrap().insert(name, object);
    }
    assert_eq!(driver.scale(&Operation::new("scale"), 2).await.unwrap().ready, 2);
    for name in ["orders", "orders-db"] {
        assert_eq!(server.object(name)["metadata"]["annotations"], json!({ OURS: "orders.b" }));
    }
    driver.deprovision(&Operation::new("end")).await.unwrap();
    assert_eq!(server.object("orders-db")["metadata"]["annotations"][HIBERNATION], "on");
}

#[tokio::test]
async fn a_cluster_keeps_its_instances_where_none_are_configured() {
    let home = tempfile::tempdir().unwrap();
    let mut database = cluster();
    database["spec"]["instances"] = json!(3);
    let server = Server::with(&[database]);
    let driver = server.driver_of(None, None, home.path()).await;
    driver.provision(&Operation::new("op"), &1.into()).await.unwrap();
    assert_eq!(server.object("orders-db")["spec"]["instances"], 3);
    assert_eq!(server.object("orders-db")["metadata"]["annotations"][HIBERNATION], "off");
}

#[tokio::test]
async fn workers_are_gone_when_their_pods_are() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::with(&[deployment(json!({})), cluster()]);
    let driver = server.driver(home.path()).await;
    driver.provision(&Operation::new("op-1"), &1.into()).await.unwrap();
    let end = || server.0.lock().unwrap().insert(ENDING.to_owned(), json!(2));
    end();
    driver.scale(&Operation::new("op-2"), 0).await.unwrap();
    assert_eq!(server.object(ENDING), 0);
    end();
    driver.deprovision(&Operation::new("op-3")).await.unwrap();
    assert_eq!(server.object("orders-db")["metadata"]["annotations"][HIBERNATION], "on");
}

#[tokio::test]
async fn an_autoscaler_is_told_of() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::with(&[deployment(json!({ "most": "2" })), cluster()]);
    let driver = server.driver(home.path()).await;
    let error = driver.provision(&Operation::new("op"), &4.into()).await.unwrap_err().to_string();
    assert!(error.contains("set the replicas to 2") && error.contains("wants 4"), "{error}");
}

#[tokio::test]
async fn what_says_how_to_reach_it_is_read_again_after_an_error() {
    let home = tempfile::tempdir().unwrap();
    let server = Server::with(&[deployment(json!({})), cluster()]);
    let driver = server.driver(home.path()).await;
    let file = home.path().join("kubeconfig");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let right = std::fs::read_to_string(&file).unwrap();
    kubeconfig(&file, nobody);
    driver.provision(&Operation::new("op"), &1.into()).await.unwrap_err();
    std::fs::write(&file, right).unwrap();
    assert_eq!(driver.provision(&Operation::new("op"), &1.into()).await.unwrap().ready, 1);
}
