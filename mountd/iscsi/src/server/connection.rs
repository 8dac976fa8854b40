//! One connection from its first byte to its last: the login, then the session.

use std::net::SocketAddr;
use std::sync::Arc;

use backstay_serve::{Connection, Peer, Socket, Wire, stop_asked};
use tokio::sync::watch;

use super::Shared;
use super::session::{self, Begun};
use super::sessions::{Applicant, Held, NotBegun};
use super::table::ChapSide;
use crate::error::{Error, ErrorKind};
use crate::proto::chap::{ChapConfig, Credentials};
use crate::proto::login::{Access, Agreed, Login, LoginAnswer, Policy, SessionKind, Step};
use crate::proto::pdu::{LoginRequest, LoginResponse, LoginStatus as Status};
use crate::proto::{BHS_BYTES, InitiatorName, Serial};
use crate::scsi::InitiatorPort;

/// Most bytes of text in one login PDU: what holds until something else is agreed (RFC 7143, 13.12).
const MAX_LOGIN_SEGMENT_BYTES: usize = 8192;
pub(super) async fn run(shared: Arc<Shared>, new: Connection, mut stopped: watch::Receiver<bool>) {
    let Connection { stream, peer, local, permit } = new;
    let (Peer::Tcp(peer), Some(local)) = (peer, local) else { return };
    let mut wire = match Socket::new(stream) {
        Ok(socket) => Wire::new(socket),
        Err(error) => {
            tracing::debug!(%peer, %error, "connection lost before it began");
            return;
        }
    };
    let begun = tokio::select! {
        biased;
        () = stop_asked(&mut stopped) => return,
        () = permit.evicted() => {
            tracing::debug!(%peer, "login gave way to a newer one");
            return;
        }
        result = tokio::time::timeout(
            shared.config.login_timeout,
            log_in(&mut wire, &shared, peer),
        ) => match result {
            Ok(Ok(begun)) => begun,
            Ok(Err(error)) if error.kind() == ErrorKind::Refused => {
                tracing::info!(%peer, %error, "login refused");
                return;
            }
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "login failed");
                return;
            }
            Err(_) => {
                tracing::debug!(%peer, "login took too long");
                return;
            }
        },
    };
    if !permit.chosen() {
        return;
    }
    let LoggedIn { agreed, held, stat_sn, cmd_sn } = begun;
    let (initiator, number) = (agreed.initiator.to_string(), held.as_ref().map(Held::number));
    tracing::info!(%peer, initiator, session = number, "logged in");
    let begun = Begun { wire, agreed, held, stat_sn, cmd_sn, peer, local };
    match session::run(begun, shared, stopped).await {
        Ok(()) => tracing::info!(%peer, initiator, session = number, "logged out"),
        Err(error) => tracing::info!(%peer, initiator, session = number, %error, "session ended"),
    }
}

/// What a login leads to.
struct LoggedIn {
    agreed: Agreed,
    /// `None` for a discovery session.
    held: Option<Held>,
    /// The next status number, and the first command's.
    stat_sn: Serial,
    cmd_sn: Serial,
}

/// The targets as an initiator of this address may have them.
struct Door<'a> {
    shared: &'a Shared,
    peer: SocketAddr,
}

impl Policy for Door<'_> {
    fn target(&self, name: &str, initiator: &InitiatorName) -> Access {
        let Some(target) = self.shared.target(name) else { return Access::NotFound };
        // One that may not have it does not learn that it is there.
        if target.allows(initiator.as_str(), self.peer.ip()).is_none() {
            return Access::NotFound;
        }
        let side = |side: &ChapSide| Credentials {
            name: side.name.clone(),
            secret: side.secret.clone().into_bytes(),
        };
        let chap = target.chap.as_ref().map(|chap| ChapConfig {
            initiator: side(&chap.initiator),
            target: chap.target.as_ref().map(side),
        });
        Access::Open { chap, alias: target.alias.clone() }
    }
}

async fn log_in(
    wire: &mut Wire<Socket>,
    shared: &Shared,
    peer: SocketAddr,
) -> Result<LoggedIn, Error> {
    let lost = |e| Error::io("the initiator left", e);
    let entropy = |bytes: &mut [u8]| {
        aws_lc_rs::rand::fill(bytes)
            .map_err(|_| Error::new(ErrorKind::Io, "the system gives no random numbers"))
    };
    let mut login = Login::new(Box::new(entropy));
    let mut stat_sn = Serial::default();
    loop {
        wire.fill(BHS_BYTES).await.map_err(lost)?;
        let mut header = [0; BHS_BYTES];
        header.copy_from_slice(&wire.buffered()[..BHS_BYTES]);
        let len = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
        // SPDK #3927: nothing but a login before the login.
        let request = LoginRequest::decode(&header).map_err(|e| Error::codec("no login", e))?;
        if header[4] != 0 || len > MAX_LOGIN_SEGMENT_BYTES {
            return Err(Error::protocol("a login PDU is too long"));
        }
        wire.consume(BHS_BYTES);
        let padded = len.next_multiple_of(4);
        wire.fill(padded).await.map_err(lost)?;
        let data = wire.buffered()[..len].to_vec();
        wire.consume(padded);
        let door = Door { shared, peer };
        let (answer, ended) = match login.step(&request, &data, &door) {
            Ok(Step::Answer(answer)) => (answer, None),
            Ok(Step::Done(answer, agreed)) => match begin(shared, &agreed, peer).await {
                Ok(held) => (answer, Some(Ok((*agreed, held)))),
                Err((status, why)) => (answer.refused(status), Some(Err(why))),
            },
            Err(failure) => (failure.answer, Some(Err(failure.why))),
        };
        let number = match &ended {
            Some(Ok((_, Some(held)))) => held.number(),
            Some(Ok((_, None))) => 0,
            _ => request.tsih,
        };
        let pdu = encode(&request, &answer, number, stat_sn);
        stat_sn = stat_sn.plus(1);
        wire.send(&pdu).await.map_err(lost)?;
        match ended {
            None => {}
            Some(Ok((agreed, held))) => {
                return Ok(LoggedIn { agreed, held, stat_sn, cmd_sn: request.cmd_sn });
            }
            Some(Err(why)) => return Err(Error::new(ErrorKind::Refused, why)),
        }
    }
}

/// Begins the session that was agreed on; `None` is a discovery session.
async fn begin(
    shared: &Shared,
    agreed: &Agreed,
    peer: SocketAddr,
) -> Result<Option<Held>, (Status, String)> {
    let name = match &agreed.session {
        SessionKind::Discovery => return Ok(None),
        SessionKind::Normal { target } => target,
    };
    let port = InitiatorPort { name: agreed.initiator.to_string(), isid: agreed.isid };
    let target =
        shared.target(name).ok_or_else(|| (Status::NotFound, "the target has gone".to_owned()))?;
    if agreed.tsih != 0 && !target.has_session(&port, agreed.tsih) {
        return Err((Status::NoSuchSession, "it continues a session that is not there".to_owned()));
    }
    let applicant = Applicant { port, address: peer, continues: agreed.tsih };
    let held = target.begin(applicant, || shared.targets.next_session()).await;
    held.map(Some).map_err(|why| match why {
        NotBegun::Gone => (Status::NotFound, "the target lets nobody in".to_owned()),
        NotBegun::Full => (Status::OutOfResources, "the target has too many sessions".to_owned()),
        NotBegun::Stuck => {
            (Status::ServiceUnavailable, "the session before it does not end".to_owned())
        }
    })
}

fn encode(request: &LoginRequest, answer: &LoginAnswer, tsih: u16, stat_sn: Serial) -> Vec<u8> {
    let response = LoginResponse {
        transit: answer.transit,
        continues: false,
        csg: answer.csg,
        nsg: answer.nsg,
        isid: request.isid,
        tsih,
        initiator_task_tag: request.initiator_task_tag,
        stat_sn,
        exp_cmd_sn: request.cmd_sn,
        max_cmd_sn: request.cmd_sn.plus(session::WINDOW - 1),
        status: answer.status as u16,
    };
    let mut pdu = response.encode().to_vec();
    // At most MAX_LOGIN_SEGMENT_BYTES: the login keeps to it.
    pdu[5..8].copy_from_slice(&(answer.text.len() as u32).to_be_bytes()[1..]);
    pdu.extend(&answer.text);
    pdu.resize(pdu.len().next_multiple_of(4), 0);
    pdu
}
