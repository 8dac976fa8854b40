//! What holds of every plan, whatever the points and the rules.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use backstay_store::PointId;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use proptest::prelude::*;

use super::*;

/// The moment of all plans: in the night in which summer time ended in Europe.
fn now() -> Zoned {
    let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
    "2026-10-25T01:30:00Z".parse::<Timestamp>().unwrap().to_zoned(zone)
}

/// Seconds before `now`: mostly of the last days, some of years, few of the future; seldom fine
/// enough to be unique, so that equal times are common.
fn age() -> impl Strategy<Value = i64> {
    prop_oneof![
        6 => (0i64..400).prop_map(|quarters| quarters * 900),
        3 => (0i64..120).prop_map(|weeks| weeks * 604_800),
        2 => -40i64..40,
        1 => (1i64..50).prop_map(|days| -days * 86_400),
    ]
}

fn points() -> impl Strategy<Value = Vec<PointFacts>> {
    let one = (age(), 0usize..3, prop::bool::weighted(0.1), prop::bool::weighted(0.2));
    proptest::collection::vec(one, 0..60).prop_map(|all| {
        let facts =
            all.into_iter().enumerate().map(|(number, (age, machine, pinned, verified))| {
                // Scattered, so that ids are not in the order of times.
                let scattered = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
                let mut id = [number as u8; 16];
                id[..8].copy_from_slice(&scattered);
                let seconds = now().timestamp().as_second() - age;
                PointFacts {
                    id: PointId::from_bytes(id),
                    machine: ["a", "b", "c"][machine].into(),
                    time: Timestamp::from_second(seconds).unwrap(),
                    pins: if pinned { vec!["why".into()] } else { Vec::new() },
                    verified,
                }
            });
        facts.collect()
    })
}

fn count() -> impl Strategy<Value = Option<NonZeroU32>> {
    prop_oneof![3 => Just(None), 2 => (1u32..9).prop_map(NonZeroU32::new)]
}

fn length() -> impl Strategy<Value = Option<Length>> {
    let texts = prop::sample::select(vec!["1s", "6h", "1d", "3w", "1mo", "1y6mo", "19000y"]);
    prop_oneof![2 => Just(None), 1 => texts.prop_map(|text| Some(text.parse().unwrap()))]
}

fn rule() -> impl Strategy<Value = Rule> {
    let counts = (count(), count(), count(), count(), count(), count());
    (counts, length(), length(), 0u32..4, prop::bool::weighted(0.2)).prop_map(
        |((last, hourly, daily, weekly, monthly, yearly), within, than, at_least, may_go)| Rule {
            last,
            within,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
            younger: than.map(|than| AgeRule { than, at_least }),
            newest_may_go: may_go,
        },
    )
}

fn rules() -> impl Strategy<Value = Rules> {
    (rule(), proptest::collection::btree_map("[abd]", rule(), 0..3))
        .prop_map(|(default, machines)| Rules { default, machines })
}

fn removed(points: &[PointFacts], rules: &Rules) -> BTreeSet<PointId> {
    let plan = plan(points, rules, &now()).unwrap();
    plan.removals(OnRisk::Accept).unwrap().into_iter().collect()
}

/// The part of `a` where it has one, else that of `b`; of two counts or lengths the larger keeps
/// what both keep.
fn joined(a: &Rule, b: &Rule) -> Rule {
    Rule {
        last: a.last.max(b.last),
        within: a.within.clone().or(b.within.clone()),
        hourly: a.hourly.max(b.hourly),
        daily: a.daily.max(b.daily),
        weekly: a.weekly.max(b.weekly),
        monthly: a.monthly.max(b.monthly),
        yearly: a.yearly.max(b.yearly),
        younger: a.younger.clone().or(b.younger.clone()),
        newest_may_go: a.newest_may_go,
    }
}

proptest! {
    #[test]
    fn every_point_is_judged_once_and_pins_always_hold(points in points(), rules in rules()) {
        let plan = plan(&points, &rules, &now()).unwrap();
        let judged: Vec<PointId> =
            plan.machines.iter().flat_map(|m| &m.points).map(|v| v.point.id).collect();
        let unique: BTreeSet<PointId> = judged.iter().copied().collect();
        prop_assert_eq!((judged.len(), unique.len()), (points.len(), points.len()));
        let removed: BTreeSet<_> = plan.removals(OnRisk::Accept).unwrap().into_iter().collect();
        prop_assert_eq!(removed.len(), plan.removed());
        for point in points.iter().filter(|point| !point.pins.is_empty()) {
            prop_assert!(!removed.contains(&point.id));
        }
    }

    #[test]
    fn the_newest_whose_time_has_come_never_goes_unasked(points in points(), rules in rules()) {
        let removed = removed(&points, &rules);
        let come = |point: &&PointFacts| point.time <= now().timestamp();
        for name in ["a", "b", "c"] {
            if rules.of(name).newest_may_go {
                continue;
            }
            let own = || points.iter().filter(|p| p.machine == name).filter(come);
            let newest = own().max_by_key(|p| (p.time, p.id));
            let verified = own().filter(|p| p.verified).max_by_key(|p| (p.time, p.id));
            for point in newest.into_iter().chain(verified) {
                prop_assert!(!removed.contains(&point.id), "{:?}", point);
            }
        }
    }

    #[test]
    fn more_rules_never_remove_more(points in points(), a in rule(), b in rule()) {
        prop_assume!(!a.is_empty());
        let more = removed(&points, &Rules::all(joined(&a, &b)));
        let less = removed(&points, &Rules::all(a));
        prop_assert!(more.is_subset(&less), "{:?} beyond {:?}", more, less);
    }

    #[test]
    fn carried_out_and_planned_again_nothing_more_goes(points in points(), rules in rules()) {
        let gone = removed(&points, &rules);
        let left: Vec<PointFacts> =
            points.into_iter().filter(|point| !gone.contains(&point.id)).collect();
        prop_assert_eq!(removed(&left, &rules), BTreeSet::new());
    }

    #[test]
    fn the_order_of_the_points_does_not_matter(
        (points, mixed) in points().prop_flat_map(|p| (Just(p.clone()), Just(p).prop_shuffle())),
        rules in rules(),
    ) {
        let (one, other) = (plan(&points, &rules, &now()), plan(&mixed, &rules, &now()));
        prop_assert_eq!(one.unwrap(), other.unwrap());
    }

    #[test]
    fn points_of_the_future_change_nothing_for_others(points in points(), rules in rules()) {
        let honest: Vec<PointFacts> =
            points.iter().filter(|p| p.time <= now().timestamp()).cloned().collect();
        prop_assert_eq!(removed(&points, &rules), removed(&honest, &rules));
        let risks = |points: &[PointFacts]| plan(points, &rules, &now()).unwrap().risks;
        prop_assert_eq!(risks(&points), risks(&honest));
    }

    #[test]
    fn a_plan_that_takes_much_is_never_carried_out_unasked(points in points(), rules in rules()) {
        let plan = plan(&points, &rules, &now()).unwrap();
        let come: Vec<_> = points.iter().filter(|p| p.time <= now().timestamp()).collect();
        let much = |removed: usize, of: usize| of >= 5 && removed * 5 > of;
        let mut wanted = much(plan.removed(), come.len());
        for machine in &plan.machines {
            let of = come.iter().filter(|p| p.machine == machine.machine).count();
            wanted |= much(machine.removed(), of) || (machine.removed() > 0 && machine.removed() == of);
        }
        prop_assert_eq!(plan.removals(OnRisk::Refuse).is_err(), wanted);
    }
}
