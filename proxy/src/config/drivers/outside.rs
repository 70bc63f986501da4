//! Drivers outside of this process: `exec`, `webhook`, `kubernetes`.

use std::collections::BTreeMap;
use std::time::Duration;

use url::Url;

use super::{DEADLINE, EVERY};
use crate::config::load::Surroundings;
use crate::config::model::{
    ExecDriver, KubernetesDriver, OutsideDriver, Way, WebhookDriver, Workload, WorkloadKind,
};
use crate::config::raw::Value;
use crate::config::secret;
use crate::config::walk::{Item, Section};
use crate::feeds::external::Secret;
use crate::feeds::external::egress::Egress;

/// What every one of them has.
struct Terms {
    every: Duration,
    deadline: Duration,
    password: Option<Secret>,
}

/// `{argv, env, parameters, every, deadline, password}`.
pub(super) fn exec(item: &Item<'_>, around: &Surroundings<'_>) -> Option<OutsideDriver> {
    let mut section = item.section()?;
    let argv = section.required("argv", "argv: [PROGRAM, ARGUMENT, …]").and_then(|item| {
        let list = item.list("the program and its arguments")?;
        if list.is_empty() {
            item.wrong("has no program", "[PROGRAM, ARGUMENT, …]");
            return None;
        }
        list.iter().map(|item| item.text("an argument").map(str::to_owned)).collect::<Option<Vec<_>>>()
    });
    let environment = match section.optional("env") {
        Some(item) => environment(&item, around),
        None => Some(BTreeMap::new()),
    };
    let parameters = parameters(&mut section);
    let terms = terms(&mut section, around);
    section.finish();
    let way = Way::Exec(ExecDriver { argv: argv?, environment: environment? });
    Some(driver(way, parameters?, terms?))
}

/// `{url, secret, ca, parameters, every, deadline, password}`.
pub(super) fn webhook(
    item: &Item<'_>,
    around: &Surroundings<'_>,
    egress: Option<&Egress>,
) -> Option<OutsideDriver> {
    let mut section = item.section()?;
    let url = section.required("url", "url: https://HOST/PATH").and_then(|item| address(&item, egress));
    let secret = section
        .required("secret", "secret: {file: PATH} or {env: NAME}, which signs each request")
        .and_then(|item| secret::read(&item, around));
    let authority = section.optional("ca").map(|item| pem(&item, around));
    let parameters = parameters(&mut section);
    let terms = terms(&mut section, around);
    section.finish();
    let authority = authority.map_or(Some(None), |path| path.map(Some))?;
    let way = Way::Webhook(WebhookDriver { url: url?, secret: Secret(secret?), authority });
    Some(driver(way, parameters?, terms?))
}

/// `{kubeconfig, context, namespace, workload, cluster, instances, http, every, deadline, password}`.
pub(super) fn kubernetes(item: &Item<'_>, around: &Surroundings<'_>) -> Option<KubernetesDriver> {
    if !cfg!(feature = "kubernetes") {
        item.wrong_key("this build has no kubernetes driver", "build with --features kubernetes");
    }
    let mut section = item.section()?;
    let kubeconfig = section.optional("kubeconfig").map(|item| item.path(around.folder));
    let named = |item: Item<'_>, what: &str| item.text(what).map(str::to_owned);
    let context = section.optional("context").map(|item| named(item, "the name of a context"));
    let namespace = match section.optional("namespace") {
        Some(item) => object_name(&item),
        None => Some("default".to_owned()),
    };
    let workload = section.optional("workload").map(|item| workload(&item));
    let cluster = section.optional("cluster").map(|item| object_name(&item));
    let instances = match section.optional("instances") {
        Some(item) => item.count(1, 100).map(Some),
        None => Some(None),
    };
    let http = match section.optional("http") {
        Some(item) => item.list("endpoints, such as [\"10.0.1.10:8000\"]").and_then(|list| {
            let read: Vec<_> = list.iter().map(Item::endpoint).collect();
            read.into_iter().collect()
        }),
        None => Some(Vec::new()),
    };
    let terms = terms(&mut section, around);
    if !section.has("workload") && !section.has("cluster") {
        item.wrong("has nothing to scale", "workload: deployment/NAME, cluster: NAME, or both");
    }
    section.finish();
    let Terms { every, deadline, password } = terms?;
    Some(KubernetesDriver {
        kubeconfig: kubeconfig.map_or(Some(None), |path| path.map(Some))?,
        context: context.map_or(Some(None), |name| name.map(Some))?,
        namespace: namespace?,
        workload: workload.map_or(Some(None), |it| it.map(Some))?,
        cluster: cluster.map_or(Some(None), |name| name.map(Some))?,
        instances: instances?,
        http: http?,
        every,
        deadline,
        password,
    })
}

fn driver(way: Way, parameters: serde_json::Value, terms: Terms) -> OutsideDriver {
    let Terms { every, deadline, password } = terms;
    OutsideDriver { way, parameters, every, deadline, password }
}

fn parameters(section: &mut Section<'_>) -> Option<serde_json::Value> {
    match section.optional("parameters") {
        Some(item) => item.json(),
        None => Some(serde_json::Value::Null),
    }
}

fn terms(section: &mut Section<'_>, around: &Surroundings<'_>) -> Option<Terms> {
    let mut span = |name: &'static str, default: Duration, least: Duration, right: &str| {
        let Some(item) = section.optional(name) else { return Some(default) };
        let span = item.duration()?;
        if span < least || span > Duration::from_hours(24) {
            item.wrong("is out of range", format!("from {right} to 24h"));
            return None;
        }
        Some(span)
    };
    let every = span("every", EVERY, Duration::from_millis(200), "200ms");
    let deadline = span("deadline", DEADLINE, Duration::from_secs(1), "1s");
    let password = section.optional("password").map(|item| secret::read(&item, around).map(Secret));
    Some(Terms {
        every: every?,
        deadline: deadline?,
        password: password.map_or(Some(None), |password| password.map(Some))?,
    })
}

/// Text, or secrets.
pub(super) fn environment(item: &Item<'_>, around: &Surroundings<'_>) -> Option<BTreeMap<String, Secret>> {
    let mut found = Some(BTreeMap::new());
    for (name, item) in item.named("values")? {
        let value = match item.value() {
            Value::Map(_) => secret::read(&item, around),
            _ => item.text("text, {file: PATH} or {env: NAME}").map(str::to_owned),
        };
        let right = value.as_ref().is_some_and(|value| !value.contains('\0'));
        match (&mut found, value) {
            (Some(found), Some(value)) if right => {
                found.insert(name.to_owned(), Secret(value));
            }
            _ => found = None,
        }
    }
    found
}

/// A URL that this node may ask, as far as that can be told without looking its host up.
fn address(item: &Item<'_>, egress: Option<&Egress>) -> Option<Url> {
    let text = item.text("a URL such as https://provisioning.example/godwit")?;
    let url = match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.host().is_some() => url,
        _ => {
            item.wrong("is not a URL of http or https", "https://HOST/PATH");
            return None;
        }
    };
    if url.password().is_some() || !url.username().is_empty() {
        item.wrong("holds a user or a password", "take it out: each request is signed with `secret`");
        return None;
    }
    if let Some(Err(why)) = egress.map(|egress| egress.host(&url, &url)) {
        item.wrong(format!("may not be asked: {why}"), "allow it in node.egress.allow");
        return None;
    }
    Some(url)
}

fn pem(item: &Item<'_>, around: &Surroundings<'_>) -> Option<std::path::PathBuf> {
    let path = item.path(around.folder)?;
    if let Err(error) = (around.read)(&path) {
        let what = format!("cannot read {}: {}", path.display(), secret::reason(&error));
        item.wrong(what, "a PEM file that this process may read");
        return None;
    }
    Some(path)
}

/// A name as Kubernetes has them.
fn object_name(item: &Item<'_>) -> Option<String> {
    let text = item.text("a name")?;
    let safe = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    if text.len() > 253 || !text.chars().all(safe) || text.starts_with('-') {
        item.wrong("is not a name of an object", "lower-case letters, digits, `-` and `.`");
        return None;
    }
    Some(text.to_owned())
}

/// `deployment/NAME` or `statefulset/NAME`.
fn workload(item: &Item<'_>) -> Option<Workload> {
    const RIGHT: &str = "deployment/NAME or statefulset/NAME";
    let text = item.text(RIGHT)?;
    let (kind, name) = match text.split_once('/') {
        Some(("deployment", name)) => (WorkloadKind::Deployment, name),
        Some(("statefulset", name)) => (WorkloadKind::StatefulSet, name),
        _ => {
            item.wrong(format!("`{text}` is not a workload"), RIGHT);
            return None;
        }
    };
    let safe = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    if name.is_empty() || !name.chars().all(safe) {
        item.wrong(format!("`{name}` is not a name of an object"), RIGHT);
        return None;
    }
    Some(Workload { kind, name: name.to_owned() })
}
