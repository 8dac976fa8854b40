use backstay_format::PackId;
use backstay_format::limits::PACK_TARGET;
use backstay_format::pack::PackKind;

use crate::index::PackInfo;

use super::mark::Marks;
use super::roots::Roots;
use super::{Amount, CollectOptions, CollectReport};

/// Packs smaller than this are worth merging.
const SMALL: u64 = PACK_TARGET as u64 / 8;
/// Small packs of one kind that there may be.
const SMALL_MAX: usize = 16;
/// A pack is thin when at least this share of it is waste.
const THIN_PERCENT: u64 = 20;

/// What to do with the packs.
#[derive(Debug, Default)]
pub(super) struct Decision {
    /// Nothing refers to them.
    pub(super) dead: Vec<PackId>,
    /// Their live chunks are copied elsewhere first.
    pub(super) thin: Vec<PackId>,
    /// Live bytes in the thin ones.
    pub(super) live_bytes: u64,
    /// There are packs of open writers that nothing refers to yet.
    pub(super) undecided: bool,
    stored: Amount,
    dead_amount: Amount,
    thin_amount: Amount,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: PackId,
    info: PackInfo,
    live: u64,
}

impl Candidate {
    fn waste(&self) -> u64 {
        self.info.len.saturating_sub(self.live)
    }
}

/// Decides. Packs of writers that are still open are left alone: their points are to come.
pub(super) fn decide(
    packs: &[(PackId, PackInfo)],
    marks: &Marks,
    roots: &Roots,
    options: &CollectOptions,
) -> Decision {
    let mut decision = Decision::default();
    let writers = roots.writers();
    let mut used = Vec::new();
    for &(id, info) in packs {
        decision.stored.add(info.len);
        if writers.contains(&info.session) {
            decision.undecided |= marks.pack(id).is_none();
            continue;
        }
        match marks.pack(id) {
            None => {
                decision.dead_amount.add(info.len);
                decision.dead.push(id);
            }
            Some(m) => {
                // The share of the entries stands for the share of the bytes.
                let live = u128::from(info.len) * u128::from(m.count());
                let live = live / u128::from(info.chunks.max(1));
                used.push(Candidate { id, info, live: live as u64 });
            }
        }
    }
    if options.repack {
        decision.choose_thin(used, options);
    }
    decision
}

impl Decision {
    pub(super) fn is_empty(&self) -> bool {
        self.dead.is_empty() && self.thin.is_empty()
    }

    /// Takes a pack out: its chunks could not be copied.
    pub(super) fn spare(&mut self, id: PackId) {
        self.thin.retain(|t| *t != id);
    }

    pub(super) fn tell(&self, report: &mut CollectReport) {
        report.stored = self.stored;
        report.dead = self.dead_amount;
        report.repacked = self.thin_amount;
        report.later = Amount {
            packs: self.dead_amount.packs + self.thin_amount.packs,
            bytes: self.dead_amount.bytes + self.thin_amount.bytes,
        };
    }

    fn choose_thin(&mut self, mut used: Vec<Candidate>, options: &CollectOptions) {
        let mut budget = options.repack_bytes;
        for kind in [PackKind::Tree, PackKind::Data] {
            let small = |c: &&Candidate| c.info.kind == kind && c.info.len < SMALL;
            let small: Vec<Candidate> = used.iter().filter(small).copied().collect();
            if small.len() >= SMALL_MAX {
                for c in small {
                    self.take(c, &mut budget);
                }
            }
        }
        used.retain(|c| !self.thin.contains(&c.id));
        // The thinnest first: they free the most for what is copied.
        used.sort_by_key(|c| (c.live * 1000 / c.info.len.max(1), c.id));
        let total: u64 = used.iter().map(|c| c.info.len).sum();
        let mut waste: u64 = used.iter().map(Candidate::waste).sum();
        for c in used {
            let allowed = total / 100 * u64::from(options.waste_percent.min(100));
            let thin = c.waste() * 100 >= c.info.len * THIN_PERCENT;
            if waste <= allowed || !thin {
                break;
            }
            if self.take(c, &mut budget) {
                waste -= c.waste();
            }
        }
    }

    fn take(&mut self, c: Candidate, budget: &mut u64) -> bool {
        if c.live > *budget {
            return false;
        }
        *budget -= c.live;
        self.live_bytes += c.live;
        self.thin_amount.add(c.info.len);
        self.thin.push(c.id);
        true
    }
}
