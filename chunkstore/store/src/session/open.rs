//! The sessions of a repository: listing them, and fencing those that are dead.

use std::collections::{BTreeMap, BTreeSet};

use backstay_format::gc::Generation;
use backstay_format::session::{Fence, Owner, Session, SessionKind};
use backstay_format::{PointId, magic};
use jiff::Timestamp;

use crate::error::{Error, ErrorKind, Result};
use crate::key::{Folder, ObjectKey};
use crate::owner;
use crate::planted::{Fault, planted};
use crate::record;
use crate::repository::Inner;

/// An open session, as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its id; for a writer also the id of the point it may commit.
    pub id: PointId,
    /// Whether it writes or reads.
    pub kind: SessionKind,
    /// The newest collection it knew when it registered.
    pub epoch: Generation,
    /// The points it holds.
    pub holds: Vec<PointId>,
    /// The process behind it.
    pub owner: Owner,
    /// What it is for.
    pub purpose: String,
    /// When it registered, by its own clock.
    pub created: Timestamp,
    /// How often it gave a sign of life.
    pub beat: u32,
    /// Whether its process is known to be gone.
    pub dead: bool,
}

impl SessionInfo {
    fn new(s: Session, beat: u32) -> Self {
        Self {
            id: s.id,
            kind: s.kind,
            epoch: s.epoch,
            holds: s.holds,
            dead: owner::known_dead(&s.owner),
            owner: s.owner,
            purpose: s.purpose,
            created: s.created,
            beat,
        }
    }
}

/// Listings tried while sessions come and go.
const TRIES: usize = 8;

/// The open sessions, oldest first. A session is over when its point or its fence exists.
///
/// A record that cannot be read is an error: what that session holds is not known.
pub(crate) fn open_sessions(repo: &Inner) -> Result<Vec<SessionInfo>> {
    for _ in 0..TRIES {
        if let Some(sessions) = try_open_sessions(repo)? {
            return Ok(sessions);
        }
    }
    Err(Error::new(ErrorKind::Busy, "the sessions change too fast to be listed; try again"))
}

/// Nothing if a session ended between listing and reading, and left its last sign of life.
fn try_open_sessions(repo: &Inner) -> Result<Option<Vec<SessionInfo>>> {
    // The registration is the object with the lowest number, the last sign of life that with the
    // highest. What is held stands in any of them: see `Lease::hold_also`.
    let mut found: BTreeMap<PointId, Vec<u32>> = BTreeMap::new();
    for key in repo.storage().list(Folder::Sessions)? {
        if let ObjectKey::Session(id, beat) = key {
            found.entry(id).or_default().push(beat);
        }
    }
    let mut open = Vec::new();
    for (id, mut beats) in found {
        beats.sort_unstable();
        let (registered, beat) = (beats[0], beats[beats.len() - 1]);
        let Some(mut session) = read_record(repo, id, registered)? else {
            // It ended. One that registers anew does so under a number that was there before.
            if registered != beat {
                return Ok(None);
            }
            continue;
        };
        for &later in &beats[1..] {
            // A sign of life that is gone made way for the next, which holds no less.
            let Some(record) = read_record(repo, id, later)? else { continue };
            let known: BTreeSet<PointId> = session.holds.iter().copied().collect();
            session.holds.extend(record.holds.iter().filter(|p| !known.contains(p)));
        }
        if !is_over(repo, id)? {
            open.push(SessionInfo::new(session, beat));
        }
    }
    open.sort_by_key(|s| (s.created, s.id));
    Ok(Some(open))
}

/// One record of a session; nothing if it is gone.
fn read_record(repo: &Inner, id: PointId, beat: u32) -> Result<Option<Session>> {
    let key = ObjectKey::Session(id, beat);
    match record::get::<Session>(repo, key) {
        Ok(session) if session.id == id => Ok(Some(session)),
        Ok(session) => {
            let text = format!("{key} says it is session {}", session.id);
            Err(Error::new(ErrorKind::Damaged, text))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.context(format!(
            "{key} cannot be read, so it is not known what that session holds; \
             `backstay session fence {id}` gives it up"
        ))),
    }
}

fn is_over(repo: &Inner, id: PointId) -> Result<bool> {
    match repo.storage().size(ObjectKey::Point(id)) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Forbids a session to commit, and takes its registration away. Safe at any time: of its commit
/// and the fence the first stands. Tells whether the session had committed already.
pub(crate) fn fence(repo: &Inner, id: PointId, by: &str, reason: &str) -> Result<bool> {
    let fence =
        Fence { id, reason: reason.to_owned(), by: by.to_owned(), time: repo.entropy().now() };
    let committed = match record::put(repo, ObjectKey::Point(id), &fence) {
        Ok(()) => false,
        Err(e) if e.kind() == ErrorKind::Exists => match is_fence(repo, id) {
            Ok(fence) => !fence,
            // It was there a moment ago: committed, removed and buried since.
            Err(e) if e.kind() == ErrorKind::NotFound => true,
            Err(e) => return Err(e),
        },
        Err(e) => return Err(e),
    };
    remove_records(repo, id)?;
    Ok(committed)
}

/// Takes a session's registration away: only when it is over.
pub(crate) fn remove_records(repo: &Inner, id: PointId) -> Result<()> {
    for key in repo.storage().list(Folder::Sessions)? {
        if matches!(key, ObjectKey::Session(other, _) if other == id) {
            match repo.storage().delete(key) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Clears away the records of sessions that are over.
pub(crate) fn clear(repo: &Inner) -> Result<()> {
    let mut ids: Vec<PointId> = Vec::new();
    for key in repo.storage().list(Folder::Sessions)? {
        let ObjectKey::Session(id, _) = key else { continue };
        let forgotten = planted(Fault::OldSessionsForgotten) && looks_old(repo, key);
        if !ids.contains(&id) && (forgotten || is_over(repo, id)?) {
            ids.push(id);
        }
    }
    for id in ids {
        remove_records(repo, id)?;
    }
    Ok(())
}

/// What a program with locks would go by.
fn looks_old(repo: &Inner, key: ObjectKey) -> bool {
    let age = |s: Session| repo.entropy().now().duration_since(s.created);
    record::get(repo, key).is_ok_and(|s| age(s) > jiff::SignedDuration::from_mins(30))
}

/// Gives up the sessions whose process is known to be gone, and tells which writers were fenced.
pub(crate) fn retire_dead(repo: &Inner, by: &str) -> Result<Vec<SessionInfo>> {
    let mut fenced = Vec::new();
    for s in open_sessions(repo)?.into_iter().filter(|s| s.dead) {
        match s.kind {
            SessionKind::Writer => {
                fence(repo, s.id, by, "its process is gone")?;
                fenced.push(s);
            }
            SessionKind::Reader => remove_records(repo, s.id)?,
        }
    }
    Ok(fenced)
}

/// Whether the object in a point's place is a fence.
fn is_fence(repo: &Inner, id: PointId) -> Result<bool> {
    let mut head = [0u8; 8];
    repo.storage().read_at(ObjectKey::Point(id), 0, &mut head)?;
    Ok(head == magic::FENCE)
}
