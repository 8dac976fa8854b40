//! A btrfs made by hand: what it holds, and mistakes planted in it.

use std::sync::Arc;

use backstay_blockdev::MemDevice;

use super::*;
use crate::fuzz::btrfs::{image, inner, leaf, plain, seal};
use crate::fuzz::{TARGETS, patches};

fn open(disk: &[u8]) -> Result<Btrfs, Error> {
    Btrfs::open(vec![Arc::new(MemDevice::read_only(disk.to_vec()))])
}

fn bytes(fs: &Btrfs, name: &str) -> Result<Vec<u8>, Error> {
    let node = fs.lookup(fs.root(), name.as_bytes())?;
    let mut buf = vec![0xaa; fs.stat(node)?.size_bytes as usize];
    let len = buf.len();
    assert_eq!(fs.read(node, 0, &mut buf)?, len);
    Ok(buf)
}

#[test]
fn everything_by_hand() {
    let fs = open(&image()).expect("it opens");
    assert_eq!(fs.info().label, "by hand");
    let all = fs.read_dir(fs.root(), DirCookie::START, 100).expect("it lists");
    let names: Vec<_> = all.iter().map(|e| String::from_utf8_lossy(&e.name)).collect();
    assert_eq!(names, ["inline", "content", "link", "packed", "plain", "null", "sub"]);
    for entry in &all {
        let stat = fs.stat(entry.node).expect("metadata");
        assert_eq!(Some(stat.kind), entry.kind);
        assert_eq!(fs.lookup(fs.root(), &entry.name).expect("it is found"), entry.node);
    }
    assert_eq!(all[6].node, NodeId { inode: 256, part: 256 });
    assert_eq!(fs.stat(all[5].node).expect("metadata").device, Some((1, 3)));
    assert_eq!(bytes(&fs, "inline").expect("it reads"), b"abc");
    assert_eq!(fs.read_link(all[2].node).expect("a target"), b"inline");
    assert_eq!(bytes(&fs, "packed").expect("it reads"), [7; 4105]);
    let content = bytes(&fs, "content").expect("it reads");
    let sector = |n: usize| (n * 4096..(n + 1) * 4096).map(plain).collect::<Vec<_>>();
    assert_eq!(content[..8192], [sector(0), sector(1)].concat());
    assert_eq!(content[8192..16_384], [0; 8192]);
    assert_eq!(content[16_384..], sector(2)[..4000]);
    let places: Vec<_> = fs
        .extents(all[1].node, 0, u64::MAX, 100)
        .expect("extents")
        .into_iter()
        .map(|e| (e.offset_bytes, e.place))
        .collect();
    let expected = [
        (0, Place::Inside),
        (8192, Place::Hole),
        (12_288, Place::Unwritten),
        (16_384, Place::Inside),
    ];
    assert_eq!(places, expected);
}

#[test]
fn content_from_the_other_copy() {
    let mut disk = image();
    // The first copy of two sectors, one with checksum; one without cannot be told from good.
    disk[(128 << 10) + 5] ^= 1;
    let fs = open(&disk).expect("it opens");
    assert_eq!(bytes(&fs, "content").expect("it reads")[5], plain(5));
    disk[(192 << 10) + 5] ^= 2;
    let fs = open(&disk).expect("it opens");
    let e = bytes(&fs, "content").expect_err("both are bad");
    assert_eq!(e.kind(), ErrorKind::Damaged);
    assert!(e.to_string().contains("byte 131072 of device 0, byte 196608"), "{e}");
    let rest = fs.lookup(fs.root(), b"content").expect("it is there");
    assert_eq!(fs.read(rest, 4096, &mut [0; 4096]).expect("the rest is good"), 4096);
}

/// Puts a block at its place, with its checksum.
fn planted(at: u64, block: &[u8]) -> Result<Btrfs, Error> {
    let mut disk = image();
    disk[at as usize..at as usize + block.len()].copy_from_slice(block);
    seal(&mut disk);
    open(&disk)
}

#[test]
fn loops_and_twice_used_blocks() {
    let first = (256, 1, 0);
    // The tree leads to itself, to one leaf twice, and to a leaf that starts elsewhere.
    for children in [
        vec![(first, 0x13000)],
        vec![(first, 0x14000), ((257, 1, 0), 0x14000)],
        vec![((255, 1, 0), 0x14000)],
        vec![(first, 0x14001)],
        vec![(first, 0x14000), ((257, 1, 0), 0x9000_0000)],
    ] {
        let met = planted(0x13000, &inner(0x13000, 5, &children)).and_then(|fs| {
            let node = fs.lookup(fs.root(), b"inline")?;
            fs.stat(node)
        });
        assert_eq!(met.expect_err("it is found").kind(), ErrorKind::Damaged, "{children:?}");
    }
    // Children out of order.
    let children = [((257, 1, 0), 0x15000), (first, 0x14000)];
    assert!(planted(0x13000, &inner(0x13000, 5, &children)).is_err());
}

#[test]
fn a_leaf_with_keys_behind_its_neighbour() {
    let mut disk = image();
    let one = |key| vec![(key, vec![0; 160])];
    // The first leaf ends behind where the second begins.
    let mut items = one((256, 1, 0));
    items[0].1[52..56].copy_from_slice(&0o040_755_u32.to_le_bytes());
    items.push(((256, 96, 2), vec![0; 3]));
    items.push(((400, 1, 0), vec![0; 160]));
    let block = leaf(0x14000, 5, &items);
    disk[0x14000..0x15000].copy_from_slice(&block);
    seal(&mut disk);
    let fs = open(&disk).expect("it opens");
    let e = fs.read_dir(fs.root(), DirCookie::START, 10).expect_err("a bad entry");
    assert!(e.to_string().contains("item (256 96 2) in the tree block at byte 81920"), "{e}");
}

#[test]
fn names_no_file_can_have() {
    for name in [&b"."[..], b"..", b"a/b", b"a\0b"] {
        let mut disk = image();
        let at = disk.windows(6).position(|w| w == b"inline").expect("a name");
        // All entries of this name, in both kinds of items.
        let places: Vec<_> = (at..0x15000).filter(|i| disk[*i..].starts_with(b"inline")).collect();
        for place in places {
            let len = place - 3;
            disk[len..len + 2].copy_from_slice(&(name.len() as u16).to_le_bytes());
            let value = (6 - name.len()) as u16;
            disk[len - 2..len].copy_from_slice(&value.to_le_bytes());
            disk[place..place + name.len()].copy_from_slice(name);
        }
        seal(&mut disk);
        let fs = open(&disk).expect("it opens");
        let e = fs.read_dir(fs.root(), DirCookie::START, 10).expect_err("refused");
        assert_eq!(e.kind(), ErrorKind::Damaged, "{e}");
    }
}

/// Inputs one run tries.
const ROUNDS: usize = 5000;

#[test]
fn changed_bytes_break_no_promise() {
    let target = TARGETS.iter().find(|t| t.name == "guest_btrfs").expect("it is listed");
    let seed = patches(&image());
    assert!(seed.len() < 16 << 10, "{} bytes", seed.len());
    let mut state = std::env::var("BACKSTAY_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    eprintln!("seed {state} (BACKSTAY_SEED)");
    let mut random = |below: usize| {
        state = u64::wrapping_mul(state, 6_364_136_223_846_793_005).wrapping_add(1_442_695_040);
        (state >> 33) as usize % below.max(1)
    };
    (target.run)(&[]);
    for _ in 0..ROUNDS {
        let mut input = seed.clone();
        for _ in 0..=random(4) {
            let at = random(input.len() - 8);
            let value = [0, 1, 2, 0x7f, 0x80, 0xff, 0x1000, random(256) as u64, u64::MAX, 1 << 63];
            let value = value[random(value.len())].to_le_bytes();
            let len = 1 << random(4);
            input[at..at + len].copy_from_slice(&value[..len]);
        }
        (target.run)(&input);
    }
}
