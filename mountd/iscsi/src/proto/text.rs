//! Text: keys and values (RFC 7143, 6.1 and 6.2).

use super::Malformed;

/// Pairs in one text.
pub const MAX_PAIRS: usize = 100;
/// Letters of a key.
const MAX_KEY_BYTES: usize = 63;
/// Bytes of a value; of one that bears a large binary value, more.
const MAX_VALUE_BYTES: usize = 255;
/// Bytes of a large binary value: 1024 bytes, in hexadecimal, with its sign.
const MAX_LARGE_BYTES: usize = 2 + 2 * 1024;

/// The pairs of a text, in its order.
///
/// # Errors
/// What is not `key=value` with bounds and letters as the standard has them, is not ended by NUL, or more than
/// [`MAX_PAIRS`].
pub fn parse(text: &[u8]) -> Result<Vec<(&str, &str)>, Malformed> {
    let mut pairs = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest
            .iter()
            .position(|byte| *byte == 0)
            .ok_or_else(|| Malformed::new("text without an end", rest.len() as u64))?;
        let (pair, behind) = (&rest[..end], &rest[end + 1..]);
        rest = behind;
        if pair.is_empty() {
            // Some pad their text with NULs.
            continue;
        }
        if pairs.len() == MAX_PAIRS {
            return Err(Malformed::new("too many keys in a text", MAX_PAIRS as u64));
        }
        pairs.push(parse_pair(pair)?);
    }
    Ok(pairs)
}

fn parse_pair(pair: &[u8]) -> Result<(&str, &str), Malformed> {
    let len = pair.len() as u64;
    let pair = std::str::from_utf8(pair).map_err(|_| Malformed::new("text that is none", len))?;
    let (key, value) =
        pair.split_once('=').ok_or_else(|| Malformed::new("a key without value", len))?;
    let letter = |c: char| c.is_ascii_alphanumeric() || ".-+@_#".contains(c);
    if key.is_empty() || key.len() > MAX_KEY_BYTES || !key.chars().all(letter) {
        return Err(Malformed::new("a key that is none", key.len() as u64));
    }
    let most = if key.starts_with("CHAP_") { MAX_LARGE_BYTES } else { MAX_VALUE_BYTES };
    if value.len() > most || value.chars().any(char::is_control) {
        return Err(Malformed::new("a value that is none", value.len() as u64));
    }
    Ok((key, value))
}

/// Text on its way out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Adds a pair.
    pub fn pair(&mut self, key: &str, value: &str) {
        self.0.extend_from_slice(key.as_bytes());
        self.0.push(b'=');
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
    }

    /// The text.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Whether a value is no value but an answer to a key that we told (RFC 7143, 6.2).
pub fn is_answer(value: &str) -> bool {
    matches!(value, "NotUnderstood" | "Reject" | "Irrelevant")
}

/// A number: decimal, or hexadecimal behind `0x` (RFC 7143, 6.1).
pub fn number(value: &str) -> Option<u32> {
    let (digits, radix) = match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (value, 10),
    };
    let plain = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_hexdigit());
    if plain { u32::from_str_radix(digits, radix).ok() } else { None }
}

/// A binary value of at most `most` bytes: hexadecimal behind `0x`, or Base64 behind `0b` (RFC 7143, 6.1).
pub fn binary(value: &str, most: usize) -> Option<Vec<u8>> {
    let (sign, digits) = value.split_at_checked(2)?;
    match sign {
        "0x" | "0X" => hexadecimal(digits, most),
        "0b" | "0B" => base64(digits, most),
        _ => None,
    }
}

fn hexadecimal(digits: &str, most: usize) -> Option<Vec<u8>> {
    // edk2 wrote beyond its buffer here: the bound comes first.
    if digits.is_empty() || digits.len().div_ceil(2) > most {
        return None;
    }
    let digits = digits.as_bytes();
    let value = |digit: &u8| char::from(*digit).to_digit(16).map(|value| value as u8);
    let (odd, pairs) = digits.split_at(digits.len() % 2);
    let mut bytes = Vec::with_capacity(digits.len().div_ceil(2));
    if let Some(first) = odd.first() {
        bytes.push(value(first)?);
    }
    for pair in pairs.chunks_exact(2) {
        bytes.push(value(&pair[0])? << 4 | value(&pair[1])?);
    }
    Some(bytes)
}

fn base64(digits: &str, most: usize) -> Option<Vec<u8>> {
    if digits.is_empty() || !digits.len().is_multiple_of(4) || digits.len() / 4 * 3 > most + 2 {
        return None;
    }
    let plain = digits.trim_end_matches('=');
    if digits.len() - plain.len() > 2 {
        return None;
    }
    let (mut bytes, mut held, mut bits) = (Vec::with_capacity(digits.len() / 4 * 3), 0u32, 0);
    for digit in plain.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        held = held << 6 | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
            held &= (1 << bits) - 1;
        }
    }
    (held == 0 && bytes.len() <= most).then_some(bytes)
}

/// Bytes as a hexadecimal value.
pub fn to_hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(2 + 2 * bytes.len());
    text.push_str("0x");
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_come_and_go() {
        let mut text = Writer::default();
        text.pair("InitiatorName", "iqn.2001-04.com.x");
        text.pair("X-a=b", "");
        let text = text.finish();
        let pairs = parse(&text).unwrap();
        assert_eq!(pairs, [("InitiatorName", "iqn.2001-04.com.x"), ("X-a", "b=")]);
        assert_eq!(parse(b"A=b\0\0\0").unwrap(), [("A", "b")]);
    }

    #[test]
    fn what_is_no_text() {
        let long_key = format!("{}=x\0", "K".repeat(64));
        let long_value = format!("K={}\0", "x".repeat(256));
        let many = "K=v\0".repeat(MAX_PAIRS + 1);
        for bad in ["A=b", "A\0", "=b\0", "A B=c\0", "A=b\u{1}\0", &long_key, &long_value, &many] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(parse(b"A=\xff\0").is_err());
    }

    #[test]
    fn numbers() {
        for (text, value) in [("0", 0), ("262144", 262_144), ("0x10", 16), ("4294967295", u32::MAX)]
        {
            assert_eq!(number(text), Some(value));
        }
        for bad in ["", "-1", "+1", "1a", "0x", "4294967296", " 1"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }

    #[test]
    fn binary_values() {
        assert_eq!(binary("0x0aFf", 2), Some(vec![10, 255]));
        assert_eq!(binary("0xaff", 2), Some(vec![10, 255]));
        assert_eq!(binary("0bCv8=", 2), Some(vec![10, 255]));
        assert_eq!(binary("0bAQID", 3), Some(vec![1, 2, 3]));
        assert_eq!(binary(&to_hexadecimal(&[0, 1, 254]), 3), Some(vec![0, 1, 254]));
        for bad in [
            "",
            "0",
            "0x",
            "0xzz",
            "0aff",
            "0b",
            "0bA",
            "0bCv9=",
            "0b====",
            "0xé",
            "0b\u{e9}\u{e9}",
        ] {
            assert_eq!(binary(bad, 64), None, "{bad}");
        }
    }

    /// edk2 #9794, #9796 and #8833: values longer than the room for them.
    #[test]
    fn edk2_9794_values_longer_than_their_room() {
        for room in [0, 1, 16, 1024] {
            let digits = "ab".repeat(room + 1);
            assert_eq!(binary(&format!("0x{digits}"), room), None);
            assert_eq!(binary(&format!("0x{}", &digits[..2 * room + 1]), room), None);
            let digits = "AAAA".repeat(room + 1);
            assert_eq!(binary(&format!("0b{digits}"), room), None);
        }
    }
}
