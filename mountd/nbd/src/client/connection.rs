//! One connection to a server: first the handshake, then many requests at once.
//!
//! There is no thread for it. Of those who wait for replies one reads, for all: what is for others is
//! put where they find it, and when its own reply is whole, another one goes on. A reader's own data goes
//! from the socket straight into its buffer.

use std::collections::HashMap;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Client;
use super::handshake::{Agreed, negotiate};
use super::reply::{Progress, Reply};
use super::stream::Stream;
use super::tls::Tls;
use super::uri::NbdUri;
use crate::error::{Error, ErrorKind};
use crate::proto::transmission::{ReplyStart, Request, SIMPLE_REPLY_BYTES};

/// Headers are read through a buffer of this size; data behind them goes straight to its place.
const BUFFER_BYTES: usize = 16 << 10;

/// Why a request brought no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server said so: its error number and text. The connection is fine.
    Server(u32, String),
    /// The connection is not to be used again.
    Broken(Error),
}

/// A connection before its export is chosen. It reads no byte more than it is asked for, so nothing
/// that came before TLS is left over behind it.
#[derive(Debug)]
pub(super) struct Setup {
    stream: Stream,
    /// What messages call the server.
    name: String,
    deadline: Instant,
}

impl Setup {
    pub(super) fn connect(uri: &NbdUri, timeout: Duration) -> Result<Self, Error> {
        let deadline = Instant::now() + timeout;
        let name = uri.to_string();
        let stream = Stream::connect(&uri.address, deadline)
            .map_err(|e| Error::io(format!("{name}: cannot connect"), e))?;
        let setup = Self { stream, name, deadline };
        setup
            .stream
            .set_timeouts(timeout)
            .map_err(|e| Error::io(setup.context("cannot set a time-out"), e))?;
        Ok(setup)
    }

    /// Fills `buf` from the server, within the deadline also when it sends byte by byte.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> Result<(), Error> {
        read_all(&self.stream, buf, self.deadline).map_err(|e| self.failed(e))
    }

    /// Sends all of `bytes`.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.stream
            .write_all(bytes, self.deadline)
            .map_err(|e| Error::io(self.context("cannot write"), e))
    }

    pub(super) fn start_tls(&mut self, tls: &Tls) -> Result<(), Error> {
        let started = self.stream.start_tls(tls.config.clone(), tls.name.clone(), self.deadline);
        started.map_err(|e| match e.kind() {
            // A certificate that is not good will not be better next time.
            io::ErrorKind::InvalidData => {
                Error::new(ErrorKind::Refused, self.context(&format!("no TLS: {e}")))
            }
            _ => Error::io(self.context("no TLS"), e),
        })
    }

    fn failed(&self, error: io::Error) -> Error {
        reading_failed(&self.name, error)
    }

    /// `what`, with the server's name before it.
    pub(super) fn context(&self, what: &str) -> String {
        format!("{}: {what}", self.name)
    }
}

fn reading_failed(name: &str, error: io::Error) -> Error {
    let what = match error.kind() {
        io::ErrorKind::UnexpectedEof => "the server hung up",
        io::ErrorKind::TimedOut => "the server took too long",
        _ => "cannot read",
    };
    Error::io(format!("{name}: {what}"), error)
}

fn read_all(stream: &Stream, buf: &mut [u8], deadline: Instant) -> io::Result<()> {
    let mut done = 0;
    while done < buf.len() {
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match stream.read(&mut buf[done..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// What was read ahead of the replies.
#[derive(Debug)]
struct Ahead {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

/// The reading end of a connection, in the hands of the one who reads.
pub(super) struct Reading<'c> {
    connection: &'c Connection,
    ahead: MutexGuard<'c, Ahead>,
    deadline: Instant,
}

impl Reading<'_> {
    /// Fills `buf`.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> Result<(), Error> {
        let failed = |e| reading_failed(&self.connection.name, e);
        let mut done = 0;
        while done < buf.len() {
            let ahead = &mut *self.ahead;
            if ahead.start < ahead.end {
                let n = (ahead.end - ahead.start).min(buf.len() - done);
                buf[done..done + n].copy_from_slice(&ahead.bytes[ahead.start..ahead.start + n]);
                ahead.start += n;
                done += n;
            } else if buf.len() - done >= BUFFER_BYTES {
                let all = read_all(&self.connection.stream, &mut buf[done..], self.deadline);
                return all.map_err(failed);
            } else {
                if Instant::now() >= self.deadline {
                    return Err(failed(io::ErrorKind::TimedOut.into()));
                }
                match self.connection.stream.read(&mut ahead.bytes) {
                    Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
                    Ok(n) => (ahead.start, ahead.end) = (0, n),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(failed(e)),
                }
            }
        }
        Ok(())
    }

    /// `what`, with the server's name before it.
    pub(super) fn context(&self, what: &str) -> String {
        format!("{}: {what}", self.connection.name)
    }

    pub(super) fn agreed(&self) -> &Agreed {
        &self.connection.agreed
    }
}

/// Where the reply to a request is.
#[derive(Debug)]
enum Place {
    /// Not whole yet.
    Waiting(Reply),
    /// Someone reads a part of it.
    InHand,
    /// Here, or the server's error.
    Done(Result<Reply, (u32, String)>),
}

#[derive(Debug, Default)]
struct State {
    replies: HashMap<u64, Place>,
    /// Somebody reads.
    reading: bool,
    broken: Option<(ErrorKind, String)>,
}

/// A connection that has chosen its export.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    name: String,
    pub(super) agreed: Agreed,
    reply_timeout: Duration,
    /// The cookie of the next request; no two requests of a connection share one. Held while a request
    /// is sent.
    sending: Mutex<u64>,
    ahead: Mutex<Ahead>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Connection {
    /// Connects and chooses the export, within `handshake`; later answers may take the client's
    /// `reply_timeout` each.
    pub(super) fn open(
        uri: &NbdUri,
        client: &Client,
        tls: Option<&Tls>,
        handshake: Duration,
    ) -> Result<Self, Error> {
        let mut setup = Setup::connect(uri, handshake)?;
        let agreed = negotiate(&mut setup, &uri.export, &client.contexts, tls)?;
        setup
            .stream
            .set_timeouts(client.reply_timeout)
            .map_err(|e| Error::io(setup.context("cannot set a time-out"), e))?;
        let bytes = vec![0; BUFFER_BYTES].into_boxed_slice();
        Ok(Self {
            stream: setup.stream,
            name: setup.name,
            agreed,
            reply_timeout: client.reply_timeout,
            sending: Mutex::new(1),
            ahead: Mutex::new(Ahead { bytes, start: 0, end: 0 }),
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_broken(&self) -> bool {
        self.state().broken.is_some()
    }

    /// Nothing that comes from it is believed any more; all who wait for it are told.
    fn break_off(&self, error: &Error) {
        let mut state = self.state();
        state.broken.get_or_insert_with(|| (error.kind(), error.to_string()));
        drop(state);
        self.stream.shutdown();
        self.changed.notify_all();
    }

    /// Says good-bye. A server that is gone does not miss it.
    pub(super) fn leave(&self, request: Request) {
        let sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + Duration::from_secs(1);
        let _ = self.stream.write_all(&request.encode(), deadline);
        drop(sending);
        self.stream.shutdown();
    }

    /// Sends a request and waits for its reply. The data of a READ is in `buf` then, which has its
    /// length; any other request has an empty one.
    pub(super) fn call(
        &self,
        request: Request,
        payload: &[u8],
        buf: &mut [u8],
    ) -> Result<Reply, Failure> {
        let deadline = Instant::now() + self.reply_timeout;
        let cookie = self.send(request, payload, deadline)?;
        self.wait(cookie, buf, deadline)
    }

    fn send(
        &self,
        mut request: Request,
        payload: &[u8],
        deadline: Instant,
    ) -> Result<u64, Failure> {
        let mut next = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        request.cookie = *next;
        *next += 1;
        // The reply may come before the write returns, so its place must be there first.
        let place = Place::Waiting(Reply::new(request));
        self.state().replies.insert(request.cookie, place);
        let mut out = request.encode().to_vec();
        let result = if payload.len() <= BUFFER_BYTES {
            out.extend_from_slice(payload);
            self.stream.write_all(&out, deadline)
        } else {
            let head = self.stream.write_all(&out, deadline);
            head.and_then(|()| self.stream.write_all(payload, deadline))
        };
        drop(next);
        if let Err(e) = result {
            let error = Error::io(format!("{}: cannot write", self.name), e);
            self.break_off(&error);
            self.state().replies.remove(&request.cookie);
            return Err(Failure::Broken(error));
        }
        Ok(request.cookie)
    }

    fn wait(&self, cookie: u64, buf: &mut [u8], deadline: Instant) -> Result<Reply, Failure> {
        let mut state = self.state();
        loop {
            match state.replies.remove(&cookie) {
                Some(Place::Done(result)) => {
                    return result
                        .map(|reply| reply.into_buffer(buf))
                        .map_err(|(code, text)| Failure::Server(code, text));
                }
                Some(Place::Waiting(reply)) if state.broken.is_none() && !state.reading => {
                    state.reading = true;
                    drop(state);
                    let result = self.read_until(cookie, reply, buf, deadline);
                    if let Err(Failure::Broken(error)) = &result {
                        self.break_off(error);
                    }
                    self.state().reading = false;
                    self.changed.notify_all();
                    return result;
                }
                Some(place) => match (&state.broken, &place) {
                    (Some((kind, text)), Place::Waiting(_)) => {
                        return Err(Failure::Broken(Error::new(*kind, text.clone())));
                    }
                    _ => drop(state.replies.insert(cookie, place)),
                },
                None => {
                    let text = format!("{}: a reply was lost", self.name);
                    return Err(Failure::Broken(Error::protocol(text)));
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() && state.broken.is_none() {
                drop(state);
                let text = format!("{}: the server took too long", self.name);
                self.break_off(&Error::new(ErrorKind::Timeout, text));
                state = self.state();
                continue;
            }
            let left = left.max(Duration::from_millis(10));
            let wait = self.changed.wait_timeout(state, left);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Reads replies until the own one, to request `cookie`, is whole.
    fn read_until(
        &self,
        cookie: u64,
        reply: Reply,
        buf: &mut [u8],
        deadline: Instant,
    ) -> Result<Reply, Failure> {
        let ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reading = Reading { connection: self, ahead, deadline };
        // What others have read of it before.
        let mut own = reply.into_buffer(buf);
        loop {
            let mut start = [0; SIMPLE_REPLY_BYTES];
            reading.read(&mut start).map_err(Failure::Broken)?;
            let start = ReplyStart::decode(&start)
                .map_err(|e| Failure::Broken(Error::codec(reading.context("reply"), e)))?;
            let (ReplyStart::Simple { cookie: whose, .. }
            | ReplyStart::Chunk { cookie: whose, .. }) = start;
            if whose == cookie {
                match own.read_part(&mut reading, start, buf).map_err(Failure::Broken)? {
                    Progress::More => {}
                    Progress::Whole => return Ok(own),
                    Progress::Failed(code, text) => return Err(Failure::Server(code, text)),
                }
            } else {
                self.read_for_another(&mut reading, whose, start).map_err(Failure::Broken)?;
            }
        }
    }

    fn read_for_another(
        &self,
        reading: &mut Reading<'_>,
        cookie: u64,
        start: ReplyStart,
    ) -> Result<(), Error> {
        let mut state = self.state();
        let Some(Place::Waiting(_)) = state.replies.get(&cookie) else {
            let what = format!("a reply to request {cookie}, which is not ours");
            return Err(Error::protocol(reading.context(&what)));
        };
        let place = state.replies.insert(cookie, Place::InHand);
        drop(state);
        let Some(Place::Waiting(mut reply)) = place else { return Ok(()) };
        let mut data = reply.take_data();
        let result = reply.read_part(reading, start, &mut data);
        reply.put_data(data);
        let (place, result) = match result {
            Ok(Progress::More) => (Place::Waiting(reply), Ok(())),
            Ok(Progress::Whole) => (Place::Done(Ok(reply)), Ok(())),
            Ok(Progress::Failed(code, text)) => (Place::Done(Err((code, text))), Ok(())),
            Err(error) => (Place::Waiting(reply), Err(error)),
        };
        let done = matches!(place, Place::Done(_));
        self.state().replies.insert(cookie, place);
        if done {
            self.changed.notify_all();
        }
        result
    }
}
