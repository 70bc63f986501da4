//! Facts in: what Godwit knows about the world, each with its age and source, or why it is not known.
//!
//! A feed never waits for the controller and the controller never waits for a feed: feeds publish their newest
//! reading, and readers look. What failed is a reading too: it says why, and is never a number that stands for
//! "unknown".
//!
//! | module | fact |
//! |---|---|
//! | [`external`] | what other services say of zones: cost, utilisation, weather, events, maintenance |
//! | [`http_probe`] | how long one HTTP endpoint takes to answer a fresh connection |
//! | [`sql_probe`] | how long a database takes to answer `select 1` |
//! | [`probe`] | what either found: the phases that were completed, or the one it failed in, and why |
//! | [`learning`] | the network that forecasters share, and the thread it learns on |
//! | [`prober`] | both probes, for every placement at every step, on one [`ProbeBoard`](prober::ProbeBoard) |

pub mod external;
pub mod http_probe;
pub mod learning;
pub mod probe;
pub mod prober;
pub mod sql_probe;

pub use probe::{Failure, Phase, Probe};

use std::time::Duration;

use migration::units::Timestamp;

/// A fact is not known, and this is why: a lower-case phrase for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unknown(pub String);

/// The newest a feed has to say.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading<T> {
    /// The value, or why there is none.
    pub value: Result<T, Unknown>,
    /// When it was taken.
    pub at: Timestamp,
    /// Which feed it comes from.
    pub source: &'static str,
}

impl<T> Reading<T> {
    /// How old it is.
    pub fn age(&self, now: Timestamp) -> Duration {
        now.since(self.at)
    }

    /// The value, unless it is unknown or older than `limit`.
    pub fn fresh(&self, now: Timestamp, limit: Duration) -> Result<&T, Unknown> {
        let value = self.value.as_ref().map_err(Clone::clone)?;
        let age = self.age(now);
        if age > limit {
            return Err(Unknown(format!(
                "the newest {} reading is {} ms old, {} ms are allowed",
                self.source,
                age.as_millis(),
                limit.as_millis()
            )));
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_reading_is_unknown_and_says_so() {
        let reading = Reading { value: Ok(3), at: Timestamp(1000), source: "probe" };
        assert_eq!(reading.fresh(Timestamp(1500), Duration::from_secs(1)), Ok(&3));
        let old = reading.fresh(Timestamp(4000), Duration::from_secs(1)).unwrap_err();
        assert_eq!(old.to_string(), "the newest probe reading is 3000 ms old, 1000 ms are allowed");
    }

    #[test]
    fn a_failed_reading_keeps_its_reason() {
        let reading =
            Reading::<u8> { value: Err(Unknown("refused".into())), at: Timestamp(0), source: "probe" };
        assert_eq!(reading.fresh(Timestamp(0), Duration::ZERO), Err(Unknown("refused".into())));
    }
}
