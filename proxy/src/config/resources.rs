//! Services: their fronts and their placements.

use std::collections::BTreeMap;
use std::time::Duration;

use migration::policy::{Policy, PolicyParts};

use super::database;
use super::error::{counted, suggest};
use super::http;
use super::listeners::Listeners;
use super::load::Surroundings;
use super::model::{Driver, Flexible, HttpFront, Placement, PostgresFront, Provided, Resource, Zone};
use super::policy::ReadPolicy;
use super::postgres_front;
use super::walk::{Item, Section};
use crate::fronts::http::settings::Upstream;

/// What a resource may refer to. `None`: that part was unreadable, so that references to it are not judged.
pub(super) struct Known<'k> {
    pub(super) zones: Option<Vec<&'k str>>,
    /// Zones that were understood.
    pub(super) zones_read: &'k BTreeMap<String, Zone>,
    pub(super) drivers: Option<Vec<&'k str>>,
    pub(super) policies: &'k [ReadPolicy],
    /// Drivers that were understood.
    pub(super) drivers_read: &'k BTreeMap<String, Driver>,
    /// The zone of this node.
    pub(super) here: Option<&'k str>,
    /// Whether this node has a link.
    pub(super) link: bool,
    /// How long this node holds a request.
    pub(super) hold_time: Option<Duration>,
}

/// The policy of a resource that names none.
const DEFAULT_POLICY: &str = "default";

/// `{location, driver, fronts, placements, primary, policy}`.
pub(super) fn read<'a>(
    name: &str,
    item: &Item<'a>,
    known: &Known<'_>,
    around: &Surroundings<'_>,
    listeners: &mut Listeners<'a>,
    used_drivers: &mut BTreeMap<&'a str, u64>,
) -> Option<Resource> {
    let mut section = item.section()?;
    let location_item = section.optional("location");
    let flexible = location(location_item.as_ref(), &mut section, known);
    let fronts = section.optional("fronts");
    let has_front = fronts.is_some();
    let fronts = fronts.map(|item| front(name, &item, around, listeners));
    // A front that could not be read counts: what it needs is asked for.
    let has_http = fronts.as_ref().is_some_and(|fronts| fronts.has_http);
    let placements = section.required("placements", "placements: {ZONE: {…}, ZONE: {…}}");
    let placement_items = placements.as_ref().and_then(|item| item.named("placements"));
    let mut read_placements = BTreeMap::new();
    for (zone, item) in placement_items.iter().flatten() {
        if let Some(placement) = placement(zone, item, has_http, known, around, listeners, used_drivers) {
            read_placements.insert((*zone).to_owned(), placement);
        }
    }
    let zones: Option<Vec<&str>> =
        placement_items.as_ref().map(|items| items.iter().map(|(zone, _)| *zone).collect());
    if let (Some(item), Some(zones)) = (&placements, &zones) {
        match &flexible {
            Some(flexible) => zones_to_choose(item, zones.len(), flexible),
            None => count_of_placements(item, zones, has_front, known),
        }
    }
    if let Some(items) = &placement_items {
        whole(items, &read_placements);
    }

    let primary = if has_front {
        section.required("primary", "primary: ZONE, one of the placements")
    } else {
        section.optional("primary")
    };
    let primary = match (primary, has_front) {
        (Some(item), true) => match &zones {
            Some(zones) => item.reference("placement", zones.iter().copied()),
            None => item.text("the name of a zone"),
        },
        // A node that only serves the link may know one placement of the two.
        (Some(item), false) => match &known.zones {
            Some(zones) => item.reference("zone", zones.iter().copied()),
            None => item.text("the name of a zone"),
        },
        (None, true) => None,
        (None, false) => zones.as_ref().and_then(|zones| zones.first().copied()),
    };
    let policy = match section.optional("policy") {
        Some(item) => policy(&item, known),
        None => find_policy(DEFAULT_POLICY, known).map_or_else(default_policy, |read| read.policy.clone()),
    };
    if let (Some(_), Some(policy), Some(item)) = (&flexible, &policy, &location_item) {
        let share = policy.shadow_capacity.get();
        if !(0.2..=0.5).contains(&share) {
            let what =
                format!("`{}` gives the shadow {} of the primary", policy.name, policy.shadow_capacity);
            item.wrong(what, "a policy with shadow.capacity from 20% to 50%: it is made before it is needed");
        }
    }
    let read = policy.as_ref().and_then(|policy| find_policy(&policy.name, known));
    let freeze = read.map_or_else(Vec::new, |read| read.freeze.clone());
    if let (Some(primary), Some(items)) = (primary, &placement_items) {
        complete(primary, items, &mut read_placements);
    }
    if !has_front && !known.link {
        item.wrong_key(
            "has no front, and this node has no link: nobody would use it",
            "add fronts: {http: {listen: ADDRESS}}, or give node.link",
        );
    }
    section.finish();
    let (http, postgres) = fronts.map_or((None, None), |fronts| (fronts.http, fronts.postgres));
    let postgres = postgres.map(|(item, front)| {
        let databases = read_placements.values().map(|placement| placement.postgres.as_ref());
        let database = databases.flatten().next();
        if read_placements.values().any(|placement| placement.postgres.is_none()) {
            item.wrong_key("has no database to pass clients on to", "postgres: {dsn: …} in both placements");
        }
        postgres_front::named(front?, database)
    });
    Some(Resource {
        name: name.to_owned(),
        http: if has_http { Some(http?) } else { None },
        postgres: postgres.map_or(Some(None), |postgres| postgres.map(Some))?,
        placements: read_placements,
        flexible,
        primary: primary?.to_owned(),
        policy: policy?,
        freeze,
    })
}

/// `location: flexible`, and the driver that provisions the shadow then.
fn location(item: Option<&Item<'_>>, section: &mut Section<'_>, known: &Known<'_>) -> Option<Flexible> {
    let choices = [("flexible", true), ("fixed", false)];
    let flexible = item.and_then(|item| item.choice(&choices)).unwrap_or(false);
    let Some(item) = section.optional("driver") else { return flexible.then(Flexible::default) };
    if !flexible {
        item.wrong_key("is for `location: flexible`", "name the driver under the placement");
        return None;
    }
    let name = match &known.drivers {
        Some(drivers) => item.reference("driver", drivers.iter().copied()),
        None => item.text("the name of a driver"),
    };
    if let Some(name) = name
        && known.drivers_read.get(name).is_some_and(|driver| !driver.provides())
    {
        item.wrong(
            format!("`{name}` is of one place on this machine"),
            "a driver of the kind exec, webhook or kubernetes, or name it under a placement",
        );
    }
    // A name that is wrong has been reported: no further complaint that there is none.
    Some(Flexible { driver: Some(name.unwrap_or_default().to_owned()) })
}

/// A resource whose shadow's zone is chosen.
fn zones_to_choose(item: &Item<'_>, placements: usize, flexible: &Flexible) {
    if placements == 0 {
        item.wrong("has no placement", "the one that is the primary");
    } else if placements == 1 && flexible.driver.is_none() {
        item.wrong(
            "has one placement, and nothing that could provision another",
            "driver: NAME beside location, or further placements to choose from",
        );
    }
}

/// The primary must say where it is; what other placements leave out they have from it.
fn complete(primary: &str, items: &[(&str, Item<'_>)], placements: &mut BTreeMap<String, Placement>) {
    let Some((capacity, provided)) = placements.get(primary).map(|it| (it.capacity, it.provided)) else {
        return;
    };
    if provided.http {
        if let Some((_, item)) = items.iter().find(|(zone, _)| *zone == primary) {
            item.wrong_key("is the primary and does not say where it is", "http: [\"HOST:PORT\", …]");
        }
        return;
    }
    let has_database = placements.get(primary).is_some_and(|placement| placement.postgres.is_some());
    for placement in placements.values_mut() {
        if placement.capacity == 0 {
            placement.capacity = capacity.max(1);
        }
        placement.provided.postgres &= has_database;
    }
}

/// What stands under `fronts`, read or not.
struct Fronts<'a> {
    has_http: bool,
    http: Option<HttpFront>,
    postgres: Option<(Item<'a>, Option<PostgresFront>)>,
}

fn front<'a>(
    resource: &str,
    item: &Item<'a>,
    around: &Surroundings<'_>,
    listeners: &mut Listeners<'a>,
) -> Fronts<'a> {
    let unread = Fronts { has_http: true, http: None, postgres: None };
    let Some(mut section) = item.section() else { return unread };
    let (http, postgres) = (section.optional("http"), section.optional("postgres"));
    let (has_http, has_postgres) = (section.has("http"), section.has("postgres"));
    section.finish();
    if !has_http && !has_postgres {
        item.wrong("names no front", "http: {listen: ADDRESS, hosts: [NAME]}");
        return unread;
    }
    let postgres =
        postgres.map(|item| (item.clone(), postgres_front::read(resource, &item, around, listeners)));
    Fronts { has_http, http: http.and_then(|item| http::front(resource, &item, around, listeners)), postgres }
}

fn placement<'a>(
    zone: &str,
    item: &Item<'a>,
    has_http: bool,
    known: &Known<'_>,
    around: &Surroundings<'_>,
    listeners: &mut Listeners<'a>,
    used_drivers: &mut BTreeMap<&'a str, u64>,
) -> Option<Placement> {
    if let Some(zones) = &known.zones
        && !zones.contains(&zone)
    {
        let right = suggest(zone, zones.iter().copied());
        item.wrong_key(format!("there is no zone `{zone}`"), right);
    }
    let mut section = item.section()?;
    let driver = section.optional("driver").map(|item| driver(&item, known, used_drivers));
    let named = driver.flatten();
    // One that was not understood may well provide it.
    let provides = named.is_some_and(|name| known.drivers_read.get(name).is_none_or(Driver::provides));
    let http = if has_http && !provides {
        section.required("http", "http: [\"HOST:PORT\", …], the endpoints of the service here")
    } else {
        section.optional("http")
    };
    let endpoints = match &http {
        Some(item) => http::endpoints(item, has_http, listeners),
        None => (!has_http || provides).then(Default::default),
    };
    let (endpoints, weights) = endpoints.unzip();
    let upstream = match section.optional("upstream") {
        Some(item) => http::upstream(&item, around),
        None => Some(Upstream::default()),
    };
    let probe = match section.optional("probe") {
        Some(item) => item.url_path(),
        None => Some("/healthz".to_owned()),
    };
    let postgres = section.optional("postgres").map(|item| database::read(&item, around, listeners));
    let cost = match section.optional("cost") {
        Some(item) => item.cost_per_hour().map(Some),
        None => Some(known.zones_read.get(zone).and_then(|zone| zone.cost_per_hour)),
    };
    let workers = named.and_then(|name| known.drivers_read.get(name)).and_then(Driver::most);
    if let (Some(workers), Some(endpoints), Some(item)) = (workers, &endpoints, &http)
        && workers != endpoints.len()
        && has_http
    {
        let what = format!(
            "has {}, and the driver has {} (service.listen)",
            counted(endpoints.len(), "endpoint"),
            counted(workers, "worker")
        );
        item.wrong(what, "one endpoint for each worker, in the same order");
    }
    let full = workers.or(endpoints.as_ref().map(Vec::len)).and_then(|count| u32::try_from(count).ok());
    let capacity = match section.optional("capacity") {
        Some(item) => {
            let capacity = item.count(1, 100_000);
            if let (Some(capacity), Some(workers)) = (capacity, workers)
                && capacity as usize > workers
            {
                let what =
                    format!("is more than the driver's {} (service.listen)", counted(workers, "worker"));
                item.wrong(what, format!("at most {workers}, or more addresses in service.listen"));
            }
            capacity
        }
        // Filled in from the primary's, where the driver makes the workers.
        None if provides && http.is_none() => Some(0),
        None => Some(full.unwrap_or(1).max(1)),
    };
    let provided = Provided { http: provides && http.is_none(), postgres: provides && postgres.is_none() };
    section.finish();
    Some(Placement {
        zone: zone.to_owned(),
        http: endpoints?,
        upstream: Upstream { weights: weights.unwrap_or_default(), ..upstream? },
        probe: probe?,
        postgres: postgres.map_or(Some(None), |postgres| postgres.map(Some))?,
        capacity: capacity?,
        cost_per_hour: cost?,
        driver: driver.map_or(Some(None), |driver| driver.map(|name| Some(name.to_owned())))?,
        provided,
    })
}

fn driver<'a>(item: &Item<'a>, known: &Known<'_>, used: &mut BTreeMap<&'a str, u64>) -> Option<&'a str> {
    let name = match &known.drivers {
        Some(drivers) => item.reference("driver", drivers.iter().copied()),
        None => item.text("the name of a driver"),
    }?;
    if known.drivers_read.get(name).is_some_and(Driver::provides) {
        return Some(name);
    }
    if let Some(line) = used.insert(name, item.at().line) {
        let what = format!("`{name}` provisions another placement already (line {line})");
        item.wrong(what, "a driver of its own for each placement");
    }
    Some(name)
}

/// A front moves between two placements; a node that only serves the link needs the one of its own zone.
fn count_of_placements(item: &Item<'_>, zones: &[&str], has_front: bool, known: &Known<'_>) {
    match zones.len() {
        2 => {}
        1 if !has_front => {}
        count => {
            let what = format!("has {}", counted(count, "placement"));
            item.wrong(what, "two: this version moves a resource between two zones");
        }
    }
    if let Some(here) = known.here
        && !has_front
        && !zones.contains(&here)
        && !zones.is_empty()
    {
        let what = format!("has none in this node's zone `{here}`, and no front");
        item.wrong(what, format!("the placement in {here}"));
    }
}

/// What the placements of a resource must have in common.
fn whole(items: &[(&str, Item<'_>)], placements: &BTreeMap<String, Placement>) {
    let read: Vec<(&Item<'_>, &Placement)> =
        items.iter().filter_map(|(zone, item)| Some((item, placements.get(*zone)?))).collect();
    let [(_, first), (item, second)] = read.as_slice() else { return };
    match (&first.postgres, &second.postgres) {
        (Some(a), Some(b)) => {
            if database::same(a, b) {
                let what = format!("has the same database as the placement in {}", first.zone);
                item.wrong_key(what, "a database of its own: its changes are replicated");
            }
        }
        (None, None) => {
            let given = !first.http.is_empty() && first.driver.is_none() && second.driver.is_none();
            let all = |a: &Placement, b: &Placement| a.http.iter().all(|at| b.http.contains(at));
            if given && all(first, second) && all(second, first) {
                let what =
                    format!("has the same endpoints as the placement in {}, and no database", first.zone);
                item.wrong_key(what, "endpoints of its own: a move would change nothing");
            }
        }
        (a, _) => {
            let (with, without) = if a.is_some() { (first, second) } else { (second, first) };
            if without.provided.postgres {
                return;
            }
            let lacking = items.iter().find(|(zone, _)| *zone == without.zone);
            if let Some((_, item)) = lacking {
                let what = format!("has no postgres, and the placement in {} has", with.zone);
                item.wrong_key(what, "postgres: {dsn: …} in both or in none");
            }
        }
    }
}

fn find_policy<'k>(name: &str, known: &Known<'k>) -> Option<&'k ReadPolicy> {
    known.policies.iter().find(|policy| policy.name == name)
}

fn default_policy() -> Option<Policy> {
    Policy::new(PolicyParts::default()).ok()
}

fn policy(item: &Item<'_>, known: &Known<'_>) -> Option<Policy> {
    let names = known.policies.iter().map(|policy| policy.name.as_str());
    let built_in = find_policy(DEFAULT_POLICY, known).is_none().then_some(DEFAULT_POLICY);
    let name = item.text("the name of a policy")?;
    if names.clone().chain(built_in).all(|known| known != name) {
        let mut right = suggest(name, names.chain(built_in));
        if !right.ends_with('?') {
            right.push_str("; a policy is a file policies/NAME.yaml beside this one");
        }
        item.wrong(format!("there is no policy `{name}`"), right);
        return None;
    }
    let policy = match find_policy(name, known) {
        Some(read) => read.policy.clone()?,
        None => default_policy()?,
    };
    if let Some(most) = known.hold_time
        && policy.max_hold > most
    {
        let what = format!(
            "`{name}` holds requests for up to {:?}, and this node for at most {most:?} (node.hold.time)",
            policy.max_hold
        );
        item.wrong(what, "a shorter limits.max_hold or a longer node.hold.time");
    }
    Some(policy)
}
