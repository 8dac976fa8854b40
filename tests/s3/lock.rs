//! Buckets that keep versions and lock them for a time.

use backstay_store::{ErrorKind, Folder, ObjectKey, PackId, S3Storage, Storage};
use backstay_tests::s3_server::{Bucket, Kind};

use crate::support::{Rig, hasty, rig};

fn locked_bucket(rig: &Rig) {
    let storage = S3Storage::create(rig.location("r").s3().unwrap(), hasty()).unwrap();
    let key = ObjectKey::Pack(PackId::from_bytes([1; 16]));
    storage.put(key, &[b"kept"]).unwrap();
    let e = storage.delete(key).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Locked, "{e}");
    assert_eq!(storage.get(key, 10).unwrap(), b"kept", "not even hidden");
    assert_eq!(storage.list(Folder::Packs).unwrap(), [key]);
    let e = storage.put(key, &[b"other"]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Exists);
}

#[test]
fn locked_packs_stay_on_moto() {
    let Some(rig) = rig(Kind::Moto, Bucket::Locked) else { return };
    locked_bucket(&rig);
}

#[test]
fn locked_packs_stay_on_seaweedfs() {
    let Some(rig) = rig(Kind::Seaweed, Bucket::Locked) else { return };
    locked_bucket(&rig);
}

/// Where versions are kept but not locked, removing removes the bytes.
#[test]
fn removing_leaves_no_version_behind() {
    let Some(rig) = rig(Kind::Moto, Bucket::Plain) else { return };
    let on = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    rig.server.ask("PUT", "/backups?versioning", "", on).unwrap();
    let storage = rig.storage("v");
    let key = ObjectKey::Pack(PackId::from_bytes([1; 16]));
    storage.put(key, &[b"gone soon"]).unwrap();
    storage.delete(key).unwrap();
    assert_eq!(storage.get(key, 10).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(storage.delete(key).unwrap_err().kind(), ErrorKind::NotFound);
    let left = rig.server.ask("GET", "/backups?versions&prefix=v/packs", "", b"").unwrap();
    assert!(!left.contains("<Key>"), "{left}");
}
