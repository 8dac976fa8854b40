//! The file that says what an overlay is (mountd/docs/OVERLAY.md, "Header").

use super::BLOCK_BYTES;
use super::sum::sum;

/// Its name.
pub(super) const NAME: &str = "overlay";
/// Its length in bytes.
pub(super) const BYTES: usize = 72;
const MAGIC: [u8; 8] = *b"BKSTOVL\x01";

/// What an overlay lies over, and how large it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The size of the disk in bytes.
    pub size_bytes: u64,
    /// What the caller said when it was made: the overlay is opened over nothing else.
    pub base: [u8; 32],
    /// A number of its own, so that no other overlay's records pass for its.
    pub(super) nonce: u64,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; BYTES] {
        let mut out = [0; BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&(BLOCK_BYTES as u32).to_le_bytes());
        out[16..24].copy_from_slice(&self.size_bytes.to_le_bytes());
        out[24..32].copy_from_slice(&self.nonce.to_le_bytes());
        out[32..64].copy_from_slice(&self.base);
        let own = sum(0, &out[..64]);
        out[64..].copy_from_slice(&own.to_le_bytes());
        out
    }

    /// Reads a header; the error says what is wrong with it.
    pub(super) fn decode(bytes: &[u8; BYTES]) -> Result<Self, &'static str> {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        if bytes[..7] != MAGIC[..7] {
            return Err("this is no overlay");
        }
        if bytes[7] != MAGIC[7] || word(8) != BLOCK_BYTES {
            return Err("a newer version of this program made it");
        }
        if sum(0, &bytes[..64]) != word(64) {
            return Err("its header is damaged");
        }
        let mut base = [0; 32];
        base.copy_from_slice(&bytes[32..64]);
        Ok(Self { size_bytes: word(16), nonce: word(24), base })
    }

    /// What the sums of the journal and map of a generation start from.
    pub(super) fn seed(&self, generation: u64) -> u64 {
        self.nonce ^ generation.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// Blocks of the disk; the last one may be shorter.
    pub(super) fn blocks(&self) -> u64 {
        self.size_bytes.div_ceil(BLOCK_BYTES)
    }
}
