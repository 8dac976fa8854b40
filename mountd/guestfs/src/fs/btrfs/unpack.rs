//! Compressed extents. Source: btrfs documentation, "Compression" and "On-disk format" (LZO framing).

use flate2::{Decompress, FlushDecompress};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::file::Compression;
use crate::Error;

/// The largest window a frame may ask memory for, as a power of two: kernels use 17.
const ZSTD_WINDOW_LOG: u32 = 20;
/// The length fields of LZO pieces.
const LZO_HEAD_BYTES: usize = 4;

/// Decodes `packed` to `len` bytes, of which more may be there: a compressed extent is cut by its item, not by its stream.
/// Up to `slack` of them may be missing and are zeros: kernels of today do not compress what lies between the end of a file
/// and that of its last sector.
///
/// # Errors
/// `Damaged` if it does not decode, or to less.
pub(super) fn unpack(
    compression: Compression,
    packed: &[u8],
    len: usize,
    sector: usize,
    slack: usize,
) -> Result<Vec<u8>, Error> {
    let mut out = vec![0; len];
    let done = match compression {
        Compression::Zlib => zlib(packed, &mut out)?,
        Compression::Lzo => lzo(packed, &mut out, sector)?,
        Compression::Zstd => zstd(packed, &mut out)?,
    };
    if len - done.min(len) > slack {
        let text =
            format!("content compressed by {compression:?} decodes to {done} bytes of {len}");
        return Err(Error::damaged(text));
    }
    // Decoders may use what lies behind their end as they like.
    out[done.min(len)..].fill(0);
    Ok(out)
}

fn zlib(packed: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    let mut stream = Decompress::new(true);
    stream
        .decompress(packed, out, FlushDecompress::Finish)
        .map_err(|e| Error::damaged("content compressed by zlib does not decode").with_source(e))?;
    Ok(usize::try_from(stream.total_out()).unwrap_or(0))
}

fn zstd(packed: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    let bad = |e| Error::damaged("content compressed by zstd does not decode").with_source(e);
    let mut decoder = Decoder::new().map_err(bad)?;
    decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG)).map_err(bad)?;
    let mut input = InBuffer::around(packed);
    let mut output = OutBuffer::around(out);
    loop {
        let before = (input.pos(), output.pos());
        let hint = decoder.run(&mut input, &mut output).map_err(bad)?;
        // The frame's end, or nothing more comes of what is there, or there is no room for more.
        if hint == 0 || before == (input.pos(), output.pos()) {
            return Ok(output.pos());
        }
    }
}

/// A total length, then pieces of a length and a stream each, which decode to a sector; a length does not go over the end of a
/// sector.
fn lzo(packed: &[u8], out: &mut [u8], sector: usize) -> Result<usize, Error> {
    let bad = |text: String| Error::damaged(format!("content compressed by LZO {text}"));
    let number = |at: usize| -> Result<usize, Error> {
        let head = packed.get(at..).and_then(|p| p.first_chunk::<LZO_HEAD_BYTES>());
        let head = head.ok_or_else(|| bad(format!("ends at byte {at}")))?;
        Ok(u32::from_le_bytes(*head) as usize)
    };
    let total = number(0)?.min(packed.len());
    let (mut at, mut done) = (LZO_HEAD_BYTES, 0);
    let mut piece = vec![0; sector];
    while done < out.len() && at < total {
        let left = sector - at % sector;
        if left < LZO_HEAD_BYTES {
            at += left;
        }
        let len = number(at)?;
        at += LZO_HEAD_BYTES;
        let stream = at.checked_add(len).and_then(|end| packed.get(at..end));
        let stream = stream.ok_or_else(|| bad(format!("has {len} bytes at byte {at}")))?;
        at += len;
        let decoded = lzokay::decompress::decompress(stream, &mut piece)
            .map_err(|e| bad(format!("does not decode: {e:?}")))?;
        let room = (out.len() - done).min(decoded);
        out[done..done + room].copy_from_slice(&piece[..room]);
        done += room;
        // Only the last piece is shorter than a sector.
        if decoded < sector {
            break;
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn streams_are_cut_and_short_ones_refused() {
        let text = b"again and again, ".repeat(5000);
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&text).expect("it takes all");
        let mut zlib = encoder.finish().expect("it ends");
        let mut zstd = zstd::bulk::compress(&text, 3).expect("it compresses");
        // Extents are filled up to sectors.
        zlib.resize(zlib.len().next_multiple_of(4096), 0);
        zstd.resize(zstd.len().next_multiple_of(4096), 0);
        for (kind, packed) in [(Compression::Zlib, &zlib), (Compression::Zstd, &zstd)] {
            for len in [0, 1, 5000, text.len()] {
                assert_eq!(unpack(kind, packed, len, 4096, 0).expect("it decodes"), text[..len]);
            }
            assert!(unpack(kind, packed, text.len() + 1, 4096, 0).is_err());
            let filled = unpack(kind, packed, text.len() + 9, 4096, 9).expect("it decodes");
            assert_eq!(filled[text.len()..], [0; 9]);
            assert!(unpack(kind, packed, text.len() + 10, 4096, 9).is_err());
            assert!(unpack(kind, &packed[..20], text.len(), 4096, 0).is_err());
            assert!(unpack(kind, &[], 1, 4096, 0).is_err());
            assert!(unpack(kind, &[0xaa; 4096], 1, 4096, 0).is_err());
        }
    }

    #[test]
    fn lzo_pieces() {
        // One literal run of three bytes ("abc") and the end mark.
        let stream = [20, b'a', b'b', b'c', 0x11, 0, 0];
        let mut packed = (8 + stream.len() as u32).to_le_bytes().to_vec();
        packed.extend((stream.len() as u32).to_le_bytes());
        packed.extend(stream);
        assert_eq!(unpack(Compression::Lzo, &packed, 3, 4096, 0).expect("it decodes"), b"abc");
        assert!(unpack(Compression::Lzo, &packed, 4, 4096, 0).is_err());
        packed[4] = 0xff;
        assert!(unpack(Compression::Lzo, &packed, 3, 4096, 0).is_err());
        assert!(unpack(Compression::Lzo, &[0xff; 64], 3, 4096, 0).is_err());
        assert!(unpack(Compression::Lzo, &[9, 0], 3, 4096, 0).is_err());
    }
}
