//! Images that name files nobody asked for, that are not what they say, or that are broken.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use backstay_core::ErrorKind;
use backstay_core::source::{self, ImageFormat, SourceSpec};

use crate::bench::{Bench, MIB, assert_same, error_of, qemu_img, random};

fn refused(path: &Path, kind: ErrorKind, words: &str) {
    let error = error_of(source::open(&SourceSpec::new(path)));
    assert_eq!(error.kind(), kind, "{}: {error}", path.display());
    assert!(error.to_string().contains(words), "{}: {error}", path.display());
}

fn image(bench: &Bench, format: &str, options: &str) -> PathBuf {
    let raw = bench.image("seed.raw", 4 * MIB, &[(0, 4 * MIB)]);
    let path = bench.at(&format!("x.{format}"));
    qemu_img(&format!("convert -f raw -O {format} {options}"), &[&raw, &path]);
    path
}

fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

#[test]
fn qcow2_that_names_other_files() {
    let bench = Bench::new();
    let path = bench.at("x.qcow2");
    qemu_img("create -q -u -f qcow2 -F raw -b /etc/passwd", &[&path, Path::new("1M")]);
    refused(&path, ErrorKind::Invalid, "/etc/passwd");

    let data = bench.at("data");
    let words = format!("create -q -f qcow2 -o data_file={}", data.display());
    qemu_img(&words, &[&path, Path::new("1M")]);
    refused(&path, ErrorKind::Unsupported, "external data file");
}

#[test]
fn a_backing_string_is_never_followed() {
    // The string names a real file with other content; what the user names is what is read.
    let bench = Bench::new();
    let base = bench.image("base.img", MIB, &[(0, MIB)]);
    let other = bench.image("other.img", MIB, &[(0, 4096)]);
    let top = bench.at("top.qcow2");
    qemu_img("create -q -f qcow2 -F raw -b", &[&other, &top]);
    let spec = SourceSpec { backing: vec![base.clone()], ..SourceSpec::new(&top) };
    let report = bench.backup_specs(vec![spec]).unwrap();
    assert_same("base", &bench.bytes(&report.point, 0), &fs::read(base).unwrap());
}

#[test]
fn vmdk_that_names_other_files() {
    let bench = Bench::new();
    fs::write(bench.at("secret"), random(1, 512)).unwrap();
    fs::create_dir(bench.at("sub")).unwrap();
    std::os::unix::fs::symlink("../secret", bench.at("sub/link")).unwrap();
    let path = bench.at("sub/x.vmdk");
    for name in ["../secret", "/etc/passwd", "link", "json:{}", "nbd:localhost:1"] {
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n\
             createType=\"monolithicFlat\"\nRW 1 FLAT \"{name}\" 0\n"
        );
        fs::write(&path, text).unwrap();
        refused(&path, ErrorKind::Invalid, "its extent");
    }
    let sparse = image(&bench, "vmdk", "-o subformat=monolithicSparse");
    // The descriptor is in the second sector: a parent of the same length as what is there.
    let mut head = vec![0u8; 2048];
    File::open(&sparse).unwrap().read_exact_at(&mut head, 0).unwrap();
    let at = head.windows(18).position(|w| w == b"parentCID=ffffffff").unwrap();
    patch(&sparse, at as u64, b"parentCID=12345678");
    refused(&sparse, ErrorKind::Unsupported, "on top of another disk");
}

#[test]
fn differencing_vhdx_and_vdi() {
    let bench = Bench::new();
    let vdi = image(&bench, "vdi", "");
    assert!(source::open(&SourceSpec::new(&vdi)).is_ok());
    patch(&vdi, 424, &[7; 16]);
    refused(&vdi, ErrorKind::Unsupported, "on top of another disk");
    let vdi = image(&bench, "vdi", "");
    patch(&vdi, 76, &4u32.to_le_bytes());
    refused(&vdi, ErrorKind::Unsupported, "on top of another disk");

    let vhdx = image(&bench, "vhdx", "");
    assert!(source::open(&SourceSpec::new(&vhdx)).is_ok());
    // The file parameters' item, found by its GUID in the metadata table.
    let guid = [
        0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7,
        0x6b,
    ];
    let bytes = fs::read(&vhdx).unwrap();
    let entry = bytes.windows(16).position(|w| w == guid).unwrap();
    let item = u32::from_le_bytes(bytes[entry + 16..entry + 20].try_into().unwrap());
    let table = bytes.windows(8).position(|w| w == b"metadata").unwrap();
    patch(&vhdx, table as u64 + u64::from(item) + 4, &2u32.to_le_bytes());
    refused(&vhdx, ErrorKind::Unsupported, "on top of another disk");
    patch(&vhdx, table as u64, b"METADATA");
    refused(&vhdx, ErrorKind::Damaged, "metadata");
    patch(&vhdx, 192 * 1024, b"xxxx");
    refused(&vhdx, ErrorKind::Damaged, "region table");
}

#[test]
fn a_raw_disk_that_looks_like_a_format() {
    let bench = Bench::new();
    let path = bench.at("guest.img");
    for format in ["qcow2", "vmdk", "vhdx", "vdi"] {
        fs::copy(image(&bench, format, ""), &path).unwrap();
        refused(&path, ErrorKind::Invalid, &format!("--format raw or --format {format}"));
        // Said to be raw it is stored byte for byte, header and all.
        let raw = SourceSpec { format: Some(ImageFormat::Raw), ..SourceSpec::new(&path) };
        let report = bench.backup_specs(vec![raw]).unwrap();
        let want = fs::read(&path).unwrap();
        assert_same(format, &bench.bytes(&report.point, 0), &want);
    }
}

#[test]
fn images_cut_short() {
    let bench = Bench::new();
    let mut accepted = 0;
    for (format, options) in [
        ("qcow2", ""),
        ("qcow2", "-c"),
        ("vmdk", ""),
        ("vmdk", "-o subformat=streamOptimized"),
        ("vhdx", ""),
        ("vdi", ""),
        ("vdi", "-o static=on"),
    ] {
        let path = image(&bench, format, options);
        let whole = fs::metadata(&path).unwrap().len();
        let want = fs::read(bench.at("seed.raw")).unwrap();
        for cut in [whole * 3 / 4, whole / 2, 70_000, 600, 100, 5] {
            let path = image(&bench, format, options);
            File::options().write(true).open(&path).unwrap().set_len(cut).unwrap();
            match source::open(&SourceSpec::new(&path)) {
                Err(error) => assert!(
                    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Invalid),
                    "{format} {options} cut to {cut} of {whole}: {error:?}"
                ),
                // What was cut off was only room for more.
                Ok(open) => {
                    let mut got = vec![0u8; want.len()];
                    open.device.read_at(0, &mut got).unwrap();
                    assert_same(&format!("{format} {options} cut to {cut}"), &got, &want);
                    accepted += 1;
                }
            }
        }
    }
    assert!(accepted <= 1, "{accepted} images cut short were taken");
    let flat = image(&bench, "vmdk", "-o subformat=monolithicFlat");
    let extent = bench.at("x-flat.vmdk");
    File::options().write(true).open(extent).unwrap().set_len(4 * MIB - 1).unwrap();
    refused(&flat, ErrorKind::Damaged, "cut short");
}

#[test]
fn bits_flipped_in_headers_never_pass_for_another_disk() {
    // Every header byte is turned over in turn: the image is refused, or reads as it did.
    let bench = Bench::new();
    let raw = bench.image("seed.raw", MIB, &[(0, MIB)]);
    let path = bench.at("x.qcow2");
    qemu_img("convert -f raw -O qcow2", &[&raw, &path]);
    let want = fs::read(&raw).unwrap();
    let good = fs::read(&path).unwrap();
    let mut refused = 0;
    for at in 0..104usize {
        let mut bytes = good.clone();
        bytes[at] ^= 0xff;
        fs::write(&path, &bytes).unwrap();
        let Ok(open) = source::open(&SourceSpec::new(&path)) else {
            refused += 1;
            continue;
        };
        let len = usize::try_from(open.size_bytes.min(MIB)).unwrap();
        let mut got = vec![0u8; len];
        if open.device.read_at(0, &mut got).is_ok() {
            assert_same(&format!("byte {at}"), &got, &want[..len]);
        }
    }
    assert!(refused > 30, "{refused} of 104 were refused");
}

#[test]
fn what_is_no_image() {
    let bench = Bench::new();
    refused(&bench.at("missing.img"), ErrorKind::NotFound, "missing.img");
    refused(bench.dir.path(), ErrorKind::Invalid, "is a directory");
    refused(Path::new("/dev/null"), ErrorKind::Invalid, "is no file");
    fs::write(bench.at("empty.img"), b"").unwrap();
    refused(&bench.at("empty.img"), ErrorKind::Invalid, "is empty");
    fs::write(bench.at("empty.qcow2"), b"").unwrap();
    refused(&bench.at("empty.qcow2"), ErrorKind::Invalid, "does not begin with a qcow2 header");
    fs::write(bench.at("disk.iso"), b"x").unwrap();
    refused(&bench.at("disk.iso"), ErrorKind::Invalid, "--format");
    let fifo = bench.at("fifo.img");
    crate::bench::run("mkfifo", [&fifo]);
    refused(&fifo, ErrorKind::Invalid, "is no file");
    let error = error_of(bench.backup(&[]));
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[test]
fn an_image_a_guest_is_writing_is_in_use() {
    let bench = Bench::new();
    let path = image(&bench, "qcow2", "");
    // A writer as QEMU is one: qemu-nbd that may write holds the image's locks.
    let socket = bench.at("writer.sock");
    let mut writer = std::process::Command::new("qemu-nbd")
        .args(["--persistent", "-f", "qcow2", "--socket"])
        .args([&socket, &path])
        .spawn()
        .expect("qemu-nbd is needed by this test");
    // It takes the locks at some moment after it was started.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let mut error = None;
    while error.is_none() && std::time::Instant::now() < deadline {
        assert!(writer.try_wait().unwrap().is_none(), "qemu-nbd ended");
        error = source::open(&SourceSpec::new(&path)).err();
    }
    writer.kill().unwrap();
    writer.wait().unwrap();
    let error = error.expect("an image with a writer must be refused");
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    assert!(source::open(&SourceSpec::new(&path)).is_ok());
}
