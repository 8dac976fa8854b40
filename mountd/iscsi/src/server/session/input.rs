//! What the initiator sends: headers, the data behind them, digests.

use backstay_serve::{Stream as _, retry};

use super::{Session, lost};
use crate::error::Error;
use crate::proto::digest::crc32c;
use crate::proto::pdu::{RejectReason, Request};
use crate::proto::{BHS_BYTES, MAX_RECV_DATA_SEGMENT_BYTES};

/// A PDU whose data is coming in.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) header: [u8; BHS_BYTES],
    pub(super) request: Request,
    /// Bytes of data.
    pub(super) len: usize,
    /// Bytes of padding and digest behind it.
    tail_len: usize,
    filled: usize,
    /// Where the data goes, from `at` on; `None` if nobody wants it.
    pub(super) into: Option<Vec<u8>>,
    pub(super) at: usize,
    tail: [u8; 7],
}

impl Incoming {
    fn total(&self) -> usize {
        self.len + self.tail_len
    }

    /// The data, once it is there; nothing if nobody wanted it.
    pub(super) fn data(&self) -> &[u8] {
        self.into.as_ref().map_or(&[], |buf| &buf[self.at..self.at + self.len])
    }

    /// Whether padding and digest are right. What nobody wanted is not looked at.
    fn is_sound(&self) -> bool {
        let pad = self.len.wrapping_neg() % 4;
        if self.tail_len <= pad || self.into.is_none() {
            return true;
        }
        let mut sum = crate::proto::digest::Crc32c::new();
        sum.update(self.data());
        sum.update(&self.tail[..pad]);
        self.tail[pad..pad + 4] == sum.finish().to_le_bytes()
    }
}

impl Session {
    /// Takes the next PDU, or what is there of it; `false` if the rest has yet to come.
    pub(super) fn take_pdu(&mut self) -> Result<bool, Error> {
        if self.incoming.is_some() {
            return self.take_data();
        }
        let buffered = self.wire.buffered();
        let Some(header) = buffered.first_chunk::<BHS_BYTES>().copied() else { return self.fill() };
        let extra = usize::from(header[4]) * 4;
        let head_bytes = self.digests.head_bytes() + extra;
        if buffered.len() < head_bytes {
            return self.fill();
        }
        let summed = BHS_BYTES + extra;
        if self.digests.header
            && buffered[summed..summed + 4] != crc32c(&buffered[..summed]).to_le_bytes()
        {
            // RFC 7143, 7.8: with a header that lies nothing can be found any more.
            return Err(Error::protocol("the digest of a header is wrong"));
        }
        self.wire.consume(head_bytes);
        self.heard = tokio::time::Instant::now();
        self.pinged = false;
        self.take_header(header, extra)
    }

    fn take_header(&mut self, header: [u8; BHS_BYTES], extra: usize) -> Result<bool, Error> {
        let len = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        if len > MAX_RECV_DATA_SEGMENT_BYTES as usize {
            let why = format!("a data segment of {len} bytes, more than was agreed");
            return Err(Error::protocol(why));
        }
        let request = match Request::decode(&header) {
            Ok(request) => request,
            Err(error) => {
                tracing::debug!(initiator = self.initiator, %error, "a PDU is not understood");
                Request::Unknown
            }
        };
        let (into, at) = self.place_for(&request, len, extra)?;
        let tail_len = self.digests.tail_bytes(len);
        let incoming =
            Incoming { header, request, len, tail_len, filled: 0, into, at, tail: [0; 7] };
        self.incoming = Some(incoming);
        Ok(true)
    }

    /// Where the data of a PDU goes.
    fn place_for(
        &mut self,
        request: &Request,
        len: usize,
        extra: usize,
    ) -> Result<(Option<Vec<u8>>, usize), Error> {
        match request {
            Request::DataOut(data) => Ok(self.place_for_data_out(data, len)),
            // Longer CDBs and bidirectional commands have headers of their own, and are refused.
            Request::ScsiCommand(_) if extra > 0 => Ok((None, 0)),
            Request::ScsiCommand(_) if len as u32 > self.params.first_burst_length => {
                Err(Error::protocol("more immediate data than was agreed"))
            }
            Request::ScsiCommand(_) | Request::NopOut(_) | Request::Text(_) if len > 0 => {
                Ok((Some(self.out.buffer(len)), 0))
            }
            _ => Ok((None, 0)),
        }
    }

    /// Takes what has come of a PDU's data; `false` if the rest has yet to come.
    fn take_data(&mut self) -> Result<bool, Error> {
        let Some(mut incoming) = self.incoming.take() else { return Ok(true) };
        while incoming.filled < incoming.total() {
            if !self.take_some(&mut incoming)? {
                self.incoming = Some(incoming);
                return Ok(false);
            }
        }
        self.handle(incoming)?;
        Ok(true)
    }

    /// Takes some bytes of a PDU's data; `false` if there are none now.
    fn take_some(&mut self, incoming: &mut Incoming) -> Result<bool, Error> {
        let (filled, len) = (incoming.filled, incoming.len);
        if filled >= len {
            let here = self.wire.buffered();
            let n = here.len().min(incoming.total() - filled);
            incoming.tail[filled - len..filled - len + n].copy_from_slice(&here[..n]);
            self.wire.consume(n);
            incoming.filled += n;
            return if n == 0 { self.fill() } else { Ok(true) };
        }
        let here = self.wire.buffered();
        let n = here.len().min(len - filled);
        if n > 0 {
            if let Some(buf) = &mut incoming.into {
                let at = incoming.at + filled;
                buf[at..at + n].copy_from_slice(&here[..n]);
            }
            self.wire.consume(n);
            incoming.filled += n;
            return Ok(true);
        }
        // Nothing is buffered any more, so much of the rest can go where it belongs.
        match &mut incoming.into {
            Some(buf) if len - filled >= DIRECT_BYTES => {
                let range = incoming.at + filled..incoming.at + len;
                match self.wire.stream.try_read(&mut buf[range]) {
                    Ok(0) => {
                        self.closing = true;
                        Ok(false)
                    }
                    Ok(n) => {
                        incoming.filled += n;
                        Ok(true)
                    }
                    Err(e) if retry(&e) => Ok(false),
                    Err(e) => Err(lost(e)),
                }
            }
            _ => self.fill(),
        }
    }

    /// A PDU is whole.
    fn handle(&mut self, mut incoming: Incoming) -> Result<(), Error> {
        if !incoming.is_sound() {
            self.reject(&incoming.header, RejectReason::DataDigestError);
            return match incoming.request {
                // RFC 7143, 7.8, at error recovery level 0: a command whose data is lost cannot go on, and its
                // number is used up or not, nobody knows; the session begins anew.
                Request::DataOut(_) | Request::ScsiCommand(_) => {
                    self.closing = true;
                    Ok(())
                }
                _ => Ok(()),
            };
        }
        match incoming.request.clone() {
            Request::ScsiCommand(command) => self.command(&command, &mut incoming)?,
            Request::DataOut(data) => self.data_out(&data, &mut incoming),
            Request::NopOut(nop) => self.nop_out(&nop, incoming.data())?,
            Request::TaskManagement(request) => self.manage(&request)?,
            Request::Text(request) => self.text(&request, incoming.data())?,
            Request::Logout(request) => self.logout(&request)?,
            Request::Login(_) => return Err(Error::protocol("a login within a session")),
            Request::Snack => self.reject(&incoming.header, RejectReason::SnackReject),
            Request::Unknown => self.reject(&incoming.header, RejectReason::CommandNotSupported),
        }
        if let Some(buf) = incoming.into.take() {
            self.out.recycle(buf);
        }
        Ok(())
    }
}

/// So much is read past the buffer, straight to where it belongs.
const DIRECT_BYTES: usize = 16 << 10;
