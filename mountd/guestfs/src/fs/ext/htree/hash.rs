//! The hashes of names. Source: Linux `Documentation/filesystems/ext4/directory.rst`, "dx_hash"; RFC 1320 for MD4's rounds; the
//! Tiny Encryption Algorithm.

/// The mark of the end, which no hash may be.
const END: u32 = 0x7fff_ffff;

/// The hash of a name by version `version` of the index; `None` for one that is not known.
pub(super) fn of(name: &[u8], version: u8, unsigned: bool, seed: &[u32; 4]) -> Option<u32> {
    let (kind, unsigned) = match version {
        0..=2 => (version, unsigned),
        3..=5 => (version - 3, true),
        _ => return None,
    };
    let state = match seed {
        [0, 0, 0, 0] => [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476],
        seed => *seed,
    };
    let hash = match kind {
        0 => legacy(name, unsigned),
        1 => half_md4(name, unsigned, state),
        _ => tea(name, unsigned, state),
    };
    let hash = hash & !1;
    Some(if hash == END << 1 { (END - 1) << 1 } else { hash })
}

fn widened(byte: u8, unsigned: bool) -> u32 {
    match unsigned {
        true => byte.into(),
        false => i32::from(byte.cast_signed()).cast_unsigned(),
    }
}

fn legacy(name: &[u8], unsigned: bool) -> u32 {
    let (mut before, mut hash) = (0x37ab_e8f9u32, 0x12a3_fe2du32);
    for byte in name {
        let mixed = before.wrapping_add(hash ^ widened(*byte, unsigned).wrapping_mul(7_152_373));
        let next = if mixed & 0x8000_0000 != 0 { mixed.wrapping_sub(0x7fff_ffff) } else { mixed };
        (before, hash) = (hash, next);
    }
    hash << 1
}

/// `N` words of a name, filled up with its length.
fn words<const N: usize>(name: &[u8], unsigned: bool) -> [u32; N] {
    let len = name.len() as u32;
    let pad = len | len << 8;
    let pad = pad | pad << 16;
    let mut words = [pad; N];
    let taken = name.get(..name.len().min(4 * N)).unwrap_or_default();
    for (i, piece) in taken.chunks(4).enumerate() {
        let mut word = pad;
        for byte in piece {
            word = widened(*byte, unsigned).wrapping_add(word << 8);
        }
        if let Some(to) = words.get_mut(i) {
            *to = word;
        }
    }
    words
}

fn half_md4(name: &[u8], unsigned: bool, mut state: [u32; 4]) -> u32 {
    let mut rest = name;
    loop {
        half_md4_rounds(&mut state, &words::<8>(rest, unsigned));
        match rest.get(32..) {
            Some(more) if !more.is_empty() => rest = more,
            _ => return state[1],
        }
    }
}

fn half_md4_rounds(state: &mut [u32; 4], words: &[u32; 8]) {
    type Mix = fn(u32, u32, u32) -> u32;
    let choose: Mix = |x, y, z| z ^ (x & (y ^ z));
    let majority: Mix = |x, y, z| (x & y).wrapping_add((x ^ y) & z);
    let parity: Mix = |x, y, z| x ^ y ^ z;
    let rounds: [(Mix, u32, [usize; 8], [u32; 4]); 3] = [
        (choose, 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        (majority, 0x5a82_7999, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]),
        (parity, 0x6ed9_eba1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (mix, constant, order, shifts) in rounds {
        for (i, word) in order.into_iter().enumerate() {
            let sum = a
                .wrapping_add(mix(b, c, d))
                .wrapping_add(words[word])
                .wrapping_add(constant)
                .rotate_left(shifts[i % 4]);
            (a, b, c, d) = (d, sum, b, c);
        }
    }
    for (word, more) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(more);
    }
}

fn tea(name: &[u8], unsigned: bool, mut state: [u32; 4]) -> u32 {
    let mut rest = name;
    loop {
        tea_rounds(&mut state, &words::<4>(rest, unsigned));
        match rest.get(16..) {
            Some(more) if !more.is_empty() => rest = more,
            _ => return state[0],
        }
    }
}

fn tea_rounds(state: &mut [u32; 4], words: &[u32; 4]) {
    let [mut x, mut y, ..] = *state;
    let mut sum = 0u32;
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9e37_79b9);
        x = x.wrapping_add(
            (y << 4).wrapping_add(words[0]) ^ y.wrapping_add(sum) ^ (y >> 5).wrapping_add(words[1]),
        );
        y = y.wrapping_add(
            (x << 4).wrapping_add(words[2]) ^ x.wrapping_add(sum) ^ (x >> 5).wrapping_add(words[3]),
        );
    }
    state[0] = state[0].wrapping_add(x);
    state[1] = state[1].wrapping_add(y);
}
