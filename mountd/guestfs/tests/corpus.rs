//! The fuzz targets with their seeds, cut and changed: a fuzzer's first steps, the same each time.

use backstay_guestfs::fuzz::TARGETS;

/// Changes tried on each seed.
const CHANGES: usize = 1500;

#[test]
fn seeds_cut_and_changed_break_no_promise() {
    for target in TARGETS {
        (target.run)(&[]);
        for (_, seed) in (target.seeds)() {
            (target.run)(&seed);
            // The same steps whatever the length.
            let step = (seed.len() / CHANGES).max(1);
            for at in (0..seed.len()).step_by(step) {
                (target.run)(&seed[..at]);
                for byte in [0, 1, 0x7f, 0xff, seed[at].wrapping_add(1)] {
                    let mut other = seed.clone();
                    other[at] = byte;
                    (target.run)(&other);
                }
            }
        }
    }
}
