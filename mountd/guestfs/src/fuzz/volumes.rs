//! Disks whose tables, labels and superblocks are any bytes. Where a checksum would keep a fuzzer out it is made right here: what a hostile guest
//! can do as well.

use std::sync::Arc;

use backstay_blockdev::{BlockDevice, MemDevice};
use crc_fast::{CrcAlgorithm, checksum};

use super::{disk, patches};
use crate::volumes::{Disk, Mapped, PieceAt, VolumeTree, fuzzing, scan};

/// The sizes of disks; each has room for all places that are looked at in it.
const TABLE_DISK_BYTES: usize = 1 << 20;
const LVM_DISK_BYTES: usize = 256 << 10;
const MD_DISK_BYTES: usize = 256 << 10;
const THIN_BLOCKS: usize = 16;
const THIN_BLOCK_BYTES: usize = 4096;
/// Of each volume this much is read at each of some places.
const READ_BYTES: u64 = 64 << 10;
const VOLUMES_LOOKED_AT: usize = 64;

/// Partition tables. The first byte says whether the checksums of a GPT are to be right.
pub(super) fn gpt_mbr(input: &[u8]) {
    let Some((mode, rest)) = input.split_first() else { return };
    let mut bytes = disk(rest, TABLE_DISK_BYTES);
    if mode & 1 == 1 {
        right_gpt(&mut bytes, 512);
        right_gpt(&mut bytes, TABLE_DISK_BYTES - 512);
    }
    look(&[bytes]);
}

/// Makes the checksums of the GPT whose header is at `at` right.
fn right_gpt(bytes: &mut [u8], at: usize) {
    let number = |from: usize| -> Option<usize> {
        let field = bytes.get(from..from + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(field)).ok()
    };
    let (Some(lba), Some(count), Some(size)) = (number(at + 72), number(at + 80), number(at + 84))
    else {
        return;
    };
    let start = lba.saturating_mul(512);
    let end = start.saturating_add(count.saturating_mul(size));
    let entries = bytes.get(start..end).map(|e| checksum(CrcAlgorithm::Crc32IsoHdlc, e) as u32);
    if let Some(sum) = entries {
        bytes[at + 88..at + 92].copy_from_slice(&sum.to_le_bytes());
    }
    let len = number_at(bytes, at + 12).clamp(92, 512);
    bytes[at + 16..at + 20].fill(0);
    let sum = checksum(CrcAlgorithm::Crc32IsoHdlc, &bytes[at..at + len]) as u32;
    bytes[at + 16..at + 20].copy_from_slice(&sum.to_le_bytes());
}

fn number_at(bytes: &[u8], at: usize) -> usize {
    let field = bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).unwrap_or([0; 4]);
    u32::from_le_bytes(field) as usize
}

/// The text of a volume group, as two physical volumes have it.
pub(super) fn lvm_text(input: &[u8]) {
    let all: Vec<Vec<u8>> = [b'a', b'b']
        .iter()
        .map(|id| fuzzing::physical_volume(*id, input, LVM_DISK_BYTES))
        .collect();
    look(&all);
}

/// Superblocks of md on two disks, whose checksums are made right.
pub(super) fn md_super(input: &[u8]) {
    let (first, second) = input.split_at(input.len() / 2);
    let all = [first, second].map(|half| {
        let mut bytes = disk(half, MD_DISK_BYTES);
        fuzzing::right_md(&mut bytes);
        bytes
    });
    look(&all);
}

/// The metadata of a thin pool, whose checksums are made right.
pub(super) fn thin(input: &[u8]) {
    let mut bytes = disk(input, THIN_BLOCKS * THIN_BLOCK_BYTES);
    fuzzing::right_thin(&mut bytes);
    let disks: Arc<[Arc<dyn BlockDevice>]> = [bytes, vec![3; 1 << 20]]
        .map(|bytes| Arc::new(MemDevice::read_only(bytes)) as Arc<dyn BlockDevice>)
        .into();
    for device in fuzzing::thin_volumes(&disks) {
        walk(&disks, &device);
    }
}

/// Scans disks and holds what comes out to what is promised.
fn look(all: &[Vec<u8>]) {
    let disks: Vec<Disk> = (0..)
        .zip(all)
        .map(|(n, bytes)| Disk {
            name: format!("disk{n}"),
            device: Arc::new(MemDevice::read_only(bytes.clone())),
        })
        .collect();
    let VolumeTree { volumes, .. } = scan(&disks).expect("scanning never fails over bytes");
    assert!(volumes.len() >= disks.len(), "each disk is a volume");
    let devices: Vec<_> = disks.iter().map(|disk| Arc::clone(&disk.device)).collect();
    for (index, volume) in volumes.iter().enumerate().take(VOLUMES_LOOKED_AT) {
        assert!(volume.parents.iter().all(|parent| *parent < index), "parents come first");
        for device in volume.devices() {
            walk(&devices, &device);
        }
    }
}

/// Some places of a volume: what is located can be read, and is what is read.
fn walk(disks: &[Arc<dyn BlockDevice>], device: &Mapped) {
    let size = device.size_bytes();
    for start in [0, size / 3, size / 2, size.saturating_sub(READ_BYTES), size.saturating_sub(1)] {
        let len = READ_BYTES.min(size - start);
        let mut read = vec![1; len as usize];
        let whole = device.read_at(start, &mut read);
        let mut at = 0;
        while at < len {
            let Ok(pieces) = device.locate(start + at, len - at, 8) else {
                assert!(whole.is_err(), "what cannot be located cannot be read");
                break;
            };
            assert!(!pieces.is_empty() && pieces.len() <= 8, "a list has 1 to 8 pieces");
            for piece in pieces {
                assert!(piece.len_bytes > 0 && at + piece.len_bytes <= len, "within the range");
                let part = &read[at as usize..(at + piece.len_bytes) as usize];
                let mut wanted = vec![0; part.len()];
                if let PieceAt::Disk { disk, offset_bytes } = piece.at {
                    let on = disks[disk].read_at(offset_bytes, &mut wanted);
                    on.expect("a piece lies on its disk");
                }
                assert!(whole.is_err() || part == wanted, "a piece is what is read");
                at += piece.len_bytes;
            }
        }
    }
}

/// A GPT with a partition, and a boot record with a chain.
pub(super) fn gpt_mbr_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut gpt = vec![0; TABLE_DISK_BYTES];
    boot_record(&mut gpt, 0, &[(0xee, 1, 2047)]);
    for (at, own) in [(512, 1_u64), (TABLE_DISK_BYTES - 512, 2047)] {
        gpt[at..at + 8].copy_from_slice(b"EFI PART");
        gpt[at + 12] = 92;
        gpt[at + 24..at + 32].copy_from_slice(&own.to_le_bytes());
        gpt[at + 72] = 2;
        gpt[at + 80] = 4;
        gpt[at + 84] = 128;
    }
    gpt[1024] = 1;
    gpt[1024 + 32] = 34;
    gpt[1024 + 40] = 200;
    let mut mbr = vec![0; TABLE_DISK_BYTES];
    boot_record(&mut mbr, 0, &[(0x83, 8, 100), (5, 200, 1000)]);
    boot_record(&mut mbr, 200, &[(0x83, 8, 100), (5, 300, 200)]);
    boot_record(&mut mbr, 500, &[(0x83, 8, 100)]);
    let with = |mode: u8, bytes: &[u8]| [vec![mode], patches(bytes)].concat();
    vec![("gpt", with(1, &gpt)), ("mbr", with(0, &mbr))]
}

fn boot_record(bytes: &mut [u8], sector: usize, entries: &[(u8, u32, u32)]) {
    let at = sector * 512;
    for (n, (kind, start, len)) in entries.iter().enumerate() {
        let entry = at + 446 + 16 * n;
        bytes[entry + 4] = *kind;
        bytes[entry + 8..entry + 12].copy_from_slice(&start.to_le_bytes());
        bytes[entry + 12..entry + 16].copy_from_slice(&len.to_le_bytes());
    }
    bytes[at + 510..at + 512].copy_from_slice(&[0x55, 0xaa]);
}

/// Volume groups with all kinds of segments.
pub(super) fn lvm_text_seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("plain", fuzzing::GROUP_PLAIN.as_bytes().to_vec()),
        ("arrays", fuzzing::GROUP_ARRAYS.as_bytes().to_vec()),
        ("pools", fuzzing::GROUP_POOLS.as_bytes().to_vec()),
    ]
}

/// Arrays of both versions.
pub(super) fn md_super_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let both = |level: i32, layout: u32| {
        let half = |n| patches(&fuzzing::md_member(n, level, layout, MD_DISK_BYTES));
        let (mut first, mut second) = (half(0), half(1));
        // Each takes one half of the input; what pads them is a patch of nothing.
        let len = first.len().max(second.len()).div_ceil(6) * 6 + 6;
        first.resize(len, 0);
        second.resize(len, 0);
        [first, second].concat()
    };
    vec![("mirror", both(1, 0)), ("stripes", both(0, 0)), ("near", both(10, 0x102))]
}

/// A pool with a volume.
pub(super) fn thin_seeds() -> Vec<(&'static str, Vec<u8>)> {
    vec![("pool", patches(&fuzzing::thin_pool(THIN_BLOCKS * THIN_BLOCK_BYTES)))]
}

#[cfg(test)]
mod tests {
    use super::super::TARGETS;
    use super::*;

    const ROUNDS: usize = 4000;

    /// What a scan of these disks calls its volumes.
    fn found(all: &[Vec<u8>]) -> String {
        let one = |(n, bytes): (usize, &Vec<u8>)| Disk {
            name: format!("disk{n}"),
            device: Arc::new(MemDevice::read_only(bytes.clone())),
        };
        let disks: Vec<Disk> = all.iter().enumerate().map(one).collect();
        let tree = scan(&disks).expect("scanned");
        let shown = tree.volumes.iter().map(|v| format!("{}:{}", v.name, v.devices().len()));
        shown.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn seeds_are_what_they_say() {
        let text = |text: &str| {
            let pv = |id| fuzzing::physical_volume(id, text.as_bytes(), LVM_DISK_BYTES);
            found(&[pv(b'a'), pv(b'b')])
        };
        assert_eq!(text(fuzzing::GROUP_PLAIN), "disk0:1 disk1:1 vg0/root:1 vg0/fast:1 vg0/none:1");
        assert_eq!(text(fuzzing::GROUP_ARRAYS), "disk0:1 disk1:1 vg1/r1:1 vg1/r5:1 vg1/old:1");
        assert_eq!(
            text(fuzzing::GROUP_POOLS),
            "disk0:1 disk1:1 vg2/pool:0 vg2/thin:0 vg2/snap:0 vg2/cached:1"
        );
        for (name, wanted) in [("gpt", "disk0:1 disk0p1:1"), ("mbr", "disk0p5:1 disk0p6:1")] {
            let seeds = gpt_mbr_seeds();
            let (_, seed) = seeds.iter().find(|(n, _)| *n == name).expect("a seed");
            let mut bytes = disk(&seed[1..], TABLE_DISK_BYTES);
            if name == "gpt" {
                right_gpt(&mut bytes, 512);
            }
            assert!(found(&[bytes.clone()]).contains(wanted), "{}", found(&[bytes]));
        }
        for (name, seed) in md_super_seeds() {
            let (first, second) = seed.split_at(seed.len() / 2);
            let halves = [first, second].map(|half| {
                let mut bytes = disk(half, MD_DISK_BYTES);
                fuzzing::right_md(&mut bytes);
                bytes
            });
            let found = found(&halves);
            assert!(found.contains("md-") && found.ends_with(":1"), "{name}: {found}");
        }
    }

    /// Volumes in each other, each made of the next one many times: what is said of the last one is not said more often by each.
    #[test]
    fn a_group_that_fans_out() {
        let mut text = String::from(
            "vg0 { id = \"vg0\" seqno = 1 extent_size = 8\nphysical_volumes {\n\
            pv0 { id = \"aaaaaa-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa\" pe_start = 128 pe_count = 40 }\n\
            pv1 { id = \"gone\" pe_start = 128 pe_count = 40 }\n}\nlogical_volumes {\n\
            a { status = [] segment_count = 1 segment1 { start_extent = 0 extent_count = 1 type = \"striped\" stripes = [\"pv0\", 0] } }\n\
            b { status = [] segment_count = 1 segment1 { start_extent = 0 extent_count = 1 type = \"striped\" stripes = [\"pv1\", 0] } }\n\
            v12 { status = [] segment_count = 1 segment1 { start_extent = 0 extent_count = 1 type = \"raid1\" raids = [\"a\", \"a\", \"b\", \"b\"] } }\n",
        );
        for level in 0..12 {
            text += &format!("v{level} {{ status = [\"VISIBLE\"] segment_count = 300\n");
            for n in 0..300 {
                let next = level + 1;
                text += &format!(
                    "segment{n} {{ start_extent = {n} extent_count = 1 type = \"striped\" stripes = [\"v{next}\", 0] }}\n"
                );
            }
            text += "}\n";
        }
        text += "} }\n";
        let bytes = fuzzing::physical_volume(b'a', text.as_bytes(), 1 << 20);
        let device: Arc<dyn BlockDevice> = Arc::new(MemDevice::read_only(bytes));
        let tree = scan(&[Disk { name: "disk0".into(), device }]).expect("scanned");
        let top = tree.find("vg0/v0").expect("there");
        assert_eq!((top.notes.len(), &top.error), (1, &None), "{top:?}");
        assert_eq!(top.size_bytes, 300 * 4096);
    }

    /// A target with its seeds, changed: bytes flipped, cut, doubled. By a seed that is printed.
    fn changed(name: &str) {
        let seed = std::env::var("BACKSTAY_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
        eprintln!("seed {seed} (BACKSTAY_SEED)");
        let mut state: u64 = seed;
        let mut random = |end: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % end.max(1)
        };
        let target = TARGETS.iter().find(|target| target.name == name).expect("it is listed");
        for (_, seed) in (target.seeds)() {
            (target.run)(&seed);
            for _ in 0..ROUNDS {
                let mut input = seed.clone();
                for _ in 0..=random(6) {
                    let at = random(input.len());
                    match random(6) {
                        0 => input.truncate(at),
                        1 => input.extend_from_within(at..),
                        2 if at < input.len() => input[at] = [0, 1, 0x7f, 0x80, 0xff][random(5)],
                        3 => {
                            let end = (at + random(40)).min(input.len());
                            input.drain(at.min(end)..end);
                        }
                        _ if at < input.len() => input[at] ^= 1 << random(8),
                        _ => {}
                    }
                    input.truncate(64 << 10);
                }
                (target.run)(&input);
            }
        }
    }

    #[test]
    fn tables_of_any_bytes() {
        changed("guest_tables");
    }

    #[test]
    fn texts_of_any_bytes() {
        changed("guest_lvm");
    }

    #[test]
    fn superblocks_of_any_bytes() {
        changed("guest_md");
    }

    #[test]
    fn pools_of_any_bytes() {
        changed("guest_thin");
    }
}
