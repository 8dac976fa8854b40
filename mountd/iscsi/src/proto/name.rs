//! Names of initiators and targets (RFC 7143, 4.2.7).

use std::fmt;

/// The longest name.
const MAX_NAME_BYTES: usize = 223;

/// Whether `name` is an iSCSI name in its normal form: `iqn.` with a date and a domain, `eui.` with 16 or `naa.` with 16 or
/// 32 hexadecimal digits, in small letters, digits, `.`, `-`, `:` and (beyond the standard, as hosts are named so) `_`.
/// No other character is taken: names are shown to people and become names of files in more than one initiator
/// (CVE-2026-44943 and its like).
pub fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-:_".contains(c);
    if name.len() > MAX_NAME_BYTES || !name.chars().all(plain) || name.contains("..") {
        return false;
    }
    let hex = |digits: &str, lengths: &[usize]| {
        lengths.contains(&digits.len()) && digits.chars().all(|c| c.is_ascii_hexdigit())
    };
    match name.split_once('.') {
        Some(("iqn", rest)) => is_dated(rest),
        Some(("eui", digits)) => hex(digits, &[16]),
        Some(("naa", digits)) => hex(digits, &[16, 32]),
        _ => false,
    }
}

/// `YYYY-MM.DOMAIN` and what its owner puts behind it.
fn is_dated(rest: &str) -> bool {
    let Some((date, owner)) = rest.split_once('.') else { return false };
    let digits = |text: &str, n| text.len() == n && text.chars().all(|c| c.is_ascii_digit());
    let dated =
        date.split_once('-').is_some_and(|(year, month)| digits(year, 4) && digits(month, 2));
    dated && !owner.is_empty() && !owner.starts_with(':')
}

/// An initiator's name in its normal form.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InitiatorName(String);

impl InitiatorName {
    /// The name, in small letters; `None` if it is none.
    pub fn new(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        is_name(&name).then_some(Self(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InitiatorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in [
            "iqn.1993-08.org.debian:01:abc",
            "IQN.1991-05.com.microsoft:Host_1",
            "eui.02004567A425678D",
            "naa.52004567BA64678D",
            "naa.62004567ba64678d0123456789abcdef",
            "iqn.2026-11.x",
        ] {
            assert!(InitiatorName::new(good).is_some(), "{good}");
        }
        let long = format!("iqn.2001-04.com.x:{}", "a".repeat(223));
        for bad in [
            "",
            "iqn.",
            "iqn.2001-04",
            "iqn.2001-04.",
            "iqn.2001-4.com.x",
            "iqn.2001-04.:x",
            "web01",
            "eui.123",
            "naa.5200",
            "iqn.2001-04.com.x:a b",
            "iqn.2001-04.com.x:\u{e9}",
            &long,
        ] {
            assert!(InitiatorName::new(bad).is_none(), "{bad}");
        }
    }

    /// open-iscsi CVE-2026-18724 to 18728 and CVE-2026-44943: such names were written to disk.
    #[test]
    fn cve_2026_44943_names_that_are_paths_or_hold_control_characters() {
        for bad in [
            "iqn.2001-04.com.x:../../etc",
            "iqn.2001-04.com.x/y",
            "iqn.2001-04.com.x:\n",
            "iqn.2001-04.com.x:\u{7f}",
            "iqn.2001-04.com.x:\0",
        ] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }
}
