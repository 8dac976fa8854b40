//! NBD URIs (doc/uri.md of the NBD project): `nbd://host[:port]/export`,
//! `nbd+unix:///export?socket=path`.

use std::fmt;
use std::path::PathBuf;

use crate::error::{Error, ErrorKind};
use crate::proto::{DEFAULT_PORT, MAX_STRING_BYTES};

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A host name or address, and a port.
    Tcp(String, u16),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// A server and an export of it. Shown as a URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdUri {
    /// The server.
    pub address: Address,
    /// The export; empty for the default one.
    pub export: String,
}

impl NbdUri {
    /// An export behind a socket in the file system.
    pub fn unix(socket: impl Into<PathBuf>, export: impl Into<String>) -> Self {
        Self { address: Address::Unix(socket.into()), export: export.into() }
    }

    /// An export of a host.
    pub fn tcp(host: impl Into<String>, port: u16, export: impl Into<String>) -> Self {
        Self { address: Address::Tcp(host.into(), port), export: export.into() }
    }

    /// Reads a URI. TLS (`nbds`) and other transports are [`ErrorKind::Invalid`].
    pub fn parse(uri: &str) -> Result<Self, Error> {
        let bad = |why: &str| Error::new(ErrorKind::Invalid, format!("{uri}: {why}"));
        let Some((scheme, rest)) = uri.split_once("://") else {
            return Err(bad(
                "not an NBD URI (nbd://host:port/export, nbd+unix:///export?socket=path)",
            ));
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let decode = |text: &str| percent_decode(text).ok_or_else(|| bad("bad percent-encoding"));
        let export = decode(export)?;
        if export.len() > MAX_STRING_BYTES || export.contains('\0') {
            return Err(bad("the export's name is too long or contains a NUL"));
        }
        let address = match scheme {
            "nbd" => {
                let (host, port) =
                    host_and_port(authority).ok_or_else(|| bad("bad host or port"))?;
                Address::Tcp(host, port)
            }
            "nbd+unix" => {
                let socket = query
                    .split('&')
                    .find_map(|part| part.strip_prefix("socket="))
                    .ok_or_else(|| bad("socket=PATH is missing"))?;
                Address::Unix(decode(socket)?.into())
            }
            _ => return Err(bad("only nbd and nbd+unix are supported")),
        };
        Ok(Self { address, export })
    }
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`; nothing is the machine itself.
fn host_and_port(authority: &str) -> Option<(String, u16)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, rest.strip_prefix(':').or(if rest.is_empty() { Some("") } else { None })?)
        }
        None => authority.rsplit_once(':').unwrap_or((authority, "")),
    };
    let port = if port.is_empty() { DEFAULT_PORT } else { port.parse().ok()? };
    let host = if host.is_empty() { "localhost" } else { host };
    Some((host.to_owned(), port))
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = percent_encode(&self.export);
        match &self.address {
            Address::Tcp(host, port) if host.contains(':') => {
                write!(f, "nbd://[{host}]:{port}/{export}")
            }
            Address::Tcp(host, port) => write!(f, "nbd://{host}:{port}/{export}"),
            Address::Unix(path) => {
                let path = percent_encode(&path.to_string_lossy());
                write!(f, "nbd+unix:///{export}?socket={path}")
            }
        }
    }
}

/// Encodes all but what RFC 3986 leaves alone, and `/`.
pub(crate) fn percent_encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(byte.into());
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            let digits = std::str::from_utf8(&digits).ok()?;
            out.push(u8::from_str_radix(digits, 16).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_go_both_ways() {
        for (text, uri) in [
            ("nbd://localhost:10809/", NbdUri::tcp("localhost", 10809, "")),
            ("nbd://10.0.0.1:99/disk0", NbdUri::tcp("10.0.0.1", 99, "disk0")),
            ("nbd://[::1]:10809/a/b", NbdUri::tcp("::1", 10809, "a/b")),
            ("nbd+unix:///x%20y?socket=/run/a%3Fb", NbdUri::unix("/run/a?b", "x y")),
        ] {
            assert_eq!(NbdUri::parse(text).unwrap(), uri);
            assert_eq!(uri.to_string(), text);
        }
        assert_eq!(NbdUri::parse("nbd://h").unwrap(), NbdUri::tcp("h", 10809, ""));
        assert_eq!(NbdUri::parse("nbd://[::1]").unwrap(), NbdUri::tcp("::1", 10809, ""));
        assert_eq!(NbdUri::parse("nbd:///x").unwrap(), NbdUri::tcp("localhost", 10809, "x"));
    }

    #[test]
    fn bad_uris_are_errors() {
        for text in [
            "",
            "nbd",
            "nbd:unix:/x",
            "nbds://h/",
            "nbd+unix:///x",
            "nbd://h:99999/",
            "nbd://h:x/",
            "nbd://h/%",
            "nbd://h/%zz",
            "nbd://h/%ff",
            "nbd://[::1",
            "nbd://[::1]x/",
            "nbd://h/%00",
        ] {
            let error = NbdUri::parse(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
        }
    }
}
