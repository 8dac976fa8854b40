//! Applying rules to points.

use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroU32;

use jiff::{Timestamp, Zoned};

use super::plan::{MachinePlan, Plan, PointFacts, Verdict};
use super::{Note, Period, Reason, Rule, Rules, guard};
use crate::error::{Error, ErrorKind, Result};

/// Says for each point whether it is kept, and why. `now` gives the time and, with its zone, where
/// days begin. The same input gives the same plan, in whatever order the points come; applying a
/// plan and planning again at the same `now` removes nothing more.
///
/// Errors: `Invalid` when a point is given twice, for then it could be kept and removed at once.
pub fn plan(points: &[PointFacts], rules: &Rules, now: &Zoned) -> Result<Plan> {
    let mut seen = HashSet::new();
    let mut by_machine: BTreeMap<&str, Vec<&PointFacts>> = BTreeMap::new();
    for point in points {
        if !seen.insert(point.id) {
            let twice = format!("point @{} is given twice to the retention plan", point.id);
            return Err(Error::new(ErrorKind::Invalid, twice));
        }
        by_machine.entry(&point.machine).or_default().push(point);
    }
    let machines: Vec<MachinePlan> = by_machine
        .iter()
        .map(|(machine, points)| MachinePlan {
            machine: (*machine).to_owned(),
            rule: rules.of(machine).clone(),
            points: judge(points, rules.of(machine), now),
        })
        .collect();
    let mut notes: Vec<Note> = machines.iter().flat_map(guard::oddities).collect();
    let unknown = rules.machines.keys().filter(|name| !by_machine.contains_key(name.as_str()));
    notes.extend(unknown.map(|machine| Note::NoSuchMachine { machine: machine.clone() }));
    Ok(Plan { risks: guard::risks(&machines), machines, notes })
}

/// The verdicts on one machine's points, newest first.
fn judge(points: &[&PointFacts], rule: &Rule, now: &Zoned) -> Vec<Verdict> {
    let mut verdicts: Vec<Verdict> = points
        .iter()
        .map(|point| Verdict { point: (*point).clone(), reasons: Vec::new() })
        .collect();
    verdicts.sort_unstable_by_key(|v| std::cmp::Reverse((v.point.time, v.point.id)));
    let future = verdicts.partition_point(|verdict| verdict.point.time > now.timestamp());
    let (future, past) = verdicts.split_at_mut(future);
    for verdict in future.iter_mut() {
        verdict.reasons.push(Reason::Future);
    }
    if rule.is_empty() {
        past.iter_mut().for_each(|verdict| verdict.reasons.push(Reason::NoRule));
    } else {
        keep_by_rule(past, rule, now);
    }
    for verdict in &mut verdicts {
        let pins = verdict.point.pins.iter().cloned().map(Reason::Pinned);
        verdict.reasons.extend(pins);
    }
    verdicts
}

/// Adds the reasons of a rule that has parts to points whose time has come, newest first.
fn keep_by_rule(points: &mut [Verdict], rule: &Rule, now: &Zoned) {
    let Some(newest) = points.first().map(|verdict| verdict.point.time) else { return };
    if !rule.newest_may_go {
        points[0].reasons.push(Reason::Newest);
        if let Some(verified) = points.iter_mut().find(|verdict| verdict.point.verified) {
            verified.reasons.push(Reason::NewestVerified);
        }
    }
    if let Some(of) = rule.last {
        keep_newest(points, of.get(), |place, of| Reason::Last { place, of });
    }
    if let Some(length) = &rule.within {
        let since = length.before(&newest.to_zoned(now.time_zone().clone()));
        keep_since(points, since, &Reason::Within(length.clone()));
    }
    for period in Period::ALL {
        if let Some(of) = rule.of(period) {
            keep_periods(points, period, of, now);
        }
    }
    if let Some(age) = &rule.younger {
        keep_since(points, age.than.before(now), &Reason::Younger(age.than.clone()));
        keep_newest(points, age.at_least, |place, of| Reason::AtLeast { place, of });
    }
}

fn keep_newest(points: &mut [Verdict], of: u32, reason: impl Fn(u32, u32) -> Reason) {
    for (verdict, place) in points.iter_mut().zip(1..=of) {
        verdict.reasons.push(reason(place, of));
    }
}

/// Keeps what is no older than `since`; everything without it.
fn keep_since(points: &mut [Verdict], since: Option<Timestamp>, reason: &Reason) {
    for verdict in points {
        if since.is_none_or(|since| verdict.point.time >= since) {
            verdict.reasons.push(reason.clone());
        }
    }
}

/// Keeps the newest point of each of the newest periods that have points.
fn keep_periods(points: &mut [Verdict], period: Period, of: NonZeroU32, now: &Zoned) {
    let mut names = HashSet::new();
    let mut places = 1..=of.get();
    for verdict in points {
        let time = verdict.point.time.to_zoned(now.time_zone().clone());
        let name = period.name_of(&time);
        // A set, not the last name: where clocks go back across midnight, a day comes twice.
        if !names.insert(name.clone()) {
            continue;
        }
        let Some(place) = places.next() else { return };
        verdict.reasons.push(Reason::Period { period, place, of: of.get(), name });
    }
}
