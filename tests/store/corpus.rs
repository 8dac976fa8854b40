//! The fuzzer's corpus for the store's readers and the doors', replayed without a fuzzer.

use std::collections::BTreeSet;
use std::path::Path;

use backstay_format::fuzz::Target;
use backstay_store::testkit::fuzz::TARGETS;

#[path = "../../chunkstore/format/tests/corpus/replay.rs"]
mod replay;

#[test]
fn the_corpus_of_every_store_target_keeps_its_promises() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    replay::replay(&corpus, TARGETS);
    replay::replay(&corpus, &nbd_targets());
    replay::replay(&corpus, &iscsi_targets());
    replay::replay(&corpus, &guest_targets());
    // The chore knows the targets by these folders.
    let found: BTreeSet<String> = std::fs::read_dir(corpus)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    let all = backstay_format::fuzz::TARGETS.iter().chain(TARGETS);
    let mut known: BTreeSet<String> = all.map(|target| target.name.to_owned()).collect();
    let doors = nbd_targets().into_iter().chain(iscsi_targets()).chain(guest_targets());
    known.extend(doors.map(|target| target.name.to_owned()));
    assert_eq!(found, known, "folders of the corpus, and targets");
}

/// The targets of the NBD crate, which knows nothing of the store's.
fn nbd_targets() -> Vec<Target> {
    let targets = backstay_nbd::fuzz::TARGETS.iter();
    targets
        .map(|&backstay_nbd::fuzz::Target { name, run, seeds, memory }| Target {
            name,
            run,
            seeds,
            memory,
        })
        .collect()
}

/// Those of the iSCSI crate, which knows nothing of either.
fn iscsi_targets() -> Vec<Target> {
    let targets = backstay_iscsi::fuzz::TARGETS.iter();
    targets
        .map(|&backstay_iscsi::fuzz::Target { name, run, seeds, memory }| Target {
            name,
            run,
            seeds,
            memory,
        })
        .collect()
}

/// Those of the readers of guests' disks.
fn guest_targets() -> Vec<Target> {
    let targets = backstay_guestfs::fuzz::TARGETS.iter();
    targets
        .map(|&backstay_guestfs::fuzz::Target { name, run, seeds, memory }| Target {
            name,
            run,
            seeds,
            memory,
        })
        .collect()
}
