//! What in a tree has a name, a kind, a size, an age.

use backstay_guestfs::fs::{NodeKind, Stat, Time};
use globset::{GlobBuilder, GlobMatcher};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::walk::{Limits, Step, Visit, Walk};
use super::{Report, Tree, stopped};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;

/// What is looked for: a node fits if all that is given here fits.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Fits if one of them does, or if there are none. A pattern with a `/` is compared with the path from
    /// the start (`**/nginx*/*.conf`; `*` stays within a component), others with the last name. Bytes, so
    /// names that are no text can be found too.
    pub names: Vec<Pattern>,
    /// Kinds; none means any.
    pub kinds: Vec<NodeKind>,
    /// Smallest size in bytes; only files have one.
    pub min_bytes: Option<u64>,
    /// Largest size in bytes; only files have one.
    pub max_bytes: Option<u64>,
    /// Content changed at or after this moment.
    pub newer: Option<Time>,
    /// Content changed before this moment.
    pub older: Option<Time>,
}

/// A pattern for names.
#[derive(Debug, Clone)]
pub struct Pattern {
    matcher: GlobMatcher,
    of_path: bool,
}

impl Pattern {
    /// `*`, `?`, `[a-z]`, `{a,b}`, and `**` for any number of directories. [`ErrorKind::Invalid`] if it is
    /// no pattern.
    pub fn new(text: &str, ignore_case: bool) -> Result<Self> {
        let text = text.strip_prefix('/').unwrap_or(text);
        let glob = GlobBuilder::new(text)
            .literal_separator(true)
            .case_insensitive(ignore_case)
            .build()
            .map_err(|error| {
                Error::new(ErrorKind::Invalid, "this is no pattern for names").caused_by(error)
            })?;
        Ok(Pattern { matcher: glob.compile_matcher(), of_path: text.contains('/') })
    }

    fn fits(&self, path: &[u8]) -> bool {
        let name = || path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let text = if self.of_path { path } else { name() };
        self.matcher.is_match(OsStr::from_bytes(text))
    }
}

impl Query {
    /// Whether a node is looked for. The start itself has no name, and fits none.
    pub fn fits(&self, visit: &Visit) -> bool {
        let Stat { kind, size_bytes, modified, .. } = visit.stat;
        self.fits_listed(&visit.path, kind, size_bytes, modified)
    }

    /// The same for what is known of a node without its file system.
    pub fn fits_listed(
        &self,
        path: &[u8],
        kind: NodeKind,
        size_bytes: u64,
        modified: Time,
    ) -> bool {
        let sized = self.min_bytes.is_none() && self.max_bytes.is_none()
            || kind == NodeKind::File
                && self.min_bytes.is_none_or(|min| size_bytes >= min)
                && self.max_bytes.is_none_or(|max| size_bytes <= max);
        sized
            && (self.kinds.is_empty() || self.kinds.contains(&kind))
            && self.newer.is_none_or(|newer| modified >= newer)
            && self.older.is_none_or(|older| modified < older)
            && (self.names.is_empty() || self.names.iter().any(|name| name.fits(path)))
    }
}

/// Gives `found` every node that fits, directories before what is in them; an error of it ends the search.
/// What cannot be read is in the report: nothing there was searched.
pub fn find(
    tree: Tree<'_>,
    query: &Query,
    limits: Limits,
    monitor: &dyn Monitor,
    found: &mut dyn FnMut(&Visit) -> Result<()>,
) -> Result<Report> {
    let mut report = Report::default();
    let mut walk = Walk::new(tree, limits);
    while let Some(step) = walk.step()? {
        stopped(monitor)?;
        match step {
            Step::Node(visit) if visit.depth > 0 && query.fits(&visit) => found(&visit)?,
            Step::Node(_) | Step::Leave => {}
            Step::Problem { path, what, text } => report.note(&path, what, text),
        }
    }
    Ok(report)
}
