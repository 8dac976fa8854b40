//! Which format an image has. Said by the user or by the file's name; the first bytes only confirm
//! it. A format is never taken from the content: a guest can write a qcow2 header into its own raw
//! disk, and whoever then believes the header opens the files it names.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result};

/// A disk image format that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// The guest's bytes as they are: a file or a block device.
    Raw,
    /// QEMU's own format, versions 2 and 3.
    Qcow2,
    /// VMware: monolithic, split, flat and streamOptimized.
    Vmdk,
    /// Hyper-V.
    Vhdx,
    /// VirtualBox.
    Vdi,
}

impl ImageFormat {
    /// Every format, in the order they are listed to users.
    pub const ALL: [ImageFormat; 5] = [
        ImageFormat::Raw,
        ImageFormat::Qcow2,
        ImageFormat::Vmdk,
        ImageFormat::Vhdx,
        ImageFormat::Vdi,
    ];

    /// The format's name in arguments and messages, which is also QEMU's driver name.
    pub fn name(self) -> &'static str {
        match self {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
            ImageFormat::Vmdk => "vmdk",
            ImageFormat::Vhdx => "vhdx",
            ImageFormat::Vdi => "vdi",
        }
    }

    /// The format a file name promises, if it promises one.
    pub fn from_extension(path: &Path) -> Option<ImageFormat> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "raw" | "img" => Some(ImageFormat::Raw),
            "qcow2" => Some(ImageFormat::Qcow2),
            "vmdk" => Some(ImageFormat::Vmdk),
            "vhdx" => Some(ImageFormat::Vhdx),
            "vdi" => Some(ImageFormat::Vdi),
            _ => None,
        }
    }

    /// The format whose signature `head` (the first bytes of the file) carries; `None` for
    /// everything else, which is what raw disks look like.
    pub(crate) fn signature(head: &[u8]) -> Option<ImageFormat> {
        const VDI_MAGIC_AT: usize = 64;
        let starts = |magic: &[u8]| head.get(..magic.len()) == Some(magic);
        if starts(b"QFI\xfb") {
            return Some(ImageFormat::Qcow2);
        }
        if starts(b"KDMV") || starts(b"COWD") || is_vmdk_descriptor(head) {
            return Some(ImageFormat::Vmdk);
        }
        if starts(b"vhdxfile") {
            return Some(ImageFormat::Vhdx);
        }
        if head.get(VDI_MAGIC_AT..VDI_MAGIC_AT + 4) == Some(&0xbeda_107f_u32.to_le_bytes()[..]) {
            return Some(ImageFormat::Vdi);
        }
        None
    }
}

/// Bytes [`ImageFormat::signature`] wants to see.
pub(crate) const SIGNATURE_BYTES: usize = 512;

fn is_vmdk_descriptor(head: &[u8]) -> bool {
    const TITLE: &[u8] = b"# disk descriptorfile";
    head.get(..TITLE.len()).is_some_and(|h| h.eq_ignore_ascii_case(TITLE))
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ImageFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        ImageFormat::ALL.into_iter().find(|f| f.name() == text).ok_or_else(|| {
            let names: Vec<_> = ImageFormat::ALL.iter().map(|f| f.name()).collect();
            Error::new(
                ErrorKind::Invalid,
                format!("`{text}` is no image format; there are {}", names.join(", ")),
            )
        })
    }
}

/// Settles the format of `path`: `said` by the user, else by its name (`block_device` is raw), and
/// the first bytes must agree.
pub(crate) fn settle(
    path: &Path,
    said: Option<ImageFormat>,
    block_device: bool,
    head: &[u8],
) -> Result<ImageFormat> {
    let shown = path.display();
    let found = ImageFormat::signature(head);
    if let Some(format) = said {
        // Raw said aloud is believed: raw bytes may look like anything.
        if format == ImageFormat::Raw || found == Some(format) {
            return Ok(format);
        }
        return Err(Error::new(
            ErrorKind::Invalid,
            format!("{shown} is not a {format} image: its first bytes are not a {format} header"),
        ));
    }
    let named =
        if block_device { Some(ImageFormat::Raw) } else { ImageFormat::from_extension(path) };
    match (named, found) {
        (None, _) => Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "the name of {shown} does not tell its format: say --format raw, qcow2, vmdk, vhdx or vdi"
            ),
        )),
        (Some(ImageFormat::Raw), None) => Ok(ImageFormat::Raw),
        (Some(named), Some(found)) if named == found => Ok(named),
        (Some(named), Some(found)) => Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "{shown} should be {named} by its name, but begins with a {found} header: \
                 say --format {named} or --format {found}"
            ),
        )),
        (Some(named), None) => Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "{shown} should be {named} by its name, but does not begin with a {named} header: \
                 it is damaged, or say --format"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_decides_and_the_first_bytes_must_agree() {
        use ImageFormat::{Qcow2, Raw, Vmdk};
        let qcow2 = b"QFI\xfb\0\0\0\x03".as_slice();
        /// File name, format said, block device, first bytes, what is settled on.
        type Row = (&'static str, Option<ImageFormat>, bool, &'static [u8], Option<ImageFormat>);
        let table: &[Row] = &[
            ("a.img", None, false, b"\0\0", Some(Raw)),
            ("a.RAW", None, false, b"", Some(Raw)),
            ("a.img", None, false, qcow2, None),
            ("a.img", Some(Raw), false, qcow2, Some(Raw)),
            ("a.img", Some(Qcow2), false, qcow2, Some(Qcow2)),
            ("a.img", Some(Qcow2), false, b"\0\0", None),
            ("a.qcow2", None, false, qcow2, Some(Qcow2)),
            ("a.qcow2", None, false, b"\0\0", None),
            ("a.qcow2", None, false, b"KDMV", None),
            ("a.vmdk", None, false, b"# Disk DescriptorFile\nversion=1\n", Some(Vmdk)),
            ("a.vmdk", None, false, b"COWD", Some(Vmdk)),
            ("a.iso", None, false, b"\0", None),
            ("a.iso", Some(Raw), false, b"\0", Some(Raw)),
            ("sdb", None, true, b"\0", Some(Raw)),
            ("sdb", None, true, qcow2, None),
        ];
        for (name, said, device, head, want) in table {
            let got = settle(Path::new(name), *said, *device, head);
            assert_eq!(got.as_ref().ok(), want.as_ref(), "{name} {said:?}: {got:?}");
        }
    }

    #[test]
    fn the_remedy_names_both_formats() {
        let error = settle(Path::new("a.img"), None, false, b"QFI\xfb").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("--format raw or --format qcow2"), "{error}");
    }
}
