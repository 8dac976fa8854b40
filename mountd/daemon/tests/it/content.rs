//! What is read is what was stored.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::support::{CHUNK, Fixture, Numbers, data_map, disk_image, have_fuse};

const AT: &str = "2026-11-22T03:00:00Z";
const DISK: &str = "web01/2026-11-22T03-00-00Z/disks/disk0.raw";

/// Random reads, each compared with the image.
fn random_reads(file: &File, image: &[u8], seed: u64, rounds: usize) {
    let mut numbers = Numbers::new(seed);
    for _ in 0..rounds {
        let offset = numbers.below(image.len() as u64) as usize;
        let longest = (image.len() - offset).min(300_000) as u64;
        let len = 1 + numbers.below(longest) as usize;
        let mut buffer = vec![0xaa; len];
        file.read_exact_at(&mut buffer, offset as u64).unwrap();
        assert!(buffer == image[offset..offset + len], "{len} bytes at {offset}");
    }
}

#[test]
fn bytes_are_equal_however_they_are_read() {
    if !have_fuse() {
        return;
    }
    for fixture in [Fixture::new(), Fixture::encrypted()] {
        let image = disk_image(1, 120);
        fixture.backup("web01", AT, &[("disk0", &image)]);
        let at = fixture.mountpoint("mnt");
        let mount = at.mount(fixture.open());
        let path = at.path().join(DISK);

        // Cold and at random, before anything is in a cache; then from many threads; then whole.
        let file = File::open(&path).unwrap();
        random_reads(&file, &image, 7, 100);
        std::thread::scope(|scope| {
            for seed in 0..8 {
                let (file, image) = (&file, &image);
                scope.spawn(move || random_reads(file, image, seed, 50));
            }
        });
        assert!(std::fs::read(&path).unwrap() == image);
        assert_eq!(file.read_at(&mut [0; 10], image.len() as u64).unwrap(), 0, "the end is an end");

        // Past the kernel's cache.
        let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
        random_reads(&direct, &image, 9, 100);

        // By a program of others, from a cold mount: sequential, with read-ahead.
        drop((file, direct));
        mount.end(backstay_daemon::fuse::Unmount::Orderly).unwrap();
        let _mount = at.mount(fixture.open());
        let source = fixture.dir.path().join("source.img");
        std::fs::write(&source, &image).unwrap();
        let same = Command::new("cmp").arg(&source).arg(&path).status().unwrap();
        assert!(same.success());
    }
}

#[test]
fn sizes_times_modes_and_blocks() {
    if !have_fuse() {
        return;
    }
    let fixture = Fixture::new();
    let image = disk_image(2, 40);
    fixture.backup("web01", AT, &[("disk0", &image), ("data 1", &image[..5])]);
    let at = fixture.mountpoint("mnt");
    let _mount = at.mount(fixture.open());
    let meta = std::fs::metadata(at.path().join(DISK)).unwrap();
    assert_eq!(meta.len(), image.len() as u64);
    assert_eq!(meta.mode() & 0o7777, 0o444);
    assert_eq!(meta.mtime(), AT.parse::<jiff::Timestamp>().unwrap().as_second());
    assert_eq!(meta.uid(), rustix::process::getuid().as_raw());
    let stored: usize = image
        .chunks(CHUNK)
        .zip(data_map(&image))
        .map(|(chunk, data)| if data { chunk.len() } else { 0 })
        .sum();
    assert_eq!(meta.blocks(), stored.div_ceil(512) as u64);
    let dir = std::fs::metadata(at.path().join("web01/latest/disks")).unwrap();
    assert_eq!(dir.mode() & 0o7777, 0o555);
    let small = at.path().join("web01/latest/disks/data 1.raw");
    assert_eq!(std::fs::read(small).unwrap(), &image[..5]);
    let stat = rustix::fs::statfs(at.path()).unwrap();
    assert_eq!((stat.f_bfree, stat.f_blocks > 0), (0, true));
}

/// The data ranges that SEEK_DATA and SEEK_HOLE tell of.
fn data_ranges(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let mut ranges = Vec::new();
    let mut at = 0;
    loop {
        match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(start) => {
                at = rustix::fs::seek(&file, SeekFrom::Hole(start)).unwrap();
                ranges.push((start, at));
            }
            Err(Errno::NXIO) => return ranges,
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn holes_are_where_they_were() {
    if !have_fuse() {
        return;
    }
    let fixture = Fixture::new();
    let mixed = disk_image(3, 200);
    let hole = vec![0; 10 * CHUNK + 1];
    fixture.backup("web01", AT, &[("mixed", &mixed), ("hole", &hole), ("none", &[])]);
    let at = fixture.mountpoint("mnt");
    let _mount = at.mount(fixture.open());
    let disks = at.path().join("web01/latest/disks");
    let mut expected: Vec<(u64, u64)> = Vec::new();
    for (i, data) in data_map(&mixed).into_iter().enumerate() {
        let range = ((i * CHUNK) as u64, (((i + 1) * CHUNK).min(mixed.len())) as u64);
        match expected.last_mut() {
            _ if !data => {}
            Some(last) if last.1 == range.0 => last.1 = range.1,
            _ => expected.push(range),
        }
    }
    assert!(expected.len() > 10, "the image has no holes to find");
    assert_eq!(data_ranges(&disks.join("mixed.raw")), expected);
    assert_eq!(data_ranges(&disks.join("hole.raw")), []);
    assert_eq!(data_ranges(&disks.join("none.raw")), []);
    assert_eq!(std::fs::metadata(disks.join("hole.raw")).unwrap().blocks(), 0);
    assert!(std::fs::read(disks.join("hole.raw")).unwrap() == hole);
    assert!(std::fs::read(disks.join("none.raw")).unwrap().is_empty());
}

#[test]
fn nothing_can_be_written() {
    if !have_fuse() {
        return;
    }
    let fixture = Fixture::new();
    fixture.backup("web01", AT, &[("disk0", &disk_image(4, 2))]);
    let at = fixture.mountpoint("mnt");
    let _mount = at.mount(fixture.open());
    let read_only = Some(Errno::ROFS.raw_os_error());
    let path = at.path().join(DISK);
    assert_eq!(File::options().write(true).open(&path).unwrap_err().raw_os_error(), read_only);
    let new = at.path().join("web01/new");
    assert_eq!(File::create(&new).unwrap_err().raw_os_error(), read_only);
    assert_eq!(std::fs::remove_file(&path).unwrap_err().raw_os_error(), read_only);
    assert_eq!(std::fs::create_dir(&new).unwrap_err().raw_os_error(), read_only);
}
