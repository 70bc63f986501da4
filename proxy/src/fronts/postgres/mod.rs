//! The PostgreSQL front: clients of the database itself, whose sessions survive a cutover.
//!
//! One connection is one [`session`](self): greeted and let in by `login` (TLS, SCRAM by the role's verifier), given a session of
//! the database that is primary now (`backend`), and then passed through by `relay`, which knows from the messages' types alone where
//! transactions end. A cutover closes the [`turnstile`]: a session that stands between two transactions tells what it has
//! (`protocol::state`) and waits, while a connection to the next primary is made and brought to the same (that it can be is tried before: `rehearsal`). When the turnstile opens it
//! goes on there, or where it was. What cannot be carried ends the session with an error that names it.
//!
//! Clients may share connections (`pool`): then a session has one only for a transaction at a time, and its prepared statements are
//! renamed as they pass (`protocol::statements`). What it leaves in its connection goes with it, or keeps it there.
//!
//! What the front never does: it never sends anything twice, and parses no SQL (it looks for a few words: names of custom settings,
//! functions that leave a trace in a session).

pub mod protocol;
pub mod turnstile;

mod backend;
mod front;
mod login;
mod meters;
mod pool;
mod rehearsal;
mod relay;
mod session;
mod talk;
pub(crate) mod verifiers;

use std::sync::Arc;

use async_trait::async_trait;
use pingora::apps::ServerApp;
use pingora::listeners::{L4BufferSettings, ListenerConfig};
use pingora::protocols::Stream;
use pingora::server::ShutdownWatch;
use pingora::services::listening::Service;

pub use front::{Active, PostgresFront};
pub use login::TlsError;

/// The front as pingora serves it.
pub struct PostgresApp(Arc<PostgresFront>);

#[async_trait]
impl ServerApp for PostgresApp {
    async fn process_new(self: &Arc<Self>, stream: Stream, shutdown: &ShutdownWatch) -> Option<Stream> {
        session::serve(Arc::clone(&self.0), Box::new(stream), self.0.ends(shutdown)).await;
        None
    }
}

/// The service of one front. Buffers of pingora's own would cost each idle session 64 KiB: there are none.
pub fn service(front: &Arc<PostgresFront>) -> Service<PostgresApp> {
    let app = PostgresApp(Arc::clone(front));
    let mut service = Service::new(format!("postgres front of {}", front.name), app);
    let listener = ListenerConfig::tcp(front.settings.listen.to_string());
    service.add_listener(listener.l4_buffer(L4BufferSettings::unbuffered()));
    service
}
