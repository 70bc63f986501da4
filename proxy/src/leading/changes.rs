//! Changes of what a node leads, while it runs: resources that the API reserves and drops, sections that it changes, files
//! that are read anew.
//!
//! One at a time. First all is checked, then it is written down (the overlay), then it is done; a process that dies in
//! between does it when it starts again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::comparison::{Comparison, ConfigView};
use super::fronts::Fronts;
use super::running::Running;
use super::{Leading, Led, Placed, lead_anew, note_reserved, placing, taken_out};
use crate::audit::Entry as Audited;
use crate::causes::chain;
use crate::clock;
use crate::config::model::{Config, Resource};
use crate::config::overlay::OverlayText;
use crate::config::{self, ConfigErrors};
use crate::controller::parameters;
use crate::controller::{Command, Denied, Persist};
use crate::drivers::Action;
use crate::fronts::routes::Routes;
use crate::store::{Change, Overlay, OverlayFile};
use crate::telemetry::metrics as telemetry;

/// Why a change is not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The request is wrong, with the place in it.
    #[error("{} of the request", crate::leading::changes::counted(.0.len()))]
    Invalid(Vec<Wrong>),
    /// The files of the configuration are.
    #[error("the configuration's files have problems: {0}")]
    Files(ConfigErrors),
    /// There is no such resource.
    #[error("there is no resource {0:?}")]
    Unknown(String),
    /// It does not fit what there is now.
    #[error("{0}")]
    Conflict(String),
    /// The controller says no.
    #[error("{0}")]
    Denied(#[from] Denied),
    /// The overlay cannot be written.
    #[error("the overlay cannot be written: {0}")]
    Overlay(#[from] std::io::Error),
    /// It did not work out.
    #[error("{0}")]
    Failed(String),
}

/// One thing that is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Wrong {
    /// JSON pointer into the body (RFC 6901).
    pub pointer: String,
    /// What is wrong.
    pub detail: String,
    /// What would be right.
    pub right: String,
}

/// What a reservation led to, or would.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Reservation {
    /// The resource.
    pub resource: String,
    /// Where it is served.
    pub primary: String,
    /// The zone chosen for its shadow, or given.
    pub shadow: String,
    /// Workers of the shadow.
    pub capacity: u32,
    /// Every candidate, judged; empty: both placements were given.
    pub candidates: Vec<crate::controller::zones::CandidateView>,
    /// What its driver would do; only of a dry run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<String>,
}

/// What reading the files anew led to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Reloaded {
    /// Keys that are in force now.
    pub applied: Vec<String>,
    /// Keys that differ and need a restart.
    pub needs_restart: Vec<String>,
    /// Resources whose changes wait, and why.
    pub refused: Vec<String>,
}

/// A section before and after a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Changed {
    /// As it was.
    pub before: Value,
    /// As it is.
    pub after: Value,
}

/// Makes them.
pub struct Changes {
    /// The configuration's file.
    file: PathBuf,
    overlay: Arc<OverlayFile>,
    running: Arc<Running>,
    leading: Arc<Leading>,
    fronts: Fronts,
    comparison: Arc<Comparison>,
    turn: tokio::sync::Mutex<()>,
}

impl Changes {
    /// Of a node that was started with `file`, as `comparison` has it.
    pub fn new(
        file: PathBuf,
        overlay: Arc<OverlayFile>,
        running: Arc<Running>,
        leading: Arc<Leading>,
        fronts: Fronts,
        comparison: Arc<Comparison>,
    ) -> Self {
        Self { file, overlay, running, leading, fronts, comparison, turn: tokio::sync::Mutex::default() }
    }

    /// Connections of clients that have a request, or may have one soon.
    pub fn busy(&self) -> usize {
        self.fronts.busy()
    }

    /// Whether requests are held.
    pub fn holds(&self) -> bool {
        self.fronts.holds()
    }

    /// Tells clients to connect anew, or no more.
    pub fn announce(&self, leave: bool) {
        self.fronts.announce(leave);
    }

    /// Has sessions of PostgreSQL fronts end, each when it has no transaction open.
    pub fn end_sessions(&self) {
        self.fronts.end_sessions();
    }

    /// Connections of clients to PostgreSQL fronts.
    pub fn sessions(&self) -> usize {
        self.fronts.sessions()
    }

    /// Has what the access logs keep written.
    pub fn write_out(&self, patience: Duration) {
        self.fronts.write_out(patience);
    }

    /// What the node runs with, and what differs in the files by now; reads them.
    pub fn config(&self) -> Arc<ConfigView> {
        self.comparison.view()
    }

    /// Sets the gauges of fronts that are read, not counted.
    pub fn measure(&self) {
        self.fronts.measure();
    }

    /// Whether the API reserved this resource.
    pub fn reserved(&self, name: &str) -> bool {
        self.overlay.content().reserved.contains_key(name)
    }

    /// Who changed a section of a resource, and when; none: nobody did.
    pub fn changed(&self, name: &str, section: &str) -> Option<Change> {
        self.overlay.content().changed.get(name)?.get(section).cloned()
    }

    /// Reserves a resource: `spec` is what `resources.NAME` would be in the file. A dry run only says where and how.
    pub async fn reserve(
        &self,
        name: &str,
        spec: &Value,
        by: &str,
        dry_run: bool,
    ) -> Result<Reservation, ChangeError> {
        let _turn = self.turn.lock().await;
        if self.running.config().resources.contains_key(name) {
            return Err(ChangeError::Conflict(format!("there is a resource {name:?} already")));
        }
        let before = self.overlay.content();
        let mut overlay = before.clone();
        overlay.reserved.insert(name.to_owned(), Change::new(by, clock::now(), spec.clone()));
        let config = self.read(&overlay, &format!("reserved.{name}.value"), spec).await?;
        let resource = config.resources.get(name).cloned();
        let resource =
            resource.ok_or_else(|| ChangeError::Failed("the reservation was not understood".into()))?;
        let kept_back = only_in_the_files(&resource);
        if !kept_back.is_empty() {
            return Err(ChangeError::Invalid(kept_back));
        }
        let now = self.running.config();
        let placed = self.place(&now, &resource)?;
        let settled = placing::settle(&now, &resource, &resource.primary, &placed.zone)
            .map_err(|error| ChangeError::Conflict(format!("{error:#}")))?;
        let full = settled.placements.get(&placed.zone).map_or(1, |placement| placement.capacity);
        let capacity = resource.policy.shadow_capacity.of(full).min(full);
        let mut reservation = Reservation {
            resource: name.to_owned(),
            primary: resource.primary.clone(),
            shadow: placed.zone.clone(),
            capacity,
            candidates: placed.choice.candidates,
            steps: Vec::new(),
        };
        self.fronts.check(&resource).map_err(|(front, why)| {
            let pointer = format!("/fronts/{front}/listen");
            ChangeError::Invalid(vec![Wrong {
                pointer,
                detail: why,
                right: "an address that is free".into(),
            }])
        })?;
        let shared = self.leading.shared();
        // All files that it names are read before it is written down: a node that cannot read one does not start.
        let led = lead_anew(&now, &resource, &shared.journal, &placed.zone, &shared.recorder)
            .map_err(|error| failed(&error))?;
        led.front.as_ref().map_or(Ok(()), |front| {
            Routes::new(std::slice::from_ref(front))
                .map(drop)
                .map_err(|error| ChangeError::Failed(chain(error)))
        })?;
        if dry_run {
            if let Some(driver) = led.drivers.get(&placed.zone) {
                let plan = driver.does.plan(Action::Provision, &capacity.into()).await;
                reservation.steps = plan.map_err(|error| ChangeError::Failed(chain(error)))?.steps;
            }
            return Ok(reservation);
        }
        self.overlay.write(overlay)?;
        if let Err(error) = self.join(&now, resource, led) {
            if let Err(why) = self.overlay.write(before) {
                tracing::error!(
                    resource = name,
                    why = chain(why),
                    "a reservation that was refused is still written down"
                );
            }
            return Err(error);
        }
        self.comparison.adopt(|parts| is_of(parts, name));
        Ok(reservation)
    }

    fn place(&self, config: &Config, resource: &Resource) -> Result<Placed, ChangeError> {
        placing::place(config, resource, Some(&self.leading.shared().feeds))
            .map_err(|error| ChangeError::Conflict(format!("{error:#}")))
    }

    /// Starts a resource that was not led before.
    fn join(&self, now: &Config, resource: Resource, led: Led) -> Result<(), ChangeError> {
        let shared = self.leading.shared();
        let name = resource.name.clone();
        note_reserved(now, &led, &shared.journal).map_err(|error| failed(&error))?;
        self.fronts.join(&led, &shared.recorder).map_err(ChangeError::Failed)?;
        let mut next = now.clone();
        next.resources.insert(name.clone(), resource);
        self.running.replace(Arc::new(next));
        self.running.joins(&name, self.leading.start(led));
        Ok(())
    }

    /// Drops a resource that the API reserved: its shadow is deprovisioned, its front closes. The primary's database and
    /// workers stay as they are. Of one that is in the files no more, what a person has taken away is not missed any longer.
    pub async fn release(&self, name: &str) -> Result<(), ChangeError> {
        let _turn = self.turn.lock().await;
        if !self.reserved(name) {
            return Err(if self.running.config().resources.contains_key(name) {
                let file = self.file.display();
                ChangeError::Conflict(format!(
                    "{name} is in {file}, not reserved by the API: take it out there"
                ))
            } else {
                let forgotten = taken_out::forget(&self.leading.shared().journal, name, clock::now());
                match forgotten.map_err(|error| ChangeError::Failed(chain(error)))? {
                    Ok(true) => return Ok(()),
                    Ok(false) => ChangeError::Unknown(name.to_owned()),
                    Err(why) => ChangeError::Conflict(why),
                }
            });
        }
        let handle = self.running.resources().get(name).cloned();
        if let Some(handle) = &handle {
            let answer = handle.ask(|reply| Command::Leave { reply }).await;
            answer.ok_or_else(|| ChangeError::Failed("godwit is stopping".into()))??;
        }
        let mut overlay = self.overlay.content();
        overlay.forget(name);
        self.overlay.write(overlay)?;
        tokio::task::block_in_place(|| self.fronts.leave(name));
        self.running.leaves(name);
        self.leading.end(name).await;
        if let Some(handle) = handle {
            let live = handle.live.load();
            telemetry::resource_ends(name, live.placements.keys(), &handle.view.load());
        }
        // After the last that its controller says.
        self.leading.shared().events.released(name, clock::now());
        let mut next = Config::clone(&self.running.config());
        next.resources.remove(name);
        self.running.replace(Arc::new(next));
        self.comparison.adopt(|parts| is_of(parts, name));
        Ok(())
    }

    /// Changes a section of a resource; no value: as its policy has it again.
    pub async fn set(
        &self,
        name: &str,
        section: &str,
        value: Option<&Value>,
        by: &str,
        expected: impl Fn(&Resource) -> Result<(), ChangeError>,
    ) -> Result<Changed, ChangeError> {
        let _turn = self.turn.lock().await;
        let resources = self.running.resources();
        let handle = resources.get(name).ok_or_else(|| ChangeError::Unknown(name.to_owned()))?;
        let settings = handle.live.load();
        expected(&settings)?;
        let before = parameters::of(&settings, section);
        let mut overlay = self.overlay.content();
        let change = value.map(|value| Change::new(by, clock::now(), value.clone()));
        overlay.set(name, section, change);
        let place = format!("changed.{name}.{section}.value");
        let read = self.read(&overlay, &place, value.unwrap_or(&Value::Null)).await?;
        let next = read.resources.get(name).ok_or_else(|| ChangeError::Unknown(name.to_owned()))?;
        // The rest of the files may have changed since they were read: that waits for somebody who has them read anew.
        let mut next = parameters::with(&settings, next, section).map_err(|broken| {
            let words: Vec<String> = broken.iter().map(ToString::to_string).collect();
            ChangeError::Conflict(format!("it does not fit the policy that runs: {}", words.join("; ")))
        })?;
        let now = self.running.config();
        for (zone, placement) in &mut next.placements {
            let has = settings.placements.get(zone).map_or(placement.capacity, |led| led.capacity);
            if placement.capacity == has || counts_alike(name, zone, &now, &read) {
                continue;
            }
            if value.is_some_and(|value| value["capacity"].get(zone).is_some()) {
                let what = format!(
                    "{zone} has other endpoints or another driver in the files by now: restart first"
                );
                return Err(ChangeError::Conflict(what));
            }
            placement.capacity = has;
        }
        let after = parameters::of(&next, section);
        let persist = self.persist(overlay);
        let answer = handle
            .ask(|reply| Command::Reconfigure {
                settings: Box::new(next.clone()),
                shadow: section == "shadow",
                persist: Some(persist),
                reply,
            })
            .await;
        answer.ok_or_else(|| ChangeError::Failed("godwit is stopping".into()))??;
        self.adopt(name, &next);
        self.comparison.adopt(|parts| is_of(parts, name) && parts.get(2).is_some_and(|of| of == section));
        self.leading.shared().audit.note(Audited::Changed {
            resource: name.to_owned(),
            by: by.to_owned(),
            section: section.to_owned(),
            before: before.clone(),
            after: after.clone(),
        });
        Ok(Changed { before, after })
    }

    fn persist(&self, overlay: Overlay) -> Persist {
        // The controller has it written when it has agreed.
        let file = self.overlay.clone();
        Persist::new(move || file.write(overlay).map_err(|error| error.to_string()))
    }

    /// Reads the files anew. What cannot change while the node runs is named; a wrong file changes nothing.
    pub async fn reload(&self) -> Result<Reloaded, ChangeError> {
        let _turn = self.turn.lock().await;
        let read = self.reread().await;
        telemetry::config_reloaded(read.is_ok());
        match &read {
            Ok(done) => tracing::info!(
                applied = done.applied.len(), needs_restart = ?done.needs_restart, refused = ?done.refused,
                "configuration read anew"
            ),
            Err(error) => tracing::error!(%error, "the configuration is not readable: the old one stays"),
        }
        read
    }

    async fn reread(&self) -> Result<Reloaded, ChangeError> {
        let overlay = self.overlay.content();
        let config = self.read(&overlay, "\0", &Value::Null).await?;
        let differences = self.comparison.differences().map_err(ChangeError::Files)?;
        let (resources, now) = (self.running.resources(), self.running.config());
        let reached = |parts: &[String]| {
            let [of, name, of_it @ ..] = parts else { return true };
            of != "resources" || {
                let led = resources.get(name).map(|handle| handle.live.load());
                led.is_some_and(|led| is_reached(of_it, &led, name, &now, &config))
            }
        };
        let (live, rest): (Vec<_>, Vec<_>) =
            differences.into_iter().partition(|one| one.live && reached(&one.parts));
        let mut waiting: Vec<Waiting> = Vec::new();
        for (name, handle) in resources.iter() {
            let Some(next) = config.resources.get(name) else { continue };
            let settings = handle.live.load();
            let policies = [settings.policy.name.clone(), next.policy.name.clone()];
            let waits = |all, why| Waiting { resource: name.clone(), policies, all, why };
            let (next, unfit) = live_parts(&settings, next, &now, &config);
            if !parameters::same(&settings, &next) {
                let answer = handle
                    .ask(|reply| Command::Reconfigure {
                        settings: Box::new(next.clone()),
                        shadow: false,
                        persist: None,
                        reply,
                    })
                    .await;
                let denied = match answer {
                    Some(Ok(())) => None,
                    Some(Err(denied)) => Some(denied.to_string()),
                    None => Some("its controller is gone".into()),
                };
                if let Some(why) = denied {
                    waiting.push(waits(true, why));
                    continue;
                }
                self.adopt(name, &next);
            }
            waiting.extend(unfit.map(|why| waits(false, why)));
        }
        if !waiting.iter().any(|one| one.all) {
            self.adopt_costs(&config);
        }
        let view = self.comparison.view();
        let written = rest.iter().filter_map(|one| Some((&*one.parts, one.written.as_ref()?)));
        let names: Vec<_> = view.entries.iter().map(|one| (&*one.parts, &one.value)).chain(written).collect();
        let waits = |parts: &[String]| waiting.iter().any(|one| one.holds_back(parts, &names));
        let applied: Vec<_> = live.into_iter().filter(|one| !waits(&one.parts)).collect();
        self.comparison.adopt(|parts| applied.iter().any(|applied| applied.parts == parts));
        Ok(Reloaded {
            applied: applied.into_iter().map(|one| one.key).collect(),
            needs_restart: rest.into_iter().map(|one| one.key).collect(),
            refused: waiting.into_iter().map(|one| format!("{}: {}", one.resource, one.why)).collect(),
        })
    }

    /// The configuration's files with this overlay; problems at `place` are of the request.
    async fn read(&self, overlay: &Overlay, place: &str, body: &Value) -> Result<Config, ChangeError> {
        let (file, text) = (self.file.clone(), self.overlay.as_text(overlay));
        let path = text.path.display().to_string();
        let loaded = tokio::task::spawn_blocking(move || config::load_with(&file, Some(&text))).await;
        let errors = match loaded.map_err(|error| ChangeError::Failed(error.to_string()))? {
            Ok(config) => return Ok(config),
            Err(errors) => errors,
        };
        let of_request = |problem: &&config::Problem| {
            problem.file == path
                && (problem.key == place
                    || problem.key.starts_with(&format!("{place}."))
                    || problem.key.starts_with(&format!("{place}[")))
        };
        let wrong: Vec<Wrong> = errors
            .problems()
            .iter()
            .filter(of_request)
            .map(|problem| Wrong {
                pointer: pointer(body, problem.key.strip_prefix(place).unwrap_or_default()),
                detail: problem.what.clone(),
                right: problem.right.clone(),
            })
            .collect();
        Err(if wrong.is_empty() { ChangeError::Files(errors) } else { ChangeError::Invalid(wrong) })
    }

    /// The configuration of the node with these settings of one resource.
    fn adopt(&self, name: &str, settings: &Resource) {
        let mut next = Config::clone(&self.running.config());
        if let Some(resource) = next.resources.get_mut(name) {
            resource.policy.clone_from(&settings.policy);
            resource.freeze.clone_from(&settings.freeze);
            for (zone, placement) in &mut resource.placements {
                if let Some(changed) = settings.placements.get(zone) {
                    placement.capacity = changed.capacity;
                    placement.cost_per_hour = changed.cost_per_hour;
                }
            }
        }
        self.running.replace(Arc::new(next));
    }

    /// The configuration of the node with what workers cost in its zones by `written`.
    fn adopt_costs(&self, written: &Config) {
        let mut next = Config::clone(&self.running.config());
        for (name, zone) in &mut next.zones {
            if let Some(written) = written.zones.get(name) {
                zone.cost_per_hour = written.cost_per_hour;
            }
        }
        self.running.replace(Arc::new(next));
    }
}

/// Whether a key is of this resource.
fn is_of(parts: &[String], resource: &str) -> bool {
    matches!(parts, [of, name, ..] if of == "resources" && name == resource)
}

/// Whether a reload can apply this key of a resource as a whole: a policy with another step is not, nor what is of a zone that it is not in, nor
/// how many workers it has where a restart gives them other places.
fn is_reached(key: &[String], led: &Resource, name: &str, now: &Config, written: &Config) -> bool {
    let Some(next) = written.resources.get(name) else { return false };
    let key: Vec<&str> = key.iter().map(String::as_str).collect();
    match key.as_slice() {
        ["policy"] => led.policy.step == next.policy.step,
        ["placements", zone, "capacity"] | ["scaling", "capacity", zone] => {
            led.placements.contains_key(*zone) && counts_alike(name, zone, now, written)
        }
        ["placements", zone, ..] => led.placements.contains_key(*zone),
        _ => true,
    }
}

/// Whether a placement's workers are counted by the same as when the node started: by its endpoints, its driver and that driver's addresses, and
/// where it has them from the primary by the primary's.
fn counts_alike(name: &str, zone: &str, now: &Config, written: &Config) -> bool {
    let counted = |config: &Config, zone: &str| {
        let placement = config.resources.get(name)?.placements.get(zone)?;
        let driver = placement.driver.as_ref();
        let most = driver.and_then(|name| config.drivers.get(name)?.most());
        Some((placement.http.len(), driver.cloned(), most, placement.provided.http))
    };
    let alike = |zone: &str| counted(now, zone) == counted(written, zone);
    let primary = |config: &Config| config.resources.get(name).map(|resource| resource.primary.clone());
    let provided = counted(written, zone).is_some_and(|(.., provided)| provided);
    alike(zone)
        && (!provided
            || primary(now).is_some_and(|zone| Some(&zone) == primary(written).as_ref() && alike(&zone)))
}

/// A resource of which something waits.
struct Waiting {
    resource: String,
    /// Names of the one that it has, and of the one that is written.
    policies: [String; 2],
    /// All of it waits; else only its policy, without the times in which nothing is moved.
    all: bool,
    why: String,
}

impl Waiting {
    /// Whether this key is not in force for it. A policy may be of several resources: while it waits for one of them, it is not in force as a
    /// whole. `values` has what is written in policies' files, where they may give themselves a name.
    fn holds_back(&self, key: &[String], values: &[(&[String], &Value)]) -> bool {
        let [of, name, rest @ ..] = key else { return self.all };
        if of == "resources" {
            return *name == self.resource
                && (self.all || !rest.first().is_some_and(|of| of == "placements" || of == "scaling"));
        }
        if of != "policies" {
            return self.all;
        }
        let is_name = |key: &[String]| matches!(key, [of, stem, key] if of == "policies" && stem == name && key == "name");
        let given = values.iter().filter(|(key, _)| is_name(key)).filter_map(|(_, name)| name.as_str());
        let has = given.chain([name.as_str()]).any(|name| self.policies.iter().any(|policy| policy == name));
        // Of two policies the times of both count, and whether one was taken away cannot be told.
        let [kept, written] = &self.policies;
        has && (self.all || *rest != ["limits", "freeze"] || kept != written)
    }
}

/// `settings` with what of `next`, as the files of `written` have it, can change while the resource is led, and why its policy cannot.
fn live_parts(
    settings: &Resource,
    next: &Resource,
    now: &Config,
    written: &Config,
) -> (Resource, Option<String>) {
    let mut changed = settings.clone();
    let unfit = match parameters::keeping_the_step(&next.policy, &settings.policy) {
        Ok(policy) => {
            changed.policy = policy;
            None
        }
        Err(why) => Some(why),
    };
    if unfit.is_none() || settings.policy.name == next.policy.name {
        changed.freeze.clone_from(&next.freeze);
    } else {
        // The policy that it keeps still has its own.
        changed.freeze.extend(next.freeze.iter().filter(|one| !settings.freeze.contains(one)).cloned());
    }
    for (zone, placement) in &mut changed.placements {
        let next = next.placements.get(zone);
        if let Some(next) = next.filter(|_| counts_alike(&settings.name, zone, now, written)) {
            placement.capacity = next.capacity;
        }
        let is_chosen =
            !now.resources.get(&settings.name).is_some_and(|now| now.placements.contains_key(zone));
        if let Some(next) = next {
            placement.cost_per_hour = next.cost_per_hour;
        } else if is_chosen {
            placement.cost_per_hour = written.zones.get(zone).and_then(|zone| zone.cost_per_hour);
        }
    }
    (changed, unfit)
}

/// What a reservation may not say: it would have the node run programs, or write where it is told to.
fn only_in_the_files(resource: &Resource) -> Vec<Wrong> {
    let wrong = |pointer: String, detail: &str, right: &str| Wrong {
        pointer,
        detail: detail.into(),
        right: right.into(),
    };
    let placements = resource.placements.iter();
    let programs = placements
        .filter(|(_, placement)| placement.postgres.as_ref().is_some_and(|database| database.bin.is_some()));
    let mut found: Vec<_> = programs
        .map(|(zone, _)| {
            let pointer = format!("/placements/{}/postgres/bin", escaped(zone));
            wrong(pointer, "names a directory with programs", "leave it out: found on PATH")
        })
        .collect();
    let log = resource.http.as_ref().and_then(|front| front.settings.access_log.as_ref());
    if log.is_some_and(|log| log.file.is_some()) {
        let pointer = "/fronts/http/access_log/file".to_owned();
        found.push(wrong(
            pointer,
            "names a file that the node would write",
            "leave it out: this process's log",
        ));
    }
    found
}

fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// The JSON pointer of a dotted key below `body`. Names may have dots of their own: the longest that is there counts.
fn pointer(body: &Value, dotted: &str) -> String {
    let rest = dotted.trim_start_matches('.');
    if rest.is_empty() {
        return String::new();
    }
    if let Some(inside) = rest.strip_prefix('[')
        && let Some((index, after)) = inside.split_once(']')
    {
        let next = index.parse::<usize>().ok().and_then(|index| body.get(index)).unwrap_or(&Value::Null);
        return format!("/{index}{}", pointer(next, after));
    }
    let ends = |name: &str| rest[name.len()..].is_empty() || rest[name.len()..].starts_with(['.', '[']);
    let keys = body.as_object().into_iter().flat_map(|map| map.keys());
    let found = keys.filter(|key| rest.starts_with(key.as_str()) && ends(key)).max_by_key(|key| key.len());
    match found {
        Some(key) => {
            let next = body.get(key).unwrap_or(&Value::Null);
            format!("/{}{}", escaped(key), pointer(next, &rest[key.len()..]))
        }
        // It is missing: what is left names it.
        None => rest.split('.').flat_map(|name| ["/".to_owned(), escaped(name)]).collect(),
    }
}

fn counted(count: usize) -> String {
    if count == 1 { "there is a problem".into() } else { format!("there are {count} problems") }
}

fn failed(error: &anyhow::Error) -> ChangeError {
    ChangeError::Failed(format!("{error:#}"))
}

/// The configuration and the overlay in its state directory: what a node starts with.
pub fn load(file: &std::path::Path) -> Result<Config, ConfigErrors> {
    let plain = config::load(file)?;
    match OverlayText::read(&plain.node.state) {
        Ok(None) => Ok(plain),
        Ok(Some(overlay)) => config::load_with(file, Some(&overlay)),
        Err(error) => {
            let path = plain.node.state.join(crate::config::overlay::FILE);
            Err(ConfigErrors::unreadable(&path, &error))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::samples;

    #[test]
    fn what_runs_programs_or_writes_files_is_not_taken_by_the_api() {
        let folder = tempfile::tempdir().unwrap();
        let text = "node: { name: n, zone: near, state: s }\n\
                    zones: { near: {}, far: {} }\n\
                    resources: { orders: { fronts: { http: { listen: \"127.0.0.1:6\" } }, primary: near, policy: p, \
                    placements: { near: { http: [\"127.0.0.1:7\"] }, far: { http: [\"127.0.0.1:8\"] } } } }\n";
        let file = samples::write(folder.path(), text);
        let refused = |http: Value, postgres: Value| {
            let value = json!({
                "fronts": {"http": http}, "primary": "near", "policy": "p",
                "placements": {"near": {"http": ["127.0.0.1:2"], "postgres": postgres}, "far": {"http": ["127.0.0.1:3"],
                    "postgres": {"dsn": "postgres://godwit@127.0.0.1:5/cart"}}},
            });
            let text = json!({"version": 1, "reserved": {"cart": {"by": "ann", "at_ms": 1, "value": value}}});
            let overlay = OverlayText { path: folder.path().join("overlay.json"), text: text.to_string() };
            let config =
                config::load_with(&file, Some(&overlay)).map_err(|errors| errors.to_string()).unwrap();
            let found = only_in_the_files(&config.resources["cart"]);
            found.into_iter().map(|one| one.pointer).collect::<Vec<_>>()
        };
        let (listen, dsn) = ("127.0.0.1:1", "postgres://godwit@127.0.0.1:4/cart");
        let log = "/fronts/http/access_log/file";
        let bin = "/placements/near/postgres/bin";
        for (http, postgres, expected) in [
            (json!({"access_log": {"sample": "1%"}}), json!({}), vec![]),
            (json!({"access_log": {"sample": "1%", "file": "/audit/1.jsonl"}}), json!({}), vec![log]),
            (json!({}), json!({"bin": "/tmp/mine"}), vec![bin]),
            (
                json!({"access_log": {"sample": "1%", "file": "/audit/1.jsonl"}}),
                json!({"bin": "/tmp/mine"}),
                vec![bin, log],
            ),
        ] {
            let (mut http, mut postgres) = (http, postgres);
            http["listen"] = listen.into();
            postgres["dsn"] = dsn.into();
            assert_eq!(refused(http.clone(), postgres), expected, "{http}");
        }
    }

    #[test]
    fn keys_become_pointers_into_the_body() {
        let body =
            serde_json::json!({"placements": {"eu.west": {"http": ["a", "b"]}, "eu": {}}, "a/b": {"~": 1}});
        for (dotted, expected) in [
            ("", ""),
            (".placements.eu.west.http[1]", "/placements/eu.west/http/1"),
            (".placements.eu.http", "/placements/eu/http"),
            (".a/b.~", "/a~1b/~0"),
            (".primary", "/primary"),
            (".fronts.http.listen", "/fronts/http/listen"),
        ] {
            assert_eq!(pointer(&body, dotted), expected, "{dotted}");
        }
    }
}
