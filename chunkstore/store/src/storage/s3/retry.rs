//! What a failed request means, whether another try can help, and how long trying goes on.

use std::fmt;
use std::future::Future;
use std::time::{Duration, Instant};

use object_store::client::{HttpError, HttpErrorKind};

use super::wire::{Refused, WrongEcho};
use crate::entropy::{SystemEntropy, array};
use crate::error::{Error, ErrorKind};
use crate::secret::Secret;

/// Who asks, and how long and how often requests are tried. The defaults suit any server; tests
/// hurry.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// The key's id and secret; otherwise they come from where AWS's own tools look.
    pub keys: Option<(String, Secret)>,
    /// Most tries of one call.
    pub tries: u32,
    /// Most tries while the server was never reached: a mistyped address should not take minutes.
    pub first_tries: u32,
    /// The first pause between two tries; doubled after each, with half of it random.
    pub pause: Duration,
    /// The longest pause.
    pub pause_max: Duration,
    /// Time for one request, besides what its bytes may take.
    pub request: Duration,
    /// The slowest transfer that is still waited for, in bytes a second.
    pub slowest: u64,
    /// Longest silence while a body is being received.
    pub silence: Duration,
    /// No try starts later than this after the call's first.
    pub patience: Duration,
}

impl Default for S3Options {
    fn default() -> Self {
        Self {
            keys: None,
            tries: 10,
            first_tries: 3,
            pause: Duration::from_millis(200),
            pause_max: Duration::from_secs(20),
            request: Duration::from_secs(60),
            slowest: 32 * 1024,
            silence: Duration::from_secs(30),
            patience: Duration::from_secs(300),
        }
    }
}

impl S3Options {
    /// The longest that one request over `bytes` may take.
    pub(super) fn deadline(&self, bytes: u64) -> Duration {
        self.request + Duration::from_secs(bytes / self.slowest.max(1))
    }

    /// The pause after try `n` (the first is 1): exponential, and random so that many clients do
    /// not come back together.
    fn pause_after(&self, n: u32) -> Duration {
        let full = self.pause.saturating_mul(1 << n.saturating_sub(1).min(16)).min(self.pause_max);
        let random = u32::from_le_bytes(array(&SystemEntropy));
        full / 2 + (full / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

/// Why a request failed, in a few words.
#[derive(Clone, Debug)]
pub(super) struct Cause(String);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Cause {}

/// One failed try.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) kind: ErrorKind,
    /// Another try may succeed.
    pub(super) again: bool,
    /// The request may have taken effect all the same.
    pub(super) unsure: bool,
    /// The server said so itself.
    pub(super) answered: bool,
    /// What the server asked to wait.
    wait: Option<Duration>,
    cause: Cause,
}

impl Failure {
    /// A failure that no further try can mend.
    pub(super) fn lasting(kind: ErrorKind, cause: impl Into<String>) -> Self {
        let cause = Cause(cause.into());
        Self { kind, again: false, unsure: false, answered: false, wait: None, cause }
    }

    /// A failure that may pass; the request may have taken effect.
    pub(super) fn passing(kind: ErrorKind, cause: impl Into<String>) -> Self {
        Self { again: true, unsure: true, ..Self::lasting(kind, cause) }
    }

    /// The same failure where more is known of what it means.
    pub(super) fn meaning(self, kind: ErrorKind) -> Self {
        Self { kind, ..self }
    }

    /// As an error: `text` says what was being done.
    pub(super) fn into_error(self, text: impl Into<String>) -> Error {
        Error::because(self.kind, text, self.cause)
    }
}

impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Self {
        if let Some(refused) = find::<Refused>(&error) {
            return Self::from(refused);
        }
        if find::<WrongEcho>(&error).is_some() {
            return Self::lasting(ErrorKind::Damaged, WrongEcho.to_string());
        }
        let Some(http) = find::<HttpError>(&error) else {
            // No word from the server was the trouble: an answer that makes no sense, or no
            // credentials. The former may be a broken transfer.
            return Self::passing(ErrorKind::Io, story(&error));
        };
        let unreached = http.kind() == HttpErrorKind::Connect;
        let cause = format!("{}{}", if unreached { "no connection: " } else { "" }, story(http));
        Self { unsure: !unreached, ..Self::passing(ErrorKind::Io, cause) }
    }
}

impl From<HttpError> for Failure {
    fn from(error: HttpError) -> Self {
        Self::from(object_store::Error::Generic { store: "S3", source: Box::new(error) })
    }
}

impl From<&Refused> for Failure {
    fn from(r: &Refused) -> Self {
        let (kind, again) = judge(r);
        let wait = r.retry_after;
        let answered = true;
        Self { again, unsure: again, wait, answered, ..Self::lasting(kind, r.to_string()) }
    }
}

/// What a refusal means, and whether it may pass.
fn judge(r: &Refused) -> (ErrorKind, bool) {
    let code = r.code.as_str();
    let words = format!("{} {}", r.code, r.message).to_ascii_lowercase();
    let locked = ["objectlocked", "object lock", "worm ", "retention", "legal hold"];
    // Quotas and full disks have as many names as there are servers.
    let full = ["quota", "storagefull", "insufficientstorage", "storage full", "no space"];
    if r.status == 507 || (r.status >= 400 && full.iter().any(|w| words.contains(w))) {
        return (ErrorKind::NoSpace, false);
    }
    match r.status {
        404 => (ErrorKind::NotFound, false),
        412 => (ErrorKind::Exists, false),
        416 => (ErrorKind::Damaged, false),
        400 | 403 | 405 if locked.iter().any(|w| words.contains(w)) => (ErrorKind::Locked, false),
        401 | 403 => (ErrorKind::Denied, false),
        400 => match code {
            "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => (ErrorKind::Denied, false),
            // Bytes were changed on their way, or came too slowly.
            "BadDigest"
            | "InvalidDigest"
            | "IncompleteBody"
            | "RequestTimeout"
            | "XAmzContentSHA256Mismatch"
            | "XAmzContentChecksumMismatch" => (ErrorKind::Io, true),
            _ => (ErrorKind::Io, false),
        },
        // Two conditional writes at once: the other's outcome decides.
        409 => (ErrorKind::Busy, true),
        429 | 503 => (ErrorKind::Busy, true),
        501 => (ErrorKind::Unsupported, false),
        408 | 500.. => (ErrorKind::Io, true),
        _ => (ErrorKind::Io, false),
    }
}

/// The first error of type `T` among `error` and its causes.
fn find<'a, T: std::error::Error + 'static>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(e) = next {
        if let Some(found) = e.downcast_ref() {
            return Some(found);
        }
        next = e.source();
    }
    None
}

/// The innermost cause says what happened; those around it say where in a library.
fn story(error: &dyn std::error::Error) -> String {
    let mut inner = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        inner = e.to_string();
        source = e.source();
    }
    inner
}

/// Tries `one` until it succeeds, cannot succeed, or the budget is spent. `one` gets the number of
/// the try, from 1; `reached` says whether the server has ever answered.
pub(super) async fn tries<T, F>(
    tuning: &S3Options,
    reached: impl Fn() -> bool,
    mut one: impl FnMut(u32) -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let start = Instant::now();
    let mut n = 1;
    loop {
        let failure = match one(n).await {
            Ok(done) => return Ok(done),
            Err(failure) => failure,
        };
        let most = if reached() { tuning.tries } else { tuning.first_tries.min(tuning.tries) };
        let spent = n >= most || start.elapsed() >= tuning.patience;
        if !failure.again || spent {
            return Err(failure);
        }
        let asked = failure.wait.unwrap_or_default().min(tuning.pause_max);
        let pause = tuning.pause_after(n).max(asked);
        tracing::debug!(cause = %failure.cause, ?pause, "a request is tried again");
        tokio::time::sleep(pause).await;
        n += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: u16, code: &str, message: &str) -> (ErrorKind, bool) {
        let retry_after = None;
        judge(&Refused { status, code: code.into(), message: message.into(), retry_after })
    }

    #[test]
    fn refusals_are_told_apart() {
        assert_eq!(judged(404, "NoSuchKey", ""), (ErrorKind::NotFound, false));
        assert_eq!(judged(412, "PreconditionFailed", ""), (ErrorKind::Exists, false));
        assert_eq!(judged(409, "ConditionalRequestConflict", ""), (ErrorKind::Busy, true));
        assert_eq!(judged(403, "AccessDenied", "Access Denied"), (ErrorKind::Denied, false));
        let locked = "Access Denied because object protected by object lock.";
        assert_eq!(judged(403, "AccessDenied", locked), (ErrorKind::Locked, false));
        let worm = "Object is WORM protected and cannot be overwritten";
        assert_eq!(judged(400, "ObjectLocked", worm), (ErrorKind::Locked, false));
        assert_eq!(judged(403, "QuotaExceeded", ""), (ErrorKind::NoSpace, false));
        assert_eq!(judged(507, "", ""), (ErrorKind::NoSpace, false));
        assert_eq!(judged(503, "SlowDown", ""), (ErrorKind::Busy, true));
        assert_eq!(judged(500, "InternalError", ""), (ErrorKind::Io, true));
        assert_eq!(judged(400, "BadDigest", ""), (ErrorKind::Io, true));
        assert_eq!(judged(400, "InvalidArgument", ""), (ErrorKind::Io, false));
        assert_eq!(judged(301, "PermanentRedirect", ""), (ErrorKind::Io, false));
    }

    #[test]
    fn pauses_grow_and_stay_bounded() {
        let tuning = S3Options::default();
        for n in 1..100 {
            let full = tuning.pause.saturating_mul(1 << (n - 1).min(16)).min(tuning.pause_max);
            let pause = tuning.pause_after(n);
            assert!(pause >= full / 2 && pause <= full, "{n}: {pause:?}");
        }
        assert!(tuning.deadline(32 << 20) > Duration::from_secs(1000));
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
    }

    #[test]
    fn tries_end_when_they_must() {
        let tuning = S3Options { pause: Duration::ZERO, ..S3Options::default() };
        let count = |reached: bool, again: bool, fine_at: u32| {
            let mut seen = 0;
            let outcome = run(tries(
                &tuning,
                || reached,
                |n| {
                    seen = n;
                    let failure = Failure { again, ..Failure::passing(ErrorKind::Busy, "x") };
                    async move { if n == fine_at { Ok(()) } else { Err(failure) } }
                },
            ));
            (seen, outcome.is_ok())
        };
        assert_eq!(count(true, true, 4), (4, true));
        assert_eq!(count(true, true, 99), (10, false));
        assert_eq!(count(false, true, 99), (3, false));
        assert_eq!(count(true, false, 4), (1, false));
        let hasty = S3Options { patience: Duration::ZERO, ..S3Options::default() };
        let one = |_| async { Err::<(), _>(Failure::passing(ErrorKind::Io, "x")) };
        assert!(run(tries(&hasty, || true, one)).is_err());
    }
}
