//! Asking the mount daemon.

use std::io::{self, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::frame;
use crate::mountd::{Answer, Request};
use crate::refusal::Refusal;

/// How long an answer may take: opening a distant repository takes its time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no mount daemon answers at {socket}")]
    NoDaemon {
        /// The socket.
        socket: String,
        /// What connecting said.
        #[source]
        source: io::Error,
    },
    /// The daemon said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The connection broke, or what came was no answer.
    #[error("the mount daemon at {socket} did not answer")]
    Broken {
        /// The socket.
        socket: String,
        /// What happened.
        #[source]
        source: io::Error,
    },
}

/// A connection to the mount daemon.
#[derive(Debug)]
pub struct MountdClient {
    stream: BufReader<UnixStream>,
    socket: String,
}

impl MountdClient {
    /// Connects to the daemon's socket.
    ///
    /// # Errors
    /// [`ClientError::NoDaemon`].
    pub fn connect(socket: &Path) -> Result<Self, ClientError> {
        let name = socket.display().to_string();
        let connect = || {
            let stream = UnixStream::connect(socket)?;
            stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            Ok(BufReader::new(stream))
        };
        match connect() {
            Ok(stream) => Ok(Self { stream, socket: name }),
            Err(source) => Err(ClientError::NoDaemon { socket: name, source }),
        }
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the daemon says no, [`ClientError::Broken`] if it says nothing; then nobody
    /// knows whether it was done.
    pub fn ask(&mut self, request: &Request) -> Result<Answer, ClientError> {
        let broken = |source| ClientError::Broken { socket: self.socket.clone(), source };
        frame::write(&mut self.stream.get_ref(), request).map_err(broken)?;
        match frame::read(&mut self.stream, frame::MAX_LINE_BYTES).map_err(broken)? {
            Some(Answer::Refused(refusal)) => Err(refusal.into()),
            Some(answer) => Ok(answer),
            None => Err(broken(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}
