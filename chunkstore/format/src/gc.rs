//! Collections: what is condemned in which generation, and what became of it.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::limits::GC_PAYLOAD_MAX;
use crate::record::{Record, check_text};
use crate::{FormatError, PackId, PointId, magic};

/// The number of a collection. They follow each other without gaps, and one is planned only when
/// the one before has ended. Zero: there was none yet.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Generation(pub u64);

impl Generation {
    /// The one after.
    pub const fn next(self) -> Generation {
        Generation(self.0.saturating_add(1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A session as a collection saw it: one that shows the same beat much later does not live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenSession {
    /// The session.
    pub id: PointId,
    /// Its beat.
    pub beat: u32,
}

/// The packs that a collection wants to delete. From the moment it exists, whoever registers sees
/// them as absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Its number.
    pub generation: Generation,
    /// The packs, sorted.
    pub condemned: Vec<PackId>,
    /// The sessions that were open.
    pub sessions: Vec<SeenSession>,
    /// Who made the plan.
    pub by: String,
    /// When, by their clock.
    pub time: Timestamp,
}

impl Record for Plan {
    const MAGIC: [u8; 8] = magic::GC_PLAN;
    const WHAT: &'static str = "collection plan";
    const PAYLOAD_MAX: u32 = GC_PAYLOAD_MAX;

    fn check(&self) -> Result<(), FormatError> {
        check_sorted("condemned", &self.condemned)?;
        check_text("by", &self.by)
    }
}

/// What of a plan is deleted: what nothing referred to once every writer that could have referred
/// to it was gone. The first verdict stands; whoever sweeps deletes exactly its packs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Its number.
    pub generation: Generation,
    /// The packs, sorted; all of them condemned by the plan.
    pub doomed: Vec<PackId>,
    /// When, by the collector's clock.
    pub time: Timestamp,
}

impl Record for Verdict {
    const MAGIC: [u8; 8] = magic::GC_VERDICT;
    const WHAT: &'static str = "collection verdict";
    const PAYLOAD_MAX: u32 = GC_PAYLOAD_MAX;

    fn check(&self) -> Result<(), FormatError> {
        check_sorted("doomed", &self.doomed)
    }
}

/// What became of a plan. With it the collection is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Its number.
    pub generation: Generation,
    /// Packs that are gone, sorted.
    pub deleted: Vec<PackId>,
    /// Condemned packs that stay, and may be used again. Sorted.
    pub kept: Vec<PackId>,
    /// Doomed packs under a retention lock. They stay condemned: somebody may delete them at any
    /// moment. The next plan has them again. Sorted.
    pub locked: Vec<PackId>,
    /// When, by the collector's clock.
    pub time: Timestamp,
}

impl Record for End {
    const MAGIC: [u8; 8] = magic::GC_END;
    const WHAT: &'static str = "collection end";
    const PAYLOAD_MAX: u32 = GC_PAYLOAD_MAX;

    fn check(&self) -> Result<(), FormatError> {
        check_sorted("deleted", &self.deleted)?;
        check_sorted("kept", &self.kept)?;
        check_sorted("locked", &self.locked)
    }
}

fn check_sorted(field: &'static str, packs: &[PackId]) -> Result<(), FormatError> {
    if packs.windows(2).all(|w| w[0] < w[1]) {
        return Ok(());
    }
    Err(FormatError::invalid(field, "the packs are not sorted, or one stands twice"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(condemned: Vec<PackId>) -> Plan {
        Plan {
            generation: Generation(7),
            condemned,
            sessions: vec![SeenSession { id: PointId::from_bytes([9; 16]), beat: 3 }],
            by: "gc on vault".into(),
            time: "2026-11-22T03:00:00Z".parse().unwrap(),
        }
    }

    #[test]
    fn there_and_back() {
        let p = plan(vec![PackId::from_bytes([1; 16]), PackId::from_bytes([2; 16])]);
        assert_eq!(Plan::decode(&p.encode().unwrap()).unwrap(), p);
    }

    #[test]
    fn disorder_is_refused() {
        let (a, b) = (PackId::from_bytes([1; 16]), PackId::from_bytes([2; 16]));
        assert!(plan(vec![b, a]).encode().is_err());
        assert!(plan(vec![a, a]).encode().is_err());
        let mut bytes = plan(vec![a, b]).encode().unwrap();
        let text = String::from_utf8(bytes.clone()).unwrap();
        bytes = text.replacen(&a.to_string(), &b.to_string(), 1).into_bytes();
        assert!(Plan::decode(&bytes).is_err());
    }
}
