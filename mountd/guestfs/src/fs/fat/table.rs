//! The table: which cluster follows which.

use super::boot::{Boot, Width};
use crate::{Error, ErrorKind, Media};

/// What is read of the table at once.
const PAGE_BYTES: u64 = 4096;

/// What stands in the table for a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// This one follows.
    Cluster(u32),
    /// It is the last.
    End,
    /// It belongs to nobody.
    Free,
    /// It is marked as bad, or has a number that is none.
    Wrong(u32),
}

/// Reads the table page by page, in one walk.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    media: &'a Media,
    boot: &'a Boot,
    page: Vec<u8>,
    page_at: Option<u64>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(media: &'a Media, boot: &'a Boot) -> Self {
        Self { media, boot, page: Vec::new(), page_at: None }
    }

    /// What follows `cluster`.
    pub(super) fn next(&mut self, cluster: u32) -> Result<Next, Error> {
        if !self.boot.has(cluster) {
            return Err(Error::damaged(format!("there is no cluster {cluster}")));
        }
        let cluster = u64::from(cluster);
        let value = match self.boot.width {
            Width::Fat12 => {
                // Three bytes have two entries.
                let at = cluster * 3 / 2;
                let pair = u32::from(self.byte(at)?) | u32::from(self.byte(at + 1)?) << 8;
                if cluster % 2 == 0 { pair & 0xfff } else { pair >> 4 }
            }
            Width::Fat16 => {
                u32::from(self.byte(cluster * 2)?) | u32::from(self.byte(cluster * 2 + 1)?) << 8
            }
            Width::Fat32 => {
                let at = cluster * 4;
                let low = u32::from(self.byte(at)?) | u32::from(self.byte(at + 1)?) << 8;
                let high = u32::from(self.byte(at + 2)?) | u32::from(self.byte(at + 3)?) << 8;
                // The upper four bits belong to nobody.
                (low | high << 16) & 0x0fff_ffff
            }
        };
        let end = match self.boot.width {
            Width::Fat12 => 0xff8,
            Width::Fat16 => 0xfff8,
            Width::Fat32 => 0x0fff_fff8,
        };
        Ok(match value {
            0 => Next::Free,
            value if value >= end => Next::End,
            value if self.boot.has(value) => Next::Cluster(value),
            value => Next::Wrong(value),
        })
    }

    fn byte(&mut self, at: u64) -> Result<u8, Error> {
        let start = at / PAGE_BYTES * PAGE_BYTES;
        if self.page_at != Some(start) {
            self.page_at = None;
            let len = PAGE_BYTES.min(self.boot.table_bytes.saturating_sub(start)) as usize;
            let [first, second] = self.boot.tables.map(|table| table + start);
            let what = "the file allocation table";
            // The second table is there for sectors of the first that cannot be read.
            self.page = match self.media.bytes(first, len, what) {
                Err(e) if second != first && e.kind() != ErrorKind::Limit => {
                    self.media.bytes(second, len, what).map_err(|_| e)?
                }
                page => page?,
            };
            self.page_at = Some(start);
        }
        let byte = self.page.get((at - start) as usize).copied();
        byte.ok_or_else(|| Error::damaged(format!("the table ends before its byte {at}")))
    }

    /// How many clusters are free, counted.
    pub(super) fn free(&mut self) -> Result<u64, Error> {
        let mut free = 0;
        for cluster in 2..self.boot.clusters + 2 {
            free += u64::from(self.next(cluster as u32)? == Next::Free);
        }
        Ok(free)
    }
}
