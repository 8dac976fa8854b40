//! One suite over every storage: what [`Storage`] promises, tried.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a suite says what it expects")]

use backstay_format::{PackId, PointId, SlotId};

use crate::error::ErrorKind;
use crate::key::{Folder, ObjectKey};
use crate::storage::Storage;

fn pack(n: u8) -> ObjectKey {
    ObjectKey::Pack(PackId::from_bytes([n; 16]))
}

/// Runs the suite on a storage that holds nothing yet. Panics at the first difference.
pub fn suite(storage: &dyn Storage) {
    put_get_and_never_overwrite(storage);
    ranges(storage);
    lists(storage);
    deletes(storage);
    races(storage);
}

fn put_get_and_never_overwrite(s: &dyn Storage) {
    s.put(pack(1), &[b"hello ", b"", b"world"]).unwrap();
    assert_eq!(s.get(pack(1), 100).unwrap(), b"hello world");
    assert_eq!(s.size(pack(1)).unwrap(), 11);
    let e = s.put(pack(1), &[b"other"]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Exists);
    assert_eq!(s.get(pack(1), 100).unwrap(), b"hello world");
    s.put(pack(2), &[]).unwrap();
    assert_eq!(s.get(pack(2), 0).unwrap(), b"");
    assert_eq!(s.get(pack(1), 10).unwrap_err().kind(), ErrorKind::Damaged);
    for missing in [pack(99), ObjectKey::Config, ObjectKey::Point(PointId::from_bytes([9; 16]))] {
        assert_eq!(s.get(missing, 10).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(s.size(missing).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(s.read_at(missing, 0, &mut [0]).unwrap_err().kind(), ErrorKind::NotFound);
    }
}

fn ranges(s: &dyn Storage) {
    let mut buf = [0u8; 5];
    s.read_at(pack(1), 6, &mut buf).unwrap();
    assert_eq!(&buf, b"world");
    s.read_at(pack(1), 11, &mut []).unwrap();
    for (offset, len) in [(7, 5), (11, 1), (12, 1), (u64::MAX, 1)] {
        let mut buf = vec![0u8; len];
        let e = s.read_at(pack(1), offset, &mut buf).unwrap_err();
        assert!(matches!(e.kind(), ErrorKind::Damaged | ErrorKind::Io), "{offset}+{len}: {e}");
    }
}

fn lists(s: &dyn Storage) {
    let point = ObjectKey::Point(PointId::from_bytes([3; 16]));
    let slot = ObjectKey::Slot(SlotId::from_bytes([4; 8]));
    s.put(point, &[b"p"]).unwrap();
    s.put(slot, &[b"s"]).unwrap();
    s.put(ObjectKey::Config, &[b"c"]).unwrap();
    for n in 10..60u8 {
        s.put(pack(n), &[&[n]]).unwrap();
    }
    assert_eq!(s.list(Folder::Points).unwrap(), vec![point]);
    assert_eq!(s.list(Folder::Slots).unwrap(), vec![slot]);
    let packs = s.list(Folder::Packs).unwrap();
    assert_eq!(packs.len(), 52);
    assert!(packs.is_sorted());
}

fn deletes(s: &dyn Storage) {
    s.delete(pack(10)).unwrap();
    assert_eq!(s.delete(pack(10)).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(s.get(pack(10), 10).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(s.list(Folder::Packs).unwrap().len(), 51);
    s.put(pack(10), &[b"again"]).unwrap();
    assert_eq!(s.get(pack(10), 10).unwrap(), b"again");
}

/// Of many who create the same object, exactly one succeeds, and its bytes are there whole.
fn races(s: &dyn Storage) {
    for n in 100..110u8 {
        let won: Vec<u8> = std::thread::scope(|scope| {
            let put = |who: u8| s.put(pack(n), &[&[who; 5000], &[who; 5000]]).is_ok();
            let threads: Vec<_> = (0..4).map(|who| (who, scope.spawn(move || put(who)))).collect();
            threads.into_iter().filter_map(|(who, t)| t.join().unwrap().then_some(who)).collect()
        });
        assert_eq!(won.len(), 1);
        assert_eq!(s.get(pack(n), 10_000).unwrap(), vec![won[0]; 10_000]);
    }
}
