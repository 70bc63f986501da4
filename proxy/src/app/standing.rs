//! A node that stands by: it is there, says who leads, and serves nobody, until it leads itself.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::runtime::Handle;
use tokio::signal::unix::Signal;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, AdminState};
use crate::causes::chain;
use crate::config;
use crate::controller::freezes::Freezes;
use crate::drivers::ledger::Made;
use crate::fronts::sockets::Sockets;
use crate::leading::comparison::Comparison;
use crate::leading::election::{Election, Estate};
use crate::leading::standing::Standing;
use crate::leading::{self, Anew};
use crate::notify;
use crate::store::{Journal, Legacy, Overlay, OverlayFile};
use crate::telemetry::metrics;
use crate::upgrade::{Heard, Upgrade};

/// What a node that leads leaves, and takes over: all of it is in its state directory.
#[derive(Clone)]
pub(super) struct Belongings {
    pub(super) file: PathBuf,
    /// Its state directory.
    pub(super) state: PathBuf,
    pub(super) journal: Arc<Journal>,
    pub(super) freezes: Arc<Freezes>,
    pub(super) overlay: Arc<OverlayFile>,
    /// What it was started with, beside the files.
    pub(super) comparison: Arc<Comparison>,
    /// Its configuration has become another one.
    pub(super) changed: Arc<AtomicBool>,
    /// The journal says where its resources stand: the databases were asked.
    pub(super) settled: Arc<AtomicBool>,
}

impl Belongings {
    /// Takes what the API had changed on another node. Whose configuration differs leads without what does not fit it, and leaves it as it is.
    fn takes(&self, overlay: &Overlay) -> std::io::Result<()> {
        let fits =
            |overlay: &Overlay| config::load_with(&self.file, Some(&self.overlay.as_text(overlay))).map(drop);
        let (fitting, foreign) = match (fits(overlay), fits(&Overlay::default())) {
            (Ok(()), _) => (overlay.clone(), Overlay::default()),
            // Nobody knows what fits files that are wrong: the ones before stay.
            (_, Err(_)) => (self.overlay.content(), overlay.clone()),
            (Err(errors), _) => {
                let (fitting, foreign) = overlay.parted(|part| fits(part).is_ok());
                let resources = foreign.resources();
                tracing::error!(?resources, %errors, "what the API had changed on another node does not fit the configuration here: it is not in force");
                (fitting, foreign)
            }
        };
        let changed = fitting != self.overlay.content();
        if changed {
            self.overlay.write(fitting)?;
            self.changed.store(true, Ordering::Release);
        }
        self.overlay.keep_foreign(foreign)
    }

    /// Whether the configuration is another one by now, and can be started with.
    pub(super) fn are_others(&self) -> bool {
        // What did not fit may do so by now.
        if self.overlay.foreign() != Overlay::default()
            && let Err(error) = self.takes(&self.overlay.left())
        {
            tracing::error!(error = chain(error), "what the API had changed on another node cannot be kept");
        }
        self.changed.load(Ordering::Acquire) || self.read() == Some(true)
    }

    /// The same of the files alone; none: they are wrong, and the log says what is.
    fn read(&self) -> Option<bool> {
        let rewritten = self.comparison.rewritten();
        metrics::config_reloaded(rewritten.is_ok());
        let wrong = |errors| tracing::error!(%errors, "the configuration is not readable: the old one stays");
        rewritten.map_err(wrong).ok()
    }

    /// Says at each SIGHUP what the files are worth. Nothing of them matters before it leads, and then they are read in any case.
    async fn hang_ups(&self, signals: &mut Signal) {
        while signals.recv().await.is_some() {
            let estate = self.clone();
            // A panic in there was reported there.
            if let Ok(Some(rewritten)) = tokio::task::spawn_blocking(move || estate.read()).await {
                tracing::info!(rewritten, "configuration read anew: it is in force when this node leads");
            }
        }
    }
}

impl Estate for Belongings {
    fn leaves(&self) -> Result<Legacy, String> {
        let made = Made::all(&leading::drivers_directory(&self.state));
        self.journal.leaves(self.overlay.left(), made).map_err(chain)
    }

    fn inherits(&self, legacy: &Legacy) -> Result<(), String> {
        self.journal.inherits(legacy).map_err(chain)?;
        self.freezes.reload().map_err(chain)?;
        let directory = leading::drivers_directory(&self.state);
        for (name, made) in &legacy.made {
            // It comes from a database.
            if !matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]) {
                return Err(format!("{name:?} is no name of a driver's directory"));
            }
            made.clone().keep(&directory.join(name)).map_err(chain)?;
        }
        self.takes(&legacy.overlay).map_err(chain)?;
        self.note_serial(legacy.serial)
    }

    fn serial(&self) -> Result<Option<u64>, String> {
        self.journal.serial().map_err(chain)
    }

    fn note_serial(&self, serial: u64) -> Result<(), String> {
        self.journal.note_serial(serial).map_err(chain)
    }

    fn generation(&self, resource: &str) -> Option<u64> {
        if !self.settled.load(Ordering::Acquire) {
            return None;
        }
        Some(self.journal.latest(resource).ok()??.generation.0)
    }
}

/// How long answers under way may take when it begins to lead.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// Waits until it leads; false: the process is to end, or to become the next program.
pub(super) async fn until_it_leads(
    election: &mut Election,
    estate: &Belongings,
    state: AdminState,
    sockets: &Sockets,
    (heard, upgrade, hang_up): (&mut Heard, &Upgrade, &mut Signal),
) -> Result<bool> {
    metrics::leads(false);
    let standing = Arc::new(Standing::default());
    let stop = CancellationToken::new();
    let settings = state.running.config();
    let listener = admin::Listener::kept(sockets, &settings.node.admin, &stop)?;
    let state = AdminState { standing: Some(standing.clone()), ..state };
    let served = tokio::spawn(admin::serve(listener, state, stop.clone()));
    // A service manager need not wait until it leads.
    notify::tell(notify::State::Ready);
    let closes = async {
        // What a program before this one listened on is another node's to serve.
        standing.stands_by().await;
        sockets.only([settings.node.admin.listen]);
        std::future::pending::<()>().await;
    };
    let leads = tokio::select! {
        () = election.stand(&standing, estate) => true,
        () = heard.end(upgrade) => false,
        () = closes => false,
        () = estate.hang_ups(hang_up) => false,
    };
    stop.cancel();
    let _ = tokio::time::timeout(LAST_ANSWERS, served).await;
    if leads {
        metrics::leads(true);
        tracing::info!("this node leads");
    } else if !upgrade.begun() {
        // The next program has the same name: a lease that this one was about to take is its own.
        election.resign().await;
    }
    Ok(leads)
}

/// The lead of this node, renewed until it ends. When it is dropped another may have it at once; an upgrade executes the next program instead.
pub(super) struct Lead {
    runtime: Handle,
    ends: CancellationToken,
    kept: Option<JoinHandle<()>>,
}

impl Lead {
    pub(super) fn keep(
        mut election: Election,
        estate: Belongings,
        anew: Arc<Anew>,
        ends: CancellationToken,
        runtime: &Handle,
    ) -> Self {
        let ended = ends.clone();
        let kept = runtime.spawn(async move {
            match ended.run_until_cancelled(election.keep(&estate)).await {
                Some(why) => anew.begin(why),
                None => election.hand_over(&estate).await,
            }
        });
        Self { runtime: runtime.clone(), ends, kept: Some(kept) }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.ends.cancel();
        if let Some(kept) = self.kept.take() {
            // A panic in there was reported there.
            let _ = self.runtime.block_on(kept);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use migration::units::Timestamp;

    use super::*;
    use crate::store::Change;

    const CONFIG: &str = "node: { name: edge-1, zone: here, state: state }\n\
                          zones: { here: {}, there: {} }\n\
                          resources: { orders: { fronts: { http: { listen: \"127.0.0.1:1\" } }, primary: here, policy: p, \
                          placements: { here: { http: [\"127.0.0.1:2\"] }, there: { http: [\"127.0.0.1:3\"] } } } }\n";

    /// A node whose files are in this folder.
    fn node(folder: &Path) -> Belongings {
        let file = folder.join("godwit.yaml");
        if !file.exists() {
            config::samples::write(folder, CONFIG);
        }
        config::load(&file).unwrap();
        let state = folder.join("state");
        let journal = Arc::new(Journal::open(&state).unwrap());
        let overlay = Arc::new(OverlayFile::open(&state).unwrap());
        Belongings {
            freezes: Arc::new(Freezes::open(journal.clone()).unwrap()),
            comparison: Arc::new(Comparison::new(file.clone(), overlay.clone())),
            changed: Arc::default(),
            settled: Arc::default(),
            file,
            state,
            journal,
            overlay,
        }
    }

    #[test]
    fn a_node_leads_with_the_files_of_that_moment() {
        let folder = tempfile::tempdir().unwrap();
        let node = node(folder.path());
        let policy = folder.path().join("policies/p.yaml");
        assert!(!node.are_others(), "nobody has written anything");
        std::fs::write(&policy, "mode: brave\n").unwrap();
        assert!(!node.are_others(), "nobody could start with that");
        assert!(node.comparison.view().invalid.is_some(), "and nobody hears of it");
        std::fs::write(&policy, "mode: advise\n").unwrap();
        assert!(node.are_others(), "they are not in force");
    }

    #[test]
    fn what_the_api_changed_is_not_lost_by_a_node_that_it_does_not_fit() {
        let folder = tempfile::tempdir().unwrap();
        let other = node(folder.path());
        let mut overlay = Overlay::default();
        let cart = serde_json::json!({
            "fronts": {"http": {"listen": "127.0.0.1:4"}}, "primary": "here", "policy": "q",
            "placements": {"here": {"http": ["127.0.0.1:5"]}, "there": {"http": ["127.0.0.1:6"]}},
        });
        overlay.reserved.insert("cart".into(), Change::new("ann", Timestamp(5), cart));
        let off = Change::new("ann", Timestamp(6), serde_json::json!({"enabled": false}));
        overlay.set("orders", "shadow", Some(off));
        let legacy = other.journal.leaves(overlay.clone(), std::collections::BTreeMap::new()).unwrap();
        other.inherits(&legacy).unwrap();
        let fits: Vec<String> = other.overlay.content().resources().into_iter().collect();
        assert_eq!(fits, ["orders"]);
        let first = migration::cutover::State::first("orders", "here".into(), "there".into(), Timestamp(1));
        other.journal.append(&first, "Tested", Timestamp(1), None).unwrap();
        assert_eq!(other.generation("orders"), None, "the databases were not asked yet");
        other.settled.store(true, Ordering::Release);
        assert_eq!(other.generation("orders"), Some(1));
        assert_eq!(other.leaves().unwrap().overlay, overlay);
        drop(other);

        // Its policy is there.
        std::fs::write(folder.path().join("policies/q.yaml"), "mode: observe\n").unwrap();
        let again = node(folder.path());
        assert!(again.are_others(), "it is another configuration");
        assert_eq!((again.overlay.content(), again.overlay.foreign()), (overlay, Overlay::default()));
    }
}
