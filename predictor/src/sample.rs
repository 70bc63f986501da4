//! Order statistics of a handful of finite values.

use crate::forecast::{LEVELS, Quantiles};

/// Turns a median absolute deviation into a standard deviation where the values are normal.
pub(crate) const MAD_TO_SIGMA: f64 = 1.4826;

/// The quantile of `sorted` at `level`, interpolated (Hyndman & Fan 1996, type 7). `None` when empty.
pub fn quantile(sorted: &[f64], level: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = level.clamp(0.0, 1.0) * last as f64;
    let below = (place.floor() as usize).min(last);
    let above = (below + 1).min(last);
    let part = place - below as f64;
    Some(sorted[below] + (sorted[above] - sorted[below]) * part)
}

/// Sorts `values` in place and reads the quantiles at [`LEVELS`]. `None` when empty.
pub fn quantiles(values: &mut [f64]) -> Option<Quantiles> {
    values.sort_unstable_by(f64::total_cmp);
    let mut out = [0.0; LEVELS.len()];
    for (slot, level) in out.iter_mut().zip(LEVELS) {
        *slot = quantile(values, level)?;
    }
    Some(out)
}

/// Median, in place. `None` when empty.
pub fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    quantile(values, 0.5)
}

/// Median and robust standard deviation (scaled median absolute deviation), in place. `None` when empty.
pub fn centre_and_scale(values: &mut [f64]) -> Option<(f64, f64)> {
    let centre = median(values)?;
    for value in values.iter_mut() {
        *value = (*value - centre).abs();
    }
    Some((centre, median(values)? * MAD_TO_SIGMA))
}

/// The pinball loss of forecasting `quantile` at `level` when `value` came (Koenker & Bassett 1978).
pub fn pinball(level: f64, quantile: f64, value: f64) -> f64 {
    let miss = value - quantile;
    if miss >= 0.0 { level * miss } else { (level - 1.0) * miss }
}

/// The mean pinball loss over [`LEVELS`].
pub fn loss(quantiles: &Quantiles, value: f64) -> f64 {
    let sum: f64 =
        LEVELS.iter().zip(quantiles).map(|(level, quantile)| pinball(*level, *quantile, value)).sum();
    sum / LEVELS.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[7.0], 0.95), Some(7.0));
        assert_eq!(quantile(&[0.0, 10.0], 0.25), Some(2.5));
        assert_eq!(quantile(&[1.0, 2.0, 3.0], 2.0), Some(3.0));
    }

    #[test]
    fn the_median_absolute_deviation_shrugs_off_an_outlier() {
        let (centre, scale) = centre_and_scale(&mut [1.0, 2.0, 3.0, 4.0, 1e9]).unwrap();
        assert!((centre - 3.0).abs() < 1e-12 && (scale - 1.4826).abs() < 1e-12);
    }

    #[test]
    fn pinball_asks_more_of_the_side_it_is_about() {
        assert!((pinball(0.95, 10.0, 20.0) - 9.5).abs() < 1e-12);
        assert!((pinball(0.95, 20.0, 10.0) - 0.5).abs() < 1e-12);
        assert!(pinball(0.5, 3.0, 3.0).abs() < 1e-12);
    }
}
