//! A map on the disk (mountd/docs/OVERLAY.md, "Map").

use std::io;
use std::sync::Arc;

use super::files::RandomFile;
use super::map::{Map, PAGE_BYTES_MAX};
use super::sum::Summing;

const MAGIC: [u8; 8] = *b"BKSTMAP\x01";
const HEAD_BYTES: usize = 40;
/// Written and read at once.
const BUFFER_BYTES: usize = 1 << 20;

/// Writes a map and syncs the file. `next` is the number of the first record after it.
pub(super) fn write(file: &dyn RandomFile, map: &Map, seed: u64, next: u64) -> io::Result<()> {
    let mut summing = Summing::new(seed);
    let mut out = Vec::with_capacity(BUFFER_BYTES + PAGE_BYTES_MAX);
    let mut at = 0;
    out.extend_from_slice(&MAGIC);
    for value in [next, map.blocks(), map.stored_pages(), 0] {
        out.extend_from_slice(&value.to_le_bytes());
    }
    for page in 0..map.pages() {
        map.encode_page(page, &mut out);
        if out.len() >= BUFFER_BYTES {
            summing.add(&out);
            file.write_at(&out, at)?;
            at += out.len() as u64;
            out.clear();
        }
    }
    summing.add(&out);
    out.extend_from_slice(&summing.end().to_le_bytes());
    file.write_at(&out, at)?;
    file.sync()
}

/// What a file of a map turned out to be.
pub(super) enum Read {
    /// A whole map, and the number of the first record after it.
    Whole(Map, u64),
    /// Something else: why.
    Bad(&'static str),
}

/// Reads a map of `blocks` blocks.
pub(super) fn read(file: Arc<dyn RandomFile>, blocks: u64, seed: u64) -> io::Result<Read> {
    let size = file.size()?;
    if size < (HEAD_BYTES + 8) as u64 {
        return Ok(Read::Bad("too short"));
    }
    let mut input = Input { file, at: 0, end: size - 8, window: Vec::new(), used: 0 };
    let mut summing = Summing::new(seed);
    let Some(head) = input.take(HEAD_BYTES, &mut summing)? else {
        return Ok(Read::Bad("too short"));
    };
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&head[at..at + 8]);
        u64::from_le_bytes(word)
    };
    let (next, pages) = (word(8), word(24));
    if head[..8] != MAGIC || word(16) != blocks {
        return Ok(Read::Bad("not the map of this overlay"));
    }
    let mut map = Map::new(blocks);
    for _ in 0..pages {
        let Some(head) = input.take(Map::PAGE_HEAD_BYTES, &mut summing)? else {
            return Ok(Read::Bad("too short"));
        };
        let head = head.to_vec();
        let Some(len) = Map::page_body_bytes(&head) else {
            return Ok(Read::Bad("a page of an unknown sort"));
        };
        let Some(body) = input.take(len, &mut summing)? else {
            return Ok(Read::Bad("too short"));
        };
        if !map.decode_page(&head, body) {
            return Ok(Read::Bad("a page that cannot be"));
        }
    }
    let mut own = [0; 8];
    input.file.read_at(&mut own, size - 8)?;
    // Bytes behind the last page would not be summed, and so be noticed here, too.
    if input.left() > 0 || summing.end() != u64::from_le_bytes(own) {
        return Ok(Read::Bad("its sum is wrong"));
    }
    Ok(Read::Whole(map, next))
}

struct Input {
    file: Arc<dyn RandomFile>,
    at: u64,
    end: u64,
    window: Vec<u8>,
    used: usize,
}

impl Input {
    fn left(&self) -> u64 {
        self.end - self.at + (self.window.len() - self.used) as u64
    }

    /// The next `n` bytes; `None` if there are fewer.
    fn take(&mut self, n: usize, summing: &mut Summing) -> io::Result<Option<&[u8]>> {
        if self.window.len() - self.used < n {
            self.window.drain(..self.used);
            self.used = 0;
            let old = self.window.len();
            let more = (self.end - self.at).min(BUFFER_BYTES as u64) as usize;
            self.window.resize(old + more, 0);
            self.file.read_at(&mut self.window[old..], self.at)?;
            self.at += more as u64;
        }
        if self.window.len() - self.used < n {
            return Ok(None);
        }
        let part = &self.window[self.used..self.used + n];
        self.used += n;
        summing.add(part);
        Ok(Some(part))
    }
}
