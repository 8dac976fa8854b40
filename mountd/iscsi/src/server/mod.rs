//! An iSCSI target over TCP, for any [`backstay_blockdev::BlockDevice`].
//!
//! A connection is one task on one I/O thread, and a session has one connection. It reads PDUs in large gulps, answers
//! what the device has at hand on the spot, and writes many responses with one call. What may block goes to a pool of
//! threads shared by all. The socket is read whatever the device does, so that pings and task management are answered
//! ahead of I/O: what is under way is bounded by the command window and by how much data is asked for.

mod access;
mod connection;
mod handle;
mod session;
mod sessions;
mod table;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use backstay_serve::{Admission, Connection, Limits, Listener, Pool, accept_all};
use tokio::runtime::Handle;
use tokio::sync::watch;

pub use access::Rule;
pub use handle::ServerHandle;
pub use sessions::Attached;
use sessions::Target;
pub use table::{Chap, ChapSide, Removed, TargetSpec, TargetTable, UnitSpec};

/// The bounds of a server.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// From accepting a connection until it must be logged in.
    pub login_timeout: Duration,
    /// How long a session may be without a word from its initiator until it is pinged, and then until it is ended.
    pub ping_after: Duration,
    /// How long commands under way may take to be answered when the server stops or a session ends.
    pub stop_grace: Duration,
    /// How long initiators of a target that goes may take to log out.
    pub end_grace: Duration,
    /// Connections at once.
    pub max_connections: usize,
    /// How many of them are kept for addresses that have none yet.
    pub reserved_connections: usize,
    /// Connections at once of one IP address.
    pub max_per_address: usize,
    /// Connections in login at once; the oldest of the largest crowd gives way to the newest.
    pub max_logins: usize,
    /// Bytes of reads, and of writes, that are under way in one session at once. One command more may be.
    pub max_inflight_bytes: u64,
    /// Threads that serve sockets. More do not help one session.
    pub io_threads: usize,
    /// Threads for what may block: reads that miss the cache, writes, flushes.
    pub worker_threads: usize,
    /// Only this target is served, and no other is known here.
    pub only: Option<String>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            login_timeout: Duration::from_secs(15),
            ping_after: Duration::from_secs(30),
            stop_grace: Duration::from_secs(5),
            end_grace: Duration::from_secs(3),
            max_connections: 256,
            reserved_connections: 16,
            max_per_address: 128,
            max_logins: 32,
            max_inflight_bytes: 32 << 20,
            io_threads: cores.clamp(1, 8),
            // Blocked threads are cheap and a backing store far away wants many requests at once.
            worker_threads: (4 * cores).clamp(8, 64),
            only: None,
        }
    }
}

impl ServerConfig {
    fn limits(&self) -> Limits {
        Limits {
            max_connections: self.max_connections,
            reserved_connections: self.reserved_connections,
            max_per_address: self.max_per_address,
            max_handshakes: self.max_logins,
        }
    }
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    targets: Arc<TargetTable>,
    /// Where initiators may come in, as bound.
    portals: Arc<[SocketAddr]>,
    config: ServerConfig,
    pool: Arc<Pool>,
}

impl Shared {
    /// A target that is served here.
    fn target(&self, name: &str) -> Option<Arc<Target>> {
        let here = self.config.only.as_deref().is_none_or(|only| only == name);
        if here { self.targets.get(name) } else { None }
    }

    /// The targets here that an initiator may know of.
    fn visible(&self, initiator: &str, address: IpAddr) -> Vec<Arc<Target>> {
        let mut targets = self.targets.visible(initiator, address);
        targets.retain(|target| self.config.only.as_ref().is_none_or(|only| *only == target.name));
        targets
    }
}

async fn serve_on(
    listeners: Vec<Listener>,
    targets: Arc<TargetTable>,
    portals: Arc<[SocketAddr]>,
    config: ServerConfig,
    stopped: watch::Receiver<bool>,
    runtimes: Vec<Handle>,
) -> Result<(), backstay_serve::Error> {
    let pool = Pool::start("iscsi", config.worker_threads)?;
    let grace = config.stop_grace;
    let admission = Arc::new(Admission::new(config.limits()));
    let shared = Arc::new(Shared { targets, portals, config, pool: pool.clone() });
    let stop = stopped.clone();
    // Each ends within its grace; twice that is for a connection that is stuck all the same.
    let serve = move |new: Connection| connection::run(shared.clone(), new, stop.clone());
    let result = accept_all(listeners, admission, stopped, runtimes, grace * 2, serve).await;
    pool.stop(grace);
    result
}
