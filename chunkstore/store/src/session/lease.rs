//! The registration of a session (FORMAT.md, Sessions): made before anything is deduplicated or
//! read, renewed as a sign of life, taken away at the end.

use std::sync::{Arc, Weak};
use std::time::Duration;

use backstay_format::PointId;
use backstay_format::gc::Generation;
use backstay_format::session::{Fence, Session, SessionKind};
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::index::PackSet;
use crate::key::ObjectKey;
use crate::planted::{Fault, planted};
use crate::record;
use crate::repository::Inner;

use super::generations::{condemned, newest};

/// How often a session gives a sign of life. A collection asks for half an hour of silence before
/// it takes a session for dead.
const BEAT_EVERY: Duration = Duration::from_secs(60);
/// Registrations tried while collections begin one after the other.
const TRIES: usize = 16;

/// A registered session. Dropped, it is taken away.
#[derive(Debug)]
pub(crate) struct Lease {
    repo: Arc<Inner>,
    record: Session,
    /// The number of the registration. That object stays as long as the session: a listing of a
    /// directory may miss names that come and go, never one that stays.
    registered: u32,
    state: Mutex<State>,
    /// Dropped to end the thread that gives signs of life.
    stop: Mutex<Option<Sender<()>>>,
}

#[derive(Debug)]
struct State {
    /// The last sign of life; the registration's own number at first.
    beat: u32,
    /// Records that stay as long as the session, besides the registration: each names all points
    /// that are held since.
    kept: Vec<u32>,
    /// Points held since the registration.
    held_since: Vec<PointId>,
    /// A record of which it is not known whether it is there.
    unsure: Option<u32>,
    /// Why the session is not ours any more.
    lost: Option<String>,
    /// The record must stay: nobody knows whether the session committed.
    keep: bool,
}

/// What a session is registered for.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) id: PointId,
    pub(crate) kind: SessionKind,
    pub(crate) holds: Vec<PointId>,
    pub(crate) purpose: String,
}

impl Lease {
    /// Registers, and tells which packs were condemned then.
    ///
    /// The session is visible before the newest generation is read for good: so a collection that
    /// begins later finds the session, and one that began earlier is known to it.
    pub(crate) fn register(
        repo: &Arc<Inner>,
        request: Request,
    ) -> Result<(Arc<Self>, Arc<PackSet>)> {
        let mut record = Session {
            id: request.id,
            kind: request.kind,
            epoch: Generation::default(),
            holds: request.holds,
            owner: repo.owner().clone(),
            purpose: request.purpose,
            created: repo.entropy().now(),
        };
        let mut known = newest(repo)?;
        for beat in 0..TRIES as u32 {
            record.epoch = known.generation;
            let key = ObjectKey::Session(record.id, beat);
            if let Err(e) = record::put(repo, key, &record) {
                // It may be there all the same.
                let _ = repo.storage().delete(key);
                return Err(e.context("the session cannot be registered"));
            }
            let again = if planted(Fault::RegisteredOnce) { Ok(known) } else { newest(repo) };
            let avoid = again.map(|n| (n, condemned(repo, n)));
            match avoid {
                Ok((n, Ok(set))) if n.generation == known.generation => {
                    return Ok((Self::start(repo, record, beat), set));
                }
                // Another collection began meanwhile, or the one we saw is over and cleared away.
                Ok((n, Ok(_))) => known = n,
                Ok((n, Err(e))) if e.kind() == ErrorKind::NotFound => known = n,
                Ok((_, Err(e))) | Err(e) => {
                    let _ = repo.storage().delete(key);
                    return Err(e);
                }
            }
            // Whoever finds it in between finds an epoch that is too old, which is safe.
            match repo.storage().delete(key) {
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    return Err(fenced(&record, &why_taken(repo, record.id)));
                }
                other => other?,
            }
        }
        Err(Error::new(ErrorKind::Busy, "one collection follows the other; try again later"))
    }

    fn start(repo: &Arc<Inner>, record: Session, beat: u32) -> Arc<Self> {
        let state = Mutex::new(State {
            beat,
            kept: Vec::new(),
            held_since: Vec::new(),
            unsure: None,
            lost: None,
            keep: false,
        });
        let stop = Mutex::default();
        let lease = Arc::new(Self { repo: repo.clone(), record, registered: beat, state, stop });
        if repo.background() {
            let (stop, stopped) = bounded::<()>(0);
            *lease.stop.lock() = Some(stop);
            let weak = Arc::downgrade(&lease);
            // Without the thread the session gives no signs of life: it may be fenced, and says so.
            let _ = std::thread::Builder::new().name("session-beat".into()).spawn(move || {
                while stopped.recv_timeout(BEAT_EVERY) == Err(RecvTimeoutError::Timeout) {
                    let Some(lease) = Weak::upgrade(&weak) else { return };
                    if let Err(error) = lease.beat() {
                        tracing::warn!(%error, "a session gave no sign of life");
                    }
                }
            });
        }
        lease
    }

    pub(crate) fn id(&self) -> PointId {
        self.record.id
    }

    /// Gives a sign of life. `Fenced` if somebody took the session away.
    pub(crate) fn beat(&self) -> Result<()> {
        let mut state = self.state.lock();
        self.write_next(&mut state)?;
        self.check_registered(&mut state)
    }

    /// Holds `point` from here on, under the session's own name, so that whoever gives the session
    /// up gives up both. Whether the point is removed is for the caller to ask next.
    pub(crate) fn hold_also(&self, point: PointId) -> Result<()> {
        let mut state = self.state.lock();
        state.held_since.push(point);
        self.write_next(&mut state)?;
        let beat = state.beat;
        state.kept.push(beat);
        self.check_registered(&mut state)
    }

    /// Writes the record under the next number, and takes the last sign of life away.
    fn write_next(&self, state: &mut State) -> Result<()> {
        self.check(state)?;
        let (old, new) = (state.beat, state.beat.saturating_add(1));
        let mut record = self.record.clone();
        record.holds.extend(&state.held_since);
        if state.unsure == Some(new) {
            // Of a call whose answer was lost; what it held may be less than what is held now.
            self.delete(new)?;
        }
        state.unsure = Some(new);
        record::put(&self.repo, self.key(new), &record)?;
        (state.beat, state.unsure) = (new, None);
        if old != self.registered && !state.kept.contains(&old) {
            self.delete(old)?;
        }
        Ok(())
    }

    fn check_registered(&self, state: &mut State) -> Result<()> {
        match self.repo.storage().size(self.key(self.registered)) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                state.lost = Some(why_taken(&self.repo, self.record.id));
                for beat in state.beats() {
                    let _ = self.delete(beat);
                }
                self.check(state)
            }
            Err(e) => Err(e),
        }
    }

    fn key(&self, beat: u32) -> ObjectKey {
        ObjectKey::Session(self.record.id, beat)
    }

    fn delete(&self, beat: u32) -> Result<()> {
        match self.repo.storage().delete(self.key(beat)) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// `Fenced` if the session is known not to be ours any more.
    pub(crate) fn check_ours(&self) -> Result<()> {
        self.check(&self.state.lock())
    }

    fn check(&self, state: &State) -> Result<()> {
        match &state.lost {
            None => Ok(()),
            Some(why) => Err(self.fenced(why)),
        }
    }

    /// Leaves the record where it is: it is not known whether the session committed.
    pub(crate) fn abandon(&self) {
        self.state.lock().keep = true;
    }

    /// Whether a collection ended although the session, which is older, was open: then it did not
    /// see the session, and may have deleted what the session refers to.
    pub(crate) fn check_not_overtaken(&self) -> Result<()> {
        let next = self.record.epoch.next();
        match self.repo.storage().size(ObjectKey::GcEnd(next)) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
            Ok(_) if planted(Fault::OvertakenIgnored) => Ok(()),
            Ok(_) => {
                let words = fence_words(&self.repo, self.record.id);
                let why =
                    words.unwrap_or_else(|| "a collection ended without waiting for it".into());
                Err(self.fenced(&why))
            }
        }
    }

    /// What a writer hears that was taken for dead.
    pub(crate) fn fenced(&self, why: &str) -> Error {
        fenced(&self.record, why)
    }
}

/// Why a session's registration is gone.
fn why_taken(repo: &Inner, id: PointId) -> String {
    fence_words(repo, id).unwrap_or_else(|| "somebody took it for dead".into())
}

/// What a session's fence says, if there is one that can be read.
fn fence_words(repo: &Inner, id: PointId) -> Option<String> {
    let fence = record::get::<Fence>(repo, ObjectKey::Point(id)).ok()?;
    Some(format!("{} ({})", fence.reason, fence.by))
}

fn fenced(session: &Session, why: &str) -> Error {
    let (id, purpose) = (session.id.short(), &session.purpose);
    let text = format!(
        "session {id} ({purpose}) may not commit any more: {why}; nothing of others is lost, \
         run it again"
    );
    Error::new(ErrorKind::Fenced, text)
}

impl Lease {
    /// Takes the session away.
    pub(crate) fn end(&self) {
        *self.stop.lock() = None;
        let state = self.state.lock();
        if state.keep || state.lost.is_some() {
            return;
        }
        // The registration last: a beat alone would look like a session that lives.
        let beats = state.beats().into_iter().filter(|b| *b != self.registered);
        let gone = beats.chain([self.registered]).try_for_each(|b| self.delete(b));
        if let Err(error) = gone {
            tracing::warn!(%error, "a session could not be taken away; a collection will do it");
        }
    }
}

impl State {
    /// The numbers of all records there may be, but the registration's.
    fn beats(&self) -> Vec<u32> {
        let mut beats = self.kept.clone();
        beats.extend(self.unsure);
        beats.push(self.beat);
        beats.sort_unstable();
        beats.dedup();
        beats
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.end();
    }
}
