//! The protocol of the store under seeded interleavings: nodes that back up, remove, read, collect,
//! die, sleep and wake, on one storage, one call at a time in an order that the seed names.
//!
//! `BACKSTAY_SIM_SEED=N` repeats one run and prints its schedule.

mod actor;
mod content;
mod copy;
mod count;
mod disk;
mod ops;
mod schedule;
mod truth;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backstay_store::testkit::SeededEntropy;
use backstay_store::{Cause, CollectOptions, NoProgress, RepairOptions, Repository, Storage};
use jiff::SignedDuration;
use parking_lot::Mutex;

use crate::support::{init, seed};

use actor::{Actor, Stop, World};
use count::{Counts, Event};
use disk::Disk;
use ops::Theme;
use schedule::Rng;

pub(crate) use schedule::Call;
use truth::Verdict;
pub(crate) use truth::nothing_left;

/// What one run came to.
pub(crate) struct Outcome {
    pub(crate) counts: Counts,
    /// What went wrong; nothing if all promises were kept.
    pub(crate) failure: Option<String>,
    pub(crate) trace: Vec<String>,
}

/// A repository that was just made: all runs begin with a copy of it.
fn empty_repository() -> Disk {
    let disk = Disk::default();
    init(&disk, &SeededEntropy::new(1)).unwrap();
    disk
}

/// One run.
pub(crate) fn run(seed: u64) -> Outcome {
    let mut rng = Rng::new(seed ^ 0x5eed);
    let theme = Theme::draw(&mut rng);
    let actors = 2 + rng.below(4);
    let acts = 3 + rng.below(8);
    let disk = Disk::default();
    let start = empty();
    for (key, bytes) in start {
        disk.put(*key, &[bytes]).unwrap();
    }
    let world = World::new(seed, theme, Arc::new(disk), actors);
    let failure: Mutex<Option<String>> = Mutex::default();
    let finished = std::thread::scope(|scope| {
        for number in 0..actors {
            let (world, failure) = (&world, &failure);
            scope.spawn(move || {
                world.schedule.enter(number);
                let done = work(world, number, acts);
                if let Err(Stop::Failed(text)) = done {
                    failure.lock().get_or_insert(text);
                    world.schedule.kill_all();
                }
                world.schedule.leave(number);
            });
        }
        world.schedule.run()
    });
    let mut verdict = failure.into_inner().map_or(Ok(()), Err).and(finished);
    if verdict.is_ok() {
        verdict = finale(&world);
    }
    let (steps, naps, deaths) = world.schedule.counts();
    let mut counts = world.counts.lock().clone();
    counts.add_many(Event::Sleep, naps);
    counts.add_many(Event::Death, deaths);
    counts.steps = steps;
    Outcome { counts, failure: verdict.err(), trace: world.schedule.trace() }
}

/// The objects of a new repository; made once.
fn empty() -> &'static Vec<(backstay_store::ObjectKey, Vec<u8>)> {
    static EMPTY: std::sync::OnceLock<Vec<(backstay_store::ObjectKey, Vec<u8>)>> =
        std::sync::OnceLock::new();
    EMPTY.get_or_init(|| {
        let disk = empty_repository();
        let slots = disk.list(backstay_store::Folder::Slots).unwrap();
        let keys = slots.into_iter().chain([backstay_store::ObjectKey::Config]);
        keys.map(|k| (k, disk.get(k, 1 << 20).unwrap())).collect()
    })
}

fn work(world: &World, number: usize, acts: usize) -> Result<(), Stop> {
    let mut actor = Actor::new(world, number)?;
    for _ in 0..acts {
        actor.act(false)?;
    }
    actor.go_home()
}

/// When nobody works any more: all is as acknowledged; and when the dead are fenced and all is
/// removed, all space comes back.
fn finale(world: &World) -> Verdict {
    world.check()?;
    let node = world.node()?;
    let text = |e: backstay_store::Error| format!("at the end: {e}");
    let cause = Cause { by: "the end".into(), reason: "over".into() };
    for session in node.sessions().map_err(text)? {
        if let Some(number) = session.purpose.strip_prefix("hold ").and_then(|n| n.parse().ok()) {
            world.truth.lock().hold_ends(number, session.holds[0]);
        }
        node.fence_session(session.id, &cause).map_err(text)?;
    }
    if world.truth.lock().quarantined {
        let options = &mut RepairOptions::default();
        let report = node.repair(options, &NoProgress).map_err(text)?;
        if !report.left.is_empty() {
            return Err(format!("a repair with nobody beside it: {report:?}"));
        }
    }
    // A repair heals what is listed, not removed points that somebody holds.
    let quarantined = world.truth.lock().quarantined;
    settle(&node, quarantined)?;
    world.truth.lock().check_all(&world.node()?)?;
    for pin in node.pins().map_err(text)? {
        world.truth.lock().unpinning(pin.id);
        node.unpin(pin.id).map_err(text)?;
    }
    let all: Vec<_> = node.points().map_err(text)?.points.iter().map(|p| p.id).collect();
    let report = node.remove_points(&all, &cause).map_err(text)?;
    if !report.kept.is_empty() {
        return Err(format!("at the end {:?} are kept", report.kept));
    }
    settle(&node, false)?;
    truth::nothing_left(&*world.disk)
}

/// Collects until there is nothing to do: three times at most.
fn settle(node: &Repository, may_miss: bool) -> Verdict {
    let options = CollectOptions {
        stale_after: SignedDuration::from_hours(24 * 365 * 200),
        by: "the end".into(),
        ..CollectOptions::default()
    };
    for _ in 0..3 {
        let report = node.collect(&options, &NoProgress).map_err(|e| format!("collect: {e}"))?;
        let missing = report.missing_chunks > 0 && !may_miss;
        if !report.waiting_for.is_empty() || missing {
            return Err(format!("a collection with nobody beside it: {report:?}"));
        }
        if report.freed.packs == 0 {
            break;
        }
    }
    let options = CollectOptions { dry_run: true, ..options };
    let left = node.collect(&options, &NoProgress).map_err(|e| format!("collect: {e}"))?;
    if left.dead.packs > 0 {
        return Err(format!("{} dead packs stay", left.dead.packs));
    }
    Ok(())
}

/// Runs `count` seeds from `first` on, on both processors, until `failures` of them have failed.
pub(crate) fn run_many(first: u64, count: u64, failures: usize) -> (Counts, Vec<(u64, Outcome)>) {
    let next = AtomicU64::new(0);
    let found: Mutex<Vec<(u64, Outcome)>> = Mutex::default();
    let counts = Mutex::new(Counts::default());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut mine = Counts::default();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= count || found.lock().len() >= failures {
                        break;
                    }
                    let seed = first.wrapping_add(n);
                    let outcome = run(seed);
                    mine.take(&outcome.counts);
                    if outcome.failure.is_some() {
                        found.lock().push((seed, outcome));
                    }
                }
                counts.lock().merge(&mine);
            });
        }
    });
    let mut found = found.into_inner();
    found.sort_by_key(|(seed, _)| *seed);
    (counts.into_inner(), found)
}

/// The failure with its schedule and how to repeat it.
fn tell(seed: u64, outcome: &Outcome) -> String {
    let from = outcome.trace.len().saturating_sub(600);
    format!(
        "{}\n{}\nrepeat: BACKSTAY_SIM_SEED={seed} cargo nextest run -p backstay-tests sim::one_run",
        outcome.trace[from..].join("\n"),
        outcome.failure.as_deref().unwrap_or("all is well"),
    )
}

/// Repeats the run that BACKSTAY_SIM_SEED names and prints its schedule.
#[test]
fn one_run() {
    let seed = std::env::var("BACKSTAY_SIM_SEED").ok().and_then(|s| s.parse().ok());
    let outcome = run(seed.unwrap_or(1));
    if seed.is_some() {
        println!("{}", tell(seed.unwrap_or(1), &outcome));
    }
    assert!(outcome.failure.is_none(), "{}", outcome.failure.unwrap());
}

#[test]
fn a_seed_names_one_schedule() {
    for seed in 0..20 {
        assert!(run(seed).trace == run(seed).trace, "seed {seed}");
    }
}

#[test]
fn no_interleaving_loses_an_acknowledged_point() {
    let first = seed() << 32;
    let release = std::env::var_os("BACKSTAY_RELEASE_SIZE").is_some();
    let count = std::env::var("BACKSTAY_SIM_COUNT").ok().and_then(|s| s.parse().ok());
    let count = count.unwrap_or(if release { 100_000 } else { 5_000 });
    let began = std::time::Instant::now();
    let (counts, failures) = run_many(first, count, 20);
    println!("{count} interleavings in {:.1} s", began.elapsed().as_secs_f64());
    counts.print(count);
    for (seed, outcome) in &failures {
        println!("seed {seed}: {}", outcome.failure.as_deref().unwrap_or_default());
    }
    if let Some((seed, outcome)) = failures.first() {
        panic!("{}", tell(*seed, outcome));
    }
    let events = [Event::Freed, Event::WriterFenced, Event::Resurrected, Event::Repacked];
    for event in events.into_iter().chain([Event::Verify, Event::Quarantine, Event::Copied]) {
        assert!(counts.runs_with(event) * 100 >= count, "{event:?} happened in too few runs");
    }
    assert!(counts.runs_with(Event::Healed) > 0, "no repair had anything to do");
}
