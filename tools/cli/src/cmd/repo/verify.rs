//! `backstay repo verify`.

use std::time::Duration;

use backstay_core::retention::Length;
use backstay_format::PackId;
use backstay_store::{
    AGE_DAYS, Amount, ErrorKind, KeylessOptions, PackCheckReport, Repository, VerifyLevel,
    VerifyOptions, VerifyReport, VerifyStatus,
};
use serde::Serialize;

use super::finding::{self, Finding};
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::field;
use crate::progress::Reporter;
use crate::signals::Signals;
use crate::units;

/// Read packs again, a part each time, and put what is bad into quarantine
///
/// Those never read or longest unread come first; what was read when is kept in the repository, so
/// that the next run, on any machine, goes on where this one stopped. What is bad counts as absent
/// from then on: the next backup that has the data stores it again. Whatever cannot be restored is
/// named: machine, point, disk and range.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay repo verify --max-time 2h
  backstay repo verify --max-bytes 200G --older-than 30d
  backstay repo verify --status
  backstay repo verify --without-key --max-bytes 1T --resume-after PACK",
    &[
        Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::NotFound, Exit::Interrupted,
        Exit::Terminated,
    ]
))]
pub(crate) struct Args {
    /// Authenticate and decode every chunk and compare it with its id: the default
    #[arg(long, conflicts_with_all = ["checksums", "without_key"])]
    full: bool,

    /// Only compare every byte with the packs' checksums, which is quicker
    #[arg(long, conflicts_with = "without_key")]
    checksums: bool,

    /// Stop when about this much was read, but read at least one pack
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size)]
    max_bytes: Option<u64>,

    /// Begin nothing more after this time: 30m, 2h
    #[arg(long, value_name = "LENGTH", value_parser = duration)]
    max_time: Option<Duration>,

    /// Leave out what was verified within this time: 30d, 12h
    #[arg(long, value_name = "LENGTH", value_parser = duration, conflicts_with = "without_key")]
    older_than: Option<Duration>,

    /// Only this pack; may be given several times
    #[arg(long, value_name = "PACK", conflicts_with = "without_key")]
    pack: Vec<PackId>,

    /// Read nothing: show how long ago everything was verified
    #[arg(long, conflicts_with_all = ["max_bytes", "max_time", "older_than", "pack", "without_key"])]
    status: bool,

    /// Verify the checksums without any key; keeps nothing in the repository
    #[arg(long)]
    without_key: bool,

    /// With --without-key: go on after this pack, which the last run named
    #[arg(long, value_name = "PACK", requires = "without_key")]
    resume_after: Option<PackId>,
}

#[derive(Serialize)]
struct Document {
    /// `pass` or `fail`: of what was looked at.
    verdict: &'static str,
    level: &'static str,
    packs: u64,
    read_bytes: u64,
    chunks: u64,
    /// Packs verified not long ago, which were left out.
    recent_packs: u64,
    /// Packs that are left for the next run.
    left_packs: u64,
    left_bytes: u64,
    /// Recovery points whose trees were followed; null when only packs were read.
    points: Option<u64>,
    quarantined_packs: u64,
    quarantined_chunks: u64,
    without_parity: u64,
    damage: Vec<Finding>,
    damage_left_out: u64,
    /// Why the findings could not be written down; null when they were.
    unsaved: Option<String>,
    status: Option<Status>,
}

#[derive(Serialize)]
struct Status {
    level: &'static str,
    packs: u64,
    bytes: u64,
    never_packs: u64,
    never_bytes: u64,
    bad_packs: u64,
    oldest: Option<String>,
    ages: Vec<Age>,
}

#[derive(Serialize)]
struct Age {
    /// Verified at most this many days ago; null: longer ago than all others.
    days: Option<u32>,
    packs: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct Keyless {
    verdict: &'static str,
    packs: u64,
    read_bytes: u64,
    damage: Vec<Finding>,
    /// For --resume-after; null when the last pack was reached.
    stopped_after: Option<String>,
}

/// A length of time in days of 24 hours.
fn duration(text: &str) -> Result<Duration, String> {
    let length: Length = text.parse().map_err(|e: backstay_core::Error| e.to_string())?;
    let exact = length.exact().ok_or_else(|| format!("`{text}` is not exact; write 30d, 12h"))?;
    Duration::try_from(exact).map_err(|e| e.to_string())
}

fn level_name(level: VerifyLevel) -> &'static str {
    match level {
        VerifyLevel::Checksums => "checksums",
        VerifyLevel::Full => "full",
    }
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let location = ctx.location()?;
    let level = if args.checksums { VerifyLevel::Checksums } else { VerifyLevel::Full };
    if args.status {
        let status = Status::from(ctx.open()?.verify_status(level)?);
        ctx.out.report(&status, |to| show_status(to, &status))?;
        return Ok(Exit::Done);
    }
    let repository = if args.without_key {
        ctx.config(&location)?;
        None
    } else {
        Some(ctx.open()?)
    };
    let signals = Signals::listen()?;
    let reporter = Reporter::new(&ctx.global, Some(signals.clone()));
    let stopped = |error: backstay_store::Error| match signals.caught() {
        Some(exit) if error.kind() == ErrorKind::Aborted => {
            CliError::new(exit, "stopped as asked; the next run goes on from here")
        }
        _ => CliError::from(error).what(location.to_string()),
    };
    let Some(repository) = repository else {
        let options = KeylessOptions {
            max_bytes: args.max_bytes,
            max_time: args.max_time,
            resume_after: args.resume_after,
        };
        let report = Repository::verify_without_key(&location, &options, &reporter);
        return keyless(ctx, report.map_err(stopped)?, &reporter);
    };
    let options = VerifyOptions {
        level,
        max_bytes: args.max_bytes,
        max_time: args.max_time,
        older_than: args.older_than.map(|d| d.try_into().unwrap_or(jiff::SignedDuration::MAX)),
        packs: args.pack,
        ..VerifyOptions::default()
    };
    let report = repository.verify(&options, &reporter).map_err(stopped)?;
    reporter.finish();
    let document = Document::new(report, level);
    ctx.out.report(&document, |to| show(to, &document, ctx.out.quiet))?;
    Ok(if document.verdict == "pass" { Exit::Done } else { Exit::Damaged })
}

impl Document {
    fn new(report: VerifyReport, level: VerifyLevel) -> Self {
        let fails = !report.damage.is_empty() || report.damage_left_out > 0;
        Self {
            verdict: if fails { "fail" } else { "pass" },
            level: level_name(level),
            packs: report.packs,
            read_bytes: report.read_bytes,
            chunks: report.chunks,
            recent_packs: report.recent.packs,
            left_packs: report.left.packs,
            left_bytes: report.left.bytes,
            points: report.points,
            quarantined_packs: report.quarantined_packs,
            quarantined_chunks: report.quarantined_chunks,
            without_parity: report.without_parity,
            damage: report.damage.into_iter().map(Finding::from).collect(),
            damage_left_out: report.damage_left_out,
            unsaved: report.unsaved,
            status: report.status.map(Status::from),
        }
    }
}

impl From<VerifyStatus> for Status {
    fn from(status: VerifyStatus) -> Self {
        let days = AGE_DAYS.iter().map(|d| Some(*d)).chain([None]);
        let age = |(days, amount): (Option<u32>, Amount)| Age {
            days,
            packs: amount.packs,
            bytes: amount.bytes,
        };
        Self {
            level: level_name(status.level),
            packs: status.stored.packs,
            bytes: status.stored.bytes,
            never_packs: status.never.packs,
            never_bytes: status.never.bytes,
            bad_packs: status.bad.packs,
            oldest: status.oldest.map(units::utc_time),
            ages: days.zip(status.ages).map(age).collect(),
        }
    }
}

fn show(to: &mut String, document: &Document, quiet: bool) {
    finding::show(to, "damaged", &document.damage, document.damage_left_out);
    if document.verdict == "fail" {
        to.push_str("try       backstay repo repair\n");
    }
    if let Some(reason) = &document.unsaved {
        to.push_str(&format!("not written down: {}\n", crate::output::clean(reason)));
    }
    if quiet {
        return;
    }
    let amount = |packs, bytes| format!("{packs} packs, {}", units::size(bytes));
    field(to, "read", &amount(document.packs, document.read_bytes));
    if document.recent_packs > 0 {
        field(to, "left out", &format!("{} packs, verified not long ago", document.recent_packs));
    }
    if document.left_packs > 0 {
        field(to, "left", &amount(document.left_packs, document.left_bytes));
    }
    match document.points {
        Some(points) => field(to, "followed", &format!("{points} recovery points")),
        None => field(to, "followed", "no recovery point: the budget was spent, nothing was bad"),
    }
    if document.quarantined_packs > 0 {
        let (packs, chunks) = (document.quarantined_packs, document.quarantined_chunks);
        field(to, "quarantine", &format!("{chunks} chunks more, in {packs} packs"));
    }
    if document.without_parity > 0 {
        let text = format!("{} packs have none; backstay repo parity add", document.without_parity);
        field(to, "parity", &text);
    }
    if let Some(status) = &document.status {
        show_status(to, status);
    }
    to.push_str(&format!("verdict: {} ({})\n", document.verdict, document.level));
}

fn show_status(to: &mut String, status: &Status) {
    let share = |bytes: u64| match status.bytes {
        0 => "0 %".to_owned(),
        all => format!("{} %", u128::from(bytes) * 100 / u128::from(all)),
    };
    let line = |packs, bytes| format!("{packs} packs, {}, {}", units::size(bytes), share(bytes));
    field(to, "stored", &format!("{} packs, {}", status.packs, units::size(status.bytes)));
    field(to, "never", &line(status.never_packs, status.never_bytes));
    for age in status.ages.iter().filter(|age| age.packs > 0) {
        let label = age.days.map_or("longer ago".to_owned(), |d| format!("{d} days"));
        field(to, &label, &line(age.packs, age.bytes));
    }
    if let Some(oldest) = &status.oldest {
        field(to, "oldest", oldest);
    }
    if status.bad_packs > 0 {
        field(to, "bad", &format!("{} packs when they were last read", status.bad_packs));
    }
}

fn keyless(ctx: &Ctx, report: PackCheckReport, reporter: &Reporter) -> Result<Exit, CliError> {
    reporter.finish();
    let document = Keyless {
        verdict: if report.damage.is_empty() { "pass" } else { "fail" },
        packs: report.packs,
        read_bytes: report.read_bytes,
        damage: report.damage.into_iter().map(Finding::from).collect(),
        stopped_after: report.stopped_after.map(|id| id.to_string()),
    };
    ctx.out.report(&document, |to| {
        finding::show(to, "damaged", &document.damage, 0);
        if ctx.out.quiet {
            return;
        }
        let read = format!("{} packs, {}", document.packs, units::size(document.read_bytes));
        field(to, "read", &read);
        if let Some(pack) = &document.stopped_after {
            field(to, "go on with", &format!("--resume-after {pack}"));
        }
        to.push_str(&format!("verdict: {} (checksums, without a key)\n", document.verdict));
    })?;
    Ok(if document.verdict == "pass" { Exit::Done } else { Exit::Damaged })
}

#[cfg(test)]
mod tests {
    use super::duration;
    use std::time::Duration;

    #[test]
    fn lengths_are_exact_or_refused() {
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(duration("1w1d"), Ok(Duration::from_secs(8 * 86_400)));
        for bad in ["", "1mo", "1y", "5", "-1h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
