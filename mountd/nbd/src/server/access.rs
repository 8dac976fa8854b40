//! Who may use an export, and how.

use backstay_serve::{IpPrefix, Peer};

use super::peer::ClientInfo;

/// What a client may do with an export. The order is that of power.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Permission {
    /// Read, also where the device could be written.
    ReadOnly,
    /// Whatever the device can do.
    ReadWrite,
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
    use std::net::IpAddr;

    use super::super::peer::ClientCertificate;
    use super::*;

    fn tcp(address: &str) -> ClientInfo {
        let address = (address.parse::<IpAddr>().unwrap(), 5).into();
        ClientInfo { peer: Peer::Tcp(address), certificate: None }
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
