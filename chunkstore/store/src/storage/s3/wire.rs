//! The HTTP underneath `object_store`: what a server answers is seen here before anybody judges it,
//! because status, error code and headers decide what a caller can do.

use std::fmt;
use std::time::Duration;

use futures_util::StreamExt;
use object_store::HeaderMap;
use object_store::client::{
    HttpClient, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};

/// The header in which a stored object's checksum is sent and echoed.
const CHECKSUM: &str = "x-amz-checksum-sha256";
/// Most of an error's body that is read.
const ERROR_BODY_MAX: usize = 16 * 1024;
/// Most of a server's message that is repeated.
const MESSAGE_MAX: usize = 300;

/// A request that the server refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: u16,
    /// S3's error code, empty if there was none (as in every answer to HEAD).
    pub(super) code: String,
    pub(super) message: String,
    pub(super) retry_after: Option<Duration>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server answered {}", self.status)?;
        if !self.code.is_empty() {
            write!(f, " {}", self.code)?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

/// The server says it stored other bytes than were sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct WrongEcho;

impl fmt::Display for WrongEcho {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server's checksum of what it stored is not that of what was sent")
    }
}

impl std::error::Error for WrongEcho {}

/// The headers of an answer, handed up beside it.
#[derive(Clone, Debug)]
pub(super) struct Answer(pub(super) HeaderMap);

/// A client whose refusals are typed, and whose answers come with their headers.
#[derive(Debug)]
pub(super) struct Watch {
    inner: HttpClient,
    /// The S3 server; services that hand out credentials are left to their own client.
    authority: String,
}

impl Watch {
    pub(super) fn new(inner: HttpClient, authority: String) -> Self {
        Self { inner, authority }
    }
}

#[async_trait::async_trait]
impl HttpService for Watch {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if request.uri().authority().is_none_or(|a| a.as_str() != self.authority) {
            return self.inner.execute(request).await;
        }
        let sent = request.headers().get(CHECKSUM).cloned();
        let mut response = self.inner.execute(request).await?;
        if !response.status().is_success() {
            let refused = refusal(response).await;
            return Err(HttpError::new(HttpErrorKind::Decode, refused));
        }
        let echo = response.headers().get(CHECKSUM);
        if let (Some(sent), Some(echo)) = (&sent, echo)
            && sent != echo
        {
            return Err(HttpError::new(HttpErrorKind::Decode, WrongEcho));
        }
        let headers = response.headers().clone();
        response.extensions_mut().insert(Answer(headers));
        Ok(response)
    }
}

async fn refusal(response: HttpResponse) -> Refused {
    let status = response.status().as_u16();
    let seconds = response.headers().get("retry-after").and_then(|v| v.to_str().ok());
    let retry_after = seconds.and_then(|s| s.parse().ok()).map(Duration::from_secs);
    let mut body = Vec::new();
    let mut stream = response.into_body().bytes_stream();
    // A body that breaks off takes nothing from what the status says.
    while let Some(Ok(bytes)) = stream.next().await {
        body.extend_from_slice(&bytes[..bytes.len().min(ERROR_BODY_MAX - body.len())]);
        if body.len() == ERROR_BODY_MAX {
            break;
        }
    }
    let body = String::from_utf8_lossy(&body);
    let field = |name| clean(between(&body, name).unwrap_or_default());
    Refused { status, code: field("Code"), message: field("Message"), retry_after }
}

/// The text of the first element `name`.
fn between<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

/// A server's words, fit for a terminal and a log.
fn clean(text: &str) -> String {
    let shown = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    shown.take(MESSAGE_MAX).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_read_from_what_servers_send() {
        let xml = "<?xml version=\"1.0\"?>\n<Error><Code>SlowDown</Code><Message>Please\n \
                   reduce</Message></Error>";
        assert_eq!(between(xml, "Code"), Some("SlowDown"));
        assert_eq!(clean(between(xml, "Message").unwrap()), "Please  reduce");
        assert_eq!(between(xml, "Resource"), None);
        assert_eq!(between("<Code>cut", "Code"), None);
        assert_eq!(clean("\u{1b}[31mred\u{7}"), "[31mred");
        assert_eq!(clean(&"a".repeat(1000)).len(), MESSAGE_MAX);
    }
}
