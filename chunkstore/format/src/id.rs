//! Identifiers. Each kind of object has its own type, so they cannot be mixed up.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use data_encoding::{Encoding, HEXLOWER, Specification};

use crate::FormatError;

/// Base 32 in lower case without `i`, `l`, `o`, `u`: no two letters look alike.
static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut spec = Specification::new();
    spec.symbols.push_str("0123456789abcdefghjkmnpqrstvwxyz");
    spec.encoding().expect("32 distinct symbols make an encoding")
});

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $len:expr, $encoding:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Bytes in the id.
            pub const LEN: usize = $len;

            /// The id with these bytes.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The id's bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&$encoding.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = FormatError;

            fn from_str(text: &str) -> Result<Self, FormatError> {
                let bytes = $encoding
                    .decode(text.as_bytes())
                    .map_err(|e| FormatError::invalid(stringify!($name), format!("'{text}': {e}")))?;
                let bytes = bytes.try_into().map_err(|_| {
                    FormatError::invalid(stringify!($name), format!("'{text}' has another length"))
                })?;
                Ok(Self(bytes))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id! {
    /// The name of a chunk: the keyed BLAKE3 of its decoded bytes (FORMAT.md, Chunk ids).
    ChunkId, 32, HEXLOWER
}
id! {
    /// The name of a pack: 16 random bytes, which also select its key (FORMAT.md, Keys).
    PackId, 16, BASE32
}
id! {
    /// The name of a recovery point: 16 random bytes; people use the first six letters or more.
    PointId, 16, BASE32
}
id! {
    /// The name of a repository: 16 random bytes, chosen at creation.
    RepoId, 16, BASE32
}
id! {
    /// The name of a key slot.
    SlotId, 8, BASE32
}

id! {
    /// The name of a pin.
    PinId, 16, BASE32
}
id! {
    /// The name of an index object.
    IndexId, 16, BASE32
}
id! {
    /// The name of a record of damage.
    QuarantineId, 16, BASE32
}
id! {
    /// The name of a record of verified packs.
    VerifiedId, 16, BASE32
}

impl PointId {
    /// No point: the session of a pack whose writer is unknown.
    pub const NONE: PointId = PointId([0; 16]);

    /// The short form shown to people: the first six letters.
    pub fn short(&self) -> String {
        self.to_string()[..6].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let p = PointId::from_bytes(*b"0123456789abcdef");
        assert_eq!(p.to_string().len(), 26);
        assert_eq!(p.to_string().parse::<PointId>().unwrap(), p);
        let c = ChunkId::from_bytes([0xa5; 32]);
        assert_eq!(c.to_string().parse::<ChunkId>().unwrap(), c);
        assert_eq!(p.short().len(), 6);
    }

    #[test]
    fn bad_text_is_an_error() {
        for text in ["", "zz", "il0", "0123456789012345678901234567", "é"] {
            assert!(text.parse::<PointId>().is_err(), "{text}");
            assert!(text.parse::<ChunkId>().is_err(), "{text}");
        }
    }
}
