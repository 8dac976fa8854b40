//! Which packs were read and found whole, and when: facts, and no promise about today.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::limits::{VERIFIED_PACKS_MAX, VERIFIED_PAYLOAD_MAX};
use crate::record::Record;
use crate::{FormatError, PackId, VerifiedId, magic};

/// How thoroughly a pack was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Every byte against the pack's own checksum.
    Checksums,
    /// Every chunk authenticated, decoded, and compared with its id, too.
    Full,
}

/// What was seen of one pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedPack {
    /// The pack.
    pub pack: PackId,
    /// When, by the clock of the host that read it.
    pub time: Timestamp,
    /// How.
    pub level: Level,
    /// Whether it was found whole, but for what is in quarantine.
    pub whole: bool,
}

/// Some packs that were verified. Records are merged, so a pack may stand in several; of each
/// level the newest counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Its id; also its object name.
    pub id: VerifiedId,
    /// The packs.
    pub packs: Vec<VerifiedPack>,
}

impl Record for Verified {
    const MAGIC: [u8; 8] = magic::VERIFIED;
    const WHAT: &'static str = "record of verified packs";
    const PAYLOAD_MAX: u32 = VERIFIED_PAYLOAD_MAX;

    fn check(&self) -> Result<(), FormatError> {
        if self.packs.len() > VERIFIED_PACKS_MAX {
            return Err(FormatError::invalid("packs", format!("{} packs", self.packs.len())));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_record_fits_its_bound_and_comes_back() {
        let one = VerifiedPack {
            pack: PackId::from_bytes([7; 16]),
            time: "2026-11-22T03:00:00.123456789Z".parse().unwrap(),
            level: Level::Checksums,
            whole: false,
        };
        let mut v = Verified { id: VerifiedId::from_bytes([2; 16]), packs: vec![one] };
        v.packs.resize(VERIFIED_PACKS_MAX, one);
        let bytes = v.encode().unwrap();
        assert!(bytes.len() < VERIFIED_PAYLOAD_MAX as usize, "{}", bytes.len());
        assert_eq!(Verified::decode(&bytes).unwrap(), v);
        v.packs.push(one);
        assert!(v.encode().is_err());
    }
}
