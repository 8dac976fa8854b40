//! The text of LVM's metadata, as `lvm2` writes it (lvm.conf(5) describes the same syntax): `name = value` and
//! `name { ... }`, values being numbers, strings and lists of them, and comments from `#` to the end of a line.

use std::borrow::Cow;

use crate::{Error, ErrorKind};

/// How deep sections lie in each other; LVM's own text has 5.
const DEPTH_MAX: usize = 8;
/// How many values and sections a text has. A logical volume has some 20.
const NODES_MAX: usize = 200_000;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    Number(i64),
    Text(Cow<'a, str>),
    List(Vec<Value<'a>>),
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node<'a> {
    Value(Value<'a>),
    Section(Section<'a>),
}

/// Names and what they stand for, in the order of the text.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Section<'a> {
    pub(super) entries: Vec<(&'a str, Node<'a>)>,
}

impl<'a> Section<'a> {
    pub(super) fn get(&self, name: &str) -> Option<&Node<'a>> {
        self.entries.iter().find(|(n, _)| *n == name).map(|(_, node)| node)
    }

    pub(super) fn section(&self, name: &str) -> Option<&Section<'a>> {
        match self.get(name) {
            Some(Node::Section(section)) => Some(section),
            _ => None,
        }
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(Node::Value(Value::Text(text))) => Some(text),
            _ => None,
        }
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        match self.get(name) {
            Some(Node::Value(Value::Number(number))) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// A list; a single value is a list of one, as LVM takes it.
    pub(super) fn list(&self, name: &str) -> &[Value<'a>] {
        match self.get(name) {
            Some(Node::Value(Value::List(list))) => list,
            Some(Node::Value(value)) => std::slice::from_ref(value),
            _ => &[],
        }
    }

    /// Whether a list has that text.
    pub(super) fn has(&self, list: &str, text: &str) -> bool {
        self.list(list).iter().any(|v| matches!(v, Value::Text(t) if t == text))
    }
}

/// Reads a whole text.
pub(super) fn parse(text: &str) -> Result<Section<'_>, Error> {
    let mut parser = Parser { text, at: 0, nodes: 0 };
    let section = parser.section(0)?;
    Ok(section)
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    nodes: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn bad(&self, what: &str) -> Error {
        Error::damaged(format!("LVM's text has {what} at its byte {}", self.at))
    }

    /// Passes over spaces and comments; answers the next character, which is not taken.
    fn peek(&mut self) -> Option<char> {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\0');
            self.at += rest.len() - trimmed.len();
            if !trimmed.starts_with('#') {
                return trimmed.chars().next();
            }
            self.at += trimmed.find('\n').unwrap_or(trimmed.len());
        }
    }

    fn take(&mut self, wanted: char) -> bool {
        let there = self.peek() == Some(wanted);
        if there {
            self.at += wanted.len_utf8();
        }
        there
    }

    fn count(&mut self) -> Result<(), Error> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            let text = format!("LVM's text has more than {NODES_MAX} values");
            return Err(Error::new(ErrorKind::Limit, text));
        }
        Ok(())
    }

    fn section(&mut self, depth: usize) -> Result<Section<'a>, Error> {
        if depth > DEPTH_MAX {
            return Err(self.bad("sections too deep in each other"));
        }
        let mut section = Section::default();
        loop {
            match self.peek() {
                None if depth == 0 => return Ok(section),
                Some('}') if depth > 0 => {
                    self.at += 1;
                    return Ok(section);
                }
                None => return Err(self.bad("no end of a section")),
                _ => {}
            }
            let name = self.name()?;
            self.count()?;
            let node = match self.peek() {
                Some('{') => {
                    self.at += 1;
                    Node::Section(self.section(depth + 1)?)
                }
                Some('=') => {
                    self.at += 1;
                    Node::Value(self.value(true)?)
                }
                _ => return Err(self.bad("a name and nothing for it")),
            };
            section.entries.push((name, node));
        }
    }

    fn name(&mut self) -> Result<&'a str, Error> {
        let rest = self.rest();
        let part = |c: char| c.is_ascii_alphanumeric() || "_-.+/@".contains(c);
        let end = rest.find(|c| !part(c)).unwrap_or(rest.len());
        if end == 0 {
            return Err(self.bad("something else where a name should be"));
        }
        self.at += end;
        Ok(&rest[..end])
    }

    fn value(&mut self, lists: bool) -> Result<Value<'a>, Error> {
        self.count()?;
        match self.peek() {
            Some('[') if lists => {
                self.at += 1;
                let mut list = Vec::new();
                while !self.take(']') {
                    list.push(self.value(false)?);
                    if !self.take(',') && self.peek() != Some(']') {
                        return Err(self.bad("a list without an end"));
                    }
                }
                Ok(Value::List(list))
            }
            Some('"') => self.quoted(),
            Some(c) if c == '-' || c == '+' || c.is_ascii_digit() => self.number(),
            _ => Err(self.bad("no value where one should be")),
        }
    }

    /// A number; of one with a point (which LVM writes nowhere that counts) only what stands before it.
    fn number(&mut self) -> Result<Value<'a>, Error> {
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_ascii_digit() || "+-.".contains(c)));
        let digits = &rest[..end.unwrap_or(rest.len())];
        let whole = digits.split('.').next().unwrap_or_default();
        let number = whole.parse().map_err(|_| self.bad("a number that is none"))?;
        self.at += digits.len();
        Ok(Value::Number(number))
    }

    /// A string; a backslash keeps the quote or backslash behind it from meaning anything.
    fn quoted(&mut self) -> Result<Value<'a>, Error> {
        let inner = &self.rest()[1..];
        let mut escaped = false;
        let mut any = false;
        let end = inner.bytes().position(|b| match b {
            _ if escaped => {
                escaped = false;
                false
            }
            b'\\' => {
                (escaped, any) = (true, true);
                false
            }
            other => other == b'"',
        });
        let Some(end) = end else { return Err(self.bad("a string without an end")) };
        self.at += end + 2;
        let raw = &inner[..end];
        if !any {
            return Ok(Value::Text(Cow::Borrowed(raw)));
        }
        let mut text = String::with_capacity(raw.len());
        let mut chars = raw.chars();
        while let Some(c) = chars.next() {
            text.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
        }
        Ok(Value::Text(Cow::Owned(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_lvm_writes() {
        let text = "# a comment\nvg0 {\nid = \"a-b\"\nseqno = 3\nstatus = [\"READ\", \"WRITE\"]\nflags = []\n\
            tags = [ \"a\\\"b\\\\\" ]\npv { x = -1 }\n}\ncontents = \"Text\" # end\n\0";
        let all = parse(text).expect("good");
        let vg = all.section("vg0").expect("there");
        assert_eq!(vg.text("id"), Some("a-b"));
        assert_eq!(vg.number("seqno"), Some(3));
        assert!(vg.has("status", "WRITE") && !vg.has("flags", "WRITE"));
        assert_eq!(vg.list("tags"), [Value::Text("a\"b\\".into())]);
        assert_eq!(vg.section("pv").expect("there").number("x"), None, "it is negative");
        assert_eq!(all.text("contents"), Some("Text"));
    }

    #[test]
    fn what_is_no_text_is_an_error() {
        for text in
            ["a", "a {", "a = ", "a = [1", "a = [1 2]", "a = \"b", "= 1", "a = [[1]]", "}", "a = -"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse(&"a {".repeat(100_000)).is_err());
    }
}
