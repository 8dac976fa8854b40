//! Sizes and times as people write and read them.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A size in IEC units with one decimal: `20.0 GiB`. Exact below 1 KiB.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    let mut scaled = bytes as f64 / 1024.0;
    // 1023.95 and above would be printed as 1024.0, which belongs to the next unit.
    while scaled >= 1023.95 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{scaled:.1} {}", UNITS[unit])
}

/// Exact and readable side by side: `21474836480 (20.0 GiB)`.
pub(crate) fn size_exact(bytes: u64) -> String {
    if bytes < 1024 { size(bytes) } else { format!("{bytes} ({})", size(bytes)) }
}

/// Reads `64K`, `64KiB`, `64KB`, `4M` or plain bytes: K and KiB are 1024, KB is 1000.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, suffix) = text.split_at(digits);
    let number: u64 =
        number.parse().map_err(|_| format!("`{text}` is not a size; write 64K, 4M or 65536"))?;
    let unit: u64 = match suffix.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KIB" => 1 << 10,
        "M" | "MIB" => 1 << 20,
        "G" | "GIB" => 1 << 30,
        "T" | "TIB" => 1 << 40,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        other => return Err(format!("`{other}` is not a unit of size; use K, M, G or T")),
    };
    number.checked_mul(unit).ok_or_else(|| format!("`{text}` is too large"))
}

/// A time for people: local, with its offset from UTC.
pub(crate) fn local_time(time: Timestamp) -> String {
    time_in(time, TimeZone::system())
}

/// A time for people in a zone they chose, with its offset from UTC.
pub(crate) fn time_in(time: Timestamp, zone: TimeZone) -> String {
    time.to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S %:z").to_string()
}

/// A time for programs: RFC 3339 in UTC.
pub(crate) fn utc_time(time: Timestamp) -> String {
    time.to_string()
}

/// A span for people: `0.4 s`, `3 min 20 s`, `2 h 5 min`.
pub(crate) fn span(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    if whole < 3600 {
        format!("{} min {} s", whole / 60, whole % 60)
    } else {
        format!("{} h {} min", whole / 3600, whole / 60 % 60)
    }
}

/// Amount per second; zero time counts as no rate.
pub(crate) fn rate(bytes: u64, seconds: f64) -> String {
    if seconds <= 0.0 {
        return "-".to_owned();
    }
    format!("{}/s", size((bytes as f64 / seconds) as u64))
}

/// A word as a shell reads it back, for the commands we print.
pub(crate) fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(shell_word("/mnt/b"), "/mnt/b");
        assert_eq!(shell_word("it's $x"), "'it'\\''s $x'");
        assert_eq!(shell_word(""), "''");
    }

    #[test]
    fn sizes_are_written_with_one_decimal() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1 << 20, "1.0 MiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (20 << 30, "20.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size_exact(20 << 30), "21474836480 (20.0 GiB)");
    }

    #[test]
    fn sizes_are_read_in_both_families() {
        for (text, bytes) in [
            ("64K", 65536),
            ("64KiB", 65536),
            ("64kb", 64000),
            ("4M", 4 << 20),
            ("512", 512),
            ("1 T", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "K", "-1K", "1.5K", "12X", "99999999999T", "0x10"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn spans_and_times() {
        assert_eq!(span(0.44), "0.4 s");
        assert_eq!(span(200.0), "3 min 20 s");
        assert_eq!(span(7500.0), "2 h 5 min");
        assert_eq!(rate(1 << 20, 2.0), "512.0 KiB/s");
        assert_eq!(rate(1, 0.0), "-");
        let time: Timestamp = "2026-11-22T03:00:00Z".parse().expect("a time");
        assert_eq!(utc_time(time), "2026-11-22T03:00:00Z");
    }
}
