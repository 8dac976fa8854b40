//! Licences of everything that is compiled in, against the list in `deny.toml`.
//!
//! `cargo deny` checks the same list and more, where it is installed; this check needs nothing.

use anyhow::{Context, Result, bail};
use cargo_metadata::Metadata;

/// Deepest nesting of parentheses in a licence expression.
const MAX_DEPTH: usize = 8;

/// The licences that `deny.toml` allows.
pub(crate) fn allowed(deny: &str) -> Result<Vec<String>> {
    let (_, section) = deny.split_once("[licenses]").context("deny.toml has no [licenses]")?;
    let (_, list) = section.split_once("allow = [").context("deny.toml allows no licence")?;
    let (list, _) = list.split_once(']').context("the list of licences does not end")?;
    let names: Vec<String> = list.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    if names.is_empty() {
        bail!("deny.toml allows no licence");
    }
    Ok(names)
}

/// Every dependency whose licence is not allowed, as a sentence.
pub(crate) fn check(metadata: &Metadata, allowed: &[String]) -> Vec<String> {
    let mut findings = Vec::new();
    for package in metadata.packages.iter().filter(|p| p.source.is_some()) {
        let name = format!("{} {}", package.name, package.version);
        match &package.license {
            None => findings.push(format!("{name} names no licence")),
            Some(licence) if !permits(licence, allowed) => {
                findings.push(format!("{name} is under {licence}, which deny.toml does not allow"));
            }
            Some(_) => {}
        }
    }
    findings
}

/// True when the SPDX expression can be met with allowed licences alone. What cannot be read is
/// not allowed.
fn permits(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, at: 0, allowed };
    parser.any(0) == Some(true) && parser.at == words.len()
}

struct Parser<'a> {
    words: &'a [&'a str],
    at: usize,
    allowed: &'a [String],
}

impl<'a> Parser<'a> {
    fn take(&mut self, word: &str) -> bool {
        let there = self.words.get(self.at) == Some(&word);
        self.at += usize::from(there);
        there
    }

    /// `a OR b`: one is enough.
    fn any(&mut self, depth: usize) -> Option<bool> {
        let mut met = self.all(depth)?;
        while self.take("OR") {
            met |= self.all(depth)?;
        }
        Some(met)
    }

    /// `a AND b`: both are due.
    fn all(&mut self, depth: usize) -> Option<bool> {
        let mut met = self.one(depth)?;
        while self.take("AND") {
            met &= self.one(depth)?;
        }
        Some(met)
    }

    fn one(&mut self, depth: usize) -> Option<bool> {
        if depth > MAX_DEPTH {
            return None;
        }
        if self.take("(") {
            let met = self.any(depth + 1)?;
            return self.take(")").then_some(met);
        }
        let mut name = (*self.words.get(self.at)?).to_owned();
        self.at += 1;
        if self.take("WITH") {
            name = format!("{name} WITH {}", self.words.get(self.at)?);
            self.at += 1;
        }
        Some(self.allowed.contains(&name))
    }
}

#[cfg(test)]
mod tests {
    use super::{allowed, permits};

    #[test]
    fn the_list_is_read() {
        let text = "[licenses]\nx = 1\nallow = [\n  \"MIT\",\n  \"Apache-2.0\",\n]\n";
        assert_eq!(allowed(text).expect("a list"), ["MIT", "Apache-2.0"]);
        assert!(allowed("[licenses]\nallow = []\n").is_err());
        assert!(allowed("").is_err());
    }

    #[test]
    fn expressions_are_met_by_allowed_licences_alone() {
        let list: Vec<String> =
            ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
        for yes in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-3.0/MIT",
            "ISC AND (GPL-3.0 OR MIT)",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(permits(yes, &list), "{yes}");
        }
        for no in [
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "Apache-2.0",
            "ISC AND (GPL-3.0 OR LGPL-2.1)",
            "MIT OR",
            "(MIT",
            "MIT MIT",
            "",
            "((((((((((MIT))))))))))",
        ] {
            assert!(!permits(no, &list), "{no}");
        }
    }
}
