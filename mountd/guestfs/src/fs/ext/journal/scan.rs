//! Going over the log: which transactions are whole, and what they leave behind.

use std::collections::BTreeMap;

use super::records::{self, COMMIT, DESCRIPTOR, Layout, REVOKE};
use super::{COPIES_MAX, Copy, Journal, Log, header, too_many};
use crate::{Error, ErrorKind};

/// A transaction whose commit block was not seen yet.
#[derive(Default)]
struct Open {
    copies: Vec<(u64, Copy)>,
    revoked: Vec<u64>,
    /// The checksum of version 1 over its blocks, as far as they were seen.
    sum: Option<u32>,
}

/// Where the log is being read.
struct Cursor {
    block: u64,
    /// How many blocks were passed: never more than the log has.
    passed: u64,
}

impl Cursor {
    fn forward(&mut self, blocks: u64, layout: &Layout) {
        let (first, len) = (layout.first, layout.end - layout.first);
        self.block = first + (self.block - first + blocks % len) % len;
        self.passed = self.passed.saturating_add(blocks);
    }

    fn done(&self, layout: &Layout) -> bool {
        self.passed >= layout.end - layout.first
    }
}

/// All whole transactions of the log.
pub(super) fn scan(log: &Log<'_>, layout: &Layout) -> Result<Journal, Error> {
    let mut journal =
        Journal { block_bytes: log.block_bytes, seed: layout.seed, ..Journal::default() };
    if layout.start == 0 {
        note_fast_commits(log, layout, layout.sequence, &mut journal)?;
        return Ok(journal);
    }
    let mut revoked: BTreeMap<u64, u32> = BTreeMap::new();
    let mut sequence = layout.sequence;
    let mut cursor = Cursor { block: layout.start, passed: 0 };
    let mut open = Open::default();
    while !cursor.done(layout) {
        let bytes = log.block(cursor.block)?;
        let Some((kind, own)) = header(&bytes) else { break };
        if own != sequence {
            break;
        }
        let right = match kind {
            COMMIT => layout.commit_is_right(&bytes) && v1_is_right(&open, layout, &bytes),
            _ => layout.tail_is_right(&bytes),
        };
        if !right {
            // Written in part when the machine was backed up, or damaged: the kernel stops here as well.
            journal.notes.push(format!(
                "The journal ends within transaction {sequence}, at its block {}, which is not whole; what was \
                 written from there on is not shown.",
                cursor.block
            ));
            break;
        }
        match kind {
            DESCRIPTOR => descriptor(log, layout, &bytes, (&mut cursor, sequence), &mut open)?,
            REVOKE => open.revoked.extend(layout.revoked(&bytes)?),
            COMMIT => {
                take(&mut journal, &mut revoked, std::mem::take(&mut open), sequence)?;
                sequence = sequence.wrapping_add(1);
            }
            _ => break,
        }
        if open.copies.len() > COPIES_MAX || open.revoked.len() > COPIES_MAX {
            return Err(too_many());
        }
        cursor.forward(1, layout);
    }
    // A block that was freed in a later transaction may be content of another file by now.
    journal.copies.retain(|block, copy| {
        revoked.get(block).is_none_or(|revoked| is_behind(copy.sequence, *revoked))
    });
    note_fast_commits(log, layout, sequence, &mut journal)?;
    Ok(journal)
}

/// Notes where the blocks lie that a descriptor block names, and goes past them.
fn descriptor(
    log: &Log<'_>,
    layout: &Layout,
    bytes: &[u8],
    (cursor, sequence): (&mut Cursor, u32),
    open: &mut Open,
) -> Result<(), Error> {
    if layout.sums_v1 {
        open.sum = Some(records::crc_v1(open.sum.unwrap_or(u32::MAX), bytes));
    }
    for tag in layout.tags(bytes)? {
        cursor.forward(1, layout);
        if cursor.done(layout) {
            return Err(Error::damaged("the journal has one transaction that is longer than it"));
        }
        if let Some(sum) = open.sum {
            open.sum = Some(records::crc_v1(sum, &log.block(cursor.block)?));
        }
        let device_block = log.place(cursor.block)?;
        let copy = Copy { device_block, escaped: tag.escaped, sequence, sum: tag.sum };
        open.copies.push((tag.block, copy));
    }
    Ok(())
}

/// Whether a commit block's checksum of version 1 is that of its transaction.
fn v1_is_right(open: &Open, layout: &Layout, bytes: &[u8]) -> bool {
    if !layout.sums_v1 {
        return true;
    }
    match (records::commit_sum_v1(bytes), open.sum) {
        (Some(stored), Some(found)) => stored == found,
        // A transaction of revocations alone, or a commit written before checksums were switched on.
        _ => true,
    }
}

/// Takes a transaction that is whole.
fn take(
    journal: &mut Journal,
    revoked: &mut BTreeMap<u64, u32>,
    open: Open,
    sequence: u32,
) -> Result<(), Error> {
    journal.copies.extend(open.copies);
    revoked.extend(open.revoked.into_iter().map(|block| (block, sequence)));
    match journal.copies.len() > COPIES_MAX || revoked.len() > COPIES_MAX {
        true => Err(too_many()),
        false => Ok(()),
    }
}

/// Whether transaction `a` came after `b`; the numbers wrap.
fn is_behind(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() > 0
}

/// Tells of fast commits that go on from transaction `next`: they are not applied.
fn note_fast_commits(
    log: &Log<'_>,
    layout: &Layout,
    next: u32,
    journal: &mut Journal,
) -> Result<(), Error> {
    if !layout.fast || layout.end >= log.len() {
        return Ok(());
    }
    let bytes = match log.block(layout.end) {
        Err(e) if e.kind() == ErrorKind::Damaged => return Ok(()),
        other => other?,
    };
    if records::fast_head(&bytes) == Some(next) {
        journal.notes.push(
            "The journal has fast commits, which are not applied: the last changes before the backup may not be shown."
                .into(),
        );
    }
    Ok(())
}
