//! The sections of a resource that can be changed while it is led, as the API shows and takes them.

use std::time::Duration;

use migration::policy::{Policy, PolicyError, PolicyParts, Reseed};
use migration::units::{ByteCount, Ratio};
use serde_json::{Value, json};

use crate::config::model::Resource;

/// A section as it is in force: `shadow`, `replication` or `scaling`; null for any other.
pub fn of(resource: &Resource, section: &str) -> Value {
    let policy = &resource.policy;
    match section {
        "shadow" => json!({
            "enabled": policy.shadow_enabled,
            "capacity": share(policy.shadow_capacity),
        }),
        "replication" => json!({
            "mode": policy.replication.name(),
            "critical": policy.critical,
            "fallback": { "after": span(policy.fallback_after), "back": span(policy.fallback_back), "to": "async" },
            "copy": copy(policy),
            "schema": policy.schema.name(),
            "slot": {
                "budget": bytes(policy.slot.budget),
                "alarm": share(policy.slot.alarm),
                "reseed": match policy.slot.reseed { Reseed::Manual => "manual", Reseed::Auto => "auto" },
            },
        }),
        "scaling" => {
            let capacity: serde_json::Map<String, Value> = resource
                .placements
                .iter()
                .map(|(zone, placement)| (zone.clone(), placement.capacity.into()))
                .collect();
            json!({ "capacity": capacity })
        }
        _ => Value::Null,
    }
}

fn copy(policy: &Policy) -> Value {
    let mut copy = json!({ "sessions": policy.copy_sessions });
    if let (Some(rate), Some(copy)) = (policy.copy_rate, copy.as_object_mut()) {
        copy.insert("rate".into(), bytes(rate).into());
    }
    copy
}

/// Names this state of a section: another one has another tag.
pub fn tag(section: &Value) -> String {
    use sha2::{Digest, Sha256};
    // Keys are sorted: the same section gives the same text.
    let digest = Sha256::digest(section.to_string().as_bytes());
    format!("\"{}\"", &crate::audit::chain::hex(&digest)[..16])
}

/// Nothing differs that could be applied.
pub fn same(a: &Resource, b: &Resource) -> bool {
    let capacities = |resource: &Resource| -> Vec<(String, u32, Option<f64>)> {
        let of = |(zone, it): (&String, &crate::config::model::Placement)| {
            (zone.clone(), it.capacity, it.cost_per_hour)
        };
        resource.placements.iter().map(of).collect()
    };
    a.policy == b.policy && a.freeze == b.freeze && capacities(a) == capacities(b)
}

/// `next`, but with the step of `now`: forecasters and histories are built for one step.
///
/// # Errors
/// In words: what of `next` does not fit that step.
pub fn keeping_the_step(next: &Policy, now: &Policy) -> Result<Policy, String> {
    let parts = PolicyParts { step: now.step, ..(**next).clone() };
    Policy::new(parts).map_err(|broken| {
        let words: Vec<String> = broken.iter().map(ToString::to_string).collect();
        format!("score.step stays {} until a restart, and with that {}", span(now.step), words.join("; "))
    })
}

/// `now` with this section as `next` has it; what else differs in `next` is not in force before the files are read anew.
pub fn with(now: &Resource, next: &Resource, section: &str) -> Result<Resource, Vec<PolicyError>> {
    let mut changed = now.clone();
    let (mut parts, read) = ((*now.policy).clone(), (*next.policy).clone());
    match section {
        "shadow" => {
            (parts.shadow_enabled, parts.shadow_capacity) = (read.shadow_enabled, read.shadow_capacity);
            parts.zones = read.zones;
        }
        "replication" => {
            (parts.replication, parts.critical) = (read.replication, read.critical);
            (parts.fallback_after, parts.fallback_back) = (read.fallback_after, read.fallback_back);
            (parts.copy_sessions, parts.copy_rate) = (read.copy_sessions, read.copy_rate);
            (parts.schema, parts.keyless) = (read.schema, read.keyless);
            (parts.unlogged, parts.extensions) = (read.unlogged, read.extensions);
            parts.slot = read.slot;
        }
        _ => {
            for (zone, placement) in &mut changed.placements {
                if let Some(next) = next.placements.get(zone) {
                    placement.capacity = next.capacity;
                }
            }
        }
    }
    changed.policy = Policy::new(parts)?;
    Ok(changed)
}

fn share(ratio: Ratio) -> String {
    ratio.to_string()
}

/// In the largest unit that says it without a fraction.
fn span(span: Duration) -> String {
    let ms = span.as_millis();
    match ms {
        0 => "0s".into(),
        _ if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        _ if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        _ if ms.is_multiple_of(1_000) => format!("{}s", ms / 1_000),
        _ => format!("{ms}ms"),
    }
}

fn bytes(count: ByteCount) -> String {
    for (unit, size) in [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if count.0 >= size && count.0.is_multiple_of(size) {
            return format!("{}{unit}", count.0 / size);
        }
    }
    format!("{}B", count.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn a_section_is_changed_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("godwit.yaml");
        std::fs::create_dir(folder.path().join("policies")).unwrap();
        let written = |capacity: u32, policy: &str| {
            let text = format!(
                "node: {{ name: n, zone: here, state: state }}\nzones: {{ here: {{}}, there: {{}} }}\n\
                 resources: {{ orders: {{ fronts: {{ http: {{ listen: \"127.0.0.1:1\" }} }}, primary: here, policy: p, \
                 placements: {{ here: {{ http: [\"127.0.0.1:2\", \"127.0.0.1:3\"], capacity: {capacity}, cost: {capacity}/h }}, \
                 there: {{ http: [\"127.0.0.1:4\"] }} }} }} }}\n"
            );
            std::fs::write(&file, text).unwrap();
            std::fs::write(folder.path().join("policies/p.yaml"), policy).unwrap();
            config::load(&file).unwrap().resources["orders"].clone()
        };
        let now = written(1, "mode: observe\n");
        let frozen =
            "limits: { freeze: [{ from: \"0 8 * * FRI\", for: 2h, zone: Europe/Berlin, why: x }] }\n";
        let next = written(
            2,
            &format!(
                "mode: auto\nshadow: {{ enabled: false, capacity: 30%, zones: {{ residency: [DE] }} }}\n\
                 replication: {{ mode: hybrid, critical: [public.a], schema: additions, keyless: identify, unlogged: empty, \
                 extensions: leave, slot: {{ budget: 1GiB }}, copy: {{ sessions: 2, rate: 1MiB }}, fallback: {{ after: 9s, back: 9s }} }}\n{frozen}"
            ),
        );
        assert!(now.freeze != next.freeze && !same(&now, &next));
        let mut all = now.clone();
        for section in config::overlay::SECTIONS {
            let one = with(&now, &next, section).unwrap();
            assert_eq!(of(&one, section), of(&next, section), "{section}");
            for other in config::overlay::SECTIONS.iter().filter(|other| **other != section) {
                assert_eq!(of(&one, other), of(&now, other), "{other} by {section}");
            }
            assert_eq!((&one.freeze, one.policy.mode), (&now.freeze, now.policy.mode), "{section}");
            all = with(&all, &next, section).unwrap();
        }
        // All three, and nothing of them is left out.
        let mode = next.policy.mode;
        assert_eq!(Policy::new(PolicyParts { mode, ..(*all.policy).clone() }).unwrap(), next.policy);
        assert_ne!(all.placements["here"].cost_per_hour, next.placements["here"].cost_per_hour);
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        for text in ["500ms", "5s", "3m", "24h"] {
            assert_eq!(span(crate::config::units::duration(text).unwrap()), text);
        }
        for text in ["512B", "64KiB", "16MiB", "8GiB"] {
            assert_eq!(bytes(crate::config::units::bytes(text).unwrap()), text);
        }
        assert_eq!(share(crate::config::units::ratio("12.5%").unwrap()), "12.5%");
    }

    #[test]
    fn a_policy_that_does_not_fit_the_step_is_refused() {
        let policy = |step: u64, horizon: u64| {
            let [step, horizon] = [step, horizon].map(Duration::from_secs);
            let parts = PolicyParts { step, horizon, ..PolicyParts::default() };
            Policy::new(parts).unwrap()
        };
        let now = policy(1, 600);
        assert_eq!(keeping_the_step(&policy(10, 3_600), &now), Ok(policy(1, 3_600)));
        let refused = keeping_the_step(&policy(10, 36_000), &now).expect_err("no forecast reaches further");
        assert!(
            refused.starts_with("score.step stays 1s until a restart, and with that score.horizon: "),
            "{refused}"
        );
        let (reaches, furthest) = (predictor::MAX_HORIZON, predictor::LEVELS[predictor::LEVELS.len() - 1]);
        assert_eq!(reaches, migration::policy::MOST_STEPS);
        assert!((furthest - migration::policy::MOST_CONFIDENCE).abs() < f64::EPSILON);
    }

    #[test]
    fn a_tag_tells_states_apart() {
        let one = tag(&json!({"enabled": true, "capacity": "25%"}));
        assert_eq!(one, tag(&json!({"capacity": "25%", "enabled": true})));
        assert_ne!(one, tag(&json!({"enabled": false, "capacity": "25%"})));
        assert!(one.starts_with('"') && one.len() == 18, "{one}");
    }
}
