//! The network in candle, with gradients.
//!
//! Built from elementary operations: candle's fused normalisation and softmax give no gradient.

use candle_core::{D, Device, Result, Tensor, Var};

use super::features::{Example, FEATURES};
use super::weights::{CONTEXT, EPSILON, FURTHEST, HEAD, TENSORS, WIDTH, Weights, context};
use crate::forecast::LEVELS;
use crate::model::{EXPERTS, LAGS};

/// How much an event's cross entropy counts beside a quantile loss.
const EVENT: f64 = 0.1;
/// One row's loss counts for at most this much.
const WORST: f32 = 20.0;
/// The logit of an expert that sleeps.
const ASLEEP: f32 = -1e4;

/// The network's variables, in the order of [`TENSORS`].
pub(crate) struct Graph {
    pub(crate) vars: Vec<Var>,
}

/// Examples side by side.
pub(crate) struct Batch {
    features: Tensor,
    context: Tensor,
    said: Tensor,
    /// Zero for experts that are awake, else [`ASLEEP`].
    asleep: Tensor,
    losses: Tensor,
    reach: Tensor,
    came: Tensor,
    weight: Tensor,
    worse: Tensor,
    worse_known: Tensor,
    levels: Tensor,
}

impl Batch {
    pub(crate) fn new(examples: &[&Example]) -> Result<Self> {
        let count = examples.len();
        let rows = count * LAGS.len();
        let mut features = Vec::with_capacity(count * FEATURES);
        let (mut worse, mut worse_known) = (Vec::new(), Vec::new());
        let (mut contexts, mut said, mut asleep) = (Vec::new(), Vec::new(), Vec::new());
        let (mut losses, mut reach) = (Vec::new(), Vec::new());
        let (mut came, mut weight) = (Vec::new(), Vec::new());
        for example in examples {
            features.extend_from_slice(&example.features);
            worse.extend(example.worse.map(|worse| f32::from(u8::from(worse == Some(true)))));
            worse_known.extend(example.worse.map(|worse| f32::from(u8::from(worse.is_some()))));
            for target in &example.targets {
                contexts.extend_from_slice(&context(target.ahead, &target.inputs));
                for place in 0..EXPERTS {
                    said.extend_from_slice(&target.said[place].unwrap_or_default());
                    asleep.push(if target.said[place].is_some() { 0.0 } else { ASLEEP });
                }
                losses.extend_from_slice(&target.losses);
                reach.push(target.reach);
                came.push(target.came.unwrap_or(0.0));
                weight.push(if target.came.is_some() { target.weight } else { 0.0 });
            }
        }
        let cpu = &Device::Cpu;
        Ok(Self {
            features: Tensor::from_vec(features, (count, FEATURES), cpu)?,
            context: Tensor::from_vec(contexts, (count, LAGS.len(), CONTEXT), cpu)?,
            said: Tensor::from_vec(said, (rows, EXPERTS, LEVELS.len()), cpu)?,
            asleep: Tensor::from_vec(asleep, (rows, EXPERTS, 1), cpu)?,
            losses: Tensor::from_vec(losses, (rows, EXPERTS, 1), cpu)?,
            reach: Tensor::from_vec(reach, (rows, 1), cpu)?,
            came: Tensor::from_vec(came, (rows, 1), cpu)?,
            weight: Tensor::from_vec(weight, (rows, 1), cpu)?,
            worse: Tensor::from_vec(worse, (count, 2), cpu)?,
            worse_known: Tensor::from_vec(worse_known, (count, 2), cpu)?,
            levels: Tensor::from_vec(LEVELS.map(|level| level as f32).to_vec(), (1, LEVELS.len()), cpu)?,
        })
    }
}

impl Graph {
    pub(crate) fn new(weights: &Weights) -> Result<Self> {
        let vars = TENSORS
            .iter()
            .zip(weights.tensors())
            .map(|((_, shape), values)| Var::from_slice(values, *shape, &Device::Cpu))
            .collect::<Result<_>>()?;
        Ok(Self { vars })
    }

    fn var(&self, place: usize) -> &Tensor {
        self.vars[place].as_tensor()
    }

    fn gated(&self, values: &Tensor, first: usize) -> Result<Tensor> {
        let hidden = values.matmul(self.var(first))?.broadcast_add(self.var(first + 1))?.elu(1.0)?;
        let gate = hidden.matmul(self.var(first + 2))?.broadcast_add(self.var(first + 3))?;
        let through = (gate.narrow(1, 0, WIDTH)? * sigmoid(&gate.narrow(1, WIDTH, WIDTH)?)?)?;
        let sum = (values + through)?;
        let centred = sum.broadcast_sub(&sum.mean_keepdim(1)?)?;
        let deviation = (centred.sqr()?.mean_keepdim(1)? + f64::from(EPSILON))?.sqrt()?;
        centred.broadcast_div(&deviation)?.broadcast_mul(self.var(first + 4))
    }

    /// Quantiles for each row and level, and the logits of the events.
    pub(crate) fn forward(&self, batch: &Batch) -> Result<(Tensor, Tensor)> {
        let input = batch.features.matmul(self.var(0))?.broadcast_add(self.var(1))?;
        let series = self.gated(&input, 2)?;
        let worse = series.matmul(self.var(15))?.broadcast_add(self.var(16))?;
        let (count, lags, _) = batch.context.dims3()?;
        let context = batch.context.reshape((count * lags, CONTEXT))?.matmul(self.var(7))?;
        let spread =
            series.unsqueeze(1)?.broadcast_as((count, lags, WIDTH))?.reshape((count * lags, WIDTH))?;
        let step = self.gated(&(spread + context)?, 8)?;
        let head = step.matmul(self.var(13))?;
        let logits =
            head.narrow(1, 0, HEAD - LEVELS.len())?.reshape((count * lags, EXPERTS, LEVELS.len()))?;
        let trust = batch.losses.broadcast_mul(&self.var(14).reshape((1, 1, LEVELS.len()))?)?;
        let logits = (logits - trust)?.broadcast_add(&batch.asleep)?;
        let raised = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?.exp()?;
        let shares = raised.broadcast_div(&raised.sum_keepdim(1)?)?;
        let offsets = head
            .narrow(1, HEAD - LEVELS.len(), LEVELS.len())?
            .clamp(-FURTHEST, FURTHEST)?
            .broadcast_mul(&batch.reach)?;
        Ok((((shares * &batch.said)?.sum(1)? + offsets)?, worse))
    }

    /// The weighted pinball loss of each row.
    pub(crate) fn row_losses(batch: &Batch, quantiles: &Tensor) -> Result<Tensor> {
        let miss = batch.came.broadcast_sub(quantiles)?;
        let above = miss.relu()?.broadcast_mul(&batch.levels)?;
        let below = miss.neg()?.relu()?.broadcast_mul(&(1.0 - &batch.levels)?)?;
        ((above + below)?.mean_keepdim(D::Minus1)? * &batch.weight)?.squeeze(1)
    }

    pub(crate) fn loss(&self, batch: &Batch) -> Result<Tensor> {
        let (quantiles, worse) = self.forward(batch)?;
        // One wild row must not rule a batch.
        let quantile = Self::row_losses(batch, &quantiles)?.clamp(0.0, WORST)?.mean_all()?;
        // Cross entropy with logits: max(x, 0) - x y + ln(1 + exp(-|x|)).
        let entropy =
            ((worse.relu()? - (&worse * &batch.worse)?)? + (worse.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
        let event = (entropy * &batch.worse_known)?.mean_all()?;
        quantile + (event * EVENT)?
    }
}

fn sigmoid(values: &Tensor) -> Result<Tensor> {
    ((values * 0.5)?.tanh()? + 1.0)? * 0.5
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Ensemble, Settings};
    use crate::network::inputs::{Inputs, Weather};
    use crate::rng::Rng;

    fn examples() -> Vec<Example> {
        let mut rng = Rng::new(4);
        let known: Vec<Inputs> = (0..60)
            .map(|step| Inputs {
                weather: Some(Weather { wind: Some(f64::from(step)), ..Weather::default() }),
                load: Some(rng.uniform()),
                maintenance: Some(step % 2 == 0),
                event: Some(step % 3 == 0),
                calendar: Some((0.3, 0.7)),
            })
            .collect();
        let settings = Settings { period: Some(24), examples_every: 3, ..Settings::default() };
        let mut ensemble = Ensemble::new(settings);
        for step in 0..300_u64 {
            let wave = if step % 24 < 12 { 10.0 } else { 30.0 };
            let value = (step % 11 != 5).then(|| wave + rng.normal() + if step > 200 { 40.0 } else { 0.0 });
            ensemble.observe_knowing(step, value, &known);
        }
        ensemble.take_examples()
    }

    /// A gradient that candle does not compute would leave a part of the network as it was drawn, and nobody would notice.
    #[test]
    fn every_variable_gets_a_gradient() {
        let examples = examples();
        let graph = Graph::new(&Weights::random(3)).unwrap();
        let batch = Batch::new(&examples.iter().collect::<Vec<_>>()).unwrap();
        let gradients = graph.loss(&batch).unwrap().backward().unwrap();
        for (var, (name, _)) in graph.vars.iter().zip(TENSORS) {
            let gradient = gradients.get(var).unwrap_or_else(|| panic!("{name} gets no gradient"));
            let size = gradient.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(size.is_finite() && size > 0.0, "{name}: {size}");
        }
    }

    #[test]
    fn gradients_are_the_slope_of_the_loss() {
        let examples = examples();
        let batch = Batch::new(&examples.iter().collect::<Vec<_>>()).unwrap();
        let weights = Weights::random(3);
        let graph = Graph::new(&weights).unwrap();
        let gradients = graph.loss(&batch).unwrap().backward().unwrap();
        for (place, (name, _)) in TENSORS.iter().enumerate() {
            let slope =
                gradients.get(&graph.vars[place]).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            // Along the gradient itself, so that rounding does not drown the difference.
            let length = slope.iter().map(|value| value * value).sum::<f32>().sqrt();
            let moved = |sign: f32| {
                let mut tensors = weights.tensors().to_vec();
                for (value, slope) in tensors[place].iter_mut().zip(&slope) {
                    *value += sign * 0.01 * slope / length;
                }
                let graph = Graph::new(&Weights::from_tensors(tensors)).unwrap();
                graph.loss(&batch).unwrap().to_scalar::<f32>().unwrap()
            };
            let measured = (moved(1.0) - moved(-1.0)) / 0.02;
            assert!((measured - length).abs() < 0.1 * length + 2e-4, "{name}: {measured} against {length}");
        }
    }

    #[test]
    fn candle_and_plain_arithmetic_agree() {
        let examples = examples();
        assert!(examples.len() > 50);
        let weights = Weights::random(3);
        let graph = Graph::new(&weights).unwrap();
        for example in &examples {
            let batch = Batch::new(&[example]).unwrap();
            let (quantiles, worse) = graph.forward(&batch).unwrap();
            let loss = Graph::row_losses(&batch, &quantiles).unwrap().mean_all().unwrap();
            let (loss, plain) = (loss.to_scalar::<f32>().unwrap(), weights.loss(example));
            assert!((loss - plain).abs() <= 1e-4 * plain.abs().max(1.0), "{loss} {plain}");
            let worse = worse.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let plain = weights.trunk(&example.features).worse;
            assert!(
                worse.iter().zip(plain).all(|(one, other)| (one - other).abs() < 1e-3),
                "{worse:?} {plain:?}"
            );
        }
    }
}
