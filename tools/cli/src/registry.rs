//! Which repositories this machine has used: one small record each, in the cache directory.
//!
//! Derived and for people only. One file per repository, so that processes at work at the same
//! time never overwrite each other's records.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::exit::CliError;

/// Folder of the records below the cache directory.
const FOLDER: &str = "repositories";
/// Most records listed: more repositories than a machine has; a flooded folder stays readable.
const RECORDS_MAX: usize = 4096;
/// Longest record read.
const RECORD_MAX_BYTES: u64 = 64 * 1024;

/// One repository this machine has used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) location: String,
    pub(crate) last_used: Timestamp,
}

/// Notes that a repository was used. The caller goes on if this fails: it is only a memory aid.
pub(crate) fn remember(cache_dir: &Path, record: &Record) -> std::io::Result<()> {
    let folder = cache_dir.join(FOLDER);
    fs::create_dir_all(&folder)?;
    let temporary = folder.join(format!(".{}.{}", record.id, std::process::id()));
    fs::write(&temporary, serde_json::to_vec(record)?)?;
    // Overwriting is wanted, and a record lost in a power cut is no loss: no durable rename.
    rustix::fs::rename(&temporary, folder.join(format!("{}.json", record.id)))?;
    Ok(())
}

/// The records, last used first. Files that are no records are left out.
pub(crate) fn list(cache_dir: &Path) -> Result<Vec<Record>, CliError> {
    let folder = cache_dir.join(FOLDER);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(CliError::io("cannot read the list of repositories", &error)
                .what(folder.display().to_string()));
        }
    };
    let mut records: Vec<Record> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "json"))
        .take(RECORDS_MAX)
        .filter_map(read)
        .collect();
    records.sort_by(|a, b| b.last_used.cmp(&a.last_used).then_with(|| a.id.cmp(&b.id)));
    Ok(records)
}

fn read(path: PathBuf) -> Option<Record> {
    let mut text = String::new();
    fs::File::open(path).ok()?.take(RECORD_MAX_BYTES).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}
