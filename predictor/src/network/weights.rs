//! The weights, their file, and the forward pass in plain arithmetic.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::features::{Example, FEATURES};
use super::inputs::AHEAD;
use crate::forecast::LEVELS;
use crate::model::EXPERTS;
use crate::rng::Rng;

/// Width of the hidden layers.
pub(crate) const WIDTH: usize = 32;
/// Inputs of a step: what is known of it, and how far ahead it is.
pub(crate) const CONTEXT: usize = AHEAD + 2;
/// Outputs for a step: a logit for each expert and level, an offset for each level.
pub(crate) const HEAD: usize = (EXPERTS + 1) * LEVELS.len();
/// Added to a variance before its root is taken.
pub(crate) const EPSILON: f32 = 1e-5;
/// Offsets are held within this many units.
pub(crate) const FURTHEST: f32 = 8.0;

/// Name and shape of each tensor.
pub(crate) const TENSORS: [(&str, &[usize]); 17] = [
    ("input.weight", &[FEATURES, WIDTH]),
    ("input.bias", &[WIDTH]),
    ("series.hidden.weight", &[WIDTH, WIDTH]),
    ("series.hidden.bias", &[WIDTH]),
    ("series.gate.weight", &[WIDTH, 2 * WIDTH]),
    ("series.gate.bias", &[2 * WIDTH]),
    ("series.norm.gain", &[WIDTH]),
    ("context.weight", &[CONTEXT, WIDTH]),
    ("step.hidden.weight", &[WIDTH, WIDTH]),
    ("step.hidden.bias", &[WIDTH]),
    ("step.gate.weight", &[WIDTH, 2 * WIDTH]),
    ("step.gate.bias", &[2 * WIDTH]),
    ("step.norm.gain", &[WIDTH]),
    ("head.weight", &[WIDTH, HEAD]),
    ("head.trust", &[LEVELS.len()]),
    ("event.weight", &[WIDTH, 2]),
    ("event.bias", &[2]),
];

/// The weights were not understood.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// Not a safetensors file.
    #[error("the weights are no safetensors file")]
    Format(#[from] safetensors::SafeTensorError),
    /// Another network's.
    #[error(
        "tensor {name} is missing, of another shape, not f32, or not finite: these weights are of another version"
    )]
    Tensor {
        /// Which.
        name: &'static str,
    },
}

/// A network that can be asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    tensors: Vec<Vec<f32>>,
}

/// What the network makes of a series, before any step ahead is asked about.
#[derive(Clone, Debug)]
pub(crate) struct Trunk {
    hidden: [f32; WIDTH],
    /// Logits of the level becoming worse within 12 and 48 steps.
    pub(crate) worse: [f32; 2],
}

/// What the network says of one step ahead.
#[derive(Clone, Debug)]
pub(crate) struct Advice {
    /// Shares of the experts, level by level; those that sleep have none.
    pub(crate) shares: [[f32; LEVELS.len()]; EXPERTS],
    /// Offsets, in units of what the best expert misses by.
    pub(crate) offsets: [f32; LEVELS.len()],
}

impl Weights {
    /// The weights that the crate was shipped with.
    pub fn shipped() -> Result<Self, WeightsError> {
        Self::read(include_bytes!("../../weights/network.safetensors"))
    }

    /// Reads a safetensors file.
    pub fn read(bytes: &[u8]) -> Result<Self, WeightsError> {
        let file = SafeTensors::deserialize(bytes)?;
        let mut tensors = Vec::with_capacity(TENSORS.len());
        for (name, shape) in TENSORS {
            let wrong = || WeightsError::Tensor { name };
            let view = file.tensor(name).map_err(|_| wrong())?;
            if view.dtype() != Dtype::F32 || view.shape() != shape {
                return Err(wrong());
            }
            let values: Vec<f32> = view
                .data()
                .chunks_exact(4)
                .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
                .collect();
            if values.iter().any(|value| !value.is_finite()) {
                return Err(wrong());
            }
            tensors.push(values);
        }
        Ok(Self { tensors })
    }

    /// As a safetensors file: equal weights give equal bytes.
    pub fn write(&self) -> Result<Vec<u8>, WeightsError> {
        let bytes: Vec<Vec<u8>> = self
            .tensors
            .iter()
            .map(|values| values.iter().flat_map(|value| value.to_le_bytes()).collect())
            .collect();
        let mut views = BTreeMap::new();
        for ((name, shape), data) in TENSORS.iter().zip(&bytes) {
            views.insert(*name, TensorView::new(Dtype::F32, shape.to_vec(), data)?);
        }
        Ok(safetensors::serialize(views, None)?)
    }

    /// From tensors in the order of [`TENSORS`].
    pub(crate) fn from_tensors(tensors: Vec<Vec<f32>>) -> Self {
        Self { tensors }
    }

    /// In the order of [`TENSORS`].
    pub(crate) fn tensors(&self) -> &[Vec<f32>] {
        &self.tensors
    }

    pub(crate) fn trunk(&self, features: &[f32; FEATURES]) -> Trunk {
        let t = &self.tensors;
        let mut hidden = [0.0; WIDTH];
        hidden.copy_from_slice(&t[1]);
        add_product(&mut hidden, features, &t[0]);
        let hidden = gated(&hidden, &t[2], &t[3], &t[4], &t[5], &t[6]);
        let mut worse = [t[16][0], t[16][1]];
        add_product(&mut worse, &hidden, &t[15]);
        Trunk { hidden, worse }
    }

    /// Of the step `ahead`; `losses` are the experts' at about that distance.
    pub(crate) fn advise(
        &self,
        trunk: &Trunk,
        ahead: usize,
        inputs: &[f32; AHEAD],
        losses: &[f32; EXPERTS],
        awake: impl Fn(usize) -> bool,
    ) -> Advice {
        let t = &self.tensors;
        let mut hidden = trunk.hidden;
        add_product(&mut hidden, &context(ahead, inputs), &t[7]);
        let hidden = gated(&hidden, &t[8], &t[9], &t[10], &t[11], &t[12]);
        let mut out = [0.0; HEAD];
        add_product(&mut out, &hidden, &t[13]);
        let trust = &t[14];
        let mut shares = [[0.0; LEVELS.len()]; EXPERTS];
        let mut offsets = [0.0; LEVELS.len()];
        for level in 0..LEVELS.len() {
            let logit = |place: usize| out[place * LEVELS.len() + level] - trust[level] * losses[place];
            let top = (0..EXPERTS).filter(|place| awake(*place)).map(logit).fold(f32::MIN, f32::max);
            let mut total = 0.0;
            for (place, share) in shares.iter_mut().enumerate() {
                if awake(place) {
                    share[level] = (logit(place) - top).exp();
                    total += share[level];
                }
            }
            for share in &mut shares {
                share[level] /= total.max(f32::MIN_POSITIVE);
            }
            offsets[level] = out[EXPERTS * LEVELS.len() + level].clamp(-FURTHEST, FURTHEST);
        }
        Advice { shares, offsets }
    }
}

/// The inputs of a step, with its distance.
pub(crate) fn context(ahead: usize, inputs: &[f32; AHEAD]) -> [f32; CONTEXT] {
    let mut context = [0.0; CONTEXT];
    context[..AHEAD].copy_from_slice(inputs);
    let distance = (ahead.clamp(1, 64) as f32).ln() / 2.0;
    context[AHEAD] = distance - 1.0;
    context[AHEAD + 1] = (distance - 1.0) * (distance - 1.0);
    context
}

/// Adds the row vector `values` times the matrix `weight` (a row for each value) to `into`.
fn add_product(into: &mut [f32], values: &[f32], weight: &[f32]) {
    let width = into.len();
    for (value, row) in values.iter().zip(weight.chunks_exact(width)) {
        if *value != 0.0 {
            for (slot, factor) in into.iter_mut().zip(row) {
                *slot += value * factor;
            }
        }
    }
}

/// A gated residual block: what the gate lets through is added, then normalised.
fn gated(
    values: &[f32; WIDTH],
    hidden_weight: &[f32],
    hidden_bias: &[f32],
    gate_weight: &[f32],
    gate_bias: &[f32],
    gain: &[f32],
) -> [f32; WIDTH] {
    let mut hidden = [0.0; WIDTH];
    hidden.copy_from_slice(hidden_bias);
    add_product(&mut hidden, values, hidden_weight);
    for value in &mut hidden {
        *value = if *value > 0.0 { *value } else { value.exp() - 1.0 };
    }
    let mut gate = [0.0; 2 * WIDTH];
    gate.copy_from_slice(gate_bias);
    add_product(&mut gate, &hidden, gate_weight);
    let mut out = *values;
    for (place, value) in out.iter_mut().enumerate() {
        *value += gate[place] / (1.0 + (-gate[WIDTH + place]).exp());
    }
    let mean = out.iter().sum::<f32>() / WIDTH as f32;
    let variance = out.iter().map(|value| (value - mean) * (value - mean)).sum::<f32>() / WIDTH as f32;
    let unit = 1.0 / (variance + EPSILON).sqrt();
    for (value, gain) in out.iter_mut().zip(gain) {
        *value = (*value - mean) * unit * gain;
    }
    out
}

impl Weights {
    /// Small weights from a seed, for training from nothing: all experts count alike, those with small losses more.
    pub fn random(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let tensors = TENSORS
            .iter()
            .map(|(name, shape)| {
                let count: usize = shape.iter().product();
                match *name {
                    "series.norm.gain" | "step.norm.gain" => vec![1.0; count],
                    "head.trust" => vec![2.0; count],
                    _ if shape.len() == 1 => vec![0.0; count],
                    _ => {
                        let spread =
                            if *name == "head.weight" { 0.1 } else { 1.0 } / (shape[0] as f64).sqrt();
                        (0..count).map(|_| (rng.normal() * spread) as f32).collect()
                    }
                }
            })
            .collect();
        Self { tensors }
    }

    /// The mean weighted pinball loss of an example.
    pub fn loss(&self, example: &Example) -> f32 {
        let trunk = self.trunk(&example.features);
        let mut sum = 0.0;
        for target in &example.targets {
            let Some(came) = target.came else { continue };
            let awake = |place: usize| target.said[place].is_some();
            let advice = self.advise(&trunk, target.ahead, &target.inputs, &target.losses, awake);
            let mut loss = 0.0;
            for (level, at) in LEVELS.into_iter().enumerate() {
                let mixed: f32 = (0..EXPERTS)
                    .filter_map(|place| Some(target.said[place]?[level] * advice.shares[place][level]))
                    .sum();
                let miss = came - mixed - advice.offsets[level] * target.reach;
                loss += (at as f32 * miss).max((at as f32 - 1.0) * miss);
            }
            sum += loss / LEVELS.len() as f32 * target.weight;
        }
        sum / example.targets.len() as f32
    }
}
