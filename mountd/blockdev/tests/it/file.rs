//! What a file does that memory does not: holes, shrinking, permissions, not being a disk at all.

use std::io::Write;
use std::os::unix::fs::FileExt;

use backstay_blockdev::{BlockDevice, ErrorKind, ExtentKind, FileDevice, WriteFlags};

#[test]
fn holes_are_extents() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.raw");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(16 << 20).unwrap();
    file.write_all_at(&[7; 1 << 16], 4 << 20).unwrap();
    let dev = FileDevice::open(&path, true).unwrap();
    let list = dev.extents(0, 16 << 20, 100).unwrap();
    let kinds: Vec<_> = list.iter().map(|e| (e.offset_bytes, e.len_bytes, e.kind)).collect();
    assert_eq!(
        kinds,
        [
            (0, 4 << 20, ExtentKind::Hole),
            (4 << 20, 1 << 16, ExtentKind::Data),
            ((4 << 20) + (1 << 16), (12 << 20) - (1 << 16), ExtentKind::Hole),
        ],
        "this test needs a file system with sparse files for the temporary directory"
    );
}

#[test]
fn a_file_cut_short_is_an_error_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.raw");
    std::fs::write(&path, vec![9; 100_000]).unwrap();
    let dev = FileDevice::open(&path, true).unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(50_000).unwrap();
    let mut buf = [0; 1000];
    dev.read_at(49_000, &mut buf).expect("what is left can be read");
    for offset in [49_500, 50_000, 99_000] {
        let error = dev.read_at(offset, &mut buf).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains("ends at byte 50000"), "{error}");
        assert!(error.to_string().contains("a.raw"), "{error}");
        assert!(!dev.try_read_at(offset, &mut buf).unwrap());
    }
    let error = dev.extents(60_000, 1000, 8).expect_err("what is gone is not a hole");
    assert!(error.to_string().contains("ends at byte 50000"), "{error}");
}

#[test]
fn only_disks_are_opened() {
    let dir = tempfile::tempdir().unwrap();
    let error = FileDevice::open(dir.path(), true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let error = FileDevice::open("/dev/zero", true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let missing = dir.path().join("missing.raw");
    let error = FileDevice::open(&missing, true).unwrap_err();
    assert!(error.to_string().contains("missing.raw"), "{error}");
}

#[test]
fn a_file_opened_read_only_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.raw");
    std::fs::File::create(&path).unwrap().write_all(&[1; 8192]).unwrap();
    let dev = FileDevice::open(&path, true).unwrap();
    assert!(!dev.caps().writable);
    for result in [
        dev.write_at(0, &[2; 512], WriteFlags::default()),
        dev.trim(0, 4096, WriteFlags::default()),
        dev.write_zeroes(0, 4096, WriteFlags::default()),
    ] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::ReadOnly);
    }
    assert!(std::fs::read(&path).unwrap() == vec![1; 8192]);
}

#[test]
fn zeroes_can_free_or_keep_space() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.raw");
    std::fs::write(&path, vec![5; 1 << 20]).unwrap();
    let dev = FileDevice::open(&path, false).unwrap();
    dev.write_zeroes(0, 1 << 19, WriteFlags { no_hole: true, ..WriteFlags::default() }).unwrap();
    dev.write_zeroes(1 << 19, 1 << 18, WriteFlags::default()).unwrap();
    let mut expected = vec![0; (1 << 19) + (1 << 18)];
    expected.resize(1 << 20, 5);
    assert!(std::fs::read(&path).unwrap() == expected);
}
