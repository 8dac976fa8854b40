//! Reads and listings, which are most of what a mount is asked for.

use std::sync::Arc;

use backstay_blockdev::BlockDevice;
use fuser::{FileType, Generation, INodeNo, ReplyData, ReplyDirectory, ReplyDirectoryPlus};

use super::errno::Refusal;
use super::fs::{FOREVER, MountFs, Shared, with_buffer};
use super::inside::GuestFile;
use super::listing::{OpenDir, OpenFile};
use super::tree::Node;

impl MountFs {
    /// Reads from a disk's image.
    pub(super) fn read_disk(&self, file: Arc<OpenFile>, offset: u64, size: u32, reply: ReplyData) {
        // The kernel expects less than it asked for at the end of the file, and only there.
        let len = u64::from(size).min(file.size_bytes.saturating_sub(offset)) as usize;
        if len == 0 {
            return reply.data(&[]);
        }
        let unanswered = with_buffer(len, |buffer| match file.disk.try_read_at(offset, buffer) {
            Ok(true) => {
                reply.data(buffer);
                None
            }
            Ok(false) => Some(reply),
            Err(e) => {
                reply.error(Refusal::from(e).into());
                None
            }
        });
        file.note_read(offset, len as u64);
        if let Some(reply) = unanswered {
            self.pool.submit(move || {
                with_buffer(len, |buffer| match file.disk.read_at(offset, buffer) {
                    Ok(()) => reply.data(buffer),
                    Err(e) => reply.error(Refusal::from(e).into()),
                });
            });
        }
    }

    /// Reads from a file inside a guest's disk.
    pub(super) fn read_guest(
        &self,
        file: Arc<GuestFile>,
        offset: u64,
        size: u32,
        reply: ReplyData,
    ) {
        let left = file.content.size_bytes().saturating_sub(offset);
        let len = u64::from(size).min(left) as usize;
        if len == 0 {
            return reply.data(&[]);
        }
        let unanswered =
            with_buffer(len, |buffer| match file.content.try_read_at(offset, buffer) {
                Ok(Some(read)) => {
                    reply.data(&buffer[..read]);
                    None
                }
                Ok(None) => Some(reply),
                Err(e) => {
                    reply.error(Refusal::from(e).into());
                    None
                }
            });
        let ahead = file.readahead.lock().on_read(offset, len as u64);
        if let Some((offset, len)) = ahead {
            file.content.prefetch(offset, len);
        }
        if let Some(reply) = unanswered {
            self.pool.submit(move || {
                with_buffer(len, |buffer| match file.content.read_at(offset, buffer) {
                    Ok(read) => reply.data(&buffer[..read]),
                    Err(e) => reply.error(Refusal::from(e).into()),
                });
            });
        }
    }
}

/// Entries from `offset` on: `.`, `..` and the children; `add` says whether the reply is full.
fn each_entry(dir: &OpenDir, offset: u64, mut add: impl FnMut(u64, &str, Option<&Node>) -> bool) {
    let Ok(mut at) = usize::try_from(offset) else { return };
    loop {
        let next = at as u64 + 1;
        let full = match at {
            0 => add(next, ".", None),
            1 => add(next, "..", None),
            _ => match dir.view.nth_child(&dir.node, at - 2) {
                Some((name, node)) => add(next, name, Some(&node)),
                None => return,
            },
        };
        if full {
            return;
        }
        at += 1;
    }
}

/// Lists a directory of the tree.
pub(super) fn list(dir: &OpenDir, ino: INodeNo, offset: u64, mut reply: ReplyDirectory) {
    let parent = INodeNo(dir.view.parent_ino(&dir.node));
    each_entry(dir, offset, |next, name, node| match node {
        None if name == "." => reply.add(ino, next, FileType::Directory, name),
        None => reply.add(parent, next, FileType::Directory, name),
        Some(node) => {
            let kind = match node {
                Node::Latest(_) => FileType::Symlink,
                Node::Disk(..) | Node::About(_) => FileType::RegularFile,
                _ => FileType::Directory,
            };
            reply.add(INodeNo(node.ino()), next, kind, name)
        }
    });
    reply.ok();
}

impl Shared {
    /// Lists a directory of the tree with attributes. Blocks.
    pub(super) fn list_plus(&self, dir: &OpenDir, offset: u64, mut reply: ReplyDirectoryPlus) {
        let mut failed = None;
        let parent = dir.view.node(dir.view.parent_ino(&dir.node)).unwrap_or(Node::Root);
        each_entry(dir, offset, |next, name, node| {
            let node = match node {
                Some(node) => node,
                None if name == "." => &dir.node,
                None => &parent,
            };
            match self.counted_attr(node) {
                Ok(attr) => {
                    let ttl = self.ttls(node).0;
                    reply.add(INodeNo(node.ino()), next, name, &ttl, &attr, Generation(0))
                }
                Err(why) => {
                    failed = Some(why);
                    true
                }
            }
        });
        match failed {
            Some(why) => reply.error(why.into()),
            None => reply.ok(),
        }
    }

    /// Lists `files` of a point. Blocks.
    pub(super) fn list_files(
        &self,
        dir: &OpenDir,
        ino: INodeNo,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let all = match self.top_level(dir) {
            Ok(all) => all,
            Err(why) => return reply.error(why.into()),
        };
        let parent = INodeNo(dir.view.parent_ino(&dir.node));
        let dots = [(ino, ".".to_owned()), (parent, "..".to_owned())];
        let all = dots.into_iter().chain(all.into_iter().map(|(name, attr)| (attr.ino, name)));
        for (next, (ino, name)) in (1..).zip(all) {
            if next > offset && reply.add(ino, next, FileType::Directory, name) {
                break;
            }
        }
        reply.ok();
    }

    /// The same with attributes. Blocks.
    pub(super) fn list_files_plus(
        &self,
        dir: &OpenDir,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = || -> Result<Vec<(String, fuser::FileAttr)>, Refusal> {
            let parent = dir.view.node(dir.view.parent_ino(&dir.node)).unwrap_or(Node::Root);
            let mut all = vec![
                (".".to_owned(), self.counted_attr(&dir.node)?),
                ("..".to_owned(), self.counted_attr(&parent)?),
            ];
            all.extend(self.top_level(dir)?);
            Ok(all)
        };
        match listed() {
            Ok(all) => {
                for (next, (name, attr)) in (1..).zip(all) {
                    let add = |reply: &mut ReplyDirectoryPlus| {
                        reply.add(attr.ino, next, name, &FOREVER, &attr, Generation(0))
                    };
                    if next > offset && add(&mut reply) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(why) => reply.error(why.into()),
        }
    }

    fn top_level(&self, dir: &OpenDir) -> Result<Vec<(String, fuser::FileAttr)>, Refusal> {
        let (Some(inside), Node::Files(point)) = (&self.inside, &dir.node) else {
            return Err(Refusal::Stale);
        };
        let all = inside.top_level(point)?.into_iter();
        all.map(|(name, found)| Ok((name, inside.attr(found.node, &found.stat)?))).collect()
    }
}
