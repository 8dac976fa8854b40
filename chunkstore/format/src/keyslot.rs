//! Key slots: the repository's master key, wrapped under what an administrator holds.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::envelope::Envelope;
use crate::limits::SMALL_PAYLOAD_MAX;
use crate::{FormatError, RepoId, SlotId, magic};

/// What opens a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlotKind {
    /// A passphrase, stretched by Argon2id.
    Passphrase,
    /// The content of a key file.
    KeyFile,
    /// A recovery key: 256 random bits that a person keeps on paper ([`crate::recovery`]).
    Recovery,
}

/// The cost of one guess at a passphrase (RFC 9106).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Argon2Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Argon2Cost {
    /// RFC 9106, section 4, second recommended choice: 64 MiB, 3 passes, 4 lanes.
    pub const DEFAULT: Argon2Cost = Argon2Cost { memory_kib: 64 * 1024, passes: 3, lanes: 4 };
    /// Most memory a slot may ask of a reader, so that a hostile slot cannot exhaust it: 1 GiB.
    pub const MEMORY_MAX_KIB: u32 = 1024 * 1024;
    /// Most passes a slot may ask for.
    pub const PASSES_MAX: u32 = 64;
    /// Most lanes a slot may ask for.
    pub const LANES_MAX: u32 = 64;

    fn check(&self) -> Result<(), FormatError> {
        let fits = (8 * self.lanes.max(1)..=Self::MEMORY_MAX_KIB).contains(&self.memory_kib)
            && (1..=Self::PASSES_MAX).contains(&self.passes)
            && (1..=Self::LANES_MAX).contains(&self.lanes);
        if fits { Ok(()) } else { Err(FormatError::damaged("argon2", "cost out of bounds")) }
    }
}

/// One key slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySlot {
    /// The slot's id; also its object name.
    pub id: SlotId,
    /// What opens it.
    pub kind: SlotKind,
    /// A name for people.
    pub label: String,
    /// When it was made.
    pub created: Timestamp,
    /// Cost for passphrases.
    pub argon2: Option<Argon2Cost>,
    /// 16 random bytes, hexadecimal.
    #[serde(with = "hex16")]
    pub salt: [u8; 16],
    /// AES-256-GCM nonce of the wrapping, hexadecimal.
    #[serde(with = "hex12")]
    pub nonce: [u8; 12],
    /// The wrapped master key: 32 bytes and the tag, hexadecimal.
    #[serde(with = "hex48")]
    pub wrapped: [u8; 48],
    /// The slot this one was made to take the place of. As long as that one is there too, the
    /// rotation was not finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<SlotId>,
}

impl KeySlot {
    /// What the wrapping is bound to: repository, slot and kind.
    pub fn associated_data(&self, repo: RepoId) -> Vec<u8> {
        let mut aad = Envelope::associated_data(magic::SLOT, repo, self.id.as_bytes());
        aad.push(match self.kind {
            SlotKind::Passphrase => 1,
            SlotKind::KeyFile => 2,
            SlotKind::Recovery => 3,
        });
        aad
    }

    /// The object's bytes.
    pub fn encode(&self, repo: RepoId) -> Result<Vec<u8>, FormatError> {
        let payload = serde_json::to_vec(self)
            .map_err(|e| FormatError::invalid("key slot", e.to_string()))?;
        Envelope { repo_id: repo, sealed: false, payload }.encode(magic::SLOT)
    }

    /// Reads the object's bytes.
    pub fn decode(bytes: &[u8]) -> Result<(RepoId, Self), FormatError> {
        let envelope = Envelope::decode(bytes, magic::SLOT, SMALL_PAYLOAD_MAX)?;
        let slot: KeySlot = serde_json::from_slice(&envelope.payload)
            .map_err(|e| FormatError::damaged("key slot", e.to_string()))?;
        match (slot.kind, &slot.argon2) {
            (SlotKind::Passphrase, Some(cost)) => cost.check()?,
            (SlotKind::Passphrase, None) => {
                return Err(FormatError::damaged("argon2", "a passphrase slot needs a cost"));
            }
            (SlotKind::KeyFile | SlotKind::Recovery, _) => {}
        }
        Ok((envelope.repo_id, slot))
    }
}

macro_rules! hex_array {
    ($module:ident, $len:expr) => {
        mod $module {
            pub(super) fn serialize<S: serde::Serializer>(
                v: &[u8; $len],
                s: S,
            ) -> Result<S::Ok, S::Error> {
                s.serialize_str(&data_encoding::HEXLOWER.encode(v))
            }

            pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(
                d: D,
            ) -> Result<[u8; $len], D::Error> {
                let text = <String as serde::Deserialize>::deserialize(d)?;
                let bytes = data_encoding::HEXLOWER
                    .decode(text.as_bytes())
                    .map_err(serde::de::Error::custom)?;
                bytes.try_into().map_err(|_| serde::de::Error::custom("wrong length"))
            }
        }
    };
}
hex_array!(hex12, 12);
hex_array!(hex16, 16);
hex_array!(hex48, 48);

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> KeySlot {
        KeySlot {
            id: SlotId::from_bytes([1; 8]),
            kind: SlotKind::Passphrase,
            label: "first".into(),
            created: "2026-11-22T03:00:00Z".parse().unwrap(),
            argon2: Some(Argon2Cost::DEFAULT),
            salt: [2; 16],
            nonce: [3; 12],
            wrapped: [4; 48],
            replaces: None,
        }
    }

    #[test]
    fn there_and_back() {
        let repo = RepoId::from_bytes([9; 16]);
        let bytes = sample().encode(repo).unwrap();
        assert_eq!(KeySlot::decode(&bytes).unwrap(), (repo, sample()));
        // What is not there is not written, so slots of older programs read the same.
        assert!(!String::from_utf8_lossy(&bytes).contains("replaces"));
        let other = KeySlot {
            kind: SlotKind::Recovery,
            argon2: None,
            replaces: Some(SlotId::from_bytes([5; 8])),
            ..sample()
        };
        assert_eq!(KeySlot::decode(&other.encode(repo).unwrap()).unwrap(), (repo, other));
    }

    #[test]
    fn a_slot_cannot_ask_for_endless_memory() {
        let repo = RepoId::from_bytes([9; 16]);
        for cost in [
            Argon2Cost { memory_kib: u32::MAX, ..Argon2Cost::DEFAULT },
            Argon2Cost { passes: 0, ..Argon2Cost::DEFAULT },
            Argon2Cost { passes: 1 << 20, ..Argon2Cost::DEFAULT },
            Argon2Cost { lanes: 1 << 20, ..Argon2Cost::DEFAULT },
        ] {
            let slot = KeySlot { argon2: Some(cost), ..sample() };
            assert!(KeySlot::decode(&slot.encode(repo).unwrap()).is_err(), "{cost:?}");
        }
    }
}
