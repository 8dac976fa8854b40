//! What a fuzzer runs: every parser of bytes here, with what must hold of its answers.
//!
//! A target is a function that takes any bytes and panics when a promise is broken: a value that was
//! read encodes to the bytes it was read from (or reads back the same), nothing out of bounds passes.
//! That it does not panic, hang or take much memory is watched by who runs it: `cargo xtask fuzz`
//! with new bytes, a plain test with the corpus in `tests/fuzz/corpus`.
//!
//! To add one: write the function and its seeds (of a record, its `Sample`), add a line to
//! [`TARGETS`], and let the test write the seeds: `BACKSTAY_UPDATE_CORPUS=1 cargo nextest run -p backstay-format corpus`.

mod damage;
mod index;
mod objects;
mod packs;
mod records;

use records::Sample;

use crate::gc::{End, Plan, Verdict};
use crate::removal::{Pin, Removal};
use crate::session::{Fence, Session};

/// One parser under test.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in the corpus.
    pub name: &'static str,
    /// Takes any bytes; panics when a promise is broken.
    pub run: fn(&[u8]),
    /// Inputs made by the real encoders, each with a name. The same at every call.
    pub seeds: fn() -> Vec<(&'static str, Vec<u8>)>,
    /// Bytes of memory a run may hold at once, beside [`MEMORY_PER_INPUT_BYTE`].
    pub memory: usize,
}

/// Bytes of memory a run may hold at once for each byte of input: records are larger in memory than
/// in JSON, vectors grow by doubling, and a run holds what it read beside what it encoded.
pub const MEMORY_PER_INPUT_BYTE: usize = 256;

/// Memory of a parser that has no buffers of its own.
const LITTLE: usize = 64 * 1024;

/// Every target of this crate.
pub const TARGETS: &[Target] = &[
    target("envelope", objects::envelope, objects::envelope_seeds),
    target("config", objects::config, objects::config_seeds),
    target("keyslot", objects::keyslot, objects::keyslot_seeds),
    target("point", objects::point, objects::point_seeds),
    target("text", objects::text, objects::text_seeds),
    target("quarantine", damage::quarantine, damage::quarantine_seeds),
    target("verified", damage::verified, damage::verified_seeds),
    target("parity", damage::parity, damage::parity_seeds),
    target("node", packs::node, packs::node_seeds),
    target("pack_header", packs::header, packs::header_seeds),
    target("pack_table", packs::table, packs::table_seeds),
    target("pack_trailer", packs::trailer, packs::trailer_seeds),
    target("recovery_key", objects::recovery_key, objects::recovery_key_seeds),
    target("index_object", index::run, index::seeds),
    record::<Session>("session"),
    record::<Fence>("fence"),
    record::<Removal>("removal"),
    record::<Pin>("pin"),
    record::<Plan>("plan"),
    record::<Verdict>("verdict"),
    record::<End>("end"),
];

const fn record<R: Sample>(name: &'static str) -> Target {
    target(name, records::run::<R>, records::seeds::<R>)
}

const fn target(
    name: &'static str,
    run: fn(&[u8]),
    seeds: fn() -> Vec<(&'static str, Vec<u8>)>,
) -> Target {
    Target { name, run, seeds, memory: LITTLE }
}
