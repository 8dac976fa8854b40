//! What the tests of volumes share: disks in images, loop devices with a guard, and what must hold for every tree.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use backstay_blockdev::BlockDevice as _;
use backstay_guestfs::volumes::{Disk, Mapped, PieceAt, VolumeTree, scan};

use crate::support::image::{Image, run};
use crate::support::{Random, seed};

pub(crate) const MIB: u64 = 1 << 20;

/// Disks as a machine has them: `disk0` and so on.
pub(crate) fn disks(images: &[&Image]) -> Vec<Disk> {
    let named =
        |(n, image): (usize, &&Image)| Disk { name: format!("disk{n}"), device: image.device() };
    images.iter().enumerate().map(named).collect()
}

/// Scans disks, and holds the tree to what is promised of every tree.
#[track_caller]
pub(crate) fn scanned(images: &[&Image]) -> VolumeTree {
    let disks = disks(images);
    let tree = scan(&disks).expect("it is scanned");
    hold(&disks, &tree);
    let again = scan(&disks).expect("it is scanned again");
    let text = |tree| serde_json::to_string(tree).expect("JSON");
    assert_eq!(text(&again), text(&tree), "two scans agree");
    tree
}

/// Names are unique, parents come first, and reading a volume is reading the disks where `locate` says.
pub(crate) fn hold(disks: &[Disk], tree: &VolumeTree) {
    let mut names = HashSet::new();
    let mut random = Random(seed());
    for (index, volume) in tree.volumes.iter().enumerate() {
        assert!(names.insert(volume.name.clone()), "{} is there twice", volume.name);
        assert!(volume.parents.iter().all(|p| *p < index), "{}: parents", volume.name);
        assert!(tree.find(&volume.name).is_some(), "{} is found", volume.name);
        for device in volume.devices() {
            for _ in 0..20 {
                agree(disks, &device, &mut random);
            }
        }
    }
}

fn agree(disks: &[Disk], device: &Mapped, random: &mut Random) {
    let size = device.size_bytes();
    if size == 0 {
        return;
    }
    let offset = random.below(size);
    let len = (1 + random.below(300_000)).min(size - offset);
    let mut read = vec![0x55; len as usize];
    let whole = device.read_at(offset, &mut read);
    let mut at = 0;
    while at < len {
        let Ok(pieces) = device.locate(offset + at, len - at, 5) else {
            assert!(whole.is_err(), "what cannot be located cannot be read");
            return;
        };
        assert!(!pieces.is_empty() && pieces.len() <= 5);
        for piece in pieces {
            assert!(piece.len_bytes > 0 && at + piece.len_bytes <= len, "{piece:?}");
            let part = &read[at as usize..(at + piece.len_bytes) as usize];
            let mut wanted = vec![0; part.len()];
            if let PieceAt::Disk { disk, offset_bytes } = piece.at {
                disks[disk].device.read_at(offset_bytes, &mut wanted).expect("it is on the disk");
            }
            // A failure further on fails all of a read.
            assert!(whole.is_err() || part == wanted, "byte {} of a volume", offset + at);
            at += piece.len_bytes;
        }
    }
    assert!(whole.is_ok(), "what can be located can be read: {whole:?}");
}

/// Writes bytes into an image.
pub(crate) fn put(path: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).expect("the image opens");
    file.write_all_at(bytes, offset).expect("it is written");
}

/// All bytes of a volume.
pub(crate) fn content(tree: &VolumeTree, name: &str) -> Vec<u8> {
    let volume = tree.find(name).unwrap_or_else(|| panic!("no {name} in {}", names(tree)));
    let device = volume.devices().first().cloned();
    let device = device.unwrap_or_else(|| panic!("{name}: {:?}", volume.error));
    let mut bytes = vec![0; device.size_bytes() as usize];
    device.read_at(0, &mut bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
    bytes
}

/// What is there, for messages.
pub(crate) fn names(tree: &VolumeTree) -> String {
    let line = |v: &backstay_guestfs::volumes::Volume| {
        format!("{} ({}; {:?}; {:?})", v.name, v.content, v.error, v.notes)
    };
    tree.volumes.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Loop devices over images, detached when this is dropped.
#[derive(Debug)]
pub(crate) struct Loops(pub(crate) Vec<String>);

impl Loops {
    #[track_caller]
    pub(crate) fn over(images: &[&Image]) -> Self {
        let mut loops = Self(Vec::new());
        // From the last one on: other tests take loop devices too, so that nothing may depend on their order.
        for image in images.iter().rev() {
            let path = image.path().to_str().expect("a plain path");
            loops.0.insert(0, run("losetup", &["-f", "--show", path]).trim().to_owned());
        }
        loops
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        for device in &self.0 {
            let _ = std::process::Command::new("losetup").args(["-d", device]).output();
        }
    }
}
