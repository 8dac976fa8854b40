//! The doors of mounts: NBD exports, iSCSI targets and directories, by the mount's name.

use std::sync::Arc;

use backstay_api::mountd::{ClientView, Listen, MountRequest};
use backstay_api::{Refusal, RefusalKind};
use backstay_blockdev::BlockDevice;

use super::Asker;
use super::door::{self, Door};
use super::files::{self, Files};
use super::iscsi::{self, Targets, Unit};
use super::ledger::Ledger;
use super::record::{Kind, MAX_DISKS, Record};

/// All doors of a daemon.
#[derive(Debug)]
pub(super) struct Doors {
    pub(super) nbd: Door,
    pub(super) iscsi: Targets,
    pub(super) files: Files,
}

/// A mount that is served.
#[derive(Debug)]
pub(super) enum Served {
    /// As an export.
    Nbd(door::Served),
    /// As a target.
    Iscsi(iscsi::Served),
    /// As files.
    Files(files::Served),
}

impl Served {
    /// Where clients find it; the addresses of its own first.
    pub(super) fn uris(&self) -> Vec<String> {
        match self {
            Self::Nbd(served) => served.uris(),
            Self::Iscsi(served) => served.uris(),
            Self::Files(_) => Vec::new(),
        }
    }

    /// Who is attached, where only this knows it.
    pub(super) fn users(&self) -> Vec<ClientView> {
        match self {
            Self::Files(served) => served.users(),
            Self::Nbd(_) | Self::Iscsi(_) => Vec::new(),
        }
    }

    /// Whether somebody else has ended it: a directory was unmounted.
    pub(super) fn is_gone(&self) -> bool {
        match self {
            Self::Files(served) => served.is_gone(),
            Self::Nbd(_) | Self::Iscsi(_) => false,
        }
    }

    /// The portals of a target.
    pub(super) fn portals(&self) -> Vec<String> {
        match self {
            Self::Nbd(_) | Self::Files(_) => Vec::new(),
            Self::Iscsi(served) => served.portals(),
        }
    }

    /// The addresses of its own, with real ports.
    pub(super) fn bound(&self) -> &[Listen] {
        match self {
            Self::Nbd(served) => &served.bound,
            Self::Iscsi(served) => &served.bound,
            Self::Files(_) => &[],
        }
    }
}

impl Doors {
    /// Refuses what could not be served.
    pub(super) fn check(&self, request: &MountRequest, asker: Asker) -> Result<(), Refusal> {
        let MountRequest { disks, allow, listen, iscsi, files, .. } = request;
        if iscsi.is_some() && files.is_some() {
            return Err(Refusal::new(RefusalKind::Usage, "a mount is of one kind"));
        }
        let most = if iscsi.is_some() || files.is_some() { MAX_DISKS } else { 1 };
        if !(1..=most).contains(&disks.len()) {
            let why = match most {
                1 => "an NBD export is one disk",
                _ => "a mount has 1 to 256 disks",
            };
            return Err(Refusal::new(RefusalKind::Usage, why));
        }
        let mut names: Vec<&String> = disks.iter().collect();
        names.sort();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Refusal::new(RefusalKind::Usage, "a disk is named twice").what(pair[0]));
        }
        match (iscsi, files) {
            (_, Some(files)) => files::check(files, request, asker),
            (Some(_), None) => iscsi::check(allow, listen),
            (None, None) => self.nbd.check(allow, listen),
        }
    }

    /// Serves the devices of a mount's disks, in their order.
    pub(super) fn serve(
        &self,
        record: &Record,
        ledger: &Ledger,
        repository: &str,
        mut devices: Vec<Arc<dyn BlockDevice>>,
    ) -> Result<Served, Refusal> {
        match &record.kind {
            Kind::Nbd => {
                let device = devices.pop().filter(|_| devices.is_empty()).ok_or_else(|| {
                    Refusal::new(RefusalKind::Failed, "an NBD export is one disk").what(&record.id)
                })?;
                self.nbd.serve(record, device).map(Served::Nbd)
            }
            Kind::Iscsi(target) => {
                let named = record.disks.iter().zip(devices);
                let units =
                    named.map(|(d, device)| Unit { name: d.name.clone(), device }).collect();
                let reservations = ledger.reservations_dir(&record.id);
                let served = self.iscsi.serve(record, target, repository, &reservations, units);
                served.map(Served::Iscsi)
            }
            Kind::Files(_) => {
                Err(Refusal::new(RefusalKind::Failed, "files are no device").what(&record.id))
            }
        }
    }

    /// Ends a mount's clients and stops its servers. When it returns no request is under way.
    pub(super) fn stop_serving(&self, served: Served) {
        match served {
            Served::Nbd(served) => self.nbd.stop_serving(served),
            Served::Iscsi(served) => self.iscsi.stop_serving(served),
            Served::Files(served) => served.stop(),
        }
    }

    /// Who is attached to a mount.
    pub(super) fn clients(&self, id: &str) -> Vec<ClientView> {
        let mut clients = self.nbd.clients(id);
        clients.extend(self.iscsi.clients(id));
        clients
    }

    /// Lets nobody else in; clients that are attached stay.
    pub(super) fn close_to_new(&self, id: &str) {
        self.nbd.close_to_new(id);
        self.iscsi.set_closed(id, true);
    }

    /// Lets people in again.
    pub(super) fn reopen(&self, id: &str) {
        self.nbd.reopen(id);
        self.iscsi.set_closed(id, false);
    }

    /// Mends what can be mended while all goes on.
    pub(super) fn mend(&self) {
        self.nbd.mend();
    }

    /// Stops the shared servers.
    pub(super) fn close(&self) {
        self.nbd.close();
        self.iscsi.close();
    }
}
