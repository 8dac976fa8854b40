//! NTFS: volumes made by mkntfs in its variants, filled by ntfs-3g, and compared with ntfs-3g's own reading.

use std::fs;
use std::path::Path;

use backstay_guestfs::fs::ntfs::Ntfs;
use rustix::fs::XattrFlags;

use crate::support::compare::{Compare, Seen, compare};
use crate::support::image::{Image, Mounted, no_fuse, skipped};
use crate::support::tree::{Contents, fill};
use crate::support::{Random, seed};

const PROGRAMS: &[&str] = &["mkntfs", "ntfs-3g"];

/// What ntfs-3g shows; it has no owners and modes without a map of users, one link for each directory, and no time of making
/// in `statx`.
const HOW: Compare =
    Compare { created: false, owners: false, modes: false, directory_links: false, ..Compare::ALL };

/// What ntfs-3g takes: names are UTF-16, extended attributes are streams, and there is no `fallocate`. It does not tell
/// holes, so all of a sparse file is read; it shows devices with a size, and times before 1970 off by a second.
const WHAT: Contents = Contents {
    many: 700,
    sparse_bytes: 24 << 20,
    times: (0, 1 << 33),
    devices: false,
    xattrs: false,
    acls: false,
    raw_names: false,
    preallocated: false,
    ..Contents::ALL
};

pub(crate) fn made(size_bytes: u64, args: &[&str]) -> Image {
    Image::new(size_bytes).with("mkntfs", &[&["-F", "-Q", "-q"], args].concat())
}

pub(crate) fn mount(image: &Image, options: &str) -> Mounted {
    image.mount_with("ntfs-3g", &["-o", options])
}

pub(crate) fn open(image: &Image) -> Ntfs {
    Ntfs::open(image.device()).expect("the volume opens")
}

/// Our reading beside that of ntfs-3g.
#[track_caller]
pub(crate) fn compared(image: &Image) -> Seen {
    let fs = open(image);
    let mounted = mount(image, "ro,streams_interface=xattr");
    compare(&fs, mounted.path(), &HOW)
}

fn streams(root: &Path, random: &mut Random) {
    let dir = root.join("streams");
    fs::create_dir(&dir).expect("a directory");
    let set = |path: &Path, name: &str, value: &[u8]| {
        rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
            .unwrap_or_else(|e| panic!("{name} of {path:?}: {e}"));
    };
    let file = |name: &str| {
        let path = dir.join(name);
        fs::write(&path, name).expect("a file");
        path
    };
    let few = file("few");
    set(&few, "user.small", b"value");
    set(&few, "user.Zone.Identifier", b"[ZoneTransfer]\r\nZoneId=3\r\n");
    set(&few, "user.日本", &random.bytes(700));
    let many = file("many");
    for i in 0..60 {
        set(&many, &format!("user.number-{i}"), &random.bytes(i * 20));
    }
    set(&file("large"), "user.large", &random.bytes(60_000));
    set(&dir, "user.of-a-directory", b"yes");
}

#[test]
fn volumes_of_all_kinds_as_ntfs_3g_reads_them() {
    let test = "volumes_of_all_kinds_as_ntfs_3g_reads_them";
    if skipped(test, PROGRAMS) || no_fuse(test) {
        return;
    }
    let seed = seed();
    for (i, (size, args)) in [
        (300 << 20, &[][..]),
        (300 << 20, &["-c", "512"]),
        (300 << 20, &["-c", "65536"]),
        (5 << 30, &["-c", "2097152"]),
        (300 << 20, &["-s", "4096", "-c", "4096"]),
    ]
    .into_iter()
    .enumerate()
    {
        eprintln!("mkntfs {args:?}");
        let image = made(size, args);
        {
            let mounted = mount(&image, "noatime");
            fill(mounted.path(), seed + i as u64, &WHAT);
            streams(mounted.path(), &mut Random(seed));
        }
        let seen = compared(&image);
        assert!(seen.nodes > 900 && seen.xattrs > 60, "{seen:?}");
    }
}
