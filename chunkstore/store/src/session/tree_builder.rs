use std::collections::BTreeMap;

use backstay_format::ChunkId;
use backstay_format::limits::NODE_FANOUT;
use backstay_format::node::{Node, chunks_below, levels_for};

use crate::error::{Error, ErrorKind, Result};

/// Builds an image tree from chunks that arrive in any order.
///
/// A node is finished, stored and forgotten as soon as every slot below it is accounted for, so a
/// writer that goes roughly from front to back and tells its holes needs little memory, whatever
/// the size of the disk. What is never accounted for is a hole.
#[derive(Debug)]
pub(crate) struct TreeBuilder {
    chunk_count: u64,
    levels: u8,
    /// Unfinished nodes by level and number.
    open: BTreeMap<(u8, u64), Partial>,
    /// The root, once the root node is finished.
    root: Option<Option<ChunkId>>,
}

#[derive(Debug)]
struct Partial {
    node: Node,
    /// Bit i set: slot i is accounted for.
    done: u64,
}

/// A whole subtree: its height (0: one chunk) and its number among those of its height.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) level: u8,
    pub(crate) number: u64,
}

/// Stores a node and tells its id.
pub(crate) type StoreNode<'a> = &'a mut dyn FnMut(&Node) -> Result<ChunkId>;

impl TreeBuilder {
    pub(crate) fn new(chunk_count: u64) -> Self {
        let levels = levels_for(chunk_count);
        Self { chunk_count, levels, open: BTreeMap::new(), root: None }
    }

    /// Accounts for one chunk: data, or a hole. Each chunk at most once.
    pub(crate) fn set(
        &mut self,
        index: u64,
        id: Option<ChunkId>,
        store: StoreNode<'_>,
    ) -> Result<()> {
        self.account(0, index, id, store)
    }

    /// Accounts for a whole subtree by its root, which must be stored already; `None`: a hole.
    pub(crate) fn set_piece(
        &mut self,
        piece: Piece,
        root: Option<ChunkId>,
        store: StoreNode<'_>,
    ) -> Result<()> {
        let below = (0..piece.level).any(|level| {
            let span = chunks_below(piece.level - level - 1);
            let first = piece.number.saturating_mul(span);
            let range = (level, first)..(level, first.saturating_add(span));
            self.open.range(range).next().is_some()
        });
        if below {
            return Err(twice(piece.level, piece.number));
        }
        self.account(piece.level, piece.number, root, store)
    }

    /// Accounts for a run of holes; costs as much as the tree is deep, not as the run is long.
    pub(crate) fn set_holes(&mut self, first: u64, count: u64, store: StoreNode<'_>) -> Result<()> {
        for piece in self.pieces(first, first.saturating_add(count), true) {
            self.set_piece(piece, None, store)?;
        }
        Ok(())
    }

    /// Cuts the chunks from `first` to before `end` into the largest whole subtrees, in order: a
    /// few dozen a level at most. With `past_end` a subtree that reaches beyond the disk's end
    /// counts as whole when the run ends there.
    pub(crate) fn pieces(
        &self,
        first: u64,
        end: u64,
        past_end: bool,
    ) -> impl Iterator<Item = Piece> + use<> {
        let (chunk_count, levels) = (self.chunk_count, self.levels);
        let end = end.min(chunk_count);
        let past_end = past_end && end == chunk_count;
        let mut at = first;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let mut level = 0;
            while level + 1 < levels
                && at.is_multiple_of(chunks_below(level + 1))
                && (past_end || at.saturating_add(chunks_below(level + 1)) <= end)
            {
                level += 1;
            }
            let piece = Piece { level, number: at / chunks_below(level) };
            at = at.saturating_add(chunks_below(level));
            Some(piece)
        })
    }

    /// Finishes every node, lowest level first, and tells the root.
    pub(crate) fn finish(mut self, store: StoreNode<'_>) -> Result<Option<ChunkId>> {
        while let Some(((level, number), partial)) = self.open.pop_first() {
            self.close(level, number, &partial.node, store)?;
        }
        Ok(self.root.flatten())
    }

    pub(crate) fn levels(&self) -> u8 {
        self.levels
    }

    /// Fills the slot of child `number` (counted over the whole disk) of height `level`.
    fn account(
        &mut self,
        level: u8,
        number: u64,
        id: Option<ChunkId>,
        store: StoreNode<'_>,
    ) -> Result<()> {
        let fanout = NODE_FANOUT as u64;
        let key = (level, number / fanout);
        let partial =
            self.open.entry(key).or_insert_with(|| Partial { node: Node::empty(level), done: 0 });
        let bit = 1u64 << (number % fanout);
        if partial.done & bit != 0 {
            return Err(twice(level, number));
        }
        partial.node.set(usize::try_from(number % fanout).unwrap_or(0), id);
        partial.done |= bit;
        let children = self.chunk_count.div_ceil(chunks_below(level));
        let expected = children.saturating_sub(key.1 * fanout).min(fanout);
        if u64::from(partial.done.count_ones()) < expected {
            return Ok(());
        }
        match self.open.remove(&key) {
            Some(partial) => self.close(level, key.1, &partial.node, store),
            None => Ok(()),
        }
    }

    fn close(&mut self, level: u8, number: u64, node: &Node, store: StoreNode<'_>) -> Result<()> {
        let id = if node.is_empty() { None } else { Some(store(node)?) };
        if level + 1 == self.levels {
            return match self.root.replace(id) {
                None => Ok(()),
                Some(_) => Err(twice(level, number)),
            };
        }
        self.account(level + 1, number, id, store)
    }
}

/// A part of the disk told twice would leave a tree that holds either, so it ends the disk.
fn twice(level: u8, number: u64) -> Error {
    let first = number.saturating_mul(chunks_below(level));
    Error::new(ErrorKind::Invalid, format!("the disk's chunk {first} was told of twice"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn id(n: u64) -> ChunkId {
        let mut bytes = [0u8; 32];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        bytes[8] = 1;
        ChunkId::from_bytes(bytes)
    }

    #[derive(Default)]
    struct Nodes(HashMap<ChunkId, Node>);

    impl Nodes {
        fn store(&mut self, node: &Node) -> ChunkId {
            let id = ChunkId::from_bytes(*blake3::hash(&node.encode()).as_bytes());
            self.0.insert(id, node.clone());
            id
        }

        fn collect(
            &self,
            root: Option<ChunkId>,
            level: u8,
            first: u64,
            out: &mut Vec<(u64, ChunkId)>,
        ) {
            let Some(node) = root.map(|r| &self.0[&r]) else { return };
            for (i, slot) in (0u64..).zip(node.slots()) {
                let at = first + i * chunks_below(level);
                match (slot, level) {
                    (Some(id), 0) => out.push((at, *id)),
                    _ => self.collect(*slot, level.saturating_sub(1), at, out),
                }
            }
        }
    }

    fn build(
        count: u64,
        ops: &[(u64, Option<ChunkId>)],
        holes: &[(u64, u64)],
    ) -> (Option<ChunkId>, Nodes, u8) {
        let mut nodes = Nodes::default();
        let mut tree = TreeBuilder::new(count);
        for &(first, n) in holes {
            tree.set_holes(first, n, &mut |n| Ok(nodes.store(n))).unwrap();
        }
        for &(i, c) in ops {
            tree.set(i, c, &mut |n| Ok(nodes.store(n))).unwrap();
        }
        let levels = tree.levels();
        let root = tree.finish(&mut |n| Ok(nodes.store(n))).unwrap();
        (root, nodes, levels)
    }

    #[test]
    fn memory_is_bounded_in_order() {
        let mut tree = TreeBuilder::new(1 << 20);
        let mut nodes = Nodes::default();
        for i in 0..1 << 20 {
            tree.set(i, Some(id(i % 7)), &mut |n| Ok(nodes.store(n))).unwrap();
            assert!(tree.open.len() <= usize::from(tree.levels));
        }
        assert!(tree.finish(&mut |n| Ok(nodes.store(n))).unwrap().is_some());
    }

    #[test]
    fn a_huge_hole_is_cheap() {
        let count = 1u64 << 40;
        let (root, nodes, _) = build(count, &[], &[(0, count)]);
        assert!(root.is_none() && nodes.0.is_empty());
        let (root, nodes, _) = build(count, &[(12345, Some(id(1)))], &[(0, 12345), (12346, count)]);
        assert!(root.is_some());
        assert_eq!(nodes.0.len(), usize::from(levels_for(count)));
    }

    #[test]
    fn what_is_told_twice_is_refused_at_the_latest_at_the_end() {
        let chunk = |i| (Piece { level: 0, number: i }, Some(id(1)));
        let hole = |level, number| (Piece { level, number }, None);
        for (count, told) in [
            (10, vec![chunk(3), chunk(3)]),
            (10_000, vec![chunk(70), hole(1, 1)]),
            (10_000, vec![chunk(70), hole(2, 0)]),
            (10_000, vec![hole(1, 1), chunk(70)]),
            (10_000, vec![hole(2, 0), chunk(70)]),
            (1, vec![chunk(0), chunk(0)]),
        ] {
            let mut tree = TreeBuilder::new(count);
            let mut nodes = Nodes::default();
            let mut store = |n: &Node| Ok(nodes.store(n));
            let told: Result<()> =
                told.into_iter().try_for_each(|(p, root)| tree.set_piece(p, root, &mut store));
            let ended = told.and_then(|()| tree.finish(&mut store).map(drop));
            assert_eq!(ended.unwrap_err().kind(), ErrorKind::Invalid);
        }
    }

    #[test]
    fn pieces_cover_a_run_exactly() {
        for (count, first, end) in [
            (1, 0, 1),
            (64, 0, 64),
            (65, 0, 64),
            (5000, 0, 5000),
            (5000, 63, 4097),
            (300_000, 1, 299_999),
            (300_000, 4096, 8192),
            (1 << 40, 5, (1 << 40) - 7),
        ] {
            for past_end in [false, true] {
                let tree = TreeBuilder::new(count);
                let mut at = first;
                let mut pieces = 0;
                for p in tree.pieces(first, end, past_end) {
                    assert_eq!(p.number * chunks_below(p.level), at);
                    at += chunks_below(p.level);
                    assert!(at <= end || (past_end && end == count && p.level < tree.levels));
                    pieces += 1;
                }
                assert!(at >= end && pieces <= 126 * u64::from(tree.levels));
            }
        }
    }

    proptest! {
        #[test]
        fn order_and_told_holes_do_not_matter(
            count in 1u64..20_000,
            picks in proptest::collection::btree_set(0u64..20_000, 0..200),
            shuffle in any::<u64>(),
        ) {
            let filled: Vec<u64> = picks.into_iter().filter(|i| *i < count).collect();
            let mut ops: Vec<_> = filled.iter().map(|&i| (i, Some(id(i)))).collect();
            let (plain, nodes, levels) = build(count, &ops, &[]);
            let mut found = Vec::new();
            nodes.collect(plain, levels - 1, 0, &mut found);
            let expected: Vec<_> = filled.iter().map(|&i| (i, id(i))).collect();
            prop_assert_eq!(found, expected);
            let mut holes = Vec::new();
            let mut at = 0;
            for &i in &filled {
                holes.push((at, i - at));
                at = i + 1;
            }
            holes.push((at, count - at));
            ops.sort_by_key(|(i, _)| i.wrapping_mul(shuffle | 1));
            prop_assert_eq!(build(count, &ops, &holes).0, plain);
        }
    }
}
