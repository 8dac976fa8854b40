//! The plan: what is known of each point, and what becomes of it.

use backstay_store::{PointId, RecoveryPoint};
use jiff::Timestamp;

use super::{Note, OnRisk, Reason, Risk, Rule};

/// What retention needs to know of a recovery point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointFacts {
    /// The point. Given to [`plan`](super::plan) once.
    pub id: PointId,
    /// The machine it is of.
    pub machine: String,
    /// When it counts as made: the time its reader trusts most.
    pub time: Timestamp,
    /// Why it must stay, one text a pin; empty when it is not pinned. A live mount is a pin, too.
    pub pins: Vec<String>,
    /// Whether its data was read back and found whole.
    pub verified: bool,
}

impl From<&RecoveryPoint> for PointFacts {
    /// The facts in the record itself: neither pinned nor verified.
    fn from(point: &RecoveryPoint) -> Self {
        PointFacts {
            id: point.id,
            machine: point.machine.clone(),
            time: point.time,
            pins: Vec::new(),
            verified: false,
        }
    }
}

/// What becomes of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A rule keeps it.
    Keep,
    /// Only a pin keeps it: it will be removed once nobody pins it.
    KeepByPin,
    /// Nothing keeps it.
    Remove,
}

/// One point and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The point.
    pub point: PointFacts,
    /// Every reason to keep it; none when it is removed.
    pub reasons: Vec<Reason>,
}

impl Verdict {
    /// What becomes of the point.
    pub fn outcome(&self) -> Outcome {
        if self.reasons.is_empty() {
            Outcome::Remove
        } else if self.reasons.iter().all(|reason| matches!(reason, Reason::Pinned(_))) {
            Outcome::KeepByPin
        } else {
            Outcome::Keep
        }
    }

    pub(super) fn is_future(&self) -> bool {
        self.reasons.contains(&Reason::Future)
    }
}

/// The plan for one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachinePlan {
    /// The machine.
    pub machine: String,
    /// The rule that was applied.
    pub rule: Rule,
    /// All its points, newest first.
    pub points: Vec<Verdict>,
}

impl MachinePlan {
    /// Its points with this outcome, newest first.
    pub fn with(&self, outcome: Outcome) -> impl Iterator<Item = &Verdict> {
        self.points.iter().filter(move |verdict| verdict.outcome() == outcome)
    }

    /// How many are removed.
    pub fn removed(&self) -> usize {
        self.with(Outcome::Remove).count()
    }
}

/// What becomes of every point of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// One plan a machine, by name.
    pub machines: Vec<MachinePlan>,
    /// Why somebody should look before this plan is carried out; empty for an everyday plan.
    pub risks: Vec<Risk>,
    /// What was odd about the points or the rules.
    pub notes: Vec<Note>,
}

impl Plan {
    /// How many points there are.
    pub fn points(&self) -> usize {
        self.machines.iter().map(|machine| machine.points.len()).sum()
    }

    /// How many points are removed.
    pub fn removed(&self) -> usize {
        self.machines.iter().map(MachinePlan::removed).sum()
    }

    /// The points to remove, by machine, newest first. A plan with risks gives them only when the
    /// caller accepts the risks of this run, and the risks otherwise.
    pub fn removals(&self, on_risk: OnRisk) -> Result<Vec<PointId>, &[Risk]> {
        if !self.risks.is_empty() && on_risk == OnRisk::Refuse {
            return Err(&self.risks);
        }
        let removed = self.machines.iter().flat_map(|machine| machine.with(Outcome::Remove));
        Ok(removed.map(|verdict| verdict.point.id).collect())
    }
}
