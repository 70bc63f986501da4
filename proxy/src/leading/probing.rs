//! Probes of a resource's placements, wherever their drivers say they are.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::model::Placement;
use crate::controller::answering::{TIMEOUT, target};
use crate::controller::live::Live;
use crate::feeds::prober::{Pace, PlacementKey, ProbeBoard, Prober};

/// Probes every placement until `stop`; one whose place changes is probed there from then on.
pub(super) fn probe(live: &Arc<Live>, stop: &CancellationToken, tasks: &TaskTracker) -> Arc<ProbeBoard> {
    let board = Arc::new(ProbeBoard::default());
    let mut changes = live.changes();
    let mut known = live.load();
    let pace = Pace { step: known.policy.step, timeout: TIMEOUT };
    let mut prober = Prober::new(board.clone(), pace);
    for placement in known.placements.values() {
        prober.watch(PlacementKey::new(&live.name, &placement.zone), target(placement));
    }
    let (live, stop) = (live.clone(), stop.clone());
    tasks.spawn(async move {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
            let now = live.load();
            for placement in now.placements.values() {
                let same =
                    known.placements.get(&placement.zone).is_some_and(|old| same_place(old, placement));
                if !same {
                    prober.watch(PlacementKey::new(&live.name, &placement.zone), target(placement));
                }
            }
            known = now;
        }
    });
    board
}

fn same_place(a: &Placement, b: &Placement) -> bool {
    let database = |placement: &Placement| {
        placement.postgres.as_ref().map(|database| (database.dsn.clone(), database.heartbeat))
    };
    a.http == b.http && a.upstream == b.upstream && a.probe == b.probe && database(a) == database(b)
}
