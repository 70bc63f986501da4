//! What runs: the configuration and the resources' controllers of this moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::config::model::Config;
use crate::controller::ResourceHandle;

/// Snapshots that are replaced as a whole.
pub struct Running {
    config: ArcSwap<Config>,
    resources: ArcSwap<BTreeMap<String, ResourceHandle>>,
}

impl Running {
    /// With this configuration; no resource is led yet.
    pub fn new(config: Arc<Config>) -> Arc<Self> {
        Arc::new(Self { config: ArcSwap::new(config), resources: ArcSwap::default() })
    }

    /// The configuration now.
    pub fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// Puts another one in its place.
    pub fn replace(&self, config: Arc<Config>) {
        self.config.store(config);
    }

    /// The ways to the controllers.
    pub fn resources(&self) -> Arc<BTreeMap<String, ResourceHandle>> {
        self.resources.load_full()
    }

    /// A controller runs from now on.
    pub fn joins(&self, name: &str, handle: ResourceHandle) {
        self.resources.rcu(|old| {
            let mut next = BTreeMap::clone(old);
            next.insert(name.to_owned(), handle.clone());
            next
        });
    }

    /// One does not any more.
    pub fn leaves(&self, name: &str) {
        self.resources.rcu(|old| {
            let mut next = BTreeMap::clone(old);
            next.remove(name);
            next
        });
    }
}
