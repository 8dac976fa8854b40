//! `backstay point remove`.

use std::collections::HashSet;

use backstay_core::retention::{self, PointFacts, Risk};
use backstay_store::{PointId, PointList};
use jiff::Timestamp;
use serde::Serialize;

use crate::cmd::keepers::Keepers;
use crate::cmd::removing::{self, GuardArgs, Kept, Target};
use crate::cmd::view;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Stream, clean};

/// Remove recovery points
///
/// They are not listed any more at once; the space that only they need comes back with the next
/// backstay gc. What is pinned or in use stays, and is told with what keeps it: when all of them
/// stay the exit code is 17, when some stay it is 3.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay point remove web01@2026-01-20
  backstay point remove @b7f3k2 @a91pd0 --reason 'made by mistake' --yes
  backstay point remove web02@latest --dry-run",
    &[
        Exit::Partial, Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::Denied,
        Exit::NotFound, Exit::InUse, Exit::NeedsConfirmation,
    ]
))]
pub(crate) struct Args {
    /// The recovery points: MACHINE@latest, MACHINE@TIME or @ID. One whose record cannot be read is
    /// named by its id
    #[arg(required = true, value_name = "POINT")]
    points: Vec<String>,

    /// Why, for the record
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,

    /// Remove nothing, only tell what would go and what would stay
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    guard: GuardArgs,
}

#[derive(Serialize)]
struct Document {
    dry_run: bool,
    /// On a dry run, what would be removed.
    removed: Vec<Target>,
    kept: Vec<Kept>,
    /// What --allow-mass-removal is for.
    risks: Vec<RiskView>,
}

#[derive(Serialize)]
struct RiskView {
    kind: &'static str,
    text: String,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let repository = ctx.open()?;
    let list = repository.points()?;
    let keepers = Keepers::read(&repository)?;
    let (free, mut kept) = removing::split(choose(&list, &args.points)?, &keepers);
    let risks = risks(&list, &keepers, &free);
    let removed = if args.dry_run {
        free
    } else {
        removing::refuse(&risks, args.guard)?;
        removing::ask(ctx, &free)?;
        let mut done = removing::remove(&repository, free, &args.reason)?;
        kept.append(&mut done.kept);
        done.removed
    };
    let document = Document {
        dry_run: args.dry_run,
        removed,
        kept,
        risks: risks
            .iter()
            .map(|risk| RiskView { kind: risk.word(), text: risk.to_string() })
            .collect(),
    };
    if !ctx.out.json {
        removing::tell_kept(&document.kept);
    }
    ctx.out.summary(Stream::Stdout, &document, |to| show(to, &document))?;
    Ok(match (document.removed.is_empty(), document.kept.is_empty()) {
        (_, true) => Exit::Done,
        (false, false) => Exit::Partial,
        (true, false) => Exit::InUse,
    })
}

fn show(to: &mut String, document: &Document) {
    let removed = if document.dry_run { "would remove" } else { "removed" };
    for target in &document.removed {
        to.push_str(&format!("{removed}  {}\n", clean(&target.told())));
    }
    if document.dry_run {
        for risk in &document.risks {
            to.push_str(&format!("risk: {}\n", clean(&risk.text)));
        }
    } else if !document.removed.is_empty() {
        to.push_str("the space that only they need comes back with:  backstay gc\n");
    }
}

/// The points that the arguments name, each once.
fn choose(list: &PointList, names: &[String]) -> Result<Vec<Target>, CliError> {
    let mut targets: Vec<Target> = Vec::new();
    for text in names {
        let target = match view::find_point(list, text) {
            Ok(point) => Target::new(&point, list),
            Err(error) => Target::unreadable(view::find_damaged(list, text).ok_or(error)?),
        };
        if !targets.iter().any(|other| other.point == target.point) {
            targets.push(target);
        }
    }
    Ok(targets)
}

fn risks(list: &PointList, keepers: &Keepers, removed: &[Target]) -> Vec<Risk> {
    let mut facts = keepers.facts(list);
    facts.extend(list.damaged.iter().map(|(id, _)| PointFacts {
        id: *id,
        machine: String::new(),
        time: Timestamp::UNIX_EPOCH,
        pins: Vec::new(),
        verified: false,
    }));
    let removed: HashSet<PointId> = removed.iter().map(|target| target.point).collect();
    retention::risks_of_removal(&facts, &removed, Timestamp::now())
}
