//! Names of machines, points and disks as path components.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// The symbolic link to a machine's newest point.
pub(super) const LATEST: &str = "latest";
/// The directory of a point's disks.
pub(super) const DISKS: &str = "disks";
/// The directory of what lies inside them.
pub(super) const FILES: &str = "files";
/// The text about that.
pub(super) const ABOUT: &str = "volumes.txt";
/// What a disk's file name ends with: its bytes are the guest's, whatever the source's format was.
pub(super) const DISK_SUFFIX: &str = ".raw";

/// A path component for `name`; two different names never share one, and [`plain`] takes it back.
///
/// `/`, NUL and control characters become `%XX`, as do the dots of `.` and `..`, and a `%` that
/// would otherwise read as such a code. Everything else stays as it is.
pub(super) fn safe(name: &str) -> String {
    let dots_only = name == "." || name == "..";
    let bytes = name.as_bytes();
    let mut out = String::with_capacity(name.len());
    for (at, c) in name.char_indices() {
        let code_like = || {
            let next = bytes.get(at + 1..at + 3);
            next.is_some_and(|n| n.iter().all(u8::is_ascii_hexdigit))
        };
        let escape = match c {
            '/' => true,
            '.' => dots_only,
            '%' => code_like() || name.len() == 1,
            c => c.is_ascii_control(),
        };
        if escape {
            out.push_str(&format!("%{:02X}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    // The one name without a character must still have one in a path.
    if out.is_empty() { "%".to_owned() } else { out }
}

/// What [`safe`] made `component` from.
#[cfg(test)]
fn plain(component: &str) -> String {
    if component == "%" {
        return String::new();
    }
    let bytes = component.as_bytes();
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let code = (bytes[at] == b'%')
            .then(|| component.get(at + 1..at + 3))
            .flatten()
            .filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(code.unwrap_or(bytes[at]));
        at += if code.is_some() { 3 } else { 1 };
    }
    String::from_utf8(out).unwrap()
}

/// A point's directory name: its time in UTC, to the second, without characters that a shell or
/// another file system dislikes: `2026-11-22T03-00-00Z`.
pub(super) fn point_time(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H-%M-%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ordinary_names_stay() {
        for name in ["web01", "db server 2", "ärger", "a.b", "..x", "100%", "a%zz"] {
            assert_eq!(safe(name), name);
        }
    }

    #[test]
    fn awkward_names_are_safe_distinct_and_come_back() {
        let names = [
            "", ".", "..", "a/b", "/", "\0", "a\0b", "a%2Fb", "%", "%%", "%2E", "%25", "%%2F",
            "\n", "%/", "%00", "a%", "...", "x\u{7f}", "%ag", "%a%2f", "%+f",
        ];
        let mut seen = HashSet::new();
        for name in names {
            let component = safe(name);
            assert!(!component.is_empty() && component != "." && component != "..", "{name:?}");
            assert!(!component.bytes().any(|b| b == b'/' || b < 0x20), "{name:?}: {component:?}");
            assert_eq!(plain(&component), name, "{component:?}");
            assert!(seen.insert(component), "{name:?}");
        }
    }

    #[test]
    fn point_times() {
        let t: Timestamp = "2026-11-22T04:00:00.9+01:00".parse().unwrap();
        assert_eq!(point_time(t), "2026-11-22T03-00-00Z");
    }
}
