//! The ratchets: what a reviewer should never have to say twice.
//!
//! Each rule is a function from text to findings, so that a test can show it bites.

mod docs;
mod marks;
mod reach;
mod shape;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cargo_metadata::Metadata;

use crate::env::House;

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Path from the clone's root.
    pub(crate) path: String,
    /// Line, from 1; 0 when the whole file is meant.
    pub(crate) line: usize,
    /// What is wrong and what to do.
    pub(crate) what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.what),
            line => write!(f, "{}:{line}: {}", self.path, self.what),
        }
    }
}

/// Runs every rule over the clone. Empty when all is well.
pub(crate) fn check(house: &House, metadata: &Metadata) -> Result<(Vec<Finding>, usize)> {
    let files = files_of(&house.root)?;
    let mut findings = Vec::new();
    let reached = reach::walk(&house.root, metadata)?;
    findings.extend(reached.findings);
    for file in &files {
        let path = relative(&house.root, file);
        let Ok(text) = fs::read_to_string(file) else { continue };
        findings.extend(marks::check(&path, &text));
        if path.ends_with(".rs") {
            match reached.sources.get(&path) {
                Some(only_tests) => findings.extend(shape::check(&path, &text, *only_tests)),
                None => findings.push(Finding {
                    path,
                    line: 0,
                    what: "no crate reaches this file: name it in a `mod` line or remove it".into(),
                }),
            }
        }
    }
    findings.extend(docs::check(house, metadata, &files)?);
    findings.sort_by(|a, b| (&a.path, a.line).cmp(&(&b.path, b.line)));
    Ok((findings, files.len()))
}

/// Files of the clone that are ours to keep in order: not cargo's, not git's.
fn files_of(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(dir) = open.pop() {
        let entries =
            fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
        for entry in entries {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name());
            let name = name.to_string_lossy();
            let kind = entry.file_type()?;
            if kind.is_dir() {
                let foreign = ["target", ".git", "node_modules"].contains(&name.as_ref());
                if !foreign {
                    open.push(path);
                }
            } else if kind.is_file() && name != "Cargo.lock" {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn relative(root: &Path, file: &Path) -> String {
    file.strip_prefix(root).unwrap_or(file).to_string_lossy().into_owned()
}
