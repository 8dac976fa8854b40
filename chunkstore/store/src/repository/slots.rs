use backstay_format::SlotId;
use backstay_format::config::{Encryption, RepoConfig};
use backstay_format::keyslot::{KeySlot, SlotKind};
use backstay_format::limits::SMALL_PAYLOAD_MAX;
use jiff::Timestamp;

use crate::error::{Error, ErrorKind, Result};
use crate::key::{Folder, ObjectKey};
use crate::keys::Keys;
use crate::secret::Unlock;
use crate::storage::Storage;

use super::{ENVELOPE_OVERHEAD, Inner};

/// Most key slots of a repository: each wrong passphrase costs a derivation for every slot.
const SLOTS_MAX: usize = 64;

/// A key slot, as anybody may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySlotInfo {
    /// The slot.
    pub id: SlotId,
    /// Whether a passphrase opens it; otherwise a key file does.
    pub passphrase: bool,
    /// Its name.
    pub label: String,
    /// When it was made.
    pub created: Timestamp,
}

impl From<&KeySlot> for KeySlotInfo {
    fn from(slot: &KeySlot) -> Self {
        Self {
            id: slot.id,
            passphrase: slot.kind == SlotKind::Passphrase,
            label: slot.label.clone(),
            created: slot.created,
        }
    }
}

/// Reads the slots; those that are damaged or of another repository come with the reason.
fn load(storage: &dyn Storage, config: &RepoConfig) -> Result<Vec<Result<KeySlot>>> {
    let max = u64::from(SMALL_PAYLOAD_MAX) + ENVELOPE_OVERHEAD;
    let mut slots = Vec::new();
    for key in storage.list(Folder::Slots)?.into_iter().take(SLOTS_MAX) {
        let slot = storage.get(key, max).and_then(|bytes| {
            let (repo, slot) = KeySlot::decode(&bytes)
                .map_err(|e| Error::format(format!("{key} is damaged"), e))?;
            if repo != config.id || key != ObjectKey::Slot(slot.id) {
                let text = format!("{key} belongs to another repository");
                return Err(Error::new(ErrorKind::Damaged, text));
            }
            Ok(slot)
        });
        slots.push(slot);
    }
    Ok(slots)
}

pub(super) fn list(storage: &dyn Storage, config: &RepoConfig) -> Result<Vec<KeySlotInfo>> {
    let mut infos: Vec<KeySlotInfo> =
        load(storage, config)?.iter().flatten().map(KeySlotInfo::from).collect();
    infos.sort_by_key(|i| i.created);
    Ok(infos)
}

/// Opens the first slot that `unlock` fits.
pub(super) fn open_keys(
    storage: &dyn Storage,
    config: &RepoConfig,
    unlock: &Unlock,
) -> Result<Keys> {
    if config.encryption == Encryption::None {
        return Ok(Keys::new(Keys::public_master(config.id), config.encryption));
    }
    if matches!(unlock, Unlock::None) {
        return Err(Error::new(
            ErrorKind::NeedsKey,
            "the repository is encrypted: a passphrase or a key file is needed",
        ));
    }
    let slots = load(storage, config)?;
    let mut damaged = None;
    let mut tried = 0;
    for slot in slots {
        match slot {
            Ok(slot) => {
                tried += 1;
                if let Some(master) = Keys::unwrap_slot(config.id, &slot, unlock)? {
                    return Ok(Keys::new(master, config.encryption));
                }
            }
            Err(e) => damaged = Some(e),
        }
    }
    match damaged {
        // The slot that would have fitted may be the damaged one: that is no wrong key.
        Some(e) => Err(e.context("no readable key slot fits, and a key slot is damaged")),
        None if tried == 0 => {
            Err(Error::new(ErrorKind::Damaged, "the repository has lost its key slots"))
        }
        None => Err(Error::new(
            ErrorKind::WrongKey,
            format!("this key opens none of the repository's {tried} key slots"),
        )),
    }
}

pub(super) fn add(
    inner: &Inner,
    new: &Unlock,
    label: &str,
    time: Timestamp,
) -> Result<KeySlotInfo> {
    let config = inner.config();
    if config.encryption == Encryption::None {
        return Err(Error::new(ErrorKind::Invalid, "a repository without encryption has no keys"));
    }
    if inner.storage().list(Folder::Slots)?.len() >= SLOTS_MAX {
        let text = format!("the repository has {SLOTS_MAX} key slots; remove one first");
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    let slot = inner.keys().wrap(config.id, new, label, time, inner.entropy())?;
    let bytes =
        slot.encode(config.id).map_err(|e| Error::format("cannot write the key slot", e))?;
    inner.storage().put(ObjectKey::Slot(slot.id), &[&bytes])?;
    Ok(KeySlotInfo::from(&slot))
}

pub(super) fn remove(inner: &Inner, id: &str) -> Result<()> {
    let slots = load(inner.storage(), inner.config())?;
    let readable = slots.iter().flatten().count();
    let wanted = slots.iter().flatten().find(|s| s.id.to_string() == id);
    let Some(slot) = wanted else {
        return Err(Error::new(ErrorKind::NotFound, format!("there is no key slot {id}")));
    };
    if readable <= 1 {
        return Err(Error::new(
            ErrorKind::Invalid,
            "this is the last key slot: without it nobody could open the repository again",
        ));
    }
    inner.storage().delete(ObjectKey::Slot(slot.id))
}
