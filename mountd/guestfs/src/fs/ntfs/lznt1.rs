//! LZNT1, the compression of NTFS ([MS-XCA] 2.5).

use crate::Error;

/// What a chunk decompresses to.
const CHUNK_BYTES: usize = 4096;

/// Decompresses chunks from `input` into `output`; what they do not fill is zeros, as the format has it.
pub(super) fn decompress(input: &[u8], output: &mut [u8], what: &str) -> Result<(), Error> {
    let bad = |text: String| Error::damaged(format!("{what}: {text}"));
    let mut rest = input;
    for chunk in output.chunks_mut(CHUNK_BYTES) {
        chunk.fill(0);
        let Some((head, behind)) = rest.split_first_chunk::<2>() else {
            rest = &[];
            continue;
        };
        let head = u16::from_le_bytes(*head);
        if head == 0 {
            // The end of the data; all that follows is zeros.
            rest = &[];
            continue;
        }
        let len = usize::from(head & 0xfff) + 1;
        if head >> 12 & 7 != 3 {
            return Err(bad(format!("a compressed chunk has the head {head:#06x}")));
        }
        let Some((body, behind)) = behind.split_at_checked(len) else {
            return Err(bad(format!("a compressed chunk of {len} bytes is cut off")));
        };
        rest = behind;
        if head & 0x8000 == 0 {
            let Some(part) = chunk.get_mut(..len) else {
                return Err(bad(format!("a stored chunk of {len} bytes")));
            };
            part.copy_from_slice(body);
        } else {
            expand(body, chunk).map_err(|text| bad(text.to_owned()))?;
        }
    }
    Ok(())
}

/// One compressed chunk: eight times a byte of flags, each with eight tokens; a token is a byte or a step back with a length.
fn expand(body: &[u8], out: &mut [u8]) -> Result<(), &'static str> {
    let (mut rest, mut at) = (body, 0);
    while let Some((flags, behind)) = rest.split_first() {
        rest = behind;
        for bit in 0..8 {
            if rest.is_empty() {
                return Ok(());
            }
            if flags >> bit & 1 == 0 {
                let Some((byte, behind)) = rest.split_first() else { return Ok(()) };
                *out.get_mut(at).ok_or("a compressed chunk holds too much")? = *byte;
                (rest, at) = (behind, at + 1);
                continue;
            }
            let Some((token, behind)) = rest.split_first_chunk::<2>() else {
                return Err("a compressed chunk ends within a token");
            };
            rest = behind;
            let token = usize::from(u16::from_le_bytes(*token));
            if at == 0 {
                return Err("a compressed chunk begins with a copy");
            }
            // The further into the chunk, the more bits are for the way back.
            let back_bits = (usize::BITS - (at - 1).leading_zeros()).max(4) as usize;
            let len_bits = 16 - back_bits;
            let (back, len) = ((token >> len_bits) + 1, (token & ((1 << len_bits) - 1)) + 3);
            if back > at || at + len > out.len() {
                return Err("a copy in a compressed chunk leaves it");
            }
            for i in at..at + len {
                out[i] = out[i - back];
            }
            at += len;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_specification() {
        // [MS-XCA] 3.3.
        let input: &[u8] = &[
            0x38, 0xb0, 0x88, 0x46, 0x23, 0x20, 0x00, 0x20, 0x47, 0x20, 0x41, 0x00, 0x10, 0xa2,
            0x47, 0x01, 0xa0, 0x45, 0x20, 0x44, 0x00, 0x08, 0x45, 0x01, 0x50, 0x79, 0x00, 0xc0,
            0x45, 0x20, 0x05, 0x24, 0x13, 0x88, 0x05, 0xb4, 0x02, 0x4a, 0x44, 0xef, 0x03, 0x58,
            0x02, 0x8c, 0x09, 0x16, 0x01, 0x48, 0x45, 0x00, 0xbe, 0x00, 0x9e, 0x00, 0x04, 0x01,
            0x18, 0x90, 0x00,
        ];
        let mut out = [1; 5000];
        decompress(input, &mut out, "x").unwrap();
        let text =
            b"F# F# G A A G F# E D D E F# F# E E F# F# G A A G F# E D D E F# E D D E E F# D E \
F# G F# D E F# G F# E D E A F# F# G A A G F# E D D E F# E D D";
        assert_eq!(&out[..text.len()], text);
        assert!(out[text.len() + 1..].iter().all(|b| *b == 0));
    }

    #[test]
    fn hostile_chunks() {
        let mut out = [0; 8192];
        for bad in [
            &[0x05, 0xb0, 0x01, 0x00, 0x00][..],
            &[0x02, 0xb0, 0x01, 0x00, 0x00],
            &[0x04, 0xb0, 0x02, 0x41, 0xff, 0xff, 0x00],
            &[0x00, 0x90, 0x00],
            &[0xff, 0x3f, 0x00],
        ] {
            assert!(decompress(bad, &mut out, "x").is_err(), "{bad:?}");
        }
        assert!(decompress(&[0xff], &mut out, "x").is_ok());
    }
}
