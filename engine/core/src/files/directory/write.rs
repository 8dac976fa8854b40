//! The walk that makes directories and links, and the threads that write files.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use backstay_guestfs::fs::{NodeId, NodeKind, Stat, Xattr};
use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::fs::{FileType, Mode};
use rustix::io::Errno;

use super::{Folder, Run, at, metadata};
use crate::error::{Error, ErrorKind, Result};
use crate::files::What;
use crate::files::content::{Data, data_ranges, read_data};
use crate::files::walk::{Step, Visit, Walk};

/// Files written at once: what is read may be far away.
const THREADS: usize = 4;
/// Files that wait for a thread; each keeps its directory open.
const QUEUE: usize = 64;
/// Most files of several names that are remembered; further names become files of their own.
const LINKED_MAX: usize = 1 << 20;

/// A file to write.
struct Job {
    folder: Arc<Folder>,
    name: Vec<u8>,
    path: Vec<u8>,
    stat: Stat,
}

/// A file of several names, where we wrote it.
struct Linked {
    path: Vec<u8>,
    dev: u64,
    ino: u64,
}

/// Writes everything below the start of the run into `root`.
pub(super) fn all(run: &Run<'_>, root: &Arc<Folder>) -> Result<()> {
    let (sender, receiver) = bounded::<Job>(QUEUE);
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let fail = |error: Error| {
        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    };
    let failed = || failure.lock().unwrap_or_else(PoisonError::into_inner).is_some();
    let work = |receiver: Receiver<Job>| {
        for job in receiver {
            // The queue is emptied also after a failure, so that the walk never waits for good.
            if failed() {
                continue;
            }
            if let Err(error) = file(run, &job).and_then(|_| done(run, &job.folder)) {
                fail(error);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let receiver = receiver.clone();
            scope.spawn(|| work(receiver));
        }
        drop(receiver);
        let mut writer = Writer { run, sender, stack: vec![], linked: HashMap::new() };
        if let Err(error) = writer.walk(root, &failed) {
            fail(error);
        }
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Goes over the tree.
struct Writer<'a, 'b> {
    run: &'b Run<'a>,
    sender: Sender<Job>,
    /// Directories the walk is in, the innermost last.
    stack: Vec<Arc<Folder>>,
    linked: HashMap<NodeId, Linked>,
}

impl Writer<'_, '_> {
    fn walk(&mut self, root: &Arc<Folder>, failed: &dyn Fn() -> bool) -> Result<()> {
        let run = self.run;
        let mut walk = Walk::new(run.tree, run.options.limits);
        while let Some(step) = walk.step()? {
            crate::files::stopped(run.monitor)?;
            if failed() {
                return Ok(());
            }
            match step {
                Step::Problem { path, what, text } => run.note(&path, what, text),
                Step::Leave => {
                    if let Some(folder) = self.stack.pop() {
                        done(run, &folder)?;
                    }
                }
                Step::Node(visit) => {
                    let is_dir = visit.stat.kind == NodeKind::Directory;
                    if !self.node(root, visit)? && is_dir {
                        walk.skip();
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes one node; for a directory, whether the walk goes into it.
    fn node(&mut self, root: &Arc<Folder>, visit: Visit) -> Result<bool> {
        let run = self.run;
        let at_start = visit.depth == 0;
        let name = match (&run.options.name, at_start) {
            (Some(name), true) => name.clone(),
            (None, true) => return self.start(root, &visit),
            _ => visit.name().to_vec(),
        };
        let folder = Arc::clone(self.stack.last().unwrap_or(root));
        let Visit { path, stat, .. } = visit;
        let job = Job { folder, name, path, stat };
        match stat.kind {
            NodeKind::Directory => {
                let made = directory(run, &job)?;
                let entered = made.is_some();
                self.stack.extend(made);
                return Ok(entered);
            }
            NodeKind::File if stat.links > 1 => self.linked(&job)?,
            NodeKind::File => {
                job.folder.pending.fetch_add(1, Ordering::AcqRel);
                let gone = |_| Error::new(ErrorKind::Io, "the writing threads have ended");
                self.sender.send(job).map_err(gone)?;
            }
            NodeKind::Symlink => symlink(run, &job)?,
            NodeKind::Socket => run.note(&job.path, What::Socket, "a socket is not taken"),
            NodeKind::CharDevice | NodeKind::BlockDevice | NodeKind::Fifo => special(run, &job)?,
        }
        Ok(false)
    }

    /// What is in the start comes into the target itself.
    fn start(&mut self, root: &Arc<Folder>, visit: &Visit) -> Result<bool> {
        if visit.stat.kind != NodeKind::Directory {
            return Err(Error::new(ErrorKind::Invalid, "a file needs a name in the target"));
        }
        self.run.report(|report| report.directories += 1);
        self.stack.push(Arc::clone(root));
        Ok(true)
    }

    /// A file of several names: its first one is a file, the others lead to that, if it is still the one
    /// we wrote.
    fn linked(&mut self, job: &Job) -> Result<()> {
        let run = self.run;
        if let Some(first) = self.linked.get(&job.stat.node) {
            // Marks would forbid a further name; they come with the last one at the earliest.
            let result = self.stack.first().map_or(Err(Errno::NOENT), |top| find(top, first));
            let linked = result.and_then(|node| {
                let mut temporary = at::Temporary::new(&job.folder.fd)?;
                temporary.link(&node)?;
                Ok((temporary, first.ino))
            });
            match linked {
                Ok((temporary, ino)) => {
                    if publish(run, job, temporary, ino)? {
                        run.report(|report| report.hard_links += 1);
                    }
                    return Ok(());
                }
                Err(error) => {
                    let text = format!("a file of its own, not a further name: {error}");
                    run.note(&job.path, What::HardLink, text);
                }
            }
        }
        let Some((dev, ino)) = file(run, job)? else { return Ok(()) };
        if self.linked.len() < LINKED_MAX {
            let linked = Linked { path: job.path.clone(), dev, ino };
            self.linked.insert(job.stat.node, linked);
        } else {
            run.note(&job.path, What::HardLink, "too many files of several names");
        }
        Ok(())
    }
}

/// The node we wrote before, found anew from the top and compared.
fn find(top: &Arc<Folder>, linked: &Linked) -> rustix::io::Result<OwnedFd> {
    let mut names: Vec<&[u8]> = linked.path.split(|byte| *byte == b'/').collect();
    let last = names.pop().ok_or(Errno::NOENT)?;
    let mut dir = None;
    for name in names {
        let from = dir.as_ref().unwrap_or(&top.fd);
        dir = Some(at::open_dir(from, name)?);
    }
    let node = at::open_path(dir.as_ref().unwrap_or(&top.fd), last)?;
    let stat = rustix::fs::fstat(&node)?;
    match (stat.st_dev, stat.st_ino) == (linked.dev, linked.ino) {
        true => Ok(node),
        false => Err(Errno::STALE),
    }
}

/// An error of the target: full, read-only or broken ends the run, anything else only this node.
fn refused(run: &Run<'_>, job: &Job, what: &str, errno: Errno) -> Result<()> {
    let io = std::io::Error::from(errno);
    let fatal = [Errno::NOSPC, Errno::DQUOT, Errno::ROFS, Errno::IO, Errno::MFILE, Errno::NFILE];
    if fatal.contains(&errno) {
        return Err(Error::io(what, std::path::Path::new(at::os(&job.path)), io));
    }
    run.note(&job.path, What::NotWritten, format!("cannot {what}: {io}"));
    Ok(())
}

/// One thing less is being done in a folder; a folder where nothing is left gets its metadata, and is one
/// thing less in its parent.
fn done(run: &Run<'_>, folder: &Arc<Folder>) -> Result<()> {
    let mut folder = Arc::clone(folder);
    while folder.pending.fetch_sub(1, Ordering::AcqRel) == 1 {
        if let Some(stat) = &folder.stat {
            let xattrs = xattrs(run, &folder.path, stat.node);
            let mut lost = |what, text: String| run.note(&folder.path, what, text);
            metadata::apply(&folder.fd, stat, &xattrs, &run.policy, &mut lost);
            metadata::flags(&folder.fd, stat, &run.policy, &mut lost);
        }
        let Some(parent) = folder.parent.clone() else { break };
        folder = parent;
    }
    Ok(())
}

fn xattrs(run: &Run<'_>, path: &[u8], node: NodeId) -> Vec<Xattr> {
    run.tree.fs.xattrs(node).unwrap_or_else(|error| {
        run.note(path, What::Xattr, format!("attributes cannot be read: {error}"));
        Vec::new()
    })
}

/// Makes a directory, or enters the one that is there.
fn directory(run: &Run<'_>, job: &Job) -> Result<Option<Arc<Folder>>> {
    let dir = &job.folder.fd;
    let there = match rustix::fs::mkdirat(dir, job.name.as_slice(), Mode::RWXU) {
        Ok(()) => false,
        Err(Errno::EXIST) => true,
        Err(errno) => return refused(run, job, "make the directory", errno).map(|()| None),
    };
    let opened = at::open_dir(dir, &job.name).and_then(|fd| Ok((rustix::fs::fstat(&fd)?, fd)));
    let (stat, fd) = match opened {
        Ok(opened) => opened,
        Err(Errno::NOTDIR | Errno::LOOP) => {
            run.note(&job.path, What::Exists, "something that is no directory has this name");
            return Ok(None);
        }
        Err(errno) => return refused(run, job, "open the directory", errno).map(|()| None),
    };
    let mut ours = job.folder.ours.lock().unwrap_or_else(PoisonError::into_inner);
    if !ours.insert(stat.st_ino) {
        run.note(&job.path, What::Collides, "the target takes this name for another's");
        return Ok(None);
    }
    drop(ours);
    job.folder.pending.fetch_add(1, Ordering::AcqRel);
    run.report(|report| report.directories += 1);
    Ok(Some(Arc::new(Folder {
        fd,
        parent: Some(Arc::clone(&job.folder)),
        path: job.path.clone(),
        stat: (!there || run.options.overwrite).then_some(job.stat),
        pending: AtomicUsize::new(1),
        ours: Mutex::default(),
    })))
}

/// Gives a finished node its name; whether it has it.
fn publish(run: &Run<'_>, job: &Job, temporary: at::Temporary<'_>, ino: u64) -> Result<bool> {
    // Held while the name is taken: two of our own threads may want what the target thinks is one name.
    let mut ours = job.folder.ours.lock().unwrap_or_else(PoisonError::into_inner);
    let there = at::stat(&job.folder.fd, &job.name);
    let is_ours = there.as_ref().is_ok_and(|there| ours.contains(&there.st_ino));
    let is_dir = there
        .as_ref()
        .is_ok_and(|there| FileType::from_raw_mode(there.st_mode) == FileType::Directory);
    if is_ours {
        run.note(&job.path, What::Collides, "the target takes this name for another's");
        return Ok(false);
    }
    if is_dir {
        run.note(&job.path, What::Exists, "a directory has this name");
        return Ok(false);
    }
    match temporary.publish(&job.name, run.options.overwrite) {
        Ok(()) => {
            ours.insert(ino);
            Ok(true)
        }
        Err(Errno::EXIST) => {
            run.note(&job.path, What::Exists, "there is something of this name");
            Ok(false)
        }
        Err(errno) => refused(run, job, "name", errno).map(|()| false),
    }
}

/// Writes a file; its device and inode number if it is there.
fn file(run: &Run<'_>, job: &Job) -> Result<Option<(u64, u64)>> {
    let mut temporary = match at::Temporary::new(&job.folder.fd) {
        Ok(temporary) => temporary,
        Err(errno) => return refused(run, job, "make the file", errno).map(|()| None),
    };
    let file = match temporary.file() {
        Ok(file) => file,
        Err(errno) => return refused(run, job, "make the file", errno).map(|()| None),
    };
    if !content(run, job, &file)? {
        return Ok(None);
    }
    let fd = OwnedFd::from(file);
    let mut lost = |what, text: String| run.note(&job.path, what, text);
    let xattrs = xattrs(run, &job.path, job.stat.node);
    metadata::apply(&fd, &job.stat, &xattrs, &run.policy, &mut lost);
    if job.stat.attributes.encrypted {
        lost(What::Encrypted, String::from("the bytes are those on the disk, encrypted"));
    }
    let here = match rustix::fs::fstat(&fd) {
        Ok(here) => here,
        Err(errno) => return refused(run, job, "stat", errno).map(|()| None),
    };
    if !publish(run, job, temporary, here.st_ino)? {
        return Ok(None);
    }
    match job.stat.links > 1 && (job.stat.attributes.immutable || job.stat.attributes.append_only) {
        // The mark would keep the further names from being made.
        true => run.note(&job.path, What::Flags, "marks of a file of several names not kept"),
        false => metadata::flags(&fd, &job.stat, &run.policy, &mut |what, text| {
            run.note(&job.path, what, text);
        }),
    }
    run.report(|report| report.files += 1);
    Ok(Some((here.st_dev, here.st_ino)))
}

/// Writes the content; false if it could not be read, or not be written here.
fn content(run: &Run<'_>, job: &Job, file: &File) -> Result<bool> {
    /// Why the content ended early.
    enum End {
        Target(std::io::Error),
        Run(Error),
    }
    let size = job.stat.size_bytes;
    let mut end = None;
    if let Err(error) = file.set_len(size) {
        // A length that no call takes has no number.
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::FBIG);
        return refused(run, job, "make it as long", errno).map(|()| false);
    }
    let read =
        data_ranges(run.tree.fs, job.stat.node, Data { offset: 0, len: size }, &job.path, |data| {
            read_data(run.tree.fs, job.stat.node, data, &job.path, |offset, buf| {
                let mut ended = |why| {
                    end = Some(why);
                    Error::new(ErrorKind::Io, "ended")
                };
                run.take(buf.len() as u64).map_err(|error| ended(End::Run(error)))?;
                file.write_all_at(buf, offset).map_err(|error| ended(End::Target(error)))?;
                run.report(|report| report.data_bytes += buf.len() as u64);
                run.monitor.add_bytes(buf.len() as u64);
                Ok(())
            })
        });
    match (end, read) {
        (Some(End::Run(error)), _) => Err(error),
        (Some(End::Target(error)), _) => {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            refused(run, job, "write", errno).map(|()| false)
        }
        (None, Err(error)) => {
            run.note(&job.path, What::Unreadable, error);
            Ok(false)
        }
        (None, Ok(())) => Ok(true),
    }
}

/// Makes a symbolic link as it is.
fn symlink(run: &Run<'_>, job: &Job) -> Result<()> {
    let target = match run.tree.fs.read_link(job.stat.node) {
        Ok(target) if !target.is_empty() && !target.contains(&0) => target,
        Ok(_) => {
            run.note(&job.path, What::Unreadable, "a link to nothing");
            return Ok(());
        }
        Err(error) => {
            run.note(&job.path, What::Unreadable, error);
            return Ok(());
        }
    };
    let made = at::Temporary::new(&job.folder.fd).and_then(|mut temporary| {
        let fd = temporary.symlink(&target)?;
        Ok((temporary, fd))
    });
    match made {
        Err(errno) => refused(run, job, "make the link", errno),
        Ok((temporary, fd)) => {
            if finish(run, job, temporary, &fd)? {
                run.report(|report| report.symlinks += 1);
            }
            Ok(())
        }
    }
}

/// Makes a pipe, or a device if that was asked for.
fn special(run: &Run<'_>, job: &Job) -> Result<()> {
    let kind = match job.stat.kind {
        NodeKind::CharDevice => FileType::CharacterDevice,
        NodeKind::BlockDevice => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    if kind != FileType::Fifo && !run.options.privileged_metadata {
        run.note(&job.path, What::Device, "a device is not taken");
        return Ok(());
    }
    let (major, minor) = job.stat.device.unwrap_or_default();
    let device = if kind == FileType::Fifo { 0 } else { rustix::fs::makedev(major, minor) };
    let made = at::Temporary::new(&job.folder.fd).and_then(|mut temporary| {
        let fd = temporary.special(kind, device)?;
        Ok((temporary, fd))
    });
    match made {
        Err(errno) => refused(run, job, "make the node", errno),
        Ok((temporary, fd)) => {
            if finish(run, job, temporary, &fd)? {
                run.report(|report| report.others += 1);
            }
            Ok(())
        }
    }
}

/// Metadata and the name of what has no content.
fn finish(run: &Run<'_>, job: &Job, temporary: at::Temporary<'_>, fd: &OwnedFd) -> Result<bool> {
    let xattrs = xattrs(run, &job.path, job.stat.node);
    let mut lost = |what, text: String| run.note(&job.path, what, text);
    metadata::apply(fd, &job.stat, &xattrs, &run.policy, &mut lost);
    match rustix::fs::fstat(fd) {
        Ok(here) => publish(run, job, temporary, here.st_ino),
        Err(errno) => refused(run, job, "stat", errno).map(|()| false),
    }
}
