//! Fronts that join and leave while the node runs.
//!
//! On a listener that is there a front is another host of it. On a new address it gets a pingora server of its own, since
//! one that runs takes no further listeners.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::config::model::Resource;
use crate::controller::effects::chain;
use crate::fronts::http::{Background, ServerSettings, server, service};
use crate::fronts::latencies::Recorder;
use crate::fronts::routes::{ResourceFront, Routes};
use crate::fronts::sockets::{Kept, Sockets};
use crate::lock::lock;

/// The fronts of a node.
pub struct Fronts {
    routes: Arc<Routes>,
    threads: usize,
    sockets: Arc<Sockets>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Of the listeners that were there from the start.
    main: Vec<Arc<ResourceFront>>,
    /// Listeners that joined.
    joined: BTreeMap<SocketAddr, Joined>,
}

struct Joined {
    routes: Arc<Routes>,
    fronts: Vec<Arc<ResourceFront>>,
    /// Ends its listener when dropped.
    _server: Background,
}

impl Fronts {
    /// With those that are there from the start.
    pub fn new(
        routes: Arc<Routes>,
        main: Vec<Arc<ResourceFront>>,
        threads: usize,
        sockets: Arc<Sockets>,
    ) -> Self {
        Self { routes, threads, sockets, state: Mutex::new(State { main, joined: BTreeMap::new() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Whether the front of this resource could join now; in words why not.
    pub fn check(&self, resource: &Resource) -> Result<(), String> {
        if resource.postgres.is_some() {
            return Err(
                "a PostgreSQL front cannot join a node that runs: give the resource in its file".into()
            );
        }
        let Some(http) = &resource.http else { return Ok(()) };
        let known =
            self.routes.listeners().contains(&http.listen) || self.state().joined.contains_key(&http.listen);
        if known {
            return Ok(());
        }
        TcpListener::bind(http.listen)
            .map(drop)
            .map_err(|error| format!("cannot listen on {}: {error}", http.listen))
    }

    /// Its clients are served from now on.
    pub fn join(&self, front: &Arc<ResourceFront>, recorder: &Arc<Recorder>) -> Result<(), String> {
        let mut state = self.state();
        if self.routes.listeners().contains(&front.listen) {
            let mut all = state.main.clone();
            all.push(front.clone());
            self.routes.publish(&all).map_err(chain)?;
            state.main = all;
            return Ok(());
        }
        if let Some(joined) = state.joined.get_mut(&front.listen) {
            let mut all = joined.fronts.clone();
            all.push(front.clone());
            joined.routes.publish(&all).map_err(chain)?;
            joined.fronts = all;
            return Ok(());
        }
        let fronts = vec![front.clone()];
        let routes = Routes::new(&fronts).map_err(chain)?;
        self.sockets.listener(front.listen).map_err(chain)?;
        let mut pingora = server(ServerSettings { threads: self.threads, ..ServerSettings::default() });
        let service = service(&pingora, &routes, recorder);
        pingora.add_service(Kept::new(service, vec![front.listen], &self.sockets));
        let running = Background::run(pingora).map_err(chain)?;
        state.joined.insert(front.listen, Joined { routes, fronts, _server: running });
        Ok(())
    }

    /// Its clients are served no more; the listener that only it had closes.
    pub fn leave(&self, resource: &str) {
        let mut state = self.state();
        let stays = |front: &Arc<ResourceFront>| *front.name != *resource;
        if !state.main.iter().all(stays) {
            state.main.retain(stays);
            // Fewer fronts cannot be harder to tell apart.
            let _ = self.routes.publish(&state.main);
        }
        for joined in state.joined.values_mut() {
            joined.fronts.retain(stays);
            let _ = joined.routes.publish(&joined.fronts);
        }
        let empty: Vec<SocketAddr> = state
            .joined
            .iter()
            .filter(|(_, joined)| joined.fronts.is_empty())
            .map(|(address, _)| *address)
            .collect();
        for address in &empty {
            self.sockets.forget(*address);
        }
        let ended: Vec<Joined> = empty.iter().filter_map(|address| state.joined.remove(address)).collect();
        drop(state);
        // Joins a thread.
        drop(ended);
    }

    /// Connections of clients that have a request, or may have one soon.
    pub fn busy(&self) -> usize {
        let joined: usize = self.state().joined.values().map(|joined| joined.routes.busy()).sum();
        self.routes.busy() + joined
    }

    /// Whether requests are held.
    pub fn holds(&self) -> bool {
        self.routes.holds() || self.state().joined.values().any(|joined| joined.routes.holds())
    }

    /// Tells HTTP/1.1 clients, with the answer that they get, that their connection closes; or does so no more.
    pub fn announce(&self, leave: bool) {
        self.routes.clients().leave(leave);
        self.state().joined.values().for_each(|joined| joined.routes.clients().leave(leave));
    }

    /// Sets the gauges of the fronts that joined.
    pub fn measure(&self) {
        for joined in self.state().joined.values() {
            joined.routes.look();
        }
    }
}
