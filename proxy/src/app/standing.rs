//! A node that stands by: it is there, says who leads, and serves nobody, until it leads itself.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, AdminState};
use crate::fronts::sockets::Sockets;
use crate::leading::election::{Election, Standing};
use crate::notify;
use crate::telemetry::metrics;
use crate::upgrade::Heard;

/// How long answers under way may take when it begins to lead.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// Waits until it leads; false: the process is to end.
pub(super) async fn until_it_leads(
    election: &mut Election,
    state: AdminState,
    sockets: &Sockets,
    heard: &mut Heard,
) -> Result<bool> {
    metrics::leads(false);
    let standing = Arc::new(Standing::default());
    let stop = CancellationToken::new();
    let listener = admin::Listener::kept(sockets, &state.running.config().node.admin, &stop)?;
    let state = AdminState { standing: Some(standing.clone()), ..state };
    let served = tokio::spawn(admin::serve(listener, state, stop.clone()));
    // A service manager need not wait until it leads.
    notify::tell(notify::State::Ready);
    let leads = tokio::select! {
        () = election.stand(&standing) => true,
        () = heard.end() => false,
    };
    stop.cancel();
    // Who listens to events goes on to.
    let _ = tokio::time::timeout(LAST_ANSWERS, served).await;
    if leads {
        metrics::leads(true);
        tracing::info!("this node leads");
    } else {
        election.resign().await;
    }
    Ok(leads)
}
