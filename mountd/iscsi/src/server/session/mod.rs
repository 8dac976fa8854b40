//! The full feature phase of one connection, which is a session.

mod command;
mod data_in;
mod data_out;
mod frame;
mod input;
mod job;
mod manage;
mod numbers;
mod services;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use backstay_blockdev::Readahead;
use backstay_serve::{Filled, Out, Pool, Socket, Stream as _, Wire};
use tokio::io::Interest;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Shared;
use super::sessions::{Ending, Held};
use crate::error::{Error, ErrorKind};
use crate::proto::Serial;
use crate::proto::login::Agreed;
use crate::proto::params::Params;
use crate::scsi::{Nexus, Task, TaskSet, Work};
use data_out::Collecting;
use frame::Digests;
use input::Incoming;
use job::{Done, Ticket};
use numbers::Numbers;

/// Commands of one session that may be under way (its window).
pub(super) const WINDOW: u32 = 128;
/// With immediate commands, which no window bounds, this many.
const MAX_TASKS: usize = 2 * WINDOW as usize;
/// Responses gathered before they are handed to the kernel.
const BATCH_BYTES: usize = 256 << 10;
/// With so much to be sent, the initiator is not read from.
const MAX_OUT_BYTES: usize = 32 << 20;
/// After how long a write that the device put off is tried again.
const PAUSE: Duration = Duration::from_millis(250);
/// Batches after which a busy session lets others of its thread go first.
const TURN: usize = 16;

/// What a session is made of.
pub(super) struct Begun {
    pub(super) wire: Wire<Socket>,
    pub(super) agreed: Agreed,
    /// `None` for a discovery session.
    pub(super) held: Option<Held>,
    /// The next status number, and the next command number.
    pub(super) stat_sn: Serial,
    pub(super) cmd_sn: Serial,
    /// Where the connection comes from, and where it arrived.
    pub(super) peer: std::net::SocketAddr,
    pub(super) local: std::net::SocketAddr,
}

/// A command that is not over.
#[derive(Debug)]
struct Pending {
    task: Arc<Task>,
    set: Arc<TaskSet>,
    /// Bytes the initiator expects to move, and which way.
    expected: Expected,
    /// Bytes it wants from the initiator.
    wanted: u32,
    stage: Stage,
    /// Bytes of memory it counts for.
    charged: u64,
}

#[derive(Debug)]
enum Stage {
    /// Its data is on the way.
    Collecting(Box<Collecting>),
    /// A read that waits for room.
    Deferred(Reading),
    /// The pool has it.
    Away,
    /// The device will take it later.
    Parked(Work, Vec<u8>, usize),
}

/// A read as the device is asked for it.
#[derive(Debug, Clone)]
struct Reading {
    device: Arc<dyn backstay_blockdev::BlockDevice>,
    offset_bytes: u64,
    /// What is asked for; what is moved may be less ([`Expected`]).
    len_bytes: u32,
}

/// What the initiator said about the data of a command.
#[derive(Debug, Clone, Copy)]
struct Expected {
    bytes: u32,
    read: bool,
    write: bool,
}

struct Session {
    wire: Wire<Socket>,
    out: Out,
    params: Params,
    digests: Digests,
    numbers: Numbers,
    nexus: Option<Nexus>,
    held: Option<Held>,
    pool: Arc<Pool>,
    shared: Arc<Shared>,
    initiator: String,
    peer: std::net::SocketAddr,
    local: std::net::SocketAddr,
    sender: mpsc::UnboundedSender<Done>,
    tasks: HashMap<u32, Pending>,
    /// Task management functions that wait for threads.
    managing: usize,
    /// Reads that wait for room, in their order.
    deferred: VecDeque<u32>,
    /// Writes that wait for room to ask for their data.
    unasked: VecDeque<u32>,
    read_bytes: u64,
    write_bytes: u64,
    retry_at: Option<Instant>,
    incoming: Option<Incoming>,
    /// The answer to a SendTargets that is longer than one response.
    text: Option<services::Telling>,
    heard: Instant,
    pinged: bool,
    next_tag: u32,
    /// The connection's number.
    cid: u16,
    /// What is read of each unit, to look ahead.
    readahead: Vec<(u64, Readahead)>,
    /// How much the initiator has had under way at once, lately.
    depth_bytes: u64,
    /// No more is read: the initiator left, or must.
    closing: bool,
    /// When what is under way must have ended, once it is closing.
    stop_at: Option<Instant>,
}

/// Serves one session until its initiator leaves, its target goes or the server stops.
pub(super) async fn run(
    begun: Begun,
    shared: Arc<Shared>,
    stopped: watch::Receiver<bool>,
) -> Result<(), Error> {
    // Unbounded by type; MAX_TASKS bounds what can be in it.
    let (sender, replies) = mpsc::unbounded_channel();
    let Begun { wire, agreed, held, stat_sn, cmd_sn, peer, local } = begun;
    let params = agreed.params;
    let mut session = Session {
        wire,
        out: Out::default(),
        digests: Digests { header: params.header_digest, data: params.data_digest },
        params,
        numbers: Numbers::new(stat_sn, cmd_sn, WINDOW),
        nexus: held.as_ref().map(Held::attach),
        held,
        pool: shared.pool.clone(),
        initiator: agreed.initiator.to_string(),
        peer,
        local,
        shared,
        sender,
        tasks: HashMap::new(),
        managing: 0,
        deferred: VecDeque::new(),
        unasked: VecDeque::new(),
        read_bytes: 0,
        write_bytes: 0,
        retry_at: None,
        incoming: None,
        text: None,
        heard: Instant::now(),
        pinged: false,
        next_tag: 0,
        cid: agreed.cid,
        readahead: Vec::new(),
        depth_bytes: 0,
        closing: false,
        stop_at: None,
    };
    let served = session.serve(replies, stopped).await;
    session.give_up().await;
    served
}

impl Session {
    async fn serve(
        &mut self,
        mut replies: mpsc::UnboundedReceiver<Done>,
        mut stopped: watch::Receiver<bool>,
    ) -> Result<(), Error> {
        let mut ending = self.held.as_ref().map(Held::ending);
        let mut close_at: Option<Instant> = None;
        let mut turns = 0;
        loop {
            while let Ok(done) = replies.try_recv() {
                self.take_done(done);
            }
            // An initiator that keeps us busy must not keep us from hearing this.
            self.closing |= *stopped.borrow() || stopped.has_changed().is_err();
            match ending.as_ref().map(|ending| *ending.borrow()) {
                Some(Ending::Now) => return Ok(()),
                Some(Ending::Soon) if close_at.is_none() => {
                    close_at = Some(Instant::now() + self.shared.config.end_grace);
                    self.ask_for_logout();
                }
                _ => {}
            }
            if close_at.is_some_and(|at| at <= Instant::now()) {
                return Ok(());
            }
            self.retry_parked();
            self.start_deferred();
            let progress = self.take_input()?;
            // Before the socket is written to: it may ping.
            let deadline = self.deadline()?;
            let sent = self.out.write(&mut self.wire.stream).map_err(lost)?;
            if self.closing && self.is_idle() && sent {
                return Ok(());
            }
            if progress && sent {
                turns += 1;
                if turns % TURN == 0 {
                    tokio::task::yield_now().await;
                }
                continue;
            }
            let wake = [Some(deadline), self.retry_at, close_at].into_iter().flatten().min();
            let interest = match (self.may_read(), sent) {
                (true, true) => Some(Interest::READABLE),
                (true, false) => Some(Interest::READABLE | Interest::WRITABLE),
                (false, false) => Some(Interest::WRITABLE),
                (false, true) => None,
            };
            tokio::select! {
                biased;
                Some(done) = replies.recv() => self.take_done(done),
                ready = self.wire.stream.ready(interest.unwrap_or(Interest::READABLE)),
                    if interest.is_some() => ready.map_err(lost)?,
                _ = stopped.changed(), if !self.closing => {}
                () = changed(&mut ending) => {}
                () = tokio::time::sleep_until(wake.unwrap_or(deadline)) => {}
            }
        }
    }

    /// Whether nothing is under way that will be answered.
    fn is_idle(&self) -> bool {
        let coming = |pending: &Pending| matches!(pending.stage, Stage::Away | Stage::Deferred(_));
        self.managing == 0 && !self.tasks.values().any(coming)
    }

    /// When a session without a word from its initiator is looked at again. Pings it when it is time.
    fn deadline(&mut self) -> Result<Instant, Error> {
        let config = &self.shared.config;
        if self.closing {
            let at = *self.stop_at.get_or_insert_with(|| Instant::now() + config.stop_grace);
            return match at <= Instant::now() {
                true => Err(Error::new(ErrorKind::Timeout, "commands did not end in time")),
                false => Ok(at),
            };
        }
        let (ping_at, end_at) =
            (self.heard + config.ping_after, self.heard + 2 * config.ping_after);
        let now = Instant::now();
        if now >= end_at {
            return Err(Error::new(ErrorKind::Timeout, "the initiator does not answer pings"));
        }
        if now >= ping_at && !self.pinged {
            self.pinged = true;
            self.ping();
        }
        Ok(if self.pinged { end_at } else { ping_at })
    }

    /// Whether there is room for more of the initiator's words.
    fn may_read(&self) -> bool {
        !self.closing && self.out.bytes() < MAX_OUT_BYTES
    }

    /// Reads and handles PDUs until there are no more, or a batch of responses is ready to be sent. `Ok(true)`: there
    /// may be more at once.
    fn take_input(&mut self) -> Result<bool, Error> {
        let before = self.out.bytes();
        while self.may_read() {
            if self.out.bytes() >= before + BATCH_BYTES {
                return Ok(true);
            }
            if !self.take_pdu()? {
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// Reads more; `false` if there is none now. The end of the stream is the end of the session.
    fn fill(&mut self) -> Result<bool, Error> {
        match self.wire.try_fill().map_err(lost)? {
            Filled::Some => Ok(true),
            Filled::Nothing => Ok(false),
            Filled::End => {
                self.closing = true;
                Ok(false)
            }
        }
    }

    fn take_done(&mut self, done: Done) {
        match done {
            Done::Read { tag, cut, residual, pdus } => {
                if self.finish(tag).is_some() {
                    self.send_read(tag, residual, cut, pdus);
                }
            }
            Done::Over { tag, outcome, data } => {
                self.out.recycle(data);
                if let Some(pending) = self.finish(tag) {
                    self.respond(tag, pending.expected, pending.wanted, outcome);
                }
            }
            Done::Aborted { tag, data } => {
                self.out.recycle(data);
                self.finish(tag);
            }
            Done::Later { tag, work, data, len } => {
                if let Some(pending) = self.tasks.get_mut(&tag) {
                    pending.stage = Stage::Parked(work, data, len);
                    self.retry_at.get_or_insert_with(|| Instant::now() + PAUSE);
                }
            }
            Done::Managed { tag, response } => {
                self.managing -= 1;
                self.sweep();
                self.send_managed(tag, response);
            }
        }
    }

    /// Takes a command off the list, and gives back what it counted for.
    fn finish(&mut self, tag: u32) -> Option<Pending> {
        let pending = self.tasks.remove(&tag)?;
        self.numbers.set_under_way(self.tasks.len());
        match pending.expected.write {
            true => self.write_bytes -= pending.charged,
            false => self.read_bytes -= pending.charged,
        }
        if let Some(nexus) = &self.nexus {
            pending.set.remove(nexus.id(), tag);
        }
        self.ask_for_data();
        Some(pending)
    }

    /// Removes commands that were aborted, by whomever, and that no thread has.
    fn sweep(&mut self) {
        let gone =
            |pending: &Pending| pending.task.is_aborted() && !matches!(pending.stage, Stage::Away);
        let tags: Vec<u32> =
            self.tasks.iter().filter(|(_, p)| gone(p)).map(|(tag, _)| *tag).collect();
        for tag in tags {
            self.finish(tag);
        }
        let tasks = &self.tasks;
        self.deferred.retain(|tag| tasks.contains_key(tag));
        self.unasked.retain(|tag| tasks.contains_key(tag));
    }

    /// Tries again what the device put off, when it is time.
    fn retry_parked(&mut self) {
        if self.closing || self.retry_at.is_none_or(|at| Instant::now() < at) {
            return;
        }
        self.retry_at = None;
        self.sweep();
        let parked = |pending: &Pending| matches!(pending.stage, Stage::Parked(..));
        let tags: Vec<u32> =
            self.tasks.iter().filter(|(_, p)| parked(p)).map(|(tag, _)| *tag).collect();
        for tag in tags {
            let Some(pending) = self.tasks.get_mut(&tag) else { continue };
            if let Stage::Parked(work, data, len) =
                std::mem::replace(&mut pending.stage, Stage::Away)
            {
                self.send_away(tag, work, data, len);
            }
        }
    }

    /// Gives a command with the first `len` bytes of `data` to the pool. It must be on the list.
    fn send_away(&mut self, tag: u32, work: Work, data: Vec<u8>, len: usize) {
        if let Some(ticket) = self.ticket(tag) {
            self.pool.spawn(move || ticket.work(work, data, len));
        }
    }

    fn ticket(&mut self, tag: u32) -> Option<Ticket> {
        let nexus = self.nexus.as_ref()?.id();
        let pending = self.tasks.get_mut(&tag)?;
        pending.stage = Stage::Away;
        let (task, set) = (pending.task.clone(), pending.set.clone());
        Some(Ticket { sender: self.sender.clone(), tag, nexus, task, set, told: false })
    }

    /// Starts reads that wait for room, as far as there is some.
    fn start_deferred(&mut self) {
        while let Some(tag) = self.deferred.front().copied() {
            let Some(Pending { stage: Stage::Deferred(reading), expected, .. }) =
                self.tasks.get(&tag)
            else {
                self.deferred.pop_front();
                continue;
            };
            if !self.has_room_to_read() {
                return;
            }
            let (reading, expected) = (reading.clone(), *expected);
            self.deferred.pop_front();
            self.read_in_pool(tag, expected, reading);
        }
    }

    /// The end: nothing more is told, and nothing of the session is in a device when this returns (but for what hangs
    /// in one).
    async fn give_up(&mut self) {
        let mut running = Vec::new();
        for (tag, pending) in self.tasks.drain() {
            if pending.task.abort() {
                running.push(pending.task);
            } else if let Some(nexus) = &self.nexus {
                pending.set.remove(nexus.id(), tag);
            }
        }
        let all = async {
            for task in running {
                task.ended().await;
            }
        };
        if tokio::time::timeout(self.shared.config.stop_grace, all).await.is_err() {
            tracing::warn!(initiator = self.initiator, "a command of an ended session hangs");
        }
    }
}

/// Returns when there is news of the session's end.
async fn changed(ending: &mut Option<watch::Receiver<Ending>>) {
    if let Some(ending) = ending
        && ending.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

fn lost(error: std::io::Error) -> Error {
    Error::io("the initiator left", error)
}
