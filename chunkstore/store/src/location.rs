use std::fmt;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// Where a repository is: a directory, written as a path or as `file:///path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    path: PathBuf,
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
            Some((scheme, _)) => {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("'{scheme}://' repositories are not supported; use a directory"),
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
        Self { path: clean }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file://{}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        assert_eq!(Location::parse("file:///srv/bk").unwrap().path(), Path::new("/srv/bk"));
        assert_eq!(Location::parse("/srv/./bk/").unwrap().to_string(), "file:///srv/bk");
        assert!(Location::parse("rel").unwrap().path().is_absolute());
        for bad in ["", "s3://bucket/x", "file://srv", "https://u:p@h/x"] {
            assert_eq!(Location::parse(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
    }
}
