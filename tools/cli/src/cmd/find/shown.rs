//! What was found, for people and programs.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fmt::Write as _;

use backstay_core::files::catalogue::{Catalogue, Listed};
use backstay_core::files::find::Query;
use backstay_guestfs::fs::{NodeKind, Time};
use backstay_store::{PointId, RecoveryPoint};
use jiff::Timestamp;
use serde::Serialize;

use crate::browse;
use crate::cmd::ls::kind_name;
use crate::cmd::view;
use crate::exit::CliError;
use crate::output::{Align, Table, clean};
use crate::units;

/// Most finds that are told; beyond it is told that there are more.
const FOUND_MAX: usize = 1 << 20;
/// Most problems that are told.
const PROBLEMS_MAX: usize = 1000;
/// Problems shown to people.
const PROBLEMS_SHOWN: usize = 20;

/// What names a file in all points of a machine: machine, volume, path.
type FileKey = (String, Option<String>, Vec<u8>);
/// What tells versions of a file apart.
type VersionKey = (NodeKind, u64, Time, Time, u64);

/// What a search came to so far.
pub(super) struct Found {
    history: bool,
    short: HashMap<PointId, String>,
    matches: Vec<Match>,
    files: BTreeMap<FileKey, Vec<(VersionKey, Version)>>,
    versions: usize,
    truncated: bool,
    points: u64,
    searched: u64,
    problems: Vec<Problem>,
    problems_total: u64,
}

/// The result.
#[derive(Serialize)]
pub(super) struct Document {
    points: u64,
    /// Names compared.
    searched: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    matches: Option<Vec<Match>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Vec<History>>,
    /// There is more than is listed.
    truncated: bool,
    problems: Vec<Problem>,
    problems_total: u64,
}

/// What could not be searched.
#[derive(Serialize)]
struct Problem {
    point: String,
    path: String,
    why: String,
}

#[derive(Serialize, Clone)]
struct Match {
    /// As `get`, `cat` and `ls` take it.
    name: String,
    machine: String,
    point: String,
    volume: Option<String>,
    #[serde(flatten)]
    file: FileView,
    #[serde(skip)]
    modified_at: Option<Timestamp>,
}

#[derive(Serialize, Clone)]
struct FileView {
    path: String,
    /// The bytes of the path, where they are no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    size_bytes: u64,
    modified: Option<String>,
    inode: u64,
}

/// A file over all points.
#[derive(Serialize)]
struct History {
    machine: String,
    volume: Option<String>,
    path: String,
    /// Oldest first.
    versions: Vec<Version>,
}

#[derive(Serialize, Clone)]
struct Version {
    /// As `get`, `cat` and `ls` take it: in the newest point that has it.
    name: String,
    kind: &'static str,
    size_bytes: u64,
    modified: Option<String>,
    changed: Option<String>,
    first_point: String,
    first_time: String,
    last_point: String,
    last_time: String,
    /// How many points have it.
    points: u64,
    #[serde(skip)]
    modified_at: Option<Timestamp>,
    #[serde(skip)]
    between: (Timestamp, Timestamp),
}

impl Found {
    pub(super) fn new(history: bool, all: &[RecoveryPoint]) -> Self {
        Self {
            history,
            short: all.iter().map(|p| (p.id, view::short_id(p, all))).collect(),
            matches: Vec::new(),
            files: BTreeMap::new(),
            versions: 0,
            truncated: false,
            points: 0,
            searched: 0,
            problems: Vec::new(),
            problems_total: 0,
        }
    }

    /// Searches what one point has.
    pub(super) fn search(
        &mut self,
        point: &RecoveryPoint,
        catalogue: &Catalogue,
        query: &Query,
    ) -> Result<(), CliError> {
        self.points += 1;
        let short = self.short.get(&point.id).cloned().unwrap_or_else(|| point.id.to_string());
        for part in &catalogue.parts {
            self.searched += part.nodes;
            self.problems_total += part.problems_total;
            for (path, why) in &part.problems {
                if self.problems.len() < PROBLEMS_MAX {
                    let (point, path, why) = (short.clone(), path.clone(), why.clone());
                    self.problems.push(Problem { point, path, why });
                }
            }
            part.find(query, &mut |listed| {
                let mut path = part.start.clone();
                if path.last() != Some(&b'/') {
                    path.push(b'/');
                }
                path.extend_from_slice(&listed.path);
                self.add(point, &short, part.volume.as_deref(), path, &listed);
                Ok(())
            })?;
        }
        Ok(())
    }

    fn add(
        &mut self,
        point: &RecoveryPoint,
        short: &str,
        volume: Option<&str>,
        path: Vec<u8>,
        listed: &Listed,
    ) {
        if self.matches.len() + self.versions >= FOUND_MAX {
            self.truncated = true;
            return;
        }
        let volume_name = volume.map(|v| format!(":{v}")).unwrap_or_default();
        let shown = browse::text(&path);
        let name = format!("{}@{short}{volume_name}/{shown}", point.machine);
        let volume = volume.map(str::to_owned);
        if !self.history {
            let hex = || path.iter().map(|byte| format!("{byte:02x}")).collect();
            self.matches.push(Match {
                name,
                machine: point.machine.clone(),
                point: point.id.to_string(),
                volume,
                file: FileView {
                    path_hex: std::str::from_utf8(&path).is_err().then(hex),
                    path: shown,
                    kind: kind_name(listed.kind),
                    mode: format!("{:04o}", listed.mode),
                    uid: listed.uid,
                    gid: listed.gid,
                    size_bytes: listed.size_bytes,
                    modified: timestamp(listed.modified).map(units::utc_time),
                    inode: listed.inode,
                },
                modified_at: timestamp(listed.modified),
            });
            return;
        }
        let Listed { kind, size_bytes, modified, changed, inode, .. } = *listed;
        let key = (kind, size_bytes, modified, changed, inode);
        let versions = self.files.entry((point.machine.clone(), volume, path)).or_default();
        let known = versions.iter_mut().find(|(other, _)| *other == key);
        let Some((_, version)) = known else {
            self.versions += 1;
            versions.push((
                key,
                Version {
                    name,
                    kind: kind_name(kind),
                    size_bytes,
                    modified: timestamp(modified).map(units::utc_time),
                    changed: timestamp(changed).map(units::utc_time),
                    first_point: point.id.to_string(),
                    first_time: units::utc_time(point.time),
                    last_point: point.id.to_string(),
                    last_time: units::utc_time(point.time),
                    points: 1,
                    modified_at: timestamp(modified),
                    between: (point.time, point.time),
                },
            ));
            return;
        };
        version.name = name;
        version.last_point = point.id.to_string();
        version.last_time = units::utc_time(point.time);
        version.points += 1;
        version.between.1 = point.time;
    }

    pub(super) fn document(self) -> Document {
        let history = |((machine, volume, path), versions): (FileKey, Vec<(_, Version)>)| History {
            machine,
            volume,
            path: browse::text(&path),
            versions: versions.into_iter().map(|(_, version)| version).collect(),
        };
        let files = self.history.then(|| self.files.into_iter().map(history).collect());
        Document {
            points: self.points,
            searched: self.searched,
            matches: (!self.history).then_some(self.matches),
            files,
            truncated: self.truncated,
            problems: self.problems,
            problems_total: self.problems_total,
        }
    }
}

/// None for times beyond the year 9999, which some formats can hold.
fn timestamp(time: Time) -> Option<Timestamp> {
    Timestamp::new(time.seconds, i32::try_from(time.nanos).ok()?).ok()
}

impl Document {
    /// Whether everything was searched and is told.
    pub(super) fn is_complete(&self) -> bool {
        self.problems_total == 0 && !self.truncated
    }
}

pub(super) fn text(to: &mut String, document: &Document) {
    let when = |time: Option<Timestamp>| time.map_or_else(|| "?".into(), units::local_time);
    if let Some(matches) = &document.matches {
        let mut table =
            Table::new(&[("SIZE", Align::Right), ("MODIFIED", Align::Left), ("NAME", Align::Left)]);
        for found in matches {
            let size = units::size(found.file.size_bytes);
            let slash = if found.file.kind == "directory" { "/" } else { "" };
            table.row([size, when(found.modified_at), clean(&format!("{}{slash}", found.name))]);
        }
        if !matches.is_empty() {
            table.render(to);
        }
    }
    for file in document.files.iter().flatten() {
        let volume = file.volume.as_ref().map(|v| format!(":{v}")).unwrap_or_default();
        let _ = writeln!(to, "{}", clean(&format!("{}{volume}/{}", file.machine, file.path)));
        for version in &file.versions {
            let (first, last) = version.between;
            let _ = writeln!(
                to,
                "  {:>10}  {}  in {} from {} to {}  {}",
                units::size(version.size_bytes),
                when(version.modified_at),
                match version.points {
                    1 => "1 point".to_owned(),
                    points => format!("{points} points"),
                },
                units::local_time(first),
                units::local_time(last),
                clean(&version.name),
            );
        }
    }
    let found =
        document.matches.as_ref().map_or(0, Vec::len) + document.files.as_ref().map_or(0, Vec::len);
    let more = if document.truncated { ", and more that are not listed" } else { "" };
    let _ = writeln!(
        to,
        "{found} found{more}, of {} names in {} recovery points",
        document.searched, document.points
    );
    for problem in document.problems.iter().take(PROBLEMS_SHOWN) {
        let text = format!("{} (@{}): {}", problem.path, problem.point, problem.why);
        let _ = writeln!(to, "not searched: {}", clean(&text));
    }
    let more = document.problems_total.saturating_sub(PROBLEMS_SHOWN as u64);
    if more > 0 {
        let _ = writeln!(to, "and {more} more that were not searched");
    }
}
