//! No leftover marks: what is not finished is an issue of the project, not a word in the source.

use super::Finding;

/// Words that stand for unfinished work, each written in two halves so that this file may exist.
const WORDS: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("HA", "CK"),
    concat!("W", "IP"),
];

/// Calls that must not stay in the source.
const CALLS: &[&str] =
    &[concat!("db", "g!("), concat!("to", "do!("), concat!("unimpl", "emented!(")];

/// Finds leftover marks in any text file.
pub(super) fn check(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let word = WORDS.iter().find(|word| has_word(line, word));
        let call = CALLS.iter().find(|call| path.ends_with(".rs") && has_word(line, call));
        if let Some(mark) = word.or(call) {
            findings.push(Finding {
                path: path.to_owned(),
                line: number + 1,
                what: format!("leftover mark `{mark}`: finish it, or make it an issue"),
            });
        }
    }
    findings
}

/// True when the word stands alone: `XX` of `/tmp/fooXX` does not count.
pub(super) fn has_word(line: &str, word: &str) -> bool {
    let inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        let after = line[at + word.len()..].chars().next();
        let ends_open = word.ends_with('(');
        !inside(line[..at].chars().next_back()) && (ends_open || !inside(after))
    })
}

#[cfg(test)]
mod tests {
    use super::{CALLS, WORDS, check};

    #[test]
    fn every_mark_is_found_where_it_stands_alone() {
        for word in WORDS {
            assert_eq!(check("a.md", &format!("fine\n// {word}: later\n"))[0].line, 2);
            assert!(check("a.rs", &format!("let a = \"/tmp/foo{word}\";")).is_empty());
            assert!(check("a.rs", &format!("{word}_NAME")).is_empty());
        }
        for call in CALLS {
            assert_eq!(check("a.rs", &format!("    {call}value)")).len(), 1);
            assert!(check("a.md", &format!("    {call}value)")).is_empty());
        }
    }
}
