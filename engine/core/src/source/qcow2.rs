//! What a qcow2 header says about other files. Only the header is read here, with bounds; the data
//! is QEMU's business. Field places are those of QEMU's docs/interop/qcow2, "Header".

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::bytes::{be32, be64};
use crate::error::{Error, ErrorKind, Result};

/// Backing file names are at most this long (docs/interop/qcow2, backing_file_size).
const MAX_BACKING_NAME_BYTES: u32 = 1023;
/// Incompatible feature bit 2: guest data is in another file.
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
/// Bytes of a version 2 header, and of a version 3 header up to its feature bits.
const HEADER_V2_BYTES: usize = 72;
const HEADER_V3_BYTES: usize = 104;

/// What the header says that decides whether and how the image is opened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Qcow2Header {
    /// The backing file as the image has it. Shown to people, never opened.
    pub(crate) backing: Option<String>,
}

/// Reads the header of `file`. Refuses an external data file and encryption.
pub(crate) fn read_header(path: &Path, file: &File) -> Result<Qcow2Header> {
    let mut head = [0u8; HEADER_V3_BYTES];
    let got = super::bytes::read_up_to(path, file, 0, &mut head)?;
    let damaged = |what: &str| {
        Error::new(ErrorKind::Damaged, format!("{}: {what} in the qcow2 header", path.display()))
    };
    let head = head.get(..got).unwrap_or_default();
    let version = be32(head, 4).ok_or_else(|| damaged("nothing after the signature"))?;
    let enough = match version {
        2 => HEADER_V2_BYTES,
        3 => HEADER_V3_BYTES,
        other => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("{}: qcow2 version {other} is not known", path.display()),
            ));
        }
    };
    if head.len() < enough {
        return Err(damaged("too few bytes"));
    }
    let backing_offset = be64(head, 8).ok_or_else(|| damaged("no backing offset"))?;
    let backing_bytes = be32(head, 16).ok_or_else(|| damaged("no backing length"))?;
    let crypt = be32(head, 32).ok_or_else(|| damaged("no encryption method"))?;
    if crypt != 0 {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("{}: encrypted qcow2 images cannot be read", path.display()),
        ));
    }
    if version >= 3 {
        let features = be64(head, 72).ok_or_else(|| damaged("no feature bits"))?;
        if features & INCOMPATIBLE_DATA_FILE != 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "{} keeps its data in another file (external data file), which is never \
                     opened on an image's word: back up that file itself with --format raw",
                    path.display()
                ),
            ));
        }
    }
    let backing = match backing_offset {
        0 => None,
        at => Some(read_backing_name(path, file, at, backing_bytes)?),
    };
    Ok(Qcow2Header { backing })
}

fn read_backing_name(path: &Path, file: &File, at: u64, bytes: u32) -> Result<String> {
    if bytes == 0 || bytes > MAX_BACKING_NAME_BYTES {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!("{}: the backing file name is {bytes} bytes long", path.display()),
        ));
    }
    let mut name = vec![0u8; usize::try_from(bytes).unwrap_or_default()];
    file.read_exact_at(&mut name, at).map_err(|e| {
        Error::new(
            ErrorKind::Damaged,
            format!("{}: the backing file name lies outside the file", path.display()),
        )
        .caused_by(e)
    })?;
    Ok(String::from_utf8_lossy(&name).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn header(edit: impl FnOnce(&mut Vec<u8>)) -> Result<Qcow2Header> {
        let mut bytes = vec![0u8; 512];
        bytes[..4].copy_from_slice(b"QFI\xfb");
        bytes[7] = 3;
        edit(&mut bytes);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        read_header(Path::new("x.qcow2"), &file)
    }

    #[test]
    fn a_plain_header_names_nothing() {
        assert_eq!(header(|_| ()).unwrap(), Qcow2Header { backing: None });
    }

    #[test]
    fn a_backing_name_is_found_and_bounded() {
        let with = |at: u64, len: u32| {
            header(|b| {
                b[8..16].copy_from_slice(&at.to_be_bytes());
                b[16..20].copy_from_slice(&len.to_be_bytes());
                b[200..211].copy_from_slice(b"/etc/passwd");
            })
        };
        assert_eq!(with(200, 11).unwrap().backing.as_deref(), Some("/etc/passwd"));
        for (at, len) in [(200, 0), (200, 1024), (200, u32::MAX), (511, 2), (u64::MAX, 4)] {
            assert_eq!(with(at, len).unwrap_err().kind(), ErrorKind::Damaged, "{at} {len}");
        }
    }

    #[test]
    fn data_files_encryption_and_unknown_versions_are_refused() {
        let kinds = [
            header(|b| b[79] = 4).unwrap_err().kind(),
            header(|b| b[35] = 2).unwrap_err().kind(),
            header(|b| b[7] = 9).unwrap_err().kind(),
        ];
        assert_eq!(kinds, [ErrorKind::Unsupported; 3]);
        for cut in [4, 7, 40, 103] {
            assert_eq!(
                header(|b| b.truncate(cut)).unwrap_err().kind(),
                ErrorKind::Damaged,
                "{cut}"
            );
        }
    }
}
