//! Times in which Godwit moves nothing by itself: `limits.freeze` of a policy.

use std::time::Duration;

use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, ToSpan};
use migration::units::Timestamp;
use migration::world::Freeze;

use super::cron::Cron;
use super::walk::Item;

/// The longest window.
const LONGEST: Duration = Duration::from_hours(7 * 24);

/// One window.
#[derive(Clone, Debug, PartialEq)]
pub struct FreezeWindow {
    from: Cron,
    length: Duration,
    zone: TimeZone,
    why: String,
}

impl FreezeWindow {
    /// The freeze at `now`, if it is in the window. Where clocks are put back the earlier of two equal times begins it; a time
    /// that they skip begins it as much later.
    pub fn at(&self, now: Timestamp) -> Option<Freeze> {
        let now = jiff::Timestamp::from_millisecond(i64::try_from(now.0).ok()?).ok()?;
        let length = SignedDuration::try_from(self.length).ok()?;
        let earliest = now.checked_sub(length).ok()?.to_zoned_datetime(self.zone.clone()).date();
        // The newest beginning decides: windows of one line may overlap.
        let mut date = now.to_zoned_datetime(self.zone.clone()).date();
        while date >= earliest {
            let begins = self.begins(date).filter(|begin| *begin <= now).max();
            if let Some(begin) = begins {
                let until = begin.checked_add(length).ok()?;
                return (now < until).then(|| Freeze {
                    by: format!("window {} ({})", self.from.text(), self.zone_name()),
                    why: self.why.clone(),
                    until: u64::try_from(until.as_millisecond()).ok().map(Timestamp),
                    binds_operator: false,
                });
            }
            date = date.checked_sub(1.day()).ok()?;
        }
        None
    }

    fn zone_name(&self) -> &str {
        self.zone.iana_name().unwrap_or("UTC")
    }

    fn begins(&self, date: Date) -> impl Iterator<Item = jiff::Timestamp> {
        let weekday = date.weekday().to_sunday_zero_offset();
        let that_day = self.from.on(date.day() as u8, date.month() as u8, weekday as u8);
        self.from.times().filter(move |_| that_day).filter_map(move |(hour, minute)| {
            let time = Time::new(hour.cast_signed(), minute.cast_signed(), 0, 0).ok()?;
            self.zone.to_timestamp(date.to_datetime(time)).ok()
        })
    }

    pub(super) fn read(item: &Item<'_>) -> Option<Self> {
        const CRON: &str = "five cron fields, such as \"0 8 * * MON-FRI\"";
        const ZONE: &str = "a time zone, such as Europe/Berlin (UTC when left out)";
        let mut section = item.section()?;
        let from = section.required("from", CRON).and_then(|item| {
            let parsed = Cron::parse(item.text(CRON)?);
            parsed.map_err(|what| item.wrong(what, CRON)).ok()
        });
        let length = section.required("for", "a duration, such as 2h").and_then(|item| {
            let length = item.duration()?;
            let fits = !length.is_zero() && length <= LONGEST;
            if !fits {
                item.wrong("is out of range", "above 0 and at most 7d");
            }
            fits.then_some(length)
        });
        let zone = match section.optional("zone") {
            None => Some(TimeZone::UTC),
            Some(item) => item.text(ZONE).and_then(|name| {
                let found = TimeZone::get(name);
                found.map_err(|_| item.wrong(format!("`{name}` is no time zone known here"), ZONE)).ok()
            }),
        };
        let why = section.required("why", "why nothing moves then, in words");
        let why = why.and_then(|item| item.text("a text").map(str::to_owned));
        section.finish();
        Some(Self { from: from?, length: length?, zone: zone?, why: why? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(from: &str, hours: u64, zone: &str) -> FreezeWindow {
        FreezeWindow {
            from: Cron::parse(from).expect("valid"),
            length: Duration::from_hours(hours),
            zone: TimeZone::get(zone).expect("known"),
            why: "test".into(),
        }
    }

    /// When it ends, as text, at a time given as text.
    fn ends(window: &FreezeWindow, at: &str) -> Option<String> {
        let at: jiff::Timestamp = at.parse().expect("a time");
        let freeze = window.at(Timestamp(at.as_millisecond().cast_unsigned()))?;
        let until = freeze.until.expect("windows end").0.cast_signed();
        Some(jiff::Timestamp::from_millisecond(until).expect("in range").to_string())
    }

    #[test]
    fn working_hours_in_a_zone() {
        let window = window("0 8 * * MON-FRI", 2, "Europe/Berlin");
        // Friday in winter: eight in Berlin is seven in Greenwich.
        let until = Some("2026-01-09T09:00:00Z".to_owned());
        assert_eq!(ends(&window, "2026-01-09T06:59:59Z"), None);
        assert_eq!(ends(&window, "2026-01-09T07:00:00Z"), until);
        assert_eq!(ends(&window, "2026-01-09T08:59:59Z"), until);
        assert_eq!(ends(&window, "2026-01-09T09:00:00Z"), None);
        assert_eq!(ends(&window, "2026-01-10T08:00:00Z"), None);
        // In summer it is six.
        assert_eq!(ends(&window, "2026-07-10T06:00:00Z"), Some("2026-07-10T08:00:00Z".into()));
    }

    #[test]
    fn over_midnight_and_over_a_change_of_clocks() {
        let weekend = window("0 18 * * FRI", 62, "Europe/Berlin");
        assert_eq!(ends(&weekend, "2026-01-12T06:30:00Z"), Some("2026-01-12T07:00:00Z".into()));
        assert_eq!(ends(&weekend, "2026-01-12T07:00:00Z"), None);
        // 02:30 does not exist on this day: it begins at 03:30, which is 01:30 in Greenwich.
        let skipped = window("30 2 * * *", 1, "Europe/Berlin");
        assert_eq!(ends(&skipped, "2026-03-29T01:29:00Z"), None);
        assert_eq!(ends(&skipped, "2026-03-29T01:30:00Z"), Some("2026-03-29T02:30:00Z".into()));
        // 02:30 comes twice: the earlier is meant.
        assert_eq!(ends(&skipped, "2026-10-25T00:30:00Z"), Some("2026-10-25T01:30:00Z".into()));
        assert_eq!(ends(&skipped, "2026-10-25T01:30:00Z"), None);
    }
}
