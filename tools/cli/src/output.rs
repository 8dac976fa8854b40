//! What commands print: text and tables for people, one JSON document for programs.

use std::fmt::Write as _;
use std::io::Write as _;

use serde::Serialize;

use crate::exit::CliError;

/// The version of all JSON documents; it grows when a field changes its meaning or goes away.
pub(crate) const SCHEMA_VERSION: u32 = 1;

/// Where results go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    /// Used when stdout carries the data itself, as in `restore disk --to -`.
    Stderr,
}

/// How results are shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
}

#[derive(Serialize)]
struct Document<'a, T> {
    schema_version: u32,
    #[serde(flatten)]
    body: &'a T,
}

impl Output {
    /// What the user asked to see: printed even under `--quiet`.
    pub(crate) fn report<T: Serialize>(
        self,
        document: &T,
        human: impl FnOnce(&mut String),
    ) -> Result<(), CliError> {
        self.write(Stream::Stdout, document, human)
    }

    /// What a command did, when the work itself was what the user wanted: silent for people
    /// under `--quiet`.
    pub(crate) fn summary<T: Serialize>(
        self,
        stream: Stream,
        document: &T,
        human: impl FnOnce(&mut String),
    ) -> Result<(), CliError> {
        if self.quiet && !self.json {
            return Ok(());
        }
        self.write(stream, document, human)
    }

    fn write<T: Serialize>(
        self,
        stream: Stream,
        document: &T,
        human: impl FnOnce(&mut String),
    ) -> Result<(), CliError> {
        // It may hold a recovery key.
        let mut text = zeroize::Zeroizing::new(String::new());
        if self.json {
            let document = Document { schema_version: SCHEMA_VERSION, body: document };
            *text = serde_json::to_string(&document)
                .map_err(|error| CliError::output(&std::io::Error::other(error)))?;
            text.push('\n');
        } else {
            human(&mut text);
        }
        match stream {
            Stream::Stdout => write_stdout(text.as_bytes()),
            Stream::Stderr => {
                let mut to = std::io::stderr().lock();
                to.write_all(text.as_bytes()).map_err(|error| CliError::output(&error))
            }
        }
    }
}

/// Writes to stdout and flushes, so that a closed pipe is noticed here and not at exit.
pub(crate) fn write_stdout(bytes: &[u8]) -> Result<(), CliError> {
    let mut to = std::io::stdout().lock();
    to.write_all(bytes).and_then(|()| to.flush()).map_err(|error| CliError::output(&error))
}

/// One line to people on stderr. A stderr that is closed is nobody listening: not a failure.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Text from a repository or a file name, made safe for a terminal: control characters, which
/// could move the cursor or hide a line, are shown as escapes.
pub(crate) fn clean(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(hidden) {
        return text.to_owned();
    }
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if hidden(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// Where a column's text stands.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Align {
    Left,
    Right,
}

/// A table for people: columns as wide as their widest cell, two spaces between.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; its cells are cleaned.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.columns.len(), "a row has a cell for each column");
        self.rows.push(cells.iter().map(|cell| clean(cell)).collect());
    }

    pub(crate) fn render(&self, to: &mut String) {
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, (title, _))| {
                let cells = self.rows.iter().filter_map(|row| row.get(at));
                cells.map(|cell| cell.chars().count()).fold(title.len(), usize::max)
            })
            .collect();
        let titles: Vec<String> =
            self.columns.iter().map(|(title, _)| (*title).to_owned()).collect();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, (_, align)), width) in row.iter().zip(&self.columns).zip(&widths) {
                if !line.is_empty() {
                    line.push_str("  ");
                }
                let _ = match align {
                    Align::Left => write!(line, "{cell:<width$}"),
                    Align::Right => write!(line, "{cell:>width$}"),
                };
            }
            to.push_str(line.trim_end());
            to.push('\n');
        }
    }
}

/// Adds `label  value` with labels in one column.
pub(crate) fn field(to: &mut String, label: &str, value: &str) {
    let _ = writeln!(to, "{label:<12} {}", clean(value));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_cannot_reach_the_terminal() {
        assert_eq!(clean("web01"), "web01");
        assert_eq!(clean("größe"), "größe");
        assert_eq!(clean("a\u{1b}[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert_eq!(clean("\u{202e}txt"), "\\u{202e}txt");
    }

    #[test]
    fn tables_line_up() {
        let mut table = Table::new(&[("NAME", Align::Left), ("SIZE", Align::Right)]);
        table.row(["a".to_owned(), "1 B".to_owned()]);
        table.row(["longer".to_owned(), "20.0 GiB".to_owned()]);
        let mut text = String::new();
        table.render(&mut text);
        assert_eq!(text, "NAME        SIZE\na            1 B\nlonger  20.0 GiB\n");
    }
}
