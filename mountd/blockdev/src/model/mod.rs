//! Random operations on a device, beside an oracle that knows for each byte what it may be; like `fsx`
//! for file systems.
//!
//! A run has three parts: one thread on the whole device (with reopening and power cuts, where the
//! [`Subject`] can do that), several threads on a part each, and several threads on the same few bytes
//! at once. What calls that overlap in time may leave is decided byte by byte: the last of each thread's
//! changes may have won.

mod oracle;
mod plan;
mod shared;

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use self::oracle::{AFTER_TRIM, Oracle, ZERO, check_presence, value, written};
use self::plan::{Kind, Plan, Step};
use crate::device::BlockDevice;
use crate::error::{Error, ErrorKind};

/// The largest device: the oracle takes ten bytes of memory for each of it.
const LARGEST_BYTES: u64 = 64 << 20;
/// The device is read as a whole in pieces of this size.
const PIECE_BYTES: u64 = 256 << 10;
/// Steps that are remembered, to tell what was done to a byte that is wrong.
const REMEMBERED: usize = 20_000;
/// Of them are told at most this many.
const TOLD: usize = 12;

/// How a [`Subject`] can be opened again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reopens {
    /// Not at all.
    Never,
    /// Closing it keeps every write, flushed or not.
    Clean,
    /// As `Clean`, and [`Subject::cut`] takes the power away.
    PowerCut,
}

/// What the model runs on: a way to get at a device. Any closure that answers a device is one that is
/// never opened again.
pub trait Subject: Sync {
    /// Opens the device. The model drops the one before first.
    fn open(&self) -> Result<Arc<dyn BlockDevice>, Error>;

    /// What the device holds at the start, if that is known; if not, what it reads as is believed.
    fn content(&self) -> Option<Vec<u8>> {
        None
    }

    /// How it can be opened again.
    fn reopens(&self) -> Reopens {
        Reopens::Never
    }

    /// Takes the power away: what was not flushed may be lost. Called while the device is open, and
    /// nothing is done to it afterwards but dropping it.
    fn cut(&self) {}
}

impl<F: Fn() -> Result<Arc<dyn BlockDevice>, Error> + Sync> Subject for F {
    fn open(&self) -> Result<Arc<dyn BlockDevice>, Error> {
        self()
    }
}

/// How long and how wild a run is.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Decides everything but what the threads do to each other.
    pub seed: u64,
    /// Operations in all.
    pub operations: u64,
    /// Threads of the second and third part; with one, these are left out.
    pub threads: usize,
    /// The longest operation, in bytes.
    pub longest_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { seed: 1, operations: 20_000, threads: 4, longest_bytes: 64 << 10 }
    }
}

/// Where a device broke the contract.
#[derive(Debug)]
pub struct Failure {
    /// The seed of the run.
    pub seed: u64,
    /// The byte that is wrong, if it is about one.
    pub at: Option<u64>,
    /// What is wrong, and in which step.
    pub what: String,
    /// The last steps that had to do with the byte, oldest first.
    pub history: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {}", self.seed, self.what)?;
        self.history.iter().try_for_each(|step| write!(f, "\n  {step}"))
    }
}

impl std::error::Error for Failure {}

/// What is wrong, before it has its history.
#[derive(Debug)]
struct Wrong {
    at: Option<u64>,
    what: String,
}

impl From<(u64, String)> for Wrong {
    fn from((at, what): (u64, String)) -> Self {
        Self { at: Some(at), what }
    }
}

/// The last steps.
#[derive(Debug, Default)]
struct History(VecDeque<Step>);

impl History {
    fn push(&mut self, step: Step) {
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(step);
    }

    fn failure(&self, seed: u64, wrong: Wrong) -> Failure {
        let touching = self.0.iter().filter(|step| wrong.at.is_none_or(|at| step.touches(at)));
        let mut history: Vec<String> =
            touching.rev().take(TOLD).map(|step| step.to_string()).collect();
        history.reverse();
        Failure { seed, at: wrong.at, what: wrong.what, history }
    }
}

/// Runs the model on a device. Fails with the first thing that is wrong: a byte that cannot be, an
/// error where none was due, a panic of the device.
pub fn run(subject: &dyn Subject, config: Config) -> Result<(), Failure> {
    let early = |what: String| Failure { seed: config.seed, at: None, what, history: Vec::new() };
    let device = subject.open().map_err(|e| early(format!("cannot open: {e}")))?;
    let size = device.geometry().size_bytes;
    if size > LARGEST_BYTES {
        return Err(early(format!("a device of {size} bytes is too large for the model")));
    }
    let mut initial = vec![0; size as usize];
    whole(&*device, &mut initial).map_err(|e| early(format!("cannot read the device: {e}")))?;
    if let Some(content) = subject.content()
        && content != initial
    {
        return Err(early("the device does not hold what it should at the start".to_owned()));
    }
    let caps = device.caps();
    let mut one = One {
        subject,
        device: Some(device),
        oracle: Oracle::new(initial),
        plan: Plan::new(config.seed, caps, config.longest_bytes),
        history: History::default(),
    };
    let parts = if config.threads > 1 { 2 } else { 1 };
    let result = one.run(config.operations / parts, true);
    result.map_err(|wrong| one.history.failure(config.seed, wrong))?;
    if config.threads > 1 {
        disjoint(&mut one, config)?;
        shared::run(&mut one, config)?;
    }
    let end = one.check_all();
    end.map_err(|wrong| one.history.failure(config.seed, wrong))
}

/// Reads all of a device.
fn whole(device: &dyn BlockDevice, buf: &mut [u8]) -> Result<(), Error> {
    let pieces = buf.chunks_mut(PIECE_BYTES as usize);
    (0..).step_by(PIECE_BYTES as usize).zip(pieces).try_for_each(|(at, p)| device.read_at(at, p))
}

/// The second part: each thread has a part of the device for itself.
fn disjoint(one: &mut One<'_>, config: Config) -> Result<(), Failure> {
    let Some(device) = one.device.clone() else { return Ok(()) };
    let size = one.oracle.range().end;
    let threads = config.threads as u64;
    let mut parts = Vec::new();
    for thread in (0..threads).rev() {
        // Borders at odd places: neighbours share blocks.
        let border = (size * thread / threads) | 1;
        let border = if thread == 0 { 0 } else { border.min(size) };
        let mut plan =
            Plan::new(config.seed ^ (thread + 1) << 40, one.plan.caps, config.longest_bytes);
        plan.thread = thread as usize + 1;
        plan.stride = threads;
        plan.next = one.plan.next + thread;
        let oracle = one.oracle.split_off(border);
        let history = History::default();
        parts.push(One {
            subject: one.subject,
            device: Some(device.clone()),
            oracle,
            plan,
            history,
        });
    }
    parts.reverse();
    let each = config.operations / 4 / threads;
    let results: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> =
            parts.iter_mut().map(|part| scope.spawn(move || part.run(each, false))).collect();
        runs.into_iter().map(|run| run.join()).collect()
    });
    for (part, result) in parts.into_iter().zip(results) {
        one.plan.next = one.plan.next.max(part.plan.next);
        let result = result.unwrap_or_else(|_| {
            Err(Wrong { at: None, what: "a thread of the model panicked".to_owned() })
        });
        result.map_err(|wrong| part.history.failure(config.seed, wrong))?;
        one.oracle.join(part.oracle);
        part.history.0.into_iter().for_each(|step| one.history.push(step));
    }
    Ok(())
}

/// One thread on a part of a device that nobody else changes.
struct One<'s> {
    subject: &'s dyn Subject,
    /// `None` only while it is opened again.
    device: Option<Arc<dyn BlockDevice>>,
    oracle: Oracle,
    plan: Plan,
    history: History,
}

impl One<'_> {
    fn run(&mut self, operations: u64, reopen: bool) -> Result<(), Wrong> {
        let range = self.oracle.range();
        let reopens = if reopen { self.subject.reopens() } else { Reopens::Never };
        for _ in 0..operations {
            let mut step = self.plan.step(&range);
            if reopens != Reopens::Never && self.plan.numbers.below(200) == 0 {
                let cut = reopens == Reopens::PowerCut && self.plan.numbers.below(2) == 0;
                step.kind = if cut { Kind::PowerCut } else { Kind::Reopen };
            }
            self.history.push(step);
            let result = match step.kind {
                Kind::Reopen | Kind::PowerCut => self.reopen(step.kind == Kind::PowerCut),
                _ => self.step(&step),
            };
            result.map_err(|wrong| Wrong { what: format!("{step}: {}", wrong.what), ..wrong })?;
        }
        Ok(())
    }

    fn reopen(&mut self, cut: bool) -> Result<(), Wrong> {
        if cut {
            self.subject.cut();
            self.oracle.power_cut();
        }
        self.device = None;
        let device = self
            .subject
            .open()
            .map_err(|e| Wrong { at: None, what: format!("cannot be opened again: {e}") })?;
        self.device = Some(device);
        self.check_all()
    }

    /// Everything must be what it may be; and stay what it is.
    fn check_all(&mut self) -> Result<(), Wrong> {
        let Some(device) = &self.device else { return Ok(()) };
        let range = self.oracle.range();
        let mut at = range.start;
        while at < range.end {
            let mut seen = vec![0xa5; (range.end - at).min(PIECE_BYTES) as usize];
            guarded(|| device.read_at(at, &mut seen))?;
            self.oracle.check(at, &seen, self.oracle.now(at, seen.len() as u64))?;
            self.oracle.settle(at, &seen);
            at += seen.len() as u64;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), Wrong> {
        let Some(device) = self.device.clone() else { return Ok(()) };
        let (offset, len) = (step.offset, step.len);
        match (execute(&*device, step)?, step.kind) {
            (Answer::Bytes(seen), _) => {
                self.oracle.check(offset, &seen, self.oracle.now(offset, len))?;
                self.oracle.settle(offset, &seen);
            }
            (Answer::Extents(list), Kind::Extents(max)) => {
                self.oracle.check_extents((offset, len, max), &list)?;
            }
            (Answer::Done(sure), Kind::Write(tag, flags)) => {
                self.oracle.change(offset, len, (flags.fua, sure), |at| written(tag, at));
            }
            (Answer::Done(sure), Kind::Zeroes(flags)) => {
                self.oracle.change(offset, len, (flags.fua, sure), |_| ZERO);
            }
            (Answer::Done(sure), Kind::Trim(flags)) => {
                self.oracle.change(offset, len, (flags.fua, sure), |_| AFTER_TRIM);
            }
            (Answer::Done(true), Kind::Flush) => self.oracle.flushed(),
            _ => {}
        }
        Ok(())
    }
}

/// What a step brought.
enum Answer {
    Bytes(Vec<u8>),
    Extents(Vec<crate::device::Extent>),
    /// `false`: refused, as it may be; perhaps a part of it was done.
    Done(bool),
}

/// Does a step, and judges what can be judged without an oracle.
fn execute(device: &dyn BlockDevice, step: &Step) -> Result<Answer, Wrong> {
    let (offset, len) = (step.offset, step.len);
    let done = |result: Result<(), Wrong>| result.map(|()| Answer::Done(true));
    match step.kind {
        Kind::Read => {
            let mut buf = vec![0xa5; len as usize];
            guarded(|| device.read_at(offset, &mut buf))?;
            Ok(Answer::Bytes(buf))
        }
        Kind::TryRead => {
            let mut buf = vec![0x5a; len as usize];
            let answered = guarded(|| device.try_read_at(offset, &mut buf))?;
            Ok(if answered { Answer::Bytes(buf) } else { Answer::Done(true) })
        }
        Kind::Write(tag, flags) => {
            let data: Vec<u8> = (offset..offset + len).map(|at| value(tag, at)).collect();
            done(guarded(|| device.write_at(offset, &data, flags)))
        }
        Kind::Zeroes(flags) => {
            let mut refused = false;
            let result = guarded(|| match device.write_zeroes(offset, len, flags) {
                Err(e) if flags.fast_zero && e.kind() == ErrorKind::Unsupported => {
                    refused = true;
                    Ok(())
                }
                result => result,
            });
            result.map(|()| Answer::Done(!refused))
        }
        Kind::Trim(flags) => done(guarded(|| device.trim(offset, len, flags))),
        Kind::Flush => done(guarded(|| device.flush())),
        Kind::Extents(max) => guarded(|| device.extents(offset, len, max)).map(Answer::Extents),
        Kind::Presence(max) => {
            let list = guarded(|| device.presence(offset, len, max))?;
            check_presence((offset, len, max), &list)?;
            Ok(Answer::Done(true))
        }
        Kind::Prefetch => done(guarded(|| {
            device.prefetch(offset, len);
            Ok(())
        })),
        Kind::Reopen | Kind::PowerCut => Ok(Answer::Done(true)),
    }
}

/// An error or a panic of the device is what is wrong.
fn guarded<T>(call: impl FnOnce() -> Result<T, Error>) -> Result<T, Wrong> {
    let wrong = |what: String| Wrong { at: None, what };
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(wrong(format!("the device failed ({:?}): {error}", error.kind()))),
        Err(_) => Err(wrong("the device panicked".to_owned())),
    }
}
