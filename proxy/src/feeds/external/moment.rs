//! Moments as feeds write them: seconds of the epoch, RFC 3339, ISO 8601 without seconds or zone, the basic format.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use migration::units::Timestamp;

/// The last second that is understood: the year 9999.
const LAST: f64 = 253_402_300_799.0;

/// Seconds since the epoch, with a fraction perhaps.
pub fn of_seconds(seconds: f64) -> Option<Timestamp> {
    (0.0..=LAST).contains(&seconds).then(|| Timestamp((seconds * 1000.0).round() as u64))
}

/// `2026-11-25T23:40:00Z`, `…+01:00`, `2026-11-25T23:40` and `2026-11-25` (UTC), `20261125T234000Z`, RFC 2822.
pub fn of_text(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    // Longer is no moment; this bounds the work on hostile input.
    if text.is_empty() || text.len() > 64 || !text.is_ascii() {
        return None;
    }
    let zoned = text.parse::<jiff::Timestamp>().ok();
    let plain = || {
        let civil = text.strip_suffix(['Z', 'z']).unwrap_or(text).parse::<DateTime>().ok()?;
        civil.to_zoned_datetime(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
    };
    let mail = || jiff::fmt::rfc2822::parse(text).ok().map(|zoned| zoned.timestamp());
    of_jiff(zoned.or_else(plain).or_else(mail)?)
}

/// A moment of `jiff`'s; before 1970 there is none.
pub fn of_jiff(at: jiff::Timestamp) -> Option<Timestamp> {
    u64::try_from(at.as_millisecond()).ok().map(Timestamp)
}

/// `20 min`, `3 h`, `2 d`: how long, for people.
pub fn span(span: std::time::Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `2026-11-25 23:40 UTC`, for people.
pub fn shown(at: Timestamp) -> String {
    let moment = i64::try_from(at.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    moment.map_or_else(|| format!("{} ms", at.0), |at| at.strftime("%Y-%m-%d %H:%M UTC").to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn moments_in_every_writing() {
        // 2026-11-25T23:40:00Z
        let at = Some(Timestamp(1_795_650_000_000));
        for text in [
            "2026-11-25T23:40:00Z",
            "2026-11-26T00:40:00+01:00",
            "2026-11-25T23:40:00.000Z",
            "2026-11-25T23:40",
            "2026-11-25 23:40:00",
            "20261125T234000Z",
            "Wed, 25 Nov 2026 23:40:00 +0000",
            "Wed, 25 Nov 2026 23:40:00 GMT",
        ] {
            assert_eq!(of_text(text), at, "{text}");
        }
        assert_eq!(of_text("2026-11-25"), Some(Timestamp(1_795_564_800_000)));
        assert_eq!(of_seconds(1_795_650_000.5), Some(Timestamp(1_795_650_000_500)));
        for wrong in ["", "soon", "1969-12-31T00:00:00Z", "2026-13-01T00:00:00Z", &"2".repeat(100)] {
            assert_eq!(of_text(wrong), None, "{wrong}");
        }
        for wrong in [-1.0, f64::NAN, f64::INFINITY, 1e300] {
            assert_eq!(of_seconds(wrong), None);
        }
        assert_eq!(shown(Timestamp(1_795_650_000_000)), "2026-11-25 23:40 UTC");
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".*") {
            let _ = of_text(&text);
        }
    }
}
