//! Who may use an export, and how.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::peer::{ClientInfo, Peer};
use crate::error::{Error, ErrorKind};

/// What a client may do with an export. The order is that of power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Permission {
    /// Read, also where the device could be written.
    ReadOnly,
    /// Whatever the device can do.
    ReadWrite,
}

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

/// Whom a rule is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Who {
    /// TCP clients of these addresses.
    Addresses(IpPrefix),
    /// A user of this machine, over a Unix socket.
    User(u32),
    /// Whoever owns the certificate with this SHA-256.
    Fingerprint([u8; 32]),
    /// Whoever owns a certificate for this DNS name; no wildcards, letters of either case.
    DnsName(String),
}

impl Who {
    fn matches(&self, client: &ClientInfo) -> bool {
        match (self, client.peer, &client.certificate) {
            (Self::Addresses(prefix), Peer::Tcp(address), _) => prefix.contains(address.ip()),
            (Self::User(user), Peer::Unix { uid, .. }, _) => *user == uid,
            (Self::Fingerprint(sha256), _, Some(own)) => *sha256 == own.sha256,
            (Self::DnsName(name), _, Some(own)) => {
                own.dns_names.iter().any(|own| own.eq_ignore_ascii_case(name))
            }
            _ => false,
        }
    }
}

/// Who may use an export: rules, and what holds for everybody else. A client gets the most that any
/// rule that is for it gives, so the order of rules means nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    rules: Vec<(Who, Permission)>,
    others: Option<Permission>,
}

impl Access {
    /// Nobody, but for whom rules are added.
    pub fn nobody() -> Self {
        Self { rules: Vec::new(), others: None }
    }

    /// Everybody who can connect.
    pub fn everybody(permission: Permission) -> Self {
        Self { rules: Vec::new(), others: Some(permission) }
    }

    /// With a rule more.
    #[must_use]
    pub fn allow(mut self, who: Who, permission: Permission) -> Self {
        self.rules.push((who, permission));
        self
    }

    /// What a client may do; `None` is nothing at all, not even to know of the export.
    pub fn of(&self, client: &ClientInfo) -> Option<Permission> {
        let given = self.rules.iter().filter(|(who, _)| who.matches(client)).map(|(_, p)| *p);
        given.max().max(self.others)
    }
}

#[cfg(test)]
mod tests {
    use super::super::peer::ClientCertificate;
    use super::*;

    fn tcp(address: &str) -> ClientInfo {
        let address = (address.parse::<IpAddr>().unwrap(), 5).into();
        ClientInfo { peer: Peer::Tcp(address), certificate: None }
    }

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

    #[test]
    fn the_widest_rule_holds_and_the_default_is_no() {
        assert_eq!(Access::nobody().of(&tcp("10.0.0.1")), None);
        let wide = Who::Addresses("10.0.0.0/8".parse().unwrap());
        let one = Who::Addresses("10.0.0.1".parse().unwrap());
        let access = Access::nobody()
            .allow(one, Permission::ReadWrite)
            .allow(wide, Permission::ReadOnly)
            .allow(Who::User(0), Permission::ReadWrite);
        assert_eq!(access.of(&tcp("10.0.0.1")), Some(Permission::ReadWrite));
        assert_eq!(access.of(&tcp("10.0.0.2")), Some(Permission::ReadOnly));
        assert_eq!(access.of(&tcp("11.0.0.1")), None);
        let user =
            |uid| ClientInfo { peer: Peer::Unix { uid, gid: 0, pid: None }, certificate: None };
        assert_eq!(access.of(&user(0)), Some(Permission::ReadWrite));
        assert_eq!(access.of(&user(1)), None);
    }

    #[test]
    fn certificates_open_by_fingerprint_and_name() {
        let mut client = tcp("10.0.0.1");
        let by_name = Access::nobody().allow(Who::DnsName("A.b".into()), Permission::ReadOnly);
        let by_print = Access::nobody().allow(Who::Fingerprint([7; 32]), Permission::ReadWrite);
        assert_eq!((by_name.of(&client), by_print.of(&client)), (None, None));
        client.certificate = Some(ClientCertificate {
            sha256: [7; 32],
            common_name: Some("x".into()),
            dns_names: vec!["a.B".into()],
        });
        assert_eq!(by_name.of(&client), Some(Permission::ReadOnly));
        assert_eq!(by_print.of(&client), Some(Permission::ReadWrite));
    }
}
