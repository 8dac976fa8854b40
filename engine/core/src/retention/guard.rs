//! The guard: plans that somebody should look at before they are carried out.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use backstay_store::PointId;
use jiff::Timestamp;

use super::{MachinePlan, Outcome, PointFacts};

/// Shares are looked at from so many points on: below, one point is a fifth and more.
const SHARE_FROM: usize = 5;
/// One part in so many may go unasked.
const SHARE: usize = 5;

/// Why a plan must be confirmed. `Display` says it in words.
///
/// The tools before us removed every backup of a group because of a mistyped word; a rule that
/// suddenly fits much more than yesterday is a mistake, a wrong clock or an attack. Points dated in
/// the future are no part of the shares, or a flood of them would make any removal look small.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Risk {
    /// A machine would be left without any point whose time has come.
    EmptiesMachine {
        /// The machine.
        machine: String,
        /// How many points it would lose.
        removed: usize,
    },
    /// More than a fifth of a machine's points would go; it has five or more.
    MuchOfMachine {
        /// The machine.
        machine: String,
        /// How many points it would lose.
        removed: usize,
        /// How many it has.
        of: usize,
    },
    /// More than a fifth of all points would go; there are five or more.
    MuchOfRepository {
        /// How many points would go.
        removed: usize,
        /// How many there are.
        of: usize,
    },
}

impl Risk {
    /// A word for programs; never changes its meaning.
    pub fn word(&self) -> &'static str {
        match self {
            Risk::EmptiesMachine { .. } => "empties_machine",
            Risk::MuchOfMachine { .. } => "much_of_machine",
            Risk::MuchOfRepository { .. } => "much_of_repository",
        }
    }
}

impl fmt::Display for Risk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Risk::EmptiesMachine { machine, removed } => {
                let points = points(*removed);
                write!(f, "{machine} would lose its last {points} and have none to restore from")
            }
            Risk::MuchOfMachine { machine, removed, of } => {
                write!(f, "{machine} would lose {removed} of its {of} points, more than a fifth")
            }
            Risk::MuchOfRepository { removed, of } => {
                write!(f, "the repository would lose {removed} of {of} points, more than a fifth")
            }
        }
    }
}

/// What to do with a plan that has risks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnRisk {
    /// Give the risks back. What every caller does that nobody asked.
    Refuse,
    /// A person has seen the risks of this run and wants it.
    Accept,
}

/// Something odd that changes nothing, and that a person should know. `Display` says it in words.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Note {
    /// Points dated after `now`: a wrong clock, or a forged time.
    Future {
        /// The machine.
        machine: String,
        /// The points, newest first.
        points: Vec<PointId>,
        /// The latest of their times.
        until: Timestamp,
    },
    /// Points of one machine with the same time; the larger id counts as newer.
    EqualTimes {
        /// The machine.
        machine: String,
        /// The time.
        time: Timestamp,
        /// The points, newest first.
        points: Vec<PointId>,
    },
    /// A rule for a machine that has no points: a mistyped name, perhaps.
    NoSuchMachine {
        /// The name in the rules.
        machine: String,
    },
}

impl Note {
    /// A word for programs; never changes its meaning.
    pub fn word(&self) -> &'static str {
        match self {
            Note::Future { .. } => "future",
            Note::EqualTimes { .. } => "equal_times",
            Note::NoSuchMachine { .. } => "no_such_machine",
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Future { machine, points: them, until } => write!(
                f,
                "{machine} has {} dated in the future, until {until}: kept, and counted nowhere",
                points(them.len())
            ),
            Note::EqualTimes { machine, time, points: them } => write!(
                f,
                "{machine} has {} of the same time {time}: the larger id counts as newer",
                points(them.len())
            ),
            Note::NoSuchMachine { machine } => {
                write!(f, "there is a rule for {machine}, and no point of such a machine")
            }
        }
    }
}

fn points(count: usize) -> String {
    if count == 1 { "1 point".into() } else { format!("{count} points") }
}

/// What a machine has and would lose, as the guard counts it.
struct Share {
    machine: String,
    removed: usize,
    of: usize,
}

/// The risks of what is planned.
pub(super) fn risks(machines: &[MachinePlan]) -> Vec<Risk> {
    judge(machines.iter().map(|plan| Share {
        machine: plan.machine.clone(),
        removed: plan.with(Outcome::Remove).count(),
        of: plan.points.iter().filter(|verdict| !verdict.is_future()).count(),
    }))
}

/// The risks of removing exactly the points in `removed`, chosen by a person and not by rules.
/// `points` are all points of the repository, also those that stay.
///
/// Points dated after `now` are in no share, as in a plan; a machine that would lose all it has
/// loses its last points, whatever their dates. A point whose record cannot be read is given with an
/// empty machine, and counts in the repository's share alone.
pub fn risks_of_removal(
    points: &[PointFacts],
    removed: &HashSet<PointId>,
    now: Timestamp,
) -> Vec<Risk> {
    let mut by_machine: BTreeMap<&str, Vec<&PointFacts>> = BTreeMap::new();
    for point in points {
        by_machine.entry(&point.machine).or_default().push(point);
    }
    judge(by_machine.into_iter().map(|(machine, points)| {
        let goes = |point: &&&PointFacts| removed.contains(&point.id);
        let all_go = points.iter().all(|point| removed.contains(&point.id));
        let counted: Vec<&PointFacts> =
            points.into_iter().filter(|point| all_go || point.time <= now).collect();
        let removed = counted.iter().filter(goes).count();
        Share { machine: machine.to_owned(), removed, of: counted.len() }
    }))
}

fn judge(shares: impl Iterator<Item = Share>) -> Vec<Risk> {
    let mut risks = Vec::new();
    let (mut all, mut all_removed) = (0, 0);
    for Share { machine, removed, of } in shares {
        all += of;
        all_removed += removed;
        if machine.is_empty() {
            continue;
        }
        if removed > 0 && removed == of {
            risks.push(Risk::EmptiesMachine { machine, removed });
        } else if is_much(removed, of) {
            risks.push(Risk::MuchOfMachine { machine, removed, of });
        }
    }
    if is_much(all_removed, all) {
        risks.push(Risk::MuchOfRepository { removed: all_removed, of: all });
    }
    risks
}

fn is_much(removed: usize, of: usize) -> bool {
    of >= SHARE_FROM && removed.saturating_mul(SHARE) > of
}

/// What is odd about one machine's points, which stand newest first.
pub(super) fn oddities(plan: &MachinePlan) -> Vec<Note> {
    let mut notes = Vec::new();
    let future: Vec<_> = plan.points.iter().filter(|verdict| verdict.is_future()).collect();
    if let Some(latest) = future.first() {
        notes.push(Note::Future {
            machine: plan.machine.clone(),
            points: future.iter().map(|verdict| verdict.point.id).collect(),
            until: latest.point.time,
        });
    }
    for twins in plan.points.chunk_by(|a, b| a.point.time == b.point.time) {
        if let [first, _, ..] = twins {
            notes.push(Note::EqualTimes {
                machine: plan.machine.clone(),
                time: first.point.time,
                points: twins.iter().map(|verdict| verdict.point.id).collect(),
            });
        }
    }
    notes
}
