//! What a flush may say after connections have broken.
//!
//! A server that goes may take with it what it had acknowledged and not yet made durable, and a new one
//! behind the same address knows nothing of that. Nothing tells from outside whether it is the same one. So:
//!
//! * **What is repeated.** A request whose connection broke by the other side's doing (it was closed or
//!   reset, or none could be made) is repeated on another one, within [`super::Client::reconnect_timeout`]:
//!   reads, block status, writes, trims, zeros and flushes. Each may be done twice without harm, as the caller
//!   has not been told of the first time and so nothing that depends on it was started. A server that breaks
//!   the protocol or is silent too long is not asked again: what it has yet to do with the first request is
//!   not known. (A server that has closed a connection must not go on with its requests; those known to us
//!   do not.)
//! * **What counts as flushed.** A flush succeeds only if every connection on which a change was
//!   acknowledged since its last good flush acknowledges a flush itself. If one of these broke before, the
//!   acknowledged changes may be lost, and the flush and all later ones fail.
//! * **Unless** the caller says that the server keeps what it acknowledged when it is started anew
//!   ([`super::Client::server_keeps_writes`]). Then a broken connection owes nothing, and one good flush on
//!   any connection is enough.
//! * A flush that the server answered with an error makes all later ones fail.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The changes acknowledged on one connection.
#[derive(Debug, Clone, Copy, Default)]
struct Account {
    id: u64,
    acknowledged: u64,
    flushed: u64,
}

#[derive(Debug, Default)]
struct Books {
    open: Vec<Account>,
    next: u64,
    /// Why no flush succeeds any more.
    failed: Option<&'static str>,
}

/// Keeps count of what is not yet durable.
#[derive(Debug)]
pub(super) struct Durability {
    server_keeps: bool,
    books: Mutex<Books>,
}

const LOST: &str = "a connection broke after it had acknowledged writes that were not flushed";
const FAILED: &str = "an earlier flush failed; what was written before it is not safe";

impl Durability {
    pub(super) fn new(server_keeps: bool) -> Self {
        Self { server_keeps, books: Mutex::default() }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new connection; answers what it is called here.
    pub(super) fn opened(&self) -> u64 {
        let mut books = self.books();
        books.next += 1;
        let id = books.next;
        books.open.push(Account { id, ..Account::default() });
        id
    }

    /// A change was acknowledged, not durable by itself. Called before its caller is told.
    pub(super) fn acknowledged(&self, id: u64) {
        let mut books = self.books();
        match books.open.iter_mut().find(|account| account.id == id) {
            Some(account) => account.acknowledged += 1,
            // Broken while the answer was on its way through here.
            None if !self.server_keeps => books.failed = Some(LOST),
            None => {}
        }
    }

    /// A connection is broken. May be said more than once.
    pub(super) fn broke(&self, id: u64) {
        let mut books = self.books();
        let Some(index) = books.open.iter().position(|account| account.id == id) else { return };
        let account = books.open.swap_remove(index);
        if account.acknowledged > account.flushed && !self.server_keeps {
            books.failed.get_or_insert(LOST);
        }
    }

    /// The connections that must acknowledge a flush, each with what it covers then.
    pub(super) fn owing(&self) -> Result<Vec<(u64, u64)>, &'static str> {
        let books = self.books();
        if let Some(why) = books.failed {
            return Err(why);
        }
        let owing = books.open.iter().filter(|account| account.acknowledged > account.flushed);
        Ok(owing.map(|account| (account.id, account.acknowledged)).collect())
    }

    /// A connection has acknowledged a flush that was sent after its first `covered` changes.
    pub(super) fn flushed(&self, id: u64, covered: u64) {
        let mut books = self.books();
        if let Some(account) = books.open.iter_mut().find(|account| account.id == id) {
            account.flushed = account.flushed.max(covered);
        }
    }

    /// The server answered a flush with an error.
    pub(super) fn flush_failed(&self) {
        self.books().failed.get_or_insert(FAILED);
    }

    /// Fails if something was lost up to now.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        self.books().failed.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_break_after_an_unflushed_write_fails_every_flush() {
        let books = Durability::new(false);
        let (a, b) = (books.opened(), books.opened());
        books.acknowledged(a);
        assert_eq!(books.owing(), Ok(vec![(a, 1)]));
        books.broke(b);
        assert_eq!(books.check(), Ok(()), "nothing was written there");
        books.broke(a);
        assert_eq!(books.owing(), Err(LOST));
        let c = books.opened();
        books.acknowledged(c);
        books.flushed(c, 1);
        assert_eq!(books.owing(), Err(LOST), "what is lost stays lost");
    }

    #[test]
    fn a_flush_covers_only_what_was_acknowledged_before_it() {
        let books = Durability::new(false);
        let a = books.opened();
        books.acknowledged(a);
        let owing = books.owing().unwrap();
        books.acknowledged(a);
        books.flushed(owing[0].0, owing[0].1);
        assert_eq!(books.owing(), Ok(vec![(a, 2)]));
        books.flushed(a, 2);
        books.broke(a);
        assert_eq!(books.owing(), Ok(vec![]));
    }

    #[test]
    fn an_answer_that_overtakes_the_break_is_counted() {
        let books = Durability::new(false);
        let a = books.opened();
        books.broke(a);
        books.acknowledged(a);
        assert_eq!(books.check(), Err(LOST));
    }

    #[test]
    fn a_server_that_keeps_writes_owes_nothing() {
        let books = Durability::new(true);
        let a = books.opened();
        books.acknowledged(a);
        books.broke(a);
        books.acknowledged(a);
        assert_eq!(books.owing(), Ok(vec![]));
        books.flush_failed();
        assert_eq!(books.owing(), Err(FAILED));
    }
}
