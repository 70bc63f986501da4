//! An `exec` driver for the playground: answers one request of docs/drivers.md with a real cluster and real workers of
//! this machine, by the `process` driver. An example of such a program, and what tests drive.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::zone::{DATABASE, GODWIT_ROLE, SERVICE_ROLE, govern};
use crate::config::model::{ProcessCluster, ProcessDriver, Trusted};
use crate::drivers::contract::{LONGEST, Request, VERSION};
use crate::drivers::process::{ProcessProvisioning, cluster_of};
use crate::drivers::{
    Action, DriverError, DriverErrorKind, Operation, PlacementStatus, Provisioning, Wanted,
};

/// Where it may work.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Everything of a placement goes below this, in a folder of its own.
    #[arg(long)]
    pub home: PathBuf,
    /// Directory with PostgreSQL's programs.
    #[arg(long)]
    pub bin: PathBuf,
    /// Where the database listens.
    #[arg(long)]
    pub database: SocketAddr,
    /// Where worker i listens.
    #[arg(long = "worker")]
    pub workers: Vec<SocketAddr>,
}

/// Reads a request from standard input, carries it out, and prints the answer.
pub async fn run(options: Options) -> Result<()> {
    let mut text = Vec::new();
    std::io::stdin().lock().take(LONGEST).read_to_end(&mut text)?;
    let request: Request = serde_json::from_slice(&text).context("the request is not of the contract")?;
    let answer = if request.contract == VERSION {
        answer(&options, &request).await
    } else {
        refused(&format!("speaks version {VERSION} of the contract, not {}", request.contract))
    };
    say(&answer)
}

fn say(line: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

fn refused(message: &str) -> Value {
    json!({ "error": { "kind": "refused", "message": message } })
}

fn not_yet(message: &str) -> Value {
    json!({ "error": { "kind": "failed", "message": message } })
}

async fn answer(options: &Options, request: &Request) -> Value {
    let settings = settings(options, request);
    let cluster = settings.cluster.as_ref().map(cluster_of);
    let driver = ProcessProvisioning::new(settings);
    let operation =
        Operation { id: request.operation.clone().unwrap_or_default(), deadline: request.deadline() };
    let wanted = Wanted { capacity: request.capacity.unwrap_or(0), settings: request.settings.clone() };
    let done = match request.verb.as_str() {
        "plan" => {
            let action = [Action::Provision, Action::Scale, Action::Deprovision]
                .into_iter()
                .find(|action| Some(action.verb()) == request.of.as_deref());
            let Some(action) = action else { return refused("a plan of what?") };
            return match driver.plan(action, &wanted).await {
                Ok(plan) => json!({ "result": { "steps": plan.steps } }),
                Err(error) => failed(&error),
            };
        }
        "endpoint" => return json!({ "result": endpoint(options) }),
        "status" => driver.status().await,
        "provision" => {
            let _ = say(&json!({ "progress": { "done": 0.1, "message": "makes the cluster" } }));
            match driver.provision(&operation, &wanted).await {
                Ok(status) => {
                    if let Some(cluster) = &cluster
                        && let Err(error) = govern(cluster).await
                    {
                        return not_yet(&format!("the grants of {GODWIT_ROLE}: {error}"));
                    }
                    Ok(status)
                }
                failed => failed,
            }
        }
        "scale" => driver.scale(&operation, wanted.capacity).await,
        "deprovision" => driver.deprovision(&operation).await.map(|()| PlacementStatus::default()),
        other => return refused(&format!("does not know {other:?}")),
    };
    match done {
        Ok(status) => {
            let mut result = endpoint(options);
            if let Some(result) = result.as_object_mut() {
                result.insert("ready".into(), status.ready.into());
                result.insert("capacity".into(), status.capacity.into());
                result.insert("database".into(), status.database.into());
            }
            json!({ "result": result })
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &DriverError) -> Value {
    let kind = DriverErrorKind::ALL.iter().find(|(_, kind)| *kind == error.kind());
    let message = format!("{:#}", anyhow::anyhow!(error.to_string()));
    json!({ "error": { "kind": kind.map_or("failed", |(name, _)| name), "message": message } })
}

fn endpoint(options: &Options) -> Value {
    let http: Vec<String> = options.workers.iter().map(ToString::to_string).collect();
    json!({ "http": http, "dsn": format!("postgres://{GODWIT_ROLE}@{}/{DATABASE}", options.database) })
}

fn settings(options: &Options, request: &Request) -> ProcessDriver {
    let place = format!("{}@{}", request.placement.resource, request.placement.zone);
    let home = options.home.join(place);
    let program = std::env::current_exe().unwrap_or_default().display().to_string();
    ProcessDriver {
        directory: home.join("driver"),
        argv: [&program, "demo-orders", "--listen", "{listen}", "--dsn", "{dsn}"].map(str::to_owned).to_vec(),
        listen: options.workers.clone(),
        service_dsn: format!("postgres://{SERVICE_ROLE}@{}/{DATABASE}", options.database),
        environment: std::collections::BTreeMap::new(),
        ready: "/healthz".into(),
        cluster: Some(ProcessCluster {
            bin: options.bin.clone(),
            data: home.join("data"),
            listen: options.database,
            trusted: Trusted::All,
            logins: Vec::new(),
            verifiers: Vec::new(),
        }),
    }
}
