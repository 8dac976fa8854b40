//! Partition tables made by sfdisk and sgdisk, and damaged ones.

use backstay_guestfs::fs::FsKind;
use backstay_guestfs::volumes::{Content, TableKind, VolumeTree};

use super::hold::{MIB, content, names, put, scanned};
use crate::support::image::{Image, run, run_with_input, skipped};
use crate::support::{Random, seed};

/// Partitions as sfdisk tells them: number, start, length, both in sectors of 512 bytes.
fn told(image: &Image) -> Vec<(u32, u64, u64)> {
    let path = image.path().to_str().expect("plain");
    let json = run("sfdisk", &["-J", path]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let table = &json["partitiontable"];
    let sector = table["sectorsize"].as_u64().unwrap_or(512);
    let parts = table["partitions"].as_array().cloned().unwrap_or_default();
    let number = |node: &str| {
        let digits: String = node.chars().rev().take_while(char::is_ascii_digit).collect();
        digits.chars().rev().collect::<String>().parse().expect("a number")
    };
    let one = |part: &serde_json::Value| {
        let node = part["node"].as_str().expect("a node");
        let n = |key: &str| part[key].as_u64().expect("a number") * sector / 512;
        (number(node), n("start"), n("size"))
    };
    parts.iter().map(one).collect()
}

/// The tree has just the partitions that sfdisk tells, and reads them from there.
#[track_caller]
fn same_as_told(image: &Image, tree: &VolumeTree) {
    let mut ours: Vec<_> = tree
        .volumes
        .iter()
        .filter_map(|volume| {
            let info = volume.partition.as_ref()?;
            assert_eq!(volume.name, format!("disk0p{}", info.number));
            Some((info.number, info.start_bytes / 512, volume.size_bytes / 512))
        })
        .collect();
    ours.sort_unstable();
    let mut told = told(image);
    told.sort_unstable();
    assert_eq!(ours, told, "{}", names(tree));
}

/// A table by sfdisk, each partition with its number at its start and its end.
fn table(script: &str, size: u64) -> Image {
    let image = Image::new(size);
    let path = image.path().to_str().expect("plain").to_owned();
    run_with_input("sfdisk", &["-q", &path], script.as_bytes());
    for (number, start, len) in told(&image) {
        // An extended partition starts with a boot record; the logical ones write what is theirs.
        if !script.contains(&format!("# {number} extended")) {
            put(image.path(), start * 512 + 600, &number.to_le_bytes());
            put(image.path(), (start + len) * 512 - 4, &number.to_le_bytes());
        }
    }
    image
}

#[track_caller]
fn holds_its_number(tree: &VolumeTree, number: u32) {
    let bytes = content(tree, &format!("disk0p{number}"));
    assert_eq!(bytes[600..604], number.to_le_bytes());
    assert_eq!(bytes[bytes.len() - 4..], number.to_le_bytes());
}

#[test]
fn mbr_with_logical_partitions() {
    if skipped("mbr_with_logical_partitions", &["sfdisk"]) {
        return;
    }
    let script = "label: dos\nlabel-id: 0xdeadbeef\nsize=2M, type=83, bootable\nsize=1M, type=7\nsize=20M, type=5\n\
        size=1M, type=82\nsize=2M, type=83\nsize=3M, type=8e\nsize=1M, type=83\n# 3 extended\n";
    let image = table(script, 40 * MIB);
    let tree = scanned(&[&image]);
    assert_eq!(tree.find("disk0").expect("there").content, Content::Table(TableKind::Mbr));
    same_as_told(&image, &tree);
    for number in [1, 2, 4, 5, 6, 7] {
        holds_its_number(&tree, number);
    }
    let info = |name: &str| tree.find(name).and_then(|v| v.partition.clone()).expect("a partition");
    assert_eq!(info("disk0p1").flags, ["boot"]);
    assert_eq!(info("disk0p1").uuid.as_deref(), Some("deadbeef-01"));
    assert_eq!(info("disk0p6").type_name, "Linux LVM");
    assert_eq!(tree.find("disk0p3").expect("there").content, Content::Extended);
}

#[test]
fn fifty_logical_partitions_and_chains_that_do_not_end() {
    if skipped("fifty_logical_partitions_and_chains_that_do_not_end", &["sfdisk"]) {
        return;
    }
    let script = "label: dos\ntype=5\n".to_owned() + &"size=100K, type=83\n".repeat(50);
    let image = Image::new(160 * MIB);
    let path = image.path().to_str().expect("plain").to_owned();
    run_with_input("sfdisk", &["-q", &path], script.as_bytes());
    let tree = scanned(&[&image]);
    same_as_told(&image, &tree);
    assert_eq!(tree.volumes.len(), 52);

    // The record of the third logical partition leads back to that of the second.
    let starts = told(&image);
    let bytes = std::fs::read(image.path()).expect("read");
    let third = (starts[3].1 - 2048) * 512;
    assert_eq!(bytes[third as usize + 510..third as usize + 512], [0x55, 0xaa]);
    let second = u32::try_from(starts[2].1 - 2048 - starts[0].1).expect("small");
    put(image.path(), third + 446 + 16 + 8, &second.to_le_bytes());
    let tree = scanned(&[&image]);
    let error = tree.find("disk0").and_then(|v| v.error.clone()).expect("an error");
    assert!(error.contains("comes back"), "{error}");
    assert!(tree.find("disk0p7").is_some() && tree.find("disk0p9").is_none());

    // And then nowhere.
    put(image.path(), third + 446 + 16 + 8, &0x00ff_ffff_u32.to_le_bytes());
    let tree = scanned(&[&image]);
    assert!(tree.find("disk0").expect("there").error.is_some());
    assert!(tree.find("disk0p7").is_some());
}

fn gpt() -> Image {
    let script = "label: gpt\nsize=2M, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=\"EFI part\"\n\
        start=10M, size=3M, type=E6D6D379-F507-44C2-A23C-238F2A3DF928, attrs=\"LegacyBIOSBootable\"\n\
        /dev/x9 : size=1M, type=12345678-1234-1234-1234-123456789ABC, attrs=\"RequiredPartition\"\n";
    table(script, 32 * MIB)
}

#[test]
fn gpt_and_its_copy() {
    if skipped("gpt_and_its_copy", &["sfdisk"]) {
        return;
    }
    let image = gpt();
    let tree = scanned(&[&image]);
    same_as_told(&image, &tree);
    let disk = tree.find("disk0").expect("there");
    assert_eq!((disk.content.clone(), &disk.error), (Content::Table(TableKind::Gpt), &None));
    assert_eq!(disk.notes, Vec::<String>::new());
    let first = tree.find("disk0p1").and_then(|v| v.partition.clone()).expect("there");
    assert_eq!(first.name, "EFI part");
    assert_eq!(first.type_name, "EFI system");
    let second = tree.find("disk0p2").and_then(|v| v.partition.clone()).expect("there");
    assert_eq!((second.type_name.as_str(), &second.flags[..]), ("Linux LVM", &["boot".into()][..]));
    for number in [1, 2, 9] {
        holds_its_number(&tree, number);
    }
    // A bit in the first header or the first entries: the copy is taken, and is the same.
    for at in [512 + 24, 512 + 88, 1024 + 33, 1024 + 128 * 100] {
        let damaged = image.copy();
        let byte = std::fs::read(image.path()).expect("read")[at];
        put(damaged.path(), at as u64, &[byte ^ 4]);
        let tree = scanned(&[&damaged]);
        let disk = tree.find("disk0").expect("there");
        assert!(disk.notes.iter().any(|note| note.contains("copy at the end")), "{:?}", disk.notes);
        for number in [1, 2, 9] {
            holds_its_number(&tree, number);
        }
    }
    // Both: what remains is the protective entry, and an error.
    let damaged = image.copy();
    put(damaged.path(), 512 + 24, b"x");
    put(damaged.path(), 32 * MIB - 512 + 24, b"x");
    let tree = scanned(&[&damaged]);
    assert_eq!(tree.volumes.len(), 1, "{}", names(&tree));
    let error = tree.volumes[0].error.clone().expect("an error");
    assert!(error.contains("checksum"), "{error}");
}

#[test]
fn a_disk_that_was_cut_off_and_one_that_grew() {
    if skipped("a_disk_that_was_cut_off_and_one_that_grew", &["sfdisk"]) {
        return;
    }
    let image = gpt();
    let file = std::fs::OpenOptions::new().write(true).open(image.path()).expect("open");
    file.set_len(11 * MIB).expect("cut");
    let tree = scanned(&[&image]);
    holds_its_number(&tree, 1);
    let second = tree.find("disk0p2").expect("there");
    assert!(second.error.as_ref().is_some_and(|e| e.contains("beyond the end")), "{second:?}");
    file.set_len(64 * MIB).expect("grown");
    let tree = scanned(&[&image]);
    holds_its_number(&tree, 1);
}

#[test]
fn every_bit_of_tables() {
    if skipped("every_bit_of_tables", &["sfdisk"]) {
        return;
    }
    let script = "label: dos\nsize=1M, type=83\nsize=6M, type=5\nsize=1M, type=83\nsize=1M, type=83\n# 2 extended\n";
    let mut random = Random(seed());
    for image in [gpt(), table(script, 12 * MIB)] {
        let bytes = std::fs::read(image.path()).expect("read");
        let places = (440..512)
            .chain(512..604)
            .chain(1024..1152)
            .chain(bytes.len() - 512..bytes.len() - 420);
        for at in places {
            let flipped = bytes[at] ^ 1 << random.below(8);
            put(image.path(), at as u64, &[flipped]);
            let tree = super::hold::disks(&[&image]);
            let tree = backstay_guestfs::volumes::scan(&tree).expect("scanned");
            assert!(!tree.volumes.is_empty());
            put(image.path(), at as u64, &bytes[at..at + 1]);
        }
    }
}

#[test]
fn tables_that_are_none() {
    if skipped("tables_that_are_none", &["mkfs.vfat", "mkfs.ext4", "sfdisk"]) {
        return;
    }
    // A FAT has the signature of a boot record; it has no partitions.
    let fat = Image::new(16 * MIB).with("mkfs.vfat", &["-n", "STICK"]);
    let tree = scanned(&[&fat]);
    assert_eq!(tree.volumes.len(), 1, "{}", names(&tree));
    assert_eq!(tree.volumes[0].content, Content::FileSystem(FsKind::Fat));
    // A disk that had a GPT and is now one file system: the copy at its end is still there.
    let image = gpt().with("mkfs.ext4", &["-q", "-F", "-L", "whole"]);
    run(
        "dd",
        &[
            "if=/dev/zero",
            &format!("of={}", image.path().display()),
            "bs=1024",
            "count=1",
            "conv=notrunc",
        ],
    );
    let tree = scanned(&[&image]);
    assert_eq!(tree.volumes.len(), 1, "{}", names(&tree));
    assert_eq!(tree.volumes[0].content, Content::FileSystem(FsKind::Ext4));
    assert_eq!(tree.volumes[0].label, "whole");
}

#[test]
fn a_virtual_disk_in_a_partition() {
    if skipped("a_virtual_disk_in_a_partition", &["sfdisk", "mkfs.ext4"]) {
        return;
    }
    let inner = table("label: dos\nsize=1M, type=83\nsize=4M, type=83\n", 8 * MIB);
    let inner_bytes = std::fs::read(inner.path()).expect("read");
    let image = table("label: gpt\nsize=1M\nsize=8M\n", 16 * MIB);
    let start = told(&image)[1].1 * 512;
    put(image.path(), start, &inner_bytes);
    let tree = scanned(&[&image]);
    assert_eq!(content(&tree, "disk0p2"), inner_bytes);
    let all = content(&tree, "disk0p2p2");
    assert_eq!(all, inner_bytes[2 * MIB as usize..6 * MIB as usize]);
}

#[test]
fn boot_records_in_partitions() {
    if skipped("boot_records_in_partitions", &["sfdisk", "mkfs.ext4"]) {
        return;
    }
    let image = table("label: dos\nsize=4M, type=83\nsize=1M, type=83\n", 8 * MIB);
    let start = told(&image)[0].1 * 512;
    let record = std::fs::read(image.path()).expect("read")[..512].to_vec();
    let inner = Image::new(4 * MIB).with("mkfs.ext4", &["-q", "-F", "-L", "boot"]);
    put(image.path(), start, &std::fs::read(inner.path()).expect("read"));
    // A boot loader was put into the partition, with the table of the disk in it.
    put(image.path(), start, &record);
    let tree = scanned(&[&image]);
    assert_eq!(tree.volumes.len(), 3, "{}", names(&tree));
    assert_eq!(tree.find("disk0p1").expect("there").label, "boot");
    // A partition that is all of the disk holds the table again, and is not looked into for ever.
    put(image.path(), 446 + 8, &0_u32.to_le_bytes());
    let tree = scanned(&[&image]);
    assert_eq!(tree.volumes.len(), 3, "{}", names(&tree));
    assert_eq!(tree.find("disk0p1").expect("there").content, Content::Empty);
}
