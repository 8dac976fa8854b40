//! `backstay retention plan`.

use std::collections::HashMap;

use backstay_core::retention::{self, Outcome, Plan, Verdict};
use backstay_store::{PointId, PointList, RecoveryPoint, Repository};
use jiff::Zoned;
use serde::Serialize;

use super::rule::RuleArgs;
use crate::cmd::keepers::Keepers;
use crate::cmd::view;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Align, Table, clean, note};
use crate::units;

/// Show which recovery points rules would keep, and why; removes nothing
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay retention plan --keep-last 3 --keep-daily 7 --keep-weekly 4
  backstay retention plan --keep-younger-than 30d --keep-at-least 5 --machine web01
  backstay retention plan --keep-within 2w --keep-yearly 10 --time-zone UTC --json",
    &[Exit::Partial, Exit::NoRepository, Exit::WrongKey, Exit::NotFound]
))]
pub(crate) struct Args {
    #[command(flatten)]
    rule: RuleArgs,
}

/// A plan in JSON.
#[derive(Serialize)]
pub(super) struct Document {
    now: String,
    time_zone: String,
    machines: Vec<MachineView>,
    points: usize,
    removed: usize,
    /// Carrying the plan out will ask for a confirmation of these risks.
    needs_confirmation: bool,
    risks: Vec<Told>,
    notes: Vec<Told>,
    unreadable: Vec<String>,
}

#[derive(Serialize)]
struct MachineView {
    machine: String,
    rule: String,
    points: usize,
    removed: usize,
    verdicts: Vec<VerdictView>,
}

#[derive(Serialize)]
struct VerdictView {
    id: String,
    short_id: String,
    time: String,
    /// The same for people, in the zone of the plan.
    #[serde(skip)]
    local_time: String,
    outcome: &'static str,
    reasons: Vec<Told>,
}

/// A word for programs and a text for people.
#[derive(Serialize)]
struct Told {
    kind: &'static str,
    text: String,
}

impl Told {
    fn new(kind: &'static str, text: impl ToString) -> Told {
        Told { kind, text: text.to_string() }
    }
}

/// A plan, and what it was made from.
pub(super) struct Planned {
    pub(super) repository: Repository,
    pub(super) list: PointList,
    pub(super) keepers: Keepers,
    pub(super) plan: Plan,
    pub(super) document: Document,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let document = make(ctx, &args.rule)?.document;
    ctx.out.report(&document, |to| people(to, &document, &args.rule))?;
    Ok(tell_unreadable(ctx, &document))
}

/// Makes the plan that the arguments ask for.
pub(super) fn make(ctx: &Ctx, rule: &RuleArgs) -> Result<Planned, CliError> {
    let now = rule.now()?;
    let repository = ctx.open()?;
    let list = repository.points()?;
    let machine = rule.machine();
    if let Some(machine) = machine
        && !list.points.iter().any(|point| point.machine == machine)
    {
        return Err(CliError::new(Exit::NotFound, "there is no recovery point of this machine")
            .what(machine)
            .hint("backstay list      shows all recovery points"));
    }
    let keepers = Keepers::read(&repository)?;
    let plan = retention::plan(&keepers.facts(&list), &rule.rules(), &now)?;
    let document = document(&plan, &list, &now, machine);
    Ok(Planned { repository, list, keepers, plan, document })
}

/// Tells what is in no plan, and gives the exit code.
pub(super) fn tell_unreadable(ctx: &Ctx, document: &Document) -> Exit {
    if document.unreadable.is_empty() {
        return Exit::Done;
    }
    if !ctx.out.json {
        let count = document.unreadable.len();
        note(&format!("warning: {count} point(s) cannot be read and are in no plan: they stay"));
        note("find out more:  backstay repo check");
    }
    Exit::Partial
}

/// What is shown of a plan: all machines, or the one that was asked for.
fn document(plan: &Plan, list: &PointList, now: &Zoned, machine: Option<&str>) -> Document {
    let by_id: HashMap<PointId, &RecoveryPoint> =
        list.points.iter().map(|point| (point.id, point)).collect();
    let verdict = |verdict: &Verdict| VerdictView {
        id: verdict.point.id.to_string(),
        short_id: by_id
            .get(&verdict.point.id)
            .map_or_else(|| verdict.point.id.short(), |point| view::short_id(point, &list.points)),
        time: units::utc_time(verdict.point.time),
        local_time: units::time_in(verdict.point.time, now.time_zone().clone()),
        outcome: match verdict.outcome() {
            Outcome::Keep => "keep",
            Outcome::KeepByPin => "keep_by_pin",
            Outcome::Remove => "remove",
        },
        reasons: verdict.reasons.iter().map(|r| Told::new(r.word(), r)).collect(),
    };
    let shown = plan.machines.iter().filter(|m| machine.is_none_or(|name| name == m.machine));
    let machines: Vec<MachineView> = shown
        .map(|machine| MachineView {
            machine: machine.machine.clone(),
            rule: machine.rule.to_string(),
            points: machine.points.len(),
            removed: machine.removed(),
            verdicts: machine.points.iter().map(verdict).collect(),
        })
        .collect();
    Document {
        now: units::utc_time(now.timestamp()),
        time_zone: zone_name(now),
        points: machines.iter().map(|machine| machine.points).sum(),
        removed: plan.removed(),
        machines,
        needs_confirmation: !plan.risks.is_empty(),
        risks: plan.risks.iter().map(|risk| Told::new(risk.word(), risk)).collect(),
        notes: plan.notes.iter().map(|note| Told::new(note.word(), note)).collect(),
        unreadable: list.damaged.iter().map(|(id, _)| id.to_string()).collect(),
    }
}

/// The zone's name, or its offset where it has none.
fn zone_name(now: &Zoned) -> String {
    let zone = now.time_zone();
    zone.iana_name().map_or_else(|| now.strftime("%:z").to_string(), str::to_owned)
}

/// The plan for people.
pub(super) fn people(to: &mut String, document: &Document, rule: &RuleArgs) {
    if document.machines.is_empty() {
        to.push_str("there are no recovery points yet\n");
        return;
    }
    let mut table = Table::new(&[
        ("MACHINE", Align::Left),
        ("POINT", Align::Left),
        ("TIME", Align::Left),
        ("PLAN", Align::Left),
        ("BECAUSE", Align::Left),
    ]);
    for machine in &document.machines {
        for verdict in &machine.verdicts {
            let reasons: Vec<&str> = verdict.reasons.iter().map(|r| r.text.as_str()).collect();
            table.row([
                machine.machine.clone(),
                format!("@{}", verdict.short_id),
                verdict.local_time.clone(),
                match verdict.outcome {
                    "keep_by_pin" => "keep".to_owned(),
                    outcome => outcome.to_owned(),
                },
                because(verdict.outcome, &reasons),
            ]);
        }
    }
    table.render(to);
    to.push('\n');
    let rule = clean(&rule.rule().to_string());
    to.push_str(&format!("keep {rule}; days begin in {}\n", clean(&document.time_zone)));
    let (points, removed) = (document.points, document.removed);
    to.push_str(&format!("{removed} of {points} points would be removed\n"));
    for note in &document.notes {
        to.push_str(&format!("note: {}\n", clean(&note.text)));
    }
    for risk in &document.risks {
        to.push_str(&format!("risk: {}\n", clean(&risk.text)));
    }
}

/// The reasons; for a point held by a pin alone also what becomes of it afterwards.
fn because(outcome: &str, reasons: &[&str]) -> String {
    match outcome {
        "keep_by_pin" => format!("{} (no rule keeps it)", reasons.join(", ")),
        "remove" => "no rule keeps it".to_owned(),
        _ => reasons.join(", "),
    }
}
