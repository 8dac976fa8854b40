//! The registry of magics: every object begins with one, and each is used once.

/// The repository configuration.
pub const CONFIG: [u8; 8] = *b"BKSTCONF";
/// A key slot.
pub const SLOT: [u8; 8] = *b"BKSTSLOT";
/// A recovery point.
pub const POINT: [u8; 8] = *b"BKSTPONT";
/// The header of a pack.
pub const PACK: [u8; 8] = *b"BKSTPACK";
/// The trailer of a pack.
pub const TRAILER: [u8; 8] = *b"BKSTTAIL";
/// A node of an image tree.
pub const NODE: [u8; 4] = *b"BSTN";

/// The version that this program writes, and the newest it reads.
pub const VERSION: u16 = 1;
