use backstay_format::SlotId;
use backstay_format::config::{Encryption, RepoConfig};
use backstay_format::keyslot::{KeySlot, SlotKind};
use backstay_format::limits::SMALL_PAYLOAD_MAX;
use jiff::Timestamp;

use crate::error::{Error, ErrorKind, Result};
use crate::key::{Folder, ObjectKey};
use crate::keys::{Keys, takes};
use crate::secret::Unlock;
use crate::storage::Storage;

use super::{ENVELOPE_OVERHEAD, Inner};

/// Most key slots of a repository: each wrong passphrase costs a derivation for every slot.
const SLOTS_MAX: usize = 64;

/// What one removal of a key slot claims at a time.
const CLAIM: &str = "key-slots";

/// A key slot, as anybody may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySlotInfo {
    /// The slot.
    pub id: SlotId,
    /// What opens it.
    pub kind: SlotKind,
    /// Its name.
    pub label: String,
    /// When it was made.
    pub created: Timestamp,
    /// A slot this one was made to take the place of, and that is still there: the rotation was
    /// interrupted, or is going on.
    pub replaces: Option<SlotId>,
}

impl From<&KeySlot> for KeySlotInfo {
    fn from(slot: &KeySlot) -> Self {
        Self {
            id: slot.id,
            kind: slot.kind,
            label: slot.label.clone(),
            created: slot.created,
            replaces: slot.replaces,
        }
    }
}

/// What a rotation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRotation {
    /// The new slot.
    pub added: KeySlotInfo,
    /// The slot that is gone.
    pub removed: SlotId,
}

/// Reads the slots; those that cannot be read come with the reason.
fn load(storage: &dyn Storage, config: &RepoConfig) -> Result<Vec<Result<KeySlot>>> {
    let keys = storage.list(Folder::Slots)?.into_iter().take(SLOTS_MAX);
    Ok(keys.filter_map(|key| load_one(storage, config, key).transpose()).collect())
}

/// One slot; nothing if it is not there, or is another repository's.
fn load_one(storage: &dyn Storage, config: &RepoConfig, key: ObjectKey) -> Result<Option<KeySlot>> {
    let max = u64::from(SMALL_PAYLOAD_MAX) + ENVELOPE_OVERHEAD;
    let bytes = match storage.get(key, max) {
        Ok(bytes) => bytes,
        // Removed since the listing.
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let (repo, slot) =
        KeySlot::decode(&bytes).map_err(|e| Error::format(format!("{key} is damaged"), e))?;
    if repo != config.id {
        // Left by an initialisation that was interrupted, and no damage.
        return Ok(None);
    }
    if key != ObjectKey::Slot(slot.id) {
        return Err(Error::new(ErrorKind::Damaged, format!("{key} holds another key slot")));
    }
    Ok(Some(slot))
}

pub(super) fn list(storage: &dyn Storage, config: &RepoConfig) -> Result<Vec<KeySlotInfo>> {
    let mut infos: Vec<KeySlotInfo> =
        load(storage, config)?.iter().flatten().map(KeySlotInfo::from).collect();
    let present: Vec<SlotId> = infos.iter().map(|i| i.id).collect();
    for info in &mut infos {
        info.replaces = info.replaces.filter(|old| present.contains(old));
    }
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
            "the repository is encrypted: a passphrase, a key file or the recovery key is needed",
        ));
    }
    let slots = load(storage, config)?;
    let mut damaged = None;
    let (mut readable, mut tried) = (0, 0);
    for slot in slots {
        match slot {
            Ok(slot) => {
                readable += 1;
                tried += usize::from(takes(slot.kind, unlock));
                if let Some(master) = Keys::unwrap_slot(config.id, &slot, unlock)? {
                    return Ok(Keys::new(master, config.encryption));
                }
            }
            Err(e) => damaged = Some(e),
        }
    }
    let text = match (damaged, tried) {
        // The slot that would have fitted may be the damaged one: that is no wrong key.
        (Some(e), _) => {
            return Err(e.context("no readable key slot fits, and one cannot be read"));
        }
        _ if readable == 0 => {
            let text = "the repository has lost its key slots";
            return Err(Error::new(ErrorKind::Damaged, text));
        }
        (None, 0) => format!("none of the repository's {readable} key slots takes such a key"),
        (None, _) => format!("this key opens none of the repository's {readable} key slots"),
    };
    Err(Error::new(ErrorKind::WrongKey, text))
}

pub(super) fn add(
    inner: &Inner,
    new: &Unlock,
    label: &str,
    replaces: Option<SlotId>,
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
    let mut slot = inner.keys().wrap(config.id, new, label, time, inner.entropy())?;
    slot.replaces = replaces;
    let bytes =
        slot.encode(config.id).map_err(|e| Error::format("cannot write the key slot", e))?;
    let key = ObjectKey::Slot(slot.id);
    inner.storage().put(key, &[&bytes]).inspect_err(|e| {
        // It may be there all the same. The caller drops its secret, so nobody may take the slot
        // for one that opens: then the slot that does could be removed as not the last.
        if e.kind() != ErrorKind::Exists {
            let _ = inner.storage().delete(key);
        }
    })?;
    Ok(KeySlotInfo::from(&slot))
}

pub(super) fn remove(inner: &Inner, id: &str) -> Result<()> {
    let mut unread = None;
    for slot in load(inner.storage(), inner.config())? {
        match slot {
            Ok(slot) if slot.id.to_string() == id => return remove_slot(inner, slot.id),
            Ok(_) => {}
            Err(e) => unread = Some(e),
        }
    }
    // What could not be read may be the one.
    Err(unread.unwrap_or_else(|| no_such(id)))
}

/// Replaces the slot `which` (its id, or else its label): first the new one is durable, then the
/// old one goes.
pub(super) fn rotate(
    inner: &Inner,
    which: &str,
    new: &Unlock,
    label: Option<&str>,
    time: Timestamp,
) -> Result<KeyRotation> {
    let old = find(inner.storage(), inner.config(), which)?;
    let label = label.unwrap_or(&old.label);
    let added = add(inner, new, label, Some(old.id), time)?;
    match remove_slot(inner, old.id) {
        Ok(()) => {}
        // Another rotation of the same slot came first: what was wanted is done.
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => {
            let text = format!(
                "the new key {} opens the repository, and so does the old key {} still",
                added.id, old.id
            );
            return Err(e.context(text));
        }
    }
    Ok(KeyRotation { added: KeySlotInfo { replaces: None, ..added }, removed: old.id })
}

/// The slot with this id or, if there is none, the only one with this label.
pub(super) fn find(storage: &dyn Storage, config: &RepoConfig, which: &str) -> Result<KeySlotInfo> {
    let all = list(storage, config)?;
    if let Some(by_id) = all.iter().find(|s| s.id.to_string() == which) {
        return Ok(by_id.clone());
    }
    let labelled: Vec<&KeySlotInfo> =
        all.iter().filter(|s| !which.is_empty() && s.label == which).collect();
    match labelled.as_slice() {
        [] => Err(no_such(which)),
        [one] => Ok((*one).clone()),
        several => Err(Error::new(
            ErrorKind::Invalid,
            format!("{} key slots are called '{which}': name one by its id", several.len()),
        )),
    }
}

fn no_such(which: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no key slot {which}"))
}

/// Removes a slot unless it is the last that can be read.
fn remove_slot(inner: &Inner, id: SlotId) -> Result<()> {
    let (storage, config) = (inner.storage(), inner.config());
    // Two who each remove one of the last two slots would leave none.
    let _claim = storage.claim(CLAIM)?;
    let slot = load_one(storage, config, ObjectKey::Slot(id))?;
    let slot = slot.ok_or_else(|| no_such(&id.to_string()))?;
    let last = "this is the last key slot: without it nobody could open the repository again";
    another_than(inner, id, ErrorKind::Invalid, last)?;
    storage.delete(ObjectKey::Slot(id))?;
    // A storage may have no claims: then it shows only now that others removed theirs meanwhile.
    let gone = "all other key slots were removed at the same moment, so this one was put back";
    another_than(inner, id, ErrorKind::Busy, gone).or_else(|e| {
        let bytes =
            slot.encode(config.id).map_err(|e| Error::format("cannot write the key slot", e))?;
        storage.put(ObjectKey::Slot(id), &[&bytes])?;
        Err(e)
    })
}

/// Whether another slot than `id` can be read. If not, an error: of this kind and text, unless it
/// is only that another slot is out of reach now.
fn another_than(inner: &Inner, id: SlotId, kind: ErrorKind, text: &str) -> Result<()> {
    let mut unreached = None;
    for slot in load(inner.storage(), inner.config())? {
        match slot {
            Ok(other) if other.id != id => return Ok(()),
            Err(e) if e.kind() != ErrorKind::Damaged => unreached = Some(e),
            _ => {}
        }
    }
    Err(unreached.unwrap_or_else(|| Error::new(kind, text)))
}
