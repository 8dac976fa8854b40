//! Names: the short ones of DOS in code page 437, and the long ones of VFAT.

use crate::fs::utf16;

/// The upper half of code page 437, as IBM's table and Unicode's mapping file `CP437.TXT` have it.
const UPPER: &str = "\
ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐\
└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

/// The case of the two parts of a short name: bits of byte 12 of an entry.
const LOWER_BASE: u8 = 8;
const LOWER_EXTENSION: u8 = 16;
/// Stands for 0xe5 at the start of a name, which would mean "deleted".
const KANJI_E5: u8 = 5;

fn letter(byte: u8, lower: bool) -> char {
    let c = match byte {
        0..0x80 => char::from(byte),
        _ => UPPER.chars().nth(usize::from(byte & 0x7f)).unwrap_or('\u{fffd}'),
    };
    if lower { c.to_lowercase().next().unwrap_or(c) } else { c }
}

/// A short name as it is shown: without filling, with the dot, and in the case its flags say.
pub(super) fn short(name: &[u8; 11], case: u8) -> String {
    let mut raw = *name;
    if raw[0] == KANJI_E5 {
        raw[0] = 0xe5;
    }
    let part = |bytes: &[u8], lower: bool| {
        let text: String = bytes.iter().map(|byte| letter(*byte, lower)).collect();
        text.trim_end_matches(' ').to_owned()
    };
    let base = part(&raw[..8], case & LOWER_BASE != 0);
    let extension = part(&raw[8..], case & LOWER_EXTENSION != 0);
    if extension.is_empty() { base } else { format!("{base}.{extension}") }
}

/// A volume label: eleven letters without a dot.
pub(super) fn label(name: &[u8; 11]) -> String {
    let text: String = name.iter().map(|byte| letter(*byte, false)).collect();
    text.trim_end_matches([' ', '\0']).to_owned()
}

/// The sum over a short name that the pieces of its long name carry.
pub(super) fn checksum(name: &[u8; 11]) -> u8 {
    name.iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

/// A name without regard to case: how names are told apart.
pub(super) fn folded(name: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(name) {
        Ok(text) => text.to_uppercase().into_bytes(),
        Err(_) => name.to_ascii_uppercase(),
    }
}

/// A long name as its pieces come: the last one first, each with 13 units.
#[derive(Debug, Default)]
pub(super) struct Long {
    units: Vec<u16>,
    /// The number of the piece that must come next; 0 if all are there.
    missing: u8,
    sum: u8,
    whole: bool,
}

impl Long {
    /// The most pieces a name of 255 units has.
    const PIECES_MAX: u8 = 20;
    /// Where the units are in a piece.
    const PLACES: [std::ops::Range<usize>; 3] = [1..11, 14..26, 28..32];

    /// Takes a piece. One that does not fit to the others is of a name whose rest is gone.
    pub(super) fn take(&mut self, entry: &[u8; 32]) {
        let (number, sum) = (entry[0] & 0x3f, entry[13]);
        if entry[0] & 0x40 != 0 && (1..=Self::PIECES_MAX).contains(&number) {
            *self = Self { units: Vec::new(), missing: number, sum, whole: true };
        } else if !self.whole || number == 0 || number != self.missing || sum != self.sum {
            *self = Self::default();
            return;
        }
        self.missing = number - 1;
        let piece = Self::PLACES.into_iter().flat_map(|place| utf16::le_units(&entry[place]));
        let mut units: Vec<u16> = piece.collect();
        units.append(&mut self.units);
        self.units = units;
    }

    /// The name, if it is all there and is that of the short name behind it.
    pub(super) fn finish(&mut self, name: &[u8; 11]) -> Option<Vec<u8>> {
        let long = std::mem::take(self);
        if !long.whole || long.missing != 0 || long.sum != checksum(name) {
            return None;
        }
        let end = long.units.iter().position(|unit| *unit == 0);
        let name = utf16::to_wtf8(long.units[..end.unwrap_or(long.units.len())].iter().copied());
        utf16::is_name(&name).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names() {
        assert_eq!(UPPER.chars().count(), 128);
        assert_eq!(short(b"README  TXT", 0), "README.TXT");
        assert_eq!(short(b"README  TXT", 8), "readme.TXT");
        assert_eq!(short(b"A          ", 24), "a");
        assert_eq!(short(b"\x05\x81 B    \x9a  ", 0), "σü B.Ü");
        assert_eq!(label(b"NO NAME    "), "NO NAME");
        assert_eq!(folded("größe".as_bytes()), "GRÖSSE".as_bytes());
    }

    #[test]
    fn long_names_need_all_their_pieces() {
        let short = *b"LONG~1     ";
        let piece = |number: u8, units: [u16; 13]| {
            let mut entry = [0; 32];
            (entry[0], entry[11], entry[13]) = (number, 15, checksum(&short));
            let bytes: Vec<u8> = units.into_iter().flat_map(u16::to_le_bytes).collect();
            entry[1..11].copy_from_slice(&bytes[..10]);
            entry[14..26].copy_from_slice(&bytes[10..22]);
            entry[28..32].copy_from_slice(&bytes[22..]);
            entry
        };
        let (last, first) = (
            piece(
                0x42,
                [
                    98, 0xd800, 0, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff,
                    0xffff, 0xffff,
                ],
            ),
            piece(1, [97; 13]),
        );
        let mut long = Long::default();
        long.take(&last);
        long.take(&first);
        assert_eq!(long.finish(&short).unwrap(), b"aaaaaaaaaaaaab\xed\xa0\x80");
        assert_eq!(long.finish(&short), None);
        for pieces in [&[last][..], &[first], &[last, last, first][..2], &[last, first, first]] {
            let mut long = Long::default();
            pieces.iter().for_each(|piece| long.take(piece));
            assert_eq!(long.finish(&short), None);
        }
        long.take(&last);
        long.take(&first);
        assert_eq!(long.finish(b"ANOTHER    "), None);
    }
}
