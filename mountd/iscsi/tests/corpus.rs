//! The fuzz targets with their seeds, cut and changed: a fuzzer's first steps, the same each time.

use backstay_iscsi::fuzz::TARGETS;

#[test]
fn seeds_and_their_beginnings_break_no_promise() {
    for target in TARGETS {
        (target.run)(&[]);
        for (_, seed) in (target.seeds)() {
            for end in 0..=seed.len() {
                (target.run)(&seed[..end]);
            }
        }
    }
}

#[test]
fn one_byte_off_breaks_no_promise() {
    for target in TARGETS {
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
