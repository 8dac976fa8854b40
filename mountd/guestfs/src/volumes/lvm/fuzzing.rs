//! What the fuzz targets need of LVM.

use std::sync::Arc;

use super::label::crc;
use super::thin::{Pool, Thin, sum};
use crate::Media;
use crate::volumes::map::Map;

/// Where the metadata area starts, and what is before its text.
const AREA_AT: usize = 4096;
const AREA_HEADER_BYTES: usize = 512;
const BLOCK_BYTES: usize = 4096;
const SIZE_BYTES: u64 = 8 << 20;

/// A physical volume whose UUID is one letter, with this text as its newest metadata.
pub(crate) fn physical_volume(id: u8, text: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let room = size.saturating_sub(AREA_AT + AREA_HEADER_BYTES);
    let text = &text[..text.len().min(room)];
    let label = &mut bytes[512..1024];
    label[..8].copy_from_slice(b"LABELONE");
    label[8] = 1;
    label[20] = 32;
    label[24..32].copy_from_slice(b"LVM2 001");
    label[32..64].fill(id);
    label[64..72].copy_from_slice(&(size as u64).to_le_bytes());
    // A data area to the end, the end of that list, and one metadata area.
    label[72..80].copy_from_slice(&65536_u64.to_le_bytes());
    label[104..112].copy_from_slice(&(AREA_AT as u64).to_le_bytes());
    label[112..120].copy_from_slice(&((size - AREA_AT) as u64).to_le_bytes());
    let checksum = crc(&label[20..]);
    label[16..20].copy_from_slice(&checksum.to_le_bytes());
    let area = &mut bytes[AREA_AT..];
    let len = area.len() as u64;
    area[4..20].copy_from_slice(b" LVM2 x[5A%r0N*>");
    area[20] = 1;
    area[24..32].copy_from_slice(&(AREA_AT as u64).to_le_bytes());
    area[32..40].copy_from_slice(&len.to_le_bytes());
    area[40..48].copy_from_slice(&(AREA_HEADER_BYTES as u64).to_le_bytes());
    area[48..56].copy_from_slice(&(text.len() as u64).to_le_bytes());
    area[56..60].copy_from_slice(&crc(text).to_le_bytes());
    area[AREA_HEADER_BYTES..AREA_HEADER_BYTES + text.len()].copy_from_slice(text);
    let checksum = crc(&area[4..AREA_HEADER_BYTES]);
    area[..4].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Makes the checksums and the places of all blocks of a pool's metadata right.
pub(crate) fn right_thin(bytes: &mut [u8]) {
    for (number, block) in (0_u64..).zip(bytes.chunks_exact_mut(BLOCK_BYTES)) {
        block[8..16].copy_from_slice(&number.to_le_bytes());
        let xor = if number == 0 { 160_774 } else { 121_107 };
        let sum = sum(block, xor);
        block[..4].copy_from_slice(&sum.to_le_bytes());
    }
}

/// Metadata of a pool with one volume of three blocks.
pub(crate) fn thin_pool(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let mut put = |block: usize, at: usize, value: u64| {
        let at = block * BLOCK_BYTES + at;
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    };
    put(0, 32, 27_022_010);
    put(0, 40, 2);
    put(0, 320, 1);
    put(0, 336, 128);
    // Volumes in block 1, an inner node in block 2, mappings in block 3: 4 entries at most.
    for (block, kind, entries) in [(1, 2_u64, 1_u64), (2, 1, 1), (3, 2, 3)] {
        put(block, 4, kind);
        put(block, 16, entries | 4 << 32);
        put(block, 24, 8);
    }
    put(1, 32, 1);
    put(1, 64, 2);
    put(2, 32, 0);
    put(2, 64, 3);
    for (n, (key, value)) in [(0, 5), (1, 6), (9, 2)].into_iter().enumerate() {
        put(3, 32 + 8 * n, key);
        put(3, 64 + 8 * n, value << 24);
    }
    // Written last: kinds and places share words of 8 bytes.
    for (block, kind) in [(1, 2_u32), (2, 1), (3, 2)] {
        let at = block * BLOCK_BYTES;
        bytes[at + 4..at + 8].copy_from_slice(&kind.to_le_bytes());
        bytes[at + 8..at + 16].copy_from_slice(&(block as u64).to_le_bytes());
    }
    right_thin(&mut bytes);
    bytes
}

/// The volumes with ids 0 to 3 that can be opened.
pub(crate) fn thin_maps(meta: Media, data: &Arc<dyn Map>) -> Vec<Arc<dyn Map>> {
    let Ok(pool) = Pool::open(meta, Arc::clone(data)).map(Arc::new) else { return Vec::new() };
    let one = |id| Thin::new(Arc::clone(&pool), id, SIZE_BYTES, None).ok();
    (0..4).filter_map(one).map(|thin| Arc::new(thin) as Arc<dyn Map>).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_blockdev::MemDevice;

    #[test]
    fn the_example_is_a_pool() {
        let meta = Media::new(Arc::new(MemDevice::read_only(thin_pool(65536)))).expect("media");
        let data = Arc::new(crate::volumes::map::WholeDisk { disk: 1, size: 1 << 20 });
        let data: Arc<dyn Map> = data;
        let pool = Pool::open(meta.clone(), Arc::clone(&data)).expect("a pool");
        assert_eq!(pool.transaction, 0);
        assert_eq!(thin_maps(meta, &data).len(), 1);
    }
}
