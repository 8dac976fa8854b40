//! The tests are tested: each of the mistakes in `testkit::Fault` is planted in a process of its
//! own, and some test must notice it there.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use backstay_store::testkit::{Fault, plant};
use parking_lot::Mutex;

use crate::{conformance, damage, faults, gc, orders, peers, power, repair, sim, support, verify};

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
    let test: (&'static str, fn()) = match fault {
        Fault::BaseNotHeld => {
            ("a base stays while built upon", orders::a_base_stays_while_a_writer_builds_upon_it)
        }
        Fault::PointsBeforeSessions => {
            ("a commit between the listings", orders::a_commit_between_the_listings_is_seen)
        }
        Fault::RemovalsAfterSessions => (
            "a reader after the listing of sessions",
            orders::a_reader_that_comes_after_the_listing_of_sessions_is_safe,
        ),
        Fault::HoldsEndByClock => ("a hold does not grow old", orders::a_hold_does_not_grow_old),
        Fault::HoldsIgnored => ("a hold does not grow old", orders::a_hold_does_not_grow_old),
        Fault::OvertakenIgnored => {
            ("a lost registration", orders::a_writer_whose_registration_was_lost_may_not_commit)
        }
        Fault::PlansBesideAnother => {
            ("one collection at a time", orders::no_collection_is_planned_beside_another)
        }
        Fault::SecondJudge => ("the first verdict stands", orders::the_first_verdict_stands),
        Fault::StaleVerdictHeeded => {
            ("a verdict too late", orders::a_verdict_that_comes_too_late_is_not_heeded)
        }
        Fault::FootersNotCompared => ("a wrong index", orders::a_wrong_index_deletes_nothing),
        Fault::VanishedBaseTrusted => {
            ("kopia 3712", peers::kopia_3712_backup_after_a_pack_was_lost)
        }
        Fault::DamagedPointSkipped => {
            ("a damaged point", gc::nothing_is_collected_while_a_point_cannot_be_read)
        }
        Fault::DamagedNodeSkipped => {
            ("a damaged node", orders::nothing_is_collected_while_a_tree_cannot_be_read)
        }
        Fault::TwinsCountAsNone => ("rustic 392", peers::rustic_392_a_chunk_twice_in_a_pack),
        Fault::ZerosForMissing => ("lost packs", damage::lost_cut_zeroed_and_swapped_packs),
        Fault::IdNotCompared => ("misdirected blocks", peers::misdirected_blocks_are_no_data),
        Fault::ShortReadAccepted | Fault::PutReplaces => {
            ("conformance", conformance::local_on_the_simulated_file_system)
        }
        Fault::DirectoryNotSynced | Fault::FileNotSynced | Fault::RenamedBeforeSync => {
            ("power cuts", power::a_cut_at_every_change_loses_nothing)
        }
        Fault::SyncTriedAgain => ("fsyncgate", peers::postgresql_fsyncgate_a_failed_sync_is_final),
        Fault::RootsBeforeWriters | Fault::NoWaitForWriters => {
            ("roots after writers", orders::roots_are_read_when_older_writers_are_over)
        }
        Fault::RegisteredOnce => {
            ("registering beside a plan", orders::a_writer_that_registers_beside_a_plan_heeds_it)
        }
        Fault::PinSetBlindly | Fault::HoldTakenBlindly => {
            ("what is gone", orders::what_is_gone_can_neither_be_held_nor_pinned)
        }
        Fault::EndBeforeDeletes => {
            ("the end after the deletes", orders::the_end_comes_after_the_deletes)
        }
        Fault::PacksListedTooEarly => {
            ("packs after registering", orders::packs_are_listed_after_the_registration)
        }
        Fault::RemovedBaseUsed => ("a removed base", orders::a_removed_base_is_not_used),
        other => return who_notices_of_damage(other),
    };
    vec![Notices::Test(test.0, test.1)]
}

/// The same of mistakes with what is damaged, or only seems to be.
fn who_notices_of_damage(fault: Fault) -> Vec<Notices> {
    let test: (&'static str, fn()) = match fault {
        Fault::QuarantineIgnored => (
            "what is bad counts as absent",
            verify::what_is_bad_counts_as_absent_on_every_node_and_the_next_backup_heals_it,
        ),
        Fault::BadPackDeleted => (
            "a bad pack stays",
            verify::a_pack_stays_while_a_repair_may_need_it_and_goes_afterwards,
        ),
        Fault::SourcesTrusted => ("a lying source", repair::a_source_that_lies_gets_nothing_in),
        Fault::GoneByIndexAlone => (
            "a wrong index, and a reader",
            orders::a_wrong_index_takes_nothing_from_who_holds_a_removed_point,
        ),
        Fault::GonePointsFollowed => {
            ("a late fence", orders::a_fence_in_the_place_of_a_buried_point_is_no_point)
        }
        Fault::LateHoldTakenForDamage => {
            ("a late hold", orders::a_hold_that_comes_too_late_stops_no_collection)
        }
        other => return simulator_or(other),
    };
    vec![Notices::Test(test.0, test.1)]
}

/// What the simulator notices by itself, and for rare ones a test that is sure to.
fn simulator_or(fault: Fault) -> Vec<Notices> {
    let test: (&'static str, fn()) = match fault {
        Fault::PinsIgnored | Fault::HeldPointsBuried => {
            ("a pinned point", gc::a_point_removed_while_it_is_read_stays_until_the_reader_is_done)
        }
        Fault::RemovalDeletedFirst => {
            ("duplicati 5023", peers::duplicati_5023_a_collection_that_dies_anywhere)
        }
        Fault::OldSessionsForgotten => {
            ("restic 3182", peers::restic_3182_rustic_144_the_sleeper_wakes_and_may_not_commit)
        }
        Fault::FailedPackIgnored => ("faults", faults::every_call_of_a_backup_fails_in_turn),
        _ => return vec![Notices::Sim],
    };
    vec![Notices::Sim, Notices::Test(test.0, test.1)]
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

/// What must be borne: a machine or a program that does these things loses nobody's data.
const BORNE: &[(Fault, fn())] = &[
    (Fault::CodecSpoils, peers::restic_4523_a_compressor_that_spoils_chunks),
    (Fault::StoresTwice, peers::rustic_392_a_chunk_twice_in_a_pack),
];

/// Does nothing by itself; the work of the processes that the test below starts.
#[test]
fn child() {
    let Ok(name) = std::env::var(FAULT) else { return };
    let named = |f: &Fault| format!("{f:?}") == name;
    if let Some((fault, bear)) = BORNE.iter().find(|(f, _)| named(f)) {
        plant(Some(*fault));
        bear();
        println!("\nNOTICED");
        return;
    }
    let fault = Fault::MISTAKES.iter().copied().find(named).unwrap();
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
    match text.lines().find_map(|l| l.strip_prefix("NOTICED")) {
        Some(who) => who.trim().to_owned(),
        // A child that came to no end, instead of an answer: that is no way to notice.
        None => panic!("{fault:?}: {}\n{text}", String::from_utf8_lossy(&output.stderr)),
    }
}

#[test]
fn what_must_be_borne_is() {
    for (fault, _) in BORNE {
        plant_one(*fault, 1);
    }
}

#[test]
fn every_planted_fault_is_noticed() {
    // The same runs each time: whether a mistake is met must not depend on luck.
    let seed = 1;
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
