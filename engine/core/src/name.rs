//! Naming a backup: `MACHINE[@POINT][:DISK]`, or `@ID[:DISK]`.
//!
//! | written | means |
//! | --- | --- |
//! | `web01`, `web01@latest` | the newest point |
//! | `web01@-1`, `web01@-2` | the one before it, the one before that |
//! | `web01@-2d` | the newest that is at least two days old (`s m h d w mo y`) |
//! | `web01@2026-11-20`, `web01@2026-11-20T03:00` | the newest of that day (minute, second) or before; local time, or UTC with `Z`, or an offset |
//! | `@b7f3k2`, `web01@b7f3k2` | the point whose id begins so, six letters at least |
//! | `...:disk0` | one disk of it; may be left out where there is one |

use std::fmt;
use std::str::FromStr;

use backstay_format::point::check_name;
use backstay_store::{DiskRecord, PointId, PointList, RecoveryPoint};
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Unit, Zoned};

use crate::error::{Error, ErrorKind, Result};

/// Fewest letters of an id that are taken for one.
const ID_PREFIX_MIN: usize = 6;
/// Candidates and neighbours a message lists.
const LISTED_MAX: usize = 8;

/// Which point of a machine is meant.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum PointSelector {
    /// The newest.
    Latest,
    /// So many before the newest; never 0.
    Back(u32),
    /// The newest that is at least this old.
    Age(Age),
    /// The newest made before the named day, minute or second was over.
    Until(When),
    /// The one whose id begins with these letters.
    Id(String),
}

/// A length of time as it was written: a number and a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age {
    count: i64,
    unit: Unit,
}

/// A time as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum When {
    /// A whole day, local time.
    Day(Date),
    /// A local time that names `unit` and nothing smaller.
    Local {
        /// The beginning of the named hour, minute or second.
        start: DateTime,
        /// What was named.
        unit: Unit,
    },
    /// A time with `Z` or an offset; `unit` as above.
    Fixed {
        /// The beginning of the named hour, minute or second.
        start: Timestamp,
        /// What was named.
        unit: Unit,
    },
}

/// A parsed name. `Display` gives back what was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Name {
    text: String,
    /// The machine; `None` only with [`PointSelector::Id`].
    pub machine: Option<String>,
    /// The point.
    pub point: PointSelector,
    /// The disk, if one was named.
    pub disk: Option<String>,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn invalid(text: &str, why: impl fmt::Display) -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!(
            "`{}` names no backup: {why}; write MACHINE[@POINT][:DISK], for example web01, \
             web01@-2d, web01@2026-11-20:disk0 or @b7f3k2",
            text.escape_debug()
        ),
    )
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Name> {
        let name = |machine: &str, point, disk: Option<&str>| -> Result<Name> {
            let machine = match machine {
                "" => None,
                machine => {
                    check_name("machine", machine).map_err(|e| invalid(text, e))?;
                    Some(machine.to_owned())
                }
            };
            if let Some(disk) = disk {
                check_name("disk", disk).map_err(|e| invalid(text, e))?;
            }
            Ok(Name { text: text.to_owned(), machine, point, disk: disk.map(str::to_owned) })
        };
        let Some((machine, rest)) = text.split_once('@') else {
            let (machine, disk) = split_disk(text);
            if machine.is_empty() {
                return Err(invalid(text, "there is no machine in it"));
            }
            return name(machine, PointSelector::Latest, disk);
        };
        // Times hold colons too: the whole is tried first, then what stands before a last colon.
        let point = parse_point(rest).map(|p| (p, None)).or_else(|| {
            let (point, disk) = rest.rsplit_once(':')?;
            Some((parse_point(point)?, Some(disk)))
        });
        let Some((point, disk)) = point else {
            return Err(invalid(text, format!("`{}` is no point", rest.escape_debug())));
        };
        if machine.is_empty() && !matches!(point, PointSelector::Id(_)) {
            return Err(invalid(text, "only an id can stand without a machine"));
        }
        name(machine, point, disk)
    }
}

fn split_disk(text: &str) -> (&str, Option<&str>) {
    match text.split_once(':') {
        Some((front, disk)) => (front, Some(disk)),
        None => (text, None),
    }
}

fn parse_point(text: &str) -> Option<PointSelector> {
    if text == "latest" {
        return Some(PointSelector::Latest);
    }
    if let Some(back) = text.strip_prefix('-') {
        return parse_back(back);
    }
    if let Some(when) = parse_when(text) {
        return Some(PointSelector::Until(when));
    }
    let id = text.to_ascii_lowercase();
    let letters = id.bytes().all(|b| b.is_ascii_alphanumeric() && !b"ilou".contains(&b));
    // An id is 26 letters long (16 bytes, 5 bits each).
    ((ID_PREFIX_MIN..=26).contains(&id.len()) && letters).then_some(PointSelector::Id(id))
}

fn parse_back(text: &str) -> Option<PointSelector> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (count, unit) = text.split_at_checked(digits)?;
    let unit = match unit {
        "" => return count.parse().ok().filter(|n| *n > 0).map(PointSelector::Back),
        "s" => Unit::Second,
        "m" => Unit::Minute,
        "h" => Unit::Hour,
        "d" => Unit::Day,
        "w" => Unit::Week,
        "mo" => Unit::Month,
        "y" => Unit::Year,
        _ => return None,
    };
    let age = Age { count: count.parse().ok()?, unit };
    age.span()?;
    Some(PointSelector::Age(age))
}

impl Age {
    fn span(self) -> Option<Span> {
        let span = Span::new();
        match self.unit {
            Unit::Second => span.try_seconds(self.count),
            Unit::Minute => span.try_minutes(self.count),
            Unit::Hour => span.try_hours(self.count),
            Unit::Day => span.try_days(self.count),
            Unit::Week => span.try_weeks(self.count),
            Unit::Month => span.try_months(self.count),
            _ => span.try_years(self.count),
        }
        .ok()
    }
}

fn parse_when(text: &str) -> Option<When> {
    let Some((date, time)) = text.split_once(['T', ' ']) else {
        return text.parse().ok().filter(|_| text.len() == 10).map(When::Day);
    };
    let date: Date = date.parse().ok()?;
    // What follows the time: nothing, `Z`, or an offset.
    let end = time.find(['Z', 'z', '+', '-']).unwrap_or(time.len());
    let (clock, zone) = time.split_at_checked(end)?;
    let unit = match clock.len() {
        2 => Unit::Hour,
        5 => Unit::Minute,
        _ => Unit::Second,
    };
    let whole = if unit == Unit::Hour { format!("{clock}:00") } else { clock.to_owned() };
    let start: DateTime = format!("{date}T{whole}").parse().ok()?;
    if zone.is_empty() {
        return Some(When::Local { start, unit });
    }
    let start: Timestamp = format!("{date}T{whole}{zone}").parse().ok()?;
    Some(When::Fixed { start, unit })
}

impl When {
    /// The first moment after what was named; points made before it are meant.
    fn end(&self, zone: &TimeZone) -> Option<Timestamp> {
        let one = |unit| match unit {
            Unit::Hour => Span::new().hours(1),
            Unit::Minute => Span::new().minutes(1),
            _ => Span::new().seconds(1),
        };
        match self {
            When::Day(date) => Some(date.tomorrow().ok()?.to_zoned(zone.clone()).ok()?.timestamp()),
            When::Local { start, unit } => {
                let start = start.to_zoned(zone.clone()).ok()?.timestamp();
                start.checked_add(one(*unit)).ok()
            }
            When::Fixed { start, unit } => start.checked_add(one(*unit)).ok(),
        }
    }
}

impl Name {
    /// The point this names among those of a repository. `now` gives the time and the local zone.
    ///
    /// Errors: `NotFound` tells what is there instead; `Ambiguous` lists the candidates; `Damaged`
    /// if the id is that of a point that cannot be read.
    pub fn resolve<'a>(&self, list: &'a PointList, now: &Zoned) -> Result<&'a RecoveryPoint> {
        let damaged: Vec<PointId> = list.damaged.iter().map(|(id, _)| *id).collect();
        self.resolve_in(&list.points, &damaged, now)
    }

    fn resolve_in<'a>(
        &self,
        points: &'a [RecoveryPoint],
        damaged: &[PointId],
        now: &Zoned,
    ) -> Result<&'a RecoveryPoint> {
        if let PointSelector::Id(prefix) = &self.point {
            return self.by_id(prefix, points, damaged);
        }
        let machine = self.machine.as_deref().unwrap_or_default();
        let mut own: Vec<&RecoveryPoint> = points.iter().filter(|p| p.machine == machine).collect();
        own.sort_by_key(|p| (p.time, p.id));
        if own.is_empty() {
            return Err(self.no_machine(machine, points));
        }
        let until = |end: Option<Timestamp>| {
            let end = end?;
            own.iter().rev().find(|p| p.time < end).copied()
        };
        let found = match &self.point {
            PointSelector::Latest => own.last().copied(),
            PointSelector::Back(back) => {
                let back = usize::try_from(*back).unwrap_or(usize::MAX);
                own.iter().rev().nth(back).copied()
            }
            PointSelector::Age(age) => {
                let then = age.span().and_then(|span| now.checked_sub(span).ok());
                // "At least this old" includes the moment itself.
                until(then.and_then(|t| t.timestamp().checked_add(Span::new().nanoseconds(1)).ok()))
            }
            PointSelector::Until(when) => until(when.end(now.time_zone())),
            PointSelector::Id(_) => None,
        };
        found.ok_or_else(|| {
            let (count, oldest) = (own.len(), own.first().map(|p| shown(p, now)));
            Error::new(
                ErrorKind::NotFound,
                format!(
                    "there is no point `{self}`: {machine} has {count} point{}, the oldest is {}",
                    if count == 1 { "" } else { "s" },
                    oldest.unwrap_or_default()
                ),
            )
        })
    }

    fn by_id<'a>(
        &self,
        prefix: &str,
        points: &'a [RecoveryPoint],
        damaged: &[PointId],
    ) -> Result<&'a RecoveryPoint> {
        let fits = |id: &PointId| id.to_string().starts_with(prefix);
        let of_machine = |p: &&RecoveryPoint| self.machine.as_ref().is_none_or(|m| *m == p.machine);
        let found: Vec<&RecoveryPoint> =
            points.iter().filter(of_machine).filter(|p| fits(&p.id)).collect();
        match found.as_slice() {
            [one] => Ok(one),
            [] if damaged.iter().any(fits) => Err(Error::new(
                ErrorKind::Damaged,
                format!("the record of point `{self}` is damaged and cannot be read"),
            )),
            [] => Err(Error::new(
                ErrorKind::NotFound,
                format!("there is no point `{self}`; `backstay list` shows all"),
            )),
            several => Err(Error::new(
                ErrorKind::Ambiguous,
                format!(
                    "`{self}` fits {} points: {}",
                    several.len(),
                    listed(several.iter().map(|p| format!("@{} ({})", p.id, p.machine)))
                ),
            )),
        }
    }

    fn no_machine(&self, machine: &str, points: &[RecoveryPoint]) -> Error {
        let mut all: Vec<&str> = points.iter().map(|p| p.machine.as_str()).collect();
        all.sort_unstable();
        all.dedup();
        let lower = machine.to_lowercase();
        let near: Vec<&str> = all
            .iter()
            .copied()
            .filter(|m| {
                let m = m.to_lowercase();
                m.contains(&lower) || lower.contains(&m) || is_near(&m, &lower)
            })
            .collect();
        let there = match (near.is_empty(), all.is_empty()) {
            (_, true) => "the repository holds no points yet".to_owned(),
            (false, _) => format!("did you mean {}?", listed(near.into_iter().map(str::to_owned))),
            (true, _) => format!("there are {}", listed(all.into_iter().map(str::to_owned))),
        };
        Error::new(ErrorKind::NotFound, format!("there is no backup of `{machine}`; {there}"))
    }

    /// The disk this names in `point`: the one written, or the only one.
    pub fn disk_of<'a>(&self, point: &'a RecoveryPoint) -> Result<&'a DiskRecord> {
        let names = || listed(point.disks.iter().map(|d| d.name.clone()));
        match (&self.disk, point.disks.as_slice()) {
            (Some(name), _) => point.disk(name).ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    format!("there is no disk `{name}` in @{}; there are {}", point.id, names()),
                )
            }),
            (None, [one]) => Ok(one),
            (None, _) => Err(Error::new(
                ErrorKind::Ambiguous,
                format!(
                    "`{self}` has {} disks: add :{}",
                    point.disks.len(),
                    names().replace(", ", " or :")
                ),
            )),
        }
    }
}

fn shown(point: &RecoveryPoint, now: &Zoned) -> String {
    let time = point.time.to_zoned(now.time_zone().clone());
    format!("@{} of {}", point.id.short(), time.strftime("%Y-%m-%d %H:%M:%S %:z"))
}

fn listed(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(LISTED_MAX);
    let mut text = names.take(LISTED_MAX).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// Whether one letter added, dropped or changed makes `a` of `b`.
fn is_near(a: &str, b: &str) -> bool {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let same_front = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let same_back = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    a.len().abs_diff(b.len()) <= 1 && same_front + same_back + 1 >= a.len().max(b.len())
}

#[cfg(test)]
#[path = "name_tests.rs"]
mod tests;
