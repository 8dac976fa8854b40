//! A socket, plain or with TLS in it, that one thread reads while another one writes.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustls::ClientConnection;

use super::uri::Address;

/// Data is encrypted in pieces of this size: two records.
const TLS_PIECE_BYTES: usize = 32 << 10;
/// Encrypted data is read in pieces of this size.
const TLS_READ_BYTES: usize = 16 << 10;

/// A socket of either sort.
#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Read for &Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&mut &*stream).read(buf),
            Socket::Unix(stream) => (&mut &*stream).read(buf),
        }
    }
}

impl Write for &Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => (&mut &*stream).write(buf),
            Socket::Unix(stream) => (&mut &*stream).write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection's bytes. At most one thread may read and one may write at a time; both are seen to by
/// the owner.
#[derive(Debug)]
pub(super) struct Stream {
    socket: Socket,
    /// Held for computing only, never while the socket is waited for.
    tls: Option<Mutex<Tls>>,
}

#[derive(Debug)]
struct Tls {
    connection: ClientConnection,
    /// What came from the socket and is not decrypted yet: the connection takes no more than a record
    /// ahead of who reads.
    raw: Vec<u8>,
    /// So much of `raw` is decrypted.
    done: usize,
}

impl Tls {
    /// Decrypts some of what came; whether there was anything.
    fn decrypt(&mut self) -> io::Result<bool> {
        let mut rest = &self.raw[self.done..];
        let before = rest.len();
        if before == 0 {
            return Ok(false);
        }
        self.connection.read_tls(&mut rest)?;
        self.done += before - rest.len();
        let bad = |e| io::Error::new(io::ErrorKind::InvalidData, e);
        // What it wants to say in answer goes out with the next write.
        self.connection.process_new_packets().map_err(bad)?;
        Ok(true)
    }
}

impl Stream {
    pub(super) fn connect(address: &Address, deadline: Instant) -> io::Result<Self> {
        Ok(Self { socket: connect(address, deadline)?, tls: None })
    }

    pub(super) fn set_timeouts(&self, timeout: Duration) -> io::Result<()> {
        match &self.socket {
            Socket::Tcp(stream) => {
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))
            }
            Socket::Unix(stream) => {
                stream.set_read_timeout(Some(timeout))?;
                stream.set_write_timeout(Some(timeout))
            }
        }
    }

    /// Ends the connection: whoever waits for it wakes up with an error.
    pub(super) fn shutdown(&self) {
        // A socket that is not connected any more is as it should be.
        let _ = match &self.socket {
            Socket::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Socket::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    /// Does the handshake of TLS; everything after it is encrypted.
    pub(super) fn start_tls(
        &mut self,
        config: Arc<rustls::ClientConfig>,
        name: rustls::pki_types::ServerName<'static>,
        deadline: Instant,
    ) -> io::Result<()> {
        let mut tls = ClientConnection::new(config, name).map_err(io::Error::other)?;
        let mut socket = &self.socket;
        while tls.is_handshaking() || tls.wants_write() {
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if tls.wants_write() {
                tls.write_tls(&mut socket)?;
            } else {
                if tls.read_tls(&mut socket)? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                if let Err(error) = tls.process_new_packets() {
                    // Tells the server why; that it may not arrive changes nothing.
                    let _ = tls.write_tls(&mut socket);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            }
        }
        self.tls = Some(Mutex::new(Tls { connection: tls, raw: Vec::new(), done: 0 }));
        Ok(())
    }

    fn lock(tls: &Mutex<Tls>) -> MutexGuard<'_, Tls> {
        // After a panic within it the next record does not decrypt, which is an error.
        tls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Like `read` of a socket: 0 is the end.
    pub(super) fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        let mut socket = &self.socket;
        let Some(tls) = &self.tls else { return socket.read(buf) };
        let mut raw = [0; TLS_READ_BYTES];
        loop {
            {
                let mut tls = Self::lock(tls);
                match tls.connection.reader().read(buf) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    result => return result,
                }
                if tls.decrypt()? {
                    continue;
                }
            }
            let n = socket.read(&mut raw)?;
            if n == 0 {
                // Without a good-bye of TLS: somebody may have cut it off.
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut tls = Self::lock(tls);
            tls.raw.clear();
            tls.raw.extend_from_slice(&raw[..n]);
            tls.done = 0;
        }
    }

    /// Writes all of `bytes`, or fails at `deadline`.
    pub(super) fn write_all(&self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        let Some(tls) = &self.tls else { return self.write_raw(bytes, deadline) };
        for piece in bytes.chunks(TLS_PIECE_BYTES) {
            let mut out = Vec::with_capacity(piece.len() + 512);
            {
                let tls = &mut Self::lock(tls).connection;
                let mut rest = piece;
                while !rest.is_empty() {
                    let n = tls.writer().write(rest)?;
                    rest = &rest[n..];
                    while tls.wants_write() {
                        tls.write_tls(&mut out)?;
                    }
                }
            }
            self.write_raw(&out, deadline)?;
        }
        Ok(())
    }

    fn write_raw(&self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        let mut socket = &self.socket;
        while !bytes.is_empty() {
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match socket.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

fn connect(address: &Address, deadline: Instant) -> io::Result<Socket> {
    match address {
        Address::Unix(path) => UnixStream::connect(path).map(Socket::Unix),
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
                        return Ok(Socket::Tcp(stream));
                    }
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
    }
}
