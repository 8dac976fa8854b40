use std::num::NonZeroU32;

use backstay_store::PointId;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use super::*;
use crate::ErrorKind;

/// A zone with summer time, without asking the machine for its table of zones.
fn central_europe() -> TimeZone {
    TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
}

fn at(time: &str) -> Zoned {
    time.parse::<Timestamp>().unwrap().to_zoned(TimeZone::UTC)
}

fn id(number: u8) -> PointId {
    PointId::from_bytes([number; 16])
}

/// The points of `web01` with ids 1, 2, ... at these times.
fn web01(times: &[&str]) -> Vec<PointFacts> {
    machine("web01", 1, times)
}

fn machine(name: &str, first: u8, times: &[&str]) -> Vec<PointFacts> {
    let facts = times.iter().zip(first..).map(|(time, number)| PointFacts {
        id: id(number),
        machine: name.into(),
        time: time.parse().unwrap(),
        pins: Vec::new(),
        verified: false,
    });
    facts.collect()
}

/// One point a day at noon, the first of them on 1 November.
fn days(count: usize) -> Vec<PointFacts> {
    let times: Vec<String> = (1..=count).map(|day| format!("2026-11-{day:02}T12:00:00Z")).collect();
    web01(&times.iter().map(String::as_str).collect::<Vec<_>>())
}

fn n(count: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(count)
}

fn length(text: &str) -> Length {
    text.parse().unwrap()
}

fn last(count: u32) -> Rule {
    Rule { last: n(count), ..Rule::default() }
}

/// What becomes of each point of the first machine, newest first: its number and its reasons.
fn shown(plan: &Plan) -> Vec<String> {
    let verdicts = plan.machines[0].points.iter();
    verdicts
        .map(|verdict| {
            let reasons: Vec<String> = verdict.reasons.iter().map(ToString::to_string).collect();
            let number = verdict.point.id.as_bytes()[0];
            format!("{number}: {}", reasons.join(", ")).trim_end().to_owned()
        })
        .collect()
}

fn planned(points: &[PointFacts], rule: Rule, now: &Zoned) -> Plan {
    plan(points, &Rules::all(rule), now).unwrap()
}

const NOON: &str = "2026-11-22T12:00:00Z";

#[test]
fn without_a_rule_everything_stays() {
    let only_a_flag = Rule { newest_may_go: true, ..Rule::default() };
    for rule in [Rule::default(), only_a_flag] {
        let plan = planned(&days(3), rule, &at(NOON));
        assert_eq!(shown(&plan), ["3: no rule", "2: no rule", "1: no rule"]);
        assert_eq!((plan.points(), plan.removed()), (3, 0));
        assert!(plan.risks.is_empty() && plan.notes.is_empty());
    }
}

#[test]
fn every_reason_is_told() {
    let rule = Rule { daily: n(2), weekly: n(2), within: Some(length("1d")), ..last(1) };
    let plan = planned(&days(10), rule, &at(NOON));
    assert_eq!(
        shown(&plan),
        [
            "10: newest, last 1/1, within 1d, daily 1/2 (2026-11-10), weekly 1/2 (2026-W46)",
            "9: within 1d, daily 2/2 (2026-11-09)",
            "8: weekly 2/2 (2026-W45)",
            "7:",
            "6:",
            "5:",
            "4:",
            "3:",
            "2:",
            "1:"
        ]
    );
}

#[test]
fn a_period_keeps_its_newest_and_empty_periods_do_not_count() {
    let points = web01(&[
        "2024-12-30T10:00:00Z",
        "2025-06-01T10:00:00Z",
        "2025-12-31T10:00:00Z",
        "2026-11-01T10:00:00Z",
        "2026-11-01T22:00:00Z",
    ]);
    let numbers = |rule: Rule| -> Vec<u8> {
        let plan = planned(&points, rule, &at(NOON));
        let kept = plan.machines[0].with(Outcome::Keep);
        kept.map(|verdict| verdict.point.id.as_bytes()[0]).collect()
    };
    assert_eq!(numbers(Rule { yearly: n(3), ..Rule::default() }), [5, 3, 1]);
    assert_eq!(numbers(Rule { yearly: n(2), ..Rule::default() }), [5, 3]);
    assert_eq!(numbers(Rule { monthly: n(3), ..Rule::default() }), [5, 3, 2]);
    assert_eq!(numbers(Rule { daily: n(2), ..Rule::default() }), [5, 3]);
    assert_eq!(numbers(Rule { hourly: n(2), ..Rule::default() }), [5, 4]);
    // 2024-12-30 is a Monday of week 1 of 2025.
    assert_eq!(numbers(Rule { weekly: n(9), ..Rule::default() }), [5, 3, 2, 1]);
    assert_eq!(numbers(Rule { yearly: n(u32::MAX), ..Rule::default() }), [5, 3, 1]);
}

#[test]
fn days_begin_in_the_zone_of_now() {
    let points = web01(&["2026-11-20T22:30:00Z", "2026-11-20T23:30:00Z"]);
    let daily = Rule { daily: n(5), ..Rule::default() };
    let kept = |zone: TimeZone| {
        let now = NOON.parse::<Timestamp>().unwrap().to_zoned(zone);
        planned(&points, daily.clone(), &now).machines[0].with(Outcome::Keep).count()
    };
    assert_eq!(kept(TimeZone::UTC), 1);
    assert_eq!(kept(central_europe()), 2);
}

#[test]
fn the_days_on_which_clocks_change_are_days_like_others() {
    // Summer time of 2026 begins on 29 March and ends on 25 October, when 02:00 to 03:00 comes
    // twice: first at +02:00, then at +01:00.
    let points = web01(&[
        "2026-03-28T23:30:00Z",
        "2026-03-29T21:30:00Z",
        "2026-03-29T22:30:00Z",
        "2026-10-25T00:15:00Z",
        "2026-10-25T00:45:00Z",
        "2026-10-25T01:15:00Z",
        "2026-10-25T22:45:00Z",
    ]);
    let now = at(NOON).with_time_zone(central_europe());
    let hourly = planned(&points, Rule { hourly: n(9), ..Rule::default() }, &now);
    assert_eq!(
        shown(&hourly),
        [
            "7: newest, hourly 1/9 (2026-10-25 23:00 +01:00)",
            "6: hourly 2/9 (2026-10-25 02:00 +01:00)",
            "5: hourly 3/9 (2026-10-25 02:00 +02:00)",
            "4:",
            "3: hourly 4/9 (2026-03-30 00:00 +02:00)",
            "2: hourly 5/9 (2026-03-29 23:00 +02:00)",
            "1: hourly 6/9 (2026-03-29 00:00 +01:00)"
        ]
    );
    let daily = planned(&points, Rule { daily: n(9), ..Rule::default() }, &now);
    let kept: Vec<u8> =
        daily.machines[0].with(Outcome::Keep).map(|v| v.point.id.as_bytes()[0]).collect();
    assert_eq!(kept, [7, 3, 2]);
}

#[test]
fn where_clocks_go_back_over_midnight_a_day_that_comes_twice_counts_once() {
    // As Newfoundland did until 2011: at 00:01 it is 23:01 of the day before again.
    let zone = TimeZone::posix("NST3:30NDT,M3.2.0/0:01,M11.1.0/0:01").unwrap();
    let points = web01(&[
        "2026-10-31T12:00:00Z", // 31 October
        "2026-11-01T02:00:00Z", // 23:30 of 31 October, the first time
        "2026-11-01T02:30:30Z", // half a minute into 1 November
        "2026-11-01T02:40:00Z", // 23:10 of 31 October, again
        "2026-11-01T05:00:00Z", // 1 November
    ]);
    let now = at(NOON).with_time_zone(zone);
    let plan = planned(&points, Rule { daily: n(9), ..Rule::default() }, &now);
    assert_eq!(
        shown(&plan),
        ["5: newest, daily 1/9 (2026-11-01)", "4: daily 2/9 (2026-10-31)", "3:", "2:", "1:"]
    );
}

#[test]
fn age_is_measured_from_the_newest_or_by_the_clock_as_asked() {
    // The machine made its last backup on the 10th; now it is the 22nd.
    let within = Rule { within: Some(length("3d")), ..Rule::default() };
    assert_eq!(planned(&days(10), within, &at(NOON)).removed(), 6);
    let younger = |than: &str, at_least| Rule {
        younger: Some(AgeRule { than: length(than), at_least }),
        ..Rule::default()
    };
    // The ages are 12 days and more: only the newest is kept, because it is the newest.
    assert_eq!(planned(&days(10), younger("5d", 0), &at(NOON)).removed(), 9);
    // The edge itself is still within.
    assert_eq!(planned(&days(10), younger("12d", 0), &at(NOON)).removed(), 9);
    assert_eq!(planned(&days(10), younger("13d", 0), &at(NOON)).removed(), 8);
    let plan = planned(&days(4), younger("5d", 2), &at(NOON));
    assert_eq!(shown(&plan), ["4: newest, at least 1/2", "3: at least 2/2", "2:", "1:"]);
    // Longer than there is time: everything is younger.
    assert_eq!(planned(&days(4), younger("19000y", 0), &at(NOON)).removed(), 0);
}

#[test]
fn the_newest_goes_only_where_it_was_said() {
    let rule = Rule {
        younger: Some(AgeRule { than: length("1d"), at_least: 0 }),
        newest_may_go: true,
        ..Rule::default()
    };
    let mut points = days(3);
    points[0].verified = true;
    let plan = planned(&points, rule.clone(), &at(NOON));
    assert_eq!(plan.removed(), 3);
    let [risk] = plan.risks.as_slice() else { panic!("{:?}", plan.risks) };
    assert_eq!(*risk, Risk::EmptiesMachine { machine: "web01".into(), removed: 3 });
    assert!(risk.to_string().contains("none to restore from"), "{risk}");
    assert_eq!(plan.removals(OnRisk::Refuse), Err(&plan.risks[..]));
    assert_eq!(plan.removals(OnRisk::Accept).unwrap(), [id(3), id(2), id(1)]);
    // A point that is younger stays, whatever may go.
    let soon = at("2026-11-04T11:00:00Z");
    assert_eq!(shown(&planned(&points, rule, &soon))[0], "3: younger than 1d");
}

#[test]
fn the_newest_verified_point_stays_beside_the_newest() {
    let mut points = days(6);
    points[1].verified = true;
    points[2].verified = true;
    let plan = planned(&points, last(1), &at(NOON));
    assert_eq!(shown(&plan), ["6: newest, last 1/1", "5:", "4:", "3: newest verified", "2:", "1:"]);
}

#[test]
fn a_pin_keeps_and_says_what_would_happen_without() {
    let mut points = days(4);
    points[0].pins = vec!["legal hold".into(), "mounted at /mnt".into()];
    points[3].pins = vec![String::new()];
    let plan = planned(&points, last(2), &at(NOON));
    assert_eq!(
        shown(&plan),
        [
            "4: newest, last 1/2, pinned",
            "3: last 2/2",
            "2:",
            "1: pinned: legal hold, pinned: mounted at /mnt"
        ]
    );
    let by_pin: Vec<_> = plan.machines[0].with(Outcome::KeepByPin).collect();
    assert_eq!((by_pin.len(), by_pin[0].point.id), (1, id(1)));
    assert_eq!(plan.removals(OnRisk::Refuse).unwrap(), [id(2)]);
}

#[test]
fn points_dated_in_the_future_push_nothing_out_and_blind_no_guard() {
    let honest = days(10);
    let rule = Rule { daily: n(3), within: Some(length("2d")), ..last(2) };
    let before = planned(&honest, rule.clone(), &at(NOON));
    let mut forged = honest;
    for number in 0..100 {
        forged.push(PointFacts {
            id: id(100 + number),
            time: "2027-01-01T00:00:00Z".parse().unwrap(),
            verified: true,
            ..forged[0].clone()
        });
    }
    let plan = planned(&forged, rule, &at(NOON));
    assert_eq!(plan.removals(OnRisk::Accept), before.removals(OnRisk::Accept));
    assert_eq!(plan.risks, before.risks);
    assert!(matches!(plan.risks[0], Risk::MuchOfMachine { removed: 7, of: 10, .. }));
    assert_eq!(shown(&plan)[99..101], ["100: dated in the future", shown(&before)[0].as_str()]);
    let [Note::Future { points, .. }, Note::EqualTimes { points: twins, .. }] = &plan.notes[..]
    else {
        panic!("{:?}", plan.notes)
    };
    assert_eq!((points.len(), twins.len()), (100, 100));
    // A clock that stands still at its first day removes nothing.
    let dead_clock = at("1970-01-01T00:00:00Z");
    assert_eq!(planned(&forged, last(1), &dead_clock).removed(), 0);
}

#[test]
fn of_equal_times_the_larger_id_is_newer_in_any_order() {
    let time = "2026-11-20T03:00:00Z";
    let mut points = web01(&[time, time, time]);
    let wanted = ["3: newest, last 1/1", "2:", "1:"];
    for _ in 0..3 {
        points.rotate_left(1);
        let plan = planned(&points, last(1), &at(NOON));
        assert_eq!(shown(&plan), wanted);
        let told = "web01 has 3 points of the same time 2026-11-20T03:00:00Z: the larger id \
                    counts as newer";
        assert_eq!(plan.notes[0].to_string(), told);
    }
    // Now itself is not the future.
    assert_eq!(shown(&planned(&points, last(1), &at(time))), wanted);
}

#[test]
fn each_machine_has_its_own_rule_or_the_default() {
    let mut points = machine("db", 100, &["2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z"]);
    points.extend(days(3));
    let mut rules = Rules::all(last(1));
    rules.machines.insert("db".into(), last(2));
    rules.machines.insert("bd".into(), last(1));
    let whole = plan(&points, &rules, &at(NOON)).unwrap();
    let removed: Vec<_> = whole.machines.iter().map(MachinePlan::removed).collect();
    assert_eq!(removed, [0, 2]);
    assert_eq!(whole.notes, [Note::NoSuchMachine { machine: "bd".into() }]);
    let only = plan(&points, &Rules::only("db", last(1)), &at(NOON)).unwrap();
    assert_eq!(only.removals(OnRisk::Refuse).unwrap(), [id(100)]);
}

#[test]
fn the_guard_speaks_from_a_fifth_on() {
    let removing = |of: usize, keep: u32| planned(&days(of), last(keep), &at(NOON)).risks;
    assert_eq!(removing(5, 4), []);
    assert_eq!(removing(20, 16), []);
    assert_eq!(removing(20, 15).len(), 2);
    assert_eq!(removing(4, 1), []);
    let [of_machine, repository] = &removing(5, 3)[..] else { panic!("two risks are wanted") };
    assert_eq!(*of_machine, Risk::MuchOfMachine { machine: "web01".into(), removed: 2, of: 5 });
    assert_eq!(*repository, Risk::MuchOfRepository { removed: 2, of: 5 });
    // Small machines, together much: each loses one of two.
    let mut points = Vec::new();
    for (number, name) in ["a", "b", "c"].into_iter().enumerate() {
        let first = 10 * (number as u8 + 1);
        points.extend(machine(name, first, &["2026-11-01T00:00:00Z", "2026-11-02T00:00:00Z"]));
    }
    let risks = planned(&points, last(1), &at(NOON)).risks;
    assert_eq!(risks, [Risk::MuchOfRepository { removed: 3, of: 6 }]);
}

#[test]
fn a_point_given_twice_is_refused() {
    let mut points = days(2);
    points.push(points[0].clone());
    let error = plan(&points, &Rules::all(last(1)), &at(NOON)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    // And no points at all are a plan of nothing.
    assert_eq!(planned(&[], last(1), &at(NOON)).points(), 0);
}

#[test]
fn times_at_the_ends_of_time_are_judged_like_others() {
    let ends = [Timestamp::MIN.to_string(), Timestamp::MAX.to_string()];
    let points = web01(&[&ends[0], "2026-11-20T03:00:00Z", &ends[1]]);
    let rule = Rule {
        hourly: n(1),
        daily: n(1),
        weekly: n(1),
        monthly: n(1),
        yearly: n(1),
        within: Some(length("1y")),
        younger: Some(AgeRule { than: length("1mo"), at_least: 1 }),
        ..last(1)
    };
    for now in [NOON, &ends[0], &ends[1]] {
        for zone in [TimeZone::UTC, TimeZone::fixed(jiff::tz::Offset::MAX)] {
            let plan = planned(&points, rule.clone(), &at(now).with_time_zone(zone));
            assert!(plan.removed() < 3);
        }
    }
}

#[test]
fn rules_are_told_in_words() {
    let rule = Rule {
        daily: n(7),
        yearly: n(1),
        within: Some(length("1y6mo")),
        younger: Some(AgeRule { than: length("30d"), at_least: 5 }),
        newest_may_go: true,
        ..last(3)
    };
    assert_eq!(
        rule.to_string(),
        "last 3, within 1y6mo of the newest, daily 7, yearly 1, younger than 30d and at least 5, \
         the newest may go"
    );
    assert_eq!(Rule::default().to_string(), "everything");
}

#[test]
fn a_removal_by_hand_is_judged_like_a_plan() {
    let mut points = days(10);
    points.extend(machine("db1", 50, &["2026-11-03T12:00:00Z"]));
    let now = at("2026-11-20T00:00:00Z").timestamp();
    let risks = |ids: &[u8]| {
        risks_of_removal(&points, &ids.iter().map(|number| id(*number)).collect(), now)
    };
    assert_eq!(risks(&[]), []);
    assert_eq!(risks(&[1, 2]), [], "a fifth is not more than a fifth");
    let much = Risk::MuchOfMachine { machine: "web01".into(), removed: 3, of: 10 };
    assert_eq!(risks(&[1, 2, 3]), [much, Risk::MuchOfRepository { removed: 3, of: 11 }]);
    assert_eq!(risks(&[50]), [Risk::EmptiesMachine { machine: "db1".into(), removed: 1 }]);
    assert_eq!(risks(&[99]), [], "a point that is not there");
}

#[test]
fn dates_in_the_future_hide_no_removal_by_hand() {
    let mut points = web01(&["2026-11-01T12:00:00Z", "2031-01-01T00:00:00Z"]);
    points.extend(machine("db1", 50, &["2031-01-01T00:00:00Z", "2031-01-02T00:00:00Z"]));
    let now = at("2026-11-20T00:00:00Z").timestamp();
    let risks = |ids: &[u8]| {
        risks_of_removal(&points, &ids.iter().map(|number| id(*number)).collect(), now)
    };
    // A forged point may go; the last honest one is the last.
    assert_eq!(risks(&[2]), []);
    assert_eq!(risks(&[1]), [Risk::EmptiesMachine { machine: "web01".into(), removed: 1 }]);
    assert_eq!(risks(&[50]), []);
    assert_eq!(risks(&[50, 51]), [Risk::EmptiesMachine { machine: "db1".into(), removed: 2 }]);
    // Records that cannot be read count for the repository.
    let lost = machine("", 1, &["1970-01-01T00:00:00Z"; 6]);
    let both = [id(1), id(2)].into();
    assert_eq!(risks_of_removal(&lost, &both, now), [Risk::MuchOfRepository { removed: 2, of: 6 }]);
}
