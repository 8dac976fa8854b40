use std::fs;
use std::path::PathBuf;

use super::*;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Folder(tempfile::tempdir().unwrap());
        fs::write(folder.at("disk-flat.vmdk"), vec![0u8; 8 * 512]).unwrap();
        folder
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn check(&self, text: &str) -> Result<Vec<PathBuf>> {
        let path = self.at("disk.vmdk");
        fs::write(&path, format!("# Disk DescriptorFile\nversion=1\n{text}")).unwrap();
        check(&path, &File::open(&path).unwrap())
    }
}

#[test]
fn a_plain_flat_disk_is_taken() {
    let folder = Folder::new();
    let files = folder.check("parentCID=ffffffff\nRW 8 FLAT \"disk-flat.vmdk\" 0\n").unwrap();
    assert_eq!(files, [folder.at("disk-flat.vmdk")]);
    assert_eq!(folder.check("RW 8 ZERO\n").unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn extents_elsewhere_are_refused() {
    let folder = Folder::new();
    std::os::unix::fs::symlink("/etc/passwd", folder.at("link.vmdk")).unwrap();
    fs::create_dir(folder.at("dir.vmdk")).unwrap();
    for name in [
        "../x",
        "/etc/passwd",
        "a/b",
        "..",
        ".",
        "",
        "nbd:unix:/x",
        "file:disk-flat.vmdk",
        "link.vmdk",
        "dir.vmdk",
        "..\\x",
        "json:{}",
    ] {
        let error = folder.check(&format!("RW 1 FLAT \"{name}\" 0\n")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{name}: {error}");
    }
    let error = folder.check("RW 1 FLAT \"gone.vmdk\" 0\n").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn parents_are_refused() {
    let folder = Folder::new();
    for line in ["parentCID=12345678", "parentFileNameHint=\"base.vmdk\"", " ParentCID = 0"] {
        let error = folder.check(&format!("{line}\nRW 8 FLAT \"disk-flat.vmdk\" 0\n")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{line}");
    }
}

#[test]
fn a_flat_extent_cut_short_is_damaged() {
    let folder = Folder::new();
    for line in [
        "RW 9 FLAT \"disk-flat.vmdk\" 0",
        "RW 8 FLAT \"disk-flat.vmdk\" 1",
        "RW 36028797018963968 FLAT \"disk-flat.vmdk\" 0",
    ] {
        assert_eq!(folder.check(line).unwrap_err().kind(), ErrorKind::Damaged, "{line}");
    }
}

#[test]
fn lines_that_are_not_understood_are_refused() {
    let folder = Folder::new();
    for line in [
        "RW 8 VMFSRDM \"disk-flat.vmdk\"",
        "RW x FLAT \"disk-flat.vmdk\"",
        "RW 8 FLAT",
        "RW 8 FLAT \"disk-flat.vmdk\" -1",
        "RW 8 FLAT extra \"disk-flat.vmdk\"",
        "RDONLY 8 FLAT \"disk-flat.vmdk\" 0",
        "RW 8 FLAT \"disk-flat.vmdk",
        "",
    ] {
        let kind = folder.check(line).unwrap_err().kind();
        assert!(matches!(kind, ErrorKind::Invalid | ErrorKind::Damaged), "{line}: {kind:?}");
    }
    let many = "RW 1 ZERO\n".repeat(EXTENTS_MAX + 1);
    assert_eq!(folder.check(&many).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn a_sparse_extent_may_not_be_a_descriptor_in_disguise() {
    let folder = Folder::new();
    let mut head = vec![0u8; 512];
    head[..4].copy_from_slice(b"KDMV");
    fs::write(folder.at("s.vmdk"), &head).unwrap();
    let text = "RW 8 SPARSE \"s.vmdk\"\n";
    assert_eq!(folder.check(text).unwrap_err().kind(), ErrorKind::Invalid);
    head[12] = 8;
    fs::write(folder.at("s.vmdk"), &head).unwrap();
    assert_eq!(folder.check(text).unwrap(), [folder.at("s.vmdk")]);
    // By itself it is a part, not a disk.
    let path = folder.at("s.vmdk");
    let error = check(&path, &File::open(&path).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    // A descriptor place that lies outside, or is too long, is an error value.
    for (sector, sectors) in [(u64::MAX, 1), (1, u64::MAX), (1, 1 << 20)] {
        head[28..36].copy_from_slice(&sector.to_le_bytes());
        head[36..44].copy_from_slice(&sectors.to_le_bytes());
        fs::write(&path, &head).unwrap();
        let error = check(&path, &File::open(&path).unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
    }
}
