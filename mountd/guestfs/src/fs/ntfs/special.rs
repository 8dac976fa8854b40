//! What a file is beside a file: links, devices, and what other programs must be asked for.
//!
//! Reparse points: [MS-FSCC] 2.1.2; those of WSL and the files of Interix (Services for Unix) as ntfs-3g reads them.

use super::file::File;
use super::record::kind;
use super::stream::{self, Kept};
use super::volume::Volume;
use crate::fields::Fields;
use crate::fs::utf16;
use crate::{Error, ErrorKind};

/// DOS attributes.
pub(super) mod dos {
    pub(in super::super) const READ_ONLY: u32 = 1;
    pub(in super::super) const HIDDEN: u32 = 2;
    pub(in super::super) const SYSTEM: u32 = 4;
    pub(in super::super) const SPARSE: u32 = 0x200;
    pub(in super::super) const REPARSE: u32 = 0x400;
    pub(in super::super) const COMPRESSED: u32 = 0x800;
    pub(in super::super) const OFFLINE: u32 = 0x1000;
    pub(in super::super) const ENCRYPTED: u32 = 0x4000;
    /// Content is fetched when it is opened, or when it is read.
    pub(in super::super) const RECALL: u32 = 0x44_0000;
    /// In $FILE_NAME only: it has an index.
    pub(in super::super) const DIRECTORY: u32 = 0x1000_0000;
}

/// What Windows takes in a reparse point.
const REPARSE_MAX: usize = 16 << 10;
/// Extended attributes of a file together, as in OS/2.
const EA_MAX: usize = 64 << 10;
/// A path of 4,096 units behind the magic of Interix.
const INTERIX_MAX: u64 = 8 + 2 * 4096;

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Special {
    /// What it looks like.
    Plain,
    /// A link with this target, in Windows' spelling or in that of Unix.
    Link(Target),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    Socket,
    /// Its content is not in its stream, but where this reparse point says.
    Elsewhere(String),
}

/// The target of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// A path of Unix.
    Unix(Vec<u8>),
    /// A path from the link's own directory.
    Relative(Vec<u16>),
    /// From a volume's root; in front the drive ("C:") or volume, or nothing for the link's own.
    Absolute { volume: Vec<u16>, path: Vec<u16> },
}

/// Mode, owner and device as WSL keeps them in extended attributes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Linux {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) device: (u32, u32),
}

/// What `file` is.
pub(super) fn special(
    volume: &Volume,
    kept: &Kept,
    file: &File,
    linux: &Linux,
) -> Result<Special, Error> {
    if file.standard.flags & dos::REPARSE != 0 {
        return reparse(volume, kept, file, linux);
    }
    if file.standard.flags & dos::SYSTEM != 0 && !file.directory {
        return interix(volume, kept, file);
    }
    Ok(Special::Plain)
}

fn reparse(volume: &Volume, kept: &Kept, file: &File, linux: &Linux) -> Result<Special, Error> {
    let what = format!("the reparse point of MFT record {}", file.number);
    let Some(found) = file.attribute(kind::REPARSE_POINT, "") else {
        return Err(Error::damaged(format!("{what} is missing")));
    };
    let bytes = stream::whole(volume, kept, found, REPARSE_MAX, &what)?;
    let fields = Fields::new(&bytes, &what);
    let (tag, len) = (fields.le32(0)?, usize::from(fields.le16(4)?));
    Ok(match tag {
        0xa000_0003 => Special::Link(windows(&fields, 8, 16, false, &what)?),
        0xa000_000c => {
            let relative = fields.le32(16)? & 1 != 0;
            Special::Link(windows(&fields, 8, 20, relative, &what)?)
        }
        0xa000_001d => Special::Link(Target::Unix(unix(fields.slice(8, len)?, &what)?)),
        0x8000_0023 => Special::Socket,
        0x8000_0024 => Special::Fifo,
        0x8000_0025 => Special::CharDevice(linux.device.0, linux.device.1),
        0x8000_0026 => Special::BlockDevice(linux.device.0, linux.device.1),
        _ if is_cloud(tag) && is_here(file) => Special::Plain,
        _ => Special::Elsewhere(name_of(tag)),
    })
}

/// Whether a file of a cloud's cache has all its content: nothing left out, nothing to be fetched.
fn is_here(file: &File) -> bool {
    file.standard.flags & (dos::SPARSE | dos::OFFLINE | dos::RECALL) == 0
}

fn is_cloud(tag: u32) -> bool {
    tag & 0xffff_0fff == 0x9000_001a
}

/// The name of a reparse tag ([MS-FSCC] 2.1.2.1).
fn name_of(tag: u32) -> String {
    let name = match tag {
        0xc000_0004 | 0x8000_0006 => "hierarchical storage",
        0x8000_0007 => "single instance storage",
        0x8000_0008 => "WIM mount",
        0x8000_000a | 0x8000_0012 => "distributed file system",
        0x8000_0013 => "data deduplication",
        0x8000_0014 => "NFS",
        0x8000_0017 => "WOF, a file compressed by the operating system",
        0x8000_0018 | 0x9000_1018 => "Windows container",
        0x8000_001b => "alias of an app",
        0x9000_001c => "projected file system",
        0x8000_0021 => "OneDrive",
        _ if is_cloud(tag) => "OneDrive or another cloud",
        _ => "unknown",
    };
    format!("reparse point {tag:#010x} ({name})")
}

/// The substitute name of a junction or symbolic link; its offsets are at `at`, the names from `names` on.
fn windows(
    fields: &Fields<'_>,
    at: usize,
    names: usize,
    relative: bool,
    what: &str,
) -> Result<Target, Error> {
    let (start, len) = (usize::from(fields.le16(at)?), usize::from(fields.le16(at + 2)?));
    let mut name: Vec<u16> = utf16::le_units(fields.slice(names + start, len)?).collect();
    // Some programs count a NUL behind it.
    if name.last() == Some(&0) {
        name.pop();
    }
    if name.is_empty() || name.contains(&0) {
        return Err(Error::damaged(format!("{what} has no target, or one with a NUL")));
    }
    Ok(parse_target(&name, relative))
}

fn parse_target(name: &[u16], relative: bool) -> Target {
    let is = |unit: u16, c: char| u32::from(unit) == u32::from(c);
    let starts = |text: &str| text.encode_utf16().eq(name.iter().copied().take(text.len()));
    let rest = if starts(r"\??\") || starts(r"\\?\") { &name[4..] } else { name };
    let drive = matches!(rest, [_, colon, ..] if is(*colon, ':'));
    let given = rest.len() < name.len();
    if relative && !given && !drive && !name.first().is_some_and(|u| is(*u, '\\')) {
        return Target::Relative(name.to_vec());
    }
    // "C:\path" and "Volume{...}\path" begin with a volume; "\path" is on the link's own.
    let cut = match (given || drive, rest.iter().position(|u| is(*u, '\\'))) {
        (false, _) => 0,
        (true, Some(at)) => at,
        (true, None) => rest.len(),
    };
    Target::Absolute { volume: rest[..cut].to_vec(), path: rest[cut..].to_vec() }
}

/// The target of a link of WSL: a version, and UTF-8.
fn unix(data: &[u8], what: &str) -> Result<Vec<u8>, Error> {
    match data.split_first_chunk::<4>() {
        Some((&[2, 0, 0, 0], target)) if !target.is_empty() && !target.contains(&0) => {
            Ok(target.to_vec())
        }
        _ => Err(Error::damaged(format!("{what} is no link of WSL"))),
    }
}

/// Files marked "system" whose content says what they are.
fn interix(volume: &Volume, kept: &Kept, file: &File) -> Result<Special, Error> {
    let Some(data) = file.attribute(kind::DATA, "") else { return Ok(Special::Plain) };
    let hidden = file.standard.flags & dos::HIDDEN != 0;
    match data.size_bytes() {
        0 if !hidden => return Ok(Special::Fifo),
        1 if !hidden => return Ok(Special::Socket),
        9..=INTERIX_MAX => {}
        _ => return Ok(Special::Plain),
    }
    let what = format!("the content of MFT record {}", file.number);
    let mut magic = [0; 8];
    // What is encrypted tells nothing, and is an error only for who reads it.
    match stream::read(volume, kept, data, 0, &mut magic, &what) {
        Err(e) if e.kind() == ErrorKind::Encrypted => return Ok(Special::Plain),
        read => read?,
    };
    if !magic.starts_with(b"Intx") {
        return Ok(Special::Plain);
    }
    let bytes = stream::whole(volume, kept, data, INTERIX_MAX as usize, &what)?;
    let fields = Fields::new(&bytes, &what);
    let device = || {
        Some((
            u32::try_from(fields.le64(8).ok()?).ok()?,
            u32::try_from(fields.le64(16).ok()?).ok()?,
        ))
    };
    Ok(match (&magic, device()) {
        (b"IntxLNK\x01", _) => {
            let target = utf16::to_wtf8(utf16::le_units(bytes.get(8..).unwrap_or_default()));
            if target.is_empty() || target.contains(&0) {
                return Err(Error::damaged(format!("{what} is a link without a target")));
            }
            Special::Link(Target::Unix(target))
        }
        (b"IntxCHR\0", Some((major, minor))) if bytes.len() == 24 => {
            Special::CharDevice(major, minor)
        }
        (b"IntxBLK\0", Some((major, minor))) if bytes.len() == 24 => {
            Special::BlockDevice(major, minor)
        }
        _ => Special::Plain,
    })
}

/// The extended attributes of WSL. [MS-FSCC] 2.4.16 has their form.
pub(super) fn linux(volume: &Volume, kept: &Kept, file: &File) -> Result<Linux, Error> {
    let mut linux = Linux::default();
    let Some(found) = file.attribute(kind::EA, "") else { return Ok(linux) };
    let what = format!("the extended attributes of MFT record {}", file.number);
    let bytes = stream::whole(volume, kept, found, EA_MAX, &what)?;
    let mut at = 0;
    loop {
        let fields = Fields::new(bytes.get(at..).unwrap_or_default(), &what);
        let (next, name_len) = (fields.le32(0)? as usize, usize::from(fields.u8(5)?));
        let value_len = usize::from(fields.le16(6)?);
        let name = fields.slice(8, name_len)?;
        let value = fields.slice(9 + name_len, value_len)?;
        let value = Fields::new(value, &what);
        match name {
            b"$LXMOD" => linux.mode = Some(value.le32(0)?),
            b"$LXUID" => linux.uid = Some(value.le32(0)?),
            b"$LXGID" => linux.gid = Some(value.le32(0)?),
            b"$LXDEV" => linux.device = (value.le32(0)?, value.le32(4)?),
            _ => {}
        }
        // An entry is longer than nothing: this comes to an end.
        at += next;
        if next == 0 || at >= bytes.len() {
            return Ok(linux);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str, relative: bool) -> Target {
        parse_target(&text.encode_utf16().collect::<Vec<_>>(), relative)
    }

    #[test]
    fn targets_of_windows() {
        let units = |text: &str| text.encode_utf16().collect::<Vec<u16>>();
        let absolute = |volume, path| Target::Absolute { volume: units(volume), path: units(path) };
        assert_eq!(target(r"\??\C:\Users\x", false), absolute("C:", r"\Users\x"));
        assert_eq!(target(r"\??\C:", false), absolute("C:", ""));
        assert_eq!(target(r"D:\x", true), absolute("D:", r"\x"));
        assert_eq!(target(r"\x\y", true), absolute("", r"\x\y"));
        assert_eq!(target(r"\\?\Volume{1}\", false), absolute("Volume{1}", r"\"));
        assert_eq!(target(r"..\x", true), Target::Relative(units(r"..\x")));
    }

    #[test]
    fn tags_have_names() {
        assert!(name_of(0x8000_0017).contains("WOF"));
        assert!(name_of(0x9000_701a).contains("cloud"));
        assert!(name_of(7).contains("unknown"));
    }
}
