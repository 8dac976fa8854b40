//! Damage that was found: copies of chunks that count as absent from now on.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::limits::{
    QUARANTINE_CHUNKS_MAX, QUARANTINE_PACKS_MAX, QUARANTINE_PAYLOAD_MAX, QUARANTINE_REASON_MAX,
};
use crate::record::{Record, check_text};
use crate::{ChunkId, FormatError, PackId, QuarantineId, magic};

/// What is bad in one pack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadPack {
    /// The pack.
    pub pack: PackId,
    /// The chunks whose copy in this pack is bad, sorted; none: nothing in the pack can be told
    /// apart, and all of it counts as absent.
    pub chunks: Option<Vec<ChunkId>>,
    /// How it was noticed.
    pub reason: String,
    /// When, by the clock of the host that found it.
    pub found: Timestamp,
}

/// Copies of chunks that are known to be bad. They count as absent for deduplication, so that the
/// next backup that has the data stores it again, and are read only when no other copy is left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    /// Its id; also its object name.
    pub id: QuarantineId,
    /// What is bad. A pack may stand in several records: all of them hold.
    pub packs: Vec<BadPack>,
    /// Who found it.
    pub by: String,
}

impl Record for Quarantine {
    const MAGIC: [u8; 8] = magic::QUARANTINE;
    const WHAT: &'static str = "record of damage";
    const PAYLOAD_MAX: u32 = QUARANTINE_PAYLOAD_MAX;

    fn check(&self) -> Result<(), FormatError> {
        if self.packs.len() > QUARANTINE_PACKS_MAX {
            return Err(FormatError::invalid("packs", format!("{} packs", self.packs.len())));
        }
        let chunks: usize = self.packs.iter().filter_map(|p| Some(p.chunks.as_ref()?.len())).sum();
        if chunks > QUARANTINE_CHUNKS_MAX {
            return Err(FormatError::invalid("chunks", format!("{chunks} chunks")));
        }
        for bad in &self.packs {
            let sorted = |ids: &Vec<ChunkId>| ids.windows(2).all(|w| w[0] < w[1]);
            if !bad.chunks.as_ref().is_none_or(sorted) {
                let text = "the chunks are not sorted, or one stands twice";
                return Err(FormatError::invalid("chunks", text));
            }
            if bad.reason.len() > QUARANTINE_REASON_MAX {
                return Err(FormatError::invalid("reason", "it is too long"));
            }
            check_text("reason", &bad.reason)?;
        }
        check_text("by", &self.by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(chunks: Option<Vec<ChunkId>>) -> Quarantine {
        let bad = BadPack {
            pack: PackId::from_bytes([1; 16]),
            chunks,
            reason: "the stored bytes fail authentication".into(),
            found: "2026-11-22T03:00:00Z".parse().unwrap(),
        };
        Quarantine { id: QuarantineId::from_bytes([2; 16]), packs: vec![bad], by: "vault".into() }
    }

    #[test]
    fn there_and_back() {
        let (a, b) = (ChunkId::from_bytes([1; 32]), ChunkId::from_bytes([2; 32]));
        for chunks in [None, Some(vec![]), Some(vec![a, b])] {
            let q = sample(chunks);
            assert_eq!(Quarantine::decode(&q.encode().unwrap()).unwrap(), q);
        }
        assert!(sample(Some(vec![b, a])).encode().is_err());
    }

    #[test]
    fn the_largest_record_fits_its_bound() {
        let ids = (0..QUARANTINE_CHUNKS_MAX as u32).map(|n| {
            let mut id = [0xff; 32];
            id[..4].copy_from_slice(&n.to_be_bytes());
            ChunkId::from_bytes(id)
        });
        let mut q = sample(Some(ids.collect()));
        let reason = "x".repeat(QUARANTINE_REASON_MAX);
        let other = BadPack { chunks: None, reason, ..q.packs[0].clone() };
        q.packs.resize(QUARANTINE_PACKS_MAX, other);
        assert!(q.encode().unwrap().len() < QUARANTINE_PAYLOAD_MAX as usize);
    }
}
