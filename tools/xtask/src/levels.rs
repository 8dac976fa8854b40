//! Which crate may use which: imports only go down, checked from `cargo metadata`.

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

use crate::env::House;

/// Crates by level, lowest first. A crate may use crates that stand before it.
const LEVELS: &[&str] = &[
    "backstay-format",
    "backstay-blockdev",
    "backstay-serve",
    "backstay-nbd",
    "backstay-iscsi",
    "backstay-api",
    "backstay-guestfs",
    "backstay-store",
    "backstay-daemon",
    "backstay-core",
    "backstay-server",
    "backstay",
];

/// Crates beside the levels: they may use anything (`backstay-tests`) or nothing (`xtask`), and
/// nobody may use them.
const TESTS: &str = "backstay-tests";
const XTASK: &str = "xtask";

/// Steps down that are still not allowed, with the reason.
const APART: &[(&str, &str, &str)] = &[
    ("backstay-blockdev", "backstay-format", "a block device knows nothing of chunks"),
    ("backstay-serve", "backstay-format", "servers know nothing of chunks"),
    ("backstay-serve", "backstay-blockdev", "servers of any door share it"),
    ("backstay-nbd", "backstay-format", "the protocol crates serve any BlockDevice"),
    ("backstay-iscsi", "backstay-format", "the protocol crates serve any BlockDevice"),
    ("backstay-iscsi", "backstay-nbd", "the protocol crates know nothing of each other"),
    ("backstay-guestfs", "backstay-format", "guestfs reads any BlockDevice"),
    ("backstay-guestfs", "backstay-nbd", "guestfs reads any BlockDevice"),
    ("backstay-guestfs", "backstay-iscsi", "guestfs reads any BlockDevice"),
    ("backstay-store", "backstay-nbd", "the store knows nothing of how it is opened"),
    ("backstay-store", "backstay-iscsi", "the store knows nothing of how it is opened"),
];

/// Dependencies that belong to few crates (tests of a crate may use them anywhere).
const KEPT_TO: &[(&str, &[&str], &str)] = &[
    ("rocksdb", &["backstay-store"], "only the store has an index"),
    ("object_store", &["backstay-store"], "only the store talks to a storage"),
    ("fuser", &["backstay-daemon"], "only the mount daemon knows FUSE"),
    ("clap", &["backstay", TESTS, XTASK], "only the outermost crates know arguments"),
    ("anyhow", &["backstay", TESTS, XTASK], "libraries answer with their own error"),
    ("indicatif", &["backstay"], "only the command line knows the terminal"),
    ("rpassword", &["backstay"], "only the command line knows the terminal"),
    (
        "tokio",
        &[
            // Inside, behind the synchronous trait: the S3 client's connections.
            "backstay-store",
            "backstay-serve",
            "backstay-nbd",
            "backstay-iscsi",
            "backstay-daemon",
            "backstay-server",
            "backstay",
            TESTS,
        ],
        "devices and engine are synchronous, and so is the store to its callers",
    ),
];

/// What ARCHITECTURE.md says of it; the line that holds these words is quoted in every error.
const RULE_WORDS: &str = "import may only go down";

/// The workspace as cargo sees it; with all dependencies (fetched if need be) or members alone.
pub(crate) fn metadata(house: &House, with_dependencies: bool) -> Result<Metadata> {
    let mut command = MetadataCommand::new();
    command.manifest_path(house.path("Cargo.toml"));
    if !with_dependencies {
        command.no_deps();
    }
    command.exec().context("cargo cannot read the workspace")
}

/// Every edge that breaks the rule, as a sentence. Empty when all is well.
pub(crate) fn check(metadata: &Metadata, architecture: &str) -> Vec<String> {
    let mut broken = Vec::new();
    let rule = sentence(architecture);
    if rule.is_none() {
        broken.push(format!("ARCHITECTURE.md has no sentence with the words `{RULE_WORDS}`"));
    }
    let rule = rule.unwrap_or_else(|| format!("An {RULE_WORDS}."));
    let members: Vec<&Package> = metadata.workspace_packages();
    for package in &members {
        let name = package.name.as_str();
        if level(name).is_none() && name != TESTS && name != XTASK {
            broken.push(format!("crate {name} has no level: add it to tools/xtask/src/levels.rs"));
        }
        for dependency in &package.dependencies {
            let to = dependency.name.as_str();
            // A crate's tests may ask for more of its own features.
            if to == name && dependency.kind == DependencyKind::Development {
                continue;
            }
            let inside = members.iter().any(|m| m.name.as_str() == to);
            let why = if inside {
                edge(name, to)
            } else if dependency.kind == DependencyKind::Normal {
                kept(name, to)
            } else {
                None
            };
            if let Some(why) = why {
                broken.push(format!("{name} uses {to}: {why}. {rule}"));
            }
        }
    }
    broken
}

fn level(name: &str) -> Option<usize> {
    LEVELS.iter().position(|l| *l == name)
}

fn edge(from: &str, to: &str) -> Option<&'static str> {
    if from == XTASK {
        return Some("the chores must build when nothing else does");
    }
    if to == TESTS || to == XTASK {
        return Some("nobody uses the tests or the chores");
    }
    if from == TESTS {
        return None;
    }
    if let Some((_, _, why)) = APART.iter().find(|(a, b, _)| *a == from && *b == to) {
        return Some(why);
    }
    match (level(from), level(to)) {
        (Some(from), Some(to)) if to < from => None,
        (Some(_), Some(_)) => Some("that crate does not stand below it"),
        // A crate without a level is reported once, by itself.
        _ => None,
    }
}

fn kept(from: &str, to: &str) -> Option<&'static str> {
    let (_, allowed, why) = KEPT_TO.iter().find(|(name, _, _)| *name == to)?;
    (!allowed.contains(&from)).then_some(why)
}

fn sentence(architecture: &str) -> Option<String> {
    let line = architecture.lines().find(|line| line.contains(RULE_WORDS))?;
    Some(format!("ARCHITECTURE.md: \"{}\"", line.trim_start_matches(['-', '#', '>', ' ']).trim()))
}

#[cfg(test)]
mod tests {
    use super::{LEVELS, edge, kept, sentence};

    #[test]
    fn down_is_allowed_and_up_and_sideways_are_not() {
        assert_eq!(edge("backstay-store", "backstay-format"), None);
        assert_eq!(edge("backstay", "backstay-core"), None);
        assert_eq!(edge("backstay-core", "backstay-daemon"), None);
        assert!(edge("backstay-format", "backstay-store").is_some());
        assert!(edge("backstay-daemon", "backstay-core").is_some());
        assert!(edge("backstay-format", "backstay-format").is_some());
    }

    #[test]
    fn every_pair_of_levels_is_allowed_in_at_most_one_direction() {
        for a in LEVELS {
            for b in LEVELS {
                assert!(edge(a, b).is_some() || edge(b, a).is_some(), "{a} and {b} use each other");
            }
        }
    }

    #[test]
    fn the_protocol_crates_do_not_know_chunks_and_nobody_uses_the_tests() {
        assert!(edge("backstay-nbd", "backstay-format").is_some());
        assert!(edge("backstay-core", "backstay-tests").is_some());
        assert!(edge("xtask", "backstay-format").is_some());
        assert_eq!(edge("backstay-tests", "backstay-core"), None);
    }

    #[test]
    fn some_dependencies_are_kept_to_some_crates() {
        assert_eq!(kept("backstay-store", "rocksdb"), None);
        assert!(kept("backstay-core", "rocksdb").is_some());
        assert!(kept("backstay-core", "tokio").is_some());
        assert_eq!(kept("backstay-store", "blake3"), None);
    }

    #[test]
    fn the_error_quotes_the_document() {
        let text = "# Map\n\n- Levels, lowest first; an import may only go down.\n";
        let quoted = sentence(text).expect("the line is there");
        assert!(quoted.contains("Levels, lowest first; an import may only go down."), "{quoted}");
        assert_eq!(sentence("nothing"), None);
    }
}
