//! Index objects, as a writer leaves them: what it stored, for those who come new.

use backstay_format::index_object::{PackTable, object_id};
use backstay_format::limits::INDEX_PAYLOAD_TARGET;
use backstay_format::pack::PackKind;
use backstay_format::{IndexId, magic};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use crate::entropy::array;
use crate::error::Result;
use crate::key::ObjectKey;
use crate::record;

use super::Inner;

/// Packs after which an object is written though the session goes on.
const PACKS_MAX: usize = 64;
/// Time after which one is: what a writer that is killed leaves unsaid is bounded.
const WAIT_MAX: SignedDuration = SignedDuration::from_secs(30);
/// Tables of data up to this length go into the object of the tree nodes: most sessions then write
/// one object.
const TOGETHER_MAX: usize = 1 << 20;

/// Tables of packs that are durable and in no index object yet.
#[derive(Debug, Default)]
pub(super) struct Pending(Mutex<Tables>);

#[derive(Debug, Default)]
struct Tables {
    trees: Vec<u8>,
    data: Vec<u8>,
    packs: usize,
    since: Option<Timestamp>,
}

impl Tables {
    fn is_due(&self, now: Timestamp) -> bool {
        self.packs >= PACKS_MAX
            || self.trees.len().max(self.data.len()) >= INDEX_PAYLOAD_TARGET as usize
            || self.since.is_some_and(|since| now.duration_since(since).abs() >= WAIT_MAX)
    }
}

/// Writes index objects. Failing to is no failure of the session: others then read the footers.
#[derive(Debug)]
pub(crate) struct IndexExchange<'a> {
    repo: &'a Inner,
    pending: &'a Pending,
}

impl Inner {
    /// Where a writer tells of its packs.
    pub(crate) fn index_exchange(&self) -> IndexExchange<'_> {
        IndexExchange { repo: self, pending: self.pending_tables() }
    }
}

impl IndexExchange<'_> {
    /// Tells of a pack that is durable. Writes an index object when there is enough to say.
    pub(crate) fn pack_written(&self, table: &PackTable) {
        let now = self.repo.entropy().now();
        let due = {
            let mut tables = self.pending.0.lock();
            let payload = match table.kind {
                PackKind::Tree => &mut tables.trees,
                PackKind::Data => &mut tables.data,
            };
            table.encode(payload);
            tables.packs += 1;
            tables.since.get_or_insert(now);
            tables.is_due(now)
        };
        if due {
            self.flush();
        }
    }

    /// Writes what is not in an index object yet.
    pub(crate) fn flush(&self) {
        let mut tables = std::mem::take(&mut *self.pending.0.lock());
        if tables.data.len() <= TOGETHER_MAX && !tables.trees.is_empty() {
            tables.trees.append(&mut tables.data);
        }
        let millis = now_millis(self.repo);
        for (kind, payload) in [(PackKind::Tree, tables.trees), (PackKind::Data, tables.data)] {
            if payload.is_empty() {
                continue;
            }
            if let Err(error) = put_object(self.repo, kind, millis, payload) {
                tracing::warn!(%error, "an index object was not written; others read the footers");
            }
        }
    }
}

/// Writes an index object and notes that this host's index has what it says.
pub(super) fn put_object(
    repo: &Inner,
    kind: PackKind,
    millis: u64,
    payload: Vec<u8>,
) -> Result<IndexId> {
    let id = object_id(kind, millis, array(repo.entropy()));
    let key = ObjectKey::Index(id);
    repo.storage().put(key, &[&record::seal(repo, key, magic::INDEX, payload)?])?;
    repo.index()?.set_objects(&[id], &[])?;
    Ok(id)
}

/// The time, for the order of index objects only.
fn now_millis(repo: &Inner) -> u64 {
    u64::try_from(repo.entropy().now().as_millisecond()).unwrap_or(0)
}
