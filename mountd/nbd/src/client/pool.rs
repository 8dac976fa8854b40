//! The connections of one export.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Client;
use super::connection::Connection;
use super::durability::Durability;
use super::handshake::Agreed;
use super::tls::Tls;
use super::uri::NbdUri;
use crate::error::Error;
use crate::proto::transmission::flag;

/// A further connection must be made within this; a server that takes no more lets it wait.
const FURTHER_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection, and how much it has to do.
#[derive(Debug)]
struct Member {
    connection: Arc<Connection>,
    /// What [`Durability`] calls it.
    id: u64,
    in_flight: usize,
}

#[derive(Debug)]
struct Members {
    list: Vec<Member>,
    /// Connections being made.
    making: usize,
    max: usize,
}

/// The connections of one export: made as they are needed, left when they are broken.
#[derive(Debug)]
pub(super) struct Pool {
    uri: NbdUri,
    client: Client,
    tls: Option<Tls>,
    pub(super) agreed: Agreed,
    pub(super) durability: Durability,
    members: Mutex<Members>,
    changed: Condvar,
}

/// A place for one request on a connection.
#[derive(Debug)]
pub(super) struct Lease<'p> {
    pool: &'p Pool,
    pub(super) connection: Arc<Connection>,
    pub(super) id: u64,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let broken = self.connection.is_broken();
        if broken {
            self.pool.durability.broke(self.id);
        }
        let mut members = self.pool.lock();
        if broken {
            members.list.retain(|member| member.id != self.id);
        } else if let Some(member) = members.list.iter_mut().find(|m| m.id == self.id) {
            member.in_flight -= 1;
        }
        drop(members);
        self.pool.changed.notify_all();
    }
}

impl Pool {
    pub(super) fn open(uri: NbdUri, client: Client) -> Result<Self, Error> {
        let tls = Tls::new(&uri, &client)?;
        let first = Connection::open(&uri, &client, tls.as_ref(), client.handshake_timeout)?;
        let agreed = first.agreed.clone();
        let max = match agreed.flags & flag::CAN_MULTI_CONN {
            0 => 1,
            _ => client.connections.max(1),
        };
        let durability = Durability::new(client.server_keeps_writes);
        let id = durability.opened();
        let list = vec![Member { connection: Arc::new(first), id, in_flight: 0 }];
        let members = Mutex::new(Members { list, making: 0, max });
        Ok(Self { uri, client, tls, agreed, durability, members, changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        // A panic cannot happen between the updates of the counters.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease(&self, member: &mut Member) -> Lease<'_> {
        member.in_flight += 1;
        Lease { pool: self, connection: member.connection.clone(), id: member.id }
    }

    /// A place for a request: on a connection with nothing to do, on a further one, or on the one with
    /// the least to do; if all are full it waits.
    pub(super) fn take(&self) -> Result<Lease<'_>, Error> {
        let mut members = self.lock();
        loop {
            let making = members.making;
            let room = members.list.len() + making < members.max;
            let least = members.list.iter_mut().min_by_key(|member| member.in_flight);
            match least {
                Some(member) if member.in_flight == 0 => return Ok(self.lease(member)),
                _ if room => {
                    members.making += 1;
                    drop(members);
                    return self.make(making);
                }
                Some(member) if member.in_flight < self.client.in_flight.max(1) => {
                    return Ok(self.lease(member));
                }
                _ => {}
            }
            members = self.changed.wait(members).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The connection called `id`, however much it has to do; `None` if it is gone.
    pub(super) fn take_this(&self, id: u64) -> Option<Lease<'_>> {
        let mut members = self.lock();
        members.list.iter_mut().find(|member| member.id == id).map(|member| self.lease(member))
    }

    /// Makes a connection, for which the caller has counted `making` up.
    fn make(&self, making: usize) -> Result<Lease<'_>, Error> {
        let further = making > 0 || !self.lock().list.is_empty();
        let patience = match further {
            true => self.client.handshake_timeout.min(FURTHER_TIMEOUT),
            false => self.client.handshake_timeout,
        };
        let made = Connection::open(&self.uri, &self.client, self.tls.as_ref(), patience);
        let made = made.and_then(|connection| {
            if connection.agreed.is_like(&self.agreed) {
                return Ok(connection);
            }
            Err(Error::protocol(format!("{}: the export has changed", self.uri)))
        });
        let mut members = self.lock();
        members.making -= 1;
        let result = match made {
            Ok(connection) => {
                let id = self.durability.opened();
                let connection = Arc::new(connection);
                let mut member = Member { connection, id, in_flight: 0 };
                let lease = self.lease(&mut member);
                members.list.push(member);
                Ok(Some(lease))
            }
            Err(error) if members.list.is_empty() => Err(error),
            Err(error) => {
                // The server takes no more: the ones there are must do.
                tracing::debug!(uri = %self.uri, %error, "no further connection");
                members.max = members.list.len();
                Ok(None)
            }
        };
        drop(members);
        self.changed.notify_all();
        match result? {
            Some(lease) => Ok(lease),
            None => self.take(),
        }
    }

    /// Every connection there is.
    pub(super) fn all(&self) -> Vec<Arc<Connection>> {
        self.lock().list.iter().map(|member| member.connection.clone()).collect()
    }
}
