use std::fmt;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::storage::S3Location;

/// Where a repository is: a directory, written as a path or as `file:///path`, or a bucket of
/// S3-compatible storage, written as [`S3Location`] says. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Directory(PathBuf),
    S3(S3Location),
}

impl Location {
    /// Reads what a person wrote. A relative path is taken from the working directory. Other
    /// schemes and addresses that hold a password are refused.
    pub fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::new(ErrorKind::Invalid, "the repository address is empty"));
        }
        let path = match text.split_once("://") {
            Some(("file", path)) if path.starts_with('/') => Path::new(path),
            Some(("file", _)) => {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("'{text}': write file:///path, with three slashes"),
                ));
            }
            Some(("s3", rest)) => return S3Location::parse(rest).map(Self::from),
            Some((scheme, _)) => {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!(
                        "'{scheme}://' repositories are not supported; use a directory or \
                         s3://BUCKET/PREFIX"
                    ),
                ));
            }
            None => Path::new(text),
        };
        Ok(Self::from_path(path))
    }

    /// The directory `path`; a relative one is taken from the working directory.
    pub fn from_path(path: &Path) -> Self {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let clean = absolute.components().filter(|c| !matches!(c, Component::CurDir)).collect();
        Self { place: Place::Directory(clean) }
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// The directory, if it is one.
    pub fn directory(&self) -> Option<&Path> {
        match &self.place {
            Place::Directory(path) => Some(path),
            Place::S3(_) => None,
        }
    }

    /// The bucket and where it is, if it is on S3-compatible storage.
    pub fn s3(&self) -> Option<&S3Location> {
        match &self.place {
            Place::Directory(_) => None,
            Place::S3(s3) => Some(s3),
        }
    }
}

impl From<S3Location> for Location {
    fn from(s3: S3Location) -> Self {
        Self { place: Place::S3(s3) }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Directory(path) => write!(f, "file://{}", path.display()),
            Place::S3(s3) => s3.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let directory = |text: &str| Location::parse(text).unwrap().directory().unwrap().to_owned();
        assert_eq!(directory("file:///srv/bk"), Path::new("/srv/bk"));
        assert_eq!(Location::parse("/srv/./bk/").unwrap().to_string(), "file:///srv/bk");
        assert!(directory("rel").is_absolute());
        let s3 = Location::parse("s3://bucket/a/b").unwrap();
        assert_eq!((s3.directory(), s3.s3().unwrap().bucket()), (None, "bucket"));
        assert_eq!(s3.to_string(), "s3://bucket/a/b");
        for bad in ["", "s3://", "sftp://host/x", "file://srv", "https://u:p@h/x"] {
            assert_eq!(Location::parse(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
    }
}
