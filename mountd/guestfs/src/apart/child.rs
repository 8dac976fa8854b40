//! The reader itself: the child's side.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Barrier, OnceLock};

use parking_lot::Mutex;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use super::jail;
use super::remote_disk::{self, RemoteDisk};
use super::wire::{
    self, Answer, DiskExtent, DiskPlace, FsRequest, Hello, Lane, PIECE_MAX, Ready, Request,
};
use crate::fs::{self, DirEntry, FileExtent, FileSystem, NodeId, Place, Stat};
use crate::volumes::{self, Content, Disk, Mapped, Piece, PieceAt, VolumeTree};
use crate::{Error, ErrorKind};

/// Lanes a parent may send at most.
pub(super) const LANES_MAX: usize = 8;
/// File systems open at once; of more, the one longest not asked is closed and opened again when it is.
const OPEN_MAX: usize = 8;
/// Entries of a directory in one answer.
pub(super) const ENTRIES_MAX: usize = 1024;
/// Extents in one answer.
pub(super) const EXTENTS_MAX: usize = 4096;

/// Serves as a reader until the parent closes its sockets. Called by the program of a
/// [`ReaderCommand`](super::ReaderCommand), before it has threads or files of its own.
pub fn reader_main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve() -> io::Result<()> {
    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let lanes = receive_lanes(&control)?;
    let mut control = Lane::new(control);
    let hello: Hello = match control.receive()? {
        (wire::REQUEST, body) => wire::decode(body)?,
        _ => return Err(wire::invalid("no greeting".into())),
    };
    std::panic::set_hook(Box::new(|info| FAULT.set(info.to_string())));
    let machine = Arc::new(Machine::new(&hello));
    let mut allowed: Vec<i32> = lanes.iter().map(AsRawFd::as_raw_fd).collect();
    allowed.push(control.socket().as_raw_fd());
    // Threads start before the confinement, which forbids all that starting takes, and work after it: they meet once before
    // it and once after.
    let meeting = Arc::new(Barrier::new(lanes.len() + 1));
    let mut threads = Vec::new();
    for lane in lanes {
        let (machine, meeting) = (Arc::clone(&machine), Arc::clone(&meeting));
        let work = move || {
            meeting.wait();
            meeting.wait();
            remote_disk::use_lane(Lane::new(UnixStream::from(lane)));
            machine.work();
        };
        threads.push(std::thread::Builder::new().name("lane".into()).spawn(work)?);
    }
    meeting.wait();
    let ready = match jail::confine(&allowed, hello.memory_bytes) {
        Ok(()) => Ready::Confined,
        Err(why) => Ready::Refused(why),
    };
    control.send(wire::ANSWER, &ready)?;
    if let Ready::Refused(why) = ready {
        return Err(io::Error::other(why));
    }
    meeting.wait();
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

/// The descriptors that come with the first byte on the control socket.
fn receive_lanes(control: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut byte = [0u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LANES_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut data = [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(control, &mut data, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut lanes = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            lanes.extend(fds);
        }
    }
    if lanes.is_empty() {
        return Err(wire::invalid("no lanes".into()));
    }
    Ok(lanes)
}

thread_local! {
    /// What the last panic of this thread said.
    static FAULT: RefCell<String> = const { RefCell::new(String::new()) };
}

/// The machine whose disks are read.
#[derive(Debug)]
struct Machine {
    disks: Vec<Disk>,
    tree: OnceLock<VolumeTree>,
    scanning: Mutex<()>,
    /// The one asked last comes last.
    open: Mutex<VecDeque<(u32, Arc<Volume>)>>,
}

/// The file system of a volume.
#[derive(Debug)]
struct Volume {
    fs: Box<dyn FileSystem>,
    devices: Vec<Arc<Mapped>>,
}

/// What goes back.
enum Reply {
    Answer(Answer),
    Content(Vec<u8>),
}

impl Machine {
    fn new(hello: &Hello) -> Self {
        let disk = |(i, d): (usize, &wire::DiskHello)| Disk {
            name: d.name.clone(),
            device: Arc::new(RemoteDisk::new(i as u16, d.size_bytes)),
        };
        Self {
            disks: hello.disks.iter().enumerate().map(disk).collect(),
            tree: OnceLock::new(),
            scanning: Mutex::new(()),
            open: Mutex::new(VecDeque::new()),
        }
    }

    /// Answers what comes on this thread's lane until it is closed.
    fn work(&self) {
        while let Ok(request) = next_request() {
            let reply = catch_unwind(AssertUnwindSafe(|| self.answer(request)));
            let reply = reply.unwrap_or_else(|_| {
                let text = format!("the reader failed on these bytes: {}", FAULT.take());
                Err(Error::damaged(text))
            });
            let sent = remote_disk::with_lane(|lane| match &reply {
                Ok(Reply::Content(bytes)) => lane.send_bytes(wire::CONTENT, bytes),
                Ok(Reply::Answer(answer)) => {
                    lane.send(wire::ANSWER, &Ok::<_, wire::Failure>(answer))
                }
                Err(e) => lane.send(wire::ANSWER, &Err::<Answer, _>(wire::Failure::from(e))),
            });
            if sent.is_err() {
                return;
            }
        }
    }

    fn answer(&self, request: Request) -> Result<Reply, Error> {
        match request {
            Request::Volumes => Ok(Reply::Answer(Answer::Volumes(self.tree()?.clone()))),
            Request::In(volume, FsRequest::Read { node, offset_bytes, len_bytes }) => {
                let mut bytes = vec![0; (len_bytes as usize).min(PIECE_MAX)];
                let read = self.volume(volume)?.fs.read(node, offset_bytes, &mut bytes)?;
                bytes.truncate(read);
                Ok(Reply::Content(bytes))
            }
            Request::In(volume, request) => {
                Ok(Reply::Answer(self.volume(volume)?.answer(request)?))
            }
        }
    }

    fn tree(&self) -> Result<&VolumeTree, Error> {
        if let Some(tree) = self.tree.get() {
            return Ok(tree);
        }
        let _one = self.scanning.lock();
        if let Some(tree) = self.tree.get() {
            return Ok(tree);
        }
        let tree = volumes::scan(&self.disks)?;
        Ok(self.tree.get_or_init(|| tree))
    }

    /// The open file system of a volume, by its place in the list.
    fn volume(&self, index: u32) -> Result<Arc<Volume>, Error> {
        {
            let mut open = self.open.lock();
            if let Some(at) = open.iter().position(|(i, _)| *i == index)
                && let Some(found) = open.remove(at)
            {
                let volume = Arc::clone(&found.1);
                open.push_back(found);
                return Ok(volume);
            }
        }
        let Some(volume) = self.tree()?.volumes.get(index as usize) else {
            return Err(Error::not_found("there is no such volume"));
        };
        let Content::FileSystem(kind) = volume.content else {
            let text = format!(
                "{} holds no file system that can be read: {}",
                volume.name, volume.content
            );
            return Err(Error::unsupported(text));
        };
        let devices = volume.devices();
        let as_devices = devices.iter().map(|d| Arc::clone(d) as _).collect();
        let volume = Arc::new(Volume { fs: fs::open(kind, as_devices)?, devices });
        let mut open = self.open.lock();
        if open.len() >= OPEN_MAX {
            open.pop_front();
        }
        open.push_back((index, Arc::clone(&volume)));
        Ok(volume)
    }
}

fn next_request() -> io::Result<Request> {
    remote_disk::with_lane(|lane| match lane.receive()? {
        (wire::REQUEST, body) => wire::decode(body),
        (tag, _) => Err(wire::invalid(format!("a request was expected, and {tag} came"))),
    })
}

impl Volume {
    fn answer(&self, request: FsRequest) -> Result<Answer, Error> {
        let fs = &*self.fs;
        Ok(match request {
            FsRequest::Open => Answer::Opened { info: fs.info().clone(), root: fs.root() },
            FsRequest::Lookup { dir, name } => Answer::Found(fs.stat(fs.lookup(dir, &name)?)?),
            FsRequest::ReadDir { dir, from, max } => {
                let max = (max as usize).clamp(1, ENTRIES_MAX);
                let entries = fs.read_dir(dir, from, max)?;
                // A node that cannot be read must not hide the others.
                let with_stat = |e: DirEntry| -> (DirEntry, Option<Stat>) {
                    let stat = fs.stat(e.node).ok();
                    (e, stat)
                };
                Answer::Entries(entries.into_iter().map(with_stat).collect())
            }
            FsRequest::Stat(node) => Answer::Found(fs.stat(node)?),
            FsRequest::ReadLink(node) => Answer::Link(fs.read_link(node)?),
            FsRequest::Xattrs(node) => Answer::Xattrs(fs.xattrs(node)?),
            FsRequest::Extents { node, offset_bytes, len_bytes, max } => {
                Answer::Extents(self.extents(node, offset_bytes, len_bytes, max as usize)?)
            }
            FsRequest::Read { .. } => {
                return Err(Error::new(ErrorKind::Invalid, "reading has an answer of its own"));
            }
        })
    }

    /// Where a range of a file is on the machine's disks: the file system's map and the volume's, one upon the other.
    fn extents(
        &self,
        node: NodeId,
        offset_bytes: u64,
        len_bytes: u64,
        max: usize,
    ) -> Result<Vec<DiskExtent>, Error> {
        let max = max.clamp(1, EXTENTS_MAX);
        let mut list = Vec::new();
        for extent in self.fs.extents(node, offset_bytes, len_bytes, max)? {
            if list.len() >= max || !self.lay_out(extent, max, &mut list)? {
                break;
            }
        }
        Ok(list)
    }

    /// Adds one extent; `false` if it did not fit as a whole.
    fn lay_out(
        &self,
        extent: FileExtent,
        max: usize,
        list: &mut Vec<DiskExtent>,
    ) -> Result<bool, Error> {
        let FileExtent { offset_bytes, len_bytes, place } = extent;
        let mut push = |offset_bytes, len_bytes, place| {
            list.push(DiskExtent { offset_bytes, len_bytes, place });
        };
        let (device, start) = match place {
            Place::Hole => {
                return Ok({
                    push(offset_bytes, len_bytes, DiskPlace::Hole);
                    true
                });
            }
            Place::Unwritten => {
                return Ok({
                    push(offset_bytes, len_bytes, DiskPlace::Unwritten);
                    true
                });
            }
            Place::Inside => {
                return Ok({
                    push(offset_bytes, len_bytes, DiskPlace::Inside);
                    true
                });
            }
            Place::Device { device, offset_bytes } => (device, offset_bytes),
        };
        let Some(device) = self.devices.get(usize::from(device)) else {
            return Err(Error::damaged(format!("content on device {device}, which is not there")));
        };
        let mut done = 0;
        for Piece { len_bytes, at } in device.locate(start, len_bytes, max)? {
            let place = match at {
                PieceAt::Zeros => DiskPlace::Hole,
                PieceAt::Disk { disk, offset_bytes } => {
                    DiskPlace::Disk { disk: disk as u16, offset_bytes }
                }
            };
            push(offset_bytes + done, len_bytes, place);
            done += len_bytes;
        }
        Ok(done == len_bytes)
    }
}
