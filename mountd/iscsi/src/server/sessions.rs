//! A target while it is served, and who is logged in to it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::access::{Rule, allowed};
use super::table::{Chap, TargetSpec};
use crate::error::Error;
use crate::scsi::{Device, DeviceSpec, InitiatorPort, Nexus, TargetPort};

/// Sessions of one target at once.
const MAX_SESSIONS: usize = 256;
/// How long a session must have lasted before another of the same name may take its place: an initiator that comes
/// again and again is slowed down, and so is one that pretends to be it.
const MIN_LIFE: Duration = Duration::from_millis(200);
/// How long a new session waits for the one whose place it takes.
const HANDOVER: Duration = Duration::from_secs(5);

/// A session of a target.
#[derive(Debug, Clone)]
pub struct Attached {
    /// The session's number (TSIH), by which it is kicked.
    pub session: u16,
    /// The initiator's name.
    pub initiator: String,
    /// Where it comes from.
    pub address: SocketAddr,
    /// Since when, by the wall clock.
    pub since: SystemTime,
    /// Whether it may write.
    pub writable: bool,
    /// Commands taken.
    pub requests: u64,
    /// Bytes it has read.
    pub read_bytes: u64,
    /// Bytes it has written.
    pub written_bytes: u64,
}

/// What a session is told about its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Nothing yet.
    No,
    /// Its target is going: ask the initiator to log out, and end a moment later.
    Soon,
    /// At once.
    Now,
}

/// What a session has done. Counts only grow.
#[derive(Debug, Default)]
pub(super) struct Usage {
    pub(super) requests: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
}

/// A session, as its target knows it. Its connection holds the guard [`Held`].
#[derive(Debug)]
struct Entry {
    number: u16,
    port: InitiatorPort,
    address: SocketAddr,
    since: SystemTime,
    began: Instant,
    writable: bool,
    usage: Usage,
    ending: watch::Sender<Ending>,
    gone: watch::Sender<bool>,
}

/// A session's place in its target; dropping it says that nothing of the session is left.
#[derive(Debug)]
pub(super) struct Held {
    target: Arc<Target>,
    entry: Arc<Entry>,
}

impl Held {
    pub(super) fn number(&self) -> u16 {
        self.entry.number
    }

    /// The target's name.
    pub(super) fn name(&self) -> &str {
        &self.target.name
    }

    pub(super) fn usage(&self) -> &Usage {
        &self.entry.usage
    }

    pub(super) fn ending(&self) -> watch::Receiver<Ending> {
        self.entry.ending.subscribe()
    }

    pub(super) fn device(&self) -> &Arc<Device> {
        &self.target.device
    }

    /// The initiator's way to the target's units.
    pub(super) fn attach(&self) -> Nexus {
        self.target.device.attach(self.entry.port.clone(), self.entry.writable)
    }

    /// Ends all other sessions of the target at once (a cold reset).
    pub(super) fn end_others(&self) {
        for entry in self.target.sessions.lock().iter() {
            if !Arc::ptr_eq(entry, &self.entry) {
                entry.ending.send_replace(Ending::Now);
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.target.sessions.lock().retain(|entry| !Arc::ptr_eq(entry, &self.entry));
        self.entry.gone.send_replace(true);
    }
}

/// Why a session was not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotBegun {
    /// The target has gone, or lets nobody in any more.
    Gone,
    /// There are too many.
    Full,
    /// The session whose place it takes does not end.
    Stuck,
}

/// Who asks for a session.
#[derive(Debug)]
pub(super) struct Applicant {
    pub(super) port: InitiatorPort,
    pub(super) address: SocketAddr,
    /// The number of the session it wants to continue; 0 for a new one.
    pub(super) continues: u16,
}

/// A target while it is served.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) alias: String,
    pub(super) chap: Option<Chap>,
    device: Arc<Device>,
    allow: Mutex<Vec<Rule>>,
    closed: AtomicBool,
    ended: AtomicBool,
    sessions: Mutex<Vec<Arc<Entry>>>,
}

impl Target {
    pub(super) fn new(spec: TargetSpec) -> Result<Self, Error> {
        let TargetSpec { name, alias, units, allow, chap } = spec;
        let port = TargetPort { name: name.clone() };
        Ok(Self {
            device: Device::new(DeviceSpec { port, units })?,
            name,
            alias,
            chap,
            allow: Mutex::new(allow),
            closed: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            sessions: Mutex::default(),
        })
    }

    /// Whether an initiator may write; `None` if it may not even know of the target.
    pub(super) fn allows(&self, initiator: &str, address: IpAddr) -> Option<bool> {
        allowed(&self.allow.lock(), initiator, address)
    }

    pub(super) fn set_allow(&self, allow: Vec<Rule>) {
        *self.allow.lock() = allow;
    }

    pub(super) fn set_closed(&self, closed: bool) {
        self.closed.store(closed, Ordering::Release);
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        for entry in self.sessions.lock().iter() {
            entry.ending.send_if_modified(|now| {
                let changed = *now == Ending::No;
                if changed {
                    *now = Ending::Soon;
                }
                changed
            });
        }
    }

    pub(super) fn has_sessions(&self) -> bool {
        !self.sessions.lock().is_empty()
    }

    pub(super) fn kick(&self, number: u16) -> bool {
        let sessions = self.sessions.lock();
        let found = sessions.iter().find(|entry| entry.number == number);
        found.map(|entry| entry.ending.send_replace(Ending::Now)).is_some()
    }

    pub(super) fn attached(&self) -> Vec<Attached> {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let view = |entry: &Arc<Entry>| Attached {
            session: entry.number,
            initiator: entry.port.name.clone(),
            address: entry.address,
            since: entry.since,
            writable: entry.writable,
            requests: count(&entry.usage.requests),
            read_bytes: count(&entry.usage.read_bytes),
            written_bytes: count(&entry.usage.written_bytes),
        };
        self.sessions.lock().iter().map(view).collect()
    }

    /// Whether there is a session of this number for the same initiator port.
    pub(super) fn has_session(&self, port: &InitiatorPort, number: u16) -> bool {
        let sessions = self.sessions.lock();
        sessions.iter().any(|entry| entry.number == number && entry.port == *port)
    }

    /// Begins a session. One of the same initiator port that is there is ended first (RFC 7143, 6.3.5, session
    /// reinstatement).
    pub(super) async fn begin(
        self: &Arc<Self>,
        new: Applicant,
        fresh: impl Fn() -> u16,
    ) -> Result<Held, NotBegun> {
        loop {
            let (began, mut gone) = match self.try_begin(&new, &fresh)? {
                Ok(held) => return Ok(held),
                Err(old) => old,
            };
            if let Some(wait) = MIN_LIFE.checked_sub(began.elapsed()) {
                tokio::time::sleep(wait).await;
            }
            self.end_port(&new.port);
            let left = tokio::time::timeout(HANDOVER, gone.wait_for(|gone| *gone)).await;
            left.map_err(|_| NotBegun::Stuck)?.map(drop).or(Ok::<(), NotBegun>(()))?;
        }
    }

    fn end_port(&self, port: &InitiatorPort) {
        for entry in self.sessions.lock().iter().filter(|entry| entry.port == *port) {
            entry.ending.send_replace(Ending::Now);
        }
    }

    /// The new session, or when the one in its place began, and the word that it has gone.
    #[allow(clippy::type_complexity, reason = "named where it is used")]
    fn try_begin(
        self: &Arc<Self>,
        new: &Applicant,
        fresh: &impl Fn() -> u16,
    ) -> Result<Result<Held, (Instant, watch::Receiver<bool>)>, NotBegun> {
        let writable = self.allows(&new.port.name, new.address.ip()).ok_or(NotBegun::Gone)?;
        let mut sessions = self.sessions.lock();
        // Asked with the list in hand: `end` marks first and then goes through the list.
        if self.ended.load(Ordering::Acquire) || self.closed.load(Ordering::Acquire) {
            return Err(NotBegun::Gone);
        }
        if let Some(old) = sessions.iter().find(|entry| entry.port == new.port) {
            return Ok(Err((old.began, old.gone.subscribe())));
        }
        if sessions.len() >= MAX_SESSIONS {
            return Err(NotBegun::Full);
        }
        let entry = Arc::new(Entry {
            number: if new.continues == 0 { fresh() } else { new.continues },
            port: new.port.clone(),
            address: new.address,
            since: SystemTime::now(),
            began: Instant::now(),
            writable,
            usage: Usage::default(),
            ending: watch::Sender::new(Ending::No),
            gone: watch::Sender::new(false),
        });
        sessions.push(entry.clone());
        Ok(Ok(Held { target: self.clone(), entry }))
    }
}
