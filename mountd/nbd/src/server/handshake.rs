//! Leads a client through the handshake: the I/O around [`Negotiation`].

use backstay_serve::Wire;

use super::negotiation::{Agreed, Facts, Negotiation, Question, Step};
use super::opened::Opened;
use super::peer::ClientInfo;
use super::stream::{Stream, start_tls};
use super::{ExportInfo, OpenError, Shared};
use crate::error::Error;

/// An export and how to speak about it.
pub(super) struct Negotiated {
    pub(super) opened: Opened,
    pub(super) agreed: Agreed,
}

/// Leads a client from its first byte to an export; `None` when it left in good order. `client` learns
/// its certificate, if it shows one.
pub(super) async fn negotiate(
    wire: &mut Wire<Stream>,
    shared: &Shared,
    client: &mut ClientInfo,
) -> Result<Option<Negotiated>, Error> {
    let lost = |e| Error::io("the client left during the handshake", e);
    let mut state = Negotiation::new(shared.tls_policy());
    let mut opened = None;
    wire.send(&Negotiation::greeting()).await.map_err(lost)?;
    loop {
        let (used, mut step) = state.input(wire.buffered())?;
        wire.consume(used);
        if let Step::Ask(question) = step {
            step = ask(question, &mut state, &mut opened, shared, client).await?;
        }
        if step == Step::StartTls && !wire.buffered().is_empty() {
            // Before the answer: somebody wants us to believe what was not encrypted (CVE-2021-3716).
            return Err(Error::protocol("plain text behind STARTTLS"));
        }
        let replies = state.take_replies();
        wire.send(&replies).await.map_err(lost)?;
        match step {
            Step::More(n) => wire.fill(n).await.map_err(lost)?,
            Step::Again | Step::Ask(_) => {}
            Step::StartTls => {
                let Some(tls) = shared.config.tls.config() else {
                    return Err(Error::protocol("TLS was not offered"));
                };
                let failed = |e| Error::io("the TLS handshake failed", e);
                client.certificate = start_tls(wire, tls).await.map_err(failed)?.client();
                state.secured();
            }
            Step::Transmission(agreed) => {
                return Ok(opened.map(|opened| Negotiated { opened, agreed }));
            }
            Step::End => return Ok(None),
        }
    }
}

/// Asks the exports, and tells the negotiation. What is opened stays open until the next question.
async fn ask(
    question: Question,
    state: &mut Negotiation,
    last: &mut Option<Opened>,
    shared: &Shared,
    client: &ClientInfo,
) -> Result<Step, Error> {
    *last = None;
    let exports = shared.exports.clone();
    let own = client.clone();
    match question {
        Question::List => Ok(state.listed(list(shared, client).await)),
        Question::Known(name) => {
            let known =
                move || exports.is_known(&name, &own).then(|| exports.has_presence(&name, &own));
            Ok(state.known(shared.pool.run(known).await.flatten()))
        }
        Question::Open { export, described } => {
            let opened = match open(shared, &export, client).await {
                Ok(opened) => opened,
                Err(why) => return state.opened(Err(why)),
            };
            let entry = if described { entry(shared, &export, client).await } else { None };
            let (geometry, caps) = (opened.device.geometry(), opened.device.caps());
            *last = Some(opened);
            state.opened(Ok(Facts { geometry, caps, own: entry }))
        }
    }
}

async fn list(shared: &Shared, client: &ClientInfo) -> Vec<ExportInfo> {
    let (exports, own) = (shared.exports.clone(), client.clone());
    shared.pool.run(move || exports.list(&own)).await.unwrap_or_default()
}

/// The entry of an export in the list.
async fn entry(shared: &Shared, name: &str, client: &ClientInfo) -> Option<ExportInfo> {
    let mut list = list(shared, client).await;
    match list.iter().position(|export| export.name == name) {
        Some(at) => Some(list.swap_remove(at)),
        // The default export's real name is told when there can be no doubt about it.
        None if name.is_empty() && list.len() == 1 => list.pop(),
        None => None,
    }
}

/// Opens an export; the error is text for the client.
async fn open(shared: &Shared, name: &str, client: &ClientInfo) -> Result<Opened, &'static str> {
    let (exports, own, who) = (shared.exports.clone(), name.to_owned(), client.clone());
    match shared.pool.run(move || exports.open(&own, &who)).await {
        Some(Ok(opened)) => Ok(opened),
        Some(Err(OpenError::Unknown)) => Err("there is no such export"),
        Some(Err(error)) => {
            tracing::warn!(export = name, %error, "cannot open an export");
            Err("the export cannot be opened; the server's log says why")
        }
        None => Err("the server is stopping"),
    }
}
