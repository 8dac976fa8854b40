//! ISO 9660: discs made by genisoimage and xorriso, compared with the tree they were made of.

use std::fs;
use std::path::Path;

use backstay_guestfs::ErrorKind;
use backstay_guestfs::fs::iso9660::Iso9660;
use backstay_guestfs::fs::{FileSystem, NodeId};

use crate::support::compare::{Compare, compare, list};
use crate::support::image::{Image, run, skipped};
use crate::support::tree::{Contents, fill};
use crate::support::{Random, seed};

/// Rock Ridge keeps seconds; places and numbers are those of the disc.
const HOW: Compare = Compare {
    accessed: false,
    changed: false,
    created: false,
    file_links: false,
    directory_links: false,
    inode_numbers: false,
    allocated: false,
    directory_sizes: false,
    xattrs: false,
    time_slack_nanos: 1_000_000_000,
    ..Compare::ALL
};

/// Years from 1900 on in one byte.
const WHAT: Contents = Contents {
    many: 1200,
    depth: 14,
    sparse_bytes: 10 << 20,
    times: (0, 5_000_000_000),
    xattrs: false,
    acls: false,
    preallocated: false,
    raw_names: false,
    ..Contents::ALL
};

fn open(image: &Image) -> Iso9660 {
    Iso9660::open(image.device()).expect("the disc opens")
}

/// An image of the directory `tree`.
fn made(program: &str, args: &[&str], tree: &Path) -> Image {
    let image = Image::new(0);
    let (path, tree) = (image.path().to_str().expect("plain"), tree.to_str().expect("plain"));
    run(program, &[args, &["-o", path, tree]].concat());
    image
}

#[test]
fn discs_with_rock_ridge() {
    let test = "discs_with_rock_ridge";
    if skipped(test, &["genisoimage", "xorriso"]) || !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED {test}: without the programs, or without root for devices");
        return;
    }
    let source = tempfile::tempdir().expect("a directory");
    fill(source.path(), seed(), &WHAT);
    for name in ["links/long", "links/longest"] {
        // A component of more than 248 bytes breaks xorriso.
        let path = source.path().join(name);
        fs::remove_file(&path).expect("filled");
        std::os::unix::fs::symlink(["t".repeat(240).as_str(); 3].join("/"), path).expect("a link");
    }
    for (program, args) in [
        ("xorriso", &["-as", "mkisofs", "-quiet", "-R", "-J", "-V", "A LABEL"][..]),
        ("genisoimage", &["-quiet", "-R", "-V", "A LABEL"]),
    ] {
        if program == "genisoimage" {
            // It writes long targets cut off, or never ends.
            for name in ["links/long", "links/longest"] {
                let _ = fs::remove_file(source.path().join(name));
            }
        }
        eprintln!("{program} {args:?}");
        let image = made(program, args, source.path());
        let fs = open(&image);
        assert_eq!(fs.info().label, "A LABEL");
        // Directories deeper than eight levels are moved there by genisoimage.
        let how = Compare { passed_over: &["rr_moved"], ..HOW };
        let moved = fs.lookup(fs.root(), b"rr_moved");
        if let Ok(moved) = moved {
            assert!(list(&fs, moved).is_empty());
        }
        let seen = compare(&fs, source.path(), &how);
        assert!(seen.nodes > 1300, "{seen:?}");
        assert_eq!(fs.lookup(fs.root(), b"SIZES").unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[test]
fn discs_with_joliet_and_with_neither() {
    let test = "discs_with_joliet_and_with_neither";
    if skipped(test, &["genisoimage"]) {
        return;
    }
    let source = tempfile::tempdir().expect("a directory");
    let root = source.path();
    fs::create_dir(root.join("Ordner")).expect("a directory");
    fs::write(root.join("Ordner/größe 日本.text"), "content").expect("a file");
    fs::write(root.join("plain.txt"), "plain").expect("a file");
    let image = made("genisoimage", &["-quiet", "-J", "-input-charset", "utf-8"], root);
    let fs = open(&image);
    let dir = fs.lookup(fs.root(), b"ORDNER").expect("any case");
    let names = list(&fs, dir);
    assert_eq!(names[0].0, "größe 日本.text".as_bytes());
    let mut text = [0; 20];
    assert_eq!(fs.read(names[0].1, 3, &mut text).expect("content"), 4);
    assert_eq!(&text[..4], b"tent");
    let stat = fs.stat(names[0].1).expect("metadata");
    assert_eq!((stat.mode, stat.size_bytes), (0o444, 7));
    let image = made("genisoimage", &["-quiet", "-input-charset", "utf-8"], root);
    let fs = open(&image);
    assert!(fs.lookup(fs.root(), b"plain.txt").is_ok());
    assert!(fs.lookup(fs.root(), b"Plain.TXT").is_ok());
    for inode in [0, 1, 1 << 40, u64::MAX] {
        assert!(fs.stat(NodeId::inode(inode)).is_err(), "{inode}");
    }
}

#[test]
fn discs_with_bits_turned_over() {
    let test = "discs_with_bits_turned_over";
    if skipped(test, &["genisoimage"]) {
        return;
    }
    let mut random = Random(seed());
    let source = tempfile::tempdir().expect("a directory");
    crate::fat::tree(source.path(), &mut random, 40);
    fs::remove_file(source.path().join("sizes/of-700001.bin")).expect("it goes");
    std::os::unix::fs::symlink("../a/very/long/target", source.path().join("link"))
        .expect("a link");
    let image = made("genisoimage", &["-quiet", "-R", "-J", "-joliet-long"], source.path());
    crate::dos_damage::damaged(backstay_guestfs::fs::FsKind::Iso9660, &image, random);
}
