use std::fmt;
use std::net::IpAddr;

use crate::error::{Error, ErrorKind, Result};

/// A place on S3-compatible storage:
/// `s3://BUCKET/PREFIX?endpoint=URL&region=REGION&path-style=true`.
///
/// Everything but the bucket may be left out. Credentials are never part of it: they come from
/// where AWS's own tools look for them. Plain HTTP is for this machine only, unless the address
/// says `allow-http=true`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Location {
    bucket: String,
    prefix: String,
    endpoint: Option<String>,
    region: Option<String>,
    path_style: Option<bool>,
    allow_http: bool,
}

/// Longest address: names of buckets and keys are bounded at 63 and 1,024 bytes.
const ADDRESS_MAX: usize = 4096;
/// Longest prefix: with it the longest object's name stays below the 1,024 bytes of a key.
const PREFIX_MAX: usize = 900;

impl S3Location {
    /// Reads what stands after `s3://`.
    pub(crate) fn parse(rest: &str) -> Result<Self> {
        if rest.len() > ADDRESS_MAX {
            return Err(invalid("the address is too long"));
        }
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        let mut location = Self {
            bucket: check_bucket(bucket)?.to_owned(),
            prefix: check_prefix(prefix)?,
            endpoint: None,
            region: None,
            path_style: None,
            allow_http: false,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "endpoint" => location.endpoint = Some(check_endpoint(value)?),
                "region" => location.region = Some(check_region(value)?),
                "path-style" => location.path_style = Some(truth(name, value)?),
                "allow-http" => location.allow_http = truth(name, value)?,
                // The value is not repeated: it may be a secret.
                _ => {
                    return Err(invalid(format!(
                        "'{name}' is no option of an s3:// address; there are endpoint, region, \
                         path-style and allow-http (keys come from the environment)"
                    )));
                }
            }
        }
        if let Some(endpoint) = &location.endpoint {
            location.check_transport(endpoint)?;
        }
        Ok(location)
    }

    /// The bucket.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// What stands before the name of every object, without slashes at its ends; may be empty.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(crate) fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_deref()
    }

    pub(crate) fn region(&self) -> Option<&str> {
        self.region.as_deref()
    }

    /// Whether the bucket stands in the path of a request and not in the host's name. Unless told,
    /// it does everywhere but at AWS, and there too where a name with dots would fit no certificate.
    pub(crate) fn path_style(&self, endpoint: Option<&str>) -> bool {
        self.path_style.unwrap_or(endpoint.is_some() || self.bucket.contains('.'))
    }

    /// Refuses plain HTTP to another machine, where anybody between could read and change what is
    /// sent. `Invalid`.
    pub(crate) fn check_transport(&self, endpoint: &str) -> Result<()> {
        let Some(rest) = endpoint.strip_prefix("http://") else { return Ok(()) };
        if self.allow_http || is_loopback(host_of(rest)) {
            return Ok(());
        }
        Err(invalid(format!(
            "{endpoint} is not encrypted; use https://, or add allow-http=true if the network \
             is trusted"
        )))
    }
}

impl fmt::Display for S3Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        let options = [
            ("endpoint", self.endpoint.clone()),
            ("region", self.region.clone()),
            ("path-style", self.path_style.map(|yes| yes.to_string())),
            ("allow-http", self.allow_http.then(|| "true".to_owned())),
        ];
        let mut between = '?';
        for (name, value) in options.iter().filter_map(|(n, v)| Some((n, v.as_ref()?))) {
            write!(f, "{between}{name}={value}")?;
            between = '&';
        }
        Ok(())
    }
}

fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, text)
}

fn check_bucket(name: &str) -> Result<&str> {
    if name.contains('@') {
        return Err(invalid(
            "an s3:// address holds no user and no key: they come from the environment",
        ));
    }
    let fits = (3..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if fits { Ok(name) } else { Err(invalid(format!("'{name}' cannot be a bucket's name"))) }
}

/// Only characters that mean the same in every server, proxy and signature.
fn check_prefix(text: &str) -> Result<String> {
    let text = text.trim_matches('/');
    let plain = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b))
    };
    if text.is_empty() || (text.len() <= PREFIX_MAX && text.split('/').all(plain)) {
        return Ok(text.to_owned());
    }
    Err(invalid(format!(
        "'{text}' cannot be a prefix: use letters, digits and -._~ between single slashes"
    )))
}

fn check_endpoint(value: &str) -> Result<String> {
    let rest = value.strip_prefix("https://").or_else(|| value.strip_prefix("http://"));
    let Some(rest) = rest else {
        return Err(invalid(format!("'{value}': an endpoint starts with https:// or http://")));
    };
    if rest.contains('@') {
        return Err(invalid("an endpoint holds no user and no password"));
    }
    let rest = rest.trim_end_matches('/');
    let plain =
        |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':' | b'[' | b']' | b'/');
    if host_of(rest).is_empty() || !rest.bytes().all(plain) {
        return Err(invalid(format!("'{value}' is no endpoint: https://HOST:PORT is one")));
    }
    Ok(value.trim_end_matches('/').to_owned())
}

fn check_region(value: &str) -> Result<String> {
    let fits = (1..=64).contains(&value.len())
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if fits { Ok(value.to_owned()) } else { Err(invalid(format!("'{value}' is no region"))) }
}

fn truth(name: &str, value: &str) -> Result<bool> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(invalid(format!("{name} is true or false, not '{value}'"))),
    }
}

/// The host in `HOST`, `HOST:PORT`, `[V6]:PORT`, each with or without a path.
fn host_of(rest: &str) -> &str {
    let authority = rest.split('/').next().unwrap_or(rest);
    match authority.strip_prefix('[').and_then(|v6| v6.split_once(']')) {
        Some((v6, _)) => v6,
        None => authority.split(':').next().unwrap_or(authority),
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(rest: &str) -> Result<String> {
        S3Location::parse(rest).map(|l| l.to_string())
    }

    #[test]
    fn what_is_shown_reads_back_the_same() {
        for text in [
            "bucket",
            "bucket/a/b-c_d.e~f",
            "bucket/a?endpoint=https://s3.example.com&region=eu-1&path-style=false",
            "bucket?endpoint=http://127.0.0.1:9000&path-style=true",
            "bucket?endpoint=http://[::1]:9000",
            "bucket?endpoint=http://ceph.lan:7480&allow-http=true",
        ] {
            assert_eq!(parse(text).unwrap(), format!("s3://{text}"));
        }
        assert_eq!(parse("bucket//a/").unwrap(), "s3://bucket/a");
        assert_eq!(parse("bucket/?region=x&").unwrap(), "s3://bucket?region=x");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let long = format!("bucket/{}", "a".repeat(901));
        for bad in [
            "",
            "ab",
            "/prefix",
            "buck et",
            "bucket/a//b",
            "bucket/../x",
            "bucket/a b",
            "bucket/%2e",
            long.as_str(),
            "bucket?endpoint=ftp://host",
            "bucket?endpoint=https://",
            "bucket?endpoint=https://ho st",
            "bucket?region=",
            "bucket?path-style=yes",
            "bucket?allow-http=1",
        ] {
            assert_eq!(parse(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
    }

    #[test]
    fn no_secret_is_taken_or_repeated() {
        for bad in [
            "AKIA:topsecret@bucket/x",
            "bucket?secret-access-key=topsecret",
            "bucket?endpoint=https://user:topsecret@host",
        ] {
            let error = parse(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(!error.to_string().contains("topsecret"), "{error}");
        }
    }

    #[test]
    fn plain_http_stays_on_this_machine() {
        for fine in ["http://127.0.0.1:1", "http://localhost", "http://[::1]:2", "https://host"] {
            parse(&format!("bucket?endpoint={fine}")).unwrap();
        }
        for bad in ["http://10.0.0.1", "http://localhost.example.com", "http://127.0.0.1.nip.io"] {
            parse(&format!("bucket?endpoint={bad}")).unwrap_err();
            parse(&format!("bucket?endpoint={bad}&allow-http=true")).unwrap();
        }
    }

    #[test]
    fn the_bucket_is_in_the_path_but_at_aws() {
        let style = |text: &str, endpoint| S3Location::parse(text).unwrap().path_style(endpoint);
        assert!(!style("bucket", None));
        assert!(style("my.bucket", None));
        assert!(style("bucket", Some("https://host")));
        assert!(!style("bucket?path-style=false", Some("https://host")));
    }
}
