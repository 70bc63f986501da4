//! The whole file: each part, then what must hold between the parts.

use std::collections::BTreeMap;

use super::error::Report;
use super::listeners::Listeners;
use super::load::Surroundings;
use super::model::{Config, Driver, Resource, Zone};
use super::policy::ReadPolicy;
use super::raw;
use super::resources::{self, Known};
use super::walk::Item;
use super::{drivers, feeds, node, overlay};
use crate::feeds::external::Feed;

/// Reads `godwit.yaml`; every problem is noted in `report`.
pub(super) fn read(
    text: &str,
    policies: &[ReadPolicy],
    around: &Surroundings<'_>,
    report: &Report,
    changes: Option<(&raw::Node, &Report)>,
) -> Option<Config> {
    let document = raw::parse(text, report)?;
    let overlay = match changes {
        Some((document, report)) => overlay::read(&Item::root(document, report))?,
        None => overlay::Parts::default(),
    };
    let root = Item::root(&document, report);
    let mut section = root.section()?;
    let mut listeners = Listeners::default();

    let node_item = section.required("node", "node: {name: NAME, zone: ZONE}");
    let node = node_item.as_ref().and_then(|item| node::read(item, around, &mut listeners));

    let zone_items = section.required("zones", "zones: {NAME: {…}, NAME: {…}}");
    let zone_items = zone_items.and_then(|item| item.named("zones"));
    let zones: BTreeMap<String, Zone> = understood(zone_items.as_deref(), |_, item| node::zone(item));

    let driver_items = match section.optional("drivers") {
        Some(item) => item.named("drivers"),
        None => Some(Vec::new()),
    };
    let egress = node.as_ref().and_then(|node| node.egress.as_ref());
    let drivers: BTreeMap<String, Driver> = understood(driver_items.as_deref(), |name, item| {
        drivers::read(name, item, around, egress, &mut listeners)
    });

    let names = |items: &Option<Vec<(&'_ str, Item<'_>)>>| -> Option<Vec<String>> {
        items.as_ref().map(|items| items.iter().map(|(name, _)| (*name).to_owned()).collect())
    };
    let (zone_names, driver_names) = (names(&zone_items), names(&driver_items));

    let here = node.as_ref().and_then(|node| node.zone.as_ref()).and_then(|item| match &zone_names {
        Some(zones) => item.reference("zone", zones.iter().map(String::as_str)),
        None => item.text("the name of a zone"),
    });
    let known = Known {
        zones: zone_names.as_ref().map(|names| names.iter().map(String::as_str).collect()),
        zones_read: &zones,
        drivers: driver_names.as_ref().map(|names| names.iter().map(String::as_str).collect()),
        policies,
        drivers_read: &drivers,
        here,
        // A node that could not be read may well have a link.
        link: node.as_ref().is_none_or(|node| node.link),
        hold_time: node.as_ref().and_then(|node| node.hold_time),
    };
    let resource_items = section.required("resources", "resources: {NAME: {…}}");
    let resource_items = resource_items.and_then(|item| {
        let named = item.named("resources")?;
        if named.is_empty() {
            item.wrong("has no resource", "NAME: {fronts, placements, primary, policy}");
        }
        Some(named)
    });
    let mut used_drivers = BTreeMap::new();
    let mut all_items = resource_items.clone().unwrap_or_default();
    for (name, item) in &overlay.reserved {
        if all_items.iter().any(|(known, _)| known == name) {
            item.wrong_key(
                "has the name of a resource of the configuration",
                "drop it, or name that one otherwise",
            );
        } else {
            all_items.push((*name, item.clone()));
        }
    }
    let resources: BTreeMap<String, Resource> = understood(Some(&all_items), |name, item| {
        let read = resources::read(name, item, &known, around, &mut listeners, &mut used_drivers)?;
        match overlay.changed.get(name) {
            Some(sections) => sections.apply(read, &drivers),
            None => Some(read),
        }
    });
    let feed_items = match section.optional("feeds") {
        Some(item) => item.named("feeds"),
        None => Some(Vec::new()),
    };
    let resource_names = names(&resource_items);
    let known = feeds::Known {
        zones: zone_names.as_ref().map(|names| names.iter().map(String::as_str).collect()),
        zones_read: &zones,
        resources: resource_names.as_ref().map(|names| names.iter().map(String::as_str).collect()),
        resources_read: &resources,
        egress: node.as_ref().and_then(|node| node.egress.as_ref()),
    };
    let feeds: BTreeMap<String, Feed> =
        understood(feed_items.as_deref(), |name, item| feeds::read(name, item, &known, around));
    section.finish();

    if let (Some(read), Some(item)) = (&node, &node_item) {
        links(item, read.link, here, zone_items.as_deref().unwrap_or_default(), &zones);
    }
    if let Some(here) = here {
        streams(&all_items, &resources, here, &zones);
    }
    if let Some(lease) = node.as_ref().and_then(|node| node.lease.as_ref())
        && !resources.values().any(Resource::could_keep_a_lease)
        && !resources.is_empty()
    {
        lease.wrong(
            "is kept in the databases of resources with a front, and there is none",
            "a resource with fronts and postgres.dsn of its placements; or no lease",
        );
    }
    slots(&all_items);
    listeners.check();
    let mut drivers = drivers;
    drivers::trust(&mut drivers, &resources);
    Some(Config { node: node?.node?, zones, drivers, resources, feeds })
}

/// The entries that could be read; what is missing here has been noted as a problem.
fn understood<'a, T>(
    items: Option<&[(&'a str, Item<'a>)]>,
    mut read: impl FnMut(&'a str, &Item<'a>) -> Option<T>,
) -> BTreeMap<String, T> {
    let entries = items.unwrap_or_default().iter();
    entries.filter_map(|(name, item)| Some(((*name).to_owned(), read(name, item)?))).collect()
}

/// A node that reaches another over the link needs certificates of its own.
fn links(
    node: &Item<'_>,
    has_link: bool,
    here: Option<&str>,
    items: &[(&str, Item<'_>)],
    zones: &BTreeMap<String, Zone>,
) {
    let linked = items.iter().find(|(name, _)| {
        here.is_some_and(|here| here != *name) && zones.get(*name).is_some_and(|zone| zone.link.is_some())
    });
    if let Some((name, _)) = linked
        && !has_link
    {
        node.wrong_key(
            format!("has no link, and zones.{name}.link needs this node's certificates"),
            "add link: {listen: 0.0.0.0:9443, tls: {cert: FILE, key: FILE, ca: FILE}}",
        );
    }
}

/// One end of a stream is at the node that leads: of two zones that are other nodes' it could run none.
fn streams(
    items: &[(&str, Item<'_>)],
    resources: &BTreeMap<String, Resource>,
    here: &str,
    zones: &BTreeMap<String, Zone>,
) {
    let linked = |zone: &str| zone != here && zones.get(zone).is_some_and(|zone| zone.link.is_some());
    for (name, item) in items {
        let Some(resource) = resources.get(*name).filter(|resource| resource.has_front()) else { continue };
        let placements: Vec<_> = resource.placements.values().collect();
        // Which zones a resource that chooses is in is not known yet.
        let [one, other] = placements[..] else { continue };
        let database = one.postgres.as_ref().or(other.postgres.as_ref());
        if resource.flexible.is_some() || database.is_none() || !linked(&one.zone) || !linked(&other.zone) {
            continue;
        }
        let (one, other) = (&one.zone, &other.zone);
        item.wrong_key(
            format!("is replicated between {one} and {other}, and this node in {here} reaches both by a link: a stream needs one end here"),
            format!("leave out zones.{one}.link, or that of {other}: this node reaches that zone's database itself"),
        );
    }
}

/// Resources whose names give the same replication slot.
fn slots(items: &[(&str, Item<'_>)]) {
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    for (name, item) in items {
        let safe = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
        let slot: String = name.chars().map(safe).collect();
        if let Some(other) = seen.insert(slot, name) {
            item.wrong_key(
                format!("has the same replication slot as `{other}`"),
                "names that differ in more than case and punctuation",
            );
        }
    }
}
