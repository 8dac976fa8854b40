//! The fuzzer's corpus, replayed without a fuzzer.
// Says which file is run, so that a panic names it.
#![allow(clippy::print_stdout)]

use std::path::Path;

use backstay_format::fuzz::TARGETS;

#[path = "corpus/replay.rs"]
mod replay;

#[test]
fn the_corpus_of_every_format_target_keeps_its_promises() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus");
    replay::replay(&corpus, TARGETS);
}
