//! Tries whether a server keeps what the store builds upon. Some accept the header that forbids
//! overwriting and ignore it: two writers would then destroy each other's objects unseen.

use bytes::Bytes;
use futures_util::future::join_all;

use super::client::Client;
use super::retry::Failure;
use crate::entropy::{SystemEntropy, array};
use crate::error::{Error, ErrorKind, Result};

/// Writers that race for one name.
const RACERS: usize = 8;
/// An object that stays: an attempt to create it again tells how the server takes that.
const STANDING: &str = "tmp/probe";

/// Objects of a probe; never of any meaning.
struct Probe<'a> {
    client: &'a Client,
    name: String,
}

/// Everything the store needs of a server, before a repository is made on it. `Unsupported` says
/// what it lacks. What is written is removed again, as far as the server lets go of it.
pub(super) async fn everything(client: &Client) -> Result<()> {
    let name = format!("tmp/probe-{:032x}", u128::from_le_bytes(array(&SystemEntropy)));
    let probe = Probe { client, name };
    let outcome = probe.run().await;
    for name in [probe.name.clone(), probe.race_name()] {
        // It may be gone, or kept by a lock.
        let _ = client.delete(&name).await;
    }
    outcome
}

impl Probe<'_> {
    fn race_name(&self) -> String {
        format!("{}-race", self.name)
    }

    async fn run(&self) -> Result<()> {
        let body: Vec<u8> = (0..4096u32).map(|i| (i / 3) as u8).collect();
        let body = Bytes::from(body);
        let text = "cannot write to the storage";
        let client = self.client;
        client.create(&self.name, body.clone()).await.map_err(|f| f.into_error(text))?;
        self.second_is_refused().await?;
        self.one_of_many_wins().await?;
        let (names, more) = client.page("tmp", None).await.map_err(|f| f.into_error(text))?;
        let full = client.path(&self.name).to_string();
        if !names.iter().any(|(name, _)| *name == full) && more.is_none() {
            return Err(lacks("a new object is missing from the list that follows"));
        }
        let (from, to) = (1000, 1017);
        let got = client.range(&self.name, from..to, true).await;
        let got = got.map_err(|f| f.into_error("cannot read a part of an object"))?;
        if got.concat() != body[1000..1017] {
            return Err(lacks("a part of an object reads as other bytes"));
        }
        match client.delete(&self.name).await {
            Ok(()) => {}
            // The bucket keeps everything for a time; that is its owner's wish.
            Err(f) if f.kind == ErrorKind::Locked => return Ok(()),
            Err(f) => return Err(f.into_error("cannot remove an object")),
        }
        match client.get(&self.name, 4096).await {
            Err(f) if f.kind == ErrorKind::NotFound => Ok(()),
            Err(f) => Err(f.into_error("cannot read from the storage")),
            Ok(_) => Err(lacks("an object that was removed can still be read")),
        }
    }

    async fn second_is_refused(&self) -> Result<()> {
        refused(self.client.create(&self.name, Bytes::from_static(b"another")).await)
    }

    async fn one_of_many_wins(&self) -> Result<()> {
        let name = self.race_name();
        let bodies = (0..RACERS).map(|n| Bytes::from(format!("racer {n}").into_bytes()));
        let outcomes = join_all(bodies.map(|body| self.client.create(&name, body))).await;
        let mut winners = 0;
        for outcome in outcomes {
            match outcome {
                Ok(()) => winners += 1,
                Err(f) if f.kind == ErrorKind::Exists => {}
                Err(f) => return Err(f.into_error("cannot write to the storage")),
            }
        }
        if winners != 1 {
            return Err(lacks(&format!("of {RACERS} who made one object at once, {winners} won")));
        }
        Ok(())
    }
}

/// Whether overwriting is refused, with one request where the probe's object stands already.
pub(super) async fn overwriting(client: &Client) -> Result<()> {
    match client.create(STANDING, Bytes::from_static(b"first")).await {
        Ok(()) => refused(client.create(STANDING, Bytes::from_static(b"another")).await),
        other => refused(other),
    }
}

fn refused(second: Result<(), Failure>) -> Result<()> {
    match second {
        Err(f) if f.kind == ErrorKind::Exists => Ok(()),
        Err(f) => Err(f.into_error("cannot write to the storage")),
        Ok(()) => Err(lacks(
            "it overwrites an object although the request forbids it (If-None-Match is ignored)",
        )),
    }
}

fn lacks(what: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!(
            "this storage cannot hold a repository: {what}; use another server, or a newer \
             version of it"
        ),
    )
}
