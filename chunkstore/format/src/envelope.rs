//! The frame around small objects: configuration, key slots, recovery points.
//!
//! The checksum is plain BLAKE3, so damage is told from a wrong key: a frame whose checksum holds
//! and whose payload does not open was sealed under another key.

use crate::{Field, FormatError, RepoId, magic};

/// Magic of the object's kind.
pub const MAGIC: Field = Field::new("magic", 0, 8);
/// Format version.
pub const VERSION: Field = MAGIC.then("version", 2);
/// Bit 0: the payload is sealed.
pub const FLAGS: Field = VERSION.then("flags", 2);
/// Payload bytes that follow the head.
pub const PAYLOAD_LEN: Field = FLAGS.then("payload_len", 4);
/// The repository the object belongs to.
pub const REPO_ID: Field = PAYLOAD_LEN.then("repo_id", RepoId::LEN);
/// The fields of the head, in order.
pub const FIELDS: [Field; 5] = [MAGIC, VERSION, FLAGS, PAYLOAD_LEN, REPO_ID];
/// Bytes before the payload.
pub const HEAD_LEN: usize = REPO_ID.end();
/// Bytes of the checksum after the payload.
pub const CHECKSUM_LEN: usize = 32;
/// Flag: the payload is sealed (FORMAT.md, Sealed payloads).
pub const FLAG_SEALED: u16 = 1;

const _: () = assert!(HEAD_LEN == 32);

/// A small object, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The repository the object says it belongs to.
    pub repo_id: RepoId,
    /// Whether the payload is sealed.
    pub sealed: bool,
    /// The payload as stored.
    pub payload: Vec<u8>,
}

impl Envelope {
    /// The object's bytes. Same input, same bytes.
    pub fn encode(&self, magic: [u8; 8]) -> Result<Vec<u8>, FormatError> {
        let len = u32::try_from(self.payload.len())
            .map_err(|_| FormatError::invalid("payload_len", "the payload is too long"))?;
        let mut out = vec![0u8; HEAD_LEN];
        MAGIC.put(&mut out, &magic);
        VERSION.put(&mut out, &magic::VERSION.to_le_bytes());
        FLAGS.put(&mut out, &u16::from(self.sealed).to_le_bytes());
        PAYLOAD_LEN.put(&mut out, &len.to_le_bytes());
        REPO_ID.put(&mut out, self.repo_id.as_bytes());
        out.extend_from_slice(&self.payload);
        let sum = blake3::hash(&out);
        out.extend_from_slice(sum.as_bytes());
        Ok(out)
    }

    /// Takes an object apart. Anything but a whole, undamaged object of this kind is an error;
    /// `payload_max` bounds what is accepted.
    pub fn decode(bytes: &[u8], magic: [u8; 8], payload_max: u32) -> Result<Self, FormatError> {
        if MAGIC.bytes(bytes)? != magic {
            return Err(FormatError::damaged("magic", "this is not an object of that kind"));
        }
        let len = PAYLOAD_LEN.u32(bytes)?;
        if len > payload_max {
            return Err(FormatError::damaged("payload_len", format!("{len} bytes is too long")));
        }
        let end = HEAD_LEN + len as usize;
        if bytes.len() != end + CHECKSUM_LEN {
            return Err(FormatError::damaged(
                "payload_len",
                format!("the object is {} bytes and should be {}", bytes.len(), end + CHECKSUM_LEN),
            ));
        }
        if blake3::hash(&bytes[..end]).as_bytes() != &bytes[end..] {
            return Err(FormatError::damaged("checksum", "the checksum does not match"));
        }
        // Only now: a damaged version must not pass for a newer one.
        let version = VERSION.u16(bytes)?;
        if version != magic::VERSION {
            return Err(FormatError::unsupported("version", format!("version {version}")));
        }
        let flags = FLAGS.u16(bytes)?;
        if flags & !FLAG_SEALED != 0 {
            return Err(FormatError::unsupported("flags", format!("flags {flags:#x}")));
        }
        Ok(Self {
            repo_id: RepoId::from_bytes(REPO_ID.array(bytes)?),
            sealed: flags & FLAG_SEALED != 0,
            payload: bytes[HEAD_LEN..end].to_vec(),
        })
    }

    /// What a sealed payload is bound to: the head, so it cannot be moved or retyped.
    pub fn associated_data(magic: [u8; 8], repo_id: RepoId, name: &[u8]) -> Vec<u8> {
        let mut aad = Vec::with_capacity(8 + 2 + RepoId::LEN + name.len());
        aad.extend_from_slice(&magic);
        aad.extend_from_slice(&magic::VERSION.to_le_bytes());
        aad.extend_from_slice(repo_id.as_bytes());
        aad.extend_from_slice(name);
        aad
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FormatErrorKind;

    fn sample() -> Vec<u8> {
        Envelope {
            repo_id: RepoId::from_bytes([7; 16]),
            sealed: true,
            payload: b"payload".to_vec(),
        }
        .encode(magic::POINT)
        .unwrap()
    }

    #[test]
    fn there_and_back() {
        let e = Envelope::decode(&sample(), magic::POINT, 100).unwrap();
        assert_eq!(e.payload, b"payload");
        assert!(e.sealed);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let good = sample();
        for i in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[i / 8] ^= 1 << (i % 8);
            let e = Envelope::decode(&bad, magic::POINT, 100).unwrap_err();
            assert_eq!(e.kind(), FormatErrorKind::Damaged, "bit {i}: {e}");
        }
        for n in 0..good.len() {
            assert!(Envelope::decode(&good[..n], magic::POINT, 100).is_err(), "cut at {n}");
        }
        let mut long = good.clone();
        long.push(0);
        assert!(Envelope::decode(&long, magic::POINT, 100).is_err());
    }

    #[test]
    fn kind_version_and_bound() {
        assert!(Envelope::decode(&sample(), magic::CONFIG, 100).is_err());
        assert!(Envelope::decode(&sample(), magic::POINT, 3).is_err());
        let mut newer = sample();
        newer[VERSION.offset] = 9;
        let end = newer.len() - CHECKSUM_LEN;
        let sum = blake3::hash(&newer[..end]);
        newer[end..].copy_from_slice(sum.as_bytes());
        let e = Envelope::decode(&newer, magic::POINT, 100).unwrap_err();
        assert_eq!(e.kind(), FormatErrorKind::Unsupported);
    }
}
