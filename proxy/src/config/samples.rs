//! Configurations that unit tests elsewhere begin with.

use std::path::{Path, PathBuf};

use super::load;
use super::model::Resource;

/// What has [`orders`].
pub(crate) const ORDERS: &str = "node: { name: n, zone: near, state: s }\n\
    zones: { near: {}, far: {} }\n\
    resources: { orders: { fronts: { http: { listen: \"127.0.0.1:1\" } }, primary: near, policy: p, \
    placements: { near: { http: [\"127.0.0.1:2\"] }, far: { http: [\"127.0.0.1:3\"] } } } }\n";

/// Writes this configuration, and beside it the policy `p`, which only looks on. Its file.
pub(crate) fn write(folder: &Path, text: &str) -> PathBuf {
    let file = folder.join("godwit.yaml");
    std::fs::create_dir_all(folder.join("policies")).unwrap();
    std::fs::write(folder.join("policies/p.yaml"), "mode: observe\n").unwrap();
    std::fs::write(&file, text).unwrap();
    file
}

/// `orders`, which is served in `near` and has no database.
pub(crate) fn orders() -> Resource {
    let folder = tempfile::tempdir().unwrap();
    load(&write(folder.path(), ORDERS)).unwrap().resources.remove("orders").unwrap()
}
