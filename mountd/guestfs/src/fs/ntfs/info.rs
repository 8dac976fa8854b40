//! The volume as a whole: label, space, and what its user should know.

use super::file::File;
use super::record::{fix_up, kind};
use super::stream;
use super::{Ntfs, ROOT};
use crate::fields::Fields;
use crate::fs::{FsInfo, FsKind, utf16};
use crate::{Error, ErrorKind};

const LOG_FILE: u64 = 2;
const VOLUME: u64 = 3;
const BITMAP: u64 = 6;
/// A larger bitmap of clusters is not read only to tell how much is used.
const BITMAP_MAX: usize = 1 << 20;
/// The two restart pages of the log, and what can be of one.
const RESTART_PAGE: u64 = 4096;
/// A label has 32 units; Windows' own tools allow more.
const LABEL_MAX: usize = 512;

/// Gathers it. What cannot be read is a note, not an error: files may be readable all the same.
pub(super) fn info(ntfs: &Ntfs, notes: Vec<String>) -> FsInfo {
    let boot = &ntfs.volume.boot;
    let mut info = FsInfo {
        kind: FsKind::Ntfs,
        label: String::new(),
        uuid: Some(format!("{:016X}", boot.serial)),
        block_bytes: boot.cluster_bytes as u32,
        size_bytes: boot.size_bytes,
        used_bytes: None,
        notes,
    };
    if boot.size_bytes > ntfs.volume.media.size_bytes() {
        info.notes.push(format!(
            "The device ends before the file system: it has {} bytes of {}.",
            ntfs.volume.media.size_bytes(),
            boot.size_bytes
        ));
    }
    if ntfs.volume.from_mirror {
        info.notes.push("The first record of the MFT was read from its copy.".to_owned());
    }
    for step in [volume, used, log, hibernated] {
        if let Err(e) = step(ntfs, &mut info) {
            info.notes.push(format!("{e}."));
        }
    }
    info
}

/// Label and flags, from $Volume.
fn volume(ntfs: &Ntfs, info: &mut FsInfo) -> Result<(), Error> {
    let file = ntfs.file(VOLUME)?;
    let value = |kind: u32, what: &str| {
        file.attribute(kind, "").map(|a| a.resident(what).map(<[u8]>::to_vec)).transpose()
    };
    if let Some(label) = value(kind::VOLUME_NAME, "the label")? {
        let units: Vec<u16> = utf16::le_units(label.get(..LABEL_MAX).unwrap_or(&label)).collect();
        info.label = String::from_utf16_lossy(&units);
    }
    let what = "the flags of the volume";
    let Some(flags) = value(kind::VOLUME_INFORMATION, what)? else {
        return Err(Error::damaged(format!("{what} are missing")));
    };
    if Fields::new(&flags, what).le16(10)? & 1 != 0 {
        let text = "The volume is marked as dirty: Windows did not unmount it, or found damage.";
        info.notes.push(text.to_owned());
    }
    Ok(())
}

/// Used clusters, counted in $Bitmap.
fn used(ntfs: &Ntfs, info: &mut FsInfo) -> Result<(), Error> {
    let file = ntfs.file(BITMAP)?;
    let what = "the bitmap of clusters";
    let Some(data) = file.stream(0).filter(|data| data.size_bytes() <= BITMAP_MAX as u64) else {
        return Ok(());
    };
    let bytes = stream::whole(&ntfs.volume, &ntfs.kept, data, BITMAP_MAX, what)?;
    let clusters = ntfs.volume.boot.clusters;
    // Bits behind the last cluster are set, and stand for nothing.
    let used = (0u64..).zip(&bytes).map(|(i, byte)| {
        let left = clusters.saturating_sub(i * 8).min(8);
        (u16::from(*byte) & ((1u16 << left) - 1)).count_ones()
    });
    let used: u64 = used.map(u64::from).sum();
    info.used_bytes = Some(used * ntfs.volume.boot.cluster_bytes);
    Ok(())
}

/// Whether changes wait in $LogFile that Windows would apply first.
fn log(ntfs: &Ntfs, info: &mut FsInfo) -> Result<(), Error> {
    let file = ntfs.file(LOG_FILE)?;
    let mut newest = None;
    for page in 0..2 {
        if let Some(found) = restart(ntfs, &file, page * RESTART_PAGE)? {
            newest = newest.max(Some(found));
        }
    }
    if newest.is_some_and(|(_, clean)| !clean) {
        let text = "The log was not replayed: what Windows changed last may be missing.";
        info.notes.push(text.to_owned());
    }
    Ok(())
}

/// Age and cleanness of a restart page; `None` for a log that was emptied.
fn restart(ntfs: &Ntfs, file: &File, at: u64) -> Result<Option<(u64, bool)>, Error> {
    let what = "a restart page of the log";
    let Some(data) = file.stream(0) else { return Ok(None) };
    let mut page = vec![0; RESTART_PAGE as usize];
    stream::metadata(&ntfs.volume, &ntfs.kept, data, at, &mut page, what)?;
    if fix_up(&mut page, b"RSTR", what).is_err() {
        return Ok(None);
    }
    let area = usize::from(Fields::new(&page, what).le16(0x18)?);
    let area = Fields::new(page.get(area..).unwrap_or_default(), what);
    let (clients, flags) = (area.le16(12)?, area.le16(14)?);
    Ok(Some((area.le64(0)?, clients == u16::MAX || flags & 2 != 0)))
}

/// Whether Windows sleeps in hiberfil.sys.
fn hibernated(ntfs: &Ntfs, info: &mut FsInfo) -> Result<(), Error> {
    let name: Vec<u16> = "hiberfil.sys".encode_utf16().collect();
    let file = match ntfs.child(ROOT, &name) {
        Ok(number) => ntfs.file(number)?,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let Some(data) = file.stream(0) else { return Ok(()) };
    let mut magic = [0; 4];
    let what = "hiberfil.sys";
    stream::read(&ntfs.volume, &ntfs.kept, data, 0, &mut magic, what)?;
    if magic.eq_ignore_ascii_case(b"hibr") {
        let text = "Windows was hibernated, or shut down with fast startup: changes it held in memory \
                    are not on the disk.";
        info.notes.push(text.to_owned());
    }
    Ok(())
}
