//! Power cuts (FORMAT.md, rules O1, O2, O3, O4, O7): at every change of the file system, and with
//! whatever was not synced lost in any combination, every acknowledged recovery point reads back
//! whole, and every point that is visible at all does.

use std::path::Path;
use std::sync::Arc;

use backstay_store::testkit::{SeededEntropy, SimFs};
use backstay_store::{LocalStorage, PointId};

use crate::support::{back_up, image, init, open, read, seed};

const ROOT: &str = "/repo";

/// What was acknowledged before the lights went out.
#[derive(Default)]
struct Acknowledged {
    repository: bool,
    points: Vec<(PointId, Vec<u8>)>,
}

/// Makes a repository and backs up twice, as far as the power lasts.
fn work(fs: &SimFs, entropy: &Arc<SeededEntropy>, acknowledged: &mut Acknowledged) -> Option<()> {
    let storage = LocalStorage::create(Path::new(ROOT), Arc::new(fs.clone()), "w").ok()?;
    init(&storage, entropy).ok()?;
    acknowledged.repository = true;
    let repo = open(Arc::new(storage), entropy).ok()?;
    let mut disk = image(1, 40 * 4096 + 100);
    for round in 0..2u8 {
        let point = back_up(&repo, "web01", &disk).ok()?;
        acknowledged.points.push((point.id, disk.clone()));
        disk[round as usize * 9000] ^= 0xff;
    }
    Some(())
}

/// What is wrong after the power came back; nothing if all is well.
fn inspect(fs: SimFs, entropy: &Arc<SeededEntropy>, before: &Acknowledged) -> Result<(), String> {
    let storage = match LocalStorage::open(Path::new(ROOT), Arc::new(fs), "r") {
        Ok(storage) => storage,
        Err(e) if before.repository => return Err(format!("the repository is gone: {e}")),
        Err(_) => return Ok(()),
    };
    let repo = open(Arc::new(storage), entropy).map_err(|e| format!("it does not open: {e}"))?;
    let list = repo.points().map_err(|e| format!("points cannot be listed: {e}"))?;
    if let Some((id, e)) = list.damaged.first() {
        return Err(format!("visible point {id} is damaged: {e}"));
    }
    for point in &list.points {
        read(&repo, &point.disks[0]).map_err(|e| format!("visible point {}: {e}", point.id))?;
    }
    for (id, disk) in &before.points {
        let point = repo.point(*id).map_err(|e| format!("acknowledged point {id}: {e}"))?;
        let bytes = read(&repo, &point.disks[0]).map_err(|e| format!("point {id}: {e}"))?;
        if bytes != *disk {
            return Err(format!("acknowledged point {id} reads back other bytes"));
        }
    }
    // And work goes on: the next backup and its reading back succeed.
    let disk = image(2, 20 * 4096);
    let point = back_up(&repo, "web01", &disk).map_err(|e| format!("backup after a cut: {e}"))?;
    let bytes = read(&repo, &point.disks[0]).map_err(|e| format!("after a cut: {e}"))?;
    if bytes == disk { Ok(()) } else { Err("the backup after a cut reads back wrong".into()) }
}

fn changes_of_the_work() -> u64 {
    let fs = SimFs::new();
    let mut acknowledged = Acknowledged::default();
    work(&fs, &Arc::new(SeededEntropy::new(0)), &mut acknowledged).expect("nothing is cut");
    assert_eq!(acknowledged.points.len(), 2);
    fs.changes()
}

/// Runs the work with a cut at `at` and looks at `states` ways in which it may have ended.
fn cut(at: u64, seed: u64, states: u64, lying: bool) -> Vec<String> {
    let fs = SimFs::new();
    fs.set_lying_sync(lying);
    fs.cut_power_at(at);
    let entropy = Arc::new(SeededEntropy::new(seed ^ at));
    let mut acknowledged = Acknowledged::default();
    work(&fs, &entropy, &mut acknowledged);
    let each = |n: u64| {
        let chance = SeededEntropy::new(seed ^ at ^ (n << 32));
        inspect(fs.after_power_cut(&chance), &entropy, &acknowledged)
            .err()
            .map(|e| format!("cut at change {at}, state {n}: {e}"))
    };
    (0..states).filter_map(each).collect()
}

#[test]
pub(crate) fn a_cut_at_every_change_loses_nothing() {
    let seed = seed();
    let changes = changes_of_the_work();
    let states = if std::env::var_os("BACKSTAY_RELEASE_SIZE").is_some() { 100 } else { 8 };
    let failures: Vec<String> = (0..=changes).flat_map(|at| cut(at, seed, states, false)).collect();
    assert!(failures.is_empty(), "{} failures, first: {}", failures.len(), failures[0]);
    println!("{} power-cut states", (changes + 1) * states);
}

/// The control: where syncs do nothing, the same test must find losses.
#[test]
fn the_test_notices_a_storage_that_does_not_sync() {
    let changes = changes_of_the_work();
    let failures: usize = (0..=changes).map(|at| cut(at, 7, 4, true).len()).sum();
    assert!(failures > 20, "only {failures} losses were noticed");
}
