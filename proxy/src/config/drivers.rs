//! How placements are provisioned.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::listeners::Listeners;
use super::load::Surroundings;
use super::model::{Database, Driver, PostgresAuth, ProcessCluster, ProcessDriver, Resource, Trusted};
use super::raw::Value;
use super::secret;
use super::walk::{Item, Section};
use crate::feeds::external::Secret;
use crate::feeds::external::egress::Egress;

mod outside;

/// Between two looks at what an outside driver has.
const EVERY: Duration = Duration::from_secs(15);
/// How long one of its operations may take.
const DEADLINE: Duration = Duration::from_mins(10);
const KINDS: [&str; 4] = ["process", "exec", "webhook", "kubernetes"];

/// `{process | exec | webhook | kubernetes: {…}}`.
pub(super) fn read<'a>(
    name: &str,
    item: &Item<'a>,
    around: &Surroundings<'_>,
    egress: Option<&Egress>,
    listeners: &mut Listeners<'a>,
) -> Option<Driver> {
    let mut section = item.section()?;
    let kinds = KINDS.map(|kind| section.optional(kind));
    let count = KINDS.iter().filter(|kind| section.has(kind)).count();
    let one = count == 1;
    if count == 0 {
        item.wrong("names no kind of driver", format!("one of {}: {{…}}", KINDS.join(", ")));
    } else if !one {
        item.wrong("names more than one kind of driver", "a driver for each");
    }
    section.finish();
    let [process, exec, webhook, kubernetes] = kinds;
    // Each is read, so that each one's problems are noted.
    let process = process.map(|item| process_driver(name, &item, around, listeners).map(Driver::Process));
    let exec = exec.map(|item| outside::exec(&item, around).map(Driver::Outside));
    let webhook = webhook.map(|item| outside::webhook(&item, around, egress).map(Driver::Outside));
    let kubernetes = kubernetes.map(|item| outside::kubernetes(&item, around).map(Driver::Kubernetes));
    process.or(exec).or(webhook).or(kubernetes).flatten().filter(|_| one)
}

struct Service {
    argv: Vec<String>,
    listen: Vec<SocketAddr>,
    dsn: String,
    environment: BTreeMap<String, Secret>,
    ready: String,
}

fn process_driver<'a>(
    name: &str,
    item: &Item<'a>,
    around: &Surroundings<'_>,
    listeners: &mut Listeners<'a>,
) -> Option<ProcessDriver> {
    let mut section = item.section()?;
    let directory = section.required("directory", "directory: PATH for pid files and logs");
    let directory: Option<PathBuf> = directory.and_then(|item| item.path(around.folder));
    let service = section.required("service", "service: {argv, listen, dsn, ready}");
    let service = service.and_then(|item| service_of(name, &item, around, listeners));
    let cluster = section.optional("cluster").map(|item| cluster_of(name, &item, around, listeners));
    section.finish();
    let (directory, service) = (directory?, service?);
    Some(ProcessDriver {
        directory,
        argv: service.argv,
        listen: service.listen,
        service_dsn: service.dsn,
        environment: service.environment,
        ready: service.ready,
        cluster: cluster.map_or(Some(None), |cluster| cluster.map(Some))?,
    })
}

fn service_of<'a>(
    name: &str,
    item: &Item<'a>,
    around: &Surroundings<'_>,
    listeners: &mut Listeners<'a>,
) -> Option<Service> {
    let mut section = item.section()?;
    let argv = section.required("argv", "argv: [PROGRAM, ARGUMENT, …]");
    let argv = argv.and_then(|item| arguments(&item, &section));
    let listen = section.required("listen", "listen: [ADDRESS, …], one for each worker");
    let listen = listen.and_then(|item| workers(name, &item, listeners));
    let dsn = match section.optional("dsn") {
        Some(item) => service_dsn(&item, around),
        None => Some(String::new()),
    };
    let environment = match section.optional("env") {
        Some(item) => outside::environment(&item, around),
        None => Some(BTreeMap::new()),
    };
    let ready = match section.optional("ready") {
        Some(item) => item.url_path(),
        None => Some("/healthz".to_owned()),
    };
    section.finish();
    Some(Service { argv: argv?, listen: listen?, dsn: dsn?, environment: environment?, ready: ready? })
}

fn arguments(item: &Item<'_>, service: &Section<'_>) -> Option<Vec<String>> {
    let list = item.list("the program and its arguments")?;
    let arguments: Option<Vec<String>> =
        list.iter().map(|item| item.text("an argument").map(str::to_owned)).collect();
    let arguments = arguments?;
    let mentions = |hole: &str| arguments.iter().any(|argument| argument.contains(hole));
    if arguments.is_empty() {
        item.wrong("has no program", "[PROGRAM, ARGUMENT, …]");
        return None;
    }
    if !mentions("{listen}") {
        item.wrong("does not mention {listen}: no worker would know where to listen", "add \"{listen}\"");
        return None;
    }
    if mentions("{dsn}") && !service.has("dsn") {
        item.wrong(
            "mentions {dsn}, and the service has no dsn",
            "add dsn: postgres://USER@HOST:PORT/DATABASE",
        );
        return None;
    }
    Some(arguments)
}

fn workers<'a>(name: &str, item: &Item<'a>, listeners: &mut Listeners<'a>) -> Option<Vec<SocketAddr>> {
    let list = item.list("addresses, one for each worker")?;
    if list.is_empty() {
        item.wrong("has no address", "one address for each worker");
        return None;
    }
    let mut addresses = Vec::with_capacity(list.len());
    for (i, item) in list.iter().enumerate() {
        let Some(address) = item.address() else { continue };
        if address.port() == 0 {
            item.wrong("port 0 cannot be reached", "the port of this worker");
        }
        listeners.add(item, address, format!("worker {i} of the driver {name}"));
        addresses.push(address);
    }
    (addresses.len() == list.len()).then_some(addresses)
}

/// Text for `{dsn}`: written out without a password, or a secret as a whole.
fn service_dsn(item: &Item<'_>, around: &Surroundings<'_>) -> Option<String> {
    if matches!(item.value(), Value::Map(_)) {
        return secret::read(item, around);
    }
    let text = item.text("a connection string, {file: PATH} or {env: NAME}")?;
    if text.parse::<replicator::postgres::Dsn>().is_ok_and(|config| config.get_password().is_some()) {
        item.wrong("holds a password", "{file: PATH} or {env: NAME} with the whole connection string");
        return None;
    }
    Some(text.to_owned())
}

fn cluster_of<'a>(
    name: &str,
    item: &Item<'a>,
    around: &Surroundings<'_>,
    listeners: &mut Listeners<'a>,
) -> Option<ProcessCluster> {
    let mut section = item.section()?;
    let bin = section.required("bin", "bin: DIRECTORY with initdb and pg_ctl");
    let bin = bin.and_then(|item| item.path(around.folder));
    let data = section.required("data", "data: DIRECTORY of the cluster");
    let data = data.and_then(|item| item.path(around.folder));
    let listen = section.required("listen", "listen: 127.0.0.1:5432");
    let trusts_all = match section.optional("auth") {
        Some(item) => item.choice(&[("password", false), ("trust", true)]),
        None => Some(false),
    };
    section.finish();
    let listen = listen.and_then(|item| {
        let address = item.address()?;
        if address.port() == 0 {
            item.wrong("port 0 cannot be reached", "the port of this cluster");
            return None;
        }
        listeners.add(&item, address, format!("the cluster of the driver {name}"));
        Some(address)
    });
    let trusted = if trusts_all? { Trusted::All } else { Trusted::Roles(BTreeSet::new()) };
    Some(ProcessCluster {
        bin: bin?,
        data: data?,
        listen: listen?,
        trusted,
        logins: Vec::new(),
        verifiers: Vec::new(),
    })
}

/// Lets the roles into clusters of these drivers that the configuration has no password for: the service's, Godwit's where a
/// placement has none, and everybody where a front asks nobody for one.
pub(super) fn trust(drivers: &mut BTreeMap<String, Driver>, resources: &BTreeMap<String, Resource>) {
    for driver in drivers.values_mut() {
        let Driver::Process(ProcessDriver { cluster: Some(cluster), service_dsn, .. }) = driver else {
            continue;
        };
        if let Ok(dsn) = service_dsn.parse::<replicator::postgres::Dsn>() {
            trust_without_password(cluster, &dsn);
        }
    }
    for resource in resources.values() {
        let auth = resource.postgres.as_ref().map(|front| &front.auth);
        for placement in resource.placements.values() {
            let driver = placement.driver.as_ref().and_then(|name| drivers.get_mut(name));
            let Some(Driver::Process(ProcessDriver { cluster: Some(cluster), .. })) = driver else {
                continue;
            };
            match auth {
                Some(PostgresAuth::Trust) => cluster.trusted = Trusted::All,
                Some(PostgresAuth::File(path)) => cluster.verifiers.push(path.clone()),
                Some(PostgresAuth::Query(_)) | None => {}
            }
            if let Some(Database { dsn, .. }) = &placement.postgres {
                trust_without_password(cluster, dsn);
                cluster.logins.push(dsn.clone());
            }
        }
    }
}

fn trust_without_password(cluster: &mut ProcessCluster, dsn: &replicator::postgres::Dsn) {
    if let (Some(role), None) = (dsn.get_user(), dsn.get_password()) {
        cluster.trusted.add(role);
    }
}
