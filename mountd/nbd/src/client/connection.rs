//! One connection to a server.

use std::io::{self, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::handshake::{Agreed, negotiate};
use super::uri::{Address, NbdUri};
use crate::error::{Error, ErrorKind};

/// Headers are read through a buffer of this size; data behind them goes straight to its place.
const BUFFER_BYTES: usize = 16 << 10;

/// A socket of either sort.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn set_timeouts(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))
            }
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buf),
            Self::Unix(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buf),
            Self::Unix(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection that has chosen its export.
#[derive(Debug)]
pub(super) struct Connection {
    stream: BufReader<Stream>,
    /// What messages call the server.
    name: String,
    /// The last moment of the phase under way.
    deadline: Instant,
    /// The cookie of the next request; no two requests of a connection share one.
    pub(super) cookie: u64,
}

impl Connection {
    /// Connects and chooses the export, within `handshake`; later answers may take `reply` each.
    pub(super) fn open(
        uri: &NbdUri,
        handshake: Duration,
        reply: Duration,
    ) -> Result<(Self, Agreed), Error> {
        let deadline = Instant::now() + handshake;
        let name = uri.to_string();
        let stream = connect(&uri.address, deadline)
            .map_err(|e| Error::io(format!("{name}: cannot connect"), e))?;
        let mut connection = Self {
            stream: BufReader::with_capacity(BUFFER_BYTES, stream),
            name,
            deadline,
            cookie: 1,
        };
        connection.set_timeouts(handshake)?;
        let agreed = negotiate(&mut connection, &uri.export)?;
        connection.set_timeouts(reply)?;
        Ok((connection, agreed))
    }

    fn set_timeouts(&mut self, timeout: Duration) -> Result<(), Error> {
        self.stream
            .get_ref()
            .set_timeouts(timeout)
            .map_err(|e| Error::io(self.context("cannot set a time-out"), e))?;
        self.deadline = Instant::now() + timeout;
        Ok(())
    }

    /// Starts the clock of a request: the socket bounds each silence, this bounds a trickle.
    pub(super) fn start(&mut self, timeout: Duration) {
        self.deadline = Instant::now() + timeout;
    }

    fn check_deadline(&self) -> Result<(), Error> {
        if Instant::now() < self.deadline {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Timeout, self.context("the server took too long")))
    }

    /// Fills `buf` from the server, within the deadline also when it sends byte by byte.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> Result<(), Error> {
        let mut done = 0;
        while done < buf.len() {
            self.check_deadline()?;
            match self.stream.read(&mut buf[done..]) {
                Ok(0) => {
                    let ended = io::ErrorKind::UnexpectedEof.into();
                    return Err(Error::io(self.context("the server hung up"), ended));
                }
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(self.context("cannot read"), e)),
            }
        }
        Ok(())
    }

    /// Sends all of `bytes`.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.check_deadline()?;
        self.stream
            .get_mut()
            .write_all(bytes)
            .map_err(|e| Error::io(self.context("cannot write"), e))
    }

    /// `what`, with the server's name before it.
    pub(super) fn context(&self, what: &str) -> String {
        format!("{}: {what}", self.name)
    }
}

fn connect(address: &Address, deadline: Instant) -> io::Result<Stream> {
    match address {
        Address::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
        Address::Tcp(host, port) => {
            let mut last = io::Error::from(io::ErrorKind::NotFound);
            for address in (host.as_str(), *port).to_socket_addrs()? {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                match TcpStream::connect_timeout(&address, left) {
                    Ok(stream) => {
                        stream.set_nodelay(true)?;
                        return Ok(Stream::Tcp(stream));
                    }
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
    }
}
