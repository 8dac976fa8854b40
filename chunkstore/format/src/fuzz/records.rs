//! Records: sessions, removals, pins, collections. A further one is a line in the list of targets,
//! and its [`Sample`].

use std::fmt::Debug;

use serde_json::Value;

use crate::envelope::Envelope;
use crate::gc::{End, Generation, Plan, SeenSession, Verdict};
use crate::limits::{NAME_MAX, TEXT_MAX};
use crate::record::Record;
use crate::removal::{Pin, Removal};
use crate::session::{Fence, HOLDS_MAX, Owner, Session, SessionKind};
use crate::{PackId, PinId, PointId, RepoId};

/// A record with examples, and with what must hold of it beyond what holds of every record.
pub(super) trait Sample: Record + PartialEq + Debug {
    /// Examples, each with a name. The same at every call.
    fn samples() -> Vec<(&'static str, Self)>;

    /// Panics when a record that was read breaks a promise of its own kind.
    fn promises(&self) {}
}

/// Any bytes as a payload.
pub(super) fn run<R: Sample>(data: &[u8]) {
    let Ok(record) = R::decode(data) else { return };
    record.check().expect("what was read stays within its bounds");
    record.promises();
    let bytes = record.encode().expect("what was read can be written");
    let again = R::decode(&bytes).expect("and read again");
    assert_eq!(again, record);
    assert_eq!(again.encode().expect("as before"), bytes, "same record, same bytes");
    texts(&serde_json::from_slice(&bytes).expect("a payload is JSON"));
    framed::<R>(bytes);
}

/// Every text is short and does nothing to a terminal.
fn texts(value: &Value) {
    match value {
        Value::String(text) => {
            assert!(text.len() <= TEXT_MAX, "{} bytes of text", text.len());
            assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        }
        Value::Array(values) => values.iter().for_each(texts),
        Value::Object(fields) => fields.values().for_each(texts),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// In its frame it passes for nothing else.
fn framed<R: Record>(payload: Vec<u8>) {
    let envelope = Envelope { repo_id: RepoId::from_bytes([3; 16]), sealed: false, payload };
    let object = envelope.encode(R::MAGIC).expect("an input is shorter than a payload may be");
    let read = Envelope::decode(&object, R::MAGIC, R::PAYLOAD_MAX);
    assert_eq!(read.expect("its own frame"), envelope);
    let mut other = R::MAGIC;
    other[7] ^= 1;
    assert!(Envelope::decode(&object, other, R::PAYLOAD_MAX).is_err(), "of another kind");
}

/// The samples as they are; and the last of them cut short, and with a character changed within
/// each of its parts, which is mostly JSON still.
pub(super) fn seeds<R: Sample>() -> Vec<(&'static str, Vec<u8>)> {
    let encoded = |(name, record): (_, R)| (name, record.encode().expect("a sample is in bounds"));
    let mut seeds: Vec<_> = R::samples().into_iter().map(encoded).collect();
    let Some((_, last)) = seeds.last().cloned() else { return seeds };
    seeds.push(("cut", last[..last.len() * 3 / 4].to_vec()));
    let names = ["changed-1", "changed-2", "changed-3", "changed-4"];
    for (n, name) in names.into_iter().enumerate() {
        let mut bytes = last.clone();
        let from = bytes.len() * n / names.len();
        if let Some(byte) = bytes[from..].iter_mut().find(|byte| byte.is_ascii_alphanumeric()) {
            *byte ^= 1;
        }
        seeds.push((name, bytes));
    }
    seeds
}

fn time() -> jiff::Timestamp {
    "2026-11-22T03:00:00Z".parse().expect("a time")
}

fn points(count: u8) -> Vec<PointId> {
    (1..=count).map(|n| PointId::from_bytes([n; 16])).collect()
}

fn packs(range: std::ops::Range<u8>) -> Vec<PackId> {
    range.map(|n| PackId::from_bytes([n; 16])).collect()
}

fn sorted(packs: &[PackId]) {
    assert!(packs.windows(2).all(|w| w[0] < w[1]), "{packs:?}");
}

impl Sample for Session {
    fn samples() -> Vec<(&'static str, Self)> {
        let owner = Owner {
            host: "host".into(),
            boot: "machine/boot".into(),
            pid: 4711,
            namespace: "pid:[4026531836]".into(),
            started: 1_234_567,
        };
        let unknown =
            Owner { boot: String::new(), namespace: String::new(), started: 0, ..owner.clone() };
        let made = |kind, owner, holds, epoch| Session {
            id: PointId::from_bytes([9; 16]),
            kind,
            epoch: Generation(epoch),
            holds,
            owner,
            purpose: "backup of web01".into(),
            created: time(),
        };
        vec![
            ("reader", made(SessionKind::Reader, unknown, points(3), 0)),
            ("writer", made(SessionKind::Writer, owner, points(1), 7)),
        ]
    }

    fn promises(&self) {
        assert!(self.holds.len() <= HOLDS_MAX, "{} points held", self.holds.len());
    }
}

impl Sample for Fence {
    fn samples() -> Vec<(&'static str, Self)> {
        let (reason, by) = ("it gave no sign of life".into(), "größe".into());
        vec![("fence", Fence { id: PointId::from_bytes([9; 16]), reason, by, time: time() })]
    }
}

impl Sample for Removal {
    fn samples() -> Vec<(&'static str, Self)> {
        let made = |machine: &str, reason: &str| Removal {
            point: PointId::from_bytes([1; 16]),
            machine: machine.into(),
            by: "root on vault".into(),
            reason: reason.into(),
            time: time(),
        };
        vec![("nameless", made("", "")), ("usual", made("web01", "older than a year\nby rule"))]
    }

    fn promises(&self) {
        assert!(self.machine.len() <= NAME_MAX, "{}", self.machine);
    }
}

impl Sample for Pin {
    fn samples() -> Vec<(&'static str, Self)> {
        let (id, point) = (PinId::from_bytes([8; 16]), PointId::from_bytes([1; 16]));
        let (by, reason) = ("root on vault".into(), "a \"quoted\" reason".into());
        vec![("pin", Pin { id, point, by, reason, time: time() })]
    }
}

impl Sample for Plan {
    fn samples() -> Vec<(&'static str, Self)> {
        let made = |generation, condemned, sessions| Plan {
            generation: Generation(generation),
            condemned,
            sessions,
            by: "gc on vault".into(),
            time: time(),
        };
        let seen = |id| SeenSession { id, beat: u32::MAX };
        let sessions = points(2).into_iter().map(seen).collect();
        vec![
            ("empty", made(1, Vec::new(), Vec::new())),
            ("full", made(u64::MAX, packs(1..9), sessions)),
        ]
    }

    fn promises(&self) {
        sorted(&self.condemned);
    }
}

impl Sample for Verdict {
    fn samples() -> Vec<(&'static str, Self)> {
        let made = |doomed| Verdict { generation: Generation(7), doomed, time: time() };
        vec![("empty", made(Vec::new())), ("full", made(packs(1..9)))]
    }

    fn promises(&self) {
        sorted(&self.doomed);
    }
}

impl Sample for End {
    fn samples() -> Vec<(&'static str, Self)> {
        let made = |deleted, kept, locked| End {
            generation: Generation(7),
            deleted,
            kept,
            locked,
            time: time(),
        };
        vec![
            ("empty", made(Vec::new(), Vec::new(), Vec::new())),
            ("full", made(packs(1..4), packs(4..6), packs(6..7))),
        ]
    }

    fn promises(&self) {
        for packs in [&self.deleted, &self.kept, &self.locked] {
            sorted(packs);
        }
    }
}
