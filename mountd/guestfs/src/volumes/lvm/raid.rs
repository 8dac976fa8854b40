//! Arrays of LVM: which images may be read, by what dm-raid keeps beside them, and how they are laid out (kernel document
//! `admin-guide/device-mapper/dm-raid.rst`; the superblock is that of `dm-raid.c`).

use std::sync::Arc;

use crate::fields::Fields;
use crate::volumes::map::{Leg, Map, Stripes};
use crate::volumes::parity::{Layout, Parity};
use crate::{Error, Media};

const MAGIC: u32 = 0x6452_6d44;
/// The array changes its shape: chunks lie in the old way up to a place, and in the new way from there on.
const RESHAPES: u32 = 3;
const SUPERBLOCK_BYTES: usize = 512;
/// The bits of members that failed, in words of 64.
const FAILED_WORDS: u64 = 64;

/// What one member says of the array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    events: u64,
    failed: u64,
    /// Up to where this member is as the others are; all ones for all of it.
    recovered: u64,
}

/// Reads the superblock of a member; `None` if it has none yet.
pub(super) fn state(media: &Media) -> Result<Option<State>, Error> {
    let what = "the superblock of an array's member";
    let block = media.bytes(0, SUPERBLOCK_BYTES, what)?;
    let fields = Fields::new(&block, what);
    if fields.le32(0)? != MAGIC {
        return Ok(None);
    }
    // The words behind the first ones are only there when the second word says so.
    let extended = fields.le32(4)? & 1 == 1;
    if extended && fields.le32(60)? & RESHAPES != 0 {
        return Err(Error::unsupported("an array in the middle of a reshape is not read here"));
    }
    Ok(Some(State {
        events: fields.le64(16)?,
        failed: fields.le64(24)?,
        recovered: fields.le64(32)?,
    }))
}

/// Which members hold what was written last. One that is not there says nothing; if none says anything the array was never
/// used, and all are as good.
pub(super) fn in_sync(states: &[Option<State>]) -> Vec<bool> {
    let newest = states.iter().flatten().max_by_key(|state| state.events).copied();
    let Some(newest) = newest else { return vec![true; states.len()] };
    let good = |(member, state): (u64, &Option<State>)| {
        let failed = member < FAILED_WORDS && newest.failed >> member & 1 == 1;
        // A member that missed one update of the superblocks has missed no write.
        let fresh =
            |s: &State| s.recovered == u64::MAX && s.events.saturating_add(1) >= newest.events;
        !failed && state.as_ref().is_some_and(fresh)
    };
    (0..).zip(states).map(good).collect()
}

/// The array itself. `legs` that are missing or old are `None`.
pub(super) fn map(
    kind: &str,
    legs: Vec<Option<Leg>>,
    stripe: u64,
    copies: u64,
    size: u64,
    why: &str,
) -> Result<Arc<dyn Map>, Error> {
    let copies = usize::try_from(copies).unwrap_or(usize::MAX);
    let parity = |level, number, legs| -> Result<Arc<dyn Map>, Error> {
        Ok(Arc::new(Parity::new(legs, stripe, Layout::new(level, number)?, size, why)?))
    };
    match kind {
        // One chunk as long as the volume, a copy of it on each leg.
        "raid1" => {
            let copies = legs.len();
            Ok(Arc::new(Stripes::new(legs, size.max(1), copies, size, why)?))
        }
        "raid0" | "raid0_meta" => Ok(Arc::new(Stripes::new(legs, stripe, 1, size, why)?)),
        "raid10" | "raid10_near" => Ok(Arc::new(Stripes::new(legs, stripe, copies, size, why)?)),
        "raid4" => parity(5, 4, legs),
        "raid5_la" => parity(5, 0, legs),
        "raid5_ra" => parity(5, 1, legs),
        "raid5" | "raid5_ls" => parity(5, 2, legs),
        "raid5_rs" => parity(5, 3, legs),
        "raid5_n" => parity(5, 5, legs),
        "raid6" | "raid6_zr" => parity(6, 8, legs),
        "raid6_nr" => parity(6, 9, legs),
        "raid6_nc" => parity(6, 10, legs),
        "raid6_n_6" => parity(6, 5, legs),
        "raid6_la_6" => parity(6, 16, legs),
        "raid6_ra_6" => parity(6, 17, legs),
        "raid6_ls_6" => parity(6, 18, legs),
        "raid6_rs_6" => parity(6, 19, legs),
        other => Err(Error::unsupported(format!("LVM's {other} is not read here"))),
    }
}
