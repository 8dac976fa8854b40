//! Feeds a target with bytes that libFuzzer makes, and watches how much memory it takes.
//!
//! `BACKSTAY_FUZZ_TARGET` names the target; the arguments are libFuzzer's. `cargo xtask fuzz` sets
//! both. A panic, a run that hangs and a run that holds more memory than the target's bound all end
//! the program, and libFuzzer keeps the input.
#![no_main]

mod memory;

use std::sync::OnceLock;

use backstay_format::fuzz::{MEMORY_PER_INPUT_BYTE, Target};

/// Names the target.
const VARIABLE: &str = "BACKSTAY_FUZZ_TARGET";

#[global_allocator]
static MEMORY: memory::Counting = memory::Counting;

/// The NBD crate knows nothing of the store's, so its targets have a type of their own.
fn nbd(target: &backstay_nbd::fuzz::Target) -> Target {
    let &backstay_nbd::fuzz::Target { name, run, seeds, memory } = target;
    Target { name, run, seeds, memory }
}

/// Nor does the iSCSI crate.
fn iscsi(target: &backstay_iscsi::fuzz::Target) -> Target {
    let &backstay_iscsi::fuzz::Target { name, run, seeds, memory } = target;
    Target { name, run, seeds, memory }
}

/// Nor do the readers of guests' disks.
fn guest(target: &backstay_guestfs::fuzz::Target) -> Target {
    let &backstay_guestfs::fuzz::Target { name, run, seeds, memory } = target;
    Target { name, run, seeds, memory }
}

fn target() -> &'static Target {
    static TARGET: OnceLock<Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = std::env::var(VARIABLE).unwrap_or_default();
        let stores =
            backstay_format::fuzz::TARGETS.iter().chain(backstay_store::testkit::fuzz::TARGETS);
        let mut all = stores
            .copied()
            .chain(backstay_nbd::fuzz::TARGETS.iter().map(nbd))
            .chain(backstay_iscsi::fuzz::TARGETS.iter().map(iscsi))
            .chain(backstay_guestfs::fuzz::TARGETS.iter().map(guest));
        all.find(|target| target.name == name)
            .unwrap_or_else(|| panic!("{VARIABLE} names no target: '{name}'"))
    })
}

libfuzzer_sys::fuzz_target!(
    init: {
        // What is made once must not count against the first input.
        let target = target();
        for (_, seed) in (target.seeds)() {
            (target.run)(&seed);
        }
    },
    |data: &[u8]| {
        let target = target();
        let before = memory::start();
        (target.run)(data);
        let held = memory::most().saturating_sub(before);
        let bound = target.memory + MEMORY_PER_INPUT_BYTE * data.len();
        assert!(held <= bound, "{} bytes held memory of {held} bytes, bound {bound}", data.len());
    }
);
