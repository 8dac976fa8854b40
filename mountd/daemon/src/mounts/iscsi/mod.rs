//! Mounts as iSCSI targets: one table for all, served at portals that all mounts share and at portals of their own.

mod names;
mod portal;
mod reserve;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_api::mountd::{ClientView, Listen as ListenText};
use backstay_api::{Refusal, RefusalKind};
use backstay_blockdev::BlockDevice;
use backstay_iscsi::server::{
    Attached, Chap, ChapSide, Rule, ServerConfig, ServerHandle, TargetSpec, TargetTable, UnitSpec,
};
use jiff::Timestamp;
use parking_lot::Mutex;

use super::door::{MAX_LISTEN, MAX_RULES};
use super::record::{Record, Side, Target};
use crate::{Error, ErrorKind};
pub(super) use names::{secret, target_name};
use portal::UsualPortal;
use reserve::FileKeeper;

/// How long sessions that were kicked may take to be gone.
const KICK_PATIENCE: Duration = Duration::from_secs(10);

/// What initiators are told to write at once: what guests' file systems are made for.
const PHYSICAL_BLOCK_BYTES: u32 = 4096;

/// All targets that are served.
#[derive(Debug)]
pub(super) struct Targets {
    table: Arc<TargetTable>,
    config: ServerConfig,
    usual: UsualPortal,
    /// The server of the portals that all mounts share. Without an address that somebody asked for there is none before
    /// the first target.
    shared: Mutex<Option<ServerHandle>>,
    /// The targets' names, by those of their mounts.
    names: Mutex<BTreeMap<String, String>>,
}

/// A target that is served.
#[derive(Debug)]
pub(super) struct Served {
    id: String,
    target: String,
    luns: Vec<u16>,
    own: Option<ServerHandle>,
    shared: Vec<SocketAddr>,
    /// The addresses of its own, with real ports.
    pub(super) bound: Vec<ListenText>,
}

impl Served {
    /// Where initiators find it; the portals of its own first.
    pub(super) fn portals(&self) -> Vec<String> {
        let own = self.own.iter().flat_map(ServerHandle::addresses);
        own.chain(&self.shared).map(ToString::to_string).collect()
    }

    /// A URI for each unit at each portal, as libiscsi and QEMU read them.
    pub(super) fn uris(&self) -> Vec<String> {
        let uri = |portal: &str, lun: &u16| format!("iscsi://{portal}/{}/{lun}", self.target);
        let portals = self.portals();
        portals.iter().flat_map(|portal| self.luns.iter().map(|lun| uri(portal, lun))).collect()
    }
}

/// A disk that is to be served.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) name: String,
    pub(super) device: Arc<dyn BlockDevice>,
}

impl Targets {
    /// Serves nothing yet. At the portals of `listen` from now on, if there are any.
    pub(super) fn open(state_dir: &Path, listen: &[SocketAddr]) -> Result<Self, Error> {
        let table = Arc::new(TargetTable::new());
        let config = ServerConfig::default();
        let shared = match listen {
            [] => None,
            _ => Some(
                ServerHandle::start(listen, table.clone(), config.clone())
                    .map_err(cannot_listen)?,
            ),
        };
        Ok(Self {
            table,
            config,
            usual: UsualPortal::new(state_dir),
            shared: Mutex::new(shared),
            names: Mutex::default(),
        })
    }

    /// The portals that all mounts share.
    pub(super) fn portals(&self) -> Vec<SocketAddr> {
        self.shared.lock().iter().flat_map(ServerHandle::addresses).copied().collect()
    }

    /// The shared portals; the usual one is opened if there is none.
    pub(super) fn share(&self) -> Result<Vec<SocketAddr>, Error> {
        let mut shared = self.shared.lock();
        if shared.is_none() {
            let start = |address| {
                let config = self.config.clone();
                ServerHandle::start(&[address], self.table.clone(), config).map_err(cannot_listen)
            };
            *shared = Some(self.usual.open(start)?);
        }
        Ok(shared.iter().flat_map(ServerHandle::addresses).copied().collect())
    }

    /// Serves a mount's disks as the units of its target. Of a repository with the id `repository`.
    pub(super) fn serve(
        &self,
        record: &Record,
        target: &Target,
        repository: &str,
        reservations: &Path,
        units: Vec<Unit>,
    ) -> Result<Served, Refusal> {
        let id = &record.id;
        let refused = |e: Error| super::refusal(&e).what(id);
        let shared = self.share().map_err(refused)?;
        let spec = spec(record, target, repository, reservations, units)?;
        let luns = spec.units.iter().map(|unit| unit.lun).collect();
        let name = spec.name.clone();
        self.table.add(spec).map_err(|e| refused(cannot_serve(e)))?;
        let own = addresses(&record.listen).and_then(|listen| {
            let config = ServerConfig { only: Some(name.clone()), ..self.config.clone() };
            let start = || ServerHandle::start(&listen, self.table.clone(), config);
            (!listen.is_empty()).then(start).transpose().map_err(|e| refused(cannot_listen(e)))
        });
        let own = match own {
            Ok(own) => own,
            Err(why) => {
                self.table.remove(&name);
                return Err(why);
            }
        };
        self.names.lock().insert(id.clone(), name.clone());
        let bound = own.iter().flat_map(ServerHandle::addresses);
        let bound = bound.map(|address| ListenText::Tcp(address.to_string())).collect();
        Ok(Served { id: id.clone(), target: name, luns, own, shared, bound })
    }

    /// Asks a target's initiators to log out, ends their sessions a moment later, and stops its portals. When it returns no
    /// command is under way.
    pub(super) fn stop_serving(&self, served: Served) {
        self.names.lock().remove(&served.id);
        if let Some(removed) = self.table.remove(&served.target) {
            let patience = self.config.end_grace + 2 * self.config.stop_grace;
            if !removed.wait(patience) {
                tracing::warn!(
                    id = served.id,
                    "initiators are still logged in to a mount that ended"
                );
            }
        }
        if let Some(Err(error)) = served.own.map(ServerHandle::stop) {
            tracing::warn!(id = served.id, %error, "a server did not end well");
        }
    }

    fn name(&self, id: &str) -> Option<String> {
        self.names.lock().get(id).cloned()
    }

    fn attached(&self, id: &str) -> Vec<Attached> {
        self.name(id).map(|name| self.table.attached(&name)).unwrap_or_default()
    }

    /// Who is logged in to a mount; nobody if it is no target.
    pub(super) fn clients(&self, id: &str) -> Vec<ClientView> {
        self.attached(id).into_iter().map(client_view).collect()
    }

    /// Lets nobody else in, or lets people in again.
    pub(super) fn set_closed(&self, id: &str, closed: bool) {
        if let Some(name) = self.name(id) {
            self.table.set_closed(&name, closed);
        }
    }

    /// Ends a session, or all of them, and waits until they are gone; `false` if there is none of that number.
    pub(super) fn kick(&self, id: &str, session: Option<u16>) -> bool {
        let Some(name) = self.name(id) else { return false };
        let wanted = |attached: &Attached| session.is_none_or(|number| attached.session == number);
        // Numbers of sessions that are there now: those who come again have others.
        let numbers: Vec<u16> =
            self.table.attached(&name).iter().filter(|a| wanted(a)).map(|a| a.session).collect();
        for number in &numbers {
            self.table.kick(&name, *number);
        }
        let start = Instant::now();
        let is_there = || self.table.attached(&name).iter().any(|a| numbers.contains(&a.session));
        while is_there() && start.elapsed() < KICK_PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        session.is_none() || !numbers.is_empty()
    }

    /// Stops the shared portals.
    pub(super) fn close(&self) {
        if let Some(Err(error)) = self.shared.lock().take().map(ServerHandle::stop) {
            tracing::warn!(%error, "a server did not end well");
        }
    }
}

/// Refuses what could not be served.
pub(super) fn check(allow: &[String], listen: &[ListenText]) -> Result<(), Refusal> {
    if allow.len() > MAX_RULES || listen.len() > MAX_LISTEN {
        return Err(Refusal::new(RefusalKind::Usage, "too many rules or addresses"));
    }
    rules(allow)?;
    let remote = addresses(listen)?.iter().any(|at| !at.ip().to_canonical().is_loopback());
    if remote && allow.is_empty() {
        return Err(Refusal::new(
            RefusalKind::Usage,
            "an address that other hosts reach needs to know whom to let in",
        )
        .hint("--allow 10.0.0.7")
        .hint("--allow-initiator iqn.1993-08.org.debian:01:abc --chap"));
    }
    Ok(())
}

fn rules(allow: &[String]) -> Result<Vec<Rule>, Refusal> {
    let rule = |text: &String| {
        text.parse::<Rule>().map_err(|_| {
            Refusal::new(RefusalKind::Usage, "this says not who may log in").what(text).hint(
                "--allow 10.0.0.7 or 10.0.0.0/24, --allow-initiator iqn.1993-08.org.debian:01:abc, \
                 with =ro for reading only",
            )
        })
    };
    allow.iter().map(rule).collect()
}

fn addresses(listen: &[ListenText]) -> Result<Vec<SocketAddr>, Refusal> {
    let bad = |why, what: &String| Refusal::new(RefusalKind::Usage, why).what(what);
    let address = |text: &ListenText| match text {
        ListenText::Tcp(address) => {
            address.parse().map_err(|_| bad("this is no address and port", address))
        }
        ListenText::Unix(path) => Err(bad("iSCSI goes over TCP alone", path)),
    };
    listen.iter().map(address).collect()
}

fn spec(
    record: &Record,
    target: &Target,
    repository: &str,
    reservations: &Path,
    units: Vec<Unit>,
) -> Result<TargetSpec, Refusal> {
    let side =
        |side: &Side| ChapSide { name: side.name.clone(), secret: side.secret.reveal().to_owned() };
    let unit = |(unit, disk): (Unit, &super::record::Disk)| {
        let lun = disk.lun.unwrap_or_default();
        UnitSpec {
            lun,
            device: unit.device,
            identity: names::identity(repository, &record.id, &unit.name),
            physical_block_bytes: PHYSICAL_BLOCK_BYTES,
            keeper: Some(Arc::new(FileKeeper::new(reservations, lun))),
        }
    };
    let time = record.point_time.strftime("%Y-%m-%d %H:%M:%SZ");
    let how = if record.writable { "writable" } else { "read-only" };
    let machine: String = record.machine.chars().filter(|c| !c.is_control()).take(50).collect();
    Ok(TargetSpec {
        name: target.name.clone(),
        alias: format!("{machine} {time}, {how}"),
        units: units.into_iter().zip(&record.disks).map(unit).collect(),
        allow: rules(&record.allow)?,
        chap: target.initiator.as_ref().map(|initiator| Chap {
            initiator: side(initiator),
            target: target.target.as_ref().map(side),
        }),
    })
}

fn client_view(attached: Attached) -> ClientView {
    ClientView {
        peer: format!("{} at {}", attached.initiator, attached.address),
        initiator: Some(attached.initiator),
        session: Some(attached.session),
        since: Timestamp::try_from(attached.since).unwrap_or(Timestamp::UNIX_EPOCH),
        writable: attached.writable,
        requests: attached.requests,
        read_bytes: attached.read_bytes,
        written_bytes: attached.written_bytes,
    }
}

fn cannot_serve(error: backstay_iscsi::Error) -> Error {
    let kind = match error.kind() {
        backstay_iscsi::ErrorKind::Invalid => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    };
    Error::with_source(kind, "cannot serve the target", error)
}

fn cannot_listen(error: backstay_iscsi::Error) -> Error {
    let os = std::error::Error::source(&error)
        .and_then(|source| source.downcast_ref::<std::io::Error>())
        .map(std::io::Error::kind);
    let kind = match os {
        Some(std::io::ErrorKind::AddrInUse) => ErrorKind::Busy,
        Some(std::io::ErrorKind::PermissionDenied) => ErrorKind::Denied,
        _ => ErrorKind::Io,
    };
    Error::with_source(kind, "cannot serve iSCSI", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_for_other_hosts_needs_rules() {
        let tcp = |text: &str| vec![ListenText::Tcp(text.to_owned())];
        let allow = |text: &str| vec![text.to_owned()];
        assert!(check(&[], &tcp("127.0.0.1:0")).is_ok());
        assert!(check(&[], &tcp("[::1]:3260")).is_ok());
        for open in ["0.0.0.0:3260", "[::]:3260", "10.0.0.1:3260"] {
            assert_eq!(check(&[], &tcp(open)).expect_err(open).kind, RefusalKind::Usage);
            assert!(check(&allow("10.0.0.7"), &tcp(open)).is_ok());
            assert!(check(&allow("iqn.1993-08.org.debian:01:web"), &tcp(open)).is_ok());
        }
        for bad in ["uid:1000", "web01", "cert:12", ""] {
            assert!(check(&allow(bad), &[]).is_err(), "{bad}");
        }
        assert!(check(&[], &tcp("nonsense")).is_err());
        assert!(check(&[], &[ListenText::Unix("/run/x.sock".to_owned())]).is_err());
        assert!(check(&vec!["10.0.0.7".to_owned(); MAX_RULES + 1], &[]).is_err());
    }
}
