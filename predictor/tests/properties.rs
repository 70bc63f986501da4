//! Whatever comes in: no panic, finite, in order, the same every time.

use predictor::{Outlook, default_forecaster};
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

fn skip() -> impl Strategy<Value = u64> {
    prop_oneof![20 => Just(1_u64), 2 => 0_u64..4, 1 => 0_u64..100, 1 => any::<u64>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_input_gives_ordered_finite_quantiles_or_a_reason(
        input in prop::collection::vec((skip(), value()), 0..150),
        horizon in prop_oneof![0_usize..80, Just(usize::MAX)],
        level in any::<f64>(),
    ) {
        let mut first = default_forecaster(1);
        let mut second = default_forecaster(1);
        let mut step = 0_u64;
        for (skip, value) in input {
            step = step.saturating_add(skip);
            first.observe(step, value);
            second.observe(step, value);
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
        }
    }
}
