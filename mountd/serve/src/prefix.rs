//! Ranges of IP addresses.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::error::{Error, ErrorKind};

/// A range of IP addresses: an address and how many of its first bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IpPrefix {
    address: IpAddr,
    bits: u8,
}

impl IpPrefix {
    /// The addresses that share the first `bits` bits of `address`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if the address has fewer bits, or has bits set behind them: that is
    /// nearly always a slip, and the range would not be the one meant.
    pub fn new(address: IpAddr, bits: u8) -> Result<Self, Error> {
        let all = if address.is_ipv4() { 32 } else { 128 };
        if bits > all {
            let why = format!("{address}/{bits}: the address has only {all} bits");
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        let prefix = Self { address, bits };
        if prefix.masked(address) != as_bits(address) {
            let why = format!("{address}/{bits}: bits are set behind the prefix");
            return Err(Error::new(ErrorKind::Invalid, why));
        }
        Ok(prefix)
    }

    /// Whether `address` is in the range. IPv4 and its form inside IPv6 are the same address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && self.masked(address) == as_bits(self.address)
    }

    /// The first bits of an address of the same family, at the top of 128.
    fn masked(&self, address: IpAddr) -> u128 {
        match self.bits {
            0 => 0,
            bits => as_bits(address) & (u128::MAX << (128 - u32::from(bits))),
        }
    }
}

fn as_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl FromStr for IpPrefix {
    type Err = Error;

    /// `ADDRESS/BITS`, or an address alone.
    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::new(ErrorKind::Invalid, format!("{text:?} is no range of addresses"));
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse().map_err(|_| bad())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        Self::new(address, bits.unwrap_or(if address.is_ipv4() { 32 } else { 128 }))
    }
}

impl fmt::Display for IpPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        for (prefix, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("192.168.7.0/31", "192.168.7.1", "192.168.7.2"),
            ("127.0.0.1", "::ffff:127.0.0.1", "127.0.0.2"),
            ("0.0.0.0/0", "203.0.113.9", "::1"),
            ("::/0", "fe80::1", "1.2.3.4"),
            ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::1"),
        ] {
            let parsed: IpPrefix = prefix.parse().unwrap();
            assert!(parsed.contains(inside.parse().unwrap()), "{prefix} {inside}");
            assert!(!parsed.contains(outside.parse().unwrap()), "{prefix} {outside}");
            assert_eq!(parsed.to_string().parse::<IpPrefix>().unwrap(), parsed);
        }
        for bad in ["", "10.0.0.0/33", "10.0.0.1/8", "::1/129", "x/8", "10.0.0.0/-1", "10.0.0/8"] {
            assert!(bad.parse::<IpPrefix>().is_err(), "{bad}");
        }
    }
}
