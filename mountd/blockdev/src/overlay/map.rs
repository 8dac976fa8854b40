//! Which blocks of an overlay are its own: in memory, small where little was written.

use std::ops::Range;
use std::sync::Arc;

/// Blocks of one page: 64 MiB of the disk.
const PAGE_BLOCKS: u64 = 16_384;
/// Words of a bitmap over a page.
const WORDS: usize = PAGE_BLOCKS as usize / 64;
/// A page of at most so many runs is kept as a list of them, which then takes less than bitmaps.
const MAX_RUNS: usize = 128;

/// The longest a page gets on the disk.
pub(super) const PAGE_BYTES_MAX: usize = Map::PAGE_HEAD_BYTES + 16 * WORDS;

/// Where a block's content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum State {
    /// In the device below: never written, or lost before it was durable.
    Base = 0,
    /// In the overlay's data.
    Data = 1,
    /// Nowhere: it reads as zeros.
    Zero = 2,
}

/// A run of blocks of one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) blocks: u64,
    pub(super) state: State,
}

impl Run {
    pub(super) fn end(&self) -> u64 {
        self.first + self.blocks
    }
}

/// The state of every block. A clone shares its pages until one side changes them.
#[derive(Clone, Debug)]
pub(super) struct Map {
    blocks: u64,
    pages: Vec<Page>,
    data_blocks: u64,
    zero_blocks: u64,
}

#[derive(Clone, Debug)]
enum Page {
    All(State),
    /// Runs without gaps from the page's start on, neighbours of different states; the last one's end
    /// is the page's.
    Runs(Arc<[ShortRun]>),
    Bits(Arc<Bits>),
}

/// A run within a page, by its first block; it ends where the next one begins.
#[derive(Clone, Copy, Debug)]
struct ShortRun {
    first: u16,
    state: State,
}

/// Two bitmaps: no block is in both.
#[derive(Clone, Debug)]
struct Bits {
    data: [u64; WORDS],
    zero: [u64; WORDS],
}

impl Map {
    /// All blocks in the base.
    pub(super) fn new(blocks: u64) -> Self {
        let pages = blocks.div_ceil(PAGE_BLOCKS) as usize;
        let pages = vec![Page::All(State::Base); pages];
        Self { blocks, pages, data_blocks: 0, zero_blocks: 0 }
    }

    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    pub(super) fn data_blocks(&self) -> u64 {
        self.data_blocks
    }

    pub(super) fn zero_blocks(&self) -> u64 {
        self.zero_blocks
    }

    /// The run that holds `block`, from `block` to its end within the page or to `end`.
    fn piece(&self, block: u64, end: u64) -> Run {
        let page = block / PAGE_BLOCKS;
        let start = page * PAGE_BLOCKS;
        let last = (start + PAGE_BLOCKS).min(end) - start;
        let at = block - start;
        let (state, stop) = self.pages[page as usize].run_at(at as usize);
        Run { first: block, blocks: (stop as u64).min(last) - at, state }
    }

    /// The longest run of one state from `block` on, cut at `end`.
    pub(super) fn run(&self, block: u64, end: u64) -> Run {
        let mut run = self.piece(block, end);
        while run.end() < end {
            let next = self.piece(run.end(), end);
            if next.state != run.state {
                break;
            }
            run.blocks += next.blocks;
        }
        run
    }

    /// All runs of a range, in order, without gaps.
    pub(super) fn runs(&self, range: Range<u64>) -> impl Iterator<Item = Run> {
        let mut at = range.start;
        std::iter::from_fn(move || {
            (at < range.end).then(|| {
                let run = self.run(at, range.end);
                at = run.end();
                run
            })
        })
    }

    /// How many blocks of a range are `Data`.
    pub(super) fn data_blocks_in(&self, range: Range<u64>) -> u64 {
        self.runs(range).filter(|run| run.state == State::Data).map(|run| run.blocks).sum()
    }

    /// Puts all blocks of a range into one state.
    pub(super) fn set(&mut self, range: Range<u64>, state: State) {
        let mut at = range.start;
        while at < range.end {
            let page = (at / PAGE_BLOCKS) as usize;
            let start = page as u64 * PAGE_BLOCKS;
            let page_end = (start + PAGE_BLOCKS).min(self.blocks);
            let end = page_end.min(range.end);
            let (data, zero) = self.count(at..end);
            self.data_blocks -= data;
            self.zero_blocks -= zero;
            if at == start && end == page_end {
                self.pages[page] = Page::All(state);
            } else {
                self.pages[page].set((at - start) as usize, (end - start) as usize, state);
            }
            match state {
                State::Base => {}
                State::Data => self.data_blocks += end - at,
                State::Zero => self.zero_blocks += end - at,
            }
            at = end;
        }
    }

    fn count(&self, range: Range<u64>) -> (u64, u64) {
        self.runs(range).fold((0, 0), |(data, zero), run| match run.state {
            State::Base => (data, zero),
            State::Data => (data + run.blocks, zero),
            State::Zero => (data, zero + run.blocks),
        })
    }
}

/// Pages on the disk: number (4 bytes), kind (1), count (2, of runs), and then nothing for a page of one
/// state, 3 bytes a run, or both bitmaps. Pages that are all base are left out.
impl Map {
    pub(super) const PAGE_HEAD_BYTES: usize = 7;

    pub(super) fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Pages that `encode_page` writes.
    pub(super) fn stored_pages(&self) -> u64 {
        self.pages.iter().filter(|page| !matches!(page, Page::All(State::Base))).count() as u64
    }

    pub(super) fn encode_page(&self, page: usize, out: &mut Vec<u8>) {
        let mut head = |kind: u8, count: usize| {
            out.extend_from_slice(&(page as u32).to_le_bytes());
            out.push(kind);
            out.extend_from_slice(&(count as u16).to_le_bytes());
        };
        match &self.pages[page] {
            Page::All(State::Base) => {}
            Page::All(State::Data) => head(1, 0),
            Page::All(State::Zero) => head(2, 0),
            Page::Runs(runs) => {
                head(3, runs.len());
                for run in runs.iter() {
                    out.extend_from_slice(&run.first.to_le_bytes());
                    out.push(run.state as u8);
                }
            }
            Page::Bits(bits) => {
                head(4, 0);
                for word in bits.data.iter().chain(&bits.zero) {
                    out.extend_from_slice(&word.to_le_bytes());
                }
            }
        }
    }

    /// How many bytes follow the head of a page; `None` if there is no such page.
    pub(super) fn page_body_bytes(head: &[u8]) -> Option<usize> {
        match head[4] {
            1 | 2 => Some(0),
            3 => Some(3 * usize::from(u16::from_le_bytes([head[5], head[6]]))),
            4 => Some(16 * WORDS),
            _ => None,
        }
    }

    /// Takes a page over a map that has nothing there yet; `false` if it cannot be one.
    pub(super) fn decode_page(&mut self, head: &[u8], body: &[u8]) -> bool {
        let page = u64::from(u32::from_le_bytes([head[0], head[1], head[2], head[3]]));
        let start = page * PAGE_BLOCKS;
        if start >= self.blocks {
            return false;
        }
        let end = (start + PAGE_BLOCKS).min(self.blocks);
        let in_page = |at: usize| (start + at as u64).min(end);
        match head[4] {
            1 => self.set(start..end, State::Data),
            2 => self.set(start..end, State::Zero),
            3 => {
                let first = |run: &[u8]| usize::from(u16::from_le_bytes([run[0], run[1]]));
                let mut runs = body.chunks_exact(3).peekable();
                while let Some(run) = runs.next() {
                    let next = runs.peek().map_or(PAGE_BLOCKS as usize, |run| first(run));
                    let state = match run[2] {
                        0 => State::Base,
                        1 => State::Data,
                        2 => State::Zero,
                        _ => return false,
                    };
                    if first(run) >= next {
                        return false;
                    }
                    self.set(in_page(first(run))..in_page(next), state);
                }
            }
            _ => {
                let mut bits = Bits { data: [0; WORDS], zero: [0; WORDS] };
                for (i, word) in body.chunks_exact(8).enumerate() {
                    let word = word.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
                    if i < WORDS { bits.data[i] = word } else { bits.zero[i - WORDS] = word }
                }
                if bits.data.iter().zip(&bits.zero).any(|(data, zero)| data & zero != 0) {
                    return false;
                }
                let mut at = 0;
                while at < PAGE_BLOCKS as usize {
                    let (state, stop) = bits.run_at(at);
                    self.set(in_page(at)..in_page(stop), state);
                    at = stop;
                }
            }
        }
        true
    }
}

impl Page {
    /// The state of a block and where its run ends within the page.
    fn run_at(&self, at: usize) -> (State, usize) {
        match self {
            Self::All(state) => (*state, PAGE_BLOCKS as usize),
            Self::Runs(runs) => {
                let next = runs.partition_point(|run| usize::from(run.first) <= at);
                let end = runs.get(next).map_or(PAGE_BLOCKS as usize, |run| run.first.into());
                (runs[next - 1].state, end)
            }
            Self::Bits(bits) => bits.run_at(at),
        }
    }

    fn set(&mut self, from: usize, to: usize, state: State) {
        if self.run_at(from) == (state, to) || matches!(self, Self::All(old) if *old == state) {
            return;
        }
        if let Self::Bits(bits) = self {
            Arc::make_mut(bits).set(from, to, state);
            return;
        }
        let mut bits = self.to_bits();
        bits.set(from, to, state);
        *self = match bits.to_runs() {
            Some(runs) if runs.len() == 1 => Self::All(runs[0].state),
            Some(runs) => Self::Runs(runs.into()),
            None => Self::Bits(Arc::new(bits)),
        };
    }

    fn to_bits(&self) -> Bits {
        let mut bits = Bits { data: [0; WORDS], zero: [0; WORDS] };
        let mut at = 0;
        while at < PAGE_BLOCKS as usize {
            let (state, end) = self.run_at(at);
            bits.set(at, end, state);
            at = end;
        }
        bits
    }
}

impl Bits {
    fn run_at(&self, at: usize) -> (State, usize) {
        let (word, bit) = (at / 64, at % 64);
        let data = self.data[word] >> bit & 1 == 1;
        let zero = self.zero[word] >> bit & 1 == 1;
        let state = match (data, zero) {
            (true, _) => State::Data,
            (_, true) => State::Zero,
            _ => State::Base,
        };
        // Blocks of another state, as ones.
        let other = |word: usize| match state {
            State::Data => !self.data[word],
            State::Zero => !self.zero[word],
            State::Base => self.data[word] | self.zero[word],
        };
        let here = other(word) >> bit;
        if here != 0 {
            return (state, at + here.trailing_zeros() as usize);
        }
        for next in word + 1..WORDS {
            if other(next) != 0 {
                return (state, next * 64 + other(next).trailing_zeros() as usize);
            }
        }
        (state, PAGE_BLOCKS as usize)
    }

    fn set(&mut self, from: usize, to: usize, state: State) {
        let mut at = from;
        while at < to {
            let (word, bit) = (at / 64, at % 64);
            let n = (64 - bit).min(to - at);
            let mask = if n == 64 { u64::MAX } else { ((1 << n) - 1) << bit };
            self.data[word] &= !mask;
            self.zero[word] &= !mask;
            match state {
                State::Base => {}
                State::Data => self.data[word] |= mask,
                State::Zero => self.zero[word] |= mask,
            }
            at += n;
        }
    }

    /// The page as runs, unless they are too many.
    fn to_runs(&self) -> Option<Vec<ShortRun>> {
        let mut runs = Vec::new();
        let mut at = 0;
        while at < PAGE_BLOCKS as usize {
            if runs.len() == MAX_RUNS {
                return None;
            }
            let (state, end) = self.run_at(at);
            runs.push(ShortRun { first: at as u16, state });
            at = end;
        }
        Some(runs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A map and the plain list it must equal.
    fn check(map: &Map, plain: &[State]) {
        let runs: Vec<Run> = map.runs(0..plain.len() as u64).collect();
        let mut at = 0;
        for (i, run) in runs.iter().enumerate() {
            assert_eq!(run.first, at, "a gap");
            assert!(i == 0 || runs[i - 1].state != run.state, "not merged at {at}");
            let part = &plain[at as usize..run.end() as usize];
            assert!(part.iter().all(|state| *state == run.state), "{run:?}");
            at = run.end();
        }
        assert_eq!(at, plain.len() as u64);
        let count = |state| plain.iter().filter(|s| **s == state).count() as u64;
        assert_eq!(
            (map.data_blocks(), map.zero_blocks()),
            (count(State::Data), count(State::Zero))
        );
    }

    /// The map after a way through its bytes.
    fn read_back(map: &Map) -> Map {
        let mut other = Map::new(map.blocks());
        let mut stored = 0;
        for page in 0..map.pages() {
            let mut bytes = Vec::new();
            map.encode_page(page, &mut bytes);
            if !bytes.is_empty() {
                let (head, body) = bytes.split_at(Map::PAGE_HEAD_BYTES);
                assert_eq!(Map::page_body_bytes(head), Some(body.len()));
                assert!(other.decode_page(head, body));
                stored += 1;
            }
        }
        assert_eq!(stored, map.stored_pages());
        other
    }

    #[test]
    fn equals_a_plain_list() {
        let blocks = PAGE_BLOCKS * 2 + 777;
        let mut map = Map::new(blocks);
        let mut plain = vec![State::Base; blocks as usize];
        let mut numbers = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = |bound: u64| {
            numbers ^= numbers << 13;
            numbers ^= numbers >> 7;
            numbers ^= numbers << 17;
            numbers % bound
        };
        for step in 0..4000 {
            let first = below(blocks);
            // Many small ones, so that pages become bitmaps, and some that make them plain again.
            let longest = if step % 500 == 499 { blocks } else { [1, 3, 200][below(3) as usize] };
            let end = (first + 1 + below(longest)).min(blocks);
            let state = [State::Base, State::Data, State::Zero][below(3) as usize];
            let before = map.clone();
            map.set(first..end, state);
            plain[first as usize..end as usize].fill(state);
            if step % 50 == 0 {
                check(&map, &plain);
                let at = below(blocks);
                assert_eq!(map.run(at, blocks).state, plain[at as usize]);
                drop(before);
                check(&read_back(&map), &plain);
            }
        }
        check(&map, &plain);
        map.set(0..blocks, State::Zero);
        assert_eq!(map.run(5, blocks), Run { first: 5, blocks: blocks - 5, state: State::Zero });
        assert!(map.pages.iter().all(|page| matches!(page, Page::All(State::Zero))));
    }

    #[test]
    fn a_clone_keeps_what_it_saw() {
        let mut map = Map::new(PAGE_BLOCKS);
        for block in (0..1000).step_by(2) {
            map.set(block..block + 1, State::Data);
        }
        let before = map.clone();
        map.set(0..1000, State::Zero);
        assert_eq!((before.data_blocks(), before.run(0, 10).state), (500, State::Data));
        assert_eq!((map.data_blocks(), map.zero_blocks()), (0, 1000));
    }
}
