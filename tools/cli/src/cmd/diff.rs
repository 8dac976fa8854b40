//! `backstay diff`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use backstay_core::compare::{self, DiskChange, PointChange};
use backstay_core::monitor::Silent;
use backstay_store::{DiffKind, RecoveryPoint};
use serde::Serialize;

mod files;

use crate::cmd::view;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Align, Stream, Table, clean};
use crate::units;

/// Compare two recovery points: their disks, or the files in them
///
/// Disks of equal names are compared without reading their data; with :DISK only that one. "added" is data where the first has
/// a hole, "removed" the reverse. Extents are as fine as the repository's
/// chunks: a changed byte shows as its whole chunk.
///
/// With //PATH the files there and below are compared, by their metadata first: + is only in the second, - only in the first, M has
/// other content, m other metadata, T is of another kind.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay diff web01@2026-11-20 web01@latest
  backstay diff @b7f3k2:disk0 @a91pd0:disk0 --extents
  backstay diff web01@-1d web01 --exit-code --quiet
  backstay diff web01@-7d//etc web01",
    &[
        Exit::Differs, Exit::Partial, Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::NotFound,
        Exit::Interrupted, Exit::Terminated,
    ]
))]
pub(crate) struct Args {
    /// The first recovery point, one of its disks, or files in it: `MACHINE[@POINT][:VOLUME]//PATH`
    a: OsString,

    /// The second; for files without :VOLUME and //PATH, those of the first
    b: OsString,

    /// Print every extent that differs
    #[arg(long)]
    extents: bool,

    /// How much of files is read: nothing, those whose time alone changed, or all of equal size
    #[arg(long, value_enum, value_name = "HOW", default_value_t = files::Reads::Nothing)]
    read: files::Reads,

    /// End with code 5 if anything differs
    #[arg(long)]
    exit_code: bool,
}

#[derive(Serialize)]
struct Document {
    a: String,
    b: String,
    identical: bool,
    differing_bytes: u64,
    disks: Vec<DiskDiff>,
    only_in_a: Vec<String>,
    only_in_b: Vec<String>,
}

#[derive(Serialize)]
struct DiskDiff {
    name: String,
    a_size_bytes: u64,
    b_size_bytes: u64,
    differing_bytes: u64,
    changed_bytes: u64,
    added_bytes: u64,
    removed_bytes: u64,
    extents: Vec<ExtentView>,
    extents_truncated: bool,
}

#[derive(Serialize)]
struct ExtentView {
    offset_bytes: u64,
    len_bytes: u64,
    kind: &'static str,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    if [&args.a, &args.b].iter().any(|name| name.as_bytes().windows(2).any(|w| w == b"//")) {
        return files::run(ctx, &args);
    }
    let repository = ctx.open()?;
    let list = repository.points()?;
    let (a, a_disk) = view::find_any(&list, text(&args.a)?)?;
    let (b, b_disk) = view::find_any(&list, text(&args.b)?)?;
    let only = match (&a_disk, &b_disk) {
        (Some(a), Some(b)) if a.name != b.name => {
            return Err(CliError::usage("disks of two names cannot be compared")
                .what(format!("{} and {}", a.name, b.name)));
        }
        (Some(disk), _) | (None, Some(disk)) => Some(disk.name.as_str()),
        (None, None) => None,
    };
    let change = compare::points(&repository, &a, &b, only, &Silent)?;
    let document = Document::new(&a, &b, &change);
    ctx.out.summary(Stream::Stdout, &document, |to| show(to, &document, args.extents))?;
    let differs = args.exit_code && !document.identical;
    Ok(if differs { Exit::Differs } else { Exit::Done })
}

/// Names of points and disks are text.
fn text(name: &OsStr) -> Result<&str, CliError> {
    name.to_str().ok_or_else(|| {
        CliError::usage("this names no backup: it is not UTF-8").what(name.to_string_lossy())
    })
}

impl Document {
    fn new(a: &RecoveryPoint, b: &RecoveryPoint, change: &PointChange) -> Self {
        let disks: Vec<DiskDiff> = change.disks.iter().map(DiskDiff::from).collect();
        Self {
            a: a.id.to_string(),
            b: b.id.to_string(),
            identical: change.is_empty(),
            differing_bytes: disks.iter().map(|disk| disk.differing_bytes).sum(),
            disks,
            only_in_a: change.only_in_first.clone(),
            only_in_b: change.only_in_second.clone(),
        }
    }
}

impl From<&DiskChange> for DiskDiff {
    fn from(change: &DiskChange) -> Self {
        let extents = change.extents.iter().map(|extent| ExtentView {
            offset_bytes: extent.offset_bytes,
            len_bytes: extent.len_bytes,
            kind: match extent.kind {
                DiffKind::Changed => "changed",
                DiffKind::Added => "added",
                DiffKind::Removed => "removed",
            },
        });
        Self {
            name: change.name.clone(),
            a_size_bytes: change.size_bytes.0,
            b_size_bytes: change.size_bytes.1,
            differing_bytes: change.changed_bytes + change.added_bytes + change.removed_bytes,
            changed_bytes: change.changed_bytes,
            added_bytes: change.added_bytes,
            removed_bytes: change.removed_bytes,
            extents: extents.collect(),
            extents_truncated: change.truncated,
        }
    }
}

fn show(to: &mut String, document: &Document, extents: bool) {
    if document.identical {
        to.push_str("no differences\n");
        return;
    }
    let mut table = Table::new(&[
        ("DISK", Align::Left),
        ("CHANGED", Align::Right),
        ("ADDED", Align::Right),
        ("REMOVED", Align::Right),
        ("SIZE A", Align::Right),
        ("SIZE B", Align::Right),
    ]);
    for disk in &document.disks {
        table.row([
            disk.name.clone(),
            units::size(disk.changed_bytes),
            units::size(disk.added_bytes),
            units::size(disk.removed_bytes),
            units::size(disk.a_size_bytes),
            units::size(disk.b_size_bytes),
        ]);
    }
    table.render(to);
    for (side, names) in [("first", &document.only_in_a), ("second", &document.only_in_b)] {
        for name in names {
            to.push_str(&format!("only in the {side}: {}\n", clean(name)));
        }
    }
    if extents {
        show_extents(to, document);
    }
}

fn show_extents(to: &mut String, document: &Document) {
    let mut table = Table::new(&[
        ("DISK", Align::Left),
        ("OFFSET", Align::Right),
        ("LENGTH", Align::Right),
        ("KIND", Align::Left),
    ]);
    for disk in &document.disks {
        for extent in &disk.extents {
            table.row([
                disk.name.clone(),
                extent.offset_bytes.to_string(),
                extent.len_bytes.to_string(),
                extent.kind.to_owned(),
            ]);
        }
    }
    to.push('\n');
    table.render(to);
    for disk in document.disks.iter().filter(|disk| disk.extents_truncated) {
        to.push_str(&format!("{}: there are more\n", clean(&disk.name)));
    }
}
