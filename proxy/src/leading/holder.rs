//! By what the databases know a node that leads.

use std::path::Path;

use anyhow::{Context, Result};

use crate::config::model::Config;

const FILE: &str = "holder";

/// The number of the node of this state directory: made the first time.
pub(super) fn id(state: &Path) -> Result<String> {
    let file = state.join(FILE);
    match std::fs::read_to_string(&file) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| file.display().to_string()),
    }
    another(state)
}

/// A new one: another node has that which is there.
pub(super) fn another(state: &Path) -> Result<String> {
    let file = state.join(FILE);
    let id = crate::rng::id();
    std::fs::write(&file, format!("{id}\n")).with_context(|| file.display().to_string())?;
    Ok(id)
}

/// What people call it; nodes of one name are told apart by their machines.
pub fn name(config: &Config) -> String {
    format!("{} on {}", config.node.name, rustix::system::uname().nodename().to_string_lossy())
}
