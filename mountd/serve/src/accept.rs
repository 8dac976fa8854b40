//! Taking connections in.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admission::{Admission, Permit, Source};
use crate::error::Error;
use crate::listen::{Accepted, Accepting, Listener};
use crate::peer::Peer;

/// The pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A connection that was let in, not yet in any runtime.
#[derive(Debug)]
pub struct Connection {
    /// Its socket.
    pub stream: Accepted,
    /// Where it comes from.
    pub peer: Peer,
    /// Where it arrived; `None` for a Unix socket.
    pub local: Option<SocketAddr>,
    /// Its right to be connected.
    pub permit: Permit,
}

/// Returns when the server is to stop. (The guard that `wait_for` answers must not be kept.)
pub async fn stop_asked(shutdown: &mut watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|stop| *stop).await;
}

/// Accepts from all `listeners` until told to stop, and spreads what `serve` makes of the connections over `runtimes`.
/// Then waits for them, at most for `patience`; they have to end by themselves, and are cut off after that.
///
/// # Errors
/// A listener that cannot be taken into the runtime.
pub async fn accept_all<F: Future<Output = ()> + Send + 'static>(
    listeners: Vec<Listener>,
    admission: Arc<Admission>,
    stopped: watch::Receiver<bool>,
    runtimes: Vec<Handle>,
    patience: Duration,
    serve: impl Fn(Connection) -> F + Clone + Send + 'static,
) -> Result<(), Error> {
    let listeners =
        listeners.into_iter().map(Listener::accepting).collect::<Result<Vec<_>, _>>()?;
    let mut accepting = JoinSet::new();
    for (first, listener) in listeners.into_iter().enumerate() {
        let (admission, stopped) = (admission.clone(), stopped.clone());
        let runtimes = (runtimes.clone(), first);
        accepting.spawn(accept(listener, admission, stopped, runtimes, patience, serve.clone()));
    }
    while accepting.join_next().await.is_some() {}
    Ok(())
}

/// One listener's share of [`accept_all`].
async fn accept<F: Future<Output = ()> + Send + 'static>(
    listener: Accepting,
    admission: Arc<Admission>,
    mut stopped: watch::Receiver<bool>,
    (runtimes, first): (Vec<Handle>, usize),
    patience: Duration,
    serve: impl Fn(Connection) -> F,
) {
    let mut connections = JoinSet::new();
    let mut next = first;
    loop {
        tokio::select! {
            biased;
            () = stop_asked(&mut stopped) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    // Refused ones are closed without a word: words would cost us, not them.
                    let Some(permit) = admission.admit(counted(&peer)) else {
                        tracing::debug!(?peer, "connection refused: too many");
                        continue;
                    };
                    let local = stream.local_addr();
                    let task = serve(Connection { stream, peer, local, permit });
                    connections.spawn_on(task, &runtimes[next % runtimes.len()]);
                    next = next.wrapping_add(1);
                }
                // Out of descriptors and the like pass; do not spin while they last.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(patience, all).await;
    connections.shutdown().await;
}

/// Whom a client counts for: all ports of an address, all processes of a user.
fn counted(peer: &Peer) -> Source {
    match peer {
        Peer::Tcp(address) => Source::Address(address.ip()),
        Peer::Unix { uid, .. } => Source::User(*uid),
    }
}
