//! The network learns, in candle and in plain arithmetic alike, and falls back when it gets worse.

#![allow(clippy::unwrap_used, reason = "a test may")]

use predictor::network::Example;
use predictor::network::trainer::Step;
use predictor::rng::Rng;
use predictor::{Ensemble, Forecaster, Settings, Trainer, TrainerSettings, Weights};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// A level with noise that jumps back and forth; the last value tells much, the long windows little.
fn examples(seed: u64, count: usize) -> Vec<Example> {
    let mut rng = Rng::new(seed);
    let mut ensemble = Ensemble::new(Settings { examples_every: 1, seed, ..Settings::default() });
    let mut level = 20.0;
    let mut made = Vec::new();
    for step in 0.. {
        if rng.uniform() < 0.02 {
            level = if level > 30.0 { 20.0 } else { 60.0 };
        }
        ensemble.observe(step, Some(level + rng.normal()));
        made.extend(ensemble.take_examples());
        if made.len() >= count {
            break;
        }
    }
    made
}

fn mean_loss(weights: &Weights, examples: &[Example]) -> f32 {
    examples.iter().map(|example| weights.loss(example)).sum::<f32>() / examples.len() as f32
}

fn trainer(seed: u64, rate: f64) -> Trainer {
    let settings = TrainerSettings { rate, seed, ..TrainerSettings::default() };
    Trainer::new(Weights::random(seed), settings).unwrap()
}

#[test]
fn training_lowers_the_loss_on_examples_it_has_not_seen() {
    let unseen = examples(9, 300);
    let mut trainer = trainer(1, 2e-3);
    let before = mean_loss(trainer.weights(), &unseen);
    for example in examples(1, 1200) {
        trainer.keep(example);
    }
    for _ in 0..300 {
        assert!(matches!(trainer.step().unwrap(), Step::Learned { .. }));
    }
    let after = mean_loss(trainer.weights(), &unseen);
    assert!(after < before * 0.97, "{before} -> {after}");
}

#[test]
fn equal_seeds_give_equal_weights_and_other_seeds_others() {
    let train = |seed: u64| {
        let mut trainer = trainer(seed, 1e-3);
        for example in examples(1, 200) {
            trainer.keep(example);
        }
        for _ in 0..20 {
            trainer.step().unwrap();
        }
        trainer.weights().write().unwrap()
    };
    assert_eq!(train(1), train(1));
    assert_ne!(train(1), train(2));
}

#[test]
fn weights_that_became_worse_are_thrown_away() {
    let fallback = predictor::model::shipped().unwrap().as_ref().clone();
    // Steps this long spoil any weights.
    let settings = TrainerSettings { rate: 0.5, judged: 100, ..TrainerSettings::default() };
    let mut trainer = Trainer::new(fallback.clone(), settings).unwrap();
    let mut rolled_back = false;
    for example in examples(3, 600) {
        trainer.offer(example);
        if trainer.step().unwrap() == Step::RolledBack {
            rolled_back = true;
            break;
        }
    }
    assert!(rolled_back && trainer.rollbacks() == 1);
    assert_eq!(trainer.weights(), &fallback);
    assert_eq!(trainer.steps(), 0);
}

#[test]
fn it_waits_until_there_is_enough_to_learn_from() {
    let mut trainer = trainer(1, 1e-3);
    for example in examples(1, 10) {
        trainer.offer(example);
    }
    assert_eq!(trainer.step().unwrap(), Step::Waiting { examples: 10, needed: 64 });
}

#[test]
fn a_saved_state_goes_on_as_if_nothing_had_happened() {
    let learned = examples(1, 200);
    let mut first = trainer(1, 1e-3);
    first.learn(&learned[..32]).unwrap();
    let state = first.save().unwrap();
    let mut second = trainer(5, 1e-3);
    second.restore(&state).unwrap();
    first.learn(&learned[32..64]).unwrap();
    second.learn(&learned[32..64]).unwrap();
    assert_eq!(first.weights(), second.weights());
    assert_eq!(first.save().unwrap(), second.save().unwrap());
}

#[test]
fn what_is_no_state_changes_nothing() {
    let mut trainer = trainer(1, 1e-3);
    let before = trainer.weights().clone();
    let mut cut = trainer.save().unwrap();
    cut.truncate(cut.len() / 2);
    assert!(trainer.restore(&cut).is_err());
    // Weights without moments are weights, but no state of training.
    assert!(trainer.restore(&before.write().unwrap()).is_err());
    assert!(Weights::read(b"").is_err());
    assert_eq!(trainer.weights(), &before);
}

/// A network with other experts has a head of another shape: refused by name, and training goes on from the shipped one.
#[test]
fn a_state_of_other_shapes_is_refused_and_changes_nothing() {
    let mut trainer = trainer(1, 1e-3);
    trainer.learn(&examples(1, 32)).unwrap();
    let before = trainer.weights().clone();
    let state = trainer.save().unwrap();
    let file = SafeTensors::deserialize(&state).unwrap();
    let wider: Vec<u8> = vec![0; 32 * 60 * 4];
    let tensors = file.tensors().into_iter().map(|(name, view)| {
        let other = name.ends_with("head.weight");
        (name, if other { TensorView::new(Dtype::F32, vec![32, 60], &wider).unwrap() } else { view })
    });
    let error = trainer.restore(&safetensors::serialize(tensors, None).unwrap()).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.starts_with("tensor head.weight is missing, of another shape"), "{source}");
    assert_eq!((trainer.weights(), trainer.steps()), (&before, 1));
}

#[test]
fn the_shipped_weights_are_read_and_written_alike_and_are_small() {
    let shipped = predictor::model::shipped().unwrap();
    let bytes = shipped.write().unwrap();
    assert!(bytes.len() < 300 * 1024, "{}", bytes.len());
    assert_eq!(&Weights::read(&bytes).unwrap(), shipped.as_ref());
}
