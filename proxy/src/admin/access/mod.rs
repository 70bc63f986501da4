//! Who may do what on the admin listener.
//!
//! Every route is added to `Routes` together with its [`Permission`]; there is no other way to add one, and what is not in
//! that table is refused. Before a handler runs, `guard` has checked where the request says it comes from
//! (`origin`), who sent it (`identity`), and whether that [`Caller`] may do this to this resource. Handlers get the
//! caller as an argument, and leave out what it may not know of. A call that changes something is in the audit before it is
//! carried out (`recorded`).
//!
//! Callers are known by a token of this node, a session that stands for one, a client certificate, or a token of an OpenID Connect
//! issuer ([`oidc`]).

mod caller;
pub(super) mod guard;
mod identity;
pub mod oidc;
mod origin;
pub(super) mod rate;
mod recorded;
pub(super) mod session;
pub(super) mod table;

pub use caller::{Caller, Permission, Role, Scope, Via};
pub use identity::Identities;
pub(crate) use session::COOKIE as SESSION;
pub(super) use table::Routes;
