//! A recovery point's disk is held to what every block device is held to.

use backstay_blockdev::{BlockDevice, Caps, ErrorKind, conformance};
use backstay_daemon::PointDisk;

use crate::support::{CHUNK, Fixture, disk_image};

const AT: &str = "2026-11-22T03:00:00Z";

#[test]
fn the_suite_of_block_devices() {
    for fixture in [Fixture::new(), Fixture::encrypted()] {
        let images = [
            disk_image(1, 90),
            vec![0; 5 * CHUNK],
            b"seven b".to_vec(),
            Vec::new(),
            disk_image(2, 0),
        ];
        let names: Vec<String> = (0..images.len()).map(|i| format!("disk{i}")).collect();
        let disks: Vec<(&str, &[u8])> =
            names.iter().zip(&images).map(|(n, i)| (n.as_str(), i.as_slice())).collect();
        let point = fixture.backup("m", AT, &disks);
        let repository = fixture.open();
        for (record, image) in point.disks.iter().zip(&images) {
            let disk = PointDisk::open(&repository, &point, record).unwrap();
            conformance::check(&disk, image, 11);
        }
    }
}

#[test]
fn shape_and_refusals() {
    let fixture = Fixture::new();
    let image = disk_image(1, 3);
    let point = fixture.backup("m", AT, &[("disk0", &image)]);
    let disk = PointDisk::open(&fixture.open(), &point, &point.disks[0]).unwrap();
    assert_eq!(disk.geometry().preferred_block_bytes, CHUNK as u32);
    assert_eq!(disk.caps(), Caps { multi_conn: true, presence: true, ..Caps::default() });
    let beyond = disk.read_at(image.len() as u64 - 1, &mut [0; 2]).unwrap_err();
    assert_eq!(beyond.kind(), ErrorKind::OutOfRange);
    disk.prefetch(u64::MAX, u64::MAX);
    disk.prefetch(0, image.len() as u64);
    assert!(format!("{disk:?}").contains("m@"));
}

#[test]
fn a_hit_is_answered_without_blocking() {
    let fixture = Fixture::new();
    let image = disk_image(1, 8);
    let point = fixture.backup("m", AT, &[("disk0", &image)]);
    let disk = PointDisk::open(&fixture.open(), &point, &point.disks[0]).unwrap();
    let mut buffer = vec![0; image.len()];
    for _ in 0..2 {
        // What is read whole stays when it is read again.
        disk.read_at(0, &mut buffer).unwrap();
    }
    buffer.fill(9);
    assert!(disk.try_read_at(0, &mut buffer).unwrap(), "everything was read a moment ago");
    assert!(buffer == image);
}

/// Where bytes are: nowhere, in the store, and after a read of a part of a chunk in memory.
#[test]
fn presence_tells_what_a_read_has_to_fetch() {
    let fixture = Fixture::new();
    let size = 1 << 20;
    let mut image = vec![0; size];
    // No two chunks alike.
    for (i, byte) in image[256 << 10..512 << 10].iter_mut().enumerate() {
        *byte = (i / 1000 % 251 + 1) as u8;
    }
    let point = fixture.backup("m", AT, &[("disk0", &image)]);
    let disk = PointDisk::open(&fixture.open(), &point, &point.disks[0]).unwrap();
    let told = |at: u64, len: u64| -> Vec<(u64, u64, bool, bool)> {
        let list = disk.presence(at, len, 100).unwrap();
        list.iter()
            .map(|e| (e.offset_bytes, e.len_bytes, e.presence.stored, e.presence.at_hand))
            .collect()
    };
    let (from, len) = (256 << 10, 256 << 10);
    let before = told(0, size as u64);
    let all =
        [(0, from, false, true), (from, len, true, false), (from + len, 512 << 10, false, true)];
    assert_eq!(before, all);
    disk.read_at(from + 10, &mut [0; 10]).unwrap();
    let chunk = u64::from(disk.geometry().preferred_block_bytes);
    let after = told(from, len);
    assert_eq!(after, [(from, chunk, true, true), (from + chunk, len - chunk, true, false)]);
    assert_eq!(disk.presence(0, size as u64, 2).unwrap().len(), 2);
}
