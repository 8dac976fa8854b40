//! `backstay copy`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use backstay_core::copy::{self, CopyPlan, CopyReport, Outcome, PointCopy, Select, Verify};
use backstay_store::{RecoveryPoint, Repository};
use clap::ValueEnum;
use serde::Serialize;

use crate::cmd::view;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Align, Stream, Table, clean, note};
use crate::progress::Reporter;
use crate::secret::Source;
use crate::signals::Signals;
use crate::units;

/// Copy recovery points to another repository
///
/// The repositories may have different keys and chunk sizes. Only what the other one lacks is
/// written, what did not change since the point before is not even read, and points that are
/// there already are left out: a copy that was interrupted goes on when it is run again.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay copy --from /srv/backup --to /mnt/offsite --all
  backstay copy --to /mnt/offsite --to-key-file /root/offsite.key --machine web01
  backstay copy --to /mnt/offsite web01@latest @b7f3k2 --verify full
  backstay copy --to /mnt/offsite --all --dry-run",
    &[
        Exit::Partial, Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::Denied,
        Exit::NotFound, Exit::InUse, Exit::Refused, Exit::Interrupted, Exit::Terminated,
    ]
))]
#[command(group = clap::ArgGroup::new("what").required(true).args(["points", "machine", "all"]))]
pub(crate) struct Args {
    /// The recovery points to copy
    #[arg(value_name = "POINT")]
    points: Vec<String>,

    /// Copy all points of this machine
    #[arg(long, short, value_name = "NAME")]
    machine: Option<String>,

    /// Copy all points
    #[arg(long)]
    all: bool,

    /// The repository to copy from [default: the one --repo or BACKSTAY_REPO names]
    #[arg(long, value_name = "LOCATION")]
    from: Option<String>,

    /// The repository to copy to; it must exist
    #[arg(long, value_name = "LOCATION")]
    to: String,

    /// What of the copies is read back and compared before they count
    #[arg(long, value_name = "WHAT", default_value = "written")]
    verify: VerifyWhat,

    /// Copy nothing, only tell what would be copied
    #[arg(long)]
    dry_run: bool,

    /// Threads that read and store, at most 8 [default: one per core]
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,

    /// Unlock the repository to copy from with the content of this file. Without an option of its
    /// own, each of the two is unlocked as with any command
    #[arg(long, value_name = "FILE", group = "from_key")]
    from_key_file: Option<PathBuf>,

    /// Unlock it with the passphrase in this file
    #[arg(long, value_name = "FILE", group = "from_key")]
    from_passphrase_file: Option<PathBuf>,

    /// Unlock it with the passphrase this shell command prints
    #[arg(long, value_name = "COMMAND", group = "from_key")]
    from_passphrase_command: Option<String>,

    /// Unlock the repository to copy to with the content of this file
    #[arg(long, value_name = "FILE", group = "to_key")]
    to_key_file: Option<PathBuf>,

    /// Unlock it with the passphrase in this file
    #[arg(long, value_name = "FILE", group = "to_key")]
    to_passphrase_file: Option<PathBuf>,

    /// Unlock it with the passphrase this shell command prints
    #[arg(long, value_name = "COMMAND", group = "to_key")]
    to_passphrase_command: Option<String>,
}

/// What is read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum VerifyWhat {
    /// Nothing
    None,
    /// What was not taken over from a point that was there before
    Written,
    /// Every disk as a whole
    Full,
}

impl From<VerifyWhat> for Verify {
    fn from(what: VerifyWhat) -> Self {
        match what {
            VerifyWhat::None => Self::None,
            VerifyWhat::Written => Self::Written,
            VerifyWhat::Full => Self::Full,
        }
    }
}

#[derive(Serialize)]
struct Document {
    from: String,
    to: String,
    dry_run: bool,
    complete: bool,
    copied: usize,
    present: usize,
    failed: usize,
    points: Vec<Row>,
    unreadable: Vec<Unreadable>,
    duration_seconds: f64,
}

#[derive(Serialize, Default)]
struct Row {
    id: String,
    short_id: String,
    machine: String,
    time: String,
    outcome: &'static str,
    /// Its id in the repository copied to.
    copy: Option<String>,
    read_bytes: Option<u64>,
    kept_bytes: Option<u64>,
    stored_bytes: Option<u64>,
    verified_bytes: Option<u64>,
    error: Option<String>,
}

#[derive(Serialize)]
struct Unreadable {
    id: String,
    error: String,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let from = open(ctx, args.from.as_deref(), args.key_of_source())?;
    let to = open(ctx, Some(&args.to), args.key_of_destination())?;
    let plan = CopyPlan {
        verify: args.verify.into(),
        dry_run: args.dry_run,
        workers: args.workers,
        ..CopyPlan::new(select(&from, &args)?)
    };
    let signals = Signals::listen()?;
    let reporter = Reporter::new(&ctx.global, Some(signals.clone()));
    let started = Instant::now();
    let mut report = copy::run(&from, &to, &plan, &reporter)?;
    reporter.finish();
    let document = Document::new(&from, &to, &report, args.dry_run, started);
    if !ctx.out.json {
        document.tell_failures();
    }
    ctx.out.summary(Stream::Stdout, &document, |to| show(to, &document))?;
    if let Some(error) = report.stopped.take() {
        return Err(match (signals.caught(), error.kind()) {
            (Some(exit), backstay_core::ErrorKind::Cancelled) => {
                CliError::new(exit, "stopped as asked; the same command goes on from here")
            }
            _ => CliError::from(error).what(to.location().to_string()),
        });
    }
    Ok(if report.is_complete() { Exit::Done } else { Exit::Partial })
}

fn open(ctx: &Ctx, text: Option<&str>, key: Option<Source>) -> Result<Repository, CliError> {
    let location = match text {
        Some(text) => Ctx::parse_location(text)?,
        None => ctx.location()?,
    };
    ctx.open_at(&location, key)
}

/// The points that the arguments name.
fn select(from: &Repository, args: &Args) -> Result<Select, CliError> {
    if args.all {
        return Ok(Select::All);
    }
    if let Some(machine) = &args.machine {
        return Ok(Select::Machine(machine.clone()));
    }
    let list = from.points()?;
    let ids = args.points.iter().map(|text| Ok(view::find_point(&list, text)?.id));
    Ok(Select::Points(ids.collect::<Result<_, CliError>>()?))
}

impl Args {
    fn key_of_source(&self) -> Option<Source> {
        let file = self.from_key_file.clone().map(Source::KeyFile);
        file.or_else(|| self.from_passphrase_file.clone().map(Source::PassphraseFile))
            .or_else(|| self.from_passphrase_command.clone().map(Source::PassphraseCommand))
    }

    fn key_of_destination(&self) -> Option<Source> {
        let file = self.to_key_file.clone().map(Source::KeyFile);
        file.or_else(|| self.to_passphrase_file.clone().map(Source::PassphraseFile))
            .or_else(|| self.to_passphrase_command.clone().map(Source::PassphraseCommand))
    }
}

impl Document {
    fn new(
        from: &Repository,
        to: &Repository,
        report: &CopyReport,
        dry_run: bool,
        started: Instant,
    ) -> Self {
        let all: Vec<_> = report.points.iter().map(|p| p.source.clone()).collect();
        let points: Vec<Row> = report.points.iter().map(|p| Row::new(p, &all)).collect();
        let count = |word: &str| points.iter().filter(|row| row.outcome == word).count();
        Self {
            from: from.location().to_string(),
            to: to.location().to_string(),
            dry_run,
            complete: report.is_complete(),
            copied: count("copied"),
            present: count("present"),
            failed: count("failed"),
            unreadable: report
                .unreadable
                .iter()
                .map(|(id, e)| Unreadable { id: id.to_string(), error: e.to_string() })
                .collect(),
            points,
            duration_seconds: started.elapsed().as_secs_f64(),
        }
    }

    /// Failures go to stderr, also where nobody wants to hear of success.
    fn tell_failures(&self) {
        for row in &self.points {
            if let Some(error) = &row.error {
                let name = format!("{}@{}", row.machine, row.short_id);
                note(&format!("not copied: {}: {}", clean(&name), clean(error)));
            }
        }
        for point in &self.unreadable {
            note(&format!("not copied: @{}: {}", point.id, clean(&point.error)));
        }
    }
}

impl Row {
    /// `all` are the points that its short name tells it from.
    fn new(point: &PointCopy, all: &[RecoveryPoint]) -> Self {
        let source = &point.source;
        let mut row = Self {
            id: source.id.to_string(),
            short_id: view::short_id(source, all),
            machine: source.machine.clone(),
            time: units::utc_time(source.time),
            ..Self::default()
        };
        match &point.outcome {
            Outcome::Present(copy) => {
                row.outcome = "present";
                row.copy = Some(copy.to_string());
            }
            Outcome::Planned { read_bytes } => {
                row.outcome = "planned";
                row.read_bytes = Some(*read_bytes);
            }
            Outcome::Copied { point, kept_bytes, verified_bytes } => {
                row.outcome = "copied";
                row.copy = Some(point.id.to_string());
                row.read_bytes = Some(point.stats.read_bytes);
                row.kept_bytes = Some(*kept_bytes);
                row.stored_bytes = Some(point.stats.stored_bytes);
                row.verified_bytes = Some(*verified_bytes);
            }
            Outcome::Failed(error) => {
                row.outcome = "failed";
                row.error = Some(error.to_string());
            }
        }
        row
    }
}

fn show(to: &mut String, document: &Document) {
    let mut table = Table::new(&[
        ("MACHINE", Align::Left),
        ("POINT", Align::Left),
        ("TIME", Align::Left),
        ("RESULT", Align::Left),
        ("READ", Align::Right),
        ("STORED", Align::Right),
        ("VERIFIED", Align::Right),
    ]);
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), units::size);
    // What is there already is counted, not listed: of a thousand points one is new.
    for row in document.points.iter().filter(|row| row.outcome != "present") {
        table.row([
            row.machine.clone(),
            format!("@{}", row.short_id),
            row.time.clone(),
            row.outcome.to_owned(),
            size(row.read_bytes),
            size(row.stored_bytes),
            size(row.verified_bytes),
        ]);
    }
    let listed = document.points.len() - document.present;
    if listed > 0 {
        table.render(to);
    }
    let planned = listed - document.copied - document.failed;
    if document.dry_run {
        to.push_str(&format!("to copy {planned}  "));
    } else {
        to.push_str(&format!("copied {}  ", document.copied));
    }
    to.push_str(&format!("there already {}", document.present));
    let failed = document.failed + document.unreadable.len();
    if failed > 0 {
        to.push_str(&format!("  failed {failed}"));
    }
    to.push_str(&format!("  in {}\n", units::span(document.duration_seconds)));
}
