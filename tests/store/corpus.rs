//! The fuzzer's corpus for the store's readers, replayed without a fuzzer.

use std::collections::BTreeSet;
use std::path::Path;

use backstay_store::testkit::fuzz::TARGETS;

#[path = "../../chunkstore/format/tests/corpus/replay.rs"]
mod replay;

#[test]
fn the_corpus_of_every_store_target_keeps_its_promises() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    replay::replay(&corpus, TARGETS);
    // The chore knows the targets by these folders.
    let found: BTreeSet<String> = std::fs::read_dir(corpus)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    let all = backstay_format::fuzz::TARGETS.iter().chain(TARGETS);
    let all = all.chain(backstay_nbd::fuzz::TARGETS);
    let known: BTreeSet<String> = all.map(|target| target.name.to_owned()).collect();
    assert_eq!(found, known, "folders of the corpus, and targets");
}
