//! The packs that the database knows, in memory: 36 bytes a pack.

use std::collections::{HashMap, HashSet};

use backstay_format::pack::PackKind;
use backstay_format::{PackId, PointId};

use super::super::PackInfo;
use super::rows::PackNumber;

/// Present packs by number and by id.
#[derive(Debug, Default)]
pub(super) struct PackTable {
    /// Sorted by number.
    rows: Vec<Row>,
    /// Positions in `rows`, sorted by id.
    by_id: Vec<u32>,
    sessions: Vec<PointId>,
    session_numbers: HashMap<PointId, u32>,
    chunks: u64,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    number: PackNumber,
    id: PackId,
    session: u32,
    chunks: u32,
    /// A pack is at most 256 MiB long, so the highest bit is free for the kind.
    len_and_kind: u32,
}

const TREE: u32 = 1 << 31;
const _: () = assert!(backstay_format::limits::PACK_MAX < TREE as u64 && size_of::<Row>() == 32);

impl PackTable {
    /// Adds packs, in order of their numbers, which are above all known ones.
    pub(super) fn extend(
        &mut self,
        packs: impl IntoIterator<Item = (PackNumber, PackId, PackInfo)>,
    ) {
        let old = self.rows.len();
        for (number, id, info) in packs {
            debug_assert!(self.rows.last().is_none_or(|r| r.number < number));
            let session = self.session_number(info.session);
            let len = u32::try_from(info.len).unwrap_or(TREE).min(TREE - 1);
            let kind = if info.kind == PackKind::Tree { TREE } else { 0 };
            let len_and_kind = len | kind;
            self.rows.push(Row { number, id, session, chunks: info.chunks, len_and_kind });
            self.chunks += u64::from(info.chunks);
        }
        if self.rows.len() > old {
            self.by_id.extend(old as u32..self.rows.len() as u32);
            let rows = &self.rows;
            // The part that is sorted already costs one pass.
            self.by_id.sort_by_key(|&i| rows[i as usize].id);
        }
    }

    /// Takes packs out.
    pub(super) fn remove(&mut self, packs: &HashSet<PackId>) {
        self.rows.retain(|r| !packs.contains(&r.id));
        self.chunks = self.rows.iter().map(|r| u64::from(r.chunks)).sum();
        self.by_id = (0..self.rows.len() as u32).collect();
        let rows = &self.rows;
        self.by_id.sort_unstable_by_key(|&i| rows[i as usize].id);
    }

    fn session_number(&mut self, session: PointId) -> u32 {
        *self.session_numbers.entry(session).or_insert_with(|| {
            self.sessions.push(session);
            (self.sessions.len() - 1) as u32
        })
    }

    fn info(&self, row: &Row) -> PackInfo {
        PackInfo {
            kind: if row.len_and_kind & TREE != 0 { PackKind::Tree } else { PackKind::Data },
            chunks: row.chunks,
            len: (row.len_and_kind & !TREE).into(),
            session: self.sessions[row.session as usize],
        }
    }

    /// The present pack of this number, and its kind.
    pub(super) fn get(&self, number: PackNumber) -> Option<(PackId, PackKind)> {
        let at = self.rows.binary_search_by_key(&number, |r| r.number).ok()?;
        let row = self.rows.get(at)?;
        Some((row.id, self.info(row).kind))
    }

    fn row_of(&self, id: &PackId) -> Option<&Row> {
        let at = self.by_id.binary_search_by_key(id, |&i| self.rows[i as usize].id).ok()?;
        self.rows.get(self.by_id[at] as usize)
    }

    /// The number of a present pack.
    pub(super) fn number_of(&self, id: &PackId) -> Option<PackNumber> {
        self.row_of(id).map(|r| r.number)
    }

    /// Chunks in a present pack; none in another.
    pub(super) fn chunks_of(&self, id: &PackId) -> u64 {
        self.row_of(id).map_or(0, |r| r.chunks.into())
    }

    /// All packs, sorted by id.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PackId, PackInfo)> {
        let rows = self.by_id.iter().map(|&i| &self.rows[i as usize]);
        rows.map(|r| (r.id, self.info(r)))
    }

    /// The ids, sorted.
    pub(super) fn ids(&self) -> impl Iterator<Item = PackId> {
        self.by_id.iter().map(|&i| self.rows[i as usize].id)
    }

    /// The numbers, ascending.
    pub(super) fn numbers(&self) -> impl Iterator<Item = PackNumber> {
        self.rows.iter().map(|r| r.number)
    }

    /// The highest number.
    pub(super) fn last(&self) -> Option<PackNumber> {
        self.rows.last().map(|r| r.number)
    }

    /// Chunks in all packs together.
    pub(super) fn chunks(&self) -> u64 {
        self.chunks
    }

    /// How many packs there are.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(n: u32) -> PackInfo {
        let kind = if n.is_multiple_of(3) { PackKind::Tree } else { PackKind::Data };
        let session = PointId::from_bytes([(n % 5) as u8; 16]);
        PackInfo { kind, chunks: n + 1, len: u64::from(n) * 100, session }
    }

    /// Ids in an order of their own.
    fn id(n: u32) -> PackId {
        let mut bytes = [3; 16];
        bytes[..4].copy_from_slice(&n.wrapping_mul(0x9e37_79b9).to_be_bytes());
        PackId::from_bytes(bytes)
    }

    #[test]
    fn found_by_number_and_by_id_also_after_some_went() {
        let mut table = PackTable::default();
        for batch in 0..10u32 {
            table.extend((batch * 7..batch * 7 + 7).map(|n| (n * 2, id(n), info(n))));
        }
        let gone: HashSet<PackId> = (0..70).filter(|n| n % 4 == 0).map(id).collect();
        table.remove(&gone);
        table.extend([(1000, id(0), info(0))]);
        for n in 1..70u32 {
            let there = n % 4 != 0;
            assert_eq!(table.get(n * 2).map(|(id, _)| id), there.then(|| id(n)), "{n}");
            assert_eq!(table.number_of(&id(n)), there.then_some(n * 2), "{n}");
            assert_eq!(table.get(n * 2 + 1), None);
        }
        assert_eq!(table.number_of(&id(0)), Some(1000));
        let all: Vec<_> = table.iter().collect();
        assert!(all.is_sorted_by_key(|(id, _)| *id) && all.len() == table.len());
        let chunks: u64 = all.iter().map(|(_, i)| u64::from(i.chunks)).sum();
        assert_eq!(chunks, table.chunks());
        for (pack, found) in all {
            let n = (0..70).find(|&n| id(n) == pack).unwrap();
            assert_eq!(found, info(n));
        }
    }
}
