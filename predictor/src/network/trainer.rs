//! Learns from examples, one step at a call; no thread and no clock of its own.
//!
//! Examples are judged when they come, before they are learned from, both by the weights in training and by the fall-back:
//! when the former have become worse, they are thrown away and training begins anew from the fall-back. Adam with
//! decoupled decay (Loshchilov & Hutter 2019), gradients clipped by their norm (Pascanu et al. 2013).

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::features::{Example, Sight};
use super::graph::{Batch, Graph};
use super::inputs::{INPUTS, Inputs};
use super::weights::{TENSORS, Weights, WeightsError};
use crate::rng::Rng;

/// How to train.
#[derive(Clone, Copy, Debug)]
pub struct TrainerSettings {
    /// Step size.
    pub rate: f64,
    /// Weights are drawn to zero by this, in step sizes.
    pub decay: f64,
    /// Examples in one step.
    pub batch: usize,
    /// Examples that are kept to learn from; the oldest go.
    pub keep: usize,
    /// How often a group of known inputs is hidden in training.
    pub dropout: f64,
    /// How much worse than the fall-back the weights in training may be.
    pub tolerance: f64,
    /// Examples judged before that is decided.
    pub judged: usize,
    /// Of what is drawn.
    pub seed: u64,
}

impl Default for TrainerSettings {
    fn default() -> Self {
        Self {
            rate: 1e-4,
            decay: 0.3,
            batch: 16,
            keep: 8192,
            dropout: 0.3,
            tolerance: 0.01,
            judged: 256,
            seed: 1,
        }
    }
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// Too few examples so far.
    Waiting {
        /// How many there are.
        examples: usize,
        /// How many are needed.
        needed: usize,
    },
    /// Learned from one batch.
    Learned {
        /// Its mean loss, in units of what the experts miss by.
        loss: f32,
    },
    /// The weights in training had become worse than the fall-back, or not finite: they are the fall-back's again.
    RolledBack,
}

/// Training failed; the weights are those from before the step.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// In the tensor library.
    #[error("the tensor library refused a training step")]
    Tensor(#[from] candle_core::Error),
    /// A saved state does not fit.
    #[error("the saved training state was not understood")]
    State(#[from] WeightsError),
}

/// One part in this many of the past is forgotten by each judged example.
const JUDGE_PACE: f64 = 1.0 / 512.0;
/// The longest gradient.
const LONGEST: f32 = 1.0;
/// One judged loss counts for at most this much.
const WORST: f64 = 20.0;

/// The weights in training and all that belongs to them.
pub struct Trainer {
    settings: TrainerSettings,
    graph: Graph,
    current: Weights,
    fallback: Weights,
    moments: Vec<(Vec<f32>, Vec<f32>)>,
    steps: u32,
    examples: Vec<Example>,
    next: usize,
    rng: Rng,
    own: f64,
    others: f64,
    judged: usize,
    rollbacks: u32,
}

impl Trainer {
    /// Begins from `fallback`.
    pub fn new(fallback: Weights, settings: TrainerSettings) -> Result<Self, TrainError> {
        let zeros = fallback.tensors().iter().map(|t| (vec![0.0; t.len()], vec![0.0; t.len()])).collect();
        Ok(Self {
            graph: Graph::new(&fallback)?,
            current: fallback.clone(),
            fallback,
            moments: zeros,
            steps: 0,
            examples: Vec::new(),
            next: 0,
            rng: Rng::new(settings.seed),
            own: 0.0,
            others: 0.0,
            judged: 0,
            rollbacks: 0,
            settings,
        })
    }

    /// The weights in training.
    pub fn weights(&self) -> &Weights {
        &self.current
    }

    /// Steps learned since the beginning or the last rollback.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// How often the fall-back was returned to.
    pub fn rollbacks(&self) -> u32 {
        self.rollbacks
    }

    /// Recent loss of the weights in training as a share of the fall-back's, on examples neither had learned from yet.
    pub fn against_fallback(&self) -> Option<f64> {
        (self.judged > 0 && self.others > 0.0).then(|| self.own / self.others)
    }

    /// Changes the step size.
    pub fn set_rate(&mut self, rate: f64) {
        self.settings.rate = rate;
    }

    /// Judges an example and keeps it to learn from.
    pub fn offer(&mut self, example: Example) {
        let own = f64::from(self.current.loss(&example)).min(WORST);
        let others = f64::from(self.fallback.loss(&example)).min(WORST);
        if own.is_finite() && others.is_finite() {
            let pace = JUDGE_PACE.max(1.0 / (self.judged as f64 + 1.0));
            self.own += pace * (own - self.own);
            self.others += pace * (others - self.others);
            self.judged += 1;
        }
        self.keep(example);
    }

    /// Keeps an example to learn from, unjudged.
    pub fn keep(&mut self, example: Example) {
        if self.examples.len() < self.settings.keep {
            self.examples.push(example);
        } else {
            self.examples[self.next] = example;
            self.next = (self.next + 1) % self.settings.keep;
        }
    }

    /// Learns from one batch, or returns to the fall-back.
    pub fn step(&mut self) -> Result<Step, TrainError> {
        if self.judged >= self.settings.judged && self.own > self.others * (1.0 + self.settings.tolerance) {
            return self.roll_back();
        }
        let needed = self.settings.batch * 4;
        if self.examples.len() < needed {
            return Ok(Step::Waiting { examples: self.examples.len(), needed });
        }
        let mut drawn: Vec<Example> = (0..self.settings.batch)
            .map(|_| self.examples[self.rng.below(self.examples.len())].clone())
            .collect();
        self.hide_inputs(&mut drawn);
        self.learn(&drawn)
    }

    /// Learns from exactly these.
    pub fn learn(&mut self, examples: &[Example]) -> Result<Step, TrainError> {
        let batch = Batch::new(&examples.iter().collect::<Vec<_>>())?;
        let loss = self.graph.loss(&batch)?;
        let gradients = loss.backward()?;
        let loss = loss.to_scalar::<f32>()?;
        let mut all = Vec::with_capacity(self.graph.vars.len());
        for var in &self.graph.vars {
            let gradient = match gradients.get(var) {
                Some(gradient) => gradient.flatten_all()?.to_vec1::<f32>()?,
                None => vec![0.0; var.elem_count()],
            };
            all.push(gradient);
        }
        let norm = all.iter().flatten().map(|value| value * value).sum::<f32>().sqrt();
        if !norm.is_finite() || !loss.is_finite() {
            return self.roll_back();
        }
        self.adam(&all, (LONGEST / norm.max(1e-12)).min(1.0));
        self.graph = Graph::new(&self.current)?;
        Ok(Step::Learned { loss })
    }

    fn adam(&mut self, gradients: &[Vec<f32>], shrink: f32) {
        const FIRST: f32 = 0.9;
        const SECOND: f32 = 0.999;
        self.steps = self.steps.saturating_add(1);
        let power = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let (first, second) = (1.0 - FIRST.powi(power), 1.0 - SECOND.powi(power));
        let rate = self.settings.rate as f32;
        let decay = rate * self.settings.decay as f32;
        let mut tensors = self.current.tensors().to_vec();
        for (place, (values, (mean, square))) in tensors.iter_mut().zip(&mut self.moments).enumerate() {
            // Biases, gains and the trust in losses are left where they want to be.
            let decay = if TENSORS[place].1.len() > 1 { decay } else { 0.0 };
            for (at, value) in values.iter_mut().enumerate() {
                let gradient = gradients[place][at] * shrink;
                mean[at] = FIRST * mean[at] + (1.0 - FIRST) * gradient;
                square[at] = SECOND * square[at] + (1.0 - SECOND) * gradient * gradient;
                *value -= rate * (mean[at] / first) / ((square[at] / second).sqrt() + 1e-8) + decay * *value;
            }
        }
        self.current = Weights::from_tensors(tensors);
    }

    /// Hides groups of known inputs at random, so that the network learns to do without.
    pub fn hide_inputs(&mut self, examples: &mut [Example]) {
        for example in examples {
            self.hide_of(example);
        }
    }

    fn hide_of(&mut self, example: &mut Example) {
        for (values, mask) in Inputs::groups() {
            if self.rng.uniform() >= self.settings.dropout {
                continue;
            }
            let hide = |inputs: &mut [f32]| {
                for inputs in inputs.chunks_exact_mut(INPUTS) {
                    inputs[values.clone()].fill(0.0);
                    inputs[mask] = 0.0;
                }
            };
            hide(&mut example.features[Sight::INPUTS_FROM..]);
            for target in &mut example.targets {
                hide(&mut target.inputs);
            }
        }
    }

    fn roll_back(&mut self) -> Result<Step, TrainError> {
        self.current = self.fallback.clone();
        self.graph = Graph::new(&self.fallback)?;
        for (mean, square) in &mut self.moments {
            mean.fill(0.0);
            square.fill(0.0);
        }
        (self.steps, self.judged, self.own, self.others) = (0, 0, 0.0, 0.0);
        self.rollbacks += 1;
        Ok(Step::RolledBack)
    }

    /// The weights in training with their moments, as a safetensors file. Kept examples are not part of it.
    pub fn save(&self) -> Result<Vec<u8>, TrainError> {
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let mut parts: Vec<(String, &[usize], Vec<u8>)> = Vec::new();
        for (place, (name, shape)) in TENSORS.iter().enumerate() {
            parts.push(((*name).to_owned(), shape, bytes(&self.current.tensors()[place])));
            parts.push((format!("mean.{name}"), shape, bytes(&self.moments[place].0)));
            parts.push((format!("square.{name}"), shape, bytes(&self.moments[place].1)));
        }
        let steps = self.steps.to_le_bytes();
        let format = |error| TrainError::State(WeightsError::Format(error));
        let mut views = BTreeMap::new();
        for (name, shape, data) in &parts {
            views.insert(name.as_str(), TensorView::new(Dtype::F32, shape.to_vec(), data).map_err(format)?);
        }
        views.insert("steps", TensorView::new(Dtype::U32, vec![1], &steps).map_err(format)?);
        safetensors::serialize(views, None).map_err(format)
    }

    /// Goes on from what [`save`](Self::save) wrote; nothing changes where that does not fit.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), TrainError> {
        let weights = Weights::read(bytes)?;
        let file = SafeTensors::deserialize(bytes).map_err(WeightsError::from)?;
        let read = |name: &str, length: usize| -> Option<Vec<f32>> {
            let view = file.tensor(name).ok()?;
            let values: Vec<f32> = view
                .data()
                .chunks_exact(4)
                .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
                .collect();
            (values.len() == length && values.iter().all(|value| value.is_finite())).then_some(values)
        };
        let mut moments = Vec::with_capacity(TENSORS.len());
        for (name, shape) in TENSORS {
            let length = shape.iter().product();
            let wrong = || WeightsError::Tensor { name };
            let mean = read(&format!("mean.{name}"), length).ok_or_else(wrong)?;
            let square = read(&format!("square.{name}"), length).ok_or_else(wrong)?;
            moments.push((mean, square));
        }
        let steps =
            file.tensor("steps").ok().and_then(|view| Some(u32::from_le_bytes(view.data().try_into().ok()?)));
        self.steps = steps.ok_or(WeightsError::Tensor { name: "steps" })?;
        self.graph = Graph::new(&weights)?;
        self.current = weights;
        self.moments = moments;
        (self.judged, self.own, self.others) = (0, 0.0, 0.0);
        Ok(())
    }
}
