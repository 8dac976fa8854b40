//! Where the persistent reservations of a unit are kept, so that a daemon that comes back knows them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use backstay_iscsi::scsi::{Keeper, outlives_power_loss};

use super::super::ledger::sync_dir;

/// The first line of a file; the second is the boot of the machine in which it was written.
const MAGIC: &str = "backstay reservations 1";
/// The longest file read: a unit with all registrations it takes needs less.
const MAX_BYTES: u64 = 1 << 20;

/// A file for a unit. What is in it outlives the daemon; a restart of the machine is a power loss to initiators, and outlives
/// only what they wanted to outlive one (APTPL).
#[derive(Debug)]
pub(super) struct FileKeeper {
    path: PathBuf,
    boot: String,
    /// Whether a state is to outlive a restart of the machine.
    outlives: fn(&[u8]) -> bool,
}

impl FileKeeper {
    /// The file of unit `lun` in `directory`, which is made when there is something to keep.
    pub(super) fn new(directory: &Path, lun: u16) -> Self {
        // Where nobody tells, nothing is forgotten.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            path: directory.join(lun.to_string()),
            boot: boot.trim().to_owned(),
            outlives: outlives_power_loss,
        }
    }
}

impl Keeper for FileKeeper {
    fn load(&self) -> io::Result<Option<Vec<u8>>> {
        let mut file = match File::open(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?.take(MAX_BYTES + 1),
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let strange = || {
            let what = format!("{}: no reservations of this version", self.path.display());
            io::Error::new(io::ErrorKind::InvalidData, what)
        };
        let mut parts = bytes.splitn(3, |byte| *byte == b'\n');
        let (Some(magic), Some(boot), Some(state)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(strange());
        };
        if magic != MAGIC.as_bytes() || bytes.len() as u64 > MAX_BYTES {
            return Err(strange());
        }
        let same_boot = boot == self.boot.as_bytes();
        Ok((same_boot || (self.outlives)(state)).then(|| state.to_vec()))
    }

    fn save(&self, state: &[u8]) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        match fs::DirBuilder::new().mode(0o700).create(directory) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            made => {
                made?;
                directory.parent().map_or(Ok(()), sync_dir)?;
            }
        }
        let new = self.path.with_extension("new");
        let mut file =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        file.write_all(format!("{MAGIC}\n{}\n", self.boot).as_bytes())?;
        file.write_all(state)?;
        file.sync_all()?;
        rustix::fs::rename(&new, &self.path)?;
        sync_dir(directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeper(place: &Path) -> FileKeeper {
        FileKeeper { outlives: |state| state == b"aptpl", ..FileKeeper::new(&place.join("m-1"), 7) }
    }

    fn after_a_restart(place: &Path) -> FileKeeper {
        FileKeeper { boot: "another".to_owned(), ..keeper(place) }
    }

    #[test]
    fn reservations_outlive_the_daemon_and_a_restart_if_they_are_to() {
        let place = tempfile::tempdir().expect("a directory");
        let first = keeper(place.path());
        assert_eq!(first.load().expect("nothing yet"), None);
        first.save(b"until\nthe end").expect("saved");
        let again = keeper(place.path());
        assert_eq!(again.load().expect("there"), Some(b"until\nthe end".to_vec()));
        assert_eq!(after_a_restart(place.path()).load().expect("readable"), None);
        again.save(b"aptpl").expect("saved over it");
        assert_eq!(after_a_restart(place.path()).load().expect("there"), Some(b"aptpl".to_vec()));
        assert!(!first.path.with_extension("new").exists());
    }

    #[test]
    fn half_a_file_is_no_file_and_what_fails_leaves_the_old_one() {
        let place = tempfile::tempdir().expect("a directory");
        let keeper = keeper(place.path());
        keeper.save(b"aptpl").expect("saved");
        // What a save that was killed leaves.
        fs::write(keeper.path.with_extension("new"), "backst").expect("written");
        assert_eq!(keeper.load().expect("there"), Some(b"aptpl".to_vec()));
        fs::remove_file(keeper.path.with_extension("new")).expect("removed");
        fs::create_dir(keeper.path.with_extension("new")).expect("in the way");
        assert!(keeper.save(b"new").is_err());
        assert_eq!(keeper.load().expect("the old one"), Some(b"aptpl".to_vec()));
        for bad in ["", "backstay reservations 1", "backstay reservations 2\nboot\nx"] {
            fs::write(&keeper.path, bad).expect("written");
            assert!(keeper.load().is_err(), "{bad:?}");
        }
        fs::write(&keeper.path, format!("{MAGIC}\n\n{}", "x".repeat(2 << 20))).expect("written");
        assert!(keeper.load().is_err(), "too long");
    }
}
