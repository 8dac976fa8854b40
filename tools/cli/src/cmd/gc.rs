//! `backstay gc`.

mod patience;
mod report;

use backstay_store::{Amount, CollectOptions, CollectReport, Error, ErrorKind, Repository};

use crate::cmd::keepers;
use crate::cmd::session::SessionView;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::Stream;
use crate::progress::Reporter;
use crate::signals::Signals;
use crate::units;

use patience::{Patience, Wait};
use report::Document;

/// Take back the space of what no recovery point needs
///
/// It runs beside backups, restores and mounts. What a backup that began earlier may still refer to
/// is deleted when that backup has ended: by this command with --wait, or by the next one. A
/// collection that was stopped or killed is continued by the next.
///
/// The exit code is 0 when everything is done, 3 when something waits for sessions, and 13 when
/// recovery points refer to data that is missing.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay gc
  backstay gc --dry-run
  backstay gc --wait=2h --max-repack 20G",
    &[
        Exit::Partial, Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::Denied,
        Exit::InUse, Exit::Refused, Exit::Interrupted, Exit::Terminated,
    ]
))]
pub(crate) struct Args {
    /// Delete nothing, only tell what would be freed
    #[arg(long)]
    dry_run: bool,

    /// Go on until everything is done, or for so long: 90s, 30m, 2h, 1d
    #[arg(
        long,
        value_name = "DURATION",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "forever",
        conflicts_with = "dry_run"
    )]
    wait: Option<Wait>,

    /// Only delete packs that nothing refers to; copy nothing out of those that hold little
    #[arg(long)]
    no_repack: bool,

    /// Copy at most so much out of packs that hold little
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = units::parse_size,
        default_value = "64G",
        conflicts_with = "no_repack"
    )]
    max_repack: u64,
}

/// How the work ended.
enum End {
    /// As far as it could be done.
    Here,
    /// By a signal, or by a failure after others had come to an end.
    Cut(CliError),
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let repository = ctx.open()?;
    let options = CollectOptions {
        dry_run: args.dry_run,
        repack: !args.no_repack,
        repack_bytes: args.max_repack,
        by: keepers::me(),
        ..CollectOptions::default()
    };
    let signals = Signals::listen()?;
    let reporter = Reporter::new(&ctx.global, Some(signals.clone()));
    let mut work = Work { repository: &repository, options, reporter, total: None };
    let end = work.go_on(args.wait, &signals)?;
    work.reporter.finish();
    let mut total = work.total.unwrap_or_default();
    if args.dry_run {
        foresee(&repository, &mut total)?;
    }
    let document = Document::new(&total, args.dry_run, matches!(end, End::Here));
    ctx.out.summary(Stream::Stdout, &document, |to| document.show(to))?;
    match end {
        End::Cut(error) => Err(error),
        End::Here if total.missing_chunks > 0 => Ok(Exit::Damaged),
        End::Here if document.complete => Ok(Exit::Done),
        End::Here => Ok(Exit::Partial),
    }
}

/// Collections one after the other, and what they did together.
struct Work<'a> {
    repository: &'a Repository,
    options: CollectOptions,
    reporter: Reporter,
    /// Nothing before the first came to an end.
    total: Option<CollectReport>,
}

impl Work<'_> {
    /// Collects until nothing is left to wait for, or nobody wants to wait any longer.
    fn go_on(&mut self, wait: Option<Wait>, signals: &Signals) -> Result<End, CliError> {
        let mut patience = Patience::new(wait);
        let mut told = Vec::new();
        loop {
            match self.repository.collect(&self.options, &self.reporter) {
                Ok(report) => add(self.total.get_or_insert_default(), report),
                Err(error) if error.kind() == ErrorKind::Aborted => {
                    let exit = signals.caught().ok_or_else(|| CliError::from(error))?;
                    return Ok(End::Cut(stopped(exit)));
                }
                Err(error) if error.kind() == ErrorKind::Busy && patience.is_left() => {
                    self.reporter.trouble(&error.to_string());
                }
                Err(error) if self.total.is_some() => return Ok(End::Cut(self.failed(error))),
                Err(error) => return Err(self.failed(error)),
            }
            let waiting = self.total.as_ref().map(|total| &total.waiting_for[..]);
            let sessions = waiting.map_or_else(Vec::new, SessionView::all);
            if (waiting.is_some() && sessions.is_empty()) || !patience.is_left() {
                return Ok(End::Here);
            }
            if told != sessions {
                for session in &sessions {
                    self.reporter.event("waiting", &format!("waiting for {}", session.told()));
                }
                told = sessions;
            }
            if let Some(exit) = patience.pause(signals) {
                return Ok(End::Cut(stopped(exit)));
            }
        }
    }

    fn failed(&self, error: Error) -> CliError {
        let busy = error.kind() == ErrorKind::Busy;
        let told = CliError::from(error).what(self.repository.location().to_string());
        if busy {
            return told.hint("backstay gc --wait      goes on when the other one is done");
        }
        told
    }
}

fn stopped(exit: Exit) -> CliError {
    CliError::new(exit, "stopped as asked; what is left is for the next collection")
        .hint("backstay gc      goes on from here")
}

/// Adds what one collection did to what those before it did.
fn add(total: &mut CollectReport, report: CollectReport) {
    total.generation = total.generation.max(report.generation);
    total.points = total.points.max(report.points);
    total.references += report.references;
    if report.stored != Amount::default() {
        total.stored = report.stored;
        total.missing_chunks = report.missing_chunks;
    }
    total.dead += report.dead;
    total.repacked += report.repacked;
    total.copied_bytes += report.copied_bytes;
    total.freed += report.freed;
    total.later = report.later;
    total.kept += report.kept;
    total.locked = report.locked;
    total.waiting_for = report.waiting_for;
    total.fenced.extend(report.fenced);
    total.buried += report.buried;
}

/// Completes what a dry run tells: what a collection would wait for, and what it would fence.
fn foresee(repository: &Repository, total: &mut CollectReport) -> Result<(), CliError> {
    let writers = repository.sessions()?;
    let writers = writers.into_iter().filter(|s| s.kind == backstay_store::SessionKind::Writer);
    (total.fenced, total.waiting_for) = writers.partition(|session| session.dead);
    if total.later == Amount::default() {
        total.waiting_for.clear();
    } else if total.waiting_for.is_empty() {
        total.freed = std::mem::take(&mut total.later);
    }
    Ok(())
}
