//! Every bound of the format, with its reason.

/// Smallest chunk: below one page the index costs more than the data.
pub const CHUNK_SIZE_MIN: u32 = 4 * 1024;
/// Largest chunk: a 4 KiB read must not unpack more than this.
pub const CHUNK_SIZE_MAX: u32 = 4 * 1024 * 1024;
/// Longest decoded chunk of any kind; a reader never allocates more for one.
pub const CHUNK_RAW_MAX: u32 = CHUNK_SIZE_MAX;
/// What sealing adds to a chunk or table: the AES-GCM tag.
pub const SEAL_OVERHEAD: u32 = 16;
/// Longest stored chunk: raw bytes and the tag (a chunk that does not shrink is stored raw).
pub const CHUNK_STORED_MAX: u32 = CHUNK_RAW_MAX + SEAL_OVERHEAD;
/// Packs are closed when they reach this size.
pub const PACK_TARGET: u32 = 32 * 1024 * 1024;
/// A reader refuses larger packs: offsets are 32 bits, and a pack is written from memory.
pub const PACK_MAX: u64 = 256 * 1024 * 1024;
/// Most chunks in one pack; bounds the footer a reader allocates for (48 MiB).
pub const PACK_ENTRIES_MAX: u32 = 1 << 20;
/// Children of an image-tree node. 64 keeps a scattered change cheap: one changed chunk rewrites
/// 2 KiB a level (see `chunkstore/docs/FORMAT.md`, Image tree).
pub const NODE_FANOUT: usize = 64;
/// Most levels of an image tree: 64^9 chunks of 4 KiB are more than 2^63 bytes.
pub const NODE_LEVELS_MAX: u8 = 9;
/// Largest disk: 2^60 bytes, so that offset arithmetic in 64 bits never wraps.
pub const DISK_SIZE_MAX: u64 = 1 << 60;
/// Most disks in one recovery point.
pub const DISKS_MAX: usize = 1024;
/// Longest machine or disk name in bytes: it must stay a file name in a mount.
pub const NAME_MAX: usize = 200;
/// Longest payload of the repository configuration or of a key slot.
pub const SMALL_PAYLOAD_MAX: u32 = 64 * 1024;
/// Longest payload of a recovery point: room for domain XML and firmware variables.
pub const POINT_PAYLOAD_MAX: u32 = 16 * 1024 * 1024;
/// Longest payload of a session, removal, pin or fence.
pub const RECORD_PAYLOAD_MAX: u32 = 256 * 1024;
/// Longest payload of a collection's plan or end: the names of two million packs.
pub const GC_PAYLOAD_MAX: u32 = 64 * 1024 * 1024;
/// Longest payload of an index object: the table of the largest pack fits.
pub const INDEX_PAYLOAD_MAX: u32 = 64 * 1024 * 1024;
/// Payload at which an index object is closed: large enough that few are read, small enough that
/// several fit in memory.
pub const INDEX_PAYLOAD_TARGET: u32 = 8 * 1024 * 1024;
/// Longest text in a record: reasons, names of hosts and users.
pub const TEXT_MAX: usize = 4096;
