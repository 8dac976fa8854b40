//! Plans of what to keep: shown, explained, and never carried out by showing them.

use serde_json::Value;

use super::support::{Place, noise};

/// A repository with so many points of web01 and one of db1.
fn place(points: u64) -> Place {
    let place = Place::with_repository();
    for seed in 0..points {
        let image = place.image("web01.raw", &noise(seed, 10_000));
        place.run(&["backup", &image, "--machine", "web01"]).code(0);
    }
    let image = place.image("db1.raw", &noise(99, 10_000));
    place.run(&["backup", &image, "--machine", "db1"]).code(0);
    place
}

fn outcomes(machine: &Value) -> Vec<&str> {
    let verdicts = machine["verdicts"].as_array().into_iter().flatten();
    verdicts.map(|verdict| verdict["outcome"].as_str().unwrap_or_default()).collect()
}

#[test]
fn a_plan_tells_what_goes_and_why_the_rest_stays() {
    let place = place(6);
    let plan = ["retention", "plan", "--keep-last", "2", "--keep-daily", "1", "--json"];
    let document = place.run(&plan).code(0).json();
    assert_eq!(document["points"], 7);
    assert_eq!(document["removed"], 4);
    assert_eq!(document["time_zone"], "UTC");
    let machines = document["machines"].as_array().expect("machines");
    let names: Vec<&Value> = machines.iter().map(|machine| &machine["machine"]).collect();
    assert_eq!(names, ["db1", "web01"]);
    assert_eq!(outcomes(&machines[0]), ["keep"]);
    let wanted = ["keep", "keep", "remove", "remove", "remove", "remove"];
    assert_eq!(outcomes(&machines[1]), wanted);
    let kinds: Vec<&Value> = machines[1]["verdicts"][0]["reasons"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|reason| &reason["kind"])
        .collect();
    assert_eq!(kinds, ["newest", "last", "daily"]);
    // Four of six, and four of seven.
    assert_eq!(document["needs_confirmation"], true);
    assert_eq!(document["risks"][0]["kind"], "much_of_machine");
    assert_eq!(document["risks"][1]["kind"], "much_of_repository");

    let people = place.run(&plan[..6]).code(0).stdout;
    for part in ["BECAUSE", "newest, last 1/2, daily 1/1 (", "no rule keeps it", "+00:00"] {
        assert!(people.contains(part), "{part}: {people}");
    }
    assert!(people.contains("4 of 7 points would be removed"), "{people}");
    assert!(people.contains("risk: web01 would lose 4 of its 6 points"), "{people}");
    let columns: Vec<_> = people.lines().take(8).map(|line| line.find('@')).collect();
    assert!(columns[1..].windows(2).all(|pair| pair[0] == pair[1]), "{people}");

    let list = place.run(&["list", "--json"]).code(0).json();
    assert_eq!(list["points"].as_array().map(Vec::len), Some(7), "a plan removed something");
}

#[test]
fn a_plan_for_one_machine_leaves_others_alone() {
    let place = place(2);
    let plan = ["retention", "plan", "--keep-last", "1", "-m", "web01", "--json"];
    let document = place.run(&plan).code(0).json();
    assert_eq!(document["machines"].as_array().map(Vec::len), Some(1));
    assert_eq!((&document["points"], &document["removed"]), (&2.into(), &1.into()));
    assert_eq!(document["needs_confirmation"], false);
    let typo = place.run(&["retention", "plan", "--keep-last", "1", "-m", "wbe01", "--json"]);
    assert_eq!(typo.code(16).json_error()["what"], "wbe01");
}

#[test]
fn without_a_rule_nothing_goes_and_nonsense_is_refused() {
    let place = place(1);
    let people = place.run(&["retention", "plan"]).code(0).stdout;
    assert!(people.contains("keep everything") && people.contains("0 of 2 points"), "{people}");
    let young = ["retention", "plan", "--keep-younger-than", "1h", "--newest-may-go"];
    let people = place.run(&young).code(0).stdout;
    assert!(people.contains("younger than 1h") && people.contains("0 of 2 points"), "{people}");
    for wrong in [
        &["--keep-last", "0"][..],
        &["--keep-last", "-1"],
        &["--keep-within", "30"],
        &["--keep-at-least", "3"],
        &["--time-zone", "Mars/Olympus"],
    ] {
        let args = [&["retention", "plan"][..], wrong].concat();
        place.run(&args).code(2);
    }
}

#[test]
fn points_that_cannot_be_read_are_told_and_stay() {
    let place = place(2);
    let points = std::fs::read_dir(place.path("repo/points")).expect("the points");
    let victim = points.map(|entry| entry.expect("an entry").path()).min().expect("a point");
    std::fs::write(&victim, b"scribble").expect("written");
    let plan = ["retention", "plan", "--keep-last", "1"];
    let ran = place.run(&plan).code(3);
    assert!(ran.stderr.contains("1 point(s) cannot be read"), "{}", ran.stderr);
    let document = place.run(&[&plan[..], &["--json"]].concat()).code(3).json();
    assert_eq!(document["points"], 2);
    assert_eq!(document["unreadable"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_plan_is_applied_after_it_was_confirmed() {
    let place = place(6);
    let apply = ["retention", "apply", "--keep-last", "5"];
    let with = |more: &[&'static str]| [&apply[..], more].concat();
    let dry = place.run(&with(&["--dry-run", "--json"])).code(0).json();
    assert_eq!((&dry["plan"]["removed"], &dry["removed"]), (&1.into(), &Value::Array(vec![])));
    let shown = place.run(&with(&["--dry-run"])).code(0).stdout;
    assert_eq!(shown, place.run(&["retention", "plan", "--keep-last", "5"]).code(0).stdout);
    let asked = place.run(&apply).code(19);
    assert!(asked.stderr.contains("--yes") && asked.stderr.contains("web01@"), "{}", asked.stderr);
    assert_eq!(place.run(&["list", "--json"]).json()["points"].as_array().map(Vec::len), Some(7));

    let done = place.run(&with(&["--yes", "--json"])).code(0).json();
    let removed = done["removed"].as_array().expect("removed");
    assert_eq!((removed.len(), &removed[0]["machine"]), (1, &"web01".into()));
    let planned = dry["plan"]["machines"][1]["verdicts"].as_array().expect("verdicts");
    assert_eq!(removed[0]["id"], planned[5]["id"]);
    let again = place.run(&with(&["--yes"])).code(0).stdout;
    assert!(again.ends_with("removed 0 points\n"), "{again}");
    // Nothing to remove is nothing to ask for.
    place.run(&apply).code(0);
    assert_eq!(place.run(&with(&["--yes", "--quiet"])).code(0).stdout, "");
    place.run(&["gc"]).code(0);
    place.run(&["repo", "check", "--read-data"]).code(0);
}

#[test]
fn applying_asks_twice_before_much_goes_and_leaves_pins_alone() {
    let place = place(6);
    place.run(&["point", "pin", "web01@-3", "--reason", "audit of November"]).code(0);
    let apply = ["retention", "apply", "--keep-last", "2", "--yes"];
    let refused = place.run(&apply).code(19);
    for part in ["web01 would lose 3 of its 6 points", "--allow-mass-removal", "nothing was"] {
        assert!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
    }
    place.run(&["retention", "apply", "--keep-last", "2", "--allow-mass-removal"]).code(19);
    assert_eq!(place.run(&["list", "--json"]).json()["points"].as_array().map(Vec::len), Some(7));
    let applied = [&apply[..], &["--allow-mass-removal", "--json"]].concat();
    let done = place.run(&applied).code(0).json();
    assert_eq!(done["removed"].as_array().map(Vec::len), Some(3));
    assert_eq!(done["kept"][0]["kept_by"][0]["reason"], "audit of November");
    assert_eq!(done["plan"]["machines"][1]["verdicts"][3]["outcome"], "keep_by_pin");
    let told = place.run(&apply).code(0);
    assert!(told.stderr.contains("backstay point unpin "), "{}", told.stderr);
    // A mistyped machine removes nothing.
    place.run(&["retention", "apply", "--keep-last", "1", "-m", "wbe01", "--yes"]).code(16);
    assert_eq!(place.run(&["list", "--json"]).json()["points"].as_array().map(Vec::len), Some(4));
}
