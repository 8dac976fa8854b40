//! Every format, made by qemu-img: what is stored is what `qemu-img convert -O raw` reads.

use std::fs;
use std::path::Path;

use backstay_core::ErrorKind;
use backstay_core::source::{self, ImageFormat, SourceSpec};

use crate::bench::{Bench, MIB, assert_same, error_of, guest_bytes, qemu_img};

/// 16 MiB with data at both ends, across chunk borders, and text that compresses.
fn guest(bench: &Bench) -> std::path::PathBuf {
    let raw = bench.image(
        "guest.raw",
        16 * MIB,
        &[(0, 70_000), (3 * MIB - 5000, 300_000), (16 * MIB - 512, 512)],
    );
    let file = fs::File::options().write(true).open(&raw).unwrap();
    let text = "all work and no play ".repeat(20_000);
    std::os::unix::fs::FileExt::write_all_at(&file, text.as_bytes(), 8 * MIB + 100).unwrap();
    raw
}

/// Makes `guest.EXTENSION` with `options`, backs it up, and compares.
fn check(extension: &str, options: &str) {
    let bench = Bench::new();
    let raw = guest(&bench);
    let image = bench.at(&format!("guest.{extension}"));
    qemu_img(&format!("convert -f raw -O {extension} {options}"), &[&raw, &image]);
    let report = bench.backup(&[&image]).unwrap();
    let want = guest_bytes(extension, &image);
    assert_same(extension, &want, &fs::read(&raw).unwrap());
    assert_same(options, &bench.bytes(&report.point, 0), &want);
    let stats = report.point.stats;
    assert_eq!(stats.read_bytes + stats.hole_bytes, 16 * MIB, "{extension} {options}");
    // Where blocks are large or all are kept there are no holes to tell, and of vhdx QEMU tells none;
    // zeros are found by reading then.
    let coarse = ["fixed", "static", "2M"].iter().any(|o| options.contains(o));
    let coarse = coarse || extension == "vhdx";
    assert!(stats.hole_bytes > 8 * MIB || coarse, "{extension} {options}: {stats:?}");
    assert!(stats.new_bytes < 2 * MIB, "zeros are not stored: {stats:?}");
}

#[test]
fn qcow2() {
    for options in [
        "",
        "-o compat=0.10",
        "-c",
        "-c -o compression_type=zstd",
        "-o cluster_size=4k",
        "-o cluster_size=2M",
        "-o extended_l2=on,cluster_size=128k",
        "-o preallocation=metadata",
    ] {
        check("qcow2", options);
    }
}

#[test]
fn vmdk() {
    for subformat in [
        "monolithicSparse",
        "monolithicFlat",
        "twoGbMaxExtentSparse",
        "twoGbMaxExtentFlat",
        "streamOptimized",
    ] {
        check("vmdk", &format!("-o subformat={subformat}"));
    }
}

#[test]
fn vhdx() {
    for options in ["", "-o subformat=fixed", "-o block_size=1M"] {
        check("vhdx", options);
    }
}

#[test]
fn vdi() {
    for options in ["", "-o static=on"] {
        check("vdi", options);
    }
}

#[test]
fn raw_of_every_odd_size() {
    let bench = Bench::new();
    for size in [1, 511, 4095, 65_535, 65_536, 65_537, MIB - 1, MIB + 1, 3 * MIB + 12_345] {
        let image = bench.image("odd.img", size, &[(0, size.min(100)), (size - 1, 1)]);
        let report = bench.backup(&[&image]).unwrap();
        assert_same("odd", &bench.bytes(&report.point, 0), &fs::read(&image).unwrap());
        assert_eq!(report.point.disks[0].size_bytes, size);
    }
}

#[test]
fn a_split_vmdk_of_several_extents() {
    let bench = Bench::new();
    // Two files of 2 GiB and one of the rest; only a little of it is data.
    let raw = bench.image(
        "big.raw",
        5 << 30,
        &[(0, 4096), ((2 << 30) - 4096, 8192), ((5 << 30) - 512, 512)],
    );
    for subformat in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let image = bench.at(&format!("{subformat}.vmdk"));
        qemu_img(&format!("convert -f raw -O vmdk -o subformat={subformat}"), &[&raw, &image]);
        let report = bench.backup(&[&image]).unwrap();
        let back = bench.at("back.raw");
        let target = backstay_core::restore::Target::RawFile(back.clone());
        bench.restore(&report.point, 0, target).unwrap();
        qemu_img("compare -f raw -F vmdk", &[&back, &image]);
        fs::remove_file(back).unwrap();
    }
}

#[test]
fn a_chain_is_read_when_its_files_are_named() {
    let bench = Bench::new();
    let base = guest(&bench);
    let middle = bench.at("middle.qcow2");
    let top = bench.at("top.qcow2");
    qemu_img("create -q -f qcow2 -F raw -b", &[&base, &middle]);
    qemu_img("create -q -f qcow2 -F qcow2 -b", &[&middle, &top]);
    write(&middle, 5 * MIB, 100_000);
    write(&top, 6 * MIB + 77 * 512, 65_536);

    let spec = |path: &Path, backing: &[&Path]| SourceSpec {
        backing: backing.iter().map(|p| p.to_path_buf()).collect(),
        ..SourceSpec::new(path)
    };
    let report = bench.backup_specs(vec![spec(&top, &[&middle, &base])]).unwrap();
    assert_same("chain", &bench.bytes(&report.point, 0), &guest_bytes("qcow2", &top));

    // Anything less, or more, is not the chain.
    for (spec, word) in [
        (spec(&top, &[]), "--backing"),
        (spec(&top, &[&middle]), "--backing"),
        (spec(&base, &[&middle]), "nothing stands on it"),
        (spec(&top, &[&middle, &base, &base]), "nothing stands on it"),
    ] {
        let error = error_of(source::open(&spec));
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(word), "{error}");
    }
    // Another name is used, and told.
    let moved = bench.at("moved.img");
    rustix::fs::rename(&base, &moved).unwrap();
    let open = source::open(&spec(&top, &[&middle, &moved])).unwrap();
    assert!(open.warnings[0].contains("guest.raw"), "{:?}", open.warnings);
    assert_eq!((open.format, open.size_bytes), (ImageFormat::Qcow2, 16 * MIB));
}

fn write(image: &Path, offset: u64, len: u64) {
    let command = format!("write -P 0x5a {offset} {len}");
    let args = ["-f", "qcow2", "-c", &command, image.to_str().unwrap()];
    crate::bench::run("qemu-io", args);
}
