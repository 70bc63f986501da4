//! Which layouts of the protocol there are, and how two sides agree on one.

use crate::error::Error;

/// Protocol versions, oldest first; a frame's header names the one it is written in.
///
/// Never change what a version means: make a new one, with a line here and golden bytes in the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// The first.
    V1,
    /// Hello tells what its side speaks and Welcome what is spoken; bodies of bulk frames may be zstd (highest bit of the
    /// kind; their plain length comes first). A hello is written in this layout for ever, whatever versions it offers.
    V2,
    /// A copy that broke goes on: Resume says how many [`super::KeptTable`]s follow it and when the tables are at one point;
    /// CopyBegin names its own snapshot's position, how many sessions there are and what is there already; CopyTable says of
    /// how many parts it is one. Resume tells which cluster the checkpoint belongs to, and the sender begins with a frame that says which one it is.
    V3,
    /// Small transactions travel together in one frame.
    V4,
}

impl Version {
    /// The oldest that this side still speaks.
    pub const OLDEST: Self = Self::V1;
    /// The newest that this side speaks.
    pub const NEWEST: Self = Self::V4;
    /// What a hello is written in, so that an older side can read it.
    pub const HELLO: Self = Self::V2;

    /// On the wire.
    pub const fn number(self) -> u8 {
        match self {
            Self::V1 => 1,
            Self::V2 => 2,
            Self::V3 => 3,
            Self::V4 => 4,
        }
    }

    /// From the wire; an error names what both sides speak.
    pub fn from_number(number: u8) -> Result<Self, Error> {
        match number {
            1 => Ok(Self::V1),
            2 => Ok(Self::V2),
            3 => Ok(Self::V3),
            4 => Ok(Self::V4),
            other => Err(Error::Protocol(format!(
                "link protocol version {other}; this side speaks {}",
                Speaks::range()
            ))),
        }
    }
}

/// What one side can do: part of its hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Speaks {
    /// Oldest version.
    pub oldest: u8,
    /// Newest version.
    pub newest: u8,
    /// It takes and gives compressed frames.
    pub zstd: bool,
}

/// What both sides do from the welcome on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Agreed {
    /// The version of every further frame.
    pub version: Version,
    /// Bulk frames may be compressed.
    pub zstd: bool,
}

impl Speaks {
    /// This side; `zstd` is not worth it inside one process.
    pub const fn this(zstd: bool) -> Self {
        Self { oldest: Version::OLDEST.number(), newest: Version::NEWEST.number(), zstd }
    }

    /// A side that says nothing of it.
    pub const FIRST: Self = Self { oldest: 1, newest: 1, zstd: false };

    fn range() -> String {
        format!("{} to {}", Version::OLDEST.number(), Version::NEWEST.number())
    }

    /// The newest that both speak; else why there is none.
    pub fn agree(self, other: Self) -> Result<Agreed, String> {
        let newest = self.newest.min(other.newest);
        if newest < self.oldest.max(other.oldest) {
            return Err(format!(
                "no common link protocol version: this side speaks {} to {}, the other {} to {}; upgrade the older one",
                self.oldest, self.newest, other.oldest, other.newest
            ));
        }
        let version = Version::from_number(newest).map_err(|error| error.to_string())?;
        Ok(Agreed { version, zstd: self.zstd && other.zstd && version >= Version::V2 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_spoken() {
        let this = Speaks::this(true);
        assert_eq!(this.agree(this), Ok(Agreed { version: Version::V4, zstd: true }));
        assert_eq!(this.agree(Speaks::this(false)), Ok(Agreed { version: Version::V4, zstd: false }));
        assert_eq!(this.agree(Speaks::FIRST), Ok(Agreed { version: Version::V1, zstd: false }));
        let newer = Speaks { oldest: 2, newest: 9, zstd: true };
        assert_eq!(this.agree(newer), Ok(Agreed { version: Version::V4, zstd: true }));
        let second = Speaks { oldest: 1, newest: 2, zstd: true };
        assert_eq!(this.agree(second), Ok(Agreed { version: Version::V2, zstd: true }));
        let foreign = Speaks { oldest: 7, newest: 9, zstd: true };
        let why = this.agree(foreign).expect_err("nothing in common");
        assert!(why.contains("1 to 4") && why.contains("7 to 9"), "{why}");
    }
}
