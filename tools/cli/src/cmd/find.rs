//! `backstay find`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;

use backstay_core::file_name::FileName;
use backstay_core::files::catalogue::Catalogue;
use backstay_core::files::find::{Pattern, Query};
use backstay_core::name::PointSelector;
use backstay_guestfs::fs::{NodeKind, Time};
use backstay_store::{PointList, RecoveryPoint, Repository};
use jiff::Zoned;

mod listed;
mod shown;

use crate::browse;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::Stream;
use crate::progress::Reporter;
use crate::signals::Signals;
use crate::units;

/// Find files by name, in the newest recovery points or in all there are
///
/// A PATTERN without a slash is compared with names, one with a slash with paths: `*` and `?` stay within a name, `**` stands for any
/// number of directories. What is found is named as `get`, `cat` and `ls` take it.
///
/// The list of a recovery point's files is made once and kept in the cache directory, sealed with the repository's key; searching
/// a list takes a moment, making one as long as the guest's file system takes to be walked.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay find 'nginx*.conf'
  backstay find report.odt --in web01 --history
  backstay find '**/.ssh/*' --in web01@2026-11-20 --in db01
  backstay find '*.iso' --size +1G --older 90d",
    &[
        Exit::Partial, Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::NotFound, Exit::Interrupted,
        Exit::Terminated,
    ]
))]
pub(crate) struct Args {
    /// Names or paths to find
    #[arg(required = true)]
    pattern: Vec<OsString>,

    /// Where: `MACHINE[@POINT][:VOLUME][//PATH]`, several times for several; without, the newest point of every machine
    #[arg(long = "in", value_name = "NAME")]
    places: Vec<OsString>,

    /// In all recovery points of the machines: each version of a file, and which points have it
    #[arg(long)]
    history: bool,

    /// Only this kind, several times for several
    #[arg(long, value_name = "KIND", value_parser = kind)]
    kind: Vec<NodeKind>,

    /// Only files of at least (+SIZE) or at most (-SIZE) so many bytes
    #[arg(long, value_name = "+SIZE|-SIZE", value_parser = bound, allow_hyphen_values = true)]
    size: Vec<Bound>,

    /// Only what changed at or after this moment, or in this last span: 2026-11-20, 36h, 7d
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    newer: Option<Time>,

    /// Only what changed before this moment, or before this last span
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    older: Option<Time>,

    /// Do not tell capital letters from small ones
    #[arg(long, short)]
    ignore_case: bool,
}

#[derive(Debug, Clone, Copy)]
enum Bound {
    AtLeast(u64),
    AtMost(u64),
}

fn bound(text: &str) -> Result<Bound, String> {
    match text.split_at_checked(1) {
        Some(("+", size)) => Ok(Bound::AtLeast(units::parse_size(size)?)),
        Some(("-", size)) => Ok(Bound::AtMost(units::parse_size(size)?)),
        _ => Err("a size begins with + (at least) or - (at most)".into()),
    }
}

fn kind(text: &str) -> Result<NodeKind, String> {
    match text {
        "file" | "f" => Ok(NodeKind::File),
        "directory" | "d" => Ok(NodeKind::Directory),
        "symlink" | "l" => Ok(NodeKind::Symlink),
        "device" | "b" => Ok(NodeKind::BlockDevice),
        "char-device" | "c" => Ok(NodeKind::CharDevice),
        "fifo" | "p" => Ok(NodeKind::Fifo),
        "socket" | "s" => Ok(NodeKind::Socket),
        _ => Err("a kind is file, directory, symlink, device, char-device, fifo or socket".into()),
    }
}

fn moment(text: &str) -> Result<Time, String> {
    let now = Zoned::now();
    let ago = || {
        let span: jiff::Span = text.parse().ok()?;
        now.checked_sub(span.abs()).ok()
    };
    let at = || {
        let civil: jiff::civil::DateTime = text.parse().ok()?;
        civil.to_zoned(now.time_zone().clone()).ok()
    };
    let exact = || Some(text.parse::<jiff::Timestamp>().ok()?.to_zoned(now.time_zone().clone()));
    let found = exact().or_else(at).or_else(ago).ok_or_else(|| {
        String::from(
            "a moment is a date (2026-11-20, 2026-11-20T03:00) or a span back from now (36h, 7d)",
        )
    })?;
    let seconds = found.timestamp().as_second();
    Ok(Time { seconds, nanos: 0 })
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let query = query(&args)?;
    let repository = ctx.open()?;
    let list = repository.points()?;
    let places = places(&args, &list)?;
    listed::forget(&repository, &list);
    let signals = Signals::listen()?;
    let reporter = Reporter::new(&ctx.global, Some(signals.clone()));
    let mut found = shown::Found::new(args.history, &list.points);
    for place in &places {
        for point in &place.points {
            let catalogue = catalogue(&repository, point, place, args.history, &reporter)
                .map_err(|error| error.of(&place.name, &signals))?;
            found.search(point, &catalogue, &query)?;
        }
    }
    reporter.finish();
    let document = found.document();
    ctx.out.summary(Stream::Stdout, &document, |to| shown::text(to, &document))?;
    Ok(if document.is_complete() { Exit::Done } else { Exit::Partial })
}

/// Where is searched.
struct Place {
    name: FileName,
    /// Oldest first.
    points: Vec<RecoveryPoint>,
}

fn query(args: &Args) -> Result<Query, CliError> {
    let mut names = Vec::new();
    for pattern in &args.pattern {
        let Some(text) = pattern.to_str() else {
            let shown = pattern.to_string_lossy().into_owned();
            return Err(CliError::usage("a pattern is text: ? stands for any byte").what(shown));
        };
        names.push(Pattern::new(text, args.ignore_case).map_err(|e| {
            let named = CliError::from(e).what(text.to_owned());
            CliError { exit: Exit::Usage, ..named }
        })?);
    }
    let mut query = Query { names, kinds: args.kind.clone(), ..Query::default() };
    for bound in &args.size {
        match *bound {
            Bound::AtLeast(bytes) => query.min_bytes = query.min_bytes.max(Some(bytes)),
            Bound::AtMost(bytes) => {
                query.max_bytes = Some(query.max_bytes.map_or(bytes, |max| max.min(bytes)));
            }
        }
    }
    (query.newer, query.older) = (args.newer, args.older);
    Ok(query)
}

fn places(args: &Args, list: &PointList) -> Result<Vec<Place>, CliError> {
    let mut names: Vec<FileName> = Vec::new();
    for place in &args.places {
        names.push(FileName::parse(place.as_bytes())?);
    }
    if names.is_empty() {
        let mut machines: Vec<&str> = list.points.iter().map(|p| p.machine.as_str()).collect();
        machines.sort_unstable();
        machines.dedup();
        for machine in machines {
            names.push(FileName::parse(machine.as_bytes())?);
        }
    }
    let mut places = Vec::new();
    for name in names {
        let points = match (args.history, &name.point.point, &name.point.machine) {
            (true, PointSelector::Latest, Some(machine)) => {
                // The newest one first of all, for the error if there is none.
                browse::point_of(list, &name)?;
                list.points.iter().filter(|p| p.machine == *machine).cloned().collect()
            }
            (true, _, _) => {
                return Err(CliError::usage("--history is over all points of a machine")
                    .what(name.to_string())
                    .hint("name the machine without a point"));
            }
            (false, _, _) => vec![browse::point_of(list, &name)?],
        };
        places.push(Place { name, points });
    }
    Ok(places)
}

/// What a point has at a place: the list that is kept, or one that is made.
fn catalogue(
    repository: &Repository,
    point: &RecoveryPoint,
    place: &Place,
    history: bool,
    reporter: &Reporter,
) -> Result<Catalogue, listed::Failed> {
    match (&place.name.volume, &place.name.path) {
        (None, None) => listed::whole(repository, point, reporter),
        (volume, path) => {
            let path = path.as_deref().unwrap_or(b"/");
            listed::below(repository, point, (volume.as_deref(), path), history, reporter)
        }
    }
}
