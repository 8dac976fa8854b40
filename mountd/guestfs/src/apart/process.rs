//! The parent's side of a child: starting it, its lanes, its end.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstay_blockdev::BlockDevice;
use parking_lot::{Condvar, Mutex};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::ReaderCommand;
use super::child::LANES_MAX;
use super::wire::{self, Answer, DiskHello, Failure, Hello, Lane, PIECE_MAX, Ready, Request, Want};
use crate::volumes::Disk;
use crate::{Error, ErrorKind};

/// Requests that one child works on at once.
const LANES: usize = 4;
/// What a child may take of memory, beside the program itself.
const MEMORY_BYTES: u64 = 512 << 20;
/// How long a child may compute without a word.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running child.
#[derive(Debug)]
pub(super) struct Process {
    child: Mutex<Child>,
    lanes: Mutex<Vec<Lane>>,
    freed: Condvar,
    dead: AtomicBool,
    /// The child lives until this is closed.
    _control: Lane,
}

/// What a call brought.
#[derive(Debug)]
pub(super) enum Reply {
    Answer(Answer),
    Content(Vec<u8>),
}

impl Process {
    /// Starts a child for these disks. It is confined when this returns.
    pub(super) fn start(command: &ReaderCommand, disks: &[Disk]) -> Result<Self, Error> {
        let failed = |what: &str, e: io::Error| {
            let text = format!("cannot {what} {}", command.program.display());
            Error::new(ErrorKind::Io, text).with_source(e)
        };
        let (ours, theirs) = UnixStream::pair().map_err(|e| failed("make a socket for", e))?;
        let child = Command::new(&command.program)
            .args(&command.args)
            .current_dir("/")
            .env_clear()
            // Each further arena would take tens of MiB of the address space it may have.
            .env("MALLOC_ARENA_MAX", "1")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C at a terminal is for the parent, which ends this one.
            .process_group(0)
            .spawn()
            .map_err(|e| failed("start the reader", e))?;
        let mut starting = Starting(Some(child));
        let (control, lanes) = greet(ours, disks).map_err(|e| failed("greet the reader", e))?;
        let child = starting.0.take();
        let child =
            child.ok_or_else(|| failed("start the reader", io::Error::other("it is gone")))?;
        Ok(Self {
            child: Mutex::new(child),
            lanes: Mutex::new(lanes),
            freed: Condvar::new(),
            dead: AtomicBool::new(false),
            _control: control,
        })
    }

    /// Whether nothing more can be asked of it.
    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// One request and its answer, serving the blocks it takes. Waits for a lane while all are in use.
    ///
    /// # Errors
    /// The outer one: the child is of no more use. The inner one: its answer.
    pub(super) fn call(
        &self,
        disks: &[Disk],
        request: &Request,
    ) -> io::Result<Result<Reply, Error>> {
        let mut lane = {
            let mut lanes = self.lanes.lock();
            loop {
                if self.is_dead() {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                match lanes.pop() {
                    Some(lane) => break lane,
                    None => self.freed.wait(&mut lanes),
                }
            }
        };
        let reply = converse(&mut lane, disks, request);
        if reply.is_ok() {
            self.lanes.lock().push(lane);
            self.freed.notify_one();
        } else {
            self.end();
        }
        reply
    }

    /// Ends the child, at once.
    pub(super) fn end(&self) {
        self.dead.store(true, Ordering::Release);
        let mut child = self.child.lock();
        let _ = child.kill();
        let _ = child.wait();
        drop(child);
        let _lanes = self.lanes.lock();
        self.freed.notify_all();
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.lock().id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// A child that must not outlive a failed start.
struct Starting(Option<Child>);

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Sends lanes and disks, and waits until the child is confined.
fn greet(control: UnixStream, disks: &[Disk]) -> io::Result<(Lane, Vec<Lane>)> {
    let mut ours = Vec::with_capacity(LANES);
    let mut theirs = Vec::with_capacity(LANES);
    for _ in 0..LANES {
        let (a, b) = UnixStream::pair()?;
        ours.push(a);
        theirs.push(b);
    }
    let fds: Vec<BorrowedFd<'_>> = theirs.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LANES_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(&control, &[IoSlice::new(b"L")], &mut ancillary, SendFlags::NOSIGNAL)?;
    drop(theirs);
    let mut control = Lane::new(control);
    control.set_patience(Some(PATIENCE))?;
    let disk =
        |d: &Disk| DiskHello { name: d.name.clone(), size_bytes: d.device.geometry().size_bytes };
    let hello = Hello { disks: disks.iter().map(disk).collect(), memory_bytes: MEMORY_BYTES };
    control.send(wire::REQUEST, &hello)?;
    match control.receive()? {
        (wire::ANSWER, body) => match wire::decode(body)? {
            Ready::Confined => {}
            Ready::Refused(why) => return Err(io::Error::other(why)),
        },
        _ => return Err(wire::invalid("it does not greet back".into())),
    }
    let mut lanes = Vec::with_capacity(LANES);
    for lane in ours {
        let lane = Lane::new(lane);
        lane.set_patience(Some(PATIENCE))?;
        lanes.push(lane);
    }
    Ok((control, lanes))
}

fn converse(
    lane: &mut Lane,
    disks: &[Disk],
    request: &Request,
) -> io::Result<Result<Reply, Error>> {
    lane.send(wire::REQUEST, request)?;
    loop {
        match lane.receive()? {
            (wire::ANSWER, body) => {
                let answer: Result<Answer, Failure> = wire::decode(body)?;
                return Ok(answer.map(Reply::Answer).map_err(Error::from));
            }
            (wire::CONTENT, body) => return Ok(Ok(Reply::Content(body.to_vec()))),
            (wire::HINT, body) => {
                let want: Want = wire::decode(body)?;
                if let Ok(device) = wanted(disks, &want) {
                    device.prefetch(want.offset_bytes, want.len_bytes.into());
                }
            }
            (wire::WANT, body) => {
                let want: Want = wire::decode(body)?;
                serve_block(lane, disks, &want)?;
            }
            (tag, _) => {
                return Err(wire::invalid(format!("an answer was expected, and {tag} came")));
            }
        }
    }
}

fn serve_block(lane: &mut Lane, disks: &[Disk], want: &Want) -> io::Result<()> {
    let device = wanted(disks, want)?;
    let mut block = vec![0; want.len_bytes as usize];
    match device.read_at(want.offset_bytes, &mut block) {
        Ok(()) => lane.send_bytes(wire::BLOCK, &block),
        Err(e) => {
            let kind = match e.kind() {
                backstay_blockdev::ErrorKind::Damaged => ErrorKind::Damaged,
                _ => ErrorKind::Io,
            };
            lane.send(wire::NO_BLOCK, &Failure::from(&Error::new(kind, e.to_string())))
        }
    }
}

/// The disk a range is wanted of, if there is such a range.
fn wanted<'a>(disks: &'a [Disk], want: &Want) -> io::Result<&'a Arc<dyn BlockDevice>> {
    let disk = disks.get(usize::from(want.disk));
    let disk = disk.filter(|d| {
        let size = d.device.geometry().size_bytes;
        let end = want.offset_bytes.checked_add(want.len_bytes.into());
        end.is_some_and(|end| end <= size) && want.len_bytes as usize <= PIECE_MAX
    });
    disk.map(|d| &d.device).ok_or_else(|| wire::invalid(format!("{want:?} of no disk")))
}
