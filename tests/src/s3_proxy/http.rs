//! As much of HTTP/1.1 as a proxy needs: heads, and how long bodies are.

use std::io::BufRead;

use anyhow::{Context, Result, bail};

/// Largest head.
const HEAD_MAX: usize = 64 * 1024;

/// The head of a request or an answer.
#[derive(Debug)]
pub(super) struct Message {
    first: String,
    headers: Vec<(String, String)>,
}

/// How long a body is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Length {
    Known(u64),
    Chunked,
    UntilEnd,
}

impl Message {
    /// The next head; nothing if the other side has ended the connection.
    pub(super) fn read(from: &mut impl BufRead) -> Result<Option<Message>> {
        let mut total = 0;
        let mut line = || -> Result<Option<String>> {
            let mut bytes = Vec::new();
            std::io::Read::take(&mut *from, HEAD_MAX as u64).read_until(b'\n', &mut bytes)?;
            total += bytes.len();
            if total > HEAD_MAX {
                bail!("a head of more than {HEAD_MAX} bytes");
            }
            let text = String::from_utf8(bytes).context("a head that is no text")?;
            Ok(text.ends_with('\n').then(|| text.trim_end_matches(['\r', '\n']).to_owned()))
        };
        let Some(first) = line()? else { return Ok(None) };
        let mut headers = Vec::new();
        loop {
            let text = line()?.context("a head that breaks off")?;
            if text.is_empty() {
                let message = Message { first, headers };
                // `100 Continue` announces the answer that counts.
                let preliminary = message.first.split(' ').nth(1) == Some("100");
                return if preliminary { Self::read(from) } else { Ok(Some(message)) };
            }
            let (name, value) = text.split_once(':').context("a header without a colon")?;
            headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    pub(super) fn method(&self) -> &str {
        self.first.split(' ').next().unwrap_or_default()
    }

    pub(super) fn target(&self) -> &str {
        self.first.split(' ').nth(1).unwrap_or_default()
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    /// Removes a header; whether it was there.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        let before = self.headers.len();
        self.headers.retain(|(n, _)| n != name);
        self.headers.len() < before
    }

    /// The head as it goes over the wire.
    pub(super) fn head(&self) -> Vec<u8> {
        let mut text = format!("{}\r\n", self.first);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        text.into_bytes()
    }

    fn length(&self) -> Option<Length> {
        if self.get("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
            return Some(Length::Chunked);
        }
        self.get("content-length").and_then(|v| v.parse().ok()).map(Length::Known)
    }

    pub(super) fn body_of_request(&self) -> Length {
        self.length().unwrap_or(Length::Known(0))
    }

    pub(super) fn body_of_answer(&self, head_only: bool) -> Length {
        let status = self.first.split(' ').nth(1).unwrap_or_default();
        if head_only || matches!(status, "204" | "304") {
            return Length::Known(0);
        }
        self.length().unwrap_or(Length::UntilEnd)
    }
}

#[cfg(test)]
mod tests {
    use super::{Length, Message};

    fn read(text: &str) -> Option<Message> {
        Message::read(&mut text.as_bytes()).expect("a head")
    }

    #[test]
    fn heads_are_read_and_written_again() {
        let mut m = read("PUT /b/k?x=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc")
            .expect("a request");
        assert_eq!((m.method(), m.target()), ("PUT", "/b/k?x=1"));
        assert_eq!(m.body_of_request(), Length::Known(3));
        assert!(m.remove("host") && !m.remove("host"));
        m.set("connection", "close");
        assert_eq!(
            m.head(),
            b"PUT /b/k?x=1 HTTP/1.1\r\ncontent-length: 3\r\nconnection: close\r\n\r\n"
        );
        assert!(read("").is_none());
        assert!(Message::read(&mut "GET / HTTP/1.1\r\nHost".as_bytes()).is_err());
    }

    #[test]
    fn the_length_of_a_body_is_known() {
        let answer = |text| read(text).expect("an answer").body_of_answer(false);
        assert_eq!(answer("HTTP/1.1 204 No\r\n\r\n"), Length::Known(0));
        assert_eq!(answer("HTTP/1.1 200 OK\r\n\r\n"), Length::UntilEnd);
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(answer(chunked), Length::Chunked);
        let late = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(answer(late), Length::Known(5));
    }
}
