//! exFAT: volumes made by mkfs.exfat in its variants, filled by exfat-fuse, and compared with its own reading.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use backstay_guestfs::fs::FileSystem;
use backstay_guestfs::fs::exfat::ExFat;

use crate::fat::tree;
use crate::support::compare::{Compare, compare, list};
use crate::support::image::{Image, no_fuse, skipped};
use crate::support::{Random, seed};

const PROGRAMS: &[&str] = &["mkfs.exfat", "mount.exfat-fuse", "/dev/loop-control"];

/// exfat-fuse numbers files as it likes, shows no owners and modes of the format, and the time of making as that of change.
const HOW: Compare = Compare {
    created: false,
    changed: false,
    owners: false,
    modes: false,
    directory_links: false,
    inode_numbers: false,
    xattrs: false,
    ..Compare::ALL
};

fn open(image: &Image) -> ExFat {
    ExFat::open(image.device()).expect("the volume opens")
}

#[test]
fn volumes_of_all_kinds_as_exfat_fuse_reads_them() {
    let test = "volumes_of_all_kinds_as_exfat_fuse_reads_them";
    if skipped(test, PROGRAMS) || no_fuse(test) {
        return;
    }
    let mut random = Random(seed());
    for (size, args) in [
        (100 << 20, &[][..]),
        (100 << 20, &["-c", "512"]),
        (200 << 20, &["-c", "128K"]),
        (100 << 20, &["-c", "4K", "-L", "Bänder"]),
        (4 << 30, &["-c", "32M"]),
    ] {
        eprintln!("mkfs.exfat {args:?}");
        let image = Image::new(size).with("mkfs.exfat", args);
        let clusters_are_large = args.contains(&"32M");
        {
            let mounted = image.mount("exfat-fuse", "noatime");
            let root = mounted.path();
            if clusters_are_large {
                fs::write(root.join("file"), random.bytes(100_000)).expect("a file");
            } else {
                tree(root, &mut random, 700);
                fs::write(root.join("names/🙂 pair"), "x").expect("a file");
                for i in (0..700).step_by(3) {
                    let name = format!("many/entry number {i} of the many");
                    fs::remove_file(root.join(name)).expect("it goes");
                }
                // Two files that grow in turns: chains in pieces.
                let one = File::create(root.join("one")).expect("a file");
                let two = File::create(root.join("two")).expect("a file");
                for i in 0..60u64 {
                    one.write_all_at(&random.bytes(4096), i * 4096).expect("data");
                    two.write_all_at(&random.bytes(9000), i * 9000).expect("data");
                }
                two.set_len(100_001).expect("a length");
                one.set_len(2_000_000).expect("a length");
            }
        }
        let fs = open(&image);
        let mounted = image.mount("exfat-fuse", "ro");
        let seen = compare(&fs, mounted.path(), &HOW);
        assert!(clusters_are_large || seen.nodes > 500, "{seen:?}");
        let info = fs.info();
        assert_eq!(info.label, if args.contains(&"-L") { "Bänder" } else { "" });
        assert!(info.used_bytes.is_some_and(|used| used > 100_000), "{info:?}");
        assert!(info.notes.is_empty(), "{info:?}");
        if !clusters_are_large {
            let names = fs.lookup(fs.root(), b"NAMES").expect("any case");
            assert_eq!(fs.lookup(names, "ÄRGER.TXT".as_bytes()).unwrap(), {
                fs.lookup(names, "ärger.txt".as_bytes()).unwrap()
            });
            assert!(fs.lookup(names, b"none").is_err());
        }
        assert!(!list(&fs, fs.root()).is_empty());
    }
}
