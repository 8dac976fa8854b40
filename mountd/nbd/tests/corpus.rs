//! The corpus of the fuzzer, replayed.

#![allow(clippy::print_stdout, reason = "says which file is run, so that a panic names it")]

use std::path::Path;

#[path = "../../../chunkstore/format/tests/corpus/replay.rs"]
mod replay;

#[test]
fn nothing_in_the_corpus_breaks_a_promise() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus");
    replay::replay(&corpus, backstay_nbd::fuzz::TARGETS);
}

/// A fuzzer's first steps, the same each time: every byte of every seed is another.
#[test]
fn one_byte_off_breaks_no_promise() {
    for target in backstay_nbd::fuzz::TARGETS {
        for (_, seed) in (target.seeds)() {
            for at in 0..seed.len().min(512) {
                for byte in [0, 1, 2, 3, 0x7f, 0x80, 0xff, seed[at].wrapping_add(1)] {
                    let mut other = seed.clone();
                    other[at] = byte;
                    (target.run)(&other);
                }
            }
        }
    }
}
