//! What a fuzzer runs here: disks made of any bytes, opened, listed and read. A target is a function that takes any bytes and panics when
//! a promise is broken. `tests/corpus.rs` runs them with their seeds, cut and changed.

pub(crate) mod btrfs;
mod ext;
mod fat;
mod iso9660;
mod ntfs;
mod volumes;
mod walk;
mod xfs;

pub use walk::walk;

/// One reader under test.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Takes any bytes; panics when a promise is broken.
    pub run: fn(&[u8]),
    /// Inputs that the reader takes, each with a name. The same at every call.
    pub seeds: fn() -> Vec<(&'static str, Vec<u8>)>,
    /// Bytes of memory a run may hold at once, beside what its input accounts for.
    pub memory: usize,
}

/// Every target of this crate.
pub const TARGETS: &[Target] = &[
    Target { name: "guest_btrfs", run: btrfs::run, seeds: btrfs::seeds, memory: 8 << 20 },
    Target { name: "guest_ext", run: ext::run, seeds: ext::seeds, memory: 8 << 20 },
    Target { name: "guest_exfat", run: fat::run_exfat, seeds: fat::exfat_seeds, memory: 8 << 20 },
    Target { name: "guest_fat", run: fat::run_fat, seeds: fat::fat_seeds, memory: 8 << 20 },
    Target { name: "guest_iso9660", run: iso9660::run, seeds: iso9660::seeds, memory: 8 << 20 },
    Target { name: "guest_ntfs", run: ntfs::run, seeds: ntfs::seeds, memory: 8 << 20 },
    Target {
        name: "guest_tables",
        run: volumes::gpt_mbr,
        seeds: volumes::gpt_mbr_seeds,
        memory: 64 << 20,
    },
    Target {
        name: "guest_lvm",
        run: volumes::lvm_text,
        seeds: volumes::lvm_text_seeds,
        memory: 64 << 20,
    },
    Target {
        name: "guest_md",
        run: volumes::md_super,
        seeds: volumes::md_super_seeds,
        memory: 64 << 20,
    },
    Target { name: "guest_thin", run: volumes::thin, seeds: volumes::thin_seeds, memory: 64 << 20 },
    Target { name: "guest_xfs", run: xfs::run, seeds: xfs::seeds, memory: 8 << 20 },
];

/// A disk from a short input: a list of patches over zeros. A patch is an offset (`u32`), a length (`u16`), both little-endian, and
/// so many bytes; the last one may be cut. So every structure of a large disk is within a fuzzer's reach.
pub fn disk(input: &[u8], size_bytes: usize) -> Vec<u8> {
    let mut disk = vec![0; size_bytes];
    let mut rest = input;
    while let Some((head, behind)) = rest.split_first_chunk::<6>() {
        let at = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let len = usize::from(u16::from_le_bytes([head[4], head[5]])).min(behind.len());
        let (patch, next) = behind.split_at(len);
        let at = at.min(size_bytes);
        let fits = len.min(size_bytes - at);
        disk[at..at + fits].copy_from_slice(&patch[..fits]);
        rest = next;
    }
    disk
}

/// The input that [`disk`] makes `image` from: for seeds. Runs of zeros longer than a patch's head are left out.
pub fn patches(image: &[u8]) -> Vec<u8> {
    const GAP: usize = 8;
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(start) = image[at..].iter().position(|b| *b != 0).map(|skip| at + skip) {
        let (mut end, mut zeros) = (start, 0);
        for (i, byte) in image.iter().enumerate().skip(start).take(usize::from(u16::MAX)) {
            zeros = if *byte == 0 { zeros + 1 } else { 0 };
            if zeros == 0 {
                end = i + 1;
            } else if zeros > GAP {
                break;
            }
        }
        out.extend((start as u32).to_le_bytes());
        out.extend(((end - start) as u16).to_le_bytes());
        out.extend(&image[start..end]);
        at = end;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_and_disks() {
        let mut image = vec![0; 300_000];
        image[5] = 1;
        image[20_000..95_000].fill(7);
        image[299_999] = 9;
        assert_eq!(disk(&patches(&image), image.len()), image);
        assert_eq!(disk(&[0xff; 40], 100), vec![0; 100]);
        assert_eq!(disk(&[1, 0, 0, 0, 255, 255, 8], 3), [0, 8, 0]);
    }
}
