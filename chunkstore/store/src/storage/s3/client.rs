//! One bucket: single operations, each tried until it succeeds, cannot succeed, or its budget is
//! spent.

use std::future::Future;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::HeaderName;
use object_store::aws::{AmazonS3, AmazonS3Builder, Checksum, S3ConditionalPut};
use object_store::client::{
    HttpClient, HttpConnector, HttpRequestBody, HttpService, ReqwestConnector,
};
use object_store::path::Path;
use object_store::signer::{SignedUrlOptions, Signer};
use object_store::{
    ClientConfigKey, ClientOptions, GetOptions, GetRange, GetResult, HeaderMap, HeaderValue,
    ObjectStore, PutMode, PutOptions, PutPayload, RetryConfig,
};
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::time::Instant;

use super::credentials;
use super::flight::Flight;
use super::location::S3Location;
use super::retry::{Failure, S3Options, tries};
use super::wire::{Answer, Watch};
use crate::error::{Error, ErrorKind, Result};

/// Threads that carry the bytes of all S3 storages of this process: two saturate what two
/// processors can encrypt, and everything else waits in the callers' threads.
const IO_THREADS: usize = 2;
/// How long connecting may take.
const CONNECT: std::time::Duration = std::time::Duration::from_secs(5);
/// Connections kept for the next request, each a server.
const IDLE_CONNECTIONS: usize = 64;
/// How long a signed request for removal is good for.
const SIGNED_FOR: std::time::Duration = std::time::Duration::from_secs(600);

/// A client for one prefix of one bucket.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) store: AmazonS3,
    http: Watched,
    prefix: String,
    pub(super) options: S3Options,
    /// The server has answered once.
    reached: AtomicBool,
    /// Ranges being read.
    reading: Flight,
}

/// What is known of a stored object without reading it.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) size: u64,
    version: Option<String>,
    /// It has a retention lock, running or over, or a legal hold.
    locked: bool,
}

/// The connector of a client that exists already.
#[derive(Clone, Debug)]
struct Watched(Arc<Watch>);

#[async_trait::async_trait]
impl HttpService for Watched {
    async fn call(
        &self,
        request: object_store::client::HttpRequest,
    ) -> Result<object_store::client::HttpResponse, object_store::client::HttpError> {
        self.0.call(request).await
    }
}

impl HttpConnector for Watched {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

impl Client {
    pub(super) fn new(location: &S3Location, options: S3Options) -> Result<Self> {
        let found = credentials::find(location, options.keys.as_ref())?;
        let endpoint = bucket_endpoint(location, &found)?;
        let wrong = |e| Error::because(ErrorKind::Invalid, format!("cannot use {location}"), e);
        let transport = transport(endpoint.starts_with("http://"));
        let plain = connections(&transport).map_err(wrong)?;
        let authority = endpoint.split("://").nth(1).and_then(|rest| rest.split('/').next());
        let http = Watched(Arc::new(Watch::new(plain, authority.unwrap_or_default().to_owned())));
        let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(location.bucket())
            .with_virtual_hosted_style_request(true)
            .with_endpoint(endpoint)
            .with_allow_http(true)
            .with_client_options(transport)
            .with_retry(retry)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_checksum_algorithm(Checksum::SHA256)
            .with_http_connector(http.clone())
            .with_region(found.region());
        for (key, value) in found.settings() {
            builder = builder.with_config(*key, value.as_str());
        }
        let store = builder.build().map_err(wrong)?;
        let (prefix, reached) = (location.prefix().to_owned(), AtomicBool::new(false));
        Ok(Self { store, http, prefix, options, reached, reading: Flight::new() })
    }

    /// The full name of the object at `name` below the repository.
    pub(super) fn path(&self, name: &str) -> Path {
        if self.prefix.is_empty() {
            return Path::from(name);
        }
        Path::from(format!("{}/{name}", self.prefix))
    }

    /// Tries `one` under the budget of a call that moves about `bytes`.
    pub(super) async fn tries<T, F>(
        &self,
        bytes: u64,
        mut one: impl FnMut(u32) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let deadline = self.options.deadline(bytes);
        let reached = || self.reached.load(Ordering::Relaxed);
        tries(&self.options, reached, |n| {
            let work = one(n);
            async move {
                let late = || Failure::passing(ErrorKind::Io, format!("no end in {deadline:?}"));
                let done =
                    tokio::time::timeout(deadline, work).await.unwrap_or_else(|_| Err(late()));
                if done.as_ref().is_ok() || done.as_ref().is_err_and(|f| f.answered) {
                    self.reached.store(true, Ordering::Relaxed);
                }
                done
            }
        })
        .await
    }

    /// Stores `body` under `name`, which must be free. Where an answer was lost, what is there
    /// tells whether the object is ours (FORMAT.md, rule O4).
    pub(super) async fn create(&self, name: &str, body: Bytes) -> Result<(), Failure> {
        let unsure = AtomicBool::new(false);
        let (body, unsure) = (&body, &unsure);
        self.tries(body.len() as u64, |_| async move {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            let payload = PutPayload::from_bytes(body.clone());
            // Noted beforehand: a try that meets its deadline comes no further than the request.
            let before = unsure.swap(true, Ordering::Relaxed);
            let put = self.store.put_opts(&self.path(name), payload, options).await;
            let Err(failure) = put.map_err(Failure::from) else { return Ok(()) };
            if failure.kind == ErrorKind::Exists && before {
                return self.compare(name, body).await;
            }
            unsure.store(before || failure.unsure, Ordering::Relaxed);
            Err(failure)
        })
        .await
    }

    /// Whether the object `name`, which exists, is the one that an earlier try of ours stored.
    async fn compare(&self, name: &str, body: &Bytes) -> Result<(), Failure> {
        let exists = || Failure::lasting(ErrorKind::Exists, "an object of that name exists");
        let same = async {
            let got = self.open(name, None).await?;
            if got.meta.size != body.len() as u64 {
                return Err(exists());
            }
            let parts = self.collect(got, body.len() as u64).await?;
            let mut rest = body.as_ref();
            for part in parts {
                let (now, later) = rest.split_at_checked(part.len()).ok_or_else(exists)?;
                if now != part {
                    return Err(exists());
                }
                rest = later;
            }
            Ok(())
        };
        same.await.map_err(|failure| match failure.kind {
            // Gone again: then the name is free, and another try decides.
            ErrorKind::NotFound => Failure::passing(ErrorKind::Busy, "the object came and went"),
            _ => failure,
        })
    }

    /// The whole object, in pieces; longer than `max` is `Damaged`.
    pub(super) async fn get(&self, name: &str, max: u64) -> Result<Vec<Bytes>, Failure> {
        // How long it is shows only in the answer, so the time is that for the longest; silence
        // ends a try earlier.
        self.tries(max, |_| async move {
            let got = self.open(name, None).await?;
            let size = got.meta.size;
            if size > max {
                let text = format!("it is {size} bytes long; at most {max} are possible");
                return Err(Failure::lasting(ErrorKind::Damaged, text));
            }
            self.collect(got, size).await
        })
        .await
    }

    /// `range` of the object, in pieces; what there is of it unless it must be `whole`.
    pub(super) async fn range(
        &self,
        name: &str,
        range: Range<u64>,
        whole: bool,
    ) -> Result<Vec<Bytes>, Failure> {
        let len = range.end - range.start;
        let permit = self.reading.permit(len).await;
        let range = &range;
        let parts = self
            .tries(len, |_| async move {
                let parts = self.range_once(name, range, whole).await;
                if parts.as_ref().is_err_and(|f| f.again) {
                    self.reading.refused();
                }
                parts
            })
            .await?;
        permit.arrived();
        Ok(parts)
    }

    async fn range_once(
        &self,
        name: &str,
        range: &Range<u64>,
        whole: bool,
    ) -> Result<Vec<Bytes>, Failure> {
        let got = self.open(name, Some(range.clone())).await?;
        // A server may only leave out what lies behind the object's end.
        let end = if whole { range.end } else { range.end.min(got.meta.size) };
        if got.range != (range.start..end) {
            let text = format!("it ends at byte {}", got.meta.size);
            return Err(Failure::lasting(ErrorKind::Damaged, text));
        }
        self.collect(got, end - range.start).await
    }

    async fn open(&self, name: &str, range: Option<Range<u64>>) -> Result<GetResult, Failure> {
        let range = range.map(GetRange::Bounded);
        let options = GetOptions { range, ..GetOptions::default() };
        // However long the body is, its head comes at once.
        let (path, within) = (self.path(name), self.options.request);
        let head = tokio::time::timeout(within, self.store.get_opts(&path, options)).await;
        let late = || Failure::passing(ErrorKind::Io, format!("no answer in {within:?}"));
        Ok(head.map_err(|_| late())??)
    }

    /// Receives a body that must be `len` bytes long.
    async fn collect(&self, got: GetResult, len: u64) -> Result<Vec<Bytes>, Failure> {
        let mut stream = got.into_stream();
        let mut parts = Vec::new();
        let mut have = 0u64;
        let silence = self.options.silence;
        let end = Instant::now() + self.options.deadline(len);
        loop {
            let until = end.min(Instant::now() + silence);
            let next = tokio::time::timeout_at(until, stream.try_next()).await.map_err(|_| {
                let text = format!("only {have} of {len} bytes came in time");
                Failure::passing(ErrorKind::Io, text)
            })?;
            let Some(part) = next? else { break };
            have += part.len() as u64;
            if have > len {
                break;
            }
            parts.push(part);
        }
        if have == len {
            return Ok(parts);
        }
        let text = format!("{have} bytes came where {len} were announced");
        Err(Failure::passing(ErrorKind::Io, text))
    }

    pub(super) async fn head(&self, name: &str) -> Result<Head, Failure> {
        self.tries(0, |_| async move {
            let options = GetOptions { head: true, ..GetOptions::default() };
            let got = self.store.get_opts(&self.path(name), options).await?;
            let none = HeaderMap::new();
            let headers = got.extensions.get::<Answer>().map_or(&none, |a| &a.0);
            let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
            let hold = text("x-amz-object-lock-legal-hold").is_some_and(|v| v == "ON");
            Ok(Head {
                size: got.meta.size,
                version: text("x-amz-version-id").map(str::to_owned),
                locked: hold || text("x-amz-object-lock-retain-until-date").is_some(),
            })
        })
        .await
    }

    /// Removes the object, and with it its bytes where the bucket keeps versions: a mere marker
    /// would hide a locked object from us and free nothing.
    pub(super) async fn delete(&self, name: &str) -> Result<(), Failure> {
        let head = &self.head(name).await?;
        self.tries(0, |_| async move {
            let query = head.version.iter().map(|v| ("versionId", v.as_str()));
            let options = SignedUrlOptions::default().with_query(query);
            let (path, method) = (self.path(name), http::Method::DELETE);
            let url = self.store.signed_url_opts(method, &path, SIGNED_FOR, &options).await?;
            let request = http::Request::delete(url.as_str())
                .body(HttpRequestBody::empty())
                .map_err(|e| Failure::lasting(ErrorKind::Invalid, e.to_string()))?;
            match self.http.call(request).await.map_err(Failure::from) {
                // Gone already: an earlier try of ours, or another's.
                Err(f) if f.kind == ErrorKind::NotFound => Ok(()),
                Err(f) if f.kind == ErrorKind::Denied && head.locked => {
                    Err(f.meaning(ErrorKind::Locked))
                }
                other => other.map(drop),
            }
        })
        .await
    }
}

/// How requests are sent. Plain HTTP was allowed or refused with the address.
fn transport(plain: bool) -> ClientOptions {
    // Buckets with locks want it said beforehand that a checksum comes.
    let algorithm = HeaderValue::from_static("SHA256");
    let headers = [(HeaderName::from_static("x-amz-sdk-checksum-algorithm"), algorithm)];
    ClientOptions::new()
        // Requests have deadlines of their own, which know how much there is to send.
        .with_timeout_disabled()
        .with_connect_timeout(CONNECT)
        .with_pool_max_idle_per_host(IDLE_CONNECTIONS)
        .with_allow_http(plain)
        .with_default_headers(headers.into_iter().collect())
}

/// The connections of this process, shared by all storages: a command opens its repository more
/// than once, and each new connection to a distant server takes round trips.
fn connections(transport: &ClientOptions) -> object_store::Result<HttpClient> {
    static MADE: Mutex<Vec<(bool, HttpClient)>> = Mutex::new(Vec::new());
    let plain =
        transport.get_config_value(&ClientConfigKey::AllowHttp).is_some_and(|v| v == "true");
    let mut made = MADE.lock();
    if let Some((_, client)) = made.iter().find(|(p, _)| *p == plain) {
        return Ok(client.clone());
    }
    let client = ReqwestConnector::default().connect(transport)?;
    made.push((plain, client.clone()));
    Ok(client)
}

/// The address of the bucket: its host, and in path style the bucket.
fn bucket_endpoint(location: &S3Location, found: &credentials::Found) -> Result<String> {
    let bucket = location.bucket();
    let endpoint = location.endpoint().or(found.endpoint());
    if let Some(endpoint) = endpoint {
        location.check_transport(endpoint)?;
    }
    let path_style = location.path_style(endpoint);
    let base = match endpoint {
        Some(endpoint) => endpoint.to_owned(),
        None => format!("https://s3.{}.amazonaws.com", found.region()),
    };
    match (path_style, base.split_once("://")) {
        (false, Some((scheme, host))) => Ok(format!("{scheme}://{bucket}.{host}")),
        _ => Ok(format!("{base}/{bucket}")),
    }
}

/// Runs `work` on the threads for input and output and waits for its end. May be called from any
/// thread, also from one of another runtime.
pub(super) fn wait<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let (done, result) = mpsc::sync_channel(1);
    runtime()?.spawn(async move {
        let _ = done.send(work.await);
    });
    let lost = |e| Error::because(ErrorKind::Io, "a request to the storage was lost", e);
    result.recv().map_err(lost)?
}

fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<std::io::Result<Runtime>> = OnceLock::new();
    let made = RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(IO_THREADS)
            .thread_name("s3")
            .enable_all()
            .build()
    });
    made.as_ref().map_err(|e| {
        let text = format!("cannot start the threads that talk to the storage: {e}");
        Error::new(ErrorKind::Io, text)
    })
}
