//! The doors of mounts: NBD exports and iSCSI targets, by the mount's name.

use std::sync::Arc;

use backstay_api::mountd::{ClientView, Listen};
use backstay_api::{Refusal, RefusalKind};
use backstay_blockdev::BlockDevice;

use super::door::{self, Door};
use super::iscsi::{self, Targets, Unit};
use super::ledger::Ledger;
use super::record::{Kind, MAX_DISKS, Record};

/// All doors of a daemon.
#[derive(Debug)]
pub(super) struct Doors {
    pub(super) nbd: Door,
    pub(super) iscsi: Targets,
}

/// A mount that is served.
#[derive(Debug)]
pub(super) enum Served {
    /// As an export.
    Nbd(door::Served),
    /// As a target.
    Iscsi(iscsi::Served),
}

impl Served {
    /// Where clients find it; the addresses of its own first.
    pub(super) fn uris(&self) -> Vec<String> {
        match self {
            Self::Nbd(served) => served.uris(),
            Self::Iscsi(served) => served.uris(),
        }
    }

    /// The portals of a target.
    pub(super) fn portals(&self) -> Vec<String> {
        match self {
            Self::Nbd(_) => Vec::new(),
            Self::Iscsi(served) => served.portals(),
        }
    }

    /// The addresses of its own, with real ports.
    pub(super) fn bound(&self) -> &[Listen] {
        match self {
            Self::Nbd(served) => &served.bound,
            Self::Iscsi(served) => &served.bound,
        }
    }
}

impl Doors {
    /// Refuses what could not be served.
    pub(super) fn check(
        &self,
        is_target: bool,
        disks: &[String],
        allow: &[String],
        listen: &[Listen],
    ) -> Result<(), Refusal> {
        let most = if is_target { MAX_DISKS } else { 1 };
        if !(1..=most).contains(&disks.len()) {
            let why = match is_target {
                true => "a target has 1 to 256 disks",
                false => "an NBD export is one disk",
            };
            return Err(Refusal::new(RefusalKind::Usage, why));
        }
        let mut names: Vec<&String> = disks.iter().collect();
        names.sort();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Refusal::new(RefusalKind::Usage, "a disk is named twice").what(pair[0]));
        }
        match is_target {
            true => iscsi::check(allow, listen),
            false => self.nbd.check(allow, listen),
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
        }
    }

    /// Ends a mount's clients and stops its servers. When it returns no request is under way.
    pub(super) fn stop_serving(&self, served: Served) {
        match served {
            Served::Nbd(served) => self.nbd.stop_serving(served),
            Served::Iscsi(served) => self.iscsi.stop_serving(served),
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
