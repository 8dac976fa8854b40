//! What the fuzz targets need of the formats: structures made right, and small examples.

use std::sync::Arc;

use backstay_blockdev::BlockDevice;

use super::lvm::fuzzing as lvm;
use super::map::{Map, WholeDisk};
use super::{Mapped, md};
use crate::Media;

pub(crate) use lvm::{right_thin, thin_pool};

/// A group of plain volumes.
pub(crate) const GROUP_PLAIN: &str = r#"vg0 {
id = "vg0000-0000-0000-0000-0000-0000-000000"
seqno = 3
status = ["RESIZEABLE", "READ", "WRITE"]
extent_size = 8
physical_volumes {
pv0 { id = "aaaaaa-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa" device = "/dev/sda" pe_start = 128 pe_count = 40 }
pv1 { id = "bbbbbb-bbbb-bbbb-bbbb-bbbb-bbbb-bbbbbb" device = "/dev/sdb" pe_start = 128 pe_count = 40 }
}
logical_volumes {
root { id = "1" status = ["READ", "VISIBLE"] segment_count = 2
segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1 stripes = ["pv0", 0] }
segment2 { start_extent = 2 extent_count = 2 type = "striped" stripe_count = 1 stripes = ["pv1", 5] } }
fast { id = "2" status = ["VISIBLE"] segment_count = 1
segment1 { start_extent = 0 extent_count = 4 type = "striped" stripe_count = 2 stripe_size = 2 stripes = ["pv0", 8, "pv1", 8] } }
none { id = "3" status = ["VISIBLE"] segment_count = 1
segment1 { start_extent = 0 extent_count = 4 type = "zero" } }
}
}
"#;

/// Arrays over hidden volumes.
pub(crate) const GROUP_ARRAYS: &str = r#"vg1 {
id = "vg1" seqno = 3 extent_size = 8
physical_volumes {
pv0 { id = "aaaaaa-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa" pe_start = 128 pe_count = 40 }
pv1 { id = "bbbbbb-bbbb-bbbb-bbbb-bbbb-bbbb-bbbbbb" pe_start = 128 pe_count = 40 }
}
logical_volumes {
m0 { status = [] segment_count = 1 segment1 { start_extent = 0 extent_count = 1 type = "striped" stripes = ["pv0", 0] } }
i0 { status = [] segment_count = 1 segment1 { start_extent = 0 extent_count = 4 type = "striped" stripes = ["pv0", 1] } }
m1 { status = [] segment_count = 1 segment1 { start_extent = 0 extent_count = 1 type = "striped" stripes = ["pv1", 0] } }
i1 { status = [] segment_count = 1 segment1 { start_extent = 0 extent_count = 4 type = "striped" stripes = ["pv1", 1] } }
r1 { status = ["VISIBLE"] segment_count = 1 segment1 { start_extent = 0 extent_count = 4 type = "raid1" raids = ["m0", "i0", "m1", "i1"] } }
r5 { status = ["VISIBLE"] segment_count = 1 segment1 { start_extent = 0 extent_count = 4 type = "raid5_ls" stripe_size = 2 raids = ["m0", "i0", "m1", "i1"] } }
old { status = ["VISIBLE"] segment_count = 1 segment1 { start_extent = 0 extent_count = 4 type = "mirror" mirrors = ["i0", 0, "i1", 0] } }
}
}
"#;

/// Pools, snapshots and caches.
pub(crate) const GROUP_POOLS: &str = r#"vg2 {
id = "vg2" seqno = 3 extent_size = 8
physical_volumes { pv0 { id = "aaaaaa-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa" pe_start = 128 pe_count = 40 } }
logical_volumes {
meta { status = [] segment_count = 1 segment1 { start_extent = 0 extent_count = 8 type = "striped" stripes = ["pv0", 0] } }
data { status = [] segment_count = 1 segment1 { start_extent = 0 extent_count = 8 type = "striped" stripes = ["pv0", 8] } }
pool { status = ["VISIBLE"] segment_count = 1 segment1 { start_extent = 0 extent_count = 8 type = "thin-pool" metadata = "meta" pool = "data" transaction_id = 1 chunk_size = 128 } }
thin { status = ["VISIBLE"] segment_count = 1 segment1 { start_extent = 0 extent_count = 100 type = "thin" thin_pool = "pool" device_id = 1 external_origin = "data" } }
snap { status = ["VISIBLE"] segment_count = 1 segment1 { start_extent = 0 extent_count = 2 type = "striped" stripes = ["pv0", 16] } }
snapshot0 { status = [] segment_count = 1 segment1 { start_extent = 0 extent_count = 8 type = "snapshot" chunk_size = 8 origin = "data" cow_store = "snap" } }
cached { status = ["VISIBLE"] segment_count = 1 segment1 { start_extent = 0 extent_count = 8 type = "cache" origin = "data" cache_pool = "cpool" cache_mode = "writethrough" } }
}
}
"#;

/// A physical volume whose UUID is one letter, with this text.
pub(crate) fn physical_volume(id: u8, text: &[u8], size: usize) -> Vec<u8> {
    lvm::physical_volume(id, text, size)
}

/// Makes the checksums of all superblocks of md on a disk right.
pub(crate) fn right_md(bytes: &mut [u8]) {
    md::right(bytes);
}

/// A member of an array of two, of that level.
pub(crate) fn md_member(number: u32, level: i32, layout: u32, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let mut put = |at: usize, value: u32| {
        bytes[4096 + at..4096 + at + 4].copy_from_slice(&value.to_le_bytes());
    };
    put(0, 0xa92b_4efc);
    put(4, 1);
    put(16, 0x1234_5678);
    put(72, level as u32);
    put(76, layout);
    put(80, if level == 0 { 0 } else { 384 });
    put(88, 8);
    put(92, 2);
    put(128, 64);
    put(136, 384);
    put(144, 8);
    put(160, number);
    put(200, 4);
    put(220, 2);
    put(256, 1 << 16);
    bytes
}

/// The volumes with ids 0 to 3 of a pool whose metadata are the first disk, and data the second.
pub(crate) fn thin_volumes(disks: &Arc<[Arc<dyn BlockDevice>]>) -> Vec<Mapped> {
    let whole = |disk: usize| -> Arc<dyn Map> {
        Arc::new(WholeDisk { disk, size: disks[disk].geometry().size_bytes })
    };
    let Ok(meta) = Media::with_cache(Arc::clone(&disks[0]), 128 << 10) else { return Vec::new() };
    let maps = lvm::thin_maps(meta, &whole(1));
    maps.into_iter().map(|map| Mapped::new(Arc::clone(disks), map)).collect()
}
