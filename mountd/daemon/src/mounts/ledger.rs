//! The ledger: one small file a mount, so that nothing temporary is without an owner and an end.
//!
//! ```text
//! STATE/lock               held by the daemon that uses the directory
//! STATE/mounts/ID.json     a mount; durable when the call that wrote it returned
//! STATE/overlays/ID/       its overlay (mountd/docs/OVERLAY.md), or
//! STATE/overlays/ID/LUN/   those of its disks, of an iSCSI target
//! STATE/reservations/ID/LUN  persistent reservations of an iSCSI unit (`keeper`)
//! STATE/iscsi-portal       where iSCSI targets were served last, if nobody says where
//! STATE/history            one line for each mount that ended
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use zeroize::Zeroizing;

use super::record::Record;
use crate::{Error, ErrorKind};

/// The longest record read.
const MAX_RECORD_BYTES: u64 = 1 << 20;
/// Mounts in one ledger.
pub(super) const MAX_RECORDS: usize = 4096;
/// Lines kept of the history.
const MAX_HISTORY: usize = 1000;

/// The directory of a daemon.
#[derive(Debug)]
pub(super) struct Ledger {
    state: PathBuf,
    _lock: File,
}

/// The end of a mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Ended {
    pub(super) id: String,
    pub(super) time: Timestamp,
    pub(super) what: String,
    pub(super) why: String,
}

/// What a ledger was found to hold.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) records: Vec<Record>,
    /// Files that are no records of ours, with the reason.
    pub(super) strange: Vec<String>,
}

impl Ledger {
    /// Opens a daemon's directory, and makes it if need be.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if another daemon has it.
    pub(super) fn open(state: &Path) -> Result<Self, Error> {
        let context = |what: &str| format!("{}: {what}", state.display());
        let ours = ["", "mounts", "overlays", "reservations"];
        for directory in ours.map(|name| state.join(name)) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(|e| {
                Error::os(format!("{}: cannot make the directory", directory.display()), e)
            })?;
        }
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(state.join("lock"))
            .map_err(|e| Error::os(context("cannot open the lock"), e))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let what = context("another mount daemon uses this directory");
                return Err(Error::new(ErrorKind::Busy, what));
            }
            Err(e) => return Err(Error::os(context("cannot lock"), e)),
        }
        // For people who look who it is.
        lock.set_len(0)
            .and_then(|()| lock.write_all(format!("{}\n", std::process::id()).as_bytes()))
            .map_err(|e| Error::os(context("cannot write the lock"), e))?;
        Ok(Self { state: state.to_owned(), _lock: lock })
    }

    /// Where the daemon's files are.
    pub(super) fn state_dir(&self) -> &Path {
        &self.state
    }

    /// Where an overlay is, or would be.
    pub(super) fn overlay_dir(&self, name: &str) -> PathBuf {
        self.state.join("overlays").join(name)
    }

    /// Where a mount's persistent reservations are, or would be.
    pub(super) fn reservations_dir(&self, id: &str) -> PathBuf {
        self.state.join("reservations").join(id)
    }

    fn mounts_dir(&self) -> PathBuf {
        self.state.join("mounts")
    }

    fn record_path(&self, id: &str) -> PathBuf {
        self.mounts_dir().join(format!("{id}.json"))
    }

    /// Reads all records, oldest first.
    pub(super) fn read(&self) -> Result<Found, Error> {
        let directory = self.mounts_dir();
        let failed = |e: io::Error| Error::os(format!("{}: cannot read", directory.display()), e);
        let mut found = Found { records: Vec::new(), strange: Vec::new() };
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.ends_with(".new") {
                // Half written when the last daemon ended; the old record, if any, counts.
                fs::remove_file(&path).map_err(failed)?;
                continue;
            }
            match read_record(&path) {
                Ok(record) if name == format!("{}.json", record.id) => {
                    found.records.push(record);
                }
                Ok(record) => found.strange.push(format!("{name}: it names mount {}", record.id)),
                Err(why) => found.strange.push(format!("{name}: {why}")),
            }
            if found.records.len() > MAX_RECORDS {
                let what = format!("{}: more than {MAX_RECORDS} mounts", directory.display());
                return Err(Error::new(ErrorKind::Io, what));
            }
        }
        found.records.sort_by(|a, b| a.created.cmp(&b.created).then_with(|| a.id.cmp(&b.id)));
        Ok(found)
    }

    /// Writes a record; durable when this returns, and the old one stays whole until then.
    pub(super) fn save(&self, record: &Record) -> Result<(), Error> {
        let path = self.record_path(&record.id);
        let new = self.mounts_dir().join(format!("{}.json.new", record.id));
        let save = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&new)?;
            // It may hold CHAP secrets.
            file.write_all(&Zeroizing::new(serde_json::to_vec_pretty(record)?))?;
            file.sync_all()?;
            rustix::fs::rename(&new, &path)?;
            sync_dir(&self.mounts_dir())
        };
        save().map_err(|e| Error::os(format!("{}: cannot write", path.display()), e))
    }

    /// Removes a record; durable when this returns. That there is none is success.
    pub(super) fn remove(&self, id: &str) -> Result<(), Error> {
        let path = self.record_path(id);
        let remove = || -> io::Result<()> {
            remove_if_there(fs::remove_file(&path))?;
            sync_dir(&self.mounts_dir())
        };
        remove().map_err(|e| Error::os(format!("{}: cannot remove", path.display()), e))
    }

    /// Makes the empty directory of an overlay, below that of its mount if it has a name there.
    pub(super) fn make_overlay_dir(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.overlay_dir(name);
        let make = || -> io::Result<()> {
            let mut builder = fs::DirBuilder::new();
            builder.mode(0o700);
            if let Some((mount, _)) = name.split_once('/') {
                // The first of its disks has made it.
                match builder.create(self.overlay_dir(mount)) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                    _ => sync_dir(&self.state.join("overlays"))?,
                }
            }
            builder.create(&path)?;
            path.parent().map_or(Ok(()), sync_dir)
        };
        make().map_err(|e| Error::os(format!("{}: cannot make", path.display()), e))?;
        Ok(path)
    }

    /// Removes a mount's overlays with all that was written. That there are none is success.
    pub(super) fn remove_overlays(&self, id: &str) -> Result<(), Error> {
        let path = self.overlay_dir(id);
        let remove = || -> io::Result<()> {
            // The headers first: half an overlay must not pass for one.
            remove_if_there(fs::remove_file(path.join("overlay")))?;
            if let Ok(disks) = fs::read_dir(&path) {
                for disk in disks {
                    let disk = disk?;
                    if disk.file_type()?.is_dir() {
                        remove_if_there(fs::remove_file(disk.path().join("overlay")))?;
                    }
                }
            }
            remove_if_there(fs::remove_dir_all(&path))?;
            sync_dir(&self.state.join("overlays"))
        };
        remove().map_err(|e| Error::os(format!("{}: cannot remove", path.display()), e))
    }

    /// Removes a mount's persistent reservations. That there are none is success.
    pub(super) fn remove_reservations(&self, id: &str) -> Result<(), Error> {
        let path = self.reservations_dir(id);
        remove_if_there(fs::remove_dir_all(&path))
            .map_err(|e| Error::os(format!("{}: cannot remove", path.display()), e))
    }

    /// Overlays that belong to none of the mounts named.
    pub(super) fn stray_overlays(
        &self,
        known: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<String>, Error> {
        let directory = self.state.join("overlays");
        let failed = |e: io::Error| Error::os(format!("{}: cannot read", directory.display()), e);
        let mut names = Vec::new();
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            if !known(&name) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Notes the end of a mount. It is for people, and a line that cannot be written stops nothing.
    pub(super) fn note_end(&self, ended: &Ended) {
        let path = self.state.join("history");
        let note = || -> io::Result<()> {
            let mut file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
            let mut line = serde_json::to_vec(ended)?;
            line.push(b'\n');
            file.write_all(&line)
        };
        if let Err(error) = note() {
            tracing::warn!(%error, file = %path.display(), "cannot note the end of a mount");
        }
    }

    /// The mounts that ended last, oldest first; cuts the file when it has grown long.
    pub(super) fn history(&self) -> Vec<Ended> {
        let path = self.state.join("history");
        let Ok(file) = File::open(&path) else { return Vec::new() };
        let lines: Vec<String> = BufReader::new(file).lines().map_while(Result::ok).collect();
        let kept = &lines[lines.len().saturating_sub(MAX_HISTORY)..];
        if lines.len() > 2 * MAX_HISTORY {
            let cut = kept.join("\n") + "\n";
            if let Err(error) = fs::write(&path, cut) {
                tracing::warn!(%error, file = %path.display(), "cannot cut the history");
            }
        }
        kept.iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

fn read_record(path: &Path) -> Result<Record, String> {
    let size = fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > MAX_RECORD_BYTES {
        return Err(format!("{size} bytes are too many for a record"));
    }
    let bytes = Zeroizing::new(fs::read(path).map_err(|e| e.to_string())?);
    Record::read(&bytes)
}

fn remove_if_there(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
