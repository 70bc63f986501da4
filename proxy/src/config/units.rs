//! Quantities with compulsory units: `500ms`, `16MiB`, `25%`, `0.40/h`.

use std::time::Duration;

use migration::units::{ByteCount, Ratio};

/// Why a quantity was refused and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {right}")]
pub struct WrongUnit {
    /// What is wrong.
    pub what: String,
    /// What would be right.
    pub right: String,
}

fn wrong<T>(what: impl Into<String>, right: impl Into<String>) -> Result<T, WrongUnit> {
    Err(WrongUnit { what: what.into(), right: right.into() })
}

/// Splits `500ms` into the digits (with at most one point) and the unit; a sign or an exponent stays in the unit.
fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(end)
}

/// The problem of a right unit after a space, or of one that is none.
fn not_a_unit(text: &str, unit: &str, of: &str) -> String {
    if unit.starts_with(char::is_whitespace) {
        format!("{} has a space before its unit", quoted(text))
    } else {
        format!("{} is not a unit of {of}", quoted(unit))
    }
}

/// A quantity that is longer than this is not quoted in full.
fn quoted(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    if short.len() < text.len() { format!("`{short}…`") } else { format!("`{short}`") }
}

const DURATIONS: [(&str, f64); 5] = [("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86_400.0)];
const DURATION_RIGHT: &str = "a duration such as 500ms, 5s, 3m, 24h or 30d";

/// `500ms`, `1.5s`, `3m`, `24h`, `30d`: one number and one unit.
pub fn duration(text: &str) -> Result<Duration, WrongUnit> {
    let (number, unit) = split(text);
    let Ok(value) = number.parse::<f64>() else {
        return wrong(format!("{} is not a duration", quoted(text)), DURATION_RIGHT);
    };
    if unit.is_empty() {
        return wrong(format!("{} has no unit", quoted(text)), format!("write {number}s or {number}ms"));
    }
    let Some((_, seconds)) = DURATIONS.iter().find(|(name, _)| *name == unit) else {
        let right = match unit.trim().to_lowercase().as_str() {
            "ms" | "msec" | "millis" | "milliseconds" => format!("write {number}ms"),
            "s" | "sec" | "secs" | "second" | "seconds" => format!("write {number}s"),
            "m" | "min" | "mins" | "minute" | "minutes" => format!("write {number}m"),
            "h" | "hr" | "hour" | "hours" => format!("write {number}h"),
            "d" | "day" | "days" => format!("write {number}d"),
            _ => DURATION_RIGHT.to_owned(),
        };
        return wrong(not_a_unit(text, unit, "time"), right);
    };
    match Duration::try_from_secs_f64(value * seconds) {
        // Rounded to whole microseconds: 0.1ms is not 99.999µs.
        Ok(span) if span < Duration::from_hours(100 * 365 * 24) => {
            Ok(Duration::from_micros((value * seconds * 1e6).round() as u64))
        }
        _ => wrong(format!("{} is too long", quoted(text)), "at most 100 years"),
    }
}

const BYTES: [(&str, u64); 5] =
    [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
const BYTES_RIGHT: &str = "an amount of bytes such as 512B, 64KiB, 16MiB or 2GiB";

/// `512B`, `64KiB`, `16MiB`, `2GiB`, `1TiB`.
pub fn bytes(text: &str) -> Result<ByteCount, WrongUnit> {
    let (number, unit) = split(text);
    let Ok(value) = number.parse::<f64>() else {
        return wrong(format!("{} is not an amount of bytes", quoted(text)), BYTES_RIGHT);
    };
    if unit.is_empty() {
        return wrong(format!("{} has no unit", quoted(text)), format!("write {number}B or {number}MiB"));
    }
    let Some((_, size)) = BYTES.iter().find(|(name, _)| *name == unit) else {
        let right = match unit.trim().to_lowercase().as_str() {
            "b" | "byte" | "bytes" => format!("write {number}B"),
            "k" | "kb" | "kib" => format!("write {number}KiB"),
            "m" | "mb" | "mib" => format!("write {number}MiB"),
            "g" | "gb" | "gib" => format!("write {number}GiB"),
            "t" | "tb" | "tib" => format!("write {number}TiB"),
            _ => BYTES_RIGHT.to_owned(),
        };
        return wrong(not_a_unit(text, unit, "bytes"), right);
    };
    let count = value * *size as f64;
    if count > (1_u64 << 53) as f64 {
        return wrong(format!("{} is too much", quoted(text)), "at most 8192TiB");
    }
    if count.fract() != 0.0 {
        return wrong(format!("{} is not a whole number of bytes", quoted(text)), BYTES_RIGHT);
    }
    Ok(ByteCount(count as u64))
}

/// `25%`, `12.5%`; from 0% to 100%.
pub fn ratio(text: &str) -> Result<Ratio, WrongUnit> {
    let (number, unit) = split(text);
    let Ok(value) = number.parse::<f64>() else {
        return wrong(format!("{} is not a share", quoted(text)), "a share such as 25%");
    };
    if unit.is_empty() {
        let percent = if value <= 1.0 { (value * 1e6).round() / 1e4 } else { value };
        return wrong(format!("{} has no unit", quoted(text)), format!("write {percent}%"));
    }
    if unit != "%" {
        return wrong(format!("{} is not a share", quoted(text)), format!("write {number}%"));
    }
    match Ratio::new(value / 100.0) {
        Some(ratio) => Ok(ratio),
        None => wrong(format!("{} is more than everything", quoted(text)), "at most 100%"),
    }
}

/// `0.40/h`: money for an hour, in the operator's currency.
pub fn cost_per_hour(text: &str) -> Result<f64, WrongUnit> {
    let (number, unit) = split(text);
    let Ok(value) = number.parse::<f64>() else {
        return wrong(format!("{} is not a cost", quoted(text)), "a cost for an hour such as 0.40/h");
    };
    match unit {
        "/h" if value <= 1e9 => Ok(value),
        "/h" => wrong(format!("{} is too much", quoted(text)), "at most 1000000000/h"),
        "" => wrong(format!("{} has no unit", quoted(text)), format!("write {number}/h")),
        _ => {
            wrong(not_a_unit(text, unit, "cost"), "the cost for an hour, without a currency, such as 0.40/h")
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn right_quantities() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("3m"), Ok(Duration::from_mins(3)));
        assert_eq!(duration("24h"), Ok(Duration::from_hours(24)));
        assert_eq!(duration("30d"), Ok(Duration::from_hours(30 * 24)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(bytes("16MiB"), Ok(ByteCount(16 << 20)));
        assert_eq!(bytes("1.5KiB"), Ok(ByteCount(1536)));
        assert_eq!(bytes("0B"), Ok(ByteCount(0)));
        assert_eq!(ratio("25%").map(Ratio::get), Ok(0.25));
        assert_eq!(ratio("100%").map(Ratio::get), Ok(1.0));
        assert_eq!(cost_per_hour("0.40/h"), Ok(0.4));
    }

    #[test]
    fn wrong_quantities() {
        fn lines<T: std::fmt::Debug>(parse: fn(&str) -> Result<T, WrongUnit>, texts: &[&str]) -> String {
            let line = |text: &&str| format!("{text:?}: {}\n", parse(text).expect_err(text));
            texts.iter().map(line).collect()
        }
        let report = [
            lines(
                duration,
                &["500", "5min", "5 s", "-5s", "1h30m", "1..5s", "", "soon", "1e9d", "99999999d"],
            ),
            lines(bytes, &["16", "16MB", "16 MiB", "16m", "0.5B", "9999999TiB", "-1B", "much"]),
            lines(ratio, &["0.25", "25", "101%", "25 %", "quarter", "-5%"]),
            lines(cost_per_hour, &["0.40", "$0.40/h", "0.40/d", "0.40 EUR/h", "9999999999/h"]),
        ];
        insta::assert_snapshot!(report.join("\n"));
    }

    proptest! {
        #[test]
        fn a_duration_reads_back(ms in 0_u64..10_000_000) {
            prop_assert_eq!(duration(&format!("{ms}ms")), Ok(Duration::from_millis(ms)));
        }

        #[test]
        fn bytes_read_back_as_printed(kib in 1_u64..1_000_000) {
            let count = ByteCount(kib << 10);
            if !count.to_string().contains('.') {
                prop_assert_eq!(bytes(&count.to_string()), Ok(count));
            }
        }

        #[test]
        fn any_text_is_answered(text in ".*") {
            let _ = (duration(&text), bytes(&text), ratio(&text), cost_per_hour(&text));
        }
    }
}
