//! Integration tests of the devices and layers.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests say what they expect")]

#[path = "it/cache.rs"]
mod cache;
#[path = "it/conformance.rs"]
mod conformance;
#[path = "it/file.rs"]
mod file;
#[path = "it/layers.rs"]
mod layers;
#[path = "it/model.rs"]
mod model;
#[path = "it/overlay.rs"]
mod overlay;
#[path = "it/planted.rs"]
mod planted;
#[path = "it/probe.rs"]
mod probe;

/// A disk of `len` bytes with data, zeros and borders between them at odd places.
pub(crate) fn disk(len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|i| (i / 7 + i % 253) as u8 | 1).collect();
    for (from, to) in [(0, 5000), (len / 4, len / 2), (len / 2 + 8192, len / 2 + 8193)] {
        if to <= len {
            bytes[from..to].fill(0);
        }
    }
    let tail = len - len / 8;
    bytes[tail..].fill(0);
    bytes
}
