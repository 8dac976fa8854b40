//! What a vmdk names: the extent files of a split or flat disk, and a parent. Read here with bounds
//! (VMware's "Virtual Disk Format 1.1", The Descriptor, and SparseExtentHeader), because QEMU opens
//! whatever file the descriptor says.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::bytes::{le64, read_up_to};
use crate::error::{Error, ErrorKind, Result};

/// Longest descriptor that is read; VMware's own are a few KiB.
const DESCRIPTOR_MAX_BYTES: usize = 1 << 20;
/// Most extents of one disk: 2 GiB each make 8 TiB.
const EXTENTS_MAX: usize = 4096;
const SECTOR_BYTES: u64 = 512;
/// Bytes of a sparse extent header that are looked at.
const SPARSE_HEAD_BYTES: usize = 64;
/// The parent CID of a disk that has no parent.
const NO_PARENT: &str = "ffffffff";

/// Checks the image at `path` (canonical, already known to carry a vmdk signature) and returns the
/// other files it consists of, all regular files in the same directory.
pub(crate) fn check(path: &Path, file: &File) -> Result<Vec<PathBuf>> {
    let mut head = [0u8; SPARSE_HEAD_BYTES];
    let got = read_up_to(path, file, 0, &mut head)?;
    let head = head.get(..got).unwrap_or_default();
    if head.starts_with(b"COWD") {
        return Err(one_extent(path));
    }
    if head.starts_with(b"KDMV") {
        let (at, bytes) = embedded_descriptor(path, head)?;
        if bytes == 0 {
            return Err(one_extent(path));
        }
        let text = read_descriptor(path, file, at, bytes)?;
        // The extent line of a single-file disk names that file, or what it was once called; QEMU
        // does not open it, so neither is it checked.
        refuse_parent(path, &text)?;
        return Ok(Vec::new());
    }
    let text = read_descriptor(path, file, 0, DESCRIPTOR_MAX_BYTES)?;
    refuse_parent(path, &text)?;
    let mut files = Vec::new();
    for extent in extents(path, &text)? {
        if let Some(file) = check_extent(path, &extent)? {
            files.push(file);
        }
    }
    Ok(files)
}

fn one_extent(path: &Path) -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!(
            "{} is one part of a split vmdk disk, not the disk: name its descriptor file",
            path.display()
        ),
    )
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Damaged, format!("{}: {what}", path.display()))
}

fn refused(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Invalid, format!("{}: {what}", path.display()))
}

/// Place and length of the descriptor inside a sparse extent; length 0: there is none.
fn embedded_descriptor(path: &Path, head: &[u8]) -> Result<(u64, usize)> {
    let short = || damaged(path, "the vmdk header is cut short");
    let capacity = le64(head, 12).ok_or_else(short)?;
    let sector = le64(head, 28).ok_or_else(short)?;
    let sectors = le64(head, 36).ok_or_else(short)?;
    if capacity == 0 {
        // QEMU takes such a file's descriptor for a list of other files.
        return Err(refused(path, "a sparse vmdk extent of no capacity is not opened"));
    }
    if sector == 0 {
        return Ok((0, 0));
    }
    let bytes = sectors
        .checked_mul(SECTOR_BYTES)
        .and_then(|b| usize::try_from(b).ok())
        .filter(|b| *b <= DESCRIPTOR_MAX_BYTES)
        .ok_or_else(|| damaged(path, format!("a vmdk descriptor of {sectors} sectors")))?;
    let at = sector
        .checked_mul(SECTOR_BYTES)
        .ok_or_else(|| damaged(path, "the vmdk descriptor lies outside the file"))?;
    Ok((at, bytes))
}

/// The descriptor's text: at most `bytes`, ending at the first zero byte.
fn read_descriptor(path: &Path, file: &File, at: u64, bytes: usize) -> Result<String> {
    let mut text = vec![0u8; bytes];
    let got = read_up_to(path, file, at, &mut text)?;
    text.truncate(got);
    if let Some(end) = text.iter().position(|b| *b == 0) {
        text.truncate(end);
    } else if got == DESCRIPTOR_MAX_BYTES {
        return Err(damaged(path, "the vmdk descriptor does not end within a MiB"));
    }
    String::from_utf8(text)
        .map_err(|e| damaged(path, "the vmdk descriptor is not text in UTF-8").caused_by(e))
}

/// `key = value` of a descriptor line, in lower case and without quotes.
fn key_value(line: &str) -> Option<(String, String)> {
    let (key, value) = line.split_once('=')?;
    let value = value.trim().trim_matches('"').to_owned();
    Some((key.trim().to_ascii_lowercase(), value))
}

fn refuse_parent(path: &Path, text: &str) -> Result<()> {
    for line in text.lines() {
        let Some((key, value)) = key_value(line) else { continue };
        let parent = match key.as_str() {
            "parentfilenamehint" => true,
            "parentcid" => !value.eq_ignore_ascii_case(NO_PARENT),
            _ => false,
        };
        if parent {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{} is a vmdk snapshot on top of another disk, which is not opened on its \
                     word: make a whole disk of it first (qemu-img convert -O qcow2)",
                    path.display()
                ),
            ));
        }
    }
    Ok(())
}

/// One extent line: `ACCESS SECTORS TYPE ["FILE" [OFFSET]]`.
#[derive(Debug, PartialEq, Eq)]
struct Extent {
    sectors: u64,
    kind: Kind,
    file: String,
    offset_sectors: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Flat,
    Sparse,
    Zero,
}

fn extents(path: &Path, text: &str) -> Result<Vec<Extent>> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        let access = line.split_whitespace().next().unwrap_or_default();
        if !["RW", "RDONLY", "NOACCESS"].contains(&access) {
            continue;
        }
        if found.len() == EXTENTS_MAX {
            return Err(refused(path, format!("more than {EXTENTS_MAX} extents")));
        }
        let extent = parse_extent(line).ok_or_else(|| {
            refused(path, format!("this extent line is not understood: {line:?}"))
        })?;
        if access != "RW" && extent.kind != Kind::Zero {
            return Err(refused(path, format!("an extent that may not be read: {line:?}")));
        }
        found.push(extent);
    }
    if found.is_empty() {
        return Err(damaged(path, "the vmdk descriptor lists no extents"));
    }
    Ok(found)
}

fn parse_extent(line: &str) -> Option<Extent> {
    let (front, rest) = match line.split_once('"') {
        Some((front, rest)) => (front, Some(rest)),
        None => (line, None),
    };
    let mut words = front.split_whitespace();
    let _access = words.next()?;
    let sectors = words.next()?.parse().ok()?;
    let kind = match words.next()? {
        "FLAT" | "VMFS" => Kind::Flat,
        "SPARSE" | "VMFSSPARSE" | "SESPARSE" => Kind::Sparse,
        "ZERO" => Kind::Zero,
        _ => return None, // raw device mappings among them
    };
    if words.next().is_some() {
        return None;
    }
    let Some(rest) = rest else {
        return (kind == Kind::Zero).then(|| Extent {
            sectors,
            kind,
            file: String::new(),
            offset_sectors: 0,
        });
    };
    let (file, tail) = rest.split_once('"')?;
    let offset_sectors = match tail.trim() {
        "" => 0,
        number => number.parse().ok()?,
    };
    (kind != Kind::Zero).then(|| Extent { sectors, kind, file: file.to_owned(), offset_sectors })
}

/// Checks the file behind an extent and returns its path.
fn check_extent(path: &Path, extent: &Extent) -> Result<Option<PathBuf>> {
    if extent.kind == Kind::Zero {
        return Ok(None);
    }
    let found = beside(path, &extent.file)?;
    let file = File::open(&found).map_err(|e| Error::io("open", &found, e))?;
    let length = file.metadata().map_err(|e| Error::io("look at", &found, e))?.size();
    match extent.kind {
        Kind::Flat => {
            // QEMU would read zeros behind the end of a file cut short.
            let end = extent
                .offset_sectors
                .checked_add(extent.sectors)
                .and_then(|s| s.checked_mul(SECTOR_BYTES));
            if end.is_none_or(|end| end > length) {
                return Err(damaged(
                    &found,
                    format!("cut short: {} promises {} sectors", path.display(), extent.sectors),
                ));
            }
        }
        Kind::Sparse => {
            let mut head = [0u8; SPARSE_HEAD_BYTES];
            let got = read_up_to(&found, &file, 0, &mut head)?;
            let head = head.get(..got).unwrap_or_default();
            if head.starts_with(b"KDMV") {
                embedded_descriptor(&found, head)?;
            } else if !head.starts_with(b"COWD") {
                return Err(damaged(&found, "not a sparse vmdk extent"));
            }
        }
        Kind::Zero => {}
    }
    Ok(Some(found))
}

/// The file `name` in the directory of `path`; anything that would lead elsewhere is refused.
fn beside(path: &Path, name: &str) -> Result<PathBuf> {
    let plain = !name.is_empty()
        && name != "."
        && name != ".."
        && !name.chars().any(|c| c == '/' || c == '\\' || c == ':' || c.is_control());
    if !plain {
        return Err(refused(
            path,
            format!("its extent {name:?} is not a plain file name beside it and is not opened"),
        ));
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    let named = folder.join(name);
    let real = named.canonicalize().map_err(|e| Error::io("open", &named, e))?;
    let regular = std::fs::metadata(&real).is_ok_and(|m| m.is_file());
    if real.parent() != Some(folder) || !regular {
        return Err(refused(
            path,
            format!("its extent {name:?} is not a regular file in the same directory"),
        ));
    }
    Ok(named)
}

#[cfg(test)]
#[path = "vmdk_tests.rs"]
mod tests;
