//! Names kept as UTF-16, given as WTF-8: UTF-8 in which a lone surrogate is written like any other code point.

/// The longest name in bytes that the trait allows.
const NAME_MAX: usize = 1024;

/// UTF-16 as WTF-8.
pub(crate) fn to_wtf8(units: impl IntoIterator<Item = u16>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for decoded in char::decode_utf16(units) {
        match decoded {
            Ok(c) => bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
            Err(e) => {
                let unit = e.unpaired_surrogate();
                let tail = |shift: u16| 0x80 | ((unit >> shift) & 0x3f) as u8;
                bytes.extend([0xe0 | (unit >> 12) as u8, tail(6), tail(0)]);
            }
        }
    }
    bytes
}

/// WTF-8 as UTF-16; `None` for bytes that are neither UTF-8 nor a surrogate.
pub(crate) fn from_wtf8(bytes: &[u8]) -> Option<Vec<u16>> {
    let mut units = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [first, ..] = rest {
        if let [0xed, b @ 0xa0..=0xbf, c @ 0x80..=0xbf, ..] = rest {
            units.push(0xd000 | u16::from(b & 0x3f) << 6 | u16::from(c & 0x3f));
            rest = rest.get(3..)?;
            continue;
        }
        let len = match first {
            0..=0x7f => 1,
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            _ => 4,
        };
        let (head, tail) = rest.split_at_checked(len)?;
        units.extend(std::str::from_utf8(head).ok()?.encode_utf16());
        rest = tail;
    }
    Some(units)
}

/// The units of little-endian UTF-16; a last odd byte is left out.
pub(crate) fn le_units(bytes: &[u8]) -> impl Iterator<Item = u16> + '_ {
    bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
}

/// Whether a name can stand in a directory: the trait's promise about names.
pub(crate) fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && name != b"."
        && name != b".."
        && !name.iter().any(|b| matches!(b, 0 | b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for units in [
            "ärger 日本 🙂".encode_utf16().collect::<Vec<_>>(),
            vec![0xd800],
            vec![0xdfff, 0x41, 0xd83d],
            vec![0xdc00, 0xd800],
        ] {
            assert_eq!(from_wtf8(&to_wtf8(units.iter().copied())).as_deref(), Some(&units[..]));
        }
        assert_eq!(to_wtf8([0xd800]), b"\xed\xa0\x80");
        for bad in [&b"\xff"[..], b"\xc3", b"\x80", b"a\xf0\x9f", b"\xed\xa0"] {
            assert_eq!(from_wtf8(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn names_that_cannot_stand() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 1025]] {
            assert!(!is_name(bad));
        }
        assert!(is_name(b"...") && is_name(b"x"));
    }
}
