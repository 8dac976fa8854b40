//! The disks of a recovery point as NBD exports.

use std::sync::Arc;

use backstay_nbd::server::{ClientInfo, ExportInfo, Exports, OpenError, Opened};
use backstay_store::{DiskRecord, RecoveryPoint, Repository};
use jiff::tz::TimeZone;

use crate::{Error, ErrorKind, PointDisk};

/// Disks of one recovery point, read-only, each under its name; the default export (the empty name)
/// is the first.
#[derive(Debug)]
pub struct PointExports {
    exports: Vec<Export>,
}

#[derive(Debug)]
struct Export {
    name: String,
    description: String,
    device: Arc<PointDisk>,
}

impl PointExports {
    /// All disks of `point`, or only the one named.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if the point has no such disk, [`ErrorKind::Repository`] if a disk
    /// cannot be opened.
    pub fn new(
        repository: &Repository,
        point: &RecoveryPoint,
        only_disk: Option<&str>,
    ) -> Result<Self, Error> {
        let wanted = |d: &&DiskRecord| only_disk.is_none_or(|name| d.name == name);
        let time = point.time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%SZ").to_string();
        let mut exports = Vec::new();
        for disk in point.disks.iter().filter(wanted) {
            let device = PointDisk::open(repository, point, disk).map_err(|e| {
                let what = format!("cannot open disk '{}' of {}", disk.name, point.machine);
                Error::repository(what, e)
            })?;
            exports.push(Export {
                name: disk.name.clone(),
                description: format!("{} {time} {}", point.machine, disk.name),
                device: Arc::new(device),
            });
        }
        if exports.is_empty() {
            let there: Vec<&str> = point.disks.iter().map(|d| d.name.as_str()).collect();
            let why = format!(
                "the point of {} at {time} has no disk '{}'; it has: {}",
                point.machine,
                only_disk.unwrap_or_default(),
                there.join(", ")
            );
            return Err(Error::new(ErrorKind::NotFound, why));
        }
        Ok(Self { exports })
    }

    /// The names served, the default export first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.exports.iter().map(|e| e.name.as_str())
    }
}

impl Exports for PointExports {
    fn list(&self, _client: &ClientInfo) -> Vec<ExportInfo> {
        let info =
            |e: &Export| ExportInfo { name: e.name.clone(), description: e.description.clone() };
        self.exports.iter().map(info).collect()
    }

    fn open(&self, name: &str, _client: &ClientInfo) -> Result<Opened, OpenError> {
        let found = match name {
            "" => self.exports.first(),
            name => self.exports.iter().find(|e| e.name == name),
        };
        let export = found.ok_or(OpenError::Unknown)?;
        Ok(Opened::new(export.device.clone()))
    }
}
