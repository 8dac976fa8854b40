//! Hours, days, weeks, months and years of a calendar.

use std::fmt;

use jiff::Zoned;

/// A kind of period, of which a rule keeps the newest point each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Period {
    /// From full hour to full hour. The hour that comes twice when summer time ends is two.
    Hour,
    /// From midnight to midnight.
    Day,
    /// From Monday to Sunday (ISO 8601).
    Week,
    /// Of the calendar.
    Month,
    /// Of the calendar.
    Year,
}

impl Period {
    /// All, from the shortest.
    pub const ALL: [Period; 5] =
        [Period::Hour, Period::Day, Period::Week, Period::Month, Period::Year];

    /// The name of the period that holds `time`: two times have the same name exactly when they are
    /// in the same period.
    pub(super) fn name_of(self, time: &Zoned) -> String {
        let shape = match self {
            // With the offset, which tells apart the two hours of one name.
            Period::Hour => "%Y-%m-%d %H:00 %:z",
            Period::Day => "%Y-%m-%d",
            Period::Week => "%G-W%V",
            Period::Month => "%Y-%m",
            Period::Year => "%Y",
        };
        time.strftime(shape).to_string()
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Period::Hour => "hourly",
            Period::Day => "daily",
            Period::Week => "weekly",
            Period::Month => "monthly",
            Period::Year => "yearly",
        })
    }
}
