//! Who may connect: caps in total and per address, room kept for newcomers, and handshakes that give
//! way, so that slow, silent and many clients cannot shut others out.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// How many may be connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once.
    pub max_connections: usize,
    /// How many of them are kept for addresses that have none yet.
    pub reserved_connections: usize,
    /// Connections at once of one IP address, or of one user of a Unix socket.
    pub max_per_address: usize,
    /// Connections in the handshake at once; the oldest of the largest crowd gives way to the newest.
    pub max_handshakes: usize,
}

/// Whom a connection counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// An IP address.
    Address(IpAddr),
    /// A user of this machine, by Unix socket.
    User(u32),
}

/// Who is connected, and who may be.
#[derive(Debug)]
pub struct Admission {
    state: Arc<Mutex<State>>,
    max: usize,
    reserved: usize,
    max_per_peer: usize,
    max_handshakes: usize,
}

#[derive(Debug, Default)]
struct State {
    // Both are bounded by the total, which `admit` keeps below its cap.
    per_peer: HashMap<Source, usize>,
    handshakes: VecDeque<Arc<Place>>,
    total: usize,
}

impl State {
    fn release(&mut self, peer: Source) {
        self.total -= 1;
        if let Some(own) = self.per_peer.get_mut(&peer) {
            *own -= 1;
            if *own == 0 {
                self.per_peer.remove(&peer);
            }
        }
    }

    /// The handshake that gives way: the oldest of the source that has most, so that one crowd pushes
    /// out its own and not others.
    fn weakest(&self) -> Option<Arc<Place>> {
        // Few by `max_handshakes`, so counting them over and over is cheap.
        let crowd = |peer| self.handshakes.iter().filter(|other| other.peer == peer).count();
        let most = self.handshakes.iter().map(|place| crowd(place.peer)).max()?;
        self.handshakes.iter().find(|place| crowd(place.peer) == most).cloned()
    }

    /// Takes a place off the list of handshakes; whether it was there.
    fn settle(&mut self, place: &Arc<Place>) -> bool {
        let before = self.handshakes.len();
        self.handshakes.retain(|other| !Arc::ptr_eq(other, place));
        self.handshakes.len() < before
    }
}

/// One connection's place.
#[derive(Debug)]
struct Place {
    peer: Source,
    evicted: Notify,
}

/// The right to be connected; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    state: Arc<Mutex<State>>,
    place: Arc<Place>,
    /// The handshake is over.
    chosen: AtomicBool,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Counters stay consistent: nothing between their updates can panic.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Admission {
    /// Nobody is connected yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            state: Arc::default(),
            max: limits.max_connections.max(1),
            reserved: limits.reserved_connections.min(limits.max_connections.saturating_sub(1)),
            max_per_peer: limits.max_per_address.max(1),
            max_handshakes: limits.max_handshakes.max(1),
        }
    }

    /// A permit, or `None` when there is no room for this peer. May push out the oldest handshake,
    /// whose place is free at once, however long its connection takes to end.
    pub fn admit(&self, peer: Source) -> Option<Permit> {
        let mut state = lock(&self.state);
        let full = state.handshakes.len() >= self.max_handshakes;
        let oldest = if full { state.weakest() } else { None };
        let freed = |counted: bool| usize::from(counted && oldest.is_some());
        let own = state.per_peer.get(&peer).copied().unwrap_or(0)
            - freed(oldest.as_ref().is_some_and(|oldest| oldest.peer == peer));
        let room = if own == 0 { self.max } else { self.max - self.reserved };
        // Nobody is pushed out for one who is not let in.
        if state.total - freed(true) >= room || own >= self.max_per_peer {
            return None;
        }
        if let Some(oldest) = oldest {
            state.settle(&oldest);
            state.release(oldest.peer);
            oldest.evicted.notify_one();
        }
        let place = Arc::new(Place { peer, evicted: Notify::new() });
        state.handshakes.push_back(place.clone());
        state.total += 1;
        *state.per_peer.entry(peer).or_default() += 1;
        Some(Permit { state: self.state.clone(), place, chosen: AtomicBool::new(false) })
    }
}

impl Permit {
    /// Returns when this handshake must give way.
    pub async fn evicted(&self) {
        self.place.evicted.notified().await;
    }

    /// The handshake is over: this connection gives way to nobody any more. `false` if it had to,
    /// just now.
    pub fn chosen(&self) -> bool {
        let kept = lock(&self.state).settle(&self.place);
        self.chosen.store(kept, Ordering::Release);
        kept
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        // One that was pushed out has given its place back already.
        if state.settle(&self.place) || self.chosen.load(Ordering::Acquire) {
            state.release(self.place.peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(max: usize, reserved: usize, per_peer: usize, handshakes: usize) -> Admission {
        Admission::new(Limits {
            max_connections: max,
            reserved_connections: reserved,
            max_per_address: per_peer,
            max_handshakes: handshakes,
        })
    }

    #[test]
    fn one_peer_cannot_take_every_place() {
        let admission = admission(10, 2, 6, 100);
        let greedy: Vec<_> = (0..20).filter_map(|_| admission.admit(Source::User(1))).collect();
        assert_eq!(greedy.len(), 6);
        let second: Vec<_> = (0..20).filter_map(|_| admission.admit(Source::User(2))).collect();
        assert_eq!(second.len(), 2, "two places are kept for newcomers");
        let newcomers: Vec<_> = (3..9).filter_map(|id| admission.admit(Source::User(id))).collect();
        assert_eq!(newcomers.len(), 2);
        drop(greedy);
        assert!(admission.admit(Source::User(2)).is_some(), "places come back");
    }

    #[test]
    fn a_crowd_pushes_out_its_own() {
        let admission = admission(100, 0, 100, 4);
        let alone = admission.admit(Source::User(1)).unwrap();
        let crowd: Vec<_> = (0..50).map(|_| admission.admit(Source::User(2)).unwrap()).collect();
        assert!(alone.chosen(), "pushed out by another's crowd");
        assert_eq!(crowd.iter().filter(|permit| permit.chosen()).count(), 3);
    }

    #[tokio::test]
    async fn the_oldest_handshake_gives_way() {
        let admission = admission(10, 0, 10, 2);
        let chosen = admission.admit(Source::User(1)).unwrap();
        assert!(chosen.chosen());
        let first = admission.admit(Source::User(1)).unwrap();
        let second = admission.admit(Source::User(1)).unwrap();
        let _third = admission.admit(Source::User(1)).unwrap();
        assert!(!first.chosen(), "it comes too late");
        let soon = std::time::Duration::from_millis(20);
        tokio::time::timeout(soon * 100, first.evicted()).await.unwrap();
        assert!(tokio::time::timeout(soon, second.evicted()).await.is_err());
        assert!(tokio::time::timeout(soon, chosen.evicted()).await.is_err());
        // The place of the one pushed out is given back once, not twice.
        drop(first);
        let more: Vec<_> = (2..20)
            .filter_map(|id| {
                let permit = admission.admit(Source::User(id))?;
                assert!(permit.chosen());
                Some(permit)
            })
            .collect();
        assert_eq!(more.len(), 10 - 2, "one chosen and the newest of two handshakes stay");
    }
}
