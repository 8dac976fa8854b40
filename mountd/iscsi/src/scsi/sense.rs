//! Sense data (SPC-4, 4.5): why a command did not go well.

/// Sense keys (SPC-4, 4.5.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Key {
    None = 0x0,
    Medium = 0x3,
    Hardware = 0x4,
    IllegalRequest = 0x5,
    UnitAttention = 0x6,
    DataProtect = 0x7,
    AbortedCommand = 0xb,
    Miscompare = 0xe,
}

/// An additional sense code and its qualifier.
pub(super) type Code = (u8, u8);

/// Which field is wrong (SPC-4, 4.5.2.4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    /// It is in the CDB, not in the parameter list.
    in_cdb: bool,
    byte: u16,
    bit: Option<u8>,
}

/// Why a command did not go well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sense {
    pub(super) key: Key,
    pub(super) code: Code,
    /// The INFORMATION field: a block, or an offset.
    pub(super) information: Option<u64>,
    pub(super) field: Option<Field>,
}

impl Sense {
    pub(super) const fn new(key: Key, code: Code) -> Self {
        Self { key, code, information: None, field: None }
    }

    pub(super) const fn illegal(code: Code) -> Self {
        Self::new(Key::IllegalRequest, code)
    }

    /// INVALID COMMAND OPERATION CODE.
    pub(super) const fn opcode() -> Self {
        Self::illegal((0x20, 0x00))
    }

    /// INVALID FIELD IN CDB, with the field.
    pub(super) const fn cdb(byte: u16) -> Self {
        let field = Some(Field { in_cdb: true, byte, bit: None });
        Self { field, ..Self::illegal((0x24, 0x00)) }
    }

    /// The same, with the bit at which the field starts.
    pub(super) const fn cdb_bit(byte: u16, bit: u8) -> Self {
        let field = Some(Field { in_cdb: true, byte, bit: Some(bit) });
        Self { field, ..Self::illegal((0x24, 0x00)) }
    }

    /// INVALID FIELD IN PARAMETER LIST, with the field.
    pub(super) const fn parameter(byte: u16) -> Self {
        let field = Some(Field { in_cdb: false, byte, bit: None });
        Self { field, ..Self::illegal((0x26, 0x00)) }
    }

    /// PARAMETER LIST LENGTH ERROR.
    pub(super) const fn list_length() -> Self {
        Self::illegal((0x1a, 0x00))
    }

    /// LOGICAL BLOCK ADDRESS OUT OF RANGE.
    pub(super) const fn range() -> Self {
        Self::illegal((0x21, 0x00))
    }

    /// WRITE PROTECTED.
    pub(super) const fn protected() -> Self {
        Self::new(Key::DataProtect, (0x27, 0x00))
    }

    /// MISCOMPARE DURING VERIFY OPERATION, with the offset of the first byte that differs.
    pub(super) const fn miscompare(offset: u64) -> Self {
        let information = Some(offset);
        Self { information, ..Self::new(Key::Miscompare, (0x1d, 0x00)) }
    }

    /// The bytes, in the format the initiators asked for (D_SENSE of the control mode page).
    pub(super) fn encode(&self, descriptors: bool) -> Vec<u8> {
        if descriptors { self.in_descriptors() } else { self.fixed() }
    }

    /// Fixed format (SPC-4, 4.5.3).
    fn fixed(&self) -> Vec<u8> {
        let mut sense = vec![0; 18];
        sense[0] = 0x70;
        sense[2] = self.key as u8;
        // A block that does not fit is not told (VALID stays 0).
        if let Some(information) = self.information.and_then(|info| u32::try_from(info).ok()) {
            sense[0] |= 0x80;
            sense[3..7].copy_from_slice(&information.to_be_bytes());
        }
        sense[7] = 10;
        (sense[12], sense[13]) = self.code;
        if let Some(field) = self.field {
            sense[15..18].copy_from_slice(&field.encode());
        }
        sense
    }

    /// Descriptor format (SPC-4, 4.5.2).
    fn in_descriptors(&self) -> Vec<u8> {
        let mut sense = vec![0x72, self.key as u8, self.code.0, self.code.1, 0, 0, 0, 0];
        if let Some(information) = self.information {
            sense.extend([0x00, 0x0a, 0x80, 0x00]);
            sense.extend(information.to_be_bytes());
        }
        if let Some(field) = self.field {
            sense.extend([0x02, 0x06, 0x00, 0x00]);
            sense.extend(field.encode());
            sense.push(0);
        }
        sense[7] = (sense.len() - 8) as u8;
        sense
    }
}

impl Field {
    /// The sense-key specific bytes.
    fn encode(self) -> [u8; 3] {
        let [high, low] = self.byte.to_be_bytes();
        let place = if self.in_cdb { 0x40 } else { 0 };
        let bit = self.bit.map_or(0, |bit| 0x08 | bit & 0x07);
        [0x80 | place | bit, high, low]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_and_descriptors() {
        let sense = Sense::cdb_bit(2, 3);
        assert_eq!(
            sense.encode(false),
            [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xcb, 0, 2]
        );
        assert_eq!(sense.encode(true), [0x72, 5, 0x24, 0, 0, 0, 0, 8, 2, 6, 0, 0, 0xcb, 0, 2, 0]);
        let sense = Sense::miscompare(513);
        assert_eq!(sense.encode(false)[..8], [0xf0, 0, 0xe, 0, 0, 2, 1, 10]);
        assert_eq!(sense.encode(true)[8..], [0, 0xa, 0x80, 0, 0, 0, 0, 0, 0, 0, 2, 1]);
        let far = Sense::miscompare(1 << 40);
        assert_eq!(
            far.encode(false)[0],
            0x70,
            "a block beyond 32 bits is not valid in fixed format"
        );
    }
}
