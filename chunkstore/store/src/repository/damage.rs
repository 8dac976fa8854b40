use std::collections::BTreeMap;

use backstay_format::{ChunkId, PackId};
use parking_lot::Mutex;

/// Most chunks remembered. Damage beyond it is found by a check all the same.
const NOTED_MAX: usize = 10_000;

/// Copies of chunks that a read found damaged, for the checks to look at first. In memory: it
/// goes with the process.
#[derive(Debug, Default)]
pub(crate) struct NotedDamage(Mutex<BTreeMap<(PackId, ChunkId), String>>);

impl NotedDamage {
    /// Remembers the first reason for each copy.
    pub(crate) fn note(&self, pack: PackId, id: ChunkId, reason: String) {
        let mut noted = self.0.lock();
        if noted.len() < NOTED_MAX || noted.contains_key(&(pack, id)) {
            noted.entry((pack, id)).or_insert(reason);
        }
    }

    /// What was noted, by pack.
    pub(crate) fn list(&self) -> Vec<(PackId, ChunkId, String)> {
        let noted = self.0.lock();
        noted.iter().map(|((pack, id), reason)| (*pack, *id, reason.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_and_the_first_reason_stays() {
        let noted = NotedDamage::default();
        let pack = PackId::from_bytes([1; 16]);
        let id = |n: u32| {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&n.to_be_bytes());
            ChunkId::from_bytes(bytes)
        };
        for n in 0..2 * NOTED_MAX as u32 {
            noted.note(pack, id(n), format!("reason {n}"));
        }
        noted.note(pack, id(1), "another".into());
        let list = noted.list();
        assert_eq!(list.len(), NOTED_MAX);
        assert_eq!(list[1], (pack, id(1), "reason 1".to_owned()));
    }
}
