//! An NBD server over any [`backstay_blockdev::BlockDevice`].
//!
//! A connection is one task on one I/O thread. It reads requests in large gulps, answers what the
//! device has at hand (`try_read_at`) on the spot, and writes many replies with one call. What may
//! block goes to a pool of threads shared by all connections, and is answered out of order.

mod access;
mod der;
mod handle;
mod handshake;
mod job;
pub(crate) mod negotiation;
mod opened;
mod peer;
mod stream;
mod table;
mod tls;
mod transmission;

use std::sync::Arc;
use std::time::Duration;

use backstay_serve::{Admission, Connection, Limits, Pool, Wire, accept_all, stop_asked};
pub use backstay_serve::{BoundAddress, IpPrefix, Listen, Listener, Peer};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::error::Error;
pub use access::{Access, Permission, Who};
pub use handle::ServerHandle;
use negotiation::TlsPolicy;
pub use opened::{End, Ended, Opened, Usage};
pub use peer::{ClientCertificate, ClientInfo};
use stream::Stream;
pub use table::{Attached, ExportSpec, ExportTable, Opener, Removed, Source};
pub use tls::{ClientCertificates, Tls, TlsConfig, TlsFiles};

/// The NBD URI of an export of a server at `address`; `""` is the default export. `tls`: what goes over TCP is
/// encrypted.
pub fn export_uri(address: &BoundAddress, export: &str, tls: bool) -> String {
    let export = crate::client::percent_encode(export);
    match address {
        BoundAddress::Tcp(address) if tls => format!("nbds://{address}/{export}"),
        BoundAddress::Tcp(address) => format!("nbd://{address}/{export}"),
        BoundAddress::Unix(path) => {
            let path = crate::client::percent_encode(&path.to_string_lossy());
            format!("nbd+unix:///{export}?socket={path}")
        }
    }
}

/// What is known of an export without opening it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportInfo {
    /// Its name, at most 4096 bytes of UTF-8 without NUL; longer ones are not listed.
    pub name: String,
    /// A line for people.
    pub description: String,
}

/// Why an export was not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is none of that name, or the client may not know of it: both get the same answer.
    #[error("there is no such export")]
    Unknown,
    /// It exists and cannot be opened. The client is told no more than that; the log has the rest.
    #[error("the export cannot be opened: {0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The exports a server has, to each client its own. They may come and go while it runs; an open
/// device stays open for the clients that have it, until its owner ends it. Methods may block, and may
/// be called from several threads at once. [`ExportTable`] is one that is ready.
pub trait Exports: Send + Sync {
    /// The exports `client` may know of.
    fn list(&self, client: &ClientInfo) -> Vec<ExportInfo>;

    /// Opens one; `""` is the default export. Called only when a client names the export in INFO, GO
    /// or EXPORT_NAME, never before (CVE-2019-14850). A server may open an export several times per
    /// connection, so implementations that share one device hand out clones of one `Arc`.
    ///
    /// # Errors
    /// [`OpenError::Unknown`] also for what `client` may not have.
    fn open(&self, name: &str, client: &ClientInfo) -> Result<Opened, OpenError>;

    /// Whether `open` would know the name; asked when metadata contexts are chosen, which must not
    /// open anything.
    fn is_known(&self, name: &str, client: &ClientInfo) -> bool {
        name.is_empty() || self.list(client).iter().any(|export| export.name == name)
    }

    /// Whether the device of a known export tells its presence, as far as that can be said without
    /// opening it; asked when metadata contexts are chosen.
    fn has_presence(&self, _name: &str, _client: &ClientInfo) -> bool {
        false
    }
}

/// The bounds of a server.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// From accepting a connection until it must have chosen an export.
    pub handshake_timeout: Duration,
    /// How long a connection may be without a request; `None` for ever, as a guest may sleep for
    /// days. (Peers that are gone are found by TCP keep-alive.)
    pub idle_timeout: Option<Duration>,
    /// How long requests under way may take to be answered when the server stops or the client leaves.
    pub stop_grace: Duration,
    /// How long clients of an export that has ended are told so (`ESHUTDOWN`) before their connection
    /// is closed.
    pub end_grace: Duration,
    /// When connections are encrypted.
    pub tls: Tls,
    /// Connections at once.
    pub max_connections: usize,
    /// How many of them are kept for addresses that have none yet.
    pub reserved_connections: usize,
    /// Connections at once of one IP address, or of one user of a Unix socket.
    pub max_per_address: usize,
    /// Connections in the handshake at once; the oldest gives way to the newest.
    pub max_handshakes: usize,
    /// Bytes of requests and replies under way in one connection, beyond which it is not read from
    /// until the client takes its replies. One request more may be under way (at most 32 MiB).
    pub max_inflight_bytes_per_connection: u64,
    /// Threads that serve sockets ([`ServerHandle`] only). More do not help one client.
    pub io_threads: usize,
    /// Threads for what may block: reads that miss the cache, writes, flushes.
    pub worker_threads: usize,
}

impl Default for ServerConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            handshake_timeout: Duration::from_secs(10),
            idle_timeout: None,
            stop_grace: Duration::from_secs(5),
            end_grace: Duration::from_secs(1),
            tls: Tls::Off,
            max_connections: 128,
            reserved_connections: 8,
            max_per_address: 64,
            max_handshakes: 32,
            max_inflight_bytes_per_connection: 32 << 20,
            io_threads: cores.clamp(1, 8),
            // Blocked threads are cheap and a backing store far away wants many requests at once.
            worker_threads: (4 * cores).clamp(8, 64),
        }
    }
}

impl ServerConfig {
    fn limits(&self) -> Limits {
        Limits {
            max_connections: self.max_connections,
            reserved_connections: self.reserved_connections,
            max_per_address: self.max_per_address,
            max_handshakes: self.max_handshakes,
        }
    }
}

/// What all connections share.
struct Shared {
    exports: Arc<dyn Exports>,
    config: ServerConfig,
    pool: Arc<Pool>,
}

impl Shared {
    fn tls_policy(&self) -> TlsPolicy {
        self.config.tls.policy()
    }
}

/// Serves until `shutdown` becomes `true` or its sender is gone, then stops orderly: no new
/// connections, no new requests; those under way are answered within
/// [`ServerConfig::stop_grace`]. Must be called within a tokio runtime with I/O and time enabled.
///
/// Errors of one connection end that connection and are logged; only a listener that cannot be served
/// ends the server.
pub async fn serve(
    listeners: Vec<Listener>,
    exports: Arc<dyn Exports>,
    config: ServerConfig,
    shutdown: watch::Receiver<bool>,
) -> Result<(), Error> {
    let here = vec![Handle::current()];
    Ok(serve_on(listeners, exports, config, shutdown, here).await?)
}

/// `serve`, with the connections spread over several runtimes.
async fn serve_on(
    listeners: Vec<Listener>,
    exports: Arc<dyn Exports>,
    config: ServerConfig,
    shutdown: watch::Receiver<bool>,
    runtimes: Vec<Handle>,
) -> Result<(), backstay_serve::Error> {
    let pool = Pool::start("nbd", config.worker_threads)?;
    let grace = config.stop_grace;
    let admission = Arc::new(Admission::new(config.limits()));
    let shared = Arc::new(Shared { exports, config, pool: pool.clone() });
    let stopped = shutdown.clone();
    // Each ends within its grace; twice that is for a connection that is stuck all the same.
    let serve = move |new| connection(shared.clone(), new, shutdown.clone());
    let result = accept_all(listeners, admission, stopped, runtimes, grace * 2, serve).await;
    pool.stop(grace);
    result
}

/// One connection from its first byte to its last.
async fn connection(shared: Arc<Shared>, new: Connection, mut shutdown: watch::Receiver<bool>) {
    let Connection { stream, peer, permit, .. } = new;
    let mut client = ClientInfo { peer, certificate: None };
    let mut wire = match Stream::new(stream) {
        Ok(stream) => Wire::new(stream),
        Err(error) => {
            tracing::debug!(?peer, %error, "connection lost before it began");
            return;
        }
    };
    let negotiated = tokio::select! {
        biased;
        () = stop_asked(&mut shutdown) => return,
        () = permit.evicted() => {
            tracing::debug!(?peer, "handshake gave way to a newer one");
            return;
        }
        result = tokio::time::timeout(
            shared.config.handshake_timeout,
            handshake::negotiate(&mut wire, &shared, &mut client),
        ) => match result {
            Ok(Ok(Some(negotiated))) => negotiated,
            Ok(Ok(None)) => return,
            Ok(Err(error)) => {
                tracing::debug!(?peer, %error, "handshake failed");
                return;
            }
            Err(_) => {
                tracing::debug!(?peer, "handshake took too long");
                return;
            }
        },
    };
    if !permit.chosen() {
        return;
    }
    let export = negotiated.agreed.export.clone();
    tracing::debug!(?peer, export, "client attached");
    match transmission::run(wire, negotiated, &shared, shutdown).await {
        Ok(()) => tracing::debug!(?peer, export, "client left"),
        Err(error) => tracing::debug!(?peer, export, %error, "connection ended"),
    }
}
