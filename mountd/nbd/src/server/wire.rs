//! A socket and the buffer in front of it.

use std::io::{self, IoSlice, Read, Write};

use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use super::listen::Accepted;
use super::tls::{Records, TlsConfig};

/// Read at once: many requests, or an option of full length.
const BUFFER_BYTES: usize = 64 << 10;

/// A socket of either sort, used without waiting inside a call.
#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn new(accepted: Accepted) -> io::Result<Self> {
        match accepted {
            Accepted::Tcp(stream) => {
                // Replies are written whole, so waiting for more to send only costs time.
                stream.set_nodelay(true)?;
                keep_alive(&stream)?;
                TcpStream::from_std(stream).map(Self::Tcp)
            }
            Accepted::Unix(stream) => UnixStream::from_std(stream).map(Self::Unix),
        }
    }

    async fn ready(&self, interest: Interest) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.ready(interest).await.map(|_| ()),
            Self::Unix(stream) => stream.ready(interest).await.map(|_| ()),
        }
    }

    fn try_read(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(buf),
            Self::Unix(stream) => stream.try_read(buf),
        }
    }

    fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write_vectored(slices),
            Self::Unix(stream) => stream.try_write_vectored(slices),
        }
    }
}

impl Read for &Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.try_read(buf)
    }
}

impl Write for &Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.try_write(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.try_write(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket, with TLS around it or without; used without waiting inside a call.
#[derive(Debug)]
pub(super) struct Stream {
    socket: Socket,
    tls: Option<Box<Records>>,
}

impl Stream {
    /// Takes an accepted socket into the runtime of the calling task.
    pub(super) fn new(accepted: Accepted) -> io::Result<Self> {
        Ok(Self { socket: Socket::new(accepted)?, tls: None })
    }

    /// Waits until the socket can do one of `interest`. With TLS there may be bytes to read that the
    /// socket knows nothing of: read until nothing comes before waiting.
    pub(super) async fn ready(&self, interest: Interest) -> io::Result<()> {
        self.socket.ready(interest).await
    }

    pub(super) fn try_read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.socket.try_read(buf),
            Some(tls) => tls.read(&mut &self.socket, buf),
        }
    }

    /// What was taken counts as sent once `try_flush` says so.
    pub(super) fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.socket.try_write(slices),
            Some(tls) => tls.write(&mut &self.socket, slices),
        }
    }

    /// Hands on what is kept of earlier writes; fails with `WouldBlock` while some is left.
    pub(super) fn try_flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            None => Ok(()),
            Some(tls) => tls.flush(&mut &self.socket),
        }
    }

    /// Says good-bye where the protocol below NBD has a word for it.
    pub(super) fn close(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.close(&mut &self.socket);
        }
    }

    /// The server's half of a TLS handshake.
    async fn start_tls(&mut self, config: &TlsConfig) -> io::Result<&Records> {
        let mut tls = Box::new(Records::new(config)?);
        while tls.is_handshaking() {
            let taken = tls.take(&mut &self.socket);
            // Also when that failed: the alert tells the client why.
            while let Err(e) = tls.flush(&mut &self.socket) {
                if !retry(&e) {
                    return Err(e);
                }
                self.socket.ready(Interest::WRITABLE).await?;
            }
            match taken {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(e) if retry(&e) => self.socket.ready(Interest::READABLE).await?,
                Err(e) => return Err(e),
            }
        }
        Ok(self.tls.insert(tls))
    }
}

/// Peers that vanished without a word are found after about two minutes.
fn keep_alive(stream: &std::net::TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    use std::time::Duration;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(stream, 6)?;
    Ok(())
}

/// What an attempt to read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// Something.
    Some,
    /// Nothing yet.
    Nothing,
    /// The other side has ended its half.
    End,
}

/// A socket with what has been read of it and not yet understood.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) stream: Stream,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Wire {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, buffer: vec![0; BUFFER_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }

    /// What has been read and not consumed.
    pub(super) fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub(super) fn consume(&mut self, n: usize) {
        self.start += n.min(self.end - self.start);
    }

    /// Reads what is there, without waiting.
    pub(super) fn try_fill(&mut self) -> io::Result<Filled> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.buffer.len() {
            return Ok(Filled::Some);
        }
        match self.stream.try_read(&mut self.buffer[self.end..]) {
            Ok(0) => Ok(Filled::End),
            Ok(n) => {
                self.end += n;
                Ok(Filled::Some)
            }
            Err(e) if retry(&e) => Ok(Filled::Nothing),
            Err(e) => Err(e),
        }
    }

    /// Waits until `n` bytes (at most the buffer's size) are there; fails at the end of the stream.
    pub(super) async fn fill(&mut self, n: usize) -> io::Result<()> {
        while self.end - self.start < n {
            match self.try_fill()? {
                Filled::Some => {}
                Filled::Nothing => self.stream.ready(Interest::READABLE).await?,
                Filled::End => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        Ok(())
    }

    /// Writes all of `bytes`.
    pub(super) async fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.stream.try_write(&[IoSlice::new(bytes)]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => bytes = &bytes[n..],
                Err(e) if retry(&e) => self.stream.ready(Interest::WRITABLE).await?,
                Err(e) => return Err(e),
            }
        }
        while let Err(e) = self.stream.try_flush() {
            if !retry(&e) {
                return Err(e);
            }
            self.stream.ready(Interest::WRITABLE).await?;
        }
        Ok(())
    }

    /// Starts TLS; answers what it knows of the client. What came in plain text behind the client's
    /// wish must not be believed (CVE-2021-3716), so there must be nothing.
    pub(super) async fn start_tls(&mut self, config: &TlsConfig) -> io::Result<&Records> {
        if self.start != self.end {
            let why = "plain text behind STARTTLS";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        self.stream.start_tls(config).await
    }
}

/// Whether an attempt failed only because nothing was to be done yet.
pub(super) fn retry(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
