//! The registry of magics: every object begins with one, and each is used once.

/// The repository configuration.
pub const CONFIG: [u8; 8] = *b"BKSTCONF";
/// A key slot.
pub const SLOT: [u8; 8] = *b"BKSTSLOT";
/// A recovery point.
pub const POINT: [u8; 8] = *b"BKSTPONT";
/// A fence: the session of that name may not commit any more.
pub const FENCE: [u8; 8] = *b"BKSTFENC";
/// A session: somebody is writing or reading.
pub const SESSION: [u8; 8] = *b"BKSTSESS";
/// The removal of a recovery point.
pub const REMOVAL: [u8; 8] = *b"BKSTRMVL";
/// A pin: a recovery point must stay.
pub const PIN: [u8; 8] = *b"BKSTPINN";
/// The plan of a collection.
pub const GC_PLAN: [u8; 8] = *b"BKSTGCPL";
/// The verdict of a collection.
pub const GC_VERDICT: [u8; 8] = *b"BKSTGCVD";
/// The end of a collection.
pub const GC_END: [u8; 8] = *b"BKSTGCEN";
/// An index object: tables of packs.
pub const INDEX: [u8; 8] = *b"BKSTINDX";
/// The header of a pack.
pub const PACK: [u8; 8] = *b"BKSTPACK";
/// The trailer of a pack.
pub const TRAILER: [u8; 8] = *b"BKSTTAIL";
/// A node of an image tree.
pub const NODE: [u8; 4] = *b"BSTN";

/// The version that this program writes, and the newest it reads.
pub const VERSION: u16 = 1;
