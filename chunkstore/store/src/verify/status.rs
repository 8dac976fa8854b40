use backstay_format::PackId;
use backstay_format::verified::Level;
use jiff::Timestamp;

use crate::error::{ErrorKind, Result};
use crate::gc::Amount;
use crate::key::{Folder, ObjectKey};
use crate::repository::Inner;

use super::facts::Facts;

/// Upper ends, in days, of the classes of age in [`VerifyStatus::ages`]; the last class is open.
pub const AGE_DAYS: [u32; 5] = [1, 7, 30, 90, 365];

/// How old the last verification of each pack is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyStatus {
    /// What counts as verified.
    pub level: Level,
    /// All packs.
    pub stored: Amount,
    /// Packs never verified at that level.
    pub never: Amount,
    /// Packs that were found bad when they were last read.
    pub bad: Amount,
    /// When the pack that was verified longest ago was.
    pub oldest: Option<Timestamp>,
    /// Packs by the age of their last verification: up to each of [`AGE_DAYS`], and beyond.
    pub ages: [Amount; AGE_DAYS.len() + 1],
}

pub(crate) fn add(amount: &mut Amount, bytes: u64) {
    amount.packs += 1;
    amount.bytes += bytes;
}

/// Every stored pack that does not count as absent as a whole, with its length.
pub(crate) fn stored_packs(inner: &Inner) -> Result<Vec<(PackId, u64)>> {
    let known: std::collections::HashMap<PackId, u64> =
        inner.index()?.packs().into_iter().map(|(id, info)| (id, info.len)).collect();
    let mut packs = Vec::new();
    for key in inner.storage().list(Folder::Packs)? {
        let ObjectKey::Pack(id) = key else { continue };
        if inner.quarantine().is_whole(id) {
            continue;
        }
        let len = match known.get(&id) {
            Some(len) => *len,
            None => match inner.storage().size(key) {
                Ok(len) => len,
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            },
        };
        packs.push((id, len));
    }
    Ok(packs)
}

pub(crate) fn status(
    inner: &Inner,
    facts: &Facts,
    packs: &[(PackId, u64)],
    level: Level,
) -> VerifyStatus {
    let now = inner.entropy().now();
    let mut status = VerifyStatus {
        level,
        stored: Amount::default(),
        never: Amount::default(),
        bad: Amount::default(),
        oldest: None,
        ages: [Amount::default(); AGE_DAYS.len() + 1],
    };
    for &(id, len) in packs {
        add(&mut status.stored, len);
        let Some(fact) = facts.newest(id, level, now) else {
            add(&mut status.never, len);
            continue;
        };
        if !fact.whole {
            add(&mut status.bad, len);
        }
        status.oldest = Some(status.oldest.map_or(fact.time, |t| t.min(fact.time)));
        let hours = now.duration_since(fact.time).as_hours();
        let class = AGE_DAYS.iter().position(|days| hours <= i64::from(*days) * 24);
        add(&mut status.ages[class.unwrap_or(AGE_DAYS.len())], len);
    }
    status
}
