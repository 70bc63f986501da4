//! What a feed says, in one shape whatever it came from: numbers and events.

use migration::units::Timestamp;
use serde::{Deserialize, Serialize};

/// One thing that a feed says. `zones` are the feed's own names until [`Places::assign`](super::places::Places::assign).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// A number.
    Value(Value),
    /// Something that happens, or will.
    Event(Event),
}

/// A number about a zone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Value {
    /// The zones it is about; empty: no zone in particular.
    pub zones: Vec<String>,
    /// Which number, where a feed has several, such as `wind_gusts`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The number, finite.
    pub value: f64,
    /// Its unit, as the feed says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// When it was measured, Unix milliseconds; none: when it was fetched.
    #[serde(rename = "at_ms", default, skip_serializing_if = "Option::is_none", with = "millis")]
    pub at: Option<Timestamp>,
    /// The moment it is about, where that is not now (a weather forecast), Unix milliseconds.
    #[serde(rename = "for_ms", default, skip_serializing_if = "Option::is_none", with = "millis")]
    pub about: Option<Timestamp>,
}

/// An event.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The zones it is about; empty: no zone in particular.
    pub zones: Vec<String>,
    /// `maintenance`, `outage`, or another word of the feed.
    pub kind: String,
    /// One line for people.
    pub title: String,
    /// When it begins, Unix milliseconds.
    #[serde(rename = "starts_ms", with = "milli")]
    pub starts: Timestamp,
    /// When it ends, Unix milliseconds; none: unknown.
    #[serde(rename = "ends_ms", default, skip_serializing_if = "Option::is_none", with = "millis")]
    pub ends: Option<Timestamp>,
    /// The feed says that it goes on now, whatever end was planned.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub under_way: bool,
    /// The feed's word for how bad it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<String>,
    /// The feed's name of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl Finding {
    /// The zones it is about.
    pub fn zones(&self) -> &[String] {
        match self {
            Self::Value(value) => &value.zones,
            Self::Event(event) => &event.zones,
        }
    }

    pub(super) fn zones_mut(&mut self) -> &mut Vec<String> {
        match self {
            Self::Value(value) => &mut value.zones,
            Self::Event(event) => &mut event.zones,
        }
    }
}

mod milli {
    use migration::units::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(at.0)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        u64::deserialize(deserializer).map(Timestamp)
    }
}

mod millis {
    use migration::units::Timestamp;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[allow(clippy::ref_option, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
        at.map(|at| at.0).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Timestamp>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(Timestamp))
    }
}
