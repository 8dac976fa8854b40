use std::sync::Arc;

use backstay_blockdev::MemDevice;

use super::records::crc_v1;
use super::*;

const BLOCK: usize = 1024;
/// The journal lies from this block of the device on.
const PLACE: u64 = 40;
const LEN: usize = 32;

#[test]
fn checksums_go_on_from_a_state() {
    let text = b"123456789";
    assert_eq!(crc_v1(u32::MAX, text), 0x0376_e6e7);
    assert_eq!(crc_v1(crc_v1(u32::MAX, b"1234"), b"56789"), 0x0376_e6e7);
}

/// A journal made by hand.
struct Made {
    blocks: Vec<Vec<u8>>,
    features: u32,
}

impl Made {
    fn new(features: u32, start: u32) -> Self {
        let mut made = Self { blocks: vec![vec![0; BLOCK]; LEN], features };
        for (at, value) in [
            (4, 4),
            (0x0c, BLOCK as u32),
            (0x10, LEN as u32),
            (0x14, 1),
            (0x18, u32::MAX),
            (0x1c, start),
            (0x28, features),
        ] {
            made.put(0, at, value);
        }
        made.blocks[0][..4].copy_from_slice(&MAGIC);
        made.blocks[0][0x30..0x40].copy_from_slice(&[7; 16]);
        made.blocks[0][0x50] = 4;
        let sum = crc(u32::MAX, &[&made.blocks[0]]);
        made.put(0, 0xfc, sum);
        made
    }

    fn put(&mut self, block: usize, at: usize, value: u32) {
        self.blocks[block][at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    fn seed(&self) -> u32 {
        crc(u32::MAX, &[&[7; 16]])
    }

    fn header(&mut self, block: usize, kind: u32, sequence: u32) {
        self.blocks[block].fill(0);
        self.blocks[block][..4].copy_from_slice(&MAGIC);
        self.put(block, 4, kind);
        self.put(block, 8, sequence);
    }

    /// A descriptor block for one block with this content.
    fn one(&mut self, at: usize, sequence: u32, block: u32, content: u8, escaped: bool) {
        let next = if at + 1 == LEN { 1 } else { at + 1 };
        self.blocks[next].fill(content);
        if escaped {
            self.blocks[next][..4].fill(0);
        }
        let sum = crc(self.seed(), &[&sequence.to_be_bytes(), &self.blocks[next]]);
        self.header(at, 1, sequence);
        let flags = 2 | 8 | u32::from(escaped);
        self.put(at, 12, block);
        if self.features & 0x10 != 0 {
            self.put(at, 16, flags);
            self.put(at, 24, sum);
        } else {
            self.put(at, 16, flags);
        }
        self.tail(at);
    }

    fn tail(&mut self, at: usize) {
        if self.features & 0x10 != 0 {
            self.put(at, BLOCK - 4, 0);
            let sum = crc(self.seed(), &[&self.blocks[at]]);
            self.put(at, BLOCK - 4, sum);
        }
    }

    fn commit(&mut self, at: usize, sequence: u32) {
        self.header(at, 2, sequence);
        if self.features & 0x10 != 0 {
            let sum = crc(self.seed(), &[&self.blocks[at]]);
            self.put(at, 16, sum);
        }
    }

    fn revoke(&mut self, at: usize, sequence: u32, block: u32) {
        self.header(at, 5, sequence);
        self.put(at, 12, 20);
        self.put(at, 16, block);
        self.tail(at);
    }

    fn load(&self) -> Result<(Journal, Media), Error> {
        let mut bytes = vec![0; BLOCK * PLACE as usize];
        bytes.extend(self.blocks.concat());
        let media = Media::new(Arc::new(MemDevice::read_only(bytes))).unwrap();
        let half = LEN as u64 / 2;
        let runs = [
            JournalRun { first: 0, device_block: PLACE, len: half },
            JournalRun { first: half, device_block: PLACE + half, len: half },
        ];
        Ok((load(&media, &runs, BLOCK as u32)?, media))
    }
}

#[test]
fn whole_transactions_are_taken_and_the_rest_is_not() {
    for features in [0, 0x10] {
        // It starts near the end, goes on at the start, and its numbers wrap.
        let mut made = Made::new(features, 29);
        made.one(29, u32::MAX, 5, 0xaa, false);
        made.commit(31, u32::MAX);
        made.one(1, 0, 5, 0xbb, false);
        made.one(3, 0, 9, 0xcc, true);
        made.commit(5, 0);
        made.one(6, 1, 5, 0xdd, false);
        let (journal, media) = made.load().unwrap();
        assert!(journal.holds(5) && journal.holds(9) && !journal.holds(6));
        assert_eq!(journal.next_held(6, 100), Some(9));
        assert_eq!(journal.next_held(6, 9), None);
        assert_eq!(journal.read(&media, 5).unwrap().unwrap(), vec![0xbb; BLOCK]);
        let escaped = journal.read(&media, 9).unwrap().unwrap();
        assert_eq!((&escaped[..4], escaped[4]), (&MAGIC[..], 0xcc));
        assert!(journal.read(&media, 6).is_none());
        assert!(journal.notes.is_empty());
    }
}

#[test]
fn what_is_revoked_later_is_not_taken() {
    let mut made = Made::new(0, 1);
    made.one(1, u32::MAX, 5, 1, false);
    made.one(3, u32::MAX, 6, 1, false);
    made.commit(5, u32::MAX);
    made.revoke(6, 0, 5);
    made.revoke(7, 0, 6);
    made.commit(8, 0);
    made.one(9, 1, 6, 2, false);
    made.commit(11, 1);
    let (journal, media) = made.load().unwrap();
    assert!(!journal.holds(5));
    assert_eq!(journal.read(&media, 6).unwrap().unwrap()[0], 2);
}

#[test]
fn damage_ends_the_log_or_is_an_error() {
    let mut made = Made::new(0x10, 1);
    made.one(1, u32::MAX, 5, 1, false);
    made.commit(3, u32::MAX);
    made.one(4, 0, 6, 1, false);
    made.commit(6, 0);
    let whole = made.load().unwrap().0;
    assert!(whole.holds(6) && whole.notes.is_empty());
    made.blocks[2][99] ^= 1;
    let (journal, media) = made.load().unwrap();
    let error = journal.read(&media, 5).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    made.blocks[4][99] ^= 1;
    let journal = made.load().unwrap().0;
    assert!(!journal.holds(6));
    assert!(journal.notes[0].contains("transaction 0"), "{:?}", journal.notes);
    made.blocks[0][0x1c] ^= 1;
    assert_eq!(made.load().unwrap_err().kind(), ErrorKind::Damaged);
}

#[test]
fn an_empty_journal_and_hostile_ones() {
    assert!(Made::new(0, 0).load().unwrap().0.is_empty());
    // One transaction goes round and round.
    let mut made = Made::new(0, 1);
    for at in (1..LEN - 1).step_by(2) {
        made.one(at, u32::MAX, 5, 1, false);
    }
    assert!(made.load().is_err() || made.load().unwrap().0.is_empty());
    let mut made = Made::new(0, 0);
    made.put(0, 0x10, u32::MAX);
    assert_eq!(made.load().unwrap_err().kind(), ErrorKind::Damaged);
    let mut made = Made::new(0, 0);
    made.put(0, 0x28, 0x8000);
    assert_eq!(made.load().unwrap_err().kind(), ErrorKind::Unsupported);
}
