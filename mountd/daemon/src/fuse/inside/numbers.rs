//! Inode numbers of guests' nodes.

use std::collections::HashMap;

use backstay_guestfs::fs::NodeId;
use parking_lot::RwLock;

use super::super::errno::Refusal;

/// Set in the numbers of guests' nodes and of no others.
const GUEST_BIT: u64 = 1 << 63;
/// The lower bits of a number are those of the node's own.
const OWN_BITS: u32 = 40;
/// Places nodes can belong to: volumes, their subvolumes and streams, in as many points. Bounded by the bits left.
const PLACES_MAX: usize = 1 << 22;

/// A node of a guest in this mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in super::super) struct GuestNode {
    /// The point's slot.
    pub(in super::super) slot: u64,
    /// 0 in the volumes; n in the tree of the nth system, where volumes lie within each other.
    pub(in super::super) system: u16,
    /// The volume's place in the list.
    pub(in super::super) volume: u32,
    pub(in super::super) id: NodeId,
}

/// What nodes have in common, besides the lower bits of their own numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    slot: u64,
    system: u16,
    volume: u32,
    part: u64,
    upper: u64,
}

/// Gives places numbers, as they come up.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    places: Vec<Place>,
    by_place: HashMap<Place, usize>,
}

/// Whether the number is one of a guest's node.
pub(in super::super) fn is_guest(ino: u64) -> bool {
    ino & GUEST_BIT != 0
}

impl Numbers {
    /// The number of a node: the same whenever it is asked for.
    pub(super) fn number(&self, node: GuestNode) -> Result<u64, Refusal> {
        let GuestNode { slot, system, volume, id } = node;
        let place = Place { slot, system, volume, part: id.part, upper: id.inode >> OWN_BITS };
        let own = id.inode & ((1 << OWN_BITS) - 1);
        let known = self.known.read().by_place.get(&place).copied();
        let index = match known {
            Some(index) => index,
            None => self.add(place)?,
        };
        Ok(GUEST_BIT | (index as u64) << OWN_BITS | own)
    }

    fn add(&self, place: Place) -> Result<usize, Refusal> {
        let mut known = self.known.write();
        if let Some(index) = known.by_place.get(&place) {
            return Ok(*index);
        }
        if known.places.len() >= PLACES_MAX {
            return Err(Refusal::TooManyOpen);
        }
        let index = known.places.len();
        known.places.push(place);
        known.by_place.insert(place, index);
        Ok(index)
    }

    /// The node of a number that [`number`](Self::number) gave.
    pub(super) fn node(&self, ino: u64) -> Option<GuestNode> {
        let index = usize::try_from((ino & !GUEST_BIT) >> OWN_BITS).ok()?;
        let place = *self.known.read().places.get(index)?;
        let Place { slot, system, volume, part, upper } = place;
        let inode = upper << OWN_BITS | (ino & ((1 << OWN_BITS) - 1));
        is_guest(ino).then_some(GuestNode { slot, system, volume, id: NodeId { inode, part } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_nodes() {
        let numbers = Numbers::default();
        let node = |slot, system, volume, inode, part| GuestNode {
            slot,
            system,
            volume,
            id: NodeId { inode, part },
        };
        let all = [
            node(1, 0, 0, 2, 0),
            node(1, 1, 0, 2, 0),
            node(1, 0, 1, 2, 0),
            node(2, 0, 0, 2, 0),
            node(1, 0, 0, 2, 257),
            node(1, 0, 0, u64::MAX, u64::MAX),
            node(1, 0, 0, 1 << OWN_BITS, 0),
            node(1, 0, 0, (1 << OWN_BITS) - 1, 0),
        ];
        let given: Vec<u64> = all.iter().map(|n| numbers.number(*n).unwrap()).collect();
        for (node, number) in all.iter().zip(&given) {
            assert!(is_guest(*number));
            assert_eq!(numbers.node(*number), Some(*node));
            assert_eq!(numbers.number(*node), Ok(*number), "the same again");
        }
        let mut different = given.clone();
        different.sort_unstable();
        different.dedup();
        assert_eq!(different.len(), all.len());
        for strange in [0, 1, 77 << 16, GUEST_BIT | 1 << 60, u64::MAX] {
            assert_eq!(numbers.node(strange), None, "{strange:x}");
        }
    }
}
