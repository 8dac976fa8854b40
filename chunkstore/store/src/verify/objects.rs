//! The small objects: whether each can be read.

use backstay_format::gc::{End, Plan, Verdict};
use backstay_format::keyslot::KeySlot;
use backstay_format::limits::SMALL_PAYLOAD_MAX;
use backstay_format::quarantine::Quarantine;
use backstay_format::record::Record;
use backstay_format::removal::{Pin, Removal};
use backstay_format::session::Session;
use backstay_format::verified::Verified;

use crate::error::{Error, ErrorKind, Result};
use crate::key::{Folder, ObjectKey};
use crate::progress::Progress;
use crate::quarantine::lost;
use crate::record;
use crate::repository::Inner;

use super::damage::{DamageKind, Findings};
use super::walk::stopped;

/// What an envelope has besides its payload.
const ENVELOPE_OVERHEAD: u64 = 64;

/// The folders of small objects; points are read with their trees, parity with its pack, and index
/// objects table by table.
const FOLDERS: [Folder; 7] = [
    Folder::Slots,
    Folder::Sessions,
    Folder::Removals,
    Folder::Pins,
    Folder::Gc,
    Folder::Quarantine,
    Folder::Verified,
];

/// Reads every small object and names those that cannot be read. Returns how many there are.
pub(crate) fn check_objects(
    inner: &Inner,
    findings: &mut Findings,
    progress: &dyn Progress,
) -> Result<u64> {
    let mut count = 0;
    for folder in FOLDERS {
        for key in inner.storage().list(folder)? {
            stopped(progress)?;
            count += 1;
            match check_one(inner, key) {
                Ok(()) => {}
                // Sessions, pins and the rest come and go.
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) if lost(&e) => findings.add(DamageKind::Object(key.path()), &e),
                Err(e) => return Err(e),
            }
        }
    }
    Ok(count)
}

fn check_one(inner: &Inner, key: ObjectKey) -> Result<()> {
    match key {
        ObjectKey::Slot(id) => {
            let bytes =
                inner.storage().get(key, u64::from(SMALL_PAYLOAD_MAX) + ENVELOPE_OVERHEAD)?;
            let (repo, slot) = KeySlot::decode(&bytes)
                .map_err(|e| Error::format(format!("{key} is damaged"), e))?;
            named(key, repo == inner.config().id && slot.id == id)
        }
        ObjectKey::Session(id, _) => named(key, get::<Session>(inner, key)?.id == id),
        ObjectKey::Removal(id) => named(key, get::<Removal>(inner, key)?.point == id),
        ObjectKey::Pin(id) => named(key, get::<Pin>(inner, key)?.id == id),
        ObjectKey::GcPlan(n) => named(key, get::<Plan>(inner, key)?.generation == n),
        ObjectKey::GcVerdict(n) => named(key, get::<Verdict>(inner, key)?.generation == n),
        ObjectKey::GcEnd(n) => named(key, get::<End>(inner, key)?.generation == n),
        ObjectKey::Quarantine(id) => named(key, get::<Quarantine>(inner, key)?.id == id),
        ObjectKey::Verified(id) => named(key, get::<Verified>(inner, key)?.id == id),
        ObjectKey::Config
        | ObjectKey::Pack(_)
        | ObjectKey::Point(_)
        | ObjectKey::Parity(_)
        | ObjectKey::Index(_) => Ok(()),
    }
}

fn get<R: Record>(inner: &Inner, key: ObjectKey) -> Result<R> {
    record::get(inner, key)
}

fn named(key: ObjectKey, right: bool) -> Result<()> {
    if right {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Damaged, format!("{key} holds an object of another name")))
}
