//! The disks of a machine, read by a child that is started when it is needed.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::process::{Process, Reply};
use super::wire::{Answer, FsRequest, Request};
use super::{GuestFs, ReaderCommand};
use crate::volumes::{Disk, VolumeTree};
use crate::{Error, ErrorKind};

/// So many children may die in a row, each within [`FAULTS_WITHIN`] of the one before; then it is left alone for as long.
const FAULTS_MAX: u32 = 3;
const FAULTS_WITHIN: Duration = Duration::from_secs(60);

/// The disks of one machine at one moment, read in a process apart.
///
/// Nothing is started before something is asked. Dropping it, and all file systems opened from it, ends the child.
#[derive(Debug)]
pub struct Guest {
    disks: Vec<Disk>,
    command: ReaderCommand,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    process: Option<Arc<Process>>,
    tree: Option<Arc<VolumeTree>>,
    faults: u32,
    last_fault: Option<Instant>,
    last_call: Option<Instant>,
}

impl Guest {
    /// Of these disks; `command` starts a reader.
    pub fn new(disks: Vec<Disk>, command: ReaderCommand) -> Self {
        Self { disks, command, state: Mutex::default() }
    }

    /// The disks.
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// What is on them; looked for once.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the reader cannot be started or ends. Damage on the disks is no error here: it stands
    /// in the list.
    pub fn volumes(&self) -> Result<Arc<VolumeTree>, Error> {
        if let Some(tree) = &self.state.lock().tree {
            return Ok(Arc::clone(tree));
        }
        let tree = match self.call(&Request::Volumes)? {
            Reply::Answer(Answer::Volumes(tree)) => Arc::new(tree),
            _ => return Err(strange()),
        };
        self.state.lock().tree = Some(Arc::clone(&tree));
        Ok(tree)
    }

    /// The file system of a volume, by its place in the list.
    ///
    /// # Errors
    /// Why it cannot be read: [`ErrorKind::Unsupported`] with its name where nobody reads it, [`ErrorKind::Encrypted`],
    /// [`ErrorKind::Damaged`].
    pub fn open(self: &Arc<Self>, volume: usize) -> Result<GuestFs, Error> {
        let index = u32::try_from(volume).map_err(|_| Error::not_found("no such volume"))?;
        match self.call(&Request::In(index, FsRequest::Open))? {
            Reply::Answer(Answer::Opened { info, root }) => {
                Ok(GuestFs::new(Arc::clone(self), index, info, root))
            }
            _ => Err(strange()),
        }
    }

    /// Ends the child if nothing was asked for so long; the next call starts another.
    pub fn rest(&self, idle: Duration) {
        let mut state = self.state.lock();
        let last = state.last_call;
        // Who is in a call holds the process too.
        let unused = state.process.as_ref().is_some_and(|p| Arc::strong_count(p) == 1);
        if unused && last.is_none_or(|at| at.elapsed() >= idle) {
            state.process = None;
        }
    }

    /// The process id of the child, if one runs.
    pub fn reader_pid(&self) -> Option<u32> {
        self.state.lock().process.as_ref().filter(|p| !p.is_dead()).map(|p| p.pid())
    }

    /// One call to the child.
    pub(super) fn call(&self, request: &Request) -> Result<Reply, Error> {
        let process = self.process()?;
        match process.call(&self.disks, request) {
            Ok(reply) => {
                let mut state = self.state.lock();
                state.faults = 0;
                state.last_call = Some(Instant::now());
                reply
            }
            Err(e) => {
                let mut state = self.state.lock();
                // Several calls may have met one death.
                if state.process.as_ref().is_some_and(|p| Arc::ptr_eq(p, &process)) {
                    state.process = None;
                    state.faults += 1;
                    state.last_fault = Some(Instant::now());
                }
                Err(died(&e))
            }
        }
    }

    fn process(&self) -> Result<Arc<Process>, Error> {
        let mut state = self.state.lock();
        if let Some(process) = &state.process {
            return Ok(Arc::clone(process));
        }
        let recently = state.last_fault.is_some_and(|at| at.elapsed() < FAULTS_WITHIN);
        if !recently {
            state.faults = 0;
        }
        if state.faults >= FAULTS_MAX {
            let text = format!(
                "the reader of these disks has died {FAULTS_MAX} times within a minute; it is tried again in a minute"
            );
            return Err(Error::new(ErrorKind::Io, text));
        }
        let process = Arc::new(Process::start(&self.command, &self.disks)?);
        state.process = Some(Arc::clone(&process));
        Ok(process)
    }
}

/// An answer to another question.
pub(super) fn strange() -> Error {
    Error::new(ErrorKind::Io, "the reader gave an answer to something else")
}

fn died(e: &io::Error) -> Error {
    let text = match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            "the reader did not come to an end with these bytes and was ended".to_owned()
        }
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset => {
            "the reader ended over these bytes (out of memory, or a fault of it)".to_owned()
        }
        _ => format!("the reader cannot be understood: {e}"),
    };
    Error::new(ErrorKind::Io, text)
}
