//! Removing recovery points, as every command does that removes some: what is too much to go
//! unasked, what stays and why, and how it is told.

use backstay_core::retention::Risk;
use backstay_store::{Cause, PointId, PointList, RecoveryPoint, Repository};
use serde::Serialize;

use super::keepers::{self, KeeperView, Keepers};
use super::view;
use crate::context::Ctx;
use crate::exit::{CliError, Exit};
use crate::output::{clean, note};
use crate::units;

/// Points that a question names; more are counted.
const NAMED_MAX: usize = 8;

/// The second word that a removal needs which would lose much.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct GuardArgs {
    /// Remove also when a machine would lose its last points, or more than a fifth of a machine's
    /// points or of all (where there are five or more) would go at once
    #[arg(long)]
    pub(crate) allow_mass_removal: bool,
}

/// A point that is to go, or that stays, in JSON.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Target {
    pub(crate) id: String,
    pub(crate) short_id: String,
    /// Nothing where the record cannot be read.
    pub(crate) machine: Option<String>,
    pub(crate) time: Option<String>,
    #[serde(skip)]
    pub(crate) point: PointId,
    #[serde(skip)]
    local_time: String,
}

/// A point that stays, and what keeps it, in JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Kept {
    #[serde(flatten)]
    pub(crate) target: Target,
    /// Empty when it was kept by something that was over a moment later.
    pub(crate) kept_by: Vec<KeeperView>,
}

/// What became of points.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    pub(crate) removed: Vec<Target>,
    pub(crate) kept: Vec<Kept>,
}

impl Target {
    pub(crate) fn new(point: &RecoveryPoint, list: &PointList) -> Self {
        Self {
            id: point.id.to_string(),
            short_id: view::short_id(point, &list.points),
            machine: Some(point.machine.clone()),
            time: Some(units::utc_time(point.time)),
            point: point.id,
            local_time: units::local_time(point.time),
        }
    }

    /// A point whose record cannot be read.
    pub(crate) fn unreadable(point: PointId) -> Self {
        let id = point.to_string();
        Self {
            short_id: id.clone(),
            id,
            machine: None,
            time: None,
            point,
            local_time: "its record cannot be read".to_owned(),
        }
    }

    /// As a user would name it, and when it was made.
    pub(crate) fn told(&self) -> String {
        let machine = self.machine.as_deref().unwrap_or_default();
        format!("{machine}@{} ({})", self.short_id, self.local_time)
    }
}

/// Splits off what is kept already.
pub(crate) fn split(targets: Vec<Target>, keepers: &Keepers) -> (Vec<Target>, Vec<Kept>) {
    let (mut free, mut kept) = (Vec::new(), Vec::new());
    for target in targets {
        match keepers.of(target.point) {
            none if none.is_empty() => free.push(target),
            kept_by => kept.push(Kept { target, kept_by }),
        }
    }
    (free, kept)
}

/// Refuses a removal with risks that nobody has accepted.
pub(crate) fn refuse(risks: &[Risk], guard: GuardArgs) -> Result<(), CliError> {
    if risks.is_empty() || guard.allow_mass_removal {
        return Ok(());
    }
    let mut error = CliError::new(
        Exit::NeedsConfirmation,
        "this would remove more than goes unasked; nothing was removed",
    );
    error.causes = risks.iter().map(Risk::to_string).collect();
    Err(error.hint("the same command with --dry-run                 shows what would go").hint(
        "the same command with --allow-mass-removal      removes it, if that is what you want",
    ))
}

/// Asks before points are removed. To agree, the machine's name is typed, or `remove` where there
/// are several.
pub(crate) fn ask(ctx: &Ctx, targets: &[Target]) -> Result<(), CliError> {
    let Some(first) = targets.first() else { return Ok(()) };
    let mut named: Vec<String> =
        targets.iter().take(NAMED_MAX).map(|target| clean(&target.told())).collect();
    if targets.len() > named.len() {
        named.push(format!("{} more", targets.len() - named.len()));
    }
    let count = if targets.len() == 1 { "recovery point" } else { "recovery points" };
    let question = format!("remove {} {count} for good: {}", targets.len(), named.join(", "));
    let machine = first.machine.as_deref();
    let one = targets.iter().all(|target| target.machine.as_deref() == machine);
    ctx.confirm(&question, machine.filter(|_| one).unwrap_or("remove"))
}

/// Removes points. What was pinned or came into use since the question stays.
pub(crate) fn remove(
    repository: &Repository,
    targets: Vec<Target>,
    reason: &str,
) -> Result<Removed, CliError> {
    let cause = Cause { by: keepers::me(), reason: reason.to_owned() };
    let ids: Vec<PointId> = targets.iter().map(|target| target.point).collect();
    let report = repository.remove_points(&ids, &cause).map_err(|error| {
        CliError::from(error)
            .hint("backstay list      shows what is left, and the same command goes on")
    })?;
    let mut done = Removed::default();
    let now = if report.kept.is_empty() { Keepers::default() } else { Keepers::read(repository)? };
    for target in targets {
        match report.kept.iter().find(|(id, _)| *id == target.point) {
            None => done.removed.push(target),
            Some(_) => {
                let kept_by = now.of(target.point);
                done.kept.push(Kept { target, kept_by });
            }
        }
    }
    Ok(done)
}

/// Tells on stderr what stays, who keeps it, and what ends that; also under `--quiet`.
pub(crate) fn tell_kept(kept: &[Kept]) {
    for Kept { target, kept_by } in kept {
        if kept_by.is_empty() {
            let told = clean(&target.told());
            note(&format!("kept  {told}: what kept it is over by now; the same command again"));
        }
        for keeper in kept_by {
            note(&format!("kept  {}: {}", clean(&target.told()), clean(&keeper.told())));
            note(&format!("  try  {}", clean(&keeper.release)));
        }
    }
}
