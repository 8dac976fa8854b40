//! NBD URIs (doc/uri.md of the NBD project): `nbd://host[:port]/export`,
//! `nbd+unix:///export?socket=path`; with `nbds` and `nbds+unix` in TLS.

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

/// What a URI says about TLS; what it leaves out is up to the client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsParameters {
    /// `tls-certificates`: a directory with `ca-cert.pem`, and `client-cert.pem` and `client-key.pem`
    /// if the client has to show who it is.
    pub certificates: Option<PathBuf>,
    /// `tls-hostname`: the name in the server's certificate, if it is not the one that is connected to.
    pub hostname: Option<String>,
}

/// A server and an export of it. Shown as a URI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdUri {
    /// The server.
    pub address: Address,
    /// The export; empty for the default one.
    pub export: String,
    /// Set for `nbds` and `nbds+unix`: nothing but TLS will do.
    pub tls: Option<TlsParameters>,
}

impl NbdUri {
    /// An export behind a socket in the file system.
    pub fn unix(socket: impl Into<PathBuf>, export: impl Into<String>) -> Self {
        Self { address: Address::Unix(socket.into()), export: export.into(), tls: None }
    }

    /// An export of a host.
    pub fn tcp(host: impl Into<String>, port: u16, export: impl Into<String>) -> Self {
        Self { address: Address::Tcp(host.into(), port), export: export.into(), tls: None }
    }

    /// Reads a URI. Transports other than TCP and Unix sockets are [`ErrorKind::Invalid`].
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
        let parameter = |name: &str| {
            let parts = query.split('&').filter_map(|part| part.split_once('='));
            let found = parts.filter(|(key, _)| *key == name).map(|(_, value)| value).next();
            found.map(decode).transpose()
        };
        let (tls, transport) = match scheme.strip_prefix("nbds") {
            Some(transport) => (true, transport),
            None => (false, scheme.strip_prefix("nbd").unwrap_or("?")),
        };
        let address = match transport {
            "" => {
                let (host, port) =
                    host_and_port(authority).ok_or_else(|| bad("bad host or port"))?;
                Address::Tcp(host, port)
            }
            "+unix" => {
                let socket = parameter("socket")?.ok_or_else(|| bad("socket=PATH is missing"))?;
                Address::Unix(socket.into())
            }
            _ => return Err(bad("only nbd, nbds, nbd+unix and nbds+unix are supported")),
        };
        let tls = if tls {
            let certificates = parameter("tls-certificates")?.map(PathBuf::from);
            Some(TlsParameters { certificates, hostname: parameter("tls-hostname")? })
        } else {
            None
        };
        Ok(Self { address, export, tls })
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
        let scheme = if self.tls.is_some() { "nbds" } else { "nbd" };
        let mut query = Vec::new();
        match &self.address {
            Address::Tcp(host, port) if host.contains(':') => {
                write!(f, "{scheme}://[{host}]:{port}/{export}")?;
            }
            Address::Tcp(host, port) => write!(f, "{scheme}://{host}:{port}/{export}")?,
            Address::Unix(path) => {
                write!(f, "{scheme}+unix:///{export}")?;
                query.push(format!("socket={}", percent_encode(&path.to_string_lossy())));
            }
        }
        if let Some(tls) = &self.tls {
            let dir = tls.certificates.as_ref().map(|dir| dir.to_string_lossy().into_owned());
            for (key, value) in [("tls-certificates", dir), ("tls-hostname", tls.hostname.clone())]
            {
                query.extend(value.map(|value| format!("{key}={}", percent_encode(&value))));
            }
        }
        let mark = if query.is_empty() { "" } else { "?" };
        write!(f, "{mark}{}", query.join("&"))
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
        let tls = TlsParameters {
            certificates: Some("/etc/a b".into()),
            hostname: Some("disks.example".to_owned()),
        };
        let parameters = "tls-certificates=/etc/a%20b&tls-hostname=disks.example";
        for (text, uri) in [
            (format!("nbds://h:1/x?{parameters}"), NbdUri::tcp("h", 1, "x")),
            (format!("nbds+unix:///x?socket=/s&{parameters}"), NbdUri::unix("/s", "x")),
        ] {
            let uri = NbdUri { tls: Some(tls.clone()), ..uri };
            assert_eq!(NbdUri::parse(&text).unwrap(), uri);
            assert_eq!(uri.to_string(), text);
        }
        let bare = NbdUri { tls: Some(TlsParameters::default()), ..NbdUri::tcp("h", 10809, "") };
        assert_eq!(NbdUri::parse("nbds://h").unwrap(), bare);
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
            "nbdss://h/",
            "nbd+vsock://3/",
            "nbds+unix:///x",
            "http://h/",
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
