//! `backstay diff` of files.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;

use backstay_core::compare;
use backstay_core::file_name::FileName;
use backstay_core::files::diff::{self, Change, Compare, Options};
use backstay_core::files::{Report, Tree, shown};
use backstay_core::monitor::Silent;
use backstay_daemon::{FoundTree, PointFiles};
use backstay_guestfs::fs::{NodeKind, Stat};
use backstay_store::{RecoveryPoint, Repository};
use serde::Serialize;

use super::Args;
use crate::browse;
use crate::cmd::ls::kind_name;
use crate::context::Ctx;
use crate::exit::{CliError, Exit};
use crate::output::{Stream, clean};
use crate::progress::Reporter;
use crate::signals::Signals;
use crate::units;

/// Most changes that are told; beyond it they are only counted.
const CHANGES_MAX: usize = 1 << 20;
/// Problems shown to people.
const PROBLEMS_SHOWN: usize = 20;

/// How much of files is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Reads {
    /// Equal size and time of change count as equal content
    Nothing,
    /// Files of equal size whose time of change differs
    Touched,
    /// All files of equal size
    All,
}

#[derive(Serialize)]
struct Document {
    a: String,
    b: String,
    path: String,
    identical: bool,
    added: u64,
    removed: u64,
    changed: u64,
    changes: Vec<ChangeView>,
    /// There are more than are listed.
    truncated: bool,
    problems: Vec<Problem>,
    problems_total: u64,
}

#[derive(Serialize)]
struct ChangeView {
    path: String,
    /// `added`, `removed`, `kind`, `content` (with metadata or without), `metadata`
    change: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<Side>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Side>,
}

#[derive(Serialize, PartialEq)]
struct Side {
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    size_bytes: u64,
}

#[derive(Serialize)]
struct Problem {
    path: String,
    why: String,
}

/// One of the two.
struct Opened {
    point: RecoveryPoint,
    found: FoundTree,
}

pub(super) fn run(ctx: &Ctx, args: &Args) -> Result<Exit, CliError> {
    let (a, mut b) = (FileName::parse(args.a.as_bytes())?, FileName::parse(args.b.as_bytes())?);
    let Some(path) = a.path.clone() else {
        let told = CliError::usage("the first name has no path, and the second has one");
        return Err(told.what(a.to_string()).hint("MACHINE@POINT//PATH"));
    };
    if b.path.is_none() && b.volume.is_none() {
        b.volume.clone_from(&a.volume);
    }
    let b_path = b.path.clone().unwrap_or_else(|| path.clone());
    let repository = ctx.open()?;
    let (first, second) = (open(&repository, &a, &path)?, open(&repository, &b, &b_path)?);
    let mut document = Document::new(&first, &second);
    let signals = Signals::listen()?;
    let same_place = a.volume == b.volume && path == b_path;
    if !(same_place && same_disks(&repository, &first.point, &second.point)?) {
        let reporter = Reporter::new(&ctx.global, Some(signals.clone()));
        let options = Options { compare: args.read.into(), ..Options::default() };
        let report =
            diff::diff(first.tree(), second.tree(), options, &reporter, &mut |path, change| {
                document.add(path, change);
                Ok(())
            })
            .map_err(|error| crate::cmd::stopped(error, &signals).what(a.to_string()))?;
        reporter.finish();
        document.end(&report);
    }
    ctx.out.summary(Stream::Stdout, &document, |to| text(to, &document))?;
    Ok(match () {
        () if document.problems_total > 0 || document.truncated => Exit::Partial,
        () if args.exit_code && !document.identical => Exit::Differs,
        () => Exit::Done,
    })
}

impl From<Reads> for Compare {
    fn from(reads: Reads) -> Self {
        match reads {
            Reads::Nothing => Self::Metadata,
            Reads::Touched => Self::Doubtful,
            Reads::All => Self::All,
        }
    }
}

fn open(repository: &Repository, name: &FileName, path: &[u8]) -> Result<Opened, CliError> {
    let point = browse::point(repository, name)?;
    let files = PointFiles::open(repository, &point, browse::reader()?)?;
    let found = files
        .tree(name.volume.as_deref(), path, true)
        .map_err(|error| CliError::from(error).what(name.to_string()))?;
    Ok(Opened { point, found })
}

impl Opened {
    fn tree(&self) -> Tree<'_> {
        Tree { fs: &*self.found.fs, node: self.found.node }
    }
}

/// Whether all disks are the same, so that nothing in them can differ. Looks at the store's own trees only.
fn same_disks(
    repository: &Repository,
    a: &RecoveryPoint,
    b: &RecoveryPoint,
) -> Result<bool, CliError> {
    if a.id == b.id {
        return Ok(true);
    }
    Ok(compare::points(repository, a, b, None, &Silent)?.is_empty())
}

impl From<&Stat> for Side {
    fn from(stat: &Stat) -> Self {
        Self {
            kind: kind_name(stat.kind),
            mode: format!("{:04o}", stat.mode),
            uid: stat.uid,
            gid: stat.gid,
            size_bytes: stat.size_bytes,
        }
    }
}

impl Document {
    fn new(a: &Opened, b: &Opened) -> Self {
        let mut problems = Vec::new();
        for side in [a, b] {
            for left in side.found.fs.left_out(&side.found.path) {
                problems.push(Problem { path: left.path.clone(), why: left.why.clone() });
            }
        }
        Self {
            a: a.point.id.to_string(),
            b: b.point.id.to_string(),
            path: browse::text(&a.found.path),
            identical: true,
            added: 0,
            removed: 0,
            changed: 0,
            changes: Vec::new(),
            truncated: false,
            problems_total: problems.len() as u64,
            problems,
        }
    }

    fn add(&mut self, path: &[u8], change: Change) {
        self.identical = false;
        let (change, before, after) = match &change {
            Change::Added(stat) => ("added", None, Some(stat)),
            Change::Removed(stat) => ("removed", Some(stat), None),
            Change::Kind(before, after) => ("kind", Some(before), Some(after)),
            Change::Changed { before, after, content: true, .. } => {
                ("content", Some(before), Some(after))
            }
            Change::Changed { before, after, .. } => ("metadata", Some(before), Some(after)),
        };
        match change {
            "added" => self.added += 1,
            "removed" => self.removed += 1,
            _ => self.changed += 1,
        }
        if self.changes.len() >= CHANGES_MAX {
            self.truncated = true;
            return;
        }
        let (before, after) = (before.map(Side::from), after.map(Side::from));
        let path = if path.is_empty() { ".".to_owned() } else { browse::text(path) };
        self.changes.push(ChangeView { path, change, before, after });
    }

    fn end(&mut self, report: &Report) {
        for note in &report.notes {
            self.problems.push(Problem { path: shown(&note.path), why: note.text.clone() });
        }
        self.problems_total += report.totals.values().sum::<u64>();
    }
}

fn text(to: &mut String, document: &Document) {
    for change in &document.changes {
        let sign = match change.change {
            "added" => '+',
            "removed" => '-',
            "kind" => 'T',
            "content" => 'M',
            _ => 'm',
        };
        let side = change.after.as_ref().or(change.before.as_ref());
        let slash = match side {
            Some(side) if side.kind == kind_name(NodeKind::Directory) => "/",
            _ => "",
        };
        let _ = writeln!(to, "{sign} {}{slash}{}", clean(&change.path), what(change));
    }
    if document.identical {
        let _ = writeln!(to, "no difference");
    } else {
        let Document { added, removed, changed, .. } = document;
        let _ = writeln!(to, "{added} added, {removed} removed, {changed} changed");
    }
    for problem in document.problems.iter().take(PROBLEMS_SHOWN) {
        let _ = writeln!(to, "not compared: {}: {}", clean(&problem.path), clean(&problem.why));
    }
    let more = document.problems_total.saturating_sub(PROBLEMS_SHOWN as u64);
    if more > 0 {
        let _ = writeln!(to, "and {more} more that were not compared");
    }
}

/// What is different, in a few words.
fn what(change: &ChangeView) -> String {
    let (Some(before), Some(after)) = (&change.before, &change.after) else { return String::new() };
    let mut words = Vec::new();
    if before.kind != after.kind {
        words.push(format!("{} -> {}", before.kind, after.kind));
    } else if before.size_bytes != after.size_bytes && change.change == "content" {
        let (before, after) = (units::size(before.size_bytes), units::size(after.size_bytes));
        words.push(format!("{before} -> {after}"));
    }
    if before.mode != after.mode {
        words.push(format!("mode {} -> {}", before.mode, after.mode));
    }
    if (before.uid, before.gid) != (after.uid, after.gid) {
        words.push(format!("owner {}:{} -> {}:{}", before.uid, before.gid, after.uid, after.gid));
    }
    if words.is_empty() { String::new() } else { format!("  ({})", words.join(", ")) }
}
