//! What the ledger keeps of a mount.

use std::collections::BTreeSet;

use backstay_api::mountd::{FilesRequest, Key, Listen, Secret};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The version of the records written; older ones are read, a newer one is not touched.
pub(super) const VERSION: u32 = 3;
/// Disks of one mount.
pub(super) const MAX_DISKS: usize = 256;

/// A mount, as it survives the daemon. Everything that happens outside (an overlay, a pin) happens after a
/// record that names it is durable, and is gone before the record goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) version: u32,
    pub(super) id: String,
    pub(super) kind: Kind,
    pub(super) intent: Intent,
    pub(super) repository: String,
    pub(super) key: KeyMemory,
    pub(super) machine: String,
    pub(super) point: String,
    pub(super) point_time: Timestamp,
    /// In the order of their units; at least one.
    pub(super) disks: Vec<Disk>,
    pub(super) writable: bool,
    pub(super) limit_bytes: Option<u64>,
    pub(super) pause_when_full: bool,
    pub(super) allow: Vec<String>,
    pub(super) listen: Vec<Listen>,
    pub(super) owner: String,
    pub(super) owner_uid: u32,
    pub(super) reason: String,
    pub(super) created: Timestamp,
    pub(super) ends: Option<Timestamp>,
    pub(super) hard_end: bool,
    pub(super) idle_seconds: Option<u64>,
    /// The pin that keeps the point while there is an overlay over it.
    pub(super) pin: Option<String>,
}

/// A disk of a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Disk {
    pub(super) name: String,
    pub(super) size_bytes: u64,
    /// Its logical unit number, in an iSCSI target.
    pub(super) lun: Option<u16>,
    /// Where its overlay is, in the ledger's directory of overlays; `None` if it cannot be written to.
    pub(super) overlay: Option<String>,
}

/// How a mount is presented.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Nbd,
    Iscsi(Target),
    Files(FilesRequest),
}

/// An iSCSI target: what initiators have noted of it, and must find again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Target {
    pub(super) name: String,
    /// What initiators prove; `None`: nothing.
    pub(super) initiator: Option<Side>,
    /// What the target proves in turn.
    pub(super) target: Option<Side>,
}

/// A CHAP name and secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Side {
    pub(super) name: String,
    pub(super) secret: Secret,
}

impl Record {
    /// Reads a record of this version or an older one.
    ///
    /// # Errors
    /// In words, why it is none.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let version: Versioned = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let record = match version.version {
            1 => serde_json::from_slice::<old::Record>(bytes).map(Self::from),
            // What version 3 added are mounts of files.
            2 | VERSION => serde_json::from_slice(bytes),
            other => {
                return Err(format!(
                    "a record of version {other}, which this program does not know"
                ));
            }
        };
        let record = record.map_err(|e| e.to_string())?;
        record.check()?;
        Ok(record)
    }

    /// Refuses what no daemon writes. A name of an overlay is part of a path that is removed one day.
    fn check(&self) -> Result<(), String> {
        let names: BTreeSet<&str> = self.disks.iter().map(|disk| disk.name.as_str()).collect();
        let units: BTreeSet<Option<u16>> = self.disks.iter().map(|disk| disk.lun).collect();
        let count = self.disks.len();
        let units_make_sense = match self.kind {
            Kind::Files(_) => units.iter().all(Option::is_none),
            Kind::Nbd | Kind::Iscsi(_) => units.len() == count,
        };
        if !(1..=MAX_DISKS).contains(&count) || names.len() != count || !units_make_sense {
            return Err("its list of disks makes no sense".to_owned());
        }
        let is_ours = |overlay: &str| match overlay.strip_prefix(self.id.as_str()) {
            Some("") => count == 1,
            Some(unit) => unit.strip_prefix('/').is_some_and(|n| n.parse::<u16>().is_ok()),
            None => false,
        };
        let overlays: Vec<&str> = self.disks.iter().filter_map(|d| d.overlay.as_deref()).collect();
        if !overlays.iter().all(|overlay| is_ours(overlay))
            || overlays.iter().collect::<BTreeSet<_>>().len() != overlays.len()
            || overlays.len() != if self.writable { count } else { 0 }
        {
            return Err("its overlays make no sense".to_owned());
        }
        Ok(())
    }

    /// What the ledger's directory of overlays has for a disk of a mount. A single disk without a unit has the mount's
    /// own directory, as in records of version 1.
    pub(super) fn overlay_name(id: &str, lun: Option<u16>) -> String {
        lun.map_or_else(|| id.to_owned(), |lun| format!("{id}/{lun}"))
    }

    /// `MACHINE@POINT:DISK, DISK`, for people.
    pub(super) fn what(&self) -> String {
        let disks: Vec<&str> = self.disks.iter().map(|disk| disk.name.as_str()).collect();
        format!("{}@{}:{}", self.machine, self.point, disks.join(", "))
    }

    /// The kind's name in the control API.
    pub(super) fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Nbd => "nbd",
            Kind::Iscsi(_) => "iscsi",
            Kind::Files(_) => "files",
        }
    }

    /// Of an iSCSI target.
    pub(super) fn target(&self) -> Option<&Target> {
        match &self.kind {
            Kind::Iscsi(target) => Some(target),
            Kind::Nbd | Kind::Files(_) => None,
        }
    }
}

/// Records of version 1: a single disk over NBD.
mod old {
    use super::{Deserialize, Disk, Intent, KeyMemory, Kind, Listen, Timestamp};

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Record {
        #[allow(dead_code, reason = "checked before")]
        version: u32,
        id: String,
        kind: Kind,
        intent: Intent,
        repository: String,
        key: KeyMemory,
        machine: String,
        point: String,
        point_time: Timestamp,
        disk: String,
        size_bytes: u64,
        writable: bool,
        limit_bytes: Option<u64>,
        pause_when_full: bool,
        allow: Vec<String>,
        listen: Vec<Listen>,
        owner: String,
        owner_uid: u32,
        reason: String,
        created: Timestamp,
        ends: Option<Timestamp>,
        hard_end: bool,
        idle_seconds: Option<u64>,
        pin: Option<String>,
    }

    impl From<Record> for super::Record {
        fn from(old: Record) -> Self {
            let overlay = old.writable.then(|| old.id.clone());
            let disk = Disk { name: old.disk, size_bytes: old.size_bytes, lun: None, overlay };
            Self {
                version: super::VERSION,
                id: old.id,
                kind: old.kind,
                intent: old.intent,
                repository: old.repository,
                key: old.key,
                machine: old.machine,
                point: old.point,
                point_time: old.point_time,
                disks: vec![disk],
                writable: old.writable,
                limit_bytes: old.limit_bytes,
                pause_when_full: old.pause_when_full,
                allow: old.allow,
                listen: old.listen,
                owner: old.owner,
                owner_uid: old.owner_uid,
                reason: old.reason,
                created: old.created,
                ends: old.ends,
                hard_end: old.hard_end,
                idle_seconds: old.idle_seconds,
                pin: old.pin,
            }
        }
    }
}

/// What the daemon means to do with a mount, whenever it comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Intent {
    /// It is being made, and nobody was told of it: undo it.
    Starting,
    /// Serve it.
    Serve,
    /// Do not serve it; the overlay stays.
    Keep {
        /// When it ended.
        since: Timestamp,
    },
    /// Remove all that is left of it.
    Discard,
}

/// What is remembered of a key: never the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KeyMemory {
    /// None is needed.
    None,
    /// Where its file is.
    File(String),
    /// Where the file with the passphrase is.
    PassphraseFile(String),
    /// It was given by hand.
    Forgotten,
}

impl KeyMemory {
    pub(super) fn of(key: &Key) -> Self {
        match key {
            Key::None => Self::None,
            Key::File(path) => Self::File(path.clone()),
            Key::PassphraseFile(path) => Self::PassphraseFile(path.clone()),
            Key::Passphrase(_) | Key::Recovery(_) => Self::Forgotten,
        }
    }

    /// The key to use without asking anybody.
    pub(super) fn key(&self) -> Option<Key> {
        match self {
            Self::None => Some(Key::None),
            Self::File(path) => Some(Key::File(path.clone())),
            Self::PassphraseFile(path) => Some(Key::PassphraseFile(path.clone())),
            Self::Forgotten => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the first version of the daemon wrote it.
    const VERSION_1: &[u8] = include_bytes!("../../tests/fixtures/record-v1.json");

    fn target() -> Record {
        let disk = |lun: u16| Disk {
            name: format!("disk{lun}"),
            size_bytes: 1 << 20,
            lun: Some(lun),
            overlay: Some(Record::overlay_name("m-4x7kq2", Some(lun))),
        };
        let side = |name: &str, secret: &str| Side {
            name: name.to_owned(),
            secret: Secret::new(secret.to_owned()),
        };
        let kind = Kind::Iscsi(Target {
            name: "iqn.2026-11.internal.backstay:web01.m-4x7kq2".to_owned(),
            initiator: Some(side("m-4x7kq2", "0123456789abcdef")),
            target: Some(side("m-4x7kq2-target", "fedcba9876543210")),
        });
        let old = Record::read(VERSION_1).expect("a record");
        Record { kind, disks: vec![disk(0), disk(1)], ..old }
    }

    fn read(record: &Record) -> Result<Record, String> {
        Record::read(&serde_json::to_vec(record).expect("JSON"))
    }

    #[test]
    fn a_record_of_version_1_is_one_disk_over_nbd() {
        let record = Record::read(VERSION_1).expect("a record");
        assert_eq!((record.version, &record.kind), (VERSION, &Kind::Nbd));
        let disk = Disk {
            name: "disk0".to_owned(),
            size_bytes: 4_194_304,
            lun: None,
            overlay: Some("m-4x7kq2".to_owned()),
        };
        assert_eq!(record.disks, [disk]);
        assert_eq!(record.intent, Intent::Serve);
        assert_eq!(record.limit_bytes, Some(8 << 20));
        assert_eq!(record.pin.as_deref(), Some("p5hjqk3mzt7w"));
        assert_eq!(record.what(), "web01@b7f3k2mnpqrstuvwxyz2345678:disk0");
        // It is written as version 2, and read again.
        assert_eq!(read(&record).as_ref(), Ok(&record));
    }

    #[test]
    fn a_target_is_what_it_was_and_names_no_secret() {
        let record = target();
        assert_eq!(read(&record).as_ref(), Ok(&record));
        assert!(!format!("{record:?}").contains("0123456789abcdef"));
    }

    #[test]
    fn records_that_nobody_writes_are_not_taken() {
        let bad = |change: &dyn Fn(&mut Record)| {
            let mut record = target();
            change(&mut record);
            assert!(read(&record).is_err(), "{:?}", record.disks);
        };
        bad(&|r| r.disks.clear());
        bad(&|r| r.disks[1].name = "disk0".to_owned());
        bad(&|r| r.disks[1].lun = Some(0));
        bad(&|r| r.disks[1].overlay = None);
        bad(&|r| r.writable = false);
        for path in ["..", "m-4x7kq2", "m-4x7kq2/..", "m-4x7kq2/0", "m-4x7kq2/1/2", "/etc", ""] {
            bad(&|r| r.disks[1].overlay = Some(path.to_owned()));
        }
        bad(&|r| r.version = 4);
        assert!(Record::read(b"{\"version\":2}").is_err());
        assert!(Record::read(b"[]").is_err());
    }
}
