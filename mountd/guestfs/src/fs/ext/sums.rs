//! Checksums of ext4 and its journal. Source: Linux `Documentation/filesystems/ext4/checksums.rst`.

use crc_fast::{CrcAlgorithm, Digest};

/// CRC-32C from `seed` on, as ext4 and jbd2 keep it: not inverted at the end, so that it can go on.
pub(super) fn crc(seed: u32, parts: &[&[u8]]) -> u32 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, seed.into());
    for part in parts {
        digest.update(part);
    }
    !(digest.finalize() as u32)
}

/// CRC-16 with the polynomial 0x8005, from 0xffff on: of group descriptors before `metadata_csum`.
pub(super) fn crc16(parts: &[&[u8]]) -> u16 {
    let mut crc = u16::MAX;
    for byte in parts.iter().copied().flatten() {
        crc ^= u16::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 != 0 { crc >> 1 ^ 0xa001 } else { crc >> 1 };
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_usual_text() {
        assert_eq!(crc(u32::MAX, &[b"123456789"]), !0xe306_9283);
        assert_eq!(crc(crc(u32::MAX, &[b"1234"]), &[b"56789"]), !0xe306_9283);
        // CRC-16/MODBUS.
        assert_eq!(crc16(&[b"1234", b"56789"]), 0x4b37);
    }
}
