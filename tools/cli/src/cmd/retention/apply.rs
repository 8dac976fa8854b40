//! `backstay retention apply`.

use backstay_core::retention::{OnRisk, Outcome};
use backstay_store::PointId;
use serde::Serialize;

use super::plan::{self, Planned};
use super::rule::RuleArgs;
use crate::cmd::removing::{self, GuardArgs, Kept, Target};
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Stream, write_stdout};

/// Remove the recovery points that rules do not keep
///
/// The plan is the one that backstay retention plan shows with the same rules. Points that are
/// pinned or in use stay, and are told. The space comes back with the next backstay gc.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay retention apply --keep-last 3 --keep-daily 7 --keep-weekly 4 --dry-run
  backstay retention apply --keep-daily 14 --keep-monthly 12 --yes
  backstay retention apply --keep-younger-than 90d --keep-at-least 5 --machine web01 --yes",
    &[
        Exit::Partial, Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::Denied,
        Exit::NotFound, Exit::NeedsConfirmation,
    ]
))]
pub(crate) struct Args {
    #[command(flatten)]
    rule: RuleArgs,

    /// Remove nothing, only show the plan
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    guard: GuardArgs,
}

#[derive(Serialize)]
struct Document<'a> {
    dry_run: bool,
    plan: &'a plan::Document,
    /// Nothing on a dry run.
    removed: Vec<Target>,
    /// What the rules do not keep, and pins or sessions do.
    kept: Vec<Kept>,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let planned = plan::make(ctx, &args.rule)?;
    let human = !ctx.out.json && !ctx.out.quiet;
    if human {
        let mut text = String::new();
        plan::people(&mut text, &planned.document, &args.rule);
        write_stdout(text.as_bytes())?;
    }
    let mut document = Document {
        dry_run: args.dry_run,
        plan: &planned.document,
        removed: Vec::new(),
        kept: kept(&planned),
    };
    if !args.dry_run {
        removing::refuse(&planned.plan.risks, args.guard)?;
        // What is refused without the flag was refused above.
        let ids = planned.plan.removals(OnRisk::Accept).unwrap_or_default();
        let targets = targets(&planned, &ids);
        removing::ask(ctx, &targets)?;
        let mut done = removing::remove(
            &planned.repository,
            targets,
            &format!("rules: {}", args.rule.rule()),
        )?;
        document.kept.append(&mut done.kept);
        document.removed = done.removed;
    }
    if !ctx.out.json {
        removing::tell_kept(&document.kept);
    }
    ctx.out.summary(Stream::Stdout, &document, |to| {
        if args.dry_run {
            return;
        }
        let count = document.removed.len();
        to.push_str(&format!("removed {count} {}\n", if count == 1 { "point" } else { "points" }));
        if count > 0 {
            to.push_str("the space that only they need comes back with:  backstay gc\n");
        }
    })?;
    Ok(plan::tell_unreadable(ctx, &planned.document))
}

fn targets(planned: &Planned, ids: &[PointId]) -> Vec<Target> {
    let points = planned.list.points.iter().filter(|point| ids.contains(&point.id));
    points.map(|point| Target::new(point, &planned.list)).collect()
}

/// What only pins and sessions keep.
fn kept(planned: &Planned) -> Vec<Kept> {
    let machines = planned.plan.machines.iter();
    let ids: Vec<PointId> = machines
        .flat_map(|machine| machine.with(Outcome::KeepByPin))
        .map(|verdict| verdict.point.id)
        .collect();
    let targets = targets(planned, &ids);
    removing::split(targets, &planned.keepers).1
}
