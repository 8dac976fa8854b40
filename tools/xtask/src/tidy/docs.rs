//! Documents that must keep up with the tree: the map, the ordering rules, the two commands.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use cargo_metadata::Metadata;

use super::{Finding, marks, relative};
use crate::env::House;

const ARCHITECTURE: &str = "ARCHITECTURE.md";
const FORMAT: &str = "chunkstore/docs/FORMAT.md";
/// Highest ordering rule a document could name.
const MAX_RULES: usize = 99;
/// The command of README.md that CI runs.
const TEST_COMMAND: &str = "cargo xtask test";

/// Compares the documents with the tree.
pub(super) fn check(house: &House, metadata: &Metadata, files: &[PathBuf]) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let read = |path: &str| fs::read_to_string(house.path(path)).ok();
    for path in [ARCHITECTURE, FORMAT, "README.md", ".ci/run"] {
        if read(path).is_none() {
            findings.push(finding(path, 0, "missing"));
        }
    }
    if let Some(text) = read(ARCHITECTURE) {
        let folders: Vec<String> = metadata
            .workspace_packages()
            .iter()
            .filter_map(|p| p.manifest_path.parent())
            .map(|dir| relative(&house.root, Path::new(dir.as_str())))
            .collect();
        findings.extend(headings(&text, &folders));
        findings.extend(paths(&text, &|path| house.path(path).exists()));
    }
    if let Some(text) = read(FORMAT) {
        // The chores speak of rules in general, and of compiler flags that look like rules.
        let sources = files.iter().filter(|f| f.extension().is_some_and(|e| e == "rs"));
        let sources = sources
            .map(|file| (relative(&house.root, file), file))
            .filter(|(path, _)| !path.starts_with("tools/xtask/"));
        let texts: BTreeMap<String, String> = sources
            .filter_map(|(path, file)| Some((path, fs::read_to_string(file).ok()?)))
            .collect();
        findings.extend(rules(&text, &texts));
    }
    if let (Some(readme), Some(ci)) = (read("README.md"), read(".ci/run")) {
        findings.extend(commands(&readme, &ci));
    }
    Ok(findings)
}

fn finding(path: &str, line: usize, what: impl Into<String>) -> Finding {
    Finding { path: path.to_owned(), line, what: what.into() }
}

/// Every crate folder has a heading in the map.
fn headings(text: &str, folders: &[String]) -> Vec<Finding> {
    let headings: Vec<&str> = text.lines().filter(|line| line.starts_with('#')).collect();
    let named = |folder: &str| {
        headings.iter().any(|heading| {
            heading.split(['`', ' ', ',', '(', ')', ':']).any(|w| w.trim_end_matches('/') == folder)
        })
    };
    let missing = folders.iter().filter(|folder| !named(folder));
    missing
        .map(|folder| finding(ARCHITECTURE, 0, format!("no heading names the crate `{folder}`")))
        .collect()
}

/// Every path that the map names in backticks is there.
fn paths(text: &str, exists: &dyn Fn(&str) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut fenced = false;
    for (number, line) in text.lines().enumerate() {
        fenced ^= line.trim_start().starts_with("```");
        if fenced {
            continue;
        }
        for word in line.split('`').skip(1).step_by(2) {
            if looks_like_path(word) && !exists(word.trim_end_matches('/')) {
                let what = format!("`{word}` is named and not there");
                findings.push(finding(ARCHITECTURE, number + 1, what));
            }
        }
    }
    findings
}

fn looks_like_path(word: &str) -> bool {
    const TOP: &[&str] = &["chunkstore/", "mountd/", "engine/", "tools/", "tests/", ".ci/"];
    let plain =
        word.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c)) && !word.is_empty();
    let file_at_top = !word.contains('/')
        && [".md", ".toml"].iter().any(|end| word.ends_with(end))
        && word.starts_with(|c: char| c.is_ascii_alphabetic());
    plain && (TOP.iter().any(|top| word.starts_with(top)) || file_at_top)
}

/// Ordering rules: what the code cites exists, and what exists is cited.
fn rules(format: &str, sources: &BTreeMap<String, String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let names: Vec<String> = (1..=MAX_RULES).map(|n| format!("O{n}")).collect();
    let defined: Vec<(&String, usize)> = names
        .iter()
        .filter_map(|name| Some((name, format.lines().position(|l| defines(l, name))? + 1)))
        .collect();
    if defined.is_empty() {
        findings.push(finding(FORMAT, 0, "no ordering rule O1, O2, ... at the start of a line"));
    }
    let cites =
        |text: &str, name: &str| text.contains(name) && text.lines().any(|l| cites(l, name));
    for name in &names {
        let known = defined.iter().any(|(d, _)| *d == name);
        for (path, text) in sources {
            if !known && cites(text, name) {
                findings.push(finding(path, 0, format!("cites {name}, which {FORMAT} lacks")));
            }
        }
    }
    for (name, line) in defined {
        if !sources.values().any(|text| cites(text, name)) {
            findings.push(finding(FORMAT, line, format!("no source file cites rule {name}")));
        }
    }
    findings
}

/// True for the line that states a rule: its name stands first, whatever marks surround it.
fn defines(line: &str, name: &str) -> bool {
    let start = line.trim_start_matches(['#', '-', '*', '|', '`', ' ', '.']);
    start.starts_with(name) && marks::has_word(start, name)
}

/// True when the line speaks of the rule; a compiler flag is not a rule.
fn cites(line: &str, name: &str) -> bool {
    marks::has_word(line, name) && !line.contains(&format!("-{name}"))
}

/// README.md offers the command that CI runs.
fn commands(readme: &str, ci: &str) -> Vec<Finding> {
    let says = |text: &str| text.lines().any(|line| line.trim() == TEST_COMMAND);
    let mut findings = Vec::new();
    for (path, text) in [("README.md", readme), (".ci/run", ci)] {
        if !says(text) {
            findings.push(finding(path, 0, format!("no line is exactly `{TEST_COMMAND}`")));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{commands, headings, paths, rules};

    #[test]
    fn a_crate_without_a_heading_is_found() {
        let folders = ["chunkstore/format".to_owned(), "tests".to_owned()];
        let text = "## `chunkstore/format` - bytes\n## tests/\n";
        assert!(headings(text, &folders).is_empty());
        assert_eq!(headings("## chunkstore/format2\n## tests\n", &folders).len(), 1);
        assert_eq!(headings("chunkstore/format tests\n", &folders).len(), 2);
    }

    #[test]
    fn a_path_that_is_not_there_is_found_with_its_line() {
        let text = "x\n`tools/cli` and `tools/gone.rs`, `a/b c`, `nbd://x`, `GONE.md`\n```\n`tests/no`\n```\n";
        let found = paths(text, &|path| path == "tools/cli");
        let seen: Vec<usize> = found.iter().map(|f| f.line).collect();
        assert_eq!(seen, [2, 2]);
        assert!(found[0].what.contains("tools/gone.rs") && found[1].what.contains("GONE.md"));
    }

    #[test]
    fn rules_and_citations_must_meet() {
        let format = "- **O1** the pack is durable first\n| O2 | then the point |\nsee O7\n";
        let source = |text: &str| BTreeMap::from([("a.rs".to_owned(), text.to_owned())]);
        assert!(rules(format, &source("// O1, O2\n")).is_empty());
        assert_eq!(rules(format, &source("// O1 (not -O2)\n")).len(), 1);
        let unknown = rules(format, &source("// O1 O2 O7\n"));
        assert_eq!((unknown.len(), unknown[0].path.as_str()), (1, "a.rs"));
        assert!(rules(format, &source("// O1 O2, FOO9, O99x\n")).is_empty());
        assert_eq!(rules("nothing\n", &source("")).len(), 1);
    }

    #[test]
    fn ci_runs_what_the_readme_says() {
        assert!(commands("    cargo xtask test\n", "set -e\ncargo xtask test\n").is_empty());
        assert_eq!(commands("cargo xtask test", "cargo test").len(), 1);
    }
}
