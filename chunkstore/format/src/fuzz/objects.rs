//! Small objects, and the texts in them.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use serde::de::DeserializeOwned;

use crate::config::{Encryption, RepoConfig};
use crate::envelope::{CHECKSUM_LEN, Envelope};
use crate::keyslot::{Argon2Cost, KeySlot, SlotKind};
use crate::limits::{DISKS_MAX, NAME_MAX, NODE_LEVELS_MAX, SMALL_PAYLOAD_MAX};
use crate::node::levels_of_disk;
use crate::point::{Consistency, DiskRecord, Origin, PointStats, RecoveryPoint, check_name};
use crate::{
    ChunkId, ChunkSize, IndexId, PackId, PinId, PointId, QuarantineId, RepoId, SlotId, VerifiedId,
    magic, recovery,
};

const REPO: RepoId = RepoId::from_bytes([3; 16]);
const TIME: &str = "2026-11-22T03:00:00Z";

/// Bytes with the right checksum at their end, without which nothing behind it is ever reached.
fn with_checksum(data: &[u8]) -> Vec<u8> {
    let end = data.len().saturating_sub(CHECKSUM_LEN);
    let mut bytes = data[..end].to_vec();
    bytes.extend_from_slice(blake3::hash(&data[..end]).as_bytes());
    bytes
}

/// The object of this kind whose payload is `data`, of the repository the payload names.
fn wrapped<T: DeserializeOwned>(data: &[u8], magic: [u8; 8], repo: fn(&T) -> RepoId) -> Vec<u8> {
    let repo_id = serde_json::from_slice(data).map_or(REPO, |record| repo(&record));
    let envelope = Envelope { repo_id, sealed: false, payload: data.to_vec() };
    envelope.encode(magic).expect("an input is shorter than a payload may be")
}

pub(super) fn envelope(data: &[u8]) {
    for bytes in [data.to_vec(), with_checksum(data)] {
        let magic = *bytes.first_chunk().unwrap_or(&magic::POINT);
        let Ok(envelope) = Envelope::decode(&bytes, magic, SMALL_PAYLOAD_MAX) else { continue };
        assert!(envelope.payload.len() <= SMALL_PAYLOAD_MAX as usize);
        let again = envelope.encode(magic).expect("what was read can be written");
        assert_eq!(again, bytes, "an envelope has one form");
        let mut other = magic;
        other[7] ^= 1;
        assert!(Envelope::decode(&bytes, other, SMALL_PAYLOAD_MAX).is_err(), "of another kind");
    }
}

pub(super) fn envelope_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let made = |sealed, payload: &[u8]| {
        let envelope = Envelope { repo_id: REPO, sealed, payload: payload.to_vec() };
        envelope.encode(magic::POINT).expect("a short payload")
    };
    vec![("empty", made(false, b"")), ("sealed", made(true, b"nonce, text, tag"))]
}

pub(super) fn config(data: &[u8]) {
    let _ = RepoConfig::decode(data);
    let object = wrapped(data, magic::CONFIG, |config: &RepoConfig| config.id);
    let Ok(config) = RepoConfig::decode(&object) else { return };
    let bytes = config.encode().expect("what was read can be written");
    assert_eq!(RepoConfig::decode(&bytes).expect("and read again"), config);
    let other = RepoConfig { mac: "other".into(), ..config.clone() };
    assert_eq!(config.mac_input(), other.mac_input(), "the MAC does not cover itself");
}

pub(super) fn config_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let made = |encryption| {
        let config = RepoConfig {
            id: REPO,
            chunk_size: ChunkSize::DEFAULT,
            encryption,
            created: TIME.parse().expect("a time"),
            features: Vec::new(),
            mac: "00ff".repeat(16),
        };
        serde_json::to_vec(&config).expect("a configuration is always valid JSON")
    };
    vec![("clear", made(Encryption::None)), ("sealed", made(Encryption::Aes256Gcm))]
}

pub(super) fn keyslot(data: &[u8]) {
    let _ = KeySlot::decode(data);
    let object = wrapped(data, magic::SLOT, |_: &KeySlot| REPO);
    let Ok((repo, slot)) = KeySlot::decode(&object) else { return };
    let bytes = slot.encode(repo).expect("what was read can be written");
    assert_eq!(KeySlot::decode(&bytes).expect("and read again"), (repo, slot.clone()));
    if slot.kind == SlotKind::Passphrase {
        let cost = slot.argon2.expect("a passphrase slot has a cost");
        assert!(cost.memory_kib <= Argon2Cost::MEMORY_MAX_KIB, "{cost:?}");
        assert!(cost.passes <= Argon2Cost::PASSES_MAX, "{cost:?}");
    }
}

pub(super) fn keyslot_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let made = |kind, argon2| {
        let slot = KeySlot {
            id: SlotId::from_bytes([1; 8]),
            kind,
            label: "first".into(),
            created: TIME.parse().expect("a time"),
            argon2,
            salt: [2; 16],
            nonce: [3; 12],
            wrapped: [4; 48],
            replaces: None,
        };
        serde_json::to_vec(&slot).expect("a key slot is always valid JSON")
    };
    vec![
        ("passphrase", made(SlotKind::Passphrase, Some(Argon2Cost::DEFAULT))),
        ("key_file", made(SlotKind::KeyFile, None)),
    ]
}

/// The first byte chooses the chunk size, the rest is the payload.
pub(super) fn point(data: &[u8]) {
    let Some((choice, payload)) = data.split_first() else { return };
    let chunk_size = ChunkSize::new(4096 << (choice % 11)).expect("a power of two in bounds");
    let named = serde_json::from_slice(payload).map(|point: RecoveryPoint| point.id);
    let id = named.unwrap_or(PointId::from_bytes([1; 16]));
    let Ok(point) = RecoveryPoint::decode(payload, id, chunk_size) else { return };
    let bytes = point.encode().expect("what was read can be written");
    let again = RecoveryPoint::decode(&bytes, id, chunk_size).expect("and read again");
    assert_eq!(again, point);
    assert!((1..=DISKS_MAX).contains(&point.disks.len()));
    for disk in &point.disks {
        check_name("disk", &disk.name).expect("names were checked");
        assert_eq!(point.disk(&disk.name), Some(disk), "no two disks of one name");
        assert!((1..=NODE_LEVELS_MAX).contains(&disk.levels));
    }
    let mut other = *id.as_bytes();
    other[0] ^= 1;
    let other = PointId::from_bytes(other);
    assert!(RecoveryPoint::decode(payload, other, chunk_size).is_err(), "it is another point");
}

pub(super) fn point_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let disk = |name: &str, size_bytes, root| DiskRecord {
        name: name.into(),
        source: "/images/web01.qcow2".into(),
        size_bytes,
        levels: levels_of_disk(size_bytes, ChunkSize::DEFAULT),
        root,
    };
    let made = |disks, parent, note: Option<&str>| {
        let point = RecoveryPoint {
            id: PointId::from_bytes([1; 16]),
            machine: "web01".into(),
            time: TIME.parse().expect("a time"),
            disks,
            parent,
            consistency: Consistency::Offline,
            origin: Origin { host: "host".into(), tool: "backstay 0".into() },
            stats: PointStats::default(),
            note: note.map(str::to_owned),
            copied_from: None,
        };
        // 64 KiB chunks are 4096 shifted by four.
        [vec![4], point.encode().expect("a point is always valid JSON")].concat()
    };
    let root = Some(ChunkId::from_bytes([5; 32]));
    let several = vec![disk("disk0", 20 << 30, root), disk("data", 1, None)];
    let parent = Some(PointId::from_bytes([2; 16]));
    vec![
        ("hole", made(vec![disk("disk0", 1 << 20, None)], None, None)),
        ("several", made(several, parent, Some("before the change"))),
    ]
}

/// An id has one text, and a text one id.
fn id_text<T: FromStr + Display + Debug>(text: &str) {
    if let Ok(id) = text.parse::<T>() {
        assert_eq!(id.to_string(), text, "{id:?}");
    }
}

/// The text forms: ids of every kind, and names.
pub(super) fn text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    id_text::<ChunkId>(text);
    id_text::<PackId>(text);
    id_text::<PointId>(text);
    id_text::<RepoId>(text);
    id_text::<SlotId>(text);
    id_text::<PinId>(text);
    id_text::<IndexId>(text);
    id_text::<QuarantineId>(text);
    id_text::<VerifiedId>(text);
    if check_name("machine", text).is_ok() {
        assert!((1..=NAME_MAX).contains(&text.len()));
        assert!(!text.contains(['/', '@', ':', '\\', '\0', '\n', '\u{1b}', '\u{202e}']));
        assert!(text != "." && text != ".." && !text.starts_with('-'));
    }
}

pub(super) fn text_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let point = PointId::from_bytes(*b"0123456789abcdef").to_string();
    vec![
        ("chunk", ChunkId::from_bytes([0xa5; 32]).to_string().into_bytes()),
        ("point", point.into_bytes()),
        ("slot", SlotId::from_bytes([0xff; 8]).to_string().into_bytes()),
        ("name", "größe 2".as_bytes().to_vec()),
    ]
}

/// What a person types as a recovery key.
pub(super) fn recovery_key(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match recovery::decode(text) {
        Ok(key) => {
            assert!(recovery::resembles(text), "a key is like a key");
            let again = recovery::decode(&recovery::encode(&key)).expect("what was read is a key");
            assert_eq!(*again, *key);
        }
        Err(error) => {
            let said = error.to_string();
            assert!(said.len() < 500, "{} bytes of error", said.len());
            let groups = text.split('-').filter(|g| g.len() == recovery::GROUP_LEN);
            let mut secret = groups.filter(|g| g.bytes().all(|b| b.is_ascii_digit()));
            assert!(!secret.any(|group| said.contains(group)), "it repeats what was typed");
        }
    }
}

pub(super) fn recovery_key_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let text = recovery::encode(&std::array::from_fn(|n| n as u8 * 7));
    let loose = format!(" {} ", text.to_lowercase().replace('-', " "));
    let wrong = text.replacen('0', "1", 1);
    vec![
        ("zeros", recovery::encode(&[0; 32]).as_bytes().to_vec()),
        ("usual", text.as_bytes().to_vec()),
        ("loose", loose.into_bytes()),
        ("wrong", wrong.into_bytes()),
        ("short", text.as_bytes()[..70].to_vec()),
    ]
}
