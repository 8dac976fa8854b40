//! The key hierarchy: key slots wrap one master key, from which every other key is derived
//! (FORMAT.md, Keys).

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use backstay_format::config::{Encryption, RepoConfig};
use backstay_format::envelope::Envelope;
use backstay_format::keyslot::{Argon2Cost, KeySlot, SlotKind};
use backstay_format::pack::PackKind;
use backstay_format::{ChunkId, PackId, RepoId, SlotId, magic};
use zeroize::Zeroizing;

use crate::entropy::{Entropy, array};
use crate::error::{Error, ErrorKind, Result};
use crate::secret::Unlock;

/// Key files must hold at least this many bytes: nobody types 32 bytes of chance.
const KEY_FILE_MIN: usize = 32;

type Key = Zeroizing<[u8; 32]>;

/// Every key of an opened repository.
pub(crate) struct Keys {
    master: Key,
    data_ids: Key,
    tree_ids: Key,
    packs: Key,
    points: Option<LessSafeKey>,
    records: Option<LessSafeKey>,
    config: Key,
    sealed: bool,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("sealed", &self.sealed).finish_non_exhaustive()
    }
}

impl Keys {
    /// A new random master key.
    pub(crate) fn generate(entropy: &dyn Entropy) -> Key {
        Zeroizing::new(array(entropy))
    }

    /// The master key of a repository without encryption: known to whoever knows its id. It makes
    /// ids differ between repositories and protects nothing.
    pub(crate) fn public_master(repo: RepoId) -> Key {
        derive("backstay v1 unencrypted repository", repo.as_bytes())
    }

    pub(crate) fn new(master: Key, encryption: Encryption) -> Self {
        let sealed = encryption == Encryption::Aes256Gcm;
        let points = derive("backstay v1 recovery points", &*master);
        let records = derive("backstay v1 records", &*master);
        Self {
            data_ids: derive("backstay v1 data chunk ids", &*master),
            tree_ids: derive("backstay v1 tree chunk ids", &*master),
            packs: derive("backstay v1 pack keys", &*master),
            points: sealed.then(|| aead(&points)),
            records: sealed.then(|| aead(&records)),
            config: derive("backstay v1 configuration", &*master),
            sealed,
            master,
        }
    }

    /// Whether stored bytes are sealed.
    pub(crate) fn sealed(&self) -> bool {
        self.sealed
    }

    /// The id of a chunk: keyed BLAKE3, with a key per kind, so that a data chunk can never pass
    /// for a tree node.
    pub(crate) fn chunk_id(&self, kind: PackKind, raw: &[u8]) -> ChunkId {
        let key = match kind {
            PackKind::Data => &self.data_ids,
            PackKind::Tree => &self.tree_ids,
        };
        ChunkId::from_bytes(*blake3::keyed_hash(key, raw).as_bytes())
    }

    /// The key of one pack; nothing in a repository without encryption.
    pub(crate) fn pack_key(&self, pack: PackId) -> Option<LessSafeKey> {
        let key = || Zeroizing::new(*blake3::keyed_hash(&self.packs, pack.as_bytes()).as_bytes());
        self.sealed.then(|| aead(&key()))
    }

    /// The MAC of the configuration.
    pub(crate) fn config_mac(&self, config: &RepoConfig) -> String {
        blake3::keyed_hash(&self.config, &config.mac_input()).to_hex().to_string()
    }

    /// Seals a small object's payload: nonce, ciphertext, tag. It is bound to the object's kind,
    /// repository and name.
    pub(crate) fn seal_object(
        &self,
        magic: [u8; 8],
        repo: RepoId,
        name: &[u8],
        payload: Vec<u8>,
        entropy: &dyn Entropy,
    ) -> Vec<u8> {
        let Some(key) = self.object_key(magic) else { return payload };
        let nonce: [u8; 12] = array(entropy);
        let mut body = payload;
        let aad = Aad::from(Envelope::associated_data(magic, repo, name));
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut body)
            .expect("a payload below 2^36 bytes can be sealed");
        [nonce.as_slice(), &body].concat()
    }

    /// Opens what [`Keys::seal_object`] made; nothing if it was not made with this key.
    pub(crate) fn open_object(
        &self,
        magic: [u8; 8],
        repo: RepoId,
        name: &[u8],
        sealed: &[u8],
    ) -> Option<Vec<u8>> {
        let Some(key) = self.object_key(magic) else { return Some(sealed.to_vec()) };
        let (nonce, body) = sealed.split_first_chunk::<12>()?;
        let mut body = body.to_vec();
        let aad = Aad::from(Envelope::associated_data(magic, repo, name));
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let len = key.open_in_place(nonce, aad, &mut body).ok()?.len();
        body.truncate(len);
        Some(body)
    }

    /// Recovery points have a key of their own.
    fn object_key(&self, magic: [u8; 8]) -> Option<&LessSafeKey> {
        if magic == magic::POINT { self.points.as_ref() } else { self.records.as_ref() }
    }

    /// Wraps the master key in a new slot.
    pub(crate) fn wrap(
        &self,
        repo: RepoId,
        unlock: &Unlock,
        label: &str,
        created: jiff::Timestamp,
        entropy: &dyn Entropy,
    ) -> Result<KeySlot> {
        let (kind, argon2) = match unlock {
            Unlock::None => {
                return Err(Error::new(
                    ErrorKind::NeedsKey,
                    "a passphrase, a key file or a recovery key is needed for a key slot",
                ));
            }
            Unlock::Passphrase(_) => (SlotKind::Passphrase, Some(Argon2Cost::DEFAULT)),
            Unlock::KeyFile(_) => (SlotKind::KeyFile, None),
            Unlock::RecoveryKey(_) => (SlotKind::Recovery, None),
        };
        let mut slot = KeySlot {
            id: SlotId::from_bytes(array(entropy)),
            kind,
            label: label.to_owned(),
            created,
            argon2,
            salt: array(entropy),
            nonce: array(entropy),
            wrapped: [0; 48],
            replaces: None,
        };
        let key = aead(&*wrapping_key(&slot, unlock)?);
        let mut body = self.master.to_vec();
        let aad = Aad::from(slot.associated_data(repo));
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(slot.nonce), aad, &mut body)
            .expect("32 bytes can be sealed");
        slot.wrapped.copy_from_slice(&body);
        Ok(slot)
    }

    /// Opens a slot: the master key, or nothing if this is not the slot's key.
    pub(crate) fn unwrap_slot(
        repo: RepoId,
        slot: &KeySlot,
        unlock: &Unlock,
    ) -> Result<Option<Key>> {
        if !takes(slot.kind, unlock) {
            return Ok(None);
        }
        let key = aead(&*wrapping_key(slot, unlock)?);
        let mut body = Zeroizing::new(slot.wrapped);
        let aad = Aad::from(slot.associated_data(repo));
        let nonce = Nonce::assume_unique_for_key(slot.nonce);
        let Ok(master) = key.open_in_place(nonce, aad, &mut *body) else { return Ok(None) };
        Ok(<[u8; 32]>::try_from(&*master).ok().map(Zeroizing::new))
    }
}

/// Whether a slot of this kind is opened by a secret of this kind.
pub(crate) fn takes(kind: SlotKind, unlock: &Unlock) -> bool {
    matches!(
        (kind, unlock),
        (SlotKind::Passphrase, Unlock::Passphrase(_))
            | (SlotKind::KeyFile, Unlock::KeyFile(_))
            | (SlotKind::Recovery, Unlock::RecoveryKey(_))
    )
}

fn derive(context: &str, material: &[u8]) -> Key {
    Zeroizing::new(blake3::derive_key(context, material))
}

fn aead(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("32 bytes are an AES-256 key"))
}

fn wrapping_key(slot: &KeySlot, unlock: &Unlock) -> Result<Key> {
    match unlock {
        Unlock::None => Err(Error::new(ErrorKind::NeedsKey, "no key was given")),
        Unlock::Passphrase(p) if p.expose().is_empty() => {
            Err(Error::new(ErrorKind::Invalid, "the passphrase is empty"))
        }
        Unlock::Passphrase(p) => {
            let cost = slot.argon2.unwrap_or(Argon2Cost::DEFAULT);
            let bad = |e: argon2::Error| Error::new(ErrorKind::Damaged, format!("key slot: {e}"));
            let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32));
            let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params.map_err(bad)?);
            let mut out = Zeroizing::new([0u8; 32]);
            argon.hash_password_into(p.expose(), &slot.salt, &mut *out).map_err(bad)?;
            Ok(out)
        }
        Unlock::KeyFile(k) if k.expose().len() < KEY_FILE_MIN => Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "the key file holds {} bytes; at least {KEY_FILE_MIN} are needed",
                k.expose().len()
            ),
        )),
        Unlock::KeyFile(k) => {
            let material = Zeroizing::new([slot.salt.as_slice(), k.expose()].concat());
            Ok(derive("backstay v1 key file", &material))
        }
        Unlock::RecoveryKey(k) => {
            let material = Zeroizing::new([slot.salt.as_slice(), k.expose()].concat());
            Ok(derive("backstay v1 recovery key", &material))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::SystemEntropy;
    use crate::{RecoveryKey, Secret};
    use backstay_format::PointId;

    fn now() -> jiff::Timestamp {
        jiff::Timestamp::UNIX_EPOCH
    }

    #[test]
    fn slots_open_with_their_key_only() {
        let repo = RepoId::from_bytes([1; 16]);
        let keys = Keys::new(Keys::generate(&SystemEntropy), Encryption::Aes256Gcm);
        let file = |b: u8| Unlock::KeyFile(Secret::new(vec![b; 32]));
        let slot = keys.wrap(repo, &file(1), "a", now(), &SystemEntropy).unwrap();
        let open = |r, u: Unlock| Keys::unwrap_slot(r, &slot, &u).unwrap();
        assert_eq!(*open(repo, file(1)).unwrap(), *keys.master);
        assert!(open(repo, file(2)).is_none());
        assert!(open(RepoId::from_bytes([2; 16]), file(1)).is_none());
        assert!(open(repo, Unlock::Passphrase(Secret::new(vec![1; 32]))).is_none());
    }

    /// The same 32 bytes as a key file and as a recovery key are two keys.
    #[test]
    fn a_recovery_key_opens_its_slot_and_no_other() {
        let repo = RepoId::from_bytes([1; 16]);
        let keys = Keys::new(Keys::generate(&SystemEntropy), Encryption::Aes256Gcm);
        let recovery = RecoveryKey::generate(&SystemEntropy);
        let by_recovery = Unlock::RecoveryKey(recovery.clone());
        let by_file = Unlock::KeyFile(Secret::new(recovery.expose().to_vec()));
        let mut slot = keys.wrap(repo, &by_recovery, "r", now(), &SystemEntropy).unwrap();
        let typed = Unlock::RecoveryKey(RecoveryKey::parse(&recovery.to_text()).unwrap());
        let open = |slot: &KeySlot, u: &Unlock| Keys::unwrap_slot(repo, slot, u).unwrap();
        assert_eq!(*open(&slot, &typed).unwrap(), *keys.master);
        let other = Unlock::RecoveryKey(RecoveryKey::generate(&SystemEntropy));
        assert!(open(&slot, &other).is_none());
        assert!(open(&slot, &by_file).is_none());
        slot.kind = SlotKind::KeyFile;
        assert!(open(&slot, &by_file).is_none(), "the kind is part of what is sealed");
    }

    #[test]
    fn weak_keys_are_refused() {
        let keys = Keys::new(Keys::generate(&SystemEntropy), Encryption::Aes256Gcm);
        for weak in [
            Unlock::None,
            Unlock::Passphrase(Secret::new(vec![])),
            Unlock::KeyFile(Secret::new(vec![0; 31])),
        ] {
            let repo = RepoId::from_bytes([1; 16]);
            assert!(keys.wrap(repo, &weak, "", now(), &SystemEntropy).is_err());
        }
    }

    #[test]
    fn a_point_cannot_be_moved_or_changed() {
        let keys = Keys::new(Keys::generate(&SystemEntropy), Encryption::Aes256Gcm);
        let (repo, id) = (RepoId::from_bytes([1; 16]), PointId::from_bytes([2; 16]));
        let name = id.as_bytes();
        let sealed = keys.seal_object(magic::POINT, repo, name, b"point".to_vec(), &SystemEntropy);
        let open =
            |magic, repo, name: &[u8], bytes: &[u8]| keys.open_object(magic, repo, name, bytes);
        assert_eq!(open(magic::POINT, repo, name, &sealed).unwrap(), b"point");
        assert!(open(magic::POINT, repo, &[3; 16], &sealed).is_none());
        assert!(open(magic::PIN, repo, name, &sealed).is_none());
        assert!(open(magic::POINT, RepoId::from_bytes([3; 16]), name, &sealed).is_none());
        for i in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[i] ^= 1;
            assert!(open(magic::POINT, repo, name, &bad).is_none());
        }
        assert!(open(magic::POINT, repo, name, b"").is_none());
    }

    #[test]
    fn kinds_have_ids_of_their_own() {
        let keys = Keys::new(Keys::public_master(RepoId::from_bytes([1; 16])), Encryption::None);
        assert_ne!(keys.chunk_id(PackKind::Data, b"x"), keys.chunk_id(PackKind::Tree, b"x"));
    }
}
