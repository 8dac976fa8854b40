//! What the real tools make, named as blkid names it.

use backstay_guestfs::volumes::{Content, VolumeTree};

use super::hold::{MIB, names, put, scanned};
use crate::support::image::{Image, run, run_with_input, skipped};

/// What `blkid` says: type, label, UUID.
fn blkid(image: &Image) -> (String, String, Option<String>) {
    let path = image.path().to_str().expect("plain");
    let said = run("blkid", &["-p", "-o", "export", path]);
    let value = |key: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        // A label is told with a backslash before what a shell would take for itself.
        line.map(|line| line.replace('\\', ""))
    };
    (value("TYPE").expect(&said), value("LABEL").unwrap_or_default(), value("UUID"))
}

fn kind(content: &Content) -> String {
    match content {
        Content::Luks { .. } => "crypto_LUKS".to_owned(),
        Content::MdMember => "linux_raid_member".to_owned(),
        Content::LvmPv { .. } => "LVM2_member".to_owned(),
        other => other.to_string(),
    }
}

#[track_caller]
fn as_blkid(image: &Image) -> VolumeTree {
    let tree = scanned(&[image]);
    let volume = &tree.volumes[0];
    let ours = (kind(&volume.content), volume.label.clone(), volume.uuid.clone());
    assert_eq!(ours, blkid(image), "{}", names(&tree));
    assert_eq!(volume.error, None);
    tree
}

#[test]
fn file_systems_and_swap() {
    let made: &[(&str, u64, &[&str])] = &[
        ("mkfs.ext2", 8, &["-q", "-F", "-L", "two"]),
        ("mkfs.ext3", 16, &["-q", "-F"]),
        ("mkfs.ext4", 16, &["-q", "-F", "-L", "sixteen letters!"]),
        ("mkfs.xfs", 320, &["-q", "-L", "x y"]),
        ("mkfs.btrfs", 128, &["-q", "-L", "a long label of btrfs"]),
        ("mkfs.vfat", 2, &["-F", "12", "-n", "TWELVE"]),
        ("mkfs.vfat", 20, &["-F", "16", "-n", "SIXTEEN"]),
        ("mkfs.vfat", 64, &["-F", "32", "-n", "THIRTY TWO"]),
        ("mkfs.vfat", 64, &["-F", "32", "-S", "4096"]),
        ("mkswap", 4, &["-q", "-L", "swap0"]),
        ("mkswap", 4, &["-q", "-p", "65536"]),
    ];
    for (program, mib, args) in made {
        if !skipped(&format!("file_systems_and_swap ({program})"), &[program, "blkid"]) {
            as_blkid(&Image::new(mib * MIB).with(program, args));
        }
    }
}

/// Magics that no tool of ours writes, where blkid finds them too.
#[test]
fn magics_by_hand() {
    if skipped("magics_by_hand", &["blkid"]) {
        return;
    }
    let made: &[(u64, &[u8])] = &[
        (0, b"bluestore block device\n"),
        (0, b"dmvdo001"),
        (0, b"UBI#\x01"),
        (0, b"SnAp\x01\0\0\0"),
    ];
    for (at, magic) in made {
        let image = Image::new(4 * MIB);
        put(image.path(), *at, magic);
        let path = image.path().to_str().expect("plain");
        let said = run("blkid", &["-p", "-s", "TYPE", "-o", "value", path]);
        assert_eq!(scanned(&[&image]).volumes[0].content.to_string(), said.trim());
    }
}

#[test]
fn luks_of_both_versions() {
    if skipped("luks_of_both_versions", &["cryptsetup", "blkid"]) {
        return;
    }
    for (version, args) in [(1, "--type=luks1"), (2, "--type=luks2")] {
        let image = Image::new(32 * MIB);
        let path = image.path().to_str().expect("plain");
        let quick: &[&str] = match version {
            1 => &["--iter-time=1"],
            _ => &["--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--label=secret"],
        };
        let all =
            [&["luksFormat", "-q", args][..], quick, &["--cipher=aes-xts-plain64", path, "-"]];
        run_with_input("cryptsetup", &all.concat(), b"key");
        let tree = as_blkid(&image);
        let Content::Luks { version: ours, cipher, .. } = &tree.volumes[0].content else {
            panic!("{}", names(&tree))
        };
        assert_eq!((*ours, cipher.as_str()), (version, "aes-xts-plain64"));
        assert!(tree.volumes[0].notes[0].contains("cryptsetup"));
        if version == 2 {
            // The first header is gone; the second one is found.
            put(image.path(), 0, &[0; 512]);
            let tree = scanned(&[&image]);
            assert!(matches!(tree.volumes[0].content, Content::Luks { version: 2, .. }));
        }
    }
}

#[test]
fn a_btrfs_over_several_disks() {
    if skipped("a_btrfs_over_several_disks", &["mkfs.btrfs"]) {
        return;
    }
    let images: Vec<Image> = (0..3).map(|_| Image::new(128 * MIB)).collect();
    let paths: Vec<&str> = images.iter().map(|i| i.path().to_str().expect("plain")).collect();
    run("mkfs.btrfs", &[&["-q", "-d", "raid1", "-m", "raid1c3"][..], &paths].concat());
    let tree = scanned(&[&images[1], &images[0], &images[2]]);
    let first = tree.find("disk0").expect("there");
    assert_eq!((first.content.to_string().as_str(), first.devices().len()), ("btrfs", 3));
    assert_eq!(first.error, None);
    assert_eq!(tree.find("disk1").expect("there").content.to_string(), "btrfs_member");
    // One is missing: said, and the others are there.
    let tree = scanned(&[&images[2], &images[0]]);
    let first = tree.find("disk0").expect("there");
    assert_eq!(first.devices().len(), 2);
    assert!(first.error.as_ref().is_some_and(|e| e.contains("3 devices")), "{first:?}");
}
