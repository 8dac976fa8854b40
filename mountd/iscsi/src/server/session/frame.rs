//! PDUs on their way out: where header, data, padding and digests lie in a buffer.

use backstay_serve::{Out, SMALL_BYTES, Segment};

use crate::proto::BHS_BYTES;
use crate::proto::digest::crc32c;

/// Which digests a session has agreed on (RFC 7143, 13.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Digests {
    pub(super) header: bool,
    pub(super) data: bool,
}

impl Digests {
    /// Bytes before the data.
    pub(super) fn head_bytes(self) -> usize {
        BHS_BYTES + if self.header { 4 } else { 0 }
    }

    /// Bytes behind `len` bytes of data: padding to four, and the digest.
    pub(super) fn tail_bytes(self, len: usize) -> usize {
        let pad = len.wrapping_neg() % 4;
        pad + if self.data && len > 0 { 4 } else { 0 }
    }

    /// Bytes of a PDU with `len` bytes of data.
    pub(super) fn pdu_bytes(self, len: usize) -> usize {
        self.head_bytes() + len + self.tail_bytes(len)
    }

    /// Pads and sums data that lies in `pdu` behind room for its header.
    pub(super) fn seal_data(self, pdu: &mut [u8], len: usize) {
        let (head, pad) = (self.head_bytes(), len.wrapping_neg() % 4);
        pdu[head + len..head + len + pad].fill(0);
        if self.data && len > 0 {
            let end = head + len + pad;
            let sum = crc32c(&pdu[head..end]);
            pdu[end..end + 4].copy_from_slice(&sum.to_le_bytes());
        }
    }

    /// Puts a header, with the length of the data that follows it, in front of it.
    pub(super) fn put_header(self, pdu: &mut [u8], header: &[u8; BHS_BYTES], len: usize) {
        pdu[..BHS_BYTES].copy_from_slice(header);
        // DataSegmentLength, 24 bits; segments are far shorter by negotiation.
        pdu[5..8].copy_from_slice(&(len as u32).to_be_bytes()[1..]);
        if self.header {
            let sum = crc32c(&pdu[..BHS_BYTES]);
            pdu[BHS_BYTES..BHS_BYTES + 4].copy_from_slice(&sum.to_le_bytes());
        }
    }

    /// Queues a PDU whose data is elsewhere.
    pub(super) fn push(self, out: &mut Out, header: &[u8; BHS_BYTES], data: &[u8]) {
        let space = self.pdu_bytes(data.len());
        let head = self.head_bytes();
        let build = |pdu: &mut [u8]| {
            pdu[head..head + data.len()].copy_from_slice(data);
            self.seal_data(pdu, data.len());
            self.put_header(pdu, header, data.len());
            space
        };
        if space <= SMALL_BYTES {
            out.small(space, build);
        } else {
            let mut buf = out.buffer(space);
            build(&mut buf);
            out.push(Segment { buf, start: 0, end: space });
        }
    }
}

/// How the data of a read is cut into Data-In PDUs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    /// Bytes of data in all.
    pub(super) len: usize,
    /// Most bytes in a PDU (the initiator's MaxRecvDataSegmentLength).
    pub(super) segment: usize,
    /// Most bytes in a sequence (MaxBurstLength).
    pub(super) burst: usize,
}

/// One Data-In PDU of a [`Cut`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// Where its PDU starts in the buffer.
    pub(super) at: usize,
    /// Where its data starts in the command's.
    pub(super) offset: usize,
    /// Bytes of data.
    pub(super) len: usize,
    /// It ends its sequence.
    pub(super) ends: bool,
}

impl Cut {
    /// The pieces, in order, as they lie behind each other in one buffer.
    pub(super) fn pieces(self, digests: Digests) -> impl Iterator<Item = Piece> {
        let (mut at, mut offset, mut in_burst) = (0, 0, 0);
        std::iter::from_fn(move || {
            if offset >= self.len {
                return None;
            }
            let len = (self.len - offset).min(self.segment).min(self.burst - in_burst);
            in_burst += len;
            let ends = in_burst == self.burst || offset + len == self.len;
            let piece = Piece { at, offset, len, ends };
            if in_burst == self.burst {
                in_burst = 0;
            }
            at += digests.pdu_bytes(len);
            offset += len;
            Some(piece)
        })
    }

    /// Bytes of all pieces.
    pub(super) fn space(self, digests: Digests) -> usize {
        self.pieces(digests).map(|piece| digests.pdu_bytes(piece.len)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_data_once_and_keep_to_both_bounds() {
        for (len, segment, burst) in
            [(1, 512, 512), (4096, 512, 1024), (10_000, 4096, 9000), (1 << 20, 262_144, 1 << 20)]
        {
            for digests in [Digests::default(), Digests { header: true, data: true }] {
                let cut = Cut { len, segment, burst };
                let (mut offset, mut at, mut sequence) = (0, 0, 0);
                for piece in cut.pieces(digests) {
                    assert_eq!((piece.offset, piece.at), (offset, at));
                    assert!(piece.len > 0 && piece.len <= segment);
                    offset += piece.len;
                    at += digests.pdu_bytes(piece.len);
                    sequence += piece.len;
                    assert!(sequence <= burst);
                    assert_eq!(piece.ends, sequence == burst || offset == len);
                    if piece.ends {
                        sequence = 0;
                    }
                }
                assert_eq!((offset, at), (len, cut.space(digests)));
            }
        }
    }
}
