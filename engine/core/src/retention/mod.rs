//! Which recovery points to keep: a plan made from facts, with no I/O and no clock.
//!
//! [`plan`] looks at the points of a repository and at [`Rules`], and says for each point whether it
//! is kept, with every [`Reason`], or removed. It removes nothing itself. Whoever carries a plan out
//! asks [`Plan::removals`], which gives the points only when the plan holds no [`Risk`] or the
//! caller has confirmed the risks of this very run.
//!
//! # What the rules mean
//!
//! As in restic's `forget`, which most people know:
//!
//! - Each part of a [`Rule`] keeps points by itself; a point goes when no part keeps it. Adding a
//!   part to a rule that has one therefore never removes more.
//! - "daily 7" keeps the newest point of each of the last seven days *that have points*: a machine
//!   that was off for a month loses none of its days. Hours, weeks (from Monday, ISO 8601), months
//!   and years likewise. Days begin in the time zone of `now`; the hour that comes twice when
//!   summer time ends is two hours.
//! - "within 30d" measures back from the machine's newest point, not from the clock: a machine that
//!   makes no backups any more does not melt away.
//! - "younger than 30d, at least 5" measures by the clock, as rules of law do, and keeps the newest
//!   five however old they are.
//! - A rule without parts keeps everything.
//!
//! Whatever the parts say, a machine's newest point and its newest verified point stay, unless the
//! rule has [`Rule::newest_may_go`]; a pinned point stays always.
//!
//! # Forged and odd times
//!
//! The time of a point is told by whoever made it, and may be a lie.
//!
//! - A point dated after `now` is kept, told in [`Plan::notes`], and counts for nothing: it fills no
//!   place of a count, is nobody's newest, moves no measure and is left out of the guard's shares. So it
//!   pushes nothing out, and once its time has come it is a point like others.
//! - Of points of one time the one with the larger id counts as newer, in whatever order they are
//!   given; they are told too.
//! - A flood of points dated before `now` can fill the places of counts. "within" and "younger than"
//!   cannot be crowded out, the newest verified point stays, and a flood makes the plan a [`Risk`].
//!   A server passes the time at which it received a point, which its clients cannot choose.

mod guard;
mod judge;
mod length;
mod period;
mod plan;
#[cfg(test)]
mod props;
mod reason;
mod rule;
#[cfg(test)]
mod tests;

pub use guard::{Note, OnRisk, Risk, risks_of_removal};
pub use judge::plan;
pub use length::Length;
pub use period::Period;
pub use plan::{MachinePlan, Outcome, Plan, PointFacts, Verdict};
pub use reason::Reason;
pub use rule::{AgeRule, Rule, Rules};
