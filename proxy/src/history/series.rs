//! The names of the series. Each ends with its unit, where it has one.

/// p95 of the request path in one step, milliseconds, by the zone that served; steps of a cutover are left out.
pub const REQUEST_P95: &str = "request_p95_ms";
/// What the answer to the HTTP probe took, milliseconds, by zone.
pub const PROBE: &str = "probe_answer_ms";
/// The same with opening the connection, as an older program kept it. Nothing goes on from it.
pub const PROBE_WHOLE: &str = "probe_ms";
/// What the primary's database took to write and commit a row, milliseconds, by the primary's zone.
pub const HEARTBEAT: &str = "heartbeat_ms";
/// p95 of the reads that were mirrored in one step until the header of the answer was there, milliseconds, by zone: the same reads in both.
pub const MIRRORED: &str = "mirrored_p95_ms";
/// Requests in flight as a share of the capacity, 0 to 1, by zone.
pub const UTILIZATION: &str = "utilization";
/// Cost at full capacity, per hour, by zone.
pub const COST: &str = "cost_per_hour";
/// Bytes that the shadow is behind, by the shadow's zone.
pub const LAG: &str = "lag_bytes";
/// The Migration Score, by the primary's zone.
pub const SCORE: &str = "score";
/// The score at its lower confidence bound, by the primary's zone.
pub const SCORE_LOWER: &str = "score_lower";
/// What the lower bound must clear.
pub const SCORE_NEEDED: &str = "score_needed";

/// The points of one term of the score, by the primary's zone.
pub fn term(name: &str) -> String {
    format!("score_{name}")
}

/// A quantile of the request path's forecast, `ahead` steps ahead: `forecast_p95_ms_16`; by the zone that served.
pub fn forecast(level: f64, ahead: usize) -> String {
    format!("forecast_p{:02}_ms_{ahead}", (level * 100.0).round() as u32)
}

/// A value of an outside feed; it belongs to the node, not to a resource.
pub fn feed(name: &str) -> String {
    format!("feed_{name}")
}

/// What the forecasters of a zone were told of the step itself, by one of [`told`](super::told)'s names; by zone.
pub fn told(name: &str) -> String {
    format!("told_{name}")
}

/// The latencies of a segment: histograms, not values.
pub(crate) fn segment(label: &str) -> String {
    format!("segment_{label}")
}

/// Whether a node keeps a series of this name once it has something to keep; feeds may have any name.
pub fn is_known(name: &str) -> bool {
    const FIXED: [&str; 11] = [
        REQUEST_P95,
        PROBE,
        PROBE_WHOLE,
        HEARTBEAT,
        MIRRORED,
        UTILIZATION,
        COST,
        LAG,
        SCORE,
        SCORE_LOWER,
        SCORE_NEEDED,
    ];
    FIXED.contains(&name)
        || ["latency", "cost", "utilization"].iter().any(|one| term(one) == name)
        || predictor::LEVELS
            .iter()
            .any(|level| predictor::model::LAGS.iter().any(|ahead| forecast(*level, *ahead) == name))
        || super::told::names().any(|one| told(one) == name)
        || name.strip_prefix("feed_").is_some_and(|feed| !feed.is_empty())
}

/// Whether values are milliseconds.
pub fn is_ms(name: &str) -> bool {
    name.ends_with("_ms") || name.contains("_ms_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_their_unit() {
        assert_eq!(forecast(0.05, 1), "forecast_p05_ms_1");
        assert!(is_ms(&forecast(0.95, 48)) && is_ms(REQUEST_P95) && is_ms(PROBE));
        assert!(!is_ms(LAG) && !is_ms(&term("latency")));
    }

    #[test]
    fn only_names_that_can_be_kept_are_known() {
        for name in [
            "request_p95_ms",
            "score_cost",
            "forecast_p05_ms_16",
            "told_gust",
            "told_maintenance",
            "feed_prices.west",
        ] {
            assert!(is_known(name), "{name}");
        }
        for name in
            ["nonsense", "score_", "told_load", "forecast_p07_ms_16", "forecast_p05_ms_2", "feed_", ""]
        {
            assert!(!is_known(name), "{name}");
        }
    }
}
