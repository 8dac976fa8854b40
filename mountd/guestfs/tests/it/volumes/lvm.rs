//! Volume groups beside the real LVM's word on where their volumes lie.

use backstay_guestfs::volumes::{Content, VolumeTree};

use super::group::{EXTENT, Group, PE_START, no_lvm};
use super::hold::{MIB, content, names, put, scanned};
use crate::support::image::Image;
use crate::support::{Random, seed};

/// Bytes that tell which they are.
fn bytes(seed: u64, len: u64) -> Vec<u8> {
    Random(seed).bytes(len as usize)
}

/// Deals bytes out in stripes.
fn dealt(all: &[u8], stripe: usize, legs: usize) -> Vec<Vec<u8>> {
    let mut out = vec![Vec::new(); legs];
    for (n, part) in all.chunks(stripe).enumerate() {
        out[n % legs].extend_from_slice(part);
    }
    out
}

#[track_caller]
fn error(tree: &VolumeTree, name: &str) -> String {
    let volume = tree.find(name).unwrap_or_else(|| panic!("no {name} in {}", names(tree)));
    volume.error.clone().unwrap_or_else(|| panic!("{name} has no error"))
}

/// A segment as LVM reports it: its volume, where it starts in it, its length, and for each stripe the disk and first extent.
type Told = (String, u64, u64, u64, Vec<(usize, u64)>);

/// What `lvs` says of the segments on physical volumes.
fn told(group: &Group) -> Vec<Told> {
    let columns = "lv_name,seg_start,seg_size,stripe_size,devices";
    let said = group.tool(
        "lvs",
        &[
            "-a",
            "--segments",
            "--units",
            "b",
            "--nosuffix",
            "--noheadings",
            "--separator",
            ";",
            "-o",
            columns,
        ],
    );
    let mut out = Vec::new();
    for line in said.lines() {
        let part: Vec<&str> = line.trim().split(';').collect();
        let place = |place: &str| -> Option<(usize, u64)> {
            let (disk, extent) = place.strip_prefix("disk")?.strip_suffix(')')?.split_once('(')?;
            Some((disk.parse().ok()?, extent.parse().ok()?))
        };
        let places: Option<Vec<_>> = part[4].split(',').map(place).collect();
        let Some(places) = places else { continue };
        let n = |at: usize| part[at].parse::<u64>().expect("a number");
        out.push((part[0].trim_matches(['[', ']']).to_owned(), n(1), n(2), n(3), places));
    }
    out
}

#[test]
fn linear_and_striped_volumes() {
    if no_lvm("linear_and_striped_volumes") {
        return;
    }
    let group = Group::new("web", 3);
    group.create(&["-L", "20M", "-n", "root"]);
    group.create(&["-i", "3", "-I", "64k", "-L", "24M", "-n", "striped"]);
    group.create(&["-L", "90M", "-n", "over-all"]);
    group.create(&["--type", "zero", "-L", "4M", "-n", "zeros"]);
    group.create(&["--type", "error", "-L", "4M", "-n", "errors"]);
    let told = told(&group);
    for wanted in ["root", "striped", "over-all"] {
        let parts: Vec<_> = told.iter().filter(|(name, ..)| name == wanted).collect();
        assert!(!parts.is_empty(), "{told:?}");
        let size: u64 = parts.iter().map(|(_, _, len, ..)| len).sum();
        let all = bytes(size, size);
        for (_, start, len, stripe, places) in &parts {
            let part = &all[*start as usize..(start + len) as usize];
            let stripe = if places.len() == 1 { *len } else { *stripe };
            for (leg, (disk, extent)) in
                dealt(part, stripe as usize, places.len()).iter().zip(places)
            {
                group.put(*disk, PE_START + extent * EXTENT, leg);
            }
        }
        let tree = scanned(&group.images());
        assert!(content(&tree, &format!("web/{wanted}")) == all, "{wanted}");
    }
    let tree = scanned(&group.images());
    assert!(
        told.iter().filter(|(name, ..)| name == "over-all").count() > 1,
        "it has several segments"
    );
    assert!(content(&tree, "web/zeros").iter().all(|b| *b == 0));
    assert!(error(&tree, "web/errors").contains("error"), "{}", names(&tree));
    let disk = tree.find("disk1").expect("there");
    assert_eq!(disk.content, Content::LvmPv { vg: "web".into() });
    let root = tree.find("web/root").expect("there");
    assert_eq!(root.parents.len(), 1);
    assert_eq!(root.error, None);

    // Without a disk what lies on it says so, and the others are as before.
    let over: Vec<_> = told.iter().filter(|(name, ..)| name == "over-all").collect();
    let root = told.iter().find(|(name, ..)| name == "root").expect("told").4[0].0;
    let lost = over.iter().map(|told| told.4[0].0).find(|disk| *disk != root).expect("another");
    let mut images = group.images();
    images.remove(lost);
    let tree = scanned(&images);
    assert_eq!(content(&tree, "web/root").len(), 20 << 20);
    let why = error(&tree, "web/striped");
    assert!(why.contains("missing") && why.contains("/dev/loop"), "{why}");
    assert!(tree.find("web/over-all").is_some_and(|v| v.devices().len() == 1 && v.error.is_some()));
}

#[test]
fn raid_that_lvm_made() {
    if no_lvm("raid_that_lvm_made") {
        return;
    }
    let group = Group::new("vg0", 3);
    group.create(&["--type", "raid0", "-i", "3", "-I", "16k", "-L", "12M", "-n", "fast"]);
    let told = told(&group);
    let all = bytes(1, 12 * MIB);
    let legs = dealt(&all, 16 << 10, 3);
    for (n, leg) in legs.iter().enumerate() {
        let name = format!("fast_rimage_{n}");
        let (.., places) = told.iter().find(|(lv, ..)| *lv == name).expect("told");
        group.put(places[0].0, PE_START + places[0].1 * EXTENT, leg);
    }
    let tree = scanned(&group.images());
    assert!(content(&tree, "vg0/fast") == all, "{}", names(&tree));
    assert_eq!(tree.volumes.len(), 4, "hidden volumes are not shown: {}", names(&tree));
}

/// What dm-raid keeps on a member: its count of updates, members that failed, and how far it is filled.
fn superblock(events: u64, failed: u64, recovered: u64) -> Vec<u8> {
    let mut block = Vec::new();
    block.extend(0x6452_6d44_u32.to_le_bytes());
    block.extend([0; 12]);
    for word in [events, failed, recovered] {
        block.extend(word.to_le_bytes());
    }
    block
}

fn array(kind: &str, name: &str, legs: usize, extents: u64, more: &str) -> String {
    let pairs: Vec<String> =
        (0..legs).map(|n| format!("\"{name}_rmeta_{n}\",\"{name}_rimage_{n}\"")).collect();
    format!(
        "start_extent=0\nextent_count={extents}\ntype=\"{kind}\"\ndevice_count={legs}\nregion_size=1024\n{more}\nraids=[{}]",
        pairs.join(",")
    )
}

/// The places of metadata and image of each member.
fn members(group: &mut Group, name: &str, legs: usize, extents: u64) -> Vec<(u64, u64)> {
    let one = |n: usize| {
        let meta = group.sub(&format!("{name}_rmeta_{n}"), n, 1);
        (meta, group.sub(&format!("{name}_rimage_{n}"), n, extents))
    };
    (0..legs).map(one).collect()
}

#[test]
fn mirrors_read_a_leg_that_is_in_sync() {
    if no_lvm("mirrors_read_a_leg_that_is_in_sync") {
        return;
    }
    let mut group = Group::new("vg0", 3);
    let places = members(&mut group, "m", 3, 4);
    group.volume("m", true, &array("raid1", "m", 3, 4, ""));
    let (a, b) = (group.sub("old_mimage_0", 0, 4), group.sub("old_mimage_1", 1, 4));
    group.volume(
        "old",
        true,
        "start_extent=0\nextent_count=4\ntype=\"mirror\"\nmirror_count=2\nregion_size=1024\n\
            mirrors=[\"old_mimage_0\",0,\"old_mimage_1\",0]",
    );
    group.restore();
    let (good, bad) = (bytes(7, 4 * MIB), bytes(8, 4 * MIB));
    group.put(0, a, &good);
    group.put(1, b, &bad);
    // The first failed, the second is being filled, the third is good.
    for (n, block) in [
        (0, superblock(5, 0, u64::MAX)),
        (1, superblock(9, 1, 4096)),
        (2, superblock(9, 1, u64::MAX)),
    ] {
        group.put(n, places[n].0, &block);
        group.put(n, places[n].1, if n == 2 { &good } else { &bad });
    }
    let tree = scanned(&group.images());
    assert!(
        content(&tree, "vg0/m") == good && content(&tree, "vg0/old") == good,
        "{}",
        names(&tree)
    );
    let notes = &tree.find("vg0/m").expect("there").notes;
    assert!(notes.iter().any(|note| note.contains("m_rimage_1")), "{notes:?}");
    // Without the good one there is nothing to read, and the leg of the old mirror that is first still counts.
    let images = group.images();
    let tree = scanned(&images[..2]);
    assert!(error(&tree, "vg0/m").contains("m"), "{}", names(&tree));
    assert!(content(&tree, "vg0/old") == good);
    // A reshape is named.
    let mut reshapes = superblock(9, 0, u64::MAX);
    reshapes[4] = 1;
    reshapes.resize(60, 0);
    reshapes.extend(1_u32.to_le_bytes());
    group.put(2, places[2].0, &reshapes);
    let tree = scanned(&group.images());
    assert!(error(&tree, "vg0/m").contains("reshape"), "{}", names(&tree));
}

#[test]
fn raid_5_6_and_10() {
    if no_lvm("raid_5_6_and_10") {
        return;
    }
    let mut group = Group::new("vg0", 5);
    let stripe = 64 << 10;
    let five = members(&mut group, "five", 3, 4);
    group.volume("five", true, &array("raid5_ls", "five", 3, 8, "stripe_size=128"));
    let four = members(&mut group, "four", 3, 2);
    group.volume("four", true, &array("raid4", "four", 3, 4, "stripe_size=128"));
    let six = members(&mut group, "six", 5, 4);
    group.volume("six", true, &array("raid6_zr", "six", 5, 12, "stripe_size=128"));
    let ten = members(&mut group, "ten", 4, 4);
    group.volume("ten", true, &array("raid10", "ten", 4, 8, "stripe_size=128"));
    group.restore();
    // Rows as the manual of lvmraid and SNIA's DDF draw them: which member has which chunk; P and Q are -1.
    let left = [[0, 1, -1], [3, -1, 2], [-1, 4, 5]];
    let last = [[-1, 0, 1], [-1, 2, 3], [-1, 4, 5]];
    let zero = [
        [-1, -1, 0, 1, 2],
        [3, -1, -1, 4, 5],
        [6, 7, -1, -1, 8],
        [9, 10, 11, -1, -1],
        [-1, 12, 13, 14, -1],
    ];
    let pairs = [[0, 0, 1, 1]];
    let lay = |name: &str, places: &[(u64, u64)], rows: &[&[i32]], size: u64| {
        let all = bytes(size, size);
        let per_period = rows.iter().flat_map(|row| row.iter()).max().expect("rows") + 1;
        let extents = 4 * MIB / stripe;
        for row in 0..extents {
            let (period, drawn) = (row as usize / rows.len(), rows[row as usize % rows.len()]);
            for (member, chunk) in drawn.iter().enumerate() {
                // Parity is not read; it is something else here, so that reading it would show.
                let part = u64::try_from(*chunk).ok().and_then(|chunk| {
                    let at = (period as u64 * per_period as u64 + chunk) * stripe;
                    all.get(at as usize..(at + stripe) as usize)
                });
                let part = part.map_or(vec![0xee; stripe as usize], <[u8]>::to_vec);
                if (row + 1) * stripe <= size {
                    group.put(member, places[member].1 + row * stripe, &part);
                }
            }
        }
        let tree = scanned(&group.images());
        assert!(content(&tree, &format!("vg0/{name}")) == all, "{name}: {}", names(&tree));
    };
    lay("five", &five, &[&left[0], &left[1], &left[2]], 8 * MIB);
    lay("six", &six, &zero.iter().map(|row| &row[..]).collect::<Vec<_>>(), 12 * MIB);
    lay("ten", &ten, &[&pairs[0]], 8 * MIB);
    // The image is half as long, so what is laid behind its end belongs to nobody.
    lay("four", &four, &[&last[0], &last[1], &last[2]], 4 * MIB);
    // A member is missing: RAID 10 is all there, the others say which one.
    let images = group.images();
    let tree = scanned(&images[1..]);
    assert_eq!(content(&tree, "vg0/ten"), bytes(8 * MIB, 8 * MIB));
    for name in ["vg0/five", "vg0/six"] {
        let why = error(&tree, name);
        assert!(why.contains("missing"), "{why}");
    }
}

#[test]
fn snapshots_and_caches() {
    if no_lvm("snapshots_and_caches") {
        return;
    }
    let mut group = Group::new("vg0", 2);
    let pv = |n: u32| format!("stripes=[\"@0@\",{n}]");
    let plain = |n, extents| {
        format!(
            "start_extent=0\nextent_count={extents}\ntype=\"striped\"\nstripe_count=1\n{}",
            pv(n)
        )
    };
    group.volume("root", true, &plain(0, 4));
    group.volume("before", true, &plain(4, 2));
    group.volume(
        "snapshot0",
        false,
        "start_extent=0\nextent_count=4\ntype=\"snapshot\"\nchunk_size=8\norigin=\"root\"\ncow_store=\"before\"",
    );
    group.restore();
    let now = bytes(1, 4 * MIB);
    group.put(0, PE_START, &now);
    // Chunks of 4 KiB; the 3rd and the 700th were other.
    let store = PE_START + 4 * EXTENT;
    let head: Vec<u8> = [0x7041_6e53_u32, 1, 1, 8].iter().flat_map(|w| w.to_le_bytes()).collect();
    group.put(0, store, &head);
    let pairs: Vec<u8> = [3_u64, 2, 700, 3].iter().flat_map(|w| w.to_le_bytes()).collect();
    group.put(0, store + 4096, &pairs);
    let mut then = now.clone();
    for (old, new) in [(3, 2), (700, 3)] {
        let chunk = bytes(old, 4096);
        group.put(0, store + new * 4096, &chunk);
        then[old as usize * 4096..][..4096].copy_from_slice(&chunk);
    }
    let tree = scanned(&group.images());
    assert!(content(&tree, "vg0/root") == now, "{}", names(&tree));
    assert!(content(&tree, "vg0/before") == then);
    assert_eq!(tree.volumes.len(), 4, "{}", names(&tree));
    // A snapshot that ran full is none any more.
    group.put(0, store + 4, &[0]);
    let tree = scanned(&group.images());
    assert!(error(&tree, "vg0/before").contains("invalid"));
    assert!(content(&tree, "vg0/root") == now);
}

#[test]
fn what_cannot_be_followed_is_named() {
    if no_lvm("what_cannot_be_followed_is_named") {
        return;
    }
    for (mode, readable) in [("writethrough", true), ("writeback", false)] {
        let mut group = Group::new("vg0", 1);
        let origin = group.sub("data_corig", 0, 4);
        group.sub("pool_cdata", 0, 4);
        group.sub("pool_cmeta", 0, 4);
        group.volume(
            "pool_cpool",
            false,
            &format!(
                "start_extent=0\nextent_count=4\ntype=\"cache-pool\"\ndata=\"pool_cdata\"\nmetadata=\"pool_cmeta\"\n\
                    metadata_format=1\nchunk_size=128\ncache_mode=\"{mode}\"\npolicy=\"mq\""
            ),
        );
        group.volume(
            "data",
            true,
            "start_extent=0\nextent_count=4\ntype=\"cache\"\ncache_pool=\"pool_cpool\"\norigin=\"data_corig\"",
        );
        group.restore();
        let all = bytes(3, 4 * MIB);
        group.put(0, origin, &all);
        let tree = scanned(&group.images());
        if readable {
            assert!(content(&tree, "vg0/data") == all, "{}", names(&tree));
        } else {
            let why = error(&tree, "vg0/data");
            assert!(why.contains("writeback"), "{why}");
            assert!(tree.find("vg0/data").expect("there").devices().is_empty());
        }
    }
}

#[test]
fn groups_of_one_name_and_clones() {
    if no_lvm("groups_of_one_name_and_clones") {
        return;
    }
    let made = |name: &str, seed: u64| {
        let group = Group::new(name, 1);
        group.create(&["-L", "4M", "-n", "root"]);
        group.put(0, PE_START, &bytes(seed, 4 * MIB));
        group
    };
    let (a, b) = (made("system", 1), made("system", 2));
    let clone = a.images[0].copy();
    put(clone.path(), PE_START, &bytes(3, 4 * MIB));
    let tree = scanned(&[&a.images[0], &b.images[0], &clone]);
    assert!(content(&tree, "system/root") == bytes(1, 4 * MIB), "{}", names(&tree));
    let others: Vec<_> = tree.volumes.iter().filter(|v| v.name.starts_with("system~")).collect();
    assert_eq!(others.len(), 2, "{}", names(&tree));
    let mut contents: Vec<_> = others.iter().map(|v| content(&tree, &v.name)).collect();
    contents.sort();
    let mut wanted = vec![bytes(2, 4 * MIB), bytes(3, 4 * MIB)];
    wanted.sort();
    assert!(contents == wanted);
    assert!(others.iter().all(|v| v.name.ends_with("/root")), "{}", names(&tree));
}

#[test]
fn damaged_metadata() {
    if no_lvm("damaged_metadata") {
        return;
    }
    let group = Group::new("vg0", 2);
    for n in 0..12 {
        group.create(&["-L", "1M", "-n", &format!("volume{n}")]);
    }
    // By now the ring has many texts; the newest counts.
    let tree = scanned(&group.images());
    assert_eq!(tree.volumes.len(), 14, "{}", names(&tree));
    let path = group.images[0].path();
    let bytes = std::fs::read(path).expect("read");
    let mut random = Random(seed());
    // Each byte of the label's sector and of the head of the area, and some of the texts: the other disk has it all too.
    let texts = (0..60).map(|_| 4096 + random.below(40_000) as usize).collect::<Vec<_>>();
    for at in (512..640).chain(4096..4200).chain(texts) {
        put(path, at as u64, &[bytes[at] ^ 1 << random.below(8)]);
        let disks = super::hold::disks(&group.images());
        let tree = backstay_guestfs::volumes::scan(&disks).expect("scanned");
        let lvs = tree.volumes.iter().filter(|v| v.name.starts_with("vg0/")).count();
        assert_eq!(lvs, 12, "byte {at}: {}", names(&tree));
        put(path, at as u64, &bytes[at..=at]);
    }
    // Of both nothing is left.
    for image in &group.images {
        put(image.path(), 4096 + 8, b"x");
    }
    let tree = scanned(&group.images());
    assert_eq!(tree.volumes.len(), 2);
    assert!(tree.volumes[0].notes.iter().any(|n| n.contains("checksum")), "{}", names(&tree));
    let short = Image::new(4096);
    put(short.path(), 0, &bytes[..4096]);
    let tree = scanned(&[&short]);
    assert_eq!(tree.volumes.len(), 1);
}
