//! One JSON document a line.

use std::io::{self, BufRead, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

/// The longest line taken: a list of thousands of mounts is far shorter.
pub const MAX_LINE_BYTES: usize = 16 << 20;

/// Writes one document and its line end.
///
/// # Errors
/// What the writer says, or `InvalidData` for what is no JSON.
pub fn write<T: Serialize>(to: &mut impl Write, document: &T) -> io::Result<()> {
    // It may hold a passphrase.
    let mut line = Zeroizing::new(serde_json::to_vec(document)?);
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// Reads one document; `None` at the end of the stream.
///
/// # Errors
/// What the reader says, `UnexpectedEof` for half a line, `InvalidData` for a line that is too long (more than
/// `max_bytes`) or is not the document expected.
pub fn read<T: DeserializeOwned>(
    from: &mut impl BufRead,
    max_bytes: usize,
) -> io::Result<Option<T>> {
    let mut line = Zeroizing::new(Vec::new());
    loop {
        let part = match from.fill_buf() {
            Ok(part) => part,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        if part.is_empty() {
            if line.is_empty() {
                return Ok(None);
            }
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let end = part.iter().position(|b| *b == b'\n');
        let taken = end.map_or(part.len(), |at| at + 1);
        if line.len() + taken > max_bytes {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the line is too long"));
        }
        line.extend_from_slice(&part[..taken]);
        from.consume(taken);
        if end.is_some() {
            break;
        }
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_a_bound_and_an_end() {
        let mut bytes = Vec::new();
        write(&mut bytes, &vec![1, 2]).unwrap();
        write(&mut bytes, &vec![3]).unwrap();
        let mut from = bytes.as_slice();
        assert_eq!(read::<Vec<u8>>(&mut from, 100).unwrap(), Some(vec![1, 2]));
        assert_eq!(read::<Vec<u8>>(&mut from, 100).unwrap(), Some(vec![3]));
        assert_eq!(read::<Vec<u8>>(&mut from, 100).unwrap(), None);
        let kind = |bytes: &[u8], max| read::<Vec<u8>>(&mut &*bytes, max).unwrap_err().kind();
        assert_eq!(kind(b"[1", 100), io::ErrorKind::UnexpectedEof);
        assert_eq!(kind(b"[1]\n", 3), io::ErrorKind::InvalidData);
        assert_eq!(kind(b"{}\n", 100), io::ErrorKind::InvalidData);
    }
}
