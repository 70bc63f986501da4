//! Fronts that join and leave while the node runs.
//!
//! On a listener that is there an HTTP front is another host of it. On a new address it gets a pingora server of its own, since
//! one that runs takes no further listeners; and so does a PostgreSQL front, which has an address to itself.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::causes::chain;
use crate::config::model::Resource;
use crate::fronts::http::{Background, ServerSettings, server, service};
use crate::fronts::latencies::Recorder;
use crate::fronts::postgres::{self, PostgresFront};
use crate::fronts::routes::{ResourceFront, Routes};
use crate::fronts::sockets::{Kept, Sockets};
use crate::lock::lock;

use super::Led;

/// How long sessions of a PostgreSQL front that leaves may take to end their transactions.
const GRACE: Duration = Duration::from_secs(2);

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
    /// PostgreSQL fronts that were there from the start.
    sessions: Vec<Arc<PostgresFront>>,
    /// Listeners that joined.
    joined: BTreeMap<SocketAddr, Joined>,
    /// PostgreSQL fronts that joined, by resource.
    postgres: BTreeMap<String, JoinedPostgres>,
}

impl State {
    /// All PostgreSQL fronts.
    fn postgres(&self) -> impl Iterator<Item = &PostgresFront> {
        self.sessions.iter().chain(self.postgres.values().map(|joined| &joined.front)).map(|front| &**front)
    }
}

struct Joined {
    routes: Arc<Routes>,
    fronts: Vec<Arc<ResourceFront>>,
    /// Ends its listener when dropped.
    _server: Background,
}

struct JoinedPostgres {
    front: Arc<PostgresFront>,
    /// Ends its listener, and its sessions when they have no transaction open, when dropped.
    _server: Background,
}

impl Fronts {
    /// With those that are there from the start.
    pub fn new(
        routes: Arc<Routes>,
        main: Vec<Arc<ResourceFront>>,
        sessions: Vec<Arc<PostgresFront>>,
        threads: usize,
        sockets: Arc<Sockets>,
    ) -> Self {
        Self { routes, threads, sockets, state: Mutex::new(State { main, sessions, ..State::default() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Whether the fronts of this resource could join now; which could not, and in words why.
    pub fn check(&self, resource: &Resource) -> Result<(), (&'static str, String)> {
        let free = |address: SocketAddr| {
            TcpListener::bind(address)
                .map(drop)
                .map_err(|error| format!("cannot listen on {address}: {error}"))
        };
        if let Some(postgres) = &resource.postgres {
            free(postgres.listen).map_err(|why| ("postgres", why))?;
        }
        let Some(http) = &resource.http else { return Ok(()) };
        let known =
            self.routes.listeners().contains(&http.listen) || self.state().joined.contains_key(&http.listen);
        if known { Ok(()) } else { free(http.listen).map_err(|why| ("http", why)) }
    }

    /// Its clients are served from now on.
    pub fn join(&self, led: &Led, recorder: &Arc<Recorder>) -> Result<(), String> {
        if let Some(front) = &led.postgres {
            self.join_postgres(led.name(), front)?;
        }
        let joined = led.front.as_ref().map_or(Ok(()), |front| self.join_http(front, recorder));
        if joined.is_err() {
            self.leave(led.name());
        }
        joined
    }

    fn join_postgres(&self, name: &str, front: &Arc<PostgresFront>) -> Result<(), String> {
        let listen = front.settings.listen;
        self.sockets.listener(listen).map_err(chain)?;
        let settings = ServerSettings { threads: self.threads, grace: GRACE, ..ServerSettings::default() };
        let mut pingora = server(settings);
        pingora.add_service(Kept::new(postgres::service(front), vec![listen], &self.sockets));
        let running = Background::run_out(pingora).map_err(chain)?;
        let joined = JoinedPostgres { front: front.clone(), _server: running };
        self.state().postgres.insert(name.to_owned(), joined);
        Ok(())
    }

    fn join_http(&self, front: &Arc<ResourceFront>, recorder: &Arc<Recorder>) -> Result<(), String> {
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

    /// Its clients are served no more; the listener that only it had closes. Takes as long as sessions may take to end.
    pub fn leave(&self, resource: &str) {
        let mut state = self.state();
        let stays = |front: &Arc<ResourceFront>| *front.name != *resource;
        if !state.main.iter().all(stays) {
            state.main.retain(stays);
            keep(&self.routes, &state.main);
        }
        for joined in state.joined.values_mut() {
            joined.fronts.retain(stays);
            keep(&joined.routes, &joined.fronts);
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
        let sessions = state.postgres.remove(resource);
        let staying = state.sessions.iter().filter(|front| *front.name == *resource);
        staying.chain(sessions.as_ref().map(|joined| &joined.front)).for_each(|front| front.leave());
        state.sessions.retain(|front| *front.name != *resource);
        if let Some(JoinedPostgres { front, .. }) = &sessions {
            self.sockets.forget(front.settings.listen);
        }
        drop(state);
        // Joins threads.
        drop((ended, sessions));
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

    /// Has sessions of PostgreSQL fronts end, each when it has no transaction open.
    pub fn end_sessions(&self) {
        self.state().postgres().for_each(PostgresFront::leave);
    }

    /// Connections of clients to PostgreSQL fronts.
    pub fn sessions(&self) -> usize {
        self.state().postgres().map(PostgresFront::sessions).sum()
    }

    /// Has what the access logs keep written, each within `patience`.
    pub fn write_out(&self, patience: Duration) {
        let state = self.state();
        let joined = state.joined.values().flat_map(|joined| &joined.fronts);
        for access in state.main.iter().chain(joined).filter_map(|front| front.access.as_ref()) {
            access.write_out(patience);
        }
    }

    /// Sets the gauges of the fronts that joined, and of PostgreSQL's that are still there.
    pub fn measure(&self) {
        let state = self.state();
        state.sessions.iter().for_each(|front| front.measure());
        for joined in state.joined.values() {
            joined.routes.look();
        }
        for joined in state.postgres.values() {
            joined.front.measure();
        }
    }
}

fn keep(routes: &Routes, fronts: &[Arc<ResourceFront>]) {
    if let Err(error) = routes.keep(fronts) {
        tracing::error!(error = chain(error), "a front that has left is still served");
    }
}
