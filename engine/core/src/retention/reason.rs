//! Why a point is kept.

use std::fmt;

use super::{Length, Period};

/// One reason to keep a point.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The machine's newest point.
    Newest,
    /// The machine's newest point that was verified.
    NewestVerified,
    /// Among the newest so many.
    Last {
        /// Its place, 1 for the newest.
        place: u32,
        /// How many are kept.
        of: u32,
    },
    /// No older than this when the newest was made.
    Within(Length),
    /// The newest of its period.
    Period {
        /// The kind of period.
        period: Period,
        /// The place of its period among those that have points, 1 for the newest.
        place: u32,
        /// How many are kept.
        of: u32,
        /// The period's name, for example `2026-11-20` or `2026-W47`.
        name: String,
    },
    /// No older than this by the clock.
    Younger(Length),
    /// Among those that are kept whatever their age.
    AtLeast {
        /// Its place, 1 for the newest.
        place: u32,
        /// How many are kept.
        of: u32,
    },
    /// Somebody pinned it, and said why.
    Pinned(String),
    /// Dated after `now`: kept, and counted nowhere.
    Future,
    /// The machine's rule has no parts.
    NoRule,
}

impl Reason {
    /// A word for programs; never changes its meaning.
    pub fn word(&self) -> &'static str {
        match self {
            Reason::Newest => "newest",
            Reason::NewestVerified => "newest_verified",
            Reason::Last { .. } => "last",
            Reason::Within(_) => "within",
            Reason::Period { period, .. } => match period {
                Period::Hour => "hourly",
                Period::Day => "daily",
                Period::Week => "weekly",
                Period::Month => "monthly",
                Period::Year => "yearly",
            },
            Reason::Younger(_) => "younger",
            Reason::AtLeast { .. } => "at_least",
            Reason::Pinned(_) => "pinned",
            Reason::Future => "future",
            Reason::NoRule => "no_rule",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Newest => f.write_str("newest"),
            Reason::NewestVerified => f.write_str("newest verified"),
            Reason::Last { place, of } => write!(f, "last {place}/{of}"),
            Reason::Within(length) => write!(f, "within {length}"),
            Reason::Period { period, place, of, name } => {
                write!(f, "{period} {place}/{of} ({name})")
            }
            Reason::Younger(length) => write!(f, "younger than {length}"),
            Reason::AtLeast { place, of } => write!(f, "at least {place}/{of}"),
            Reason::Pinned(why) if why.is_empty() => f.write_str("pinned"),
            Reason::Pinned(why) => write!(f, "pinned: {why}"),
            Reason::Future => f.write_str("dated in the future"),
            Reason::NoRule => f.write_str("no rule"),
        }
    }
}
