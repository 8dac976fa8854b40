//! The size of files and functions, and imports that hide where a name comes from.

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use super::Finding;

/// Longest source file, in lines.
pub(super) const MAX_FILE_LINES: usize = 800;
/// Longest function, in lines from its signature to its closing brace.
pub(super) const MAX_FUNCTION_LINES: usize = 70;

/// Checks one source file; `only_tests` says that it is compiled for tests alone.
pub(super) fn check(path: &str, text: &str, only_tests: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let lines = text.lines().count();
    if lines > MAX_FILE_LINES {
        findings.push(Finding {
            path: path.to_owned(),
            line: 0,
            what: format!("{lines} lines, the limit is {MAX_FILE_LINES}: split it by meaning"),
        });
    }
    match syn::parse_file(text) {
        Ok(file) => {
            let mut visitor = Shape { path, findings: &mut findings, in_tests: only_tests };
            visitor.visit_file(&file);
        }
        Err(error) => findings.push(Finding {
            path: path.to_owned(),
            line: error.span().start().line,
            what: format!("not a Rust source file: {error}"),
        }),
    }
    findings
}

struct Shape<'a> {
    path: &'a str,
    findings: &'a mut Vec<Finding>,
    in_tests: bool,
}

impl Shape<'_> {
    fn function(&mut self, sig: &syn::Signature, block: &syn::Block) {
        let first = sig.span().start().line;
        let last = block.span().end().line;
        let lines = last + 1 - first;
        if lines > MAX_FUNCTION_LINES {
            self.findings.push(Finding {
                path: self.path.to_owned(),
                line: first,
                what: format!(
                    "function {} has {lines} lines, the limit is {MAX_FUNCTION_LINES}",
                    sig.ident
                ),
            });
        }
    }
}

impl<'ast> Visit<'ast> for Shape<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.function(&item.sig, block);
        }
        visit::visit_trait_item_fn(self, item);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let outer = self.in_tests;
        self.in_tests |= is_test_only(&item.attrs);
        visit::visit_item_mod(self, item);
        self.in_tests = outer;
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if let (false, Some(from)) = (self.in_tests, glob_of_own(&item.tree)) {
            self.findings.push(Finding {
                path: self.path.to_owned(),
                line: item.span().start().line,
                what: format!("`use {from}::*` hides where names come from: name them"),
            });
        }
        visit::visit_item_use(self, item);
    }
}

/// True for `#[cfg(test)]` and for `#[cfg(all(test, ...))]`.
pub(super) fn is_test_only(attrs: &[syn::Attribute]) -> bool {
    attrs.iter().any(|attr| {
        let syn::Meta::List(list) = &attr.meta else { return false };
        let tokens = list.tokens.to_string();
        list.path.is_ident("cfg") && (tokens == "test" || tokens.starts_with("all (test"))
    })
}

/// `super` or `crate` when the import is a glob straight from there.
fn glob_of_own(tree: &syn::UseTree) -> Option<String> {
    let syn::UseTree::Path(path) = tree else { return None };
    let own = path.ident == "super" || path.ident == "crate";
    match &*path.tree {
        syn::UseTree::Glob(_) if own => Some(path.ident.to_string()),
        syn::UseTree::Path(_) if own => {
            let inner = glob_of_own(&path.tree)?;
            Some(format!("{}::{inner}", path.ident))
        }
        syn::UseTree::Group(group) if own => group
            .items
            .iter()
            .find_map(|item| matches!(item, syn::UseTree::Glob(_)).then(|| path.ident.to_string())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_FILE_LINES, MAX_FUNCTION_LINES, check};

    fn function(lines: usize) -> String {
        // The signature and the closing brace are lines of the function, too.
        format!("fn f() {{\n{}}}\n", "    g();\n".repeat(lines - 2))
    }

    #[test]
    fn a_function_of_the_limit_passes_and_one_line_more_does_not() {
        assert!(check("a.rs", &function(MAX_FUNCTION_LINES), false).is_empty());
        let found = check("a.rs", &function(MAX_FUNCTION_LINES + 1), false);
        assert_eq!((found.len(), found[0].line), (1, 1));
        let method = format!("impl A {{\n{}}}\n", function(MAX_FUNCTION_LINES + 1));
        assert_eq!(check("a.rs", &method, false)[0].line, 2);
        let default = format!("trait A {{\n{}}}\n", function(MAX_FUNCTION_LINES + 1));
        assert_eq!(check("a.rs", &default, true).len(), 1);
    }

    #[test]
    fn a_file_of_the_limit_passes_and_one_line_more_does_not() {
        assert!(check("a.rs", &"// x\n".repeat(MAX_FILE_LINES), false).is_empty());
        assert_eq!(check("a.rs", &"// x\n".repeat(MAX_FILE_LINES + 1), false).len(), 1);
    }

    #[test]
    fn own_globs_are_for_tests_alone() {
        for line in ["use super::*;", "use crate::*;", "use super::super::*;", "use super::{*, a};"]
        {
            assert_eq!(check("a.rs", line, false).len(), 1, "{line}");
            assert!(check("a.rs", line, true).is_empty(), "{line}");
            let inside = format!("#[cfg(test)]\nmod tests {{\n    {line}\n}}\n");
            assert!(check("a.rs", &inside, false).is_empty(), "{line}");
            let inside = format!("mod other {{\n    {line}\n}}\n");
            assert_eq!(check("a.rs", &inside, false).len(), 1, "{line}");
        }
        assert!(check("a.rs", "use super::name;\nuse std::io::prelude::*;\n", false).is_empty());
    }

    #[test]
    fn what_is_not_rust_is_said() {
        assert_eq!(check("a.rs", "fn {", false).len(), 1);
    }
}
