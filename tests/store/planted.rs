//! The tests are tested: each of the mistakes in `testkit::Fault` is planted in a process of its
//! own, and some test must notice it there.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use backstay_store::testkit::{Fault, plant};
use parking_lot::Mutex;

use crate::{sim, support};

const FAULT: &str = "BACKSTAY_TEST_FAULT";

/// Runs of the simulator within which it must notice a mistake.
const SEEDS: u64 = 1000;

/// A test that must notice.
#[derive(Clone, Copy)]
enum Notices {
    /// Some interleaving among the first [`SEEDS`].
    Sim,
    /// A test of its own.
    Test(&'static str, fn()),
}

/// Which tests must notice the mistake; one is enough.
fn who_notices(fault: Fault) -> Vec<Notices> {
    match fault {
        _ => vec![Notices::Sim],
    }
}

/// How the mistake shows, if it does.
fn try_one(notices: Notices, seed: u64) -> Option<String> {
    match notices {
        Notices::Sim => {
            let (_, failures) = sim::run_many(seed << 32, SEEDS, 1);
            let (at, outcome) = failures.first()?;
            let what = outcome.failure.as_deref().unwrap_or_default();
            Some(format!("the simulator, run {}: {what}", at - (seed << 32) + 1))
        }
        Notices::Test(name, run) => {
            let failed = catch_unwind(AssertUnwindSafe(run)).err()?;
            let text = failed.downcast_ref::<String>().map(String::as_str);
            let text = text.or(failed.downcast_ref::<&str>().copied()).unwrap_or_default();
            Some(format!("{name}: {}", text.lines().next().unwrap_or_default()))
        }
    }
}

/// Does nothing by itself; the work of the processes that the test below starts.
#[test]
fn child() {
    let Ok(name) = std::env::var(FAULT) else { return };
    let fault = Fault::MISTAKES.iter().find(|f| format!("{f:?}") == name).copied().unwrap();
    let seed = support::seed();
    plant(Some(fault));
    let noticed = who_notices(fault).into_iter().find_map(|n| try_one(n, seed));
    plant(None);
    println!("\nNOTICED {}", noticed.unwrap_or_default());
}

/// Plants one mistake in a process of its own; tells who noticed it.
fn plant_one(fault: Fault, seed: u64) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["planted::child", "--exact", "--nocapture"])
        .env(FAULT, format!("{fault:?}"))
        .env("BACKSTAY_SEED", seed.to_string())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().find_map(|l| l.strip_prefix("NOTICED ")) {
        Some(who) => who.to_owned(),
        // A child that came to no end, instead of an answer: that is no way to notice.
        None => panic!("{fault:?}: {}\n{text}", String::from_utf8_lossy(&output.stderr)),
    }
}

#[test]
fn every_planted_fault_is_noticed() {
    let seed = support::seed();
    let only = std::env::var("BACKSTAY_FAULTS").unwrap_or_default();
    let wanted = |f: &&Fault| only.is_empty() || only.contains(&format!("{f:?}"));
    let faults: Vec<Fault> = Fault::MISTAKES.iter().filter(wanted).copied().collect();
    let (next, caught) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(&fault) = faults.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let who = plant_one(fault, seed);
                    println!("{fault:?}: {}", if who.is_empty() { "UNNOTICED" } else { &who });
                    caught.lock().push((fault, !who.is_empty()));
                }
            });
        }
    });
    let caught = caught.into_inner();
    let missed: Vec<Fault> = caught.iter().filter(|(_, ok)| !ok).map(|(f, _)| *f).collect();
    println!("planted faults caught: {} of {}", caught.len() - missed.len(), caught.len());
    assert!(missed.is_empty(), "nobody notices {missed:?}");
}
