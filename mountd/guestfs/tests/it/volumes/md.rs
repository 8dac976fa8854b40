//! Arrays whose superblocks are written here by the kernel's header, and read by mdadm too.

use std::fmt::Write as _;

use backstay_guestfs::volumes::Content;

use super::hold::{MIB, content, names, put, scanned};
use crate::support::image::{Image, run, skipped};
use crate::support::{Random, seed};

const SECTOR: u64 = 512;
const SIZE: u64 = 8 * MIB;
/// Where data start on members of version 1.
const DATA: u64 = MIB;

/// An array to be.
#[derive(Clone)]
struct Spec {
    version: &'static str,
    level: i32,
    layout: u32,
    chunk: u64,
    members: u32,
    name: &'static str,
    uuid: u8,
}

const SPEC: Spec =
    Spec { version: "1.2", level: 1, layout: 0, chunk: 0, members: 2, name: "web01:data", uuid: 7 };

fn word(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn long(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn folded(words: impl Iterator<Item = u32>) -> u32 {
    let sum: u64 = words.map(u64::from).sum();
    (sum as u32).wrapping_add((sum >> 32) as u32)
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes.chunks_exact(4).map(|w| u32::from_le_bytes(w.try_into().expect("4 bytes")))
}

impl Spec {
    fn place(&self) -> u64 {
        match self.version {
            "1.0" => ((SIZE / SECTOR - 16) & !7) * SECTOR,
            "1.1" => 0,
            "1.2" => 4096,
            _ => SIZE / 65536 * 65536 - 65536,
        }
    }

    /// Where data start, and how many bytes of them are used.
    fn data(&self) -> (u64, u64) {
        match self.version {
            "1.0" => (0, 7 * MIB),
            "0.90" => (0, 7 * MIB),
            _ => (DATA, SIZE - DATA),
        }
    }

    /// The superblock of a member.
    fn one(&self, number: u32, events: u64, features: u32) -> Vec<u8> {
        let mut sb = vec![0; 256 + 2 * 128];
        word(&mut sb, 0, 0xa92b_4efc);
        word(&mut sb, 4, 1);
        word(&mut sb, 8, features);
        sb[16..32].fill(self.uuid);
        sb[32..32 + self.name.len()].copy_from_slice(self.name.as_bytes());
        let (start, used) = self.data();
        word(&mut sb, 72, self.level as u32);
        word(&mut sb, 76, self.layout);
        let used = if self.level <= 0 { 0 } else { used };
        long(&mut sb, 80, used / SECTOR);
        word(&mut sb, 88, (self.chunk / SECTOR) as u32);
        word(&mut sb, 92, self.members);
        long(&mut sb, 128, start / SECTOR);
        long(&mut sb, 136, self.data().1 / SECTOR);
        long(&mut sb, 144, self.place() / SECTOR);
        word(&mut sb, 160, number);
        sb[168..184].fill(number as u8 + 1);
        long(&mut sb, 200, events);
        long(&mut sb, 208, u64::MAX);
        word(&mut sb, 220, 128);
        for role in 0..128 {
            let value = if role < self.members as u16 { role } else { 0xfffe };
            let at = 256 + 2 * usize::from(role);
            sb[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        let sum = folded(words(&sb));
        word(&mut sb, 216, sum);
        sb
    }

    /// The same of version 0.90, for machines of both kinds.
    fn zero(&self, number: u32, events: u32, big: bool) -> Vec<u8> {
        let mut w = vec![0_u32; 1024];
        let uuid = u32::from_le_bytes([self.uuid; 4]);
        (w[0], w[2], w[4]) = (0xa92b_4efc, 90, 128);
        (w[5], w[13], w[14], w[15]) = (uuid, uuid, uuid, uuid);
        (w[7], w[8]) = (self.level as u32, (self.data().1 >> 10) as u32);
        (w[9], w[10], w[11]) = (self.members, self.members, 3);
        w[if big { 40 } else { 39 }] = events;
        (w[34], w[35]) = (self.members, self.members);
        (w[64], w[65]) = (self.layout, self.chunk as u32);
        for disk in 0..self.members {
            let at = 128 + 32 * disk as usize;
            (w[at], w[at + 3], w[at + 4]) = (disk, disk, 6);
        }
        let own: Vec<u32> = w[128 + 32 * number as usize..][..32].to_vec();
        w[992..].copy_from_slice(&own);
        w[38] = folded(w.iter().copied());
        let turned = |w: &u32| if big { w.to_be_bytes() } else { w.to_le_bytes() };
        w.iter().flat_map(turned).collect()
    }

    /// The members, none with data yet.
    fn images(&self) -> Vec<Image> {
        let one = |number| {
            let image = Image::new(SIZE);
            let sb = match self.version {
                "0.90" => self.zero(number, 5, false),
                _ => self.one(number, 5, 0),
            };
            put(image.path(), self.place(), &sb);
            image
        };
        (0..self.members).map(one).collect()
    }
}

/// mdadm finds the superblock to be right.
#[track_caller]
fn examined(image: &Image, level: &str) {
    let said = run("mdadm", &["--examine", image.path().to_str().expect("plain")]);
    assert!(said.contains("- correct"), "{said}");
    assert!(said.contains(&format!("Raid Level : {level}")), "{said}");
}

fn refs(images: &[Image]) -> Vec<&Image> {
    images.iter().collect()
}

#[test]
fn mirrors_of_all_versions() {
    for (version, name) in
        [("0.90", "md3"), ("1.0", "md/data"), ("1.1", "md/data"), ("1.2", "md/data")]
    {
        let spec = Spec { version, ..SPEC };
        let images = spec.images();
        let (start, used) = spec.data();
        let all = Random(seed()).bytes(used as usize);
        put(images[0].path(), start, &all);
        put(images[1].path(), start, &all);
        if !skipped("mirrors_of_all_versions (mdadm)", &["mdadm"]) {
            examined(&images[1], "raid1");
        }
        let tree = scanned(&refs(&images));
        assert!(content(&tree, name) == all, "{version}: {}", names(&tree));
        let array = tree.find(name).expect("there");
        assert_eq!((array.parents.as_slice(), &array.error), (&[0, 1][..], &None));
        assert_eq!(tree.find("disk0").expect("there").content, Content::MdMember);
        // Either member will do.
        let tree = scanned(&refs(&images[1..]));
        assert!(content(&tree, name) == all, "{version}: {}", names(&tree));
        let notes = &tree.find(name).expect("there").notes;
        assert!(notes.iter().any(|note| note.contains("missing")), "{notes:?}");
    }
}

#[test]
fn a_member_that_fell_out_is_not_read() {
    let images = SPEC.images();
    let all = Random(1).bytes(7 << 20);
    put(images[1].path(), DATA, &all);
    put(images[1].path(), SPEC.place(), &SPEC.one(1, 90, 0));
    let tree = scanned(&refs(&images));
    assert!(content(&tree, "md/data") == all, "{}", names(&tree));
    // Big-endian machines wrote 0.90 in their own order.
    let spec = Spec { version: "0.90", ..SPEC };
    let old = Image::new(SIZE);
    put(old.path(), spec.place(), &spec.zero(0, 5, true));
    put(old.path(), 0, &all);
    let tree = scanned(&[&old]);
    assert!(content(&tree, "md3") == all, "{}", names(&tree));
}

#[test]
fn stripes_parity_and_copies() {
    let chunk = 64 << 10;
    // Rows as SNIA's DDF draws them: which member has which chunk; parity is -1.
    let plain = vec![vec![0, 1, 2]];
    let left = vec![vec![0, 1, -1], vec![3, -1, 2], vec![-1, 4, 5]];
    let right_asymmetric = vec![vec![-1, 0, 1], vec![2, -1, 3], vec![4, 5, -1]];
    let left_asymmetric = vec![vec![0, 1, -1], vec![2, -1, 3], vec![-1, 4, 5]];
    let right = vec![vec![-1, 0, 1], vec![3, -1, 2], vec![4, 5, -1]];
    let last = vec![vec![0, 1, -1]];
    let six = vec![vec![-1, 0, 1, -1], vec![2, 3, -1, -1], vec![5, -1, -1, 4], vec![-1, -1, 6, 7]];
    let near = vec![vec![0, 0, 1], vec![1, 2, 2]];
    let four_near = vec![vec![0, 0, 1, 1]];
    let drawn: Vec<(i32, u32, Vec<Vec<i64>>)> = vec![
        (0, 0, plain),
        (5, 0, left_asymmetric),
        (5, 1, right_asymmetric),
        (5, 2, left),
        (5, 3, right),
        (4, 0, last),
        (6, 2, six),
        (10, 0x102, near),
        (10, 0x102, four_near),
    ];
    for (level, layout, rows) in drawn {
        let members = rows[0].len() as u32;
        let spec = Spec { level, layout, chunk, members, ..SPEC };
        let images = spec.images();
        let per_period = rows.iter().flatten().max().expect("rows") + 1;
        let period_rows = rows.len() as u64;
        let all_rows = spec.data().1 / chunk;
        let size = match level {
            0 => all_rows * 3,
            4 | 5 => all_rows * (u64::from(members) - 1),
            6 => all_rows * (u64::from(members) - 2),
            _ => all_rows * u64::from(members) / 2,
        } * chunk;
        let all = Random(size).bytes(size as usize);
        for row in 0..all_rows {
            for (member, place) in rows[(row % period_rows) as usize].iter().enumerate() {
                let number = (row / period_rows) as i64 * per_period + place;
                let part = (*place >= 0).then(|| {
                    let at = number as u64 * chunk;
                    &all[at as usize..(at + chunk) as usize]
                });
                let part = part.map_or(vec![0xee; chunk as usize], <[u8]>::to_vec);
                put(images[member].path(), DATA + row * chunk, &part);
            }
        }
        if !skipped("stripes_parity_and_copies (mdadm)", &["mdadm"]) {
            examined(&images[0], &format!("raid{level}"));
        }
        let tree = scanned(&refs(&images));
        let ours = content(&tree, "md/data");
        assert_eq!(ours.len() as u64, size, "level {level}, layout {layout:#x}");
        assert!(ours == all, "level {level}, layout {layout:#x}: {}", names(&tree));
    }
}

#[test]
fn a_raid_0_of_two_sizes() {
    let chunk = 64 << 10;
    for layout in [1, 2] {
        let spec = Spec { level: 0, chunk, members: 3, layout, ..SPEC };
        // The first has 1 MiB of data, the second 3, the third 4; superblocks say so.
        let lens = [MIB, 3 * MIB, 4 * MIB];
        let images: Vec<Image> = (0..3).map(|_| Image::new(SIZE)).collect();
        for (number, len) in (0..).zip(lens) {
            let mut sb = spec.one(number, 5, 1 << 12);
            long(&mut sb, 136, len / SECTOR);
            word(&mut sb, 216, 0);
            let sum = folded(words(&sb));
            word(&mut sb, 216, sum);
            put(images[number as usize].path(), spec.place(), &sb);
        }
        // Chunk by chunk as the kernel counts: zones of members that reach further than the last zone did.
        let all = Random(8).bytes(8 << 20);
        let (mut at, mut from) = (0, 0);
        for end in [MIB, 3 * MIB, 4 * MIB] {
            let there: Vec<usize> = (0..3).filter(|n| lens[*n] >= end).collect();
            let count = there.len() as u64;
            for inside in 0..(end - from) / chunk * count {
                let turn = if layout == 1 { at / chunk } else { inside };
                let member = there[(turn % count) as usize];
                let part = &all[at as usize..(at + chunk) as usize];
                put(images[member].path(), DATA + from + inside / count * chunk, part);
                at += chunk;
            }
            from = end;
        }
        let tree = scanned(&refs(&images));
        assert!(content(&tree, "md/data") == all, "layout {layout}: {}", names(&tree));
    }
}

#[test]
fn what_is_not_read_is_named() {
    let cases = [
        (Spec { level: 10, layout: 0x201, chunk: 65536, ..SPEC }, 0, "far"),
        (Spec { level: 10, layout: 0x1_0201, chunk: 65536, ..SPEC }, 0, "offset"),
        (Spec { level: 5, layout: 2, chunk: 65536, members: 3, ..SPEC }, 4, "reshape"),
        (Spec { level: 5, layout: 2, chunk: 65536, members: 3, ..SPEC }, 1 << 9, "journal"),
        (Spec { level: 5, layout: 2, chunk: 65536, members: 3, ..SPEC }, 1 << 20, "0x100000"),
    ];
    for (spec, features, wanted) in cases {
        let images: Vec<Image> = (0..spec.members).map(|_| Image::new(SIZE)).collect();
        for (number, image) in (0..).zip(&images) {
            put(image.path(), spec.place(), &spec.one(number, 5, features));
        }
        let tree = scanned(&refs(&images));
        let array = tree.find("md/data").unwrap_or_else(|| panic!("{}", names(&tree)));
        assert!(array.devices().is_empty());
        let error = array.error.clone().expect("an error");
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn every_byte_of_a_superblock() {
    let mut random = Random(seed());
    for version in ["0.90", "1.2"] {
        let spec = Spec { version, ..SPEC };
        let images = spec.images();
        let all = Random(1).bytes(spec.data().1 as usize);
        for image in &images {
            put(image.path(), spec.data().0, &all);
        }
        let bytes = std::fs::read(images[0].path()).expect("read");
        let mut said = String::new();
        for at in (0..512).map(|n| spec.place() as usize + n) {
            put(images[0].path(), at as u64, &[bytes[at] ^ 1 << random.below(8)]);
            let disks = super::hold::disks(&refs(&images));
            let tree = backstay_guestfs::volumes::scan(&disks).expect("scanned");
            // The other member is good: what is read is right, or there is no array of this name.
            let name = if version == "0.90" { "md3" } else { "md/data" };
            let first = tree.find(name).unwrap_or_else(|| panic!("byte {at}: {}", names(&tree)));
            let mut start = vec![0; 4096];
            let device = first.devices()[0].clone();
            backstay_blockdev::BlockDevice::read_at(&*device, 0, &mut start).expect("read");
            assert!(start == all[..4096], "byte {at}");
            let _ = write!(said, "{:?}", tree.find("disk0").expect("there").error);
            put(images[0].path(), at as u64, &[bytes[at]]);
        }
        assert!(said.contains("checksum"));
    }
}

#[test]
fn a_partition_at_the_end_keeps_its_superblock() {
    if skipped("a_partition_at_the_end_keeps_its_superblock", &["sfdisk"]) {
        return;
    }
    // A member of 0.90 in the last partition: its superblock could be that of the disk.
    let spec = Spec { version: "0.90", members: 1, ..SPEC };
    let image = Image::new(SIZE + MIB);
    let path = image.path().to_str().expect("plain").to_owned();
    crate::support::image::run_with_input(
        "sfdisk",
        &["-q", &path],
        b"label: dos\nstart=2048, size=16384, type=fd\n",
    );
    put(image.path(), MIB + spec.place(), &spec.zero(0, 1, false));
    let tree = scanned(&[&image]);
    assert_eq!(tree.find("disk0p1").expect("there").content, Content::MdMember, "{}", names(&tree));
    assert_eq!(tree.find("md3").expect("there").parents, [1]);
}
