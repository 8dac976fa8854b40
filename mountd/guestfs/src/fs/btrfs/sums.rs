//! The checksums a btrfs can be made with. Source: btrfs documentation, "Checksumming" and "On-disk format", `csum_type`.

use blake2::Blake2b256;
use crc_fast::{CrcAlgorithm, Digest as Crc};
use sha2::{Digest, Sha256};

use crate::Error;

/// The longest checksum: the field of a header that holds it.
pub(super) const SUM_MAX: usize = 32;

/// Which checksum a file system has, of metadata and content alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SumKind {
    /// CRC-32C.
    Crc32c,
    /// XXH64 with seed 0.
    XxHash64,
    /// SHA-256.
    Sha256,
    /// BLAKE2b with 32 bytes.
    Blake2b,
}

impl SumKind {
    /// From `csum_type` of a superblock.
    pub(super) fn new(number: u16) -> Result<Self, Error> {
        match number {
            0 => Ok(Self::Crc32c),
            1 => Ok(Self::XxHash64),
            2 => Ok(Self::Sha256),
            3 => Ok(Self::Blake2b),
            other => Err(Error::unsupported(format!("btrfs with checksums of type {other}"))),
        }
    }

    /// Its length in bytes.
    pub(super) fn len(self) -> usize {
        match self {
            Self::Crc32c => 4,
            Self::XxHash64 => 8,
            Self::Sha256 | Self::Blake2b => SUM_MAX,
        }
    }

    /// The checksum of `bytes`; behind its length zeros.
    pub(super) fn of(self, bytes: &[u8]) -> [u8; SUM_MAX] {
        let mut sum = [0; SUM_MAX];
        match self {
            Self::Crc32c => sum[..4].copy_from_slice(&crc_fast::crc32_iscsi(bytes).to_le_bytes()),
            Self::XxHash64 => {
                sum[..8].copy_from_slice(&twox_hash::XxHash64::oneshot(0, bytes).to_le_bytes());
            }
            Self::Sha256 => sum.copy_from_slice(&Sha256::digest(bytes)),
            Self::Blake2b => sum.copy_from_slice(&Blake2b256::digest(bytes)),
        }
        sum
    }

    /// Whether `stored`, as long as the checksum or longer, is that of `bytes`.
    pub(super) fn fits(self, bytes: &[u8], stored: &[u8]) -> bool {
        stored.get(..self.len()).is_some_and(|stored| stored == &self.of(bytes)[..self.len()])
    }
}

/// The hash of a name in a directory: CRC-32C from `!1` on and not turned over at the end.
/// Source: On-disk format, `DIR_ITEM`.
pub(crate) fn name_hash(name: &[u8]) -> u64 {
    const START: u64 = 0xffff_fffe;
    let mut crc = Crc::new_with_init_state(CrcAlgorithm::Crc32Iscsi, START);
    crc.update(name);
    u64::from(!(crc.finalize() as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_sums() {
        let start = |kind: SumKind, n: usize| kind.of(b"123456789")[..n].to_vec();
        assert_eq!(start(SumKind::Crc32c, 4), 0xE306_9283_u32.to_le_bytes());
        assert_eq!(start(SumKind::Sha256, 4), [0x15, 0xe2, 0xb0, 0xd3]);
        assert_eq!(start(SumKind::XxHash64, 8), 0x8cb8_41db_40e6_ae83_u64.to_le_bytes());
        assert!(SumKind::Blake2b.fits(b"", &SumKind::Blake2b.of(b"")));
        assert!(!SumKind::Crc32c.fits(b"x", &[0; 3]));
    }

    #[test]
    fn hash_of_a_name() {
        // Found in the root tree of every btrfs: the key of the entry "default".
        assert_eq!(name_hash(b"default"), 0x8dbf_c2d2);
    }
}
