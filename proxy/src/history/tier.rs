//! Three resolutions, each kept for a time of its own.

use std::time::Duration;

use migration::units::Timestamp;

/// How finely time is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resolution {
    /// Each step's values as they were; histograms of 10 s.
    Fine,
    /// Five minutes.
    Medium,
    /// An hour.
    Coarse,
}

impl Resolution {
    /// All of them, the finest first.
    pub const ALL: [Self; 3] = [Self::Fine, Self::Medium, Self::Coarse];

    /// As in the API and the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Medium => "medium",
            Self::Coarse => "coarse",
        }
    }

    /// By its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resolution| resolution.name() == name)
    }

    /// The width of a bucket. Fine values are not bucketed, fine histograms are.
    pub fn bucket(self) -> Duration {
        match self {
            Self::Fine => Duration::from_secs(10),
            Self::Medium => Duration::from_mins(5),
            Self::Coarse => Duration::from_hours(1),
        }
    }

    /// The same, milliseconds.
    pub(crate) fn bucket_ms(self) -> u64 {
        self.bucket().as_millis() as u64
    }

    /// When the bucket began that `at_ms` lies in.
    pub(crate) fn begin(self, at_ms: u64) -> u64 {
        at_ms - at_ms % self.bucket_ms()
    }

    /// As in the file.
    pub(crate) fn number(self) -> i64 {
        self as i64
    }
}

/// How long each resolution is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Fine: at least an hour.
    pub fine: Duration,
    /// Medium: at least as long.
    pub medium: Duration,
    /// Coarse: at least as long.
    pub coarse: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        let days = |days: u64| Duration::from_secs(days * 86_400);
        Self { fine: days(1), medium: days(14), coarse: days(400) }
    }
}

impl Retention {
    /// How long `resolution` is kept.
    pub fn of(&self, resolution: Resolution) -> Duration {
        match resolution {
            Resolution::Fine => self.fine,
            Resolution::Medium => self.medium,
            Resolution::Coarse => self.coarse,
        }
    }

    /// The oldest moment of `resolution` that is kept at `now`, Unix milliseconds.
    pub(crate) fn oldest(&self, resolution: Resolution, now: Timestamp) -> u64 {
        now.0.saturating_sub(self.of(resolution).as_millis() as u64)
    }

    /// The finest resolution that reaches back to `from`, five minutes more or less: who asks for all of it is a little late.
    pub fn finest(&self, from: Timestamp, now: Timestamp) -> Resolution {
        let late = Resolution::Medium.bucket_ms();
        let reaches = |resolution: &Resolution| self.oldest(*resolution, now) <= from.0.saturating_add(late);
        Resolution::ALL.into_iter().find(reaches).unwrap_or(Resolution::Coarse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_finest_that_reaches_back() {
        let (now, day) = (Timestamp(500 * 86_400_000), 86_400_000);
        let retention = Retention::default();
        let ago = |days: u64| retention.finest(Timestamp(now.0 - days * day), now);
        assert_eq!([ago(0), ago(1)], [Resolution::Fine; 2]);
        let asked_late = retention.finest(Timestamp(now.0 - day - 2_000), now);
        assert_eq!(asked_late, Resolution::Fine);
        assert_eq!([ago(2), ago(14)], [Resolution::Medium; 2]);
        assert_eq!([ago(15), ago(450)], [Resolution::Coarse; 2]);
        assert_eq!(Resolution::Medium.begin(299_999 + 300_000), 300_000);
    }
}
