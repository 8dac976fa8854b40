//! Opening RocksDB: its options, and what is made of its errors.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_format::ChunkId;
use parking_lot::Mutex;
use rocksdb::compaction_filter::{CompactionFilter, Decision};
use rocksdb::compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, BoundColumnFamily, Cache, ColumnFamilyDescriptor, DB,
    DBCompressionType, Options, SliceTransform, WaitForCompactOptions,
};

use super::packs::PackTable;
use super::rows::{PackNumber, pack_of};
use crate::error::{Error, ErrorKind, Result};

/// Memory for blocks read from disk, filters and the index of the index among them, per process.
const BLOCK_CACHE_BYTES: usize = 48 << 20;
/// Files that publishing may leave unmerged.
pub(super) const SMALL_FILES_MAX: u64 = 8;
/// How long a publishing waits for a merge, in microseconds.
const SETTLE_MICROS: u64 = 10_000_000;
/// Memory for one batch of writes.
const WRITE_BUFFER_BYTES: usize = 16 << 20;
/// Bytes of a block of rows: small, since neighbours in it are chunks of anywhere.
const BLOCK_BYTES: usize = 8 << 10;
/// Bytes of a part of a filter or of a file's own index: what one lookup must have in memory.
const PART_BYTES: usize = 8 << 10;
/// Bytes of a table file. Merging one with those below it must end within one publishing, or the
/// merge would be broken off and begun anew for ever; and every file is held open.
const TABLE_FILE_BYTES: u64 = 32 << 20;
/// Bytes of the first level that is merged file by file.
const FIRST_LEVEL_BYTES: u64 = 64 << 20;
/// Bytes read at once from each file that is merged.
const MERGE_READ_BYTES: usize = 256 << 10;

/// The column family of copies; packs, marks and counters are in the default one.
const CHUNKS: &str = "chunks";

/// Where the database is, and what its instances in this process share.
pub(super) struct Database {
    pub(super) path: PathBuf,
    cache: Cache,
    present: Present,
}

/// The packs whose rows a merge keeps; nothing: keep all.
type Present = Arc<Mutex<Option<Arc<PresentPacks>>>>;

#[derive(Clone, Debug)]
struct PresentPacks {
    bits: Vec<u64>,
    /// Numbers from here on are being added.
    end: PackNumber,
}

impl Database {
    pub(super) fn new(path: PathBuf) -> Self {
        let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
        Self { path, cache, present: Arc::default() }
    }

    /// Opens the database for writing. The caller holds the exclusive lock.
    pub(super) fn primary(&self) -> Result<DB> {
        *self.present.lock() = None;
        DB::open_cf_descriptors(&self.options(), &self.path, self.families())
            .map_err(|e| rocks_error("cannot open the index", e))
    }

    /// From now on, merging drops rows of packs that are not in `table`.
    pub(super) fn keep_only(&self, table: &PackTable, next: PackNumber) {
        let mut bits = vec![0u64; (next as usize).div_ceil(64)];
        for number in table.numbers() {
            if let Some(word) = bits.get_mut(number as usize / 64) {
                *word |= 1 << (number % 64);
            }
        }
        *self.present.lock() = Some(Arc::new(PresentPacks { bits, end: next }));
    }

    /// Merging drops the rows of these packs too.
    pub(super) fn drop_also(&self, numbers: &[PackNumber]) {
        self.change_present(numbers, |word, bit| *word &= !bit);
    }

    /// Merging keeps the rows of these packs too.
    pub(super) fn keep_also(&self, numbers: &[PackNumber]) {
        self.change_present(numbers, |word, bit| *word |= bit);
    }

    fn change_present(&self, numbers: &[PackNumber], change: impl Fn(&mut u64, u64)) {
        if let Some(present) = &mut *self.present.lock() {
            let bits = &mut Arc::make_mut(present).bits;
            for number in numbers {
                if let Some(word) = bits.get_mut(*number as usize / 64) {
                    change(word, 1 << (number % 64));
                }
            }
        }
    }

    /// Opens the database for reading. The caller holds the file lock.
    pub(super) fn read_only(&self, own_dir: &Path) -> Result<DB> {
        let mut options = self.options();
        options.set_db_log_dir(own_dir);
        DB::open_cf_descriptors_read_only(&options, &self.path, self.families(), false)
            .map_err(|e| rocks_error("cannot open the index", e))
    }

    /// Opens the database for reading; makes it if it is missing, and anew if it is broken. The
    /// caller holds the exclusive lock.
    pub(super) fn open_or_create(&self, own_dir: &Path) -> Result<DB> {
        if self.path.join("CURRENT").exists()
            && let Ok(db) = self.read_only(own_dir)
        {
            return Ok(db);
        }
        if let Err(e) = self.primary().map(drop) {
            if matches!(e.kind(), ErrorKind::NoSpace | ErrorKind::Denied) {
                return Err(e);
            }
            tracing::warn!(error = %e, "the index is broken and is made anew from pack footers");
            std::fs::remove_dir_all(&self.path)
                .map_err(|e| Error::io(format!("cannot remove {}", self.path.display()), e))?;
            self.primary()?;
        }
        self.read_only(own_dir)
    }

    fn families(&self) -> [ColumnFamilyDescriptor; 2] {
        let name = rocksdb::DEFAULT_COLUMN_FAMILY_NAME;
        [
            ColumnFamilyDescriptor::new(name, self.options()),
            ColumnFamilyDescriptor::new(CHUNKS, self.chunk_options()),
        ]
    }

    fn options(&self) -> Options {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&self.cache);
        table.set_cache_index_and_filter_blocks(true);
        let mut options = Options::default();
        options.set_block_based_table_factory(&table);
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_compression_type(DBCompressionType::None);
        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        options.set_max_background_jobs(2);
        // A pack's row and the rows of its copies survive a power cut together or not at all.
        options.set_atomic_flush(true);
        // Who reads must keep the files open: who writes may remove them. There are few, since
        // they are large.
        options.set_max_open_files(-1);
        options.set_compaction_readahead_size(MERGE_READ_BYTES);
        options.set_skip_stats_update_on_db_open(true);
        options.set_keep_log_file_num(2);
        options.set_log_level(rocksdb::LogLevel::Warn);
        options
    }

    /// Options of the copies: filters and the files' own indexes are cut into parts that live in
    /// the block cache, so that memory is bounded however many copies there are.
    pub(super) fn chunk_options(&self) -> Options {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&self.cache);
        table.set_bloom_filter(10.0, false);
        // Lookups are for an id, whatever pack follows it in the key.
        table.set_whole_key_filtering(false);
        table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
        table.set_partition_filters(true);
        table.set_metadata_block_size(PART_BYTES);
        table.set_cache_index_and_filter_blocks(true);
        table.set_pin_top_level_index_and_filter(true);
        table.set_block_size(BLOCK_BYTES);
        let mut options = self.options();
        options.set_block_based_table_factory(&table);
        options.set_prefix_extractor(SliceTransform::create_fixed_prefix(ChunkId::LEN));
        options.set_target_file_size_base(TABLE_FILE_BYTES);
        options.set_max_bytes_for_level_base(FIRST_LEVEL_BYTES);
        options.set_compaction_filter_factory(KeepPresent(self.present.clone()));
        options
    }
}

/// The column family of copies.
pub(super) fn chunks(db: &DB) -> Result<Arc<BoundColumnFamily<'_>>> {
    db.cf_handle(CHUNKS)
        .ok_or_else(|| Error::new(ErrorKind::Damaged, "the index has lost its table of chunks"))
}

/// Lets RocksDB merge the small files that every publishing leaves, once there are several: closing
/// the database would break the merge off, and lookups would have ever more files to ask.
pub(super) fn settle(db: &DB) -> Result<()> {
    let files = db.property_int_value_cf(&chunks(db)?, "rocksdb.num-files-at-level0");
    if matches!(files, Ok(Some(n)) if n >= SMALL_FILES_MAX) {
        // Not merged in time: the next publishing goes on with it.
        finish_merging(db);
    }
    Ok(())
}

/// Lets RocksDB merge for a while. `true`: there is nothing left to merge.
pub(super) fn finish_merging(db: &DB) -> bool {
    let mut options = WaitForCompactOptions::default();
    options.set_timeout(SETTLE_MICROS);
    db.wait_for_compact(&options).is_ok()
}

pub(super) fn rocks_error(text: &str, e: rocksdb::Error) -> Error {
    // RocksDB tells the cause of an input/output error in words only.
    let words = e.to_string();
    let kind = if words.contains("No space left") || words.contains("Disk quota") {
        ErrorKind::NoSpace
    } else if words.contains("Permission denied") || words.contains("Read-only file system") {
        ErrorKind::Denied
    } else {
        ErrorKind::Io
    };
    Error::because(kind, text, e)
}

/// Makes a filter for each merge.
struct KeepPresent(Present);

impl CompactionFilterFactory for KeepPresent {
    type Filter = Keep;

    fn create(&mut self, _: CompactionFilterContext) -> Keep {
        Keep(self.0.lock().clone())
    }

    fn name(&self) -> &CStr {
        c"backstay.present-packs"
    }
}

struct Keep(Option<Arc<PresentPacks>>);

impl CompactionFilter for Keep {
    fn filter(&mut self, _: u32, key: &[u8], _: &[u8]) -> Decision {
        let gone = |p: &Arc<PresentPacks>| {
            pack_of(key).is_some_and(|n| {
                let bit = p.bits.get(n as usize / 64).map(|word| word >> (n % 64) & 1);
                n < p.end && bit == Some(0)
            })
        };
        if self.0.as_ref().is_some_and(gone) { Decision::Remove } else { Decision::Keep }
    }

    fn name(&self) -> &CStr {
        c"backstay.present-packs"
    }
}
