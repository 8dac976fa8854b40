//! A damaged repository: errors where the damage is, good data everywhere else.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::support::{CHUNK, Fixture, Numbers, have_fuse};

fn packs(fixture: &Fixture) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![fixture.repository_dir().join("packs")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { dirs.push(path) } else { found.push(path) }
        }
    }
    found
}

/// Flips a bit in the stored bytes of `chunk`, which is noise and so stored as it is.
fn damage(fixture: &Fixture, chunk: &[u8]) {
    for pack in packs(fixture) {
        let mut bytes = std::fs::read(&pack).unwrap();
        if let Some(at) = bytes.windows(64).position(|w| w == &chunk[1000..1064]) {
            bytes[at + 7] ^= 0x10;
            // The store makes its packs read-only.
            std::fs::remove_file(&pack).unwrap();
            std::fs::write(&pack, bytes).unwrap();
            return;
        }
    }
    panic!("the chunk is not in any pack as it is");
}

fn noise(chunks: usize) -> Vec<u8> {
    let mut image = vec![0; chunks * CHUNK + 77];
    Numbers::new(5).fill(&mut image);
    image
}

/// Reads the file piece by piece: `bad` must fail with EIO, all else must be right.
fn check(file: &File, image: &[u8], piece: usize, bad: usize) {
    for (i, expected) in image.chunks(piece).enumerate() {
        let mut buffer = vec![0; expected.len()];
        let read = file.read_exact_at(&mut buffer, (i * piece) as u64);
        let (from, to) = (i * piece, i * piece + expected.len());
        if from < (bad + 1) * CHUNK && to > bad * CHUNK {
            let error = read.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()), "at {from}");
        } else {
            read.unwrap_or_else(|e| panic!("good data at {from}: {e}"));
            assert!(buffer == expected, "wrong data at {from}");
        }
    }
}

fn read_all_ways(path: &Path, image: &[u8], bad: usize) {
    let file = File::open(path).unwrap();
    // Through the kernel's cache, whose read-ahead runs over the damage; and twice, because an error
    // must not become cached zeros.
    for piece in [4096, CHUNK, 10_000, 4096] {
        check(&file, image, piece, bad);
    }
    let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    check(&direct, image, CHUNK, bad);
}

#[test]
fn a_damaged_chunk_is_an_error_and_the_rest_is_good() {
    if !have_fuse() {
        return;
    }
    let fixture = Fixture::new();
    let image = noise(40);
    fixture.backup("m", "2026-11-22T03:00:00Z", &[("disk0", &image)]);
    let bad = 17;
    damage(&fixture, &image[bad * CHUNK..][..CHUNK]);
    let at = fixture.mountpoint("mnt");
    let _mount = at.mount(fixture.open());
    let path = at.path().join("m/latest/disks/disk0.raw");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), image.len() as u64);
    read_all_ways(&path, &image, bad);
    let whole = std::fs::read(&path).unwrap_err();
    assert_eq!(whole.raw_os_error(), Some(Errno::IO.raw_os_error()));
}

#[test]
fn lost_packs_are_errors_and_never_zeros() {
    if !have_fuse() {
        return;
    }
    let fixture = Fixture::new();
    let image = noise(4);
    fixture.backup("m", "2026-11-22T03:00:00Z", &[("disk0", &image)]);
    let at = fixture.mountpoint("mnt");
    let _mount = at.mount(fixture.open());
    for pack in packs(&fixture) {
        std::fs::remove_file(pack).unwrap();
    }
    let file = File::open(at.path().join("m/latest/disks/disk0.raw")).unwrap();
    for offset in (0..image.len()).step_by(CHUNK) {
        let error = file.read_exact_at(&mut [0; 16], offset as u64).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()), "at {offset}");
    }
}

#[test]
fn a_damaged_point_does_not_hide_the_others() {
    if !have_fuse() {
        return;
    }
    let fixture = Fixture::new();
    let image = noise(2);
    let lost = fixture.backup("m", "2026-11-22T03:00:00Z", &[("disk0", &image)]);
    fixture.backup("m", "2026-11-22T04:00:00Z", &[("disk0", &image)]);
    let mut dirs = vec![fixture.repository_dir().join("points")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.to_str().unwrap().contains(&lost.id.to_string()) {
                let bytes = std::fs::read(&path).unwrap();
                std::fs::remove_file(&path).unwrap();
                std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
            }
        }
    }
    let at = fixture.mountpoint("mnt");
    let _mount = at.mount(fixture.open());
    let shown: Vec<_> =
        std::fs::read_dir(at.path().join("m")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(shown, ["2026-11-22T04-00-00Z", "latest"]);
    assert!(std::fs::read(at.path().join("m/latest/disks/disk0.raw")).unwrap() == image);
}
