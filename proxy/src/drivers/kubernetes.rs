//! The `kubernetes` driver: the scale of a Deployment or StatefulSet, and a Cluster of CloudNativePG.
//!
//! The objects are there, made by whoever owns their manifests; this driver only brings them to a size. An object carries
//! the annotation `godwit.dev/placement` of whom it serves, set when something is asked of it or it is found as the primary's:
//! one with another's is refused. To deprovision is to scale to nothing and to hibernate the cluster, whose volumes stay.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::contract::{Outcome, Placement, Request, outside};
use super::outside::{Carrier, Outside};
use super::{DriverError, DriverErrorKind, SET_BY_ANOTHER};
use crate::config::model::{KubernetesDriver, WorkloadKind};

/// Says whom an object serves.
const OURS: &str = "godwit.dev/placement";
/// CloudNativePG: stops a cluster's pods and keeps its volumes.
const HIBERNATION: &str = "cnpg.io/hibernation";
/// Between two looks at what is not ready yet.
const LOOK: Duration = Duration::from_millis(500);
/// Settings that CloudNativePG fixes.
const FIXED: [&str; 2] = ["max_wal_senders", "shared_preload_libraries"];

/// Talks to the API of one cluster.
pub struct Kubernetes {
    settings: KubernetesDriver,
    /// What it is built from is read again after an error: an authority, a key or an address may have been replaced.
    client: Mutex<Option<Client>>,
}

impl Kubernetes {
    /// The driver of `placement`; its ledger is in `directory`. Connects to nothing yet.
    pub fn driver(
        settings: KubernetesDriver,
        placement: Placement,
        directory: std::path::PathBuf,
    ) -> Outside {
        let every = settings.every;
        let carrier = Self { settings, client: Mutex::new(None) };
        Outside::new(Box::new(carrier), placement, Value::Null, directory, every)
    }

    async fn client(&self) -> Result<Client, DriverError> {
        let mut kept = self.client.lock().await;
        if let Some(client) = &*kept {
            return Ok(client.clone());
        }
        let config = match &self.settings.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(|error| failed("kubeconfig", &error))?;
                let options = KubeConfigOptions {
                    context: self.settings.context.clone(),
                    ..KubeConfigOptions::default()
                };
                Config::from_custom_kubeconfig(file, &options)
                    .await
                    .map_err(|error| failed("kubeconfig", &error))?
            }
            None => Config::incluster().map_err(|error| failed("the pod's service account", &error))?,
        };
        let client = Client::try_from(config).map_err(|error| failed("client", &error))?;
        *kept = Some(client.clone());
        Ok(client)
    }

    async fn workload(&self) -> Result<Option<(Api<DynamicObject>, &str)>, DriverError> {
        let Some(workload) = &self.settings.workload else { return Ok(None) };
        let kind = match workload.kind {
            WorkloadKind::Deployment => "Deployment",
            WorkloadKind::StatefulSet => "StatefulSet",
        };
        Ok(Some((self.api("apps", "v1", kind).await?, &workload.name)))
    }

    async fn cluster(&self) -> Result<Option<(Api<DynamicObject>, &str)>, DriverError> {
        let Some(name) = &self.settings.cluster else { return Ok(None) };
        Ok(Some((self.api("postgresql.cnpg.io", "v1", "Cluster").await?, name)))
    }

    async fn api(&self, group: &str, version: &str, kind: &str) -> Result<Api<DynamicObject>, DriverError> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        Ok(Api::namespaced_with(self.client().await?, &self.settings.namespace, &resource))
    }

    /// Refuses an object that serves somebody else. One that serves nobody is this placement's from now on: its ledger has been asked whether
    /// it is.
    async fn claim(
        &self,
        api: &Api<DynamicObject>,
        name: &str,
        request: &Request,
    ) -> Result<(), DriverError> {
        let mine = format!("{}.{}", request.placement.resource, request.placement.zone);
        let object = api.get(name).await.map_err(|error| of_api(name, &error))?;
        match object.metadata.annotations.unwrap_or_default().get(OURS) {
            Some(owner) if *owner == mine => Ok(()),
            Some(owner) => Err(outside(
                DriverErrorKind::Refused,
                format!("{name} serves {owner} ({OURS}), not {mine}: it is left alone"),
            )),
            None => {
                let patch = json!({ "metadata": { "annotations": { OURS: mine } } });
                merge(api, name, &patch).await
            }
        }
    }

    /// Bounds what is done for `request` by its deadline, and forgets the client where it failed.
    async fn within(
        &self,
        request: &Request,
        work: impl Future<Output = Result<Outcome, DriverError>>,
    ) -> Result<Outcome, DriverError> {
        let done = tokio::time::timeout(request.deadline(), work).await.unwrap_or_else(|_| {
            Err(outside(
                DriverErrorKind::NotReady,
                format!("{}: {} was not done within {:?}", self.name(), request.verb, request.deadline()),
            ))
        });
        if done.is_err() {
            self.client.lock().await.take();
        }
        done
    }

    async fn operate(&self, request: &Request) -> Result<Outcome, DriverError> {
        let workers = if request.verb == "deprovision" { 0 } else { request.capacity.unwrap_or(0) };
        let provisions = request.verb == "provision";
        if let Some((api, name)) = self.cluster().await? {
            self.claim(&api, name, request).await?;
            // The database has its own size, and is put to sleep last: what is scaled are workers.
            if provisions {
                let instances = self.settings.instances;
                merge(&api, name, &cluster_patch("off", instances, &request.settings)).await?;
            }
        }
        if let Some((api, name)) = self.workload().await? {
            self.claim(&api, name, request).await?;
            let patch = Patch::Merge(json!({ "spec": { "replicas": workers } }));
            api.patch_scale(name, &PatchParams::default(), &patch)
                .await
                .map_err(|error| of_api(name, &error))?;
        }
        if request.verb == "deprovision" {
            // Workers first: none may see its database go.
            self.until(request, workers, |_| true).await?;
            self.until_gone().await?;
            if let Some((api, name)) = self.cluster().await? {
                merge(&api, name, &cluster_patch("on", None, &BTreeMap::new())).await?;
            }
            return self.look(request).await;
        }
        let outcome = self.until(request, workers, |outcome| outcome.database == Some(true)).await?;
        if workers == 0 {
            self.until_gone().await?;
        }
        Ok(outcome)
    }

    /// Looks until so many workers are ready and it is so; the caller's deadline ends it.
    async fn until(
        &self,
        request: &Request,
        workers: u32,
        reached: impl Fn(&Outcome) -> bool,
    ) -> Result<Outcome, DriverError> {
        loop {
            let outcome = self.look(request).await?;
            if let Some(other) = outcome.capacity.filter(|capacity| *capacity != workers) {
                return Err(outside(
                    DriverErrorKind::Failed,
                    format!(
                        "{}: {SET_BY_ANOTHER} to {other} while {} wants {workers}: an autoscaler?",
                        self.name(),
                        request.verb
                    ),
                ));
            }
            if outcome.ready == Some(workers) && reached(&outcome) {
                return Ok(outcome);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until the workload has no pod: one that is ending is no replica any more, and still has its sessions.
    async fn until_gone(&self) -> Result<(), DriverError> {
        let Some((api, name)) = self.workload().await? else { return Ok(()) };
        let scale = api.get_scale(name).await.map_err(|error| of_api(name, &error))?;
        let selector =
            scale.status.and_then(|status| status.selector).filter(|selector| !selector.is_empty());
        let Some(selector) = selector else {
            return Err(outside(
                DriverErrorKind::Failed,
                format!("{name} does not say which pods are its own"),
            ));
        };
        let pods = self.api("", "v1", "Pod").await?;
        // What has ended may be kept for its logs.
        let left = ListParams::default()
            .labels(&selector)
            .fields("status.phase!=Succeeded,status.phase!=Failed")
            .limit(1);
        while !pods.list(&left).await.map_err(|error| of_api("pods", &error))?.items.is_empty() {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    async fn look(&self, request: &Request) -> Result<Outcome, DriverError> {
        let mut outcome = self.place(request);
        // Without a workload they are somebody else's, and as many as there are to be.
        let ends = request.verb == "deprovision";
        let unscaled = if ends { 0 } else { request.capacity.unwrap_or(request.placement.full) };
        (outcome.ready, outcome.capacity, outcome.database) = (Some(unscaled), Some(unscaled), Some(true));
        if let Some((api, name)) = self.workload().await? {
            let scale = api.get_scale(name).await.map_err(|error| of_api(name, &error))?;
            let object = api.get(name).await.map_err(|error| of_api(name, &error))?;
            let ready = object.data.pointer("/status/readyReplicas").and_then(Value::as_u64).unwrap_or(0);
            let wanted = scale.spec.and_then(|spec| spec.replicas).unwrap_or(0);
            outcome.ready = u32::try_from(ready).ok();
            outcome.capacity = u32::try_from(wanted).ok();
        }
        if let Some((api, name)) = self.cluster().await? {
            let object = api.get(name).await.map_err(|error| of_api(name, &error))?;
            let ready = object.data.pointer("/status/readyInstances").and_then(Value::as_u64).unwrap_or(0);
            outcome.database = Some(ready > 0);
        }
        Ok(outcome)
    }

    /// Where the placement is: the cluster's service for writes, and the endpoints of the configuration.
    fn place(&self, request: &Request) -> Outcome {
        let names = request.placement.database.as_ref();
        let dsn = self.settings.cluster.as_ref().zip(names).map(|(cluster, names)| {
            let namespace = &self.settings.namespace;
            format!("postgres://{}@{cluster}-rw.{namespace}.svc:5432/{}", names.role, names.name)
        });
        Outcome { http: self.settings.http.clone(), dsn, ..Outcome::default() }
    }

    async fn plan(&self, request: &Request) -> Result<Outcome, DriverError> {
        let now = self.look(request).await?;
        let ends = request.of.as_deref() == Some("deprovision");
        let wanted = if ends { 0 } else { request.capacity.unwrap_or(0) };
        let mut steps = Vec::new();
        if let Some(workload) = &self.settings.workload {
            let from = now.capacity.unwrap_or(0);
            steps.push(format!("scale {} from {from} to {wanted} replicas", workload.name));
        }
        if let Some(cluster) = &self.settings.cluster {
            steps.push(if ends {
                format!("hibernate the cluster {cluster}; its volumes stay")
            } else {
                format!("run the cluster {cluster} with {} settings of the primary's", request.settings.len())
            });
        }
        Ok(Outcome { steps, ..Outcome::default() })
    }
}

/// Hibernation, size and settings of a cluster.
fn cluster_patch(hibernation: &str, instances: Option<u32>, settings: &BTreeMap<String, String>) -> Value {
    let mut patch = json!({ "metadata": { "annotations": { HIBERNATION: hibernation } } });
    let mut spec = serde_json::Map::new();
    if let Some(instances) = instances {
        spec.insert("instances".into(), instances.into());
    }
    let taken: BTreeMap<&String, &String> =
        settings.iter().filter(|(name, _)| !FIXED.contains(&name.as_str())).collect();
    if !taken.is_empty() {
        spec.insert("postgresql".into(), json!({ "parameters": taken }));
    }
    if let (Some(patch), false) = (patch.as_object_mut(), spec.is_empty()) {
        patch.insert("spec".into(), spec.into());
    }
    patch
}

async fn merge(api: &Api<DynamicObject>, name: &str, patch: &Value) -> Result<(), DriverError> {
    let done = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
    done.map(drop).map_err(|error| of_api(name, &error))
}

fn of_api(name: &str, error: &kube::Error) -> DriverError {
    let kind = match error {
        kube::Error::Api(status) if matches!(status.code, 400 | 401 | 403 | 404 | 422) => {
            DriverErrorKind::Refused
        }
        kube::Error::Api(status) if status.code == 409 => DriverErrorKind::Busy,
        _ => DriverErrorKind::Failed,
    };
    outside(kind, format!("{name}: {error}"))
}

fn failed(what: &str, error: &dyn std::error::Error) -> DriverError {
    outside(DriverErrorKind::Failed, format!("kubernetes: {what}: {error}"))
}

#[async_trait]
impl Carrier for Kubernetes {
    fn name(&self) -> String {
        format!("kubernetes, namespace {}", self.settings.namespace)
    }

    async fn ask(&self, request: &Request) -> Result<Outcome, DriverError> {
        let work = async {
            match request.verb.as_str() {
                "plan" => self.plan(request).await,
                "status" => self.look(request).await,
                "endpoint" => Ok(self.place(request)),
                _ => self.operate(request).await,
            }
        };
        self.within(request, work).await
    }

    /// Neither its size nor its settings change: it serves.
    async fn adopt(&self, request: &Request) -> Result<Outcome, DriverError> {
        let work = async {
            for (api, name) in [self.cluster().await?, self.workload().await?].into_iter().flatten() {
                self.claim(&api, name, request).await?;
            }
            self.look(request).await
        };
        self.within(request, work).await
    }
}

#[cfg(test)]
mod tests;
