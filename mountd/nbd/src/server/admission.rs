//! Who may connect: caps in total and per address, room kept for newcomers, and handshakes that give
//! way, so that slow, silent and many clients cannot shut others out.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::ServerConfig;

/// Whom a connection counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Peer {
    /// An IP address.
    Address(IpAddr),
    /// A user of this machine, by Unix socket.
    User(u32),
}

#[derive(Debug)]
pub(super) struct Admission {
    state: Arc<Mutex<State>>,
    max: usize,
    reserved: usize,
    max_per_peer: usize,
    max_handshakes: usize,
}

#[derive(Debug, Default)]
struct State {
    // Both are bounded by the total, which `admit` keeps below its cap.
    per_peer: HashMap<Peer, usize>,
    handshakes: VecDeque<(u64, Arc<Notify>)>,
    total: usize,
    next_id: u64,
}

/// The right to be connected; given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    state: Arc<Mutex<State>>,
    peer: Peer,
    id: u64,
    evicted: Arc<Notify>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Counters stay consistent: nothing between their updates can panic.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Admission {
    pub(super) fn new(config: &ServerConfig) -> Self {
        Self {
            state: Arc::default(),
            max: config.max_connections.max(1),
            reserved: config.reserved_connections.min(config.max_connections.saturating_sub(1)),
            max_per_peer: config.max_per_address.max(1),
            max_handshakes: config.max_handshakes.max(1),
        }
    }

    /// A permit, or `None` when there is no room for this peer. May push out the oldest handshake.
    pub(super) fn admit(&self, peer: Peer) -> Option<Permit> {
        let mut state = lock(&self.state);
        let own = state.per_peer.get(&peer).copied().unwrap_or(0);
        let room = if own == 0 { self.max } else { self.max - self.reserved };
        if state.total >= room || own >= self.max_per_peer {
            return None;
        }
        if state.handshakes.len() >= self.max_handshakes
            && let Some((_, oldest)) = state.handshakes.pop_front()
        {
            oldest.notify_one();
        }
        let id = state.next_id;
        state.next_id += 1;
        let evicted = Arc::new(Notify::new());
        state.handshakes.push_back((id, evicted.clone()));
        state.total += 1;
        state.per_peer.insert(peer, own + 1);
        Some(Permit { state: self.state.clone(), peer, id, evicted })
    }
}

impl Permit {
    pub(super) fn peer(&self) -> Peer {
        self.peer
    }

    /// Returns when this handshake must give way.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// The handshake is over: this connection gives way to nobody any more.
    pub(super) fn chosen(&self) {
        lock(&self.state).handshakes.retain(|(id, _)| *id != self.id);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.handshakes.retain(|(id, _)| *id != self.id);
        state.total -= 1;
        if let Some(own) = state.per_peer.get_mut(&self.peer) {
            *own -= 1;
            if *own == 0 {
                state.per_peer.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(max: usize, reserved: usize, per_peer: usize, handshakes: usize) -> Admission {
        Admission::new(&ServerConfig {
            max_connections: max,
            reserved_connections: reserved,
            max_per_address: per_peer,
            max_handshakes: handshakes,
            ..ServerConfig::default()
        })
    }

    #[test]
    fn one_peer_cannot_take_every_place() {
        let admission = admission(10, 2, 6, 100);
        let greedy: Vec<_> = (0..20).filter_map(|_| admission.admit(Peer::User(1))).collect();
        assert_eq!(greedy.len(), 6);
        let second: Vec<_> = (0..20).filter_map(|_| admission.admit(Peer::User(2))).collect();
        assert_eq!(second.len(), 2, "two places are kept for newcomers");
        let newcomers: Vec<_> = (3..9).filter_map(|id| admission.admit(Peer::User(id))).collect();
        assert_eq!(newcomers.len(), 2);
        drop(greedy);
        assert!(admission.admit(Peer::User(2)).is_some(), "places come back");
    }

    #[tokio::test]
    async fn the_oldest_handshake_gives_way() {
        let admission = admission(10, 0, 10, 2);
        let chosen = admission.admit(Peer::User(1)).unwrap();
        chosen.chosen();
        let first = admission.admit(Peer::User(1)).unwrap();
        let second = admission.admit(Peer::User(1)).unwrap();
        let _third = admission.admit(Peer::User(1)).unwrap();
        first.evicted().await;
        let soon = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, second.evicted()).await.is_err());
        assert!(tokio::time::timeout(soon, chosen.evicted()).await.is_err());
    }
}
