//! Naming files in a backup: `MACHINE[@POINT][:VOLUME][//PATH]`.
//!
//! | written | means |
//! | --- | --- |
//! | `web01`, `web01@-2d` | what is on the disks of that point |
//! | `web01//etc/nginx` | a path as the guest has it, by its own table of mounts |
//! | `web01:disk0p2//etc`, `web01:vg0/root//etc` | a path on one volume |
//!
//! The point is named as in [`Name`].

use std::fmt;

use crate::error::{Error, ErrorKind, Result};
use crate::name::Name;

/// A parsed name. `Display` gives back what was written.
#[derive(Debug, Clone, PartialEq)]
pub struct FileName {
    text: String,
    /// Machine and point.
    pub point: Name,
    /// The volume, if one was named.
    pub volume: Option<String>,
    /// The path, with a slash at its beginning, if there is one; any bytes, as in the guest.
    pub path: Option<Vec<u8>>,
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FileName {
    /// What `written` names.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if it is no such name, with the likeliest right one.
    pub fn parse(written: &[u8]) -> Result<Self> {
        let text = &*String::from_utf8_lossy(written);
        // Neither machines nor points nor volumes have two slashes in their names.
        let at = written.windows(2).position(|pair| pair == b"//");
        let path = at.and_then(|at| written.get(at + 1..)).map(<[u8]>::to_vec);
        let front =
            std::str::from_utf8(written.get(..at.unwrap_or(written.len())).unwrap_or_default())
                .map_err(|_| {
                    let text =
                        format!("`{}` names no backup: it is not UTF-8", text.escape_debug());
                    Error::new(ErrorKind::Invalid, text)
                })?;
        let (point, volume) = match front.parse::<Name>() {
            Ok(mut name) => {
                let volume = name.disk.take();
                (name, volume)
            }
            // A volume may have a slash in its name, which a disk has not.
            Err(error) => match front.rsplit_once(':') {
                Some((front, volume)) if volume.contains('/') => {
                    let name: Name = front.parse()?;
                    if name.disk.is_some() {
                        return Err(error);
                    }
                    (name, Some(checked(text, volume)?))
                }
                _ => return Err(misplaced(text).unwrap_or(error)),
            },
        };
        Ok(Self { text: text.to_owned(), point, volume, path })
    }
}

fn checked(text: &str, volume: &str) -> Result<String> {
    let bad = volume.len() > 512
        || volume.starts_with('/')
        || volume.ends_with('/')
        || volume.chars().any(|c| c.is_control() || c == '@');
    if bad {
        let text = format!("`{}` names no volume", text.escape_debug());
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    Ok(volume.to_owned())
}

/// The likeliest mistake: a single slash before the path.
fn misplaced(text: &str) -> Option<Error> {
    let (front, path) = text.split_once('/')?;
    let name: Name = front.trim_end_matches(':').parse().ok()?;
    let disk = name.disk.as_deref().map(|d| format!(":{d}")).unwrap_or_default();
    let front = front.strip_suffix(&disk).unwrap_or(front).trim_end_matches(':');
    Some(Error::new(
        ErrorKind::Invalid,
        format!(
            "`{}` names no file: two slashes stand before a path, as in {front}{disk}//{path}",
            text.escape_debug()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::PointSelector;

    fn parsed(text: &str) -> (Option<String>, Option<String>, Option<String>) {
        let name = FileName::parse(text.as_bytes()).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(name.to_string(), text);
        (name.point.machine, name.volume, name.path.map(|p| String::from_utf8(p).unwrap()))
    }

    #[test]
    fn what_is_named() {
        let some = |s: &str| Some(s.to_owned());
        for (text, machine, volume, path) in [
            ("web01", some("web01"), None, None),
            ("web01//", some("web01"), None, some("/")),
            ("web01//etc/nginx", some("web01"), None, some("/etc/nginx")),
            ("web01@-1w//etc//x", some("web01"), None, some("/etc//x")),
            ("web01:disk0p2//etc", some("web01"), some("disk0p2"), some("/etc")),
            ("web01:vg0/root", some("web01"), some("vg0/root"), None),
            ("web01:vg0/root//a:b@c", some("web01"), some("vg0/root"), some("/a:b@c")),
            ("web01@2026-11-20T03:00:vg0/root//x", some("web01"), some("vg0/root"), some("/x")),
            ("@b7f3k2:disk0//x", None, some("disk0"), some("/x")),
        ] {
            assert_eq!(parsed(text), (machine, volume, path), "{text}");
        }
        let name = FileName::parse(b"web01@2026-11-20T03:00//x\xff").unwrap();
        assert_eq!(name.path.as_deref(), Some(&b"/x\xff"[..]));
        assert!(matches!(name.point.point, PointSelector::Until(_)));
    }

    #[test]
    fn what_is_no_name() {
        for text in [
            "",
            "//etc",
            "web01:/x",
            "web01:a/",
            "web01:a/b:c/d",
            "web01:disk0:vg/x",
            "web01:\u{1}/x",
        ] {
            assert!(FileName::parse(text.as_bytes()).is_err(), "{text}");
        }
        let hint = FileName::parse(b"web01/etc/passwd").unwrap_err().to_string();
        assert!(hint.contains("web01//etc/passwd"), "{hint}");
    }
}
