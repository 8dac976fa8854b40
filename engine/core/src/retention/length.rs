//! Lengths of time as people write them.

use std::fmt;
use std::str::FromStr;

use jiff::{Span, Timestamp, Unit, Zoned};

use crate::error::{Error, ErrorKind, Result};

/// Units from the longest, with the letters that stand for them. The same as in names of points.
const UNITS: [(&str, Unit); 7] = [
    ("y", Unit::Year),
    ("mo", Unit::Month),
    ("w", Unit::Week),
    ("d", Unit::Day),
    ("h", Unit::Hour),
    ("m", Unit::Minute),
    ("s", Unit::Second),
];

/// A length of time: `30d`, `36h`, `1y6mo`. Units are `y mo w d h m s`, the longest first, each
/// once. Never zero.
///
/// Days and longer units are those of the calendar: one day before noon is noon, also on the day
/// the clocks change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Length {
    /// Counts by place in [`UNITS`].
    counts: [i64; UNITS.len()],
}

impl Length {
    fn span(&self) -> Option<Span> {
        let mut span = Span::new();
        for ((_, unit), count) in UNITS.iter().zip(self.counts) {
            span = match unit {
                Unit::Year => span.try_years(count),
                Unit::Month => span.try_months(count),
                Unit::Week => span.try_weeks(count),
                Unit::Day => span.try_days(count),
                Unit::Hour => span.try_hours(count),
                Unit::Minute => span.try_minutes(count),
                _ => span.try_seconds(count),
            }
            .ok()?;
        }
        Some(span)
    }

    /// The moment that lies this long before `then`, by the calendar of its zone. `None` when that
    /// is before all time: nothing is that old.
    pub(super) fn before(&self, then: &Zoned) -> Option<Timestamp> {
        Some(then.checked_sub(self.span()?).ok()?.timestamp())
    }
}

impl FromStr for Length {
    type Err = Error;

    fn from_str(text: &str) -> Result<Length> {
        parse(text).ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!(
                    "`{}` is no length of time; write 30d, 36h or 1y6mo (y mo w d h m s, the \
                     longest first)",
                    text.escape_debug()
                ),
            )
        })
    }
}

fn parse(text: &str) -> Option<Length> {
    let mut counts = [0; UNITS.len()];
    let mut units = UNITS.iter().enumerate();
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (count, after) = rest.split_at(digits);
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        // Searched onwards from the unit before, so that none comes twice or out of order.
        let (place, _) = units.find(|(_, (name, _))| *name == unit)?;
        counts[place] = count.parse().ok()?;
        rest = after;
    }
    let length = Length { counts };
    length.span()?;
    length.counts.iter().any(|count| *count > 0).then_some(length)
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((name, _), count) in UNITS.iter().zip(self.counts) {
            if count > 0 {
                write!(f, "{count}{name}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_and_written() {
        for (text, shown) in [
            ("30d", "30d"),
            ("1y6mo", "1y6mo"),
            ("1y2mo3w4d5h6m7s", "1y2mo3w4d5h6m7s"),
            ("0y1h", "1h"),
            ("007s", "7s"),
        ] {
            let length: Length = text.parse().unwrap();
            assert_eq!(length.to_string(), shown, "{text}");
            assert_eq!(shown.parse::<Length>().unwrap(), length);
        }
        for text in [
            "",
            "0d",
            "d",
            "30",
            "30x",
            "-1d",
            "+1d",
            "1.5d",
            " 1d",
            "1d ",
            "1d1d",
            "1h1d",
            "6mo1y",
            "99999999999999999999d",
            "99999999999999y",
            "1м",
        ] {
            let error = text.parse::<Length>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
        }
    }

    #[test]
    fn a_length_is_measured_by_the_calendar() {
        let before = |length: &str, then: &str| {
            let zone = jiff::tz::TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
            let then: Timestamp = then.parse().unwrap();
            let found = length.parse::<Length>().unwrap().before(&then.to_zoned(zone));
            found.map(|t| t.to_string())
        };
        // Clocks went forward in the night to 2026-03-29: that day has 23 hours.
        assert_eq!(before("1d", "2026-03-29T10:00:00Z").unwrap(), "2026-03-28T11:00:00Z");
        assert_eq!(before("24h", "2026-03-29T10:00:00Z").unwrap(), "2026-03-28T10:00:00Z");
        assert_eq!(before("1mo", "2026-03-31T10:00:00Z").unwrap(), "2026-02-28T11:00:00Z");
        assert_eq!(before("19000y", "2026-03-31T10:00:00Z"), None);
    }
}
