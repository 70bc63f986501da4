//! Whatever comes in: no panic, finite, in order, the same every time.

use predictor::model::Analog;
use predictor::network::inputs::Weather;
use predictor::{Ensemble, Forecaster, Inputs, Outlook, Settings};
use proptest::prelude::*;

fn value() -> impl Strategy<Value = Option<f64>> {
    prop_oneof![
        4 => (0.0..500.0_f64).prop_map(Some),
        1 => any::<f64>().prop_map(Some),
        1 => Just(Some(f64::NAN)),
        1 => prop_oneof![Just(f64::INFINITY), Just(f64::NEG_INFINITY), Just(f64::MAX), Just(f64::MIN_POSITIVE)]
            .prop_map(Some),
        1 => Just(None),
        1 => Just(Some(0.0)),
    ]
}

/// Series of one kind: wild, constant, exploding, with a period, of two samples.
fn series() -> impl Strategy<Value = Vec<(u64, Option<f64>)>> {
    let skip = prop_oneof![20 => Just(1_u64), 2 => 0_u64..4, 1 => 0_u64..100, 1 => any::<u64>()];
    prop_oneof![
        4 => prop::collection::vec((skip, value()), 0..150),
        1 => (any::<f64>(), 0_usize..300).prop_map(|(value, count)| vec![(1, Some(value)); count]),
        1 => (1.0..3.0_f64, 60_i32..200)
            .prop_map(|(base, count)| (0..count).map(|step| (1, Some(base.powi(step * 4)))).collect()),
        1 => (0.0..1e6_f64)
            .prop_map(|high| (0..150).map(|step| (1, (step % 7 != 3).then_some(high * f64::from(step % 12)))).collect()),
        1 => (value(), value()).prop_map(|(one, other)| vec![(1, one), (1, other)]),
    ]
}

fn known() -> impl Strategy<Value = Vec<Inputs>> {
    prop::collection::vec(inputs(), 0..60)
}

fn inputs() -> impl Strategy<Value = Inputs> {
    let inputs =
        (any::<Option<f64>>(), any::<Option<f64>>(), any::<Option<bool>>(), any::<Option<(f64, f64)>>());
    inputs.prop_map(|(wind, load, maintenance, calendar)| Inputs {
        weather: wind.map(|wind| Weather { wind: Some(wind), precipitation: load, ..Weather::default() }),
        load,
        maintenance,
        event: maintenance,
        calendar,
    })
}

/// Long enough for the analogs to wake: what came, and what was known of the step.
fn lived() -> impl Strategy<Value = Vec<(Option<f64>, Inputs)>> {
    prop_oneof![
        2 => prop::collection::vec((value(), inputs()), 200..600),
        1 => (inputs(), 200_usize..600).prop_map(|(inputs, count)| vec![(Some(7.0), inputs); count]),
        1 => (value(), inputs(), inputs(), 200_usize..600).prop_map(|(value, one, other, count)| {
            (0..count).map(|step| (value, if step % 5 == 0 { one } else { other })).collect()
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_input_gives_ordered_finite_quantiles_or_a_reason(
        series in series(),
        known in known(),
        period in prop_oneof![Just(None), (0_usize..40).prop_map(Some), Just(Some(usize::MAX))],
        horizon in prop_oneof![0_usize..80, Just(usize::MAX)],
        level in any::<f64>(),
        network in any::<bool>(),
    ) {
        let settings = Settings {
            period,
            network: predictor::model::shipped().filter(|_| network),
            examples_every: 4,
            ..Settings::default()
        };
        let mut first = Ensemble::new(settings.clone());
        let mut second = Ensemble::new(settings);
        let mut step = 0_u64;
        for (skip, value) in series {
            step = step.saturating_add(skip);
            first.observe_knowing(step, value, &known);
            second.observe_knowing(step, value, &known);
            let outlook = first.forecast(horizon);
            prop_assert_eq!(&outlook, &second.forecast(horizon));
            match outlook {
                Outlook::Forecast(forecast) => {
                    prop_assert_eq!(forecast.steps.len(), horizon);
                    for quantiles in &forecast.steps {
                        prop_assert!(quantiles.iter().all(|value| value.is_finite()));
                        prop_assert!(quantiles.is_sorted());
                    }
                    prop_assert!(forecast.quantile(horizon, level).is_finite());
                    prop_assert!(forecast.over_horizon(level).is_finite());
                }
                Outlook::Abstained(abstained) => prop_assert!(!abstained.why.is_empty()),
            }
            if let Some(events) = first.events() {
                prop_assert!(events.now.is_finite() && events.expected_stay() > 0.0);
                prop_assert!(events.worse.iter().chain(&events.stays).all(|probability| (0.0..=1.0).contains(probability)));
            }
        }
        for (_, quality) in first.quality() {
            prop_assert!((0.0..=1.0).contains(&quality.coverage) && quality.loss.is_finite());
        }
        for example in first.take_examples() {
            prop_assert!(example.features.iter().all(|feature| feature.is_finite()));
            if let Some(network) = predictor::model::shipped() {
                prop_assert!(network.loss(&example).is_finite());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_is_known_the_analogs_are_in_order_and_finite(
        lived in lived(),
        asked in prop::collection::vec(inputs(), 1..20),
        horizon in 1_usize..80,
    ) {
        let mut model = Analog::new();
        let mut whole = predictor::default_forecaster(1);
        let known: Vec<Inputs> = lived.iter().map(|(_, inputs)| *inputs).collect();
        for (step, (value, inputs)) in lived.iter().enumerate() {
            model.observe(step as u64, *value, inputs);
            let until = known.len().min(step + 50);
            whole.observe_knowing(step as u64, *value, &known[step..until]);
        }
        for (ahead, inputs) in asked.iter().enumerate() {
            let said = model.quantiles(ahead, &asked);
            prop_assert_eq!(said, model.quantiles(ahead, &asked));
            prop_assert!(said.is_none() || inputs.tells());
            if let Some(quantiles) = said {
                prop_assert!(quantiles.iter().all(|value| value.is_finite()) && quantiles.is_sorted());
            }
        }
        // What is known of the future beyond the lived part.
        let last = *lived.last().expect("there are some");
        whole.observe_knowing(lived.len() as u64, last.0, &asked);
        if let Outlook::Forecast(forecast) = whole.forecast(horizon) {
            for quantiles in &forecast.steps {
                prop_assert!(quantiles.iter().all(|value| value.is_finite()) && quantiles.is_sorted());
            }
        }
    }
}

#[test]
fn too_little_and_too_old_are_reasons() {
    let mut model = predictor::default_forecaster(1);
    for step in 0..5 {
        model.observe(step, Some(10.0));
    }
    let Outlook::Abstained(abstained) = model.forecast(3) else { panic!("answered") };
    assert_eq!(abstained.why, "5 values observed, 6 are needed");
    assert_eq!(model.abstentions().total(), 5);
    assert!(model.events().is_none());
    for step in 5..20 {
        model.observe(step, Some(10.0));
    }
    assert!(model.forecast(3).forecast().is_some());
    model.observe(100, None);
    let Outlook::Abstained(abstained) = model.forecast(3) else { panic!("answered") };
    assert_eq!(abstained.why, "the newest value is 81 steps old, 60 are allowed");
    assert_eq!(abstained.reason, predictor::Reason::Stale);
    let abstentions = model.abstentions();
    assert_eq!(
        (abstentions.ever(predictor::Reason::TooFew), abstentions.ever(predictor::Reason::Stale)),
        (5, 1)
    );
}

#[test]
fn a_constant_series_is_forecast_exactly() {
    let mut model = predictor::default_forecaster(1);
    for step in 0..300 {
        model.observe(step, Some(20.1));
    }
    let outlook = model.forecast(48);
    for quantiles in &outlook.forecast().unwrap().steps {
        assert!(quantiles.iter().all(|value| (value - 20.1).abs() < 1e-3), "{quantiles:?}");
    }
}

#[test]
fn what_the_first_step_is_called_changes_nothing() {
    let after = |first: u64| {
        let mut model = predictor::default_forecaster(1);
        for place in (0..400_u64).filter(|place| place % 37 != 5) {
            let level = if place > 250 { 60.0 } else { 20.0 };
            model.observe(first + place, Some(level + (place * 7_919 % 13) as f64));
        }
        (model.forecast(48), model.quality(), model.events())
    };
    assert_eq!(after(0), after(190_000_001));
}
