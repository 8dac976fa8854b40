//! The list of all that is in a recovery point's trees: made once by a walk, searched as often as wanted.

use backstay_guestfs::fs::{NodeKind, Stat, Time};
use serde::{Deserialize, Serialize};

use super::find::Query;
use super::walk::{Limits, Step, Walk};
use super::{Tree, stopped};
use crate::error::{Error, ErrorKind, Result};
use crate::monitor::Monitor;

/// The form of [`Catalogue::encode`]; another one is not read.
const VERSION: u32 = 1;
/// Most bytes that [`Catalogue::decode`] unpacks, and that are worth packing.
const UNPACKED_MAX: usize = 1 << 30;
/// zstd level: lists of names shrink well at any, and this one is read back fastest.
const ZSTD_LEVEL: i32 = 1;

/// All trees of a recovery point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalogue {
    version: u32,
    /// One for each tree.
    pub parts: Vec<Part>,
}

/// One tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The volume it is on; `None` for the guest's own tree over its volumes.
    pub volume: Option<String>,
    /// Where the tree begins: an absolute path, without links and dots.
    pub start: Vec<u8>,
    /// What could not be listed, with the reason. A bounded list.
    pub problems: Vec<(String, String)>,
    /// How many there are of these.
    pub problems_total: u64,
    /// Entries listed.
    pub nodes: u64,
    /// [`Row`]s one after the other.
    rows: Vec<u8>,
}

/// Most problems that are kept with their places.
const PROBLEMS_MAX: usize = 100;

/// A node by one of its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// From the start of the tree, names with `/` between them.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes.
    pub size_bytes: u64,
    /// Content last changed.
    pub modified: Time,
    /// Metadata last changed.
    pub changed: Time,
    /// Its inode number.
    pub inode: u64,
}

/// [`Listed`] as it is kept: most paths begin as the one before does.
#[derive(Serialize, Deserialize)]
struct Row<'a> {
    shared: usize,
    #[serde(borrow)]
    rest: &'a [u8],
    kind: NodeKind,
    mode: u16,
    uid: u32,
    gid: u32,
    size_bytes: u64,
    modified: Time,
    changed: Time,
    inode: u64,
}

impl<'a> Row<'a> {
    fn new(before: &[u8], path: &'a [u8], stat: &Stat) -> Self {
        let shared = before.iter().zip(path).take_while(|(a, b)| a == b).count();
        Self {
            shared,
            rest: &path[shared..],
            kind: stat.kind,
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            size_bytes: stat.size_bytes,
            modified: stat.modified,
            changed: stat.changed,
            inode: stat.node.inode,
        }
    }
}

impl Part {
    /// Lists `tree`; the start itself has no name and is not in the list.
    ///
    /// # Errors
    /// The monitor's end, more entries than the limit, a start that cannot be read.
    pub fn of(
        volume: Option<String>,
        start: &[u8],
        tree: Tree<'_>,
        limits: Limits,
        monitor: &dyn Monitor,
    ) -> Result<Self> {
        let mut part = Self {
            volume,
            start: start.to_vec(),
            problems: Vec::new(),
            problems_total: 0,
            nodes: 0,
            rows: Vec::new(),
        };
        let mut before = Vec::new();
        let mut walk = Walk::new(tree, limits);
        while let Some(step) = walk.step()? {
            stopped(monitor)?;
            match step {
                Step::Node(visit) if visit.depth > 0 => {
                    let row = Row::new(&before, &visit.path, &visit.stat);
                    part.rows = postcard::to_extend(&row, std::mem::take(&mut part.rows))
                        .map_err(|e| unencodable(&e))?;
                    part.nodes += 1;
                    before = visit.path;
                }
                Step::Node(_) | Step::Leave => {}
                Step::Problem { path, text, .. } => part.problem(super::shown(&path), text),
            }
        }
        Ok(part)
    }

    /// Notes what could not be listed.
    pub fn problem(&mut self, path: String, why: String) {
        self.problems_total += 1;
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push((path, why));
        }
    }

    /// Gives `found` all that fits, in the order of the walk; an error of it ends the search.
    ///
    /// # Errors
    /// That of `found`; [`ErrorKind::Damaged`] for a list that is none.
    pub fn find(&self, query: &Query, found: &mut dyn FnMut(Listed) -> Result<()>) -> Result<()> {
        let mut rest = self.rows.as_slice();
        let mut path: Vec<u8> = Vec::new();
        while !rest.is_empty() {
            let (row, behind): (Row<'_>, &[u8]) = postcard::take_from_bytes(rest).map_err(|e| {
                Error::new(ErrorKind::Damaged, "the list of files is damaged").caused_by(e)
            })?;
            rest = behind;
            if row.shared > path.len() {
                return Err(Error::new(ErrorKind::Damaged, "the list of files is damaged"));
            }
            path.truncate(row.shared);
            path.extend_from_slice(row.rest);
            if query.fits_listed(&path, row.kind, row.size_bytes, row.modified) {
                found(Listed {
                    path: path.clone(),
                    kind: row.kind,
                    mode: row.mode,
                    uid: row.uid,
                    gid: row.gid,
                    size_bytes: row.size_bytes,
                    modified: row.modified,
                    changed: row.changed,
                    inode: row.inode,
                })?;
            }
        }
        Ok(())
    }
}

impl Catalogue {
    /// Of these trees.
    pub fn new(parts: Vec<Part>) -> Self {
        Self { version: VERSION, parts }
    }

    /// The list in few bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for one that is too long to be kept.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let bytes = postcard::to_stdvec(self).map_err(|e| unencodable(&e))?;
        if bytes.len() > UNPACKED_MAX {
            let text = format!("the list of files has {} bytes", bytes.len());
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        zstd::bulk::compress(&bytes, ZSTD_LEVEL).map_err(|e| {
            Error::new(ErrorKind::Io, "the list of files cannot be packed").caused_by(e)
        })
    }

    /// What [`encode`](Self::encode) made; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let unpacked = zstd::zstd_safe::get_frame_content_size(bytes).ok().flatten()?;
        let unpacked = usize::try_from(unpacked).ok().filter(|len| *len <= UNPACKED_MAX)?;
        let bytes = zstd::bulk::decompress(bytes, unpacked).ok()?;
        let this: Self = postcard::from_bytes(&bytes).ok()?;
        (this.version == VERSION).then_some(this)
    }
}

fn unencodable(error: &postcard::Error) -> Error {
    Error::new(ErrorKind::Io, format!("the list of files cannot be written: {error}"))
}
