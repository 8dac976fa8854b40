//! Who may use a target, and how.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use backstay_serve::IpPrefix;

use crate::error::{Error, ErrorKind};
use crate::proto::is_name;

/// Who may use a target, and how: by address, by initiator name, or both together.
///
/// Anybody can give any name: where not only trusted hosts reach the target, a name without CHAP keeps nobody out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    initiator: Option<String>,
    addresses: Option<IpPrefix>,
    read_only: bool,
}

impl Rule {
    /// Whether the rule lets this initiator write; `None` if it is not for it.
    fn of(&self, initiator: &str, address: IpAddr) -> Option<bool> {
        let named = self.initiator.as_deref().is_none_or(|name| name == initiator);
        let here = self.addresses.is_none_or(|range| range.contains(address));
        (named && here).then_some(!self.read_only)
    }
}

/// The most that any of `rules` gives to an initiator: whether it may write; `None` is nothing at all, not even to know
/// of the target. Without rules whoever comes from this host may do all.
pub(super) fn allowed(rules: &[Rule], initiator: &str, address: IpAddr) -> Option<bool> {
    if rules.is_empty() {
        return address.to_canonical().is_loopback().then_some(true);
    }
    rules.iter().filter_map(|rule| rule.of(initiator, address)).max()
}

impl FromStr for Rule {
    type Err = Error;

    /// `ADDRESS`, `ADDRESS/BITS`, an initiator's name (`iqn.…`, `eui.…`, `naa.…`), or `NAME@ADDRESS/BITS` for both; with
    /// `=ro` behind it for reading only.
    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || {
            let why = format!("{text:?} is neither an initiator's name nor a range of addresses");
            Error::new(ErrorKind::Invalid, why)
        };
        let (who, read_only) = match text.strip_suffix("=ro") {
            Some(who) => (who, true),
            None => (text, false),
        };
        let (name, range) = match who.split_once('@') {
            Some((name, range)) => (Some(name), Some(range)),
            None if who.starts_with(|c: char| c.is_ascii_hexdigit() || c == ':')
                && !who.starts_with("eui.") =>
            {
                (None, Some(who))
            }
            None => (Some(who), None),
        };
        let initiator = name.map(str::to_ascii_lowercase);
        if initiator.as_deref().is_some_and(|name| !is_name(name)) {
            return Err(bad());
        }
        let addresses = range.map(|range| range.parse().map_err(|_| bad())).transpose()?;
        Ok(Self { initiator, addresses, read_only })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.initiator, &self.addresses) {
            (Some(name), Some(range)) => write!(f, "{name}@{range}")?,
            (Some(name), None) => f.write_str(name)?,
            (None, Some(range)) => write!(f, "{range}")?,
            (None, None) => {}
        }
        f.write_str(if self.read_only { "=ro" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "iqn.1993-08.org.debian:01:web";

    fn ask(rules: &[&str], name: &str, address: &str) -> Option<bool> {
        let rules: Vec<Rule> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        allowed(&rules, name, address.parse().unwrap())
    }

    #[test]
    fn without_rules_only_this_host() {
        assert_eq!(ask(&[], WEB, "127.0.0.1"), Some(true));
        assert_eq!(ask(&[], WEB, "::1"), Some(true));
        assert_eq!(ask(&[], WEB, "10.0.0.1"), None);
    }

    #[test]
    fn rules_by_name_address_and_both() {
        assert_eq!(ask(&[WEB], WEB, "10.0.0.1"), Some(true));
        assert_eq!(ask(&[WEB], "iqn.2001-01.com.other", "10.0.0.1"), None);
        // With rules, this host has no right of its own.
        assert_eq!(ask(&[WEB], "iqn.2001-01.com.other", "127.0.0.1"), None);
        assert_eq!(ask(&["10.0.0.0/8=ro"], WEB, "10.9.9.9"), Some(false));
        let both = format!("{}@10.0.0.7", WEB.to_uppercase());
        assert_eq!(ask(&[&both], WEB, "10.0.0.7"), Some(true));
        assert_eq!(ask(&[&both], WEB, "10.0.0.8"), None);
        assert_eq!(ask(&["10.0.0.0/8=ro", &both], WEB, "10.0.0.7"), Some(true));
        assert_eq!(ask(&["fe80::/10"], WEB, "fe80::1"), Some(true));
    }

    #[test]
    fn what_is_no_rule() {
        for bad in [
            "",
            "web01",
            "iqn.",
            "10.0.0.1/8",
            "=ro",
            "iqn.2001-01.com.x@",
            "iqn.2001-01.com.a b",
            "@10.0.0.1",
        ] {
            assert!(bad.parse::<Rule>().is_err(), "{bad}");
        }
        for good in [WEB, "10.0.0.0/8=ro", "eui.02004567a425678d", "naa.52004567ba64678d=ro"] {
            assert_eq!(
                good.parse::<Rule>().unwrap().to_string().parse::<Rule>().unwrap(),
                good.parse().unwrap()
            );
        }
    }
}
