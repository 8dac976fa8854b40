//! Which source files a crate reaches, by following `mod` lines from cargo's targets.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use cargo_metadata::Metadata;

use super::{Finding, relative, shape};

/// Files reached, each with whether it is compiled for tests alone.
#[derive(Debug, Default)]
pub(super) struct Reached {
    pub(super) sources: BTreeMap<String, bool>,
    pub(super) findings: Vec<Finding>,
}

/// Programs of workspaces of their own.
const BESIDE: &[&str] = &["tests/fuzz/src/main.rs"];

/// Follows every target of every member, and the programs beside the workspace.
pub(super) fn walk(root: &Path, metadata: &Metadata) -> Result<Reached> {
    let mut reached = Reached::default();
    for package in metadata.workspace_packages() {
        for target in &package.targets {
            let tests = target.is_test() || target.is_bench();
            follow(root, Path::new(target.src_path.as_str()), tests, &mut reached);
        }
    }
    for path in BESIDE {
        follow(root, &root.join(path), false, &mut reached);
    }
    Ok(reached)
}

/// A file to read: where its child modules lie, and whether only tests see it.
struct Open {
    file: PathBuf,
    children: PathBuf,
    only_tests: bool,
}

fn follow(root: &Path, start: &Path, only_tests: bool, reached: &mut Reached) {
    let children = start.parent().unwrap_or(root).to_path_buf();
    let mut open = vec![Open { file: start.to_path_buf(), children, only_tests }];
    while let Some(next) = open.pop() {
        let path = relative(root, &next.file);
        // Seen already and not more widely now: modules form a tree, so this ends.
        match reached.sources.get(&path) {
            Some(seen) if !*seen || next.only_tests => continue,
            _ => reached.sources.insert(path.clone(), next.only_tests),
        };
        let Ok(text) = fs::read_to_string(&next.file) else {
            let what = "named by a `mod` line and not there".to_owned();
            reached.findings.push(Finding { path, line: 0, what });
            continue;
        };
        // What does not parse is reported by the rule that looks at shapes.
        let Ok(parsed) = syn::parse_file(&text) else { continue };
        children_of(&parsed.items, &next, &next.children, &mut open);
        included(&text, &next, &mut open);
    }
}

fn children_of(items: &[syn::Item], of: &Open, dir: &Path, open: &mut Vec<Open>) {
    for item in items {
        let syn::Item::Mod(module) = item else { continue };
        let only_tests = of.only_tests || shape::is_test_only(&module.attrs);
        let name = module.ident.to_string();
        let name = name.trim_start_matches("r#");
        if let Some((_, inner)) = &module.content {
            let inner_of = Open { file: of.file.clone(), children: dir.into(), only_tests };
            children_of(inner, &inner_of, &dir.join(name), open);
            continue;
        }
        let (file, children) = match path_attribute(&module.attrs) {
            Some(named) => {
                let base = of.file.parent().unwrap_or(dir);
                let file = base.join(named);
                let children = file.parent().unwrap_or(base).to_path_buf();
                (file, children)
            }
            None => {
                let nested = dir.join(name).join("mod.rs");
                let flat = dir.join(format!("{name}.rs"));
                (if nested.is_file() { nested } else { flat }, dir.join(name))
            }
        };
        open.push(Open { file, children, only_tests });
    }
}

fn path_attribute(attrs: &[syn::Attribute]) -> Option<String> {
    attrs.iter().find_map(|attr| {
        let syn::Meta::NameValue(pair) = &attr.meta else { return None };
        let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = &pair.value else {
            return None;
        };
        pair.path.is_ident("path").then(|| text.value())
    })
}

/// Source taken in by `include!("...")` with a plain path.
fn included(text: &str, of: &Open, open: &mut Vec<Open>) {
    for (at, call) in text.match_indices("include!(\"") {
        let rest = &text[at + call.len()..];
        if let Some(end) = rest.find('"') {
            let file = of.file.parent().unwrap_or(Path::new("")).join(&rest[..end]);
            if file.extension().is_some_and(|e| e == "rs") {
                let children = of.children.clone();
                open.push(Open { file, children, only_tests: of.only_tests });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Reached, follow};

    #[test]
    fn files_are_reached_by_mod_lines_and_only_by_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        };
        write(
            "src/lib.rs",
            "mod a;\nmod b { mod c; }\n#[path = \"odd/d.rs\"]\nmod d;\nmod gone;\n",
        );
        write("src/a.rs", "#[cfg(test)]\nmod tests;\n");
        write("src/a/tests.rs", "use super::*;\n");
        write("src/b/c/mod.rs", "mod e;\n");
        write("src/b/c/e.rs", "");
        write("src/odd/d.rs", "");
        write("src/lost.rs", "");
        let mut reached = Reached::default();
        follow(dir.path(), &dir.path().join("src/lib.rs"), false, &mut reached);
        let seen: Vec<(&str, bool)> =
            reached.sources.iter().map(|(path, tests)| (path.as_str(), *tests)).collect();
        let wanted = [
            ("src/a.rs", false),
            ("src/a/tests.rs", true),
            ("src/b/c/e.rs", false),
            ("src/b/c/mod.rs", false),
            ("src/gone.rs", false),
            ("src/lib.rs", false),
            ("src/odd/d.rs", false),
        ];
        assert_eq!(seen, wanted);
        assert_eq!(reached.findings.len(), 1);
        assert_eq!(reached.findings[0].path, "src/gone.rs");
    }
}
