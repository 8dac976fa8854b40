//! Targets of links as paths.

use super::file::File;
use super::special::Target;
use super::{Ntfs, ROOT};
use crate::fs::utf16;
use crate::{Error, ErrorKind};

/// Where links to other drives and volumes lead: ntfs-3g has its users put links of these names there.
const OTHER_VOLUMES: &str = "/.NTFS-3G/";
/// Names in a path that is looked for.
const NAMES_MAX: usize = 256;
/// What the trait allows.
const TARGET_MAX: usize = 65_535;

impl Ntfs {
    /// The target of a link of `file` as a path of Unix: with slashes, and from the volume's root if it names a drive and is
    /// found on this volume, as ntfs-3g has it.
    pub(super) fn target(&self, file: &File, target: &Target) -> Result<Vec<u8>, Error> {
        let path = match target {
            Target::Unix(path) => path.clone(),
            Target::Relative(path) => slashes(path),
            Target::Absolute { volume, path } => self.absolute(volume, path)?,
        };
        if path.is_empty() || path.len() > TARGET_MAX {
            let text = format!("a link with a target of {} bytes", path.len());
            return Err(Error::damaged(format!("MFT record {}: {text}", file.number)));
        }
        Ok(path)
    }

    fn absolute(&self, volume: &[u16], path: &[u16]) -> Result<Vec<u8>, Error> {
        let unix = slashes(path);
        let letter = match volume {
            [] => return Ok(unix),
            [letter, colon] if *colon == u16::from(b':') => Some(*letter),
            _ => None,
        };
        let deeper = path.iter().any(|unit| *unit != u16::from(b'\\'));
        if letter.is_some() && deeper && self.is_here(path)? {
            return Ok(unix);
        }
        let unc = String::from_utf16_lossy(volume).eq_ignore_ascii_case("UNC");
        let mut text = if unc { b"/".to_vec() } else { OTHER_VOLUMES.as_bytes().to_vec() };
        match letter {
            Some(letter) => {
                let upper = u8::try_from(letter).map_or(letter, |l| l.to_ascii_uppercase().into());
                text.extend(utf16::to_wtf8([upper]));
                text.push(b':');
            }
            None if unc => {}
            None => text.extend(slashes(volume)),
        }
        text.extend(unix);
        // Volumes are named with a last backslash.
        if text.len() > 1 && text.ends_with(b"/") {
            text.pop();
        }
        Ok(text)
    }

    /// Whether this volume has something at `path`.
    fn is_here(&self, path: &[u16]) -> Result<bool, Error> {
        let mut at = ROOT;
        let names = path.split(|unit| *unit == u16::from(b'\\')).filter(|name| !name.is_empty());
        for (i, name) in names.enumerate() {
            match self.child(at, name) {
                Ok(number) if i < NAMES_MAX => at = number,
                Ok(_) => return Ok(false),
                // Behind another link nothing is looked for.
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                    return Ok(false);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }
}

fn slashes(path: &[u16]) -> Vec<u8> {
    let slash = |unit: &u16| if *unit == u16::from(b'\\') { u16::from(b'/') } else { *unit };
    utf16::to_wtf8(path.iter().map(slash))
}
