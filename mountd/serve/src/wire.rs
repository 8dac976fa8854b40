//! A socket and the buffer in front of it.

use std::future::Future;
use std::io::{self, IoSlice, Read, Write};

use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use crate::listen::Accepted;

/// Read at once: many requests, or a long text.
const BUFFER_BYTES: usize = 64 << 10;

/// A stream of bytes both ways, used without waiting inside a call.
pub trait Stream: Send {
    /// Waits until it can do one of `interest`. There may be bytes to read that this knows nothing of: read until
    /// nothing comes before waiting.
    fn ready(&self, interest: Interest) -> impl Future<Output = io::Result<()>> + Send;

    /// Reads what is there; `WouldBlock` if nothing is, 0 at its end.
    fn try_read(&mut self, buf: &mut [u8]) -> io::Result<usize>;

    /// Takes what it can. What was taken counts as sent once `try_flush` says so.
    fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Hands on what is kept of earlier writes; fails with `WouldBlock` while some is left.
    fn try_flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket of either sort, used without waiting inside a call.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// In the file system.
    Unix(UnixStream),
}

impl Socket {
    /// Takes an accepted socket into the runtime of the calling task.
    pub fn new(accepted: Accepted) -> io::Result<Self> {
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

    fn read_now(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(buf),
            Self::Unix(stream) => stream.try_read(buf),
        }
    }

    fn write_now(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write_vectored(slices),
            Self::Unix(stream) => stream.try_write_vectored(slices),
        }
    }
}

impl Stream for Socket {
    async fn ready(&self, interest: Interest) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.ready(interest).await.map(|_| ()),
            Self::Unix(stream) => stream.ready(interest).await.map(|_| ()),
        }
    }

    fn try_read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_now(buf)
    }

    fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.write_now(slices)
    }
}

impl Read for &Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.read_now(buf)
    }
}

impl Write for &Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_now(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.write_now(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
pub enum Filled {
    /// Something.
    Some,
    /// Nothing yet.
    Nothing,
    /// The other side has ended its half.
    End,
}

/// A socket with what has been read of it and not yet understood.
#[derive(Debug)]
pub struct Wire<S> {
    /// The socket.
    pub stream: S,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<S: Stream> Wire<S> {
    /// A wire from which nothing was read.
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: vec![0; BUFFER_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }

    /// What has been read and not consumed.
    pub fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Drops `n` bytes of what has been read.
    pub fn consume(&mut self, n: usize) {
        self.start += n.min(self.end - self.start);
    }

    /// Reads what is there, without waiting.
    pub fn try_fill(&mut self) -> io::Result<Filled> {
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
    pub async fn fill(&mut self, n: usize) -> io::Result<()> {
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
    pub async fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
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
}

/// Whether an attempt failed only because nothing was to be done yet.
pub fn retry(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
