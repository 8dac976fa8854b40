//! Help, manual pages and completions: what every command promises about itself.

use std::fmt::Write as _;
use std::path::Path;

use super::support::{Place, Ran, command};

const SNAPSHOT: &str = "tests/it/help.snap";

struct Page {
    path: Vec<String>,
    text: String,
    leaf: bool,
}

fn help(path: &[String]) -> Page {
    let output = command(Path::new("/nonexistent")).args(path).arg("--help").output();
    let ran = Ran::of(output.expect("the binary runs")).code(0);
    Page { path: path.to_vec(), leaf: !ran.stdout.contains("\nCommands:\n"), text: ran.stdout }
}

/// The help of every command, found the way a user finds it: from the lists of commands.
fn all_pages() -> Vec<Page> {
    let mut pages = Vec::new();
    let mut open = vec![Vec::new()];
    while let Some(path) = open.pop() {
        let page = help(&path);
        let (_, list) = page.text.split_once("\nCommands:\n").unwrap_or_default();
        let list: Vec<&str> = list.lines().take_while(|line| !line.is_empty()).collect();
        for line in list.iter().rev() {
            if let Some(name) = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')) {
                let name = name.split_whitespace().next().unwrap_or_default();
                open.push(path.iter().cloned().chain([name.to_owned()]).collect());
            }
        }
        pages.push(page);
    }
    pages
}

/// The part of a page that lists the global options.
fn global_options(text: &str) -> &str {
    let start = text.find("Global options:\n").expect("every command has the global options");
    let end = text[start..].find("\nExamples:").map_or(text.len(), |at| start + at);
    text[start..end].trim_end()
}

#[test]
fn help_of_the_whole_tree_is_as_agreed() {
    let pages = all_pages();
    let global = global_options(&pages[0].text).to_owned();
    let mut all = String::new();
    for page in &pages {
        assert_eq!(global_options(&page.text), global, "{:?}", page.path);
        let title = format!("backstay {}", page.path.join(" "));
        let text = if page.path.is_empty() {
            page.text.clone()
        } else {
            page.text.replace(&global, "(global options)")
        };
        let _ = writeln!(all, "==== {}\n{}\n", title.trim(), text.trim_end());
    }
    if std::env::var_os("BACKSTAY_UPDATE_SNAPSHOT").is_some() {
        std::fs::write(SNAPSHOT, &all).expect("the snapshot is written");
    }
    let agreed = std::fs::read_to_string(SNAPSHOT).expect("tests/it/help.snap is checked in");
    let differs = all.lines().zip(agreed.lines()).find(|(now, then)| now != then);
    assert!(
        all == agreed,
        "help has changed, first here: {differs:?}\n\
         if it should: BACKSTAY_UPDATE_SNAPSHOT=1 cargo nextest run -p backstay help_of"
    );
}

#[test]
fn every_leaf_has_json_an_example_and_exit_codes() {
    let pages = all_pages();
    let leaves: Vec<&Page> = pages.iter().filter(|page| page.leaf).collect();
    assert!(leaves.len() >= 16, "only {} commands found", leaves.len());
    for page in leaves {
        for part in ["--json", "Examples:\n  ", "Exit codes:\n  0    done"] {
            assert!(page.text.contains(part), "{:?} lacks {part}", page.path);
        }
        let name = format!("backstay {}", page.path.join(" "));
        assert!(page.text.contains(&format!("  {name}")), "{name}: no example of itself");
        assert!(!page.text.contains("--passphrase <"), "{name}: a secret must not be an argument");
    }
}

#[test]
fn manual_pages_and_completions_come_for_every_command() {
    let place = Place::new();
    let pages = all_pages();
    let made = place.run(&["man", "man1", "--json"]).code(0).json();
    assert_eq!(made["files"].as_array().map(Vec::len), Some(pages.len()));
    for page in &pages {
        let name = ["backstay"].into_iter().chain(page.path.iter().map(String::as_str));
        let file = name.collect::<Vec<_>>().join("-") + ".1";
        let text = std::fs::read_to_string(place.path("man1").join(&file)).expect("the page");
        assert!(text.contains(".SH NAME") && text.contains(".TH "), "{file}");
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = place.run(&["completion", shell]).code(0).stdout;
        assert!(script.contains("backup") && script.contains("passphrase-file"), "{shell}");
        let document = place.run(&["completion", shell, "--json"]).code(0).json();
        assert_eq!(document["script"].as_str(), Some(script.as_str()));
    }
}

#[test]
fn help_and_version_touch_no_secret_and_no_repository() {
    let place = Place::new();
    for args in [&["--help"][..], &["version"], &["completion", "bash"], &["backup", "--help"]] {
        let output = place
            .command(args)
            .env("BACKSTAY_PASSPHRASE_COMMAND", "touch was-run; echo x")
            .output()
            .expect("the binary runs");
        Ran::of(output).code(0);
    }
    assert!(!place.path("was-run").exists(), "the passphrase command was run");
    let names: Vec<_> = std::fs::read_dir(place.path("")).expect("the place").collect();
    assert!(names.is_empty(), "something was written: {names:?}");
    let version = place.run(&["version", "--json"]).code(0).json();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
}
