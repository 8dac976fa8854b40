//! A socket, with TLS around it or without.

use std::io::{self, IoSlice};

use backstay_serve::{Accepted, Socket, Stream as _, Wire, retry};
use tokio::io::Interest;

use super::tls::{Records, TlsConfig};

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

impl backstay_serve::Stream for Stream {
    async fn ready(&self, interest: Interest) -> io::Result<()> {
        self.socket.ready(interest).await
    }

    fn try_read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.socket.try_read(buf),
            Some(tls) => tls.read(&mut &self.socket, buf),
        }
    }

    fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.socket.try_write(slices),
            Some(tls) => tls.write(&mut &self.socket, slices),
        }
    }

    fn try_flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            None => Ok(()),
            Some(tls) => tls.flush(&mut &self.socket),
        }
    }
}

/// Starts TLS; answers what it knows of the client. What came in plain text behind the client's
/// wish must not be believed (CVE-2021-3716), so there must be nothing.
pub(super) async fn start_tls<'a>(
    wire: &'a mut Wire<Stream>,
    config: &TlsConfig,
) -> io::Result<&'a Records> {
    if !wire.buffered().is_empty() {
        let why = "plain text behind STARTTLS";
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    wire.stream.start_tls(config).await
}
