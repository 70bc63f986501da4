//! The admin listener: API, metrics, probes.
//!
//! Who may use which route: [`access`], `docs/access.md`.
//!
//! | route | |
//! |---|---|
//! | `GET /api/v1/resources?limit&after` | every resource, by name; `Link: rel=next` where there are more |
//! | `POST /api/v1/resources?dry_run` | reserve one (docs/reservations.md) → 201 + Location |
//! | `DELETE /api/v1/resources/{id}` | drop one that was reserved → 204 |
//! | `GET /api/v1/resources/{id}/shadow`, `PUT`, `DELETE` | `{enabled, capacity}`, with ETag and If-Match; DELETE: as the policy has it |
//! | `GET /api/v1/resources/{id}/scaling`, `PUT`, `DELETE` | `{capacity: {ZONE: WORKERS}}` |
//! | `GET /api/v1/resources/{id}` | one, with placements, stream, gate and problems |
//! | `GET /api/v1/resources/{id}/score` | the last decision: terms, guards, why not now |
//! | `GET /api/v1/resources/{id}/forecast` | the present fan by step, or why it abstains; how far to trust it |
//! | `GET /api/v1/resources/{id}/latency?from&to&step` | quantiles of the request path by segment and zone |
//! | `GET /api/v1/resources/{id}/history?series&resolution&from&to&limit&cursor` | what was measured, decided and forecast |
//! | `GET /api/v1/resources/{id}/replication` | the stream to the shadow |
//! | `GET …/replication/parameters`, `PUT …/replication`, `DELETE` | the policy's section `replication` |
//! | `GET /api/v1/resources/{id}/migrations` | its migrations, newest first |
//! | `POST /api/v1/resources/{id}/migrations` | `{to?, dry_run?}` → 202 + Location, or 200 with the plan |
//! | `GET /api/v1/resources/{id}/migrations/{mid}` | state, steps, held_ms, fence position, verification |
//! | `POST /api/v1/resources/{id}/migrations/{mid}/abort` | undo, before the commit |
//! | `POST /api/v1/resources/{id}/proposals/{pid}/approve` | the proposed move begins → 202 + Location |
//! | `POST /api/v1/resources/{id}/freeze` | `{why, for_ms?}`: no moves; `DELETE` lifts it |
//! | `GET /api/v1/freezes` | those in effect; `POST` and `DELETE` for every resource |
//! | `GET /api/v1/resources/{id}/verification` | the last verification: progress, differences |
//! | `POST /api/v1/resources/{id}/verification` | `{tables?, values?, rows_per_second?, share?, resume?}` → 202 |
//! | `DELETE /api/v1/resources/{id}/verification` | stop the one that runs; it can be resumed |
//! | `GET /api/v1/resources/{id}/zones` | which zone its shadow should live in: every candidate with its terms |
//! | `GET /api/v1/resources/{id}/doctor` | GO or NO-GO: what is wrong with its databases, and what mends it |
//! | `POST /api/v1/resources/{id}/reseed` | empty the shadow and copy again → 202 |
//! | `POST /api/v1/resources/{id}/reseed/tables` | `{tables}`: copies these again, beside the stream |
//! | `GET /api/v1/resources/{id}/schema` | in what the shadow's schema differs from its primary's |
//! | `POST /api/v1/resources/{id}/schema/sync` | `{dry_run?}`: makes on the shadow what only adds |
//! | `GET /api/v1/zones` | every zone: where it is, who has a placement there |
//! | `GET /api/v1/feeds` | what feeds say: readings, age, source, state, last error, next attempt |
//! | `GET /api/v1/feeds/{name}` | one of them |
//! | `POST /api/v1/feeds/{name}` | what somebody else posts to a webhook, signed → 202 |
//! | `GET /api/v1/config` | what the node runs with, key by key, and what differs in the files |
//! | `POST /api/v1/config/reload` | read the files anew: what changed, what needs a restart |
//! | `GET /api/v1/log` | what the node logs; `PUT {filter}` changes it while it runs, `DELETE` undoes that |
//! | `GET /api/v1/history` | migrations of all resources |
//! | `GET /api/v1/whoami` | who the caller is, and what it may do |
//! | `POST /api/v1/session` | `{token}` → a cookie that stands for it; `DELETE` ends it |
//! | `GET /api/v1/tokens`, `POST`, `DELETE /api/v1/tokens/{id}` | tokens; one is shown once, when it is made |
//! | `GET /api/v1/audit?limit&before&resource&who` | records of the audit, newest first |
//! | `GET /api/v1/openapi.json` | this table for programs, OpenAPI 3.1 |
//! | `GET /api/v1/events` | what changes, as it does, as server-sent events (`?resource=`, docs/events.md) |
//! | `GET /`, `/dashboard/…` | the dashboard |
//! | `GET`, `POST /api/v1/lead` | whether this node leads, where several may |
//! | `GET /metrics`, `/livez`, `/readyz?verbose` | |

pub mod access;
mod access_routes;
mod assets;
mod changes;
mod events;
mod feeds;
mod history;
mod lead;
mod listener;
mod log;
pub(crate) mod openapi;
mod problem;
mod routes;
mod sent;
mod serving;

use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use access::Identities;

use crate::audit::Audit;
use crate::controller::events::Events;
use crate::controller::freezes::Freezes;
use crate::feeds::external::board::FeedBoard;
use crate::history::History;
use crate::leading::changes::Changes;
use crate::leading::running::Running;
use crate::leading::standing::Standing;
use crate::store::Journal;

pub use changes::SectionView;
pub use history::{HistoryView, LatencyPoint, LatencyView, RowView, SeriesView, moment};
pub use lead::LeadView;
pub use listener::{Listener, Peer};
pub use problem::Problem;
pub use sent::Sent;

/// Largest request body, bytes.
const BODY_LIMIT: usize = 64 << 10;

/// What the routes answer from.
#[derive(Clone)]
pub struct AdminState {
    /// The configuration and the controllers.
    pub running: Arc<Running>,
    /// Journal, and the migrations there were.
    pub journal: Arc<Journal>,
    /// Who is who.
    pub identities: Arc<Identities>,
    /// Where calls are written down.
    pub audit: Audit,
    /// What changes, as it does.
    pub events: Arc<Events>,
    /// What was measured, decided and forecast.
    pub history: History,
    /// What operators froze.
    pub freezes: Arc<Freezes>,
    /// Renders `/metrics`; none: a process without a recorder.
    pub metrics: Option<PrometheusHandle>,
    /// What other services say.
    pub feeds: FeedBoard,
    /// Changes what the node leads; none: a process that leads nothing.
    pub changes: Option<Arc<Changes>>,
    /// Another node leads; none: this one does.
    pub standing: Option<Arc<Standing>>,
    /// Held while a request with a key of its own is carried out.
    pub answers: Arc<tokio::sync::Mutex<()>>,
    /// Large answers as they were given last.
    pub sent: Arc<Sent>,
}

/// Serves until cancelled.
pub async fn serve(listener: Listener, state: AdminState, stop: CancellationToken) {
    let calls = TaskTracker::new();
    serving::serve(listener, routes::router(state, calls.clone()), stop).await;
    // Those whose callers have gone.
    calls.close();
    calls.wait().await;
}
