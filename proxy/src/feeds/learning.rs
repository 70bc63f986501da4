//! The shared network learns: one thread for the whole node, fed by every resource's forecasters.
//!
//! A forecaster hands over examples and reads the newest network, and waits for neither: when the thread is behind,
//! examples are dropped. What was learned lies in `forecaster.safetensors` under the node's state and is only used while it
//! forecasts better than the network that Godwit was shipped with.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use anyhow::{Context as _, Result};
use arc_swap::ArcSwap;
use predictor::network::Example;
use predictor::network::trainer::Step;
use predictor::{Trainer, TrainerSettings, Weights};

use crate::telemetry::metrics as telemetry;

/// Where the state of training lies.
const FILE: &str = "forecaster.safetensors";
/// Examples that wait for the thread, at most.
const WAITING: usize = 256;
/// Examples between two publications.
const PUBLISH: u32 = 200;

/// The way to the thread. Cheap to clone; the thread ends, and saves, with the last one.
#[derive(Clone)]
pub struct Learner {
    examples: SyncSender<Example>,
    network: Arc<ArcSwap<Weights>>,
}

impl Learner {
    /// Starts the thread; goes on from what lies under `state`.
    pub fn start(state: &Path, seed: u64) -> Result<Self> {
        let shipped = Weights::shipped().context("the shipped network")?;
        let settings = TrainerSettings { seed, ..TrainerSettings::default() };
        let mut trainer = Trainer::new(shipped.clone(), settings).context("the forecaster's training")?;
        let path = state.join(FILE);
        let found = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            read => read.map_err(anyhow::Error::from).and_then(|bytes| Ok(trainer.restore(&bytes)?)),
        };
        // No reason to keep the service waiting, whatever is wrong with the file.
        if let Err(error) = found {
            let error: &dyn std::error::Error = error.as_ref();
            tracing::warn!(path = %path.display(), error, "training begins anew");
        }
        let network = Arc::new(ArcSwap::from_pointee(shipped));
        let (examples, waiting) = sync_channel(WAITING);
        let thread = Thread { trainer, network: network.clone(), path, shipped: network.load_full() };
        std::thread::Builder::new()
            .name("godwit-forecast".into())
            .spawn(move || thread.run(&waiting))
            .context("cannot start the forecaster's thread")?;
        Ok(Self { examples, network })
    }

    /// The network to forecast with.
    pub fn network(&self) -> Arc<Weights> {
        self.network.load_full()
    }

    /// Hands over an example; false when the thread is behind.
    pub fn learn(&self, example: Example) -> bool {
        match self.examples.try_send(example) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }
}

struct Thread {
    trainer: Trainer,
    network: Arc<ArcSwap<Weights>>,
    path: PathBuf,
    shipped: Arc<Weights>,
}

impl Thread {
    fn run(mut self, examples: &Receiver<Example>) {
        let mut since = 0;
        while let Ok(example) = examples.recv() {
            self.trainer.offer(example);
            match self.trainer.step() {
                Ok(Step::RolledBack) => {
                    tracing::info!(
                        "the forecaster's own training had become worse than the shipped network: begun anew"
                    );
                    since = PUBLISH;
                }
                Ok(Step::Waiting { .. } | Step::Learned { .. }) => since += 1,
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(error, "the forecaster's training ends");
                    return;
                }
            }
            if since >= PUBLISH {
                since = 0;
                self.publish();
            }
        }
        self.save();
    }

    /// The weights in training are used only while they are better.
    fn publish(&self) {
        let better = self.trainer.against_fallback().is_some_and(|ratio| ratio < 1.0);
        let network = if better { Arc::new(self.trainer.weights().clone()) } else { self.shipped.clone() };
        self.network.store(network);
        telemetry::training(self.trainer.against_fallback(), self.trainer.rollbacks());
        self.save();
    }

    fn save(&self) {
        let written = self.trainer.save().map_err(anyhow::Error::from).and_then(|bytes| {
            let partial = self.path.with_extension("partial");
            std::fs::write(&partial, bytes)?;
            Ok(std::fs::rename(&partial, &self.path)?)
        });
        if let Err(error) = written {
            tracing::warn!(path = %self.path.display(), error = %error, "the forecaster's training cannot be saved");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use predictor::{Ensemble, Forecaster, Settings};

    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "a deadline of the test itself")]
    fn learns_saves_and_goes_on_after_a_restart() {
        let state = tempfile::tempdir().unwrap();
        let mut series = Ensemble::new(Settings { examples_every: 1, ..Settings::default() });
        let mut examples = Vec::new();
        for step in 0..700_u64 {
            series.observe(step, Some(20.0 + (step * 7919 % 13) as f64));
            examples.extend(series.take_examples());
        }
        let learner = Learner::start(state.path(), 1).unwrap();
        let given = examples.len();
        let deadline = Instant::now() + Duration::from_secs(60);
        for example in examples {
            while !learner.learn(example.clone()) {
                assert!(Instant::now() < deadline, "the thread takes no more examples");
                std::thread::yield_now();
            }
        }
        assert!(given > PUBLISH as usize);
        drop(learner);
        let path = state.path().join(FILE);
        let mut trainer = Trainer::new(Weights::shipped().unwrap(), TrainerSettings::default()).unwrap();
        // The thread saves when its last sender is gone.
        let steps = loop {
            assert!(
                Instant::now() < deadline,
                "no saved state with every example's step: {}",
                trainer.steps()
            );
            if std::fs::read(&path).is_ok_and(|bytes| trainer.restore(&bytes).is_ok())
                && trainer.steps() as usize + 64 > given
            {
                break trainer.steps();
            }
            std::thread::yield_now();
        };
        assert!(steps > 0);
        std::fs::write(&path, b"not weights").unwrap();
        assert!(
            Learner::start(state.path(), 1).is_ok(),
            "a spoilt file must not keep the node from starting"
        );
    }

    #[test]
    fn what_cannot_be_read_or_written_keeps_no_node_from_starting() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join(FILE);
        std::fs::create_dir(&path).unwrap();
        let learner = Learner::start(state.path(), 1).unwrap();
        let shipped = learner.network();
        let trainer = Trainer::new(Weights::clone(&shipped), TrainerSettings::default()).unwrap();
        Thread { trainer, network: learner.network.clone(), path: path.clone(), shipped }.save();
        assert!(path.is_dir() && state.path().join(FILE).with_extension("partial").is_file());
    }
}
