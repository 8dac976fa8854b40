use std::collections::BTreeMap;
use std::sync::Arc;

use backstay_format::ChunkId;
use backstay_format::node::Node;
use backstay_format::pack::PackKind;

use crate::error::Result;
use crate::planted::{Fault, planted};
use crate::repository::Inner;
use crate::verify::Healed;

use super::writer::Writer;
use super::{HealedBy, RepairReport};

/// Takes healed chunks in: only what has the wanted id.
pub(super) struct Sink<'a> {
    inner: &'a Inner,
    /// Whether healed chunks are stored; otherwise they only count as healed.
    write: bool,
    writer: Option<Writer>,
    healed: Healed,
    by: BTreeMap<String, (u64, u64)>,
}

impl<'a> Sink<'a> {
    pub(super) fn new(inner: &'a Inner, write: bool) -> Self {
        Self { inner, write, writer: None, healed: Healed::new(), by: BTreeMap::new() }
    }

    pub(super) fn healed(&self) -> &Healed {
        &self.healed
    }

    pub(super) fn has(&self, id: ChunkId) -> bool {
        self.healed.contains_key(&id)
    }

    /// Takes bytes in if they are what the id says; tells whether they are.
    pub(super) fn accept(
        &mut self,
        id: ChunkId,
        level: Option<u8>,
        bytes: Vec<u8>,
        by: &str,
    ) -> Result<bool> {
        let kind = if level.is_some() { PackKind::Tree } else { PackKind::Data };
        let wrong = self.inner.keys().chunk_id(kind, &bytes) != id;
        if wrong && !planted(Fault::SourcesTrusted) {
            return Ok(false);
        }
        let node = match level {
            None => None,
            Some(level) => match Node::decode(&bytes, level) {
                Ok(node) => Some(Arc::new(node)),
                Err(_) => return Ok(false),
            },
        };
        let count = self.by.entry(by.to_owned()).or_default();
        count.0 += 1;
        count.1 += bytes.len() as u64;
        self.healed.insert(id, node);
        if self.write {
            let writer = match &mut self.writer {
                Some(writer) => writer,
                None => self.writer.insert(Writer::begin(self.inner)?),
            };
            writer.store(kind, id, bytes)?;
        }
        Ok(true)
    }

    /// Makes what was healed durable. Returns what counts as healed though nothing was stored.
    pub(super) fn finish(self, report: &mut RepairReport) -> Result<Healed> {
        report.healed = self
            .by
            .into_iter()
            .map(|(by, (chunks, bytes))| HealedBy { by, chunks, bytes })
            .collect();
        if !self.write {
            return Ok(self.healed);
        }
        let Some(writer) = self.writer else { return Ok(Healed::new()) };
        let (session, stored) = writer.finish()?;
        report.session = Some(session);
        report.stored_bytes = stored;
        Ok(Healed::new())
    }
}
