//! What a user asks to be kept.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;

use super::{Length, Period};

/// What is kept of one machine. Each part keeps points by itself; without parts, all are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// The newest so many.
    pub last: Option<NonZeroU32>,
    /// All that are no older than this, measured back from the machine's newest point.
    pub within: Option<Length>,
    /// The newest of each of the last so many hours that have points.
    pub hourly: Option<NonZeroU32>,
    /// Of days.
    pub daily: Option<NonZeroU32>,
    /// Of weeks.
    pub weekly: Option<NonZeroU32>,
    /// Of months.
    pub monthly: Option<NonZeroU32>,
    /// Of years.
    pub yearly: Option<NonZeroU32>,
    /// All that are young by the clock, and a least number whatever their age.
    pub younger: Option<AgeRule>,
    /// Lets the newest point and the newest verified point go when no part keeps them. It is meant
    /// for machines that are gone, and is no part: alone it removes nothing.
    pub newest_may_go: bool,
}

/// "No older than so long by the clock, but always so many."
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgeRule {
    /// Points up to this age are kept, measured back from `now`.
    pub than: Length,
    /// The newest so many are kept whatever their age.
    pub at_least: u32,
}

impl Rule {
    /// The count for a kind of period.
    pub fn of(&self, period: Period) -> Option<NonZeroU32> {
        match period {
            Period::Hour => self.hourly,
            Period::Day => self.daily,
            Period::Week => self.weekly,
            Period::Month => self.monthly,
            Period::Year => self.yearly,
        }
    }

    /// Whether no part is set, which keeps everything.
    pub fn is_empty(&self) -> bool {
        let counts = Period::ALL.iter().all(|period| self.of(*period).is_none());
        counts && self.last.is_none() && self.within.is_none() && self.younger.is_none()
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("everything");
        }
        let mut parts = Vec::new();
        parts.extend(self.last.map(|n| format!("last {n}")));
        parts.extend(self.within.as_ref().map(|length| format!("within {length} of the newest")));
        for period in Period::ALL {
            parts.extend(self.of(period).map(|n| format!("{period} {n}")));
        }
        parts.extend(self.younger.as_ref().map(|age| match age.at_least {
            0 => format!("younger than {}", age.than),
            n => format!("younger than {} and at least {n}", age.than),
        }));
        if self.newest_may_go {
            parts.push("the newest may go".into());
        }
        f.write_str(&parts.join(", "))
    }
}

/// The rules of a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// For machines without a rule of their own.
    pub default: Rule,
    /// Machines with a rule of their own, which stands in place of the default.
    pub machines: BTreeMap<String, Rule>,
}

impl Rules {
    /// One rule for all machines.
    pub fn all(rule: Rule) -> Rules {
        Rules { default: rule, machines: BTreeMap::new() }
    }

    /// A rule for one machine alone; all points of others are kept.
    pub fn only(machine: impl Into<String>, rule: Rule) -> Rules {
        Rules { default: Rule::default(), machines: BTreeMap::from([(machine.into(), rule)]) }
    }

    /// The rule of a machine.
    pub fn of(&self, machine: &str) -> &Rule {
        self.machines.get(machine).unwrap_or(&self.default)
    }
}
