//! `backstay repo check`.

use backstay_store::{CheckOptions, Damage, DamageKind, ErrorKind, Repository};
use serde::Serialize;

use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::clean;
use crate::progress::{Counted, Reporter};
use crate::signals::Signals;
use crate::units;

/// Check that everything in a repository is there and whole
///
/// Without options it checks every recovery point's trees against the packs and their indexes.
/// --read-data also reads and decodes every chunk. --without-key verifies the checksums of
/// the packs, which a storage host without any key can do.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay repo check
  backstay repo check --read-data
  backstay repo check --without-key --repo /srv/backup --json",
    &[Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::Interrupted, Exit::Terminated]
))]
pub(crate) struct Args {
    /// Read and decode all data too
    #[arg(long, conflicts_with = "without_key")]
    read_data: bool,

    /// Verify the packs' checksums only, without any key
    #[arg(long)]
    without_key: bool,
}

#[derive(Serialize)]
struct Document {
    /// `pass` or `fail`. A check that could not come to an end is an error and has no verdict.
    verdict: &'static str,
    without_key: bool,
    read_data: bool,
    checked: Vec<Counted>,
    read_bytes: u64,
    damage: Vec<Finding>,
    damage_left_out: u64,
}

#[derive(Serialize)]
struct Finding {
    kind: &'static str,
    pack: Option<String>,
    index: Option<String>,
    machine: Option<String>,
    point: Option<String>,
    disk: Option<String>,
    offset_bytes: Option<u64>,
    len_bytes: Option<u64>,
    reason: String,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let location = ctx.location()?;
    // Opened before signals are taken over, so that Ctrl-C ends a question for the passphrase.
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
            CliError::new(exit, "stopped as asked; there is no verdict")
        }
        _ => CliError::from(error).what(location.to_string()),
    };
    let (read_bytes, damage, damage_left_out) = match repository {
        None => {
            let report = Repository::check_without_key(&location, &reporter).map_err(stopped)?;
            (report.read_bytes, report.damage, 0)
        }
        Some(repository) => {
            let options = CheckOptions { read_data: args.read_data };
            let report = repository.check(&options, &reporter).map_err(stopped)?;
            (report.read_bytes, report.damage, report.damage_left_out)
        }
    };
    reporter.finish();
    let fails = !damage.is_empty() || damage_left_out > 0;
    let document = Document {
        verdict: if fails { "fail" } else { "pass" },
        without_key: args.without_key,
        read_data: args.read_data,
        checked: reporter.counted(),
        read_bytes,
        damage: damage.into_iter().map(Finding::from).collect(),
        damage_left_out,
    };
    ctx.out.report(&document, |to| show(to, &document, ctx.out.quiet))?;
    Ok(if fails { Exit::Damaged } else { Exit::Done })
}

impl From<Damage> for Finding {
    fn from(damage: Damage) -> Self {
        let mut finding = Self {
            kind: "pack",
            pack: None,
            index: None,
            machine: None,
            point: None,
            disk: None,
            offset_bytes: None,
            len_bytes: None,
            reason: damage.reason,
        };
        match damage.kind {
            DamageKind::Pack(pack) => finding.pack = Some(pack.to_string()),
            DamageKind::Index(index) => {
                finding.kind = "index";
                finding.index = Some(index.to_string());
            }
            DamageKind::Point(point) => {
                finding.kind = "point";
                finding.point = Some(point.to_string());
            }
            DamageKind::Disk { machine, point, disk, offset_bytes, len_bytes } => {
                finding.kind = "disk";
                finding.machine = Some(machine);
                finding.point = Some(point.to_string());
                finding.disk = Some(disk);
                finding.offset_bytes = Some(offset_bytes);
                finding.len_bytes = Some(len_bytes);
            }
        }
        finding
    }
}

impl Finding {
    /// The damaged object as a user would name it.
    fn object(&self) -> String {
        let short = |id: &Option<String>| {
            id.as_deref().unwrap_or_default().chars().take(6).collect::<String>()
        };
        match (&self.machine, &self.disk, &self.pack) {
            (Some(machine), Some(disk), _) => {
                format!("{}@{}:{}", clean(machine), short(&self.point), clean(disk))
            }
            (_, _, Some(pack)) => format!("pack {pack}"),
            _ => match &self.index {
                Some(index) => format!("index object {index}"),
                None => format!("@{}", self.point.as_deref().unwrap_or_default()),
            },
        }
    }
}

fn show(to: &mut String, document: &Document, quiet: bool) {
    for finding in &document.damage {
        let range = match (finding.offset_bytes, finding.len_bytes) {
            (Some(offset), Some(len)) => format!("  {} at {offset}", units::size(len)),
            _ => String::new(),
        };
        to.push_str(&format!("damaged  {}{range}  {}\n", finding.object(), clean(&finding.reason)));
    }
    if document.damage_left_out > 0 {
        to.push_str(&format!("and {} more\n", document.damage_left_out));
    }
    if quiet {
        return;
    }
    for counted in &document.checked {
        to.push_str(&format!("checked {} of {} {}\n", counted.done, counted.total, counted.what));
    }
    let how = match (document.without_key, document.read_data) {
        (true, _) => "checksums of the packs",
        (false, true) => "records, trees and all data",
        (false, false) => "records and trees; --read-data checks the data too",
    };
    to.push_str(&format!("verdict: {} ({how})\n", document.verdict));
}
