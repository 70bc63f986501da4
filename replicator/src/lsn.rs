//! A position in PostgreSQL's write-ahead log.

use std::fmt;
use std::str::FromStr;

/// A WAL byte position: two 32-bit hex words on the wire and in SQL (`16/B374D848`).
///
/// Source: PostgreSQL documentation, section 8.20 "pg_lsn Type".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The position before all others; the server reads it as "not known".
    pub const ZERO: Self = Self(0);

    /// Bytes from `earlier` up to here; zero when `earlier` is ahead.
    pub fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The text was not `hex/hex`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a WAL position; expected two hex words such as 16/B374D848")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (high, low) = text.split_once('/')?;
            let word = |part: &str| {
                (!part.is_empty() && part.bytes().all(|b| b.is_ascii_hexdigit()))
                    .then(|| u32::from_str_radix(part, 16).ok())
                    .flatten()
            };
            Some(Self(u64::from(word(high)?) << 32 | u64::from(word(low)?)))
        };
        parse().ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_parses_as_postgres_does() {
        let lsn: Lsn = "16/B374D848".parse().expect("valid");
        assert_eq!(lsn, Lsn(0x16_B374_D848));
        assert_eq!(lsn.to_string(), "16/B374D848");
        for (lsn, text) in [(0, "0/0"), (u64::MAX, "FFFFFFFF/FFFFFFFF")] {
            assert_eq!(Lsn(lsn).to_string(), text);
            assert_eq!(text.parse(), Ok(Lsn(lsn)));
        }
        for wrong in ["", "16", "/", "16/", "/0", "x/1", "0/g", "+1/2", "1/100000000", "123456789/0", "0/0/0"]
        {
            assert!(wrong.parse::<Lsn>().is_err(), "{wrong} must be refused");
        }
    }
}
