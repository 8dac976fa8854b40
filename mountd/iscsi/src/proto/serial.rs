//! Numbers that go round (RFC 1982, as RFC 7143 uses them).

/// A command or status number. Half of all numbers are before it, half behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Serial(u32);

impl Serial {
    /// The number as it is on the wire.
    pub fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number as it is on the wire.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The `n`th number behind it.
    #[must_use]
    pub fn plus(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n))
    }

    /// The `n`th number before it.
    #[must_use]
    pub fn minus(self, n: u32) -> Self {
        Self(self.0.wrapping_sub(n))
    }

    /// Whether it comes before `other`. Of two that are half way round from each other neither does.
    pub fn is_before(self, other: Self) -> bool {
        let ahead = other.0.wrapping_sub(self.0);
        ahead != 0 && ahead < 1 << 31
    }
}

#[cfg(test)]
mod tests {
    use super::Serial;

    #[test]
    fn numbers_go_round() {
        let last = Serial::new(u32::MAX);
        assert!(last.is_before(last.plus(1)) && !last.plus(1).is_before(last));
        assert_eq!(last.plus(1).get(), 0);
        assert!(!last.is_before(last));
        let far = Serial::new(0).plus(1 << 31);
        assert!(!far.is_before(Serial::new(0)) && !Serial::new(0).is_before(far));
    }
}
