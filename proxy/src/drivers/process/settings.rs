//! What the driver would do, in words; and the primary's settings as lines of a new cluster's configuration.

use std::collections::BTreeMap;

use crate::config::model::ProcessDriver;
use crate::drivers::Wanted;
use crate::drivers::ledger::{Action, Ledger};

/// Settings that a cluster on this machine does not take from another one: what it loads may not be installed here.
const LEFT_OUT: [&str; 1] = ["shared_preload_libraries"];

/// Lines of `postgresql.conf`.
pub(super) fn lines(settings: &BTreeMap<String, String>) -> String {
    let mut lines = String::new();
    let named = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'));
    for (name, value) in settings {
        if named(name) && !LEFT_OUT.contains(&name.as_str()) && !value.contains(['\n', '\r']) {
            lines.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
    }
    lines
}

/// What `action` would do now.
pub(super) fn steps(
    driver: &ProcessDriver,
    ledger: Option<&Ledger>,
    action: Action,
    wanted: &Wanted,
) -> Vec<String> {
    let now = ledger.and_then(|ledger| ledger.capacity);
    let mut steps = Vec::new();
    match action {
        Action::Provision => {
            if let Some(cluster) = &driver.cluster {
                let (data, listen) = (cluster.data.display(), cluster.listen);
                if !cluster.data.join("godwit.ready").exists() {
                    let count = wanted.settings.len();
                    steps.push(format!("make a cluster in {data} with {count} settings of the primary's"));
                }
                steps.push(format!("start the cluster in {data} at {listen}"));
            }
            steps.push(format!("start workers up to {} (now {})", wanted.capacity, now.unwrap_or(0)));
        }
        Action::Scale => {
            steps.push(format!("from {} to {} workers", now.unwrap_or(0), wanted.capacity));
        }
        Action::Deprovision => {
            steps.push(format!("stop {} workers", now.unwrap_or(0)));
            if let Some(cluster) = &driver.cluster {
                steps.push(format!("stop the cluster in {}; its data stays", cluster.data.display()));
            }
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_become_lines_that_cannot_break_out() {
        let settings = BTreeMap::from(
            [
                ("max_connections", "300"),
                ("search_path", "\"$user\", it's"),
                ("shared_preload_libraries", "somewhere_else"),
                ("bad name", "1"),
                ("datestyle", "iso\nfsync = off"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        assert_eq!(lines(&settings), "max_connections = '300'\nsearch_path = '\"$user\", it''s'\n");
    }
}
