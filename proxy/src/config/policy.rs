//! A policy file.

use std::time::Duration;

use migration::policy::{
    AfterRetire, Bound, Caches, Credentials, ExtraGuard, GuardedFact, KeptByExtensions, KeylessTables,
    MaterializedViews, Mode, OnDrainTimeout, Policy, PolicyParts, ReadsDuringHold, ReplicationMode, Reseed,
    SchemaFollows, UnloggedTables,
};

use super::error::{Position, Report};
use super::freeze::FreezeWindow;
use super::raw;
use super::walk::{Item, Section};

/// A policy file as far as it was understood.
pub(super) struct ReadPolicy {
    /// Its name, also when the rest is wrong: references to it are not dangling.
    pub(super) name: String,
    pub(super) policy: Option<Policy>,
    /// Its freeze windows.
    pub(super) freeze: Vec<FreezeWindow>,
    /// Where the name stands.
    pub(super) at: Position,
}

/// Items by dotted key, so that a broken rule finds its position.
struct Filled<'a> {
    items: Vec<Item<'a>>,
    /// What the decision gets as facts, resolved at the moment.
    freeze: Vec<FreezeWindow>,
}

impl<'a> Filled<'a> {
    /// Reads an optional key into `slot` and remembers where it stood.
    fn take<T>(
        &mut self,
        section: &mut Section<'a>,
        name: &'static str,
        slot: &mut T,
        read: impl FnOnce(&Item<'a>) -> Option<T>,
    ) {
        let Some(item) = section.optional(name) else { return };
        if let Some(value) = read(&item) {
            *slot = value;
            self.items.push(item);
        }
    }
}

/// Reads one file; `stem` is its name without `.yaml`, the policy's name unless it gives one.
pub(super) fn read(stem: &str, text: &str, report: &Report) -> ReadPolicy {
    let failed = ReadPolicy { name: stem.to_owned(), policy: None, freeze: Vec::new(), at: Position::START };
    let Some(document) = raw::parse(text, report) else { return failed };
    let root = Item::root(&document, report);
    let Some(mut section) = root.section() else { return failed };
    let mut parts = PolicyParts { name: stem.to_owned(), ..PolicyParts::default() };
    let mut filled = Filled { items: Vec::new(), freeze: Vec::new() };

    filled.take(&mut section, "name", &mut parts.name, |item| item.name().map(str::to_owned));
    filled.take(&mut section, "mode", &mut parts.mode, |item| {
        item.choice(&[("observe", Mode::Observe), ("advise", Mode::Advise), ("auto", Mode::Auto)])
    });
    for (name, read) in PARTS {
        if let Some(mut part) = section.optional(name).and_then(|item| item.section()) {
            read(&mut part, &mut filled, &mut parts);
            part.finish();
        }
    }
    section.finish();

    let name = parts.name.clone();
    let at = filled.items.iter().find(|item| item.key == "name").map_or(Position::START, Item::at);
    match Policy::new(parts) {
        Ok(policy) => ReadPolicy { name, policy: Some(policy), freeze: filled.freeze, at },
        Err(broken) => {
            let mut left_out = Vec::new();
            for error in broken {
                match filled.items.iter().find(|item| item.key == error.key) {
                    Some(item) => item.wrong("is out of range", error.what),
                    None => left_out.push(error),
                }
            }
            // A key that was not read has been reported as something else already, or is not here: then it has its usual value.
            if report.is_empty() {
                for error in left_out {
                    let section = error.key.split_once('.').map_or(error.key, |(section, _)| section);
                    let beside = filled.items.iter().find(|item| item.key.starts_with(section));
                    let at = beside.map_or(Position::START, Item::at);
                    report.note(
                        at,
                        error.key,
                        "is left out, and its usual value does not fit here",
                        error.what,
                    );
                }
            }
            ReadPolicy { name, policy: None, freeze: Vec::new(), at }
        }
    }
}

/// A policy with its sections `shadow` and `replication` as given here; what they leave out is as it was.
pub(super) fn changed(
    policy: &Policy,
    shadow_item: Option<&Item<'_>>,
    replication_item: Option<&Item<'_>>,
) -> Option<Policy> {
    let mut parts: PolicyParts = (**policy).clone();
    let mut filled = Filled { items: Vec::new(), freeze: Vec::new() };
    for (item, read) in [(shadow_item, shadow as Part), (replication_item, replication as Part)] {
        let Some(item) = item else { continue };
        let mut section = item.section()?;
        read(&mut section, &mut filled, &mut parts);
        section.finish();
    }
    match Policy::new(parts) {
        Ok(policy) => Some(policy),
        Err(broken) => {
            for error in broken {
                let tail = error.key.split_once('.').map_or(error.key, |(_, tail)| tail);
                let at = filled.items.iter().find(|item| item.key.ends_with(&format!(".{tail}")));
                if let Some(item) = at.or(replication_item).or(shadow_item) {
                    item.wrong("does not fit the policy", format!("{}: {}", error.key, error.what));
                }
            }
            None
        }
    }
}

/// Reads one mapping of the file.
type Part = for<'a> fn(&mut Section<'a>, &mut Filled<'a>, &mut PolicyParts);

const PARTS: [(&str, Part); 6] = [
    ("score", score),
    ("limits", limits),
    ("shadow", shadow),
    ("replication", replication),
    ("retire", retire),
    ("warm_up", warm_up),
];

fn score<'a>(section: &mut Section<'a>, filled: &mut Filled<'a>, parts: &mut PolicyParts) {
    let number = |item: &Item<'a>| item.number("a plain number, such as 0.25");
    if let Some(mut weights) = section.optional("weights").and_then(|item| item.section()) {
        filled.take(&mut weights, "latency", &mut parts.weights.latency, number);
        filled.take(&mut weights, "cost", &mut parts.weights.cost, number);
        filled.take(&mut weights, "utilization", &mut parts.weights.utilization, number);
        weights.finish();
    }
    filled.take(section, "threshold", &mut parts.threshold, number);
    filled.take(section, "sustain", &mut parts.sustain, Item::duration);
    filled.take(section, "horizon", &mut parts.horizon, Item::duration);
    filled.take(section, "confidence", &mut parts.confidence, number);
    filled.take(section, "disruption", &mut parts.disruption, number);
    filled.take(section, "hysteresis", &mut parts.hysteresis, number);
    let read_before = filled.items.len();
    filled.take(section, "step", &mut parts.step, Item::duration);
    if section.has("step") && filled.items.len() == read_before {
        // The step is wrong by itself: no further complaint about what is compared with it.
        parts.step = Duration::from_millis(100);
    }
}

fn limits<'a>(section: &mut Section<'a>, filled: &mut Filled<'a>, parts: &mut PolicyParts) {
    filled.take(section, "cooldown", &mut parts.cooldown, Item::duration);
    filled.take(section, "retry_after", &mut parts.retry_after, Item::duration);
    filled.take(section, "max_moves_per_day", &mut parts.max_moves_per_day, |item| item.count(1, 1000));
    filled.take(section, "max_lag", &mut parts.max_lag, Item::bytes);
    filled.take(section, "max_hold", &mut parts.max_hold, Item::duration);
    filled.take(section, "drain_timeout", &mut parts.drain_timeout, Item::duration);
    filled.take(section, "on_drain_timeout", &mut parts.on_drain_timeout, |item| {
        item.choice(&[("abort", OnDrainTimeout::Abort), ("terminate", OnDrainTimeout::Terminate)])
    });
    filled.take(section, "reads_during_hold", &mut parts.reads_during_hold, |item| {
        item.choice(&[("wait", ReadsDuringHold::Wait), ("go_on", ReadsDuringHold::GoOn)])
    });
    if let Some(mut release) = section.optional("release").and_then(|item| item.section()) {
        filled.take(&mut release, "first", &mut parts.release.first, |item| item.count(1, 1_000_000));
        filled.take(&mut release, "every", &mut parts.release.every, Item::duration);
        release.finish();
    }
    if let Some(mut rules) = section.optional("take_back").and_then(|item| item.section()) {
        filled.take(&mut rules, "failures", &mut parts.take_back.failures, Item::ratio);
        filled.take(&mut rules, "within", &mut parts.take_back.within, Item::duration);
        rules.finish();
    }
    filled.take(section, "guards", &mut parts.guards, extra_guards);
    filled.take(section, "proposal_expires", &mut parts.proposal_expires, Item::duration);
    filled.take(section, "approvals", &mut parts.approvals, |item| item.count(1, 9));
    if let Some(item) = section.optional("freeze")
        && let Some(windows) =
            item.list("windows, each {from: CRON, for: DURATION, zone: TIME ZONE, why: TEXT}")
    {
        filled.freeze = windows.iter().filter_map(FreezeWindow::read).collect();
    }
}

/// `{fact, below | above, operators}`, each.
fn extra_guards(item: &Item<'_>) -> Option<Vec<ExtraGuard>> {
    let guards = item.list("guards, each {fact: NAME, below: NUMBER} or {fact: NAME, above: NUMBER}")?;
    // Each is read, so that each one's problems are noted.
    let read: Vec<Option<ExtraGuard>> = guards.iter().map(extra_guard).collect();
    read.into_iter().collect()
}

fn extra_guard(item: &Item<'_>) -> Option<ExtraGuard> {
    let mut section = item.section()?;
    let facts = GuardedFact::ALL.map(|fact| (fact.name(), fact));
    let names = facts.map(|(name, _)| name).join(", ");
    let fact = section.required("fact", &format!("one of {names}")).and_then(|item| item.choice(&facts));
    let limit = |item: &Item<'_>| match fact? {
        GuardedFact::LagBytes => item.bytes().map(|bytes| bytes.0 as f64),
        GuardedFact::LatencyMs
        | GuardedFact::PrimaryProbeMs
        | GuardedFact::ShadowProbeMs
        | GuardedFact::ShadowRttMs
        | GuardedFact::ShadowRouteAge => item.duration().map(|span| span.as_secs_f64() * 1000.0),
        GuardedFact::PrimaryUtilization
        | GuardedFact::ShadowUtilization
        | GuardedFact::ShadowLoss
        | GuardedFact::MirroredDifferent => item.ratio().map(migration::units::Ratio::get),
        GuardedFact::PrimaryCost | GuardedFact::ShadowCost => item.cost_per_hour(),
    };
    let below = section.optional("below");
    let above = section.optional("above");
    let bound = match (&below, &above) {
        (Some(at), None) => limit(at).map(Bound::Below),
        (None, Some(at)) => limit(at).map(Bound::Above),
        _ => {
            item.wrong("has not exactly one limit", "either `below` or `above`");
            None
        }
    };
    let operators = section.optional("operators").and_then(|item| item.boolean());
    section.finish();
    Some(ExtraGuard { fact: fact?, bound: bound?, binds_operator: operators.unwrap_or(false) })
}

fn shadow<'a>(section: &mut Section<'a>, filled: &mut Filled<'a>, parts: &mut PolicyParts) {
    filled.take(section, "enabled", &mut parts.shadow_enabled, Item::boolean);
    filled.take(section, "capacity", &mut parts.shadow_capacity, Item::ratio);
    let number = |item: &Item<'a>| item.number("a plain number, such as 0.3");
    if let Some(mut zones) = section.optional("zones").and_then(|item| item.section()) {
        let rules = &mut parts.zones;
        filled.take(&mut zones, "allow", &mut rules.allow, names_of_zones);
        filled.take(&mut zones, "deny", &mut rules.deny, names_of_zones);
        filled.take(&mut zones, "residency", &mut rules.residency, countries);
        filled.take(&mut zones, "min_distance_km", &mut rules.min_distance_km, |item| {
            item.number("a plain number of kilometres, such as 100")
        });
        filled.take(&mut zones, "same_grid", &mut rules.same_grid, Item::boolean);
        zones.finish();
    }
    if let Some(item) = section.optional("choose")
        && let Some(mut choose) = item.section()
    {
        let weights = &mut parts.zones.weights;
        filled.take(&mut choose, "distance", &mut weights.distance, number);
        filled.take(&mut choose, "history", &mut weights.history, number);
        filled.take(&mut choose, "cost", &mut weights.cost, number);
        choose.finish();
        filled.items.push(item);
    }
}

fn names_of_zones(item: &Item<'_>) -> Option<Vec<String>> {
    let right = "names of zones, PROVIDER/REGION or PROVIDER/*";
    item.list(right)?.iter().map(|item| item.text(right).map(str::to_owned)).collect()
}

fn countries(item: &Item<'_>) -> Option<Vec<String>> {
    item.list("country codes, such as DE")?
        .iter()
        .map(|item| super::node::country_code(item).map(str::to_owned))
        .collect()
}

fn replication<'a>(section: &mut Section<'a>, filled: &mut Filled<'a>, parts: &mut PolicyParts) {
    filled.take(section, "mode", &mut parts.replication, |item| {
        let modes = [ReplicationMode::Async, ReplicationMode::Sync, ReplicationMode::Hybrid];
        item.choice(&modes.map(|mode| (mode.name(), mode)))
    });
    filled.take(section, "critical", &mut parts.critical, critical);
    let critical_read =
        |item: &Item<'_>| item.key.ends_with("replication.critical") || item.key.ends_with("value.critical");
    if section.has("critical") && !filled.items.iter().any(critical_read) {
        // The list is wrong by itself: no further complaint that there is none.
        parts.critical = vec!["?".into()];
        parts.replication = ReplicationMode::Hybrid;
    }
    if let Some(mut fallback) = section.optional("fallback").and_then(|item| item.section()) {
        filled.take(&mut fallback, "after", &mut parts.fallback_after, Item::duration);
        filled.take(&mut fallback, "back", &mut parts.fallback_back, Item::duration);
        let mut to = ReplicationMode::Async;
        filled.take(&mut fallback, "to", &mut to, |item| item.choice(&[("async", ReplicationMode::Async)]));
        fallback.finish();
    }
    if let Some(mut copy) = section.optional("copy").and_then(|item| item.section()) {
        filled.take(&mut copy, "sessions", &mut parts.copy_sessions, |item| item.count(1, 32));
        filled.take(&mut copy, "rate", &mut parts.copy_rate, |item| item.bytes().map(Some));
        copy.finish();
    }
    filled.take(section, "schema", &mut parts.schema, |item| {
        let all = [SchemaFollows::Manual, SchemaFollows::Additions, SchemaFollows::All];
        item.choice(&all.map(|follows| (follows.name(), follows)))
    });
    filled.take(section, "keyless", &mut parts.keyless, |item| {
        item.choice(&[("refuse", KeylessTables::Refuse), ("identify", KeylessTables::Identify)])
    });
    filled.take(section, "unlogged", &mut parts.unlogged, |item| {
        item.choice(&[
            ("refuse", UnloggedTables::Refuse),
            ("empty", UnloggedTables::Empty),
            ("carry", UnloggedTables::Carry),
        ])
    });
    filled.take(section, "extensions", &mut parts.extensions, |item| {
        item.choice(&[("carry", KeptByExtensions::Carry), ("leave", KeptByExtensions::Leave)])
    });
    if let Some(mut slot) = section.optional("slot").and_then(|item| item.section()) {
        filled.take(&mut slot, "budget", &mut parts.slot.budget, Item::bytes);
        filled.take(&mut slot, "alarm", &mut parts.slot.alarm, Item::ratio);
        filled.take(&mut slot, "reseed", &mut parts.slot.reseed, |item| {
            item.choice(&[("manual", Reseed::Manual), ("auto", Reseed::Auto)])
        });
        slot.finish();
    }
}

/// Tables as `schema.table`, exactly as the database spells them, each once.
fn critical(item: &Item<'_>) -> Option<Vec<String>> {
    const RIGHT: &str = "schema.table, such as public.payments";
    let mut tables: Vec<String> = Vec::new();
    let mut right = true;
    for item in item.list(RIGHT)? {
        let Some(text) = item.text(RIGHT) else {
            right = false;
            continue;
        };
        let what = match text.split_once('.') {
            Some((schema, table)) if !schema.is_empty() && !table.is_empty() => {
                if !tables.iter().any(|known| known == text) {
                    tables.push(text.to_owned());
                    continue;
                }
                format!("`{text}` is there twice")
            }
            _ => format!("`{text}` is not the name of a table with its schema"),
        };
        item.wrong(what, RIGHT);
        right = false;
    }
    right.then_some(tables)
}

fn retire<'a>(section: &mut Section<'a>, filled: &mut Filled<'a>, parts: &mut PolicyParts) {
    filled.take(section, "after", &mut parts.retire_after, Item::duration);
    filled.take(section, "require_verified", &mut parts.require_verified, Item::boolean);
    filled.take(section, "then", &mut parts.after_retire, |item| {
        item.choice(&[("keep", AfterRetire::Keep), ("deprovision", AfterRetire::Deprovision)])
    });
}

fn warm_up<'a>(section: &mut Section<'a>, filled: &mut Filled<'a>, parts: &mut PolicyParts) {
    filled.take(section, "mirror", &mut parts.mirror.share, Item::ratio);
    filled.take(section, "paths", &mut parts.mirror.paths, |item| {
        item.list("beginnings of paths, such as /products")?.iter().map(Item::url_path).collect()
    });
    filled.take(section, "credentials", &mut parts.mirror.credentials, |item| {
        item.choice(&[
            ("skip", Credentials::Skip),
            ("strip", Credentials::Strip),
            ("send", Credentials::Send),
        ])
    });
    filled.take(section, "materialized_views", &mut parts.materialized_views, |item| {
        item.choice(&[("refresh", MaterializedViews::Refresh), ("leave", MaterializedViews::Leave)])
    });
    filled.take(section, "caches", &mut parts.caches, |item| {
        item.choice(&[("fill", Caches::Fill), ("leave", Caches::Leave)])
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::error::ConfigErrors;

    #[test]
    fn what_is_left_out_has_to_fit_as_well() {
        let wrong = |text: &str| {
            let report = Report::new("p.yaml");
            let read = read("p", text, &report);
            assert!(read.policy.is_none(), "{text}");
            ConfigErrors::of(report).to_string()
        };
        let text = wrong("mode: auto\nscore: {step: 200ms}\n");
        assert!(
            text.contains("p.yaml:2:15  score.horizon  is left out, and its usual value does not fit here"),
            "{text}"
        );
        assert!(wrong("score: {step: 2h}\n").contains("score.sustain"));
        let text = wrong("score: {step: 200ms, horizon: soon}\n");
        assert!(text.contains("soon") && !text.contains("left out"), "{text}");
    }
}
