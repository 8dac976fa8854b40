//! Exports of NBD servers as sources: a hypervisor's, or a mount of ours.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backstay_blockdev::BlockDevice;
use backstay_nbd::client::{Client, NbdUri};

use super::{ImageFormat, OpenSource, SourceSpec};
use crate::error::{Error, ErrorKind, Result};

/// The beginnings of NBD URIs.
const SCHEMES: [&str; 4] = ["nbd://", "nbds://", "nbd+unix://", "nbds+unix://"];
/// A server that is restarted meanwhile is waited for so long. Its export must be the same then: the
/// client looks at its size, and nobody writes to what is backed up.
const RECONNECT: Duration = Duration::from_secs(30);

/// The URI, if that is what a source is named by.
pub(super) fn uri(path: &Path) -> Option<&str> {
    path.to_str().filter(|text| SCHEMES.iter().any(|scheme| text.starts_with(scheme)))
}

/// Connects to an export. One that lets others write counts as in use.
pub(super) fn open(spec: &SourceSpec, uri: &str) -> Result<OpenSource> {
    if spec.format.is_some_and(|format| format != ImageFormat::Raw) || !spec.backing.is_empty() {
        let text = format!("{uri}: an export is a raw disk, whatever the image behind it");
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    let parsed = NbdUri::parse(uri).map_err(|e| failed(uri, e))?;
    let client = Client { reconnect_timeout: RECONNECT, ..Client::default() };
    let remote = client.attach(&parsed).map_err(|e| failed(uri, e))?;
    let in_use = remote.caps().writable;
    if remote.geometry().size_bytes == 0 {
        let text = format!("{uri} is empty: a disk has at least one byte");
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    Ok(OpenSource { in_use, ..OpenSource::of_device(Arc::new(remote)) })
}

fn failed(uri: &str, error: backstay_nbd::Error) -> Error {
    use backstay_nbd::ErrorKind as Nbd;
    let kind = match error.kind() {
        Nbd::Invalid => ErrorKind::Invalid,
        Nbd::Refused => ErrorKind::Denied,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("{uri} cannot be read")).caused_by(error)
}
