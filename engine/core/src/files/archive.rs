//! What all archives have in common: the order, the checks, and files that are read before they are
//! announced.

use std::collections::HashMap;
use std::io::Write;

use backstay_guestfs::fs::{NodeId, NodeKind, Stat, Xattr};

use super::content::{Data, data_ranges, read_data, zeros};
use super::walk::{Limits, Step, Visit, Walk, is_name};
use super::{Report, Tree, What, shown, stopped};
use crate::error::{Error, ErrorKind, Result, kind_of_io};
use crate::monitor::Monitor;

/// Data of a file that is held in memory before the file is announced.
const HELD_BYTES: u64 = 8 << 20;
/// Most ranges of data of one file that are told apart; a file of more is written without its holes.
const RANGES_MAX: usize = 1 << 16;
/// Most files of several names that are remembered.
const LINKED_MAX: usize = 1 << 20;

/// How an archive is made.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The first component of all names. Without one the start has to be a directory, and what is in
    /// it has names without a common first component.
    pub name: Option<Vec<u8>>,
    /// Bounds of the walk.
    pub limits: Limits,
    /// Reads files of more than 8 MiB twice. An archive announces a file before its content, so one that
    /// turns out to be unreadable half way ends the archive with an error; with this it is found
    /// before, told in the report, and passed over like small ones.
    pub check_large: bool,
}

/// The content of a file.
#[derive(Debug)]
pub(super) struct Content {
    /// Where it has data.
    pub(super) ranges: Vec<Data>,
    /// The data of all ranges one after the other, if there is little.
    held: Option<Vec<u8>>,
}

/// What an entry is, besides its metadata.
#[derive(Debug)]
pub(super) enum Body {
    Directory,
    File(Content),
    Symlink(Vec<u8>),
    /// A further name of the file of that name.
    HardLink(Vec<u8>),
    /// A pipe or a device.
    Special,
}

/// An entry to write.
#[derive(Debug)]
pub(super) struct Item {
    /// Never empty; without a `/` at its end.
    pub(super) path: Vec<u8>,
    pub(super) stat: Stat,
    pub(super) xattrs: Vec<Xattr>,
    pub(super) body: Body,
}

/// A kind of archive.
pub(super) trait Format {
    /// Adds an entry; false if the format does not hold it, which it has told. An error ends the run.
    fn add(&mut self, item: &Item, run: &mut Run<'_>) -> Result<bool>;

    /// Whether it holds further names of a file.
    fn further_names(&self) -> bool;
}

/// A run.
pub(super) struct Run<'a> {
    pub(super) tree: Tree<'a>,
    options: &'a Options,
    pub(super) monitor: &'a dyn Monitor,
    pub(super) report: Report,
    linked: HashMap<NodeId, Vec<u8>>,
}

/// Adds a whole tree.
pub(super) fn add_all(
    tree: Tree<'_>,
    options: &Options,
    monitor: &dyn Monitor,
    format: &mut dyn Format,
) -> Result<Report> {
    if let Some(name) = options.name.as_deref().filter(|name| !is_name(name)) {
        let text = format!("{:?} cannot be the name of a file", shown(name));
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    let (report, linked) = (Report::default(), HashMap::new());
    let mut run = Run { tree, options, monitor, report, linked };
    monitor.phase("write");
    let mut walk = Walk::new(tree, options.limits);
    while let Some(step) = walk.step()? {
        stopped(monitor)?;
        match step {
            Step::Leave => {}
            Step::Problem { path, what, text } => run.report.note(&path, what, text),
            Step::Node(visit) => {
                if let Some(item) = run.item(visit)?
                    && format.add(&item, &mut run)?
                {
                    run.count(&item, format.further_names());
                }
            }
        }
    }
    Ok(run.report)
}

impl Run<'_> {
    /// What a node is in the archive; nothing if it cannot be in it, which is told.
    fn item(&mut self, visit: Visit) -> Result<Option<Item>> {
        let stat = visit.stat;
        let mut path = self.options.name.clone().unwrap_or_default();
        if visit.depth == 0 && path.is_empty() {
            if stat.kind != NodeKind::Directory {
                return Err(Error::new(ErrorKind::Invalid, "a file needs a name in the archive"));
            }
            self.report.directories += 1;
            return Ok(None);
        }
        if !path.is_empty() && !visit.path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&visit.path);
        let body = match stat.kind {
            NodeKind::Directory => Body::Directory,
            NodeKind::File => match self.linked.get(&stat.node) {
                Some(first) => Body::HardLink(first.clone()),
                None => match self.content(&visit) {
                    Ok(content) => Body::File(content),
                    Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
                    Err(error) => {
                        self.report.note(&path, What::Unreadable, error);
                        return Ok(None);
                    }
                },
            },
            NodeKind::Symlink => match self.tree.fs.read_link(stat.node) {
                Ok(target) if !target.is_empty() && !target.contains(&0) => Body::Symlink(target),
                Ok(_) => {
                    self.report.note(&path, What::Unreadable, "a link to nothing");
                    return Ok(None);
                }
                Err(error) => {
                    self.report.note(&path, What::Unreadable, error);
                    return Ok(None);
                }
            },
            NodeKind::Socket => {
                self.report.note(&path, What::Socket, "a socket is not taken");
                return Ok(None);
            }
            NodeKind::CharDevice | NodeKind::BlockDevice | NodeKind::Fifo => Body::Special,
        };
        let xattrs = self.tree.fs.xattrs(stat.node).unwrap_or_else(|error| {
            self.report.note(&path, What::Xattr, format!("attributes cannot be read: {error}"));
            Vec::new()
        });
        Ok(Some(Item { path, stat, xattrs, body }))
    }

    fn content(&mut self, visit: &Visit) -> Result<Content> {
        let (fs, node) = (self.tree.fs, visit.stat.node);
        let all = Data { offset: 0, len: visit.stat.size_bytes };
        let mut ranges = Vec::new();
        let mut many = false;
        data_ranges(fs, node, all, &visit.path, |data| {
            stopped(self.monitor)?;
            many |= ranges.len() >= RANGES_MAX;
            if !many {
                ranges.push(data);
            }
            Ok(())
        })?;
        if many {
            ranges = vec![all];
            self.report.note(&visit.path, What::Sparse, "too many holes, written as zeros");
        }
        let len = ranges.iter().fold(0u64, |sum, data| sum.saturating_add(data.len));
        let hold = len <= HELD_BYTES;
        let mut held = Vec::new();
        if hold || self.options.check_large {
            for data in &ranges {
                read_data(fs, node, *data, &visit.path, |_, buf| {
                    stopped(self.monitor)?;
                    if hold {
                        held.extend_from_slice(buf);
                    }
                    Ok(())
                })?;
            }
        }
        Ok(Content { ranges, held: hold.then_some(held) })
    }

    /// Writes the data of a file, and, unless `sparse`, its holes as zeros.
    pub(super) fn copy(
        &mut self,
        item: &Item,
        content: &Content,
        sparse: bool,
        out: &mut dyn Write,
    ) -> Result<()> {
        let (fs, node, monitor) = (self.tree.fs, item.stat.node, self.monitor);
        let mut at = 0;
        let mut held = content.held.as_deref();
        for data in &content.ranges {
            if !sparse {
                zeros(out, data.offset - at, monitor)?;
            }
            at = data.offset + data.len;
            let mut put = |buf: &[u8]| -> Result<()> {
                stopped(monitor)?;
                out.write_all(buf).map_err(failed)?;
                monitor.add_bytes(buf.len() as u64);
                self.report.data_bytes += buf.len() as u64;
                Ok(())
            };
            match &mut held {
                Some(rest) => {
                    let len = usize::try_from(data.len).unwrap_or(usize::MAX);
                    let (part, after) = rest.split_at_checked(len).unwrap_or((rest, &[]));
                    *rest = after;
                    put(part)?;
                }
                None => read_data(fs, node, *data, &item.path, |_, buf| put(buf))?,
            }
        }
        match sparse {
            true => Ok(()),
            false => zeros(out, item.stat.size_bytes - at, monitor),
        }
    }

    fn count(&mut self, item: &Item, further_names: bool) {
        let report = &mut self.report;
        match &item.body {
            Body::Directory => report.directories += 1,
            Body::Symlink(_) => report.symlinks += 1,
            Body::HardLink(_) => report.hard_links += 1,
            Body::Special => report.others += 1,
            Body::File(_) => {
                report.files += 1;
                if item.stat.attributes.encrypted {
                    report.note(&item.path, What::Encrypted, "the bytes are encrypted");
                }
                if further_names && item.stat.links > 1 && self.linked.len() < LINKED_MAX {
                    self.linked.insert(item.stat.node, item.path.clone());
                }
            }
        }
    }
}

/// An error of the writer below.
pub(super) fn failed(error: std::io::Error) -> Error {
    Error::new(kind_of_io(&error), "cannot write the archive").caused_by(error)
}
