//! Ending mounts, changing their end, and clearing away what is left.

use backstay_api::mountd::{Answer, MountState, MountView, OverlayFate};
use backstay_api::{Refusal, RefusalKind};
use backstay_store::{PinId, Repository};
use jiff::Timestamp;

use super::doors::Served;
use super::live::Live;
use super::record::{Intent, Record};
use super::start::{later, pin_reason};
use super::{Mountd, no_such, refusal};
use crate::fuse::Unmount;

impl Mountd {
    /// Ends a mount. See [`backstay_api::mountd::Request::End`].
    pub(super) fn end(
        &self,
        id: &str,
        fate: Option<OverlayFate>,
        force: bool,
    ) -> Result<MountView, Refusal> {
        if !self.lock().contains_key(id) {
            return if self.has_ended(id) { Ok(super::view::ended(id)) } else { Err(no_such(id)) };
        }
        let record = self.take(id)?;
        let ended = self
            .may_end(&record, fate, force)
            .and_then(|fate| self.finish(record, fate, "ended by its owner"));
        if ended.is_err() {
            self.release(id, |_| {});
        }
        ended
    }

    /// Whether a mount may be ended, and what then becomes of its overlay.
    fn may_end(
        &self,
        record: &Record,
        fate: Option<OverlayFate>,
        force: bool,
    ) -> Result<OverlayFate, Refusal> {
        let id = &record.id;
        let mut clients = self.doors.clients(id);
        if let Some(live) = self.lock().get(id).and_then(|mount| mount.live.as_ref()) {
            clients.extend(live.served.users());
        }
        if !clients.is_empty() && !force {
            let who: Vec<&str> = clients.iter().map(|client| client.peer.as_str()).collect();
            let message = format!("clients are attached: {}", who.join(", "));
            return Err(Refusal::new(RefusalKind::InUse, message)
                .what(id)
                .hint(format!("backstay mount end {id} --force      cuts them off")));
        }
        if !force {
            self.leave_in_order(record)?;
        }
        match fate {
            Some(fate) => Ok(fate),
            None if !record.writable || self.is_untouched(record) => Ok(OverlayFate::Discard),
            None => Err(Refusal::new(RefusalKind::NeedsConfirmation, "it was written to")
                .what(id)
                .hint(format!("backstay mount end {id} --save         as a new recovery point"))
                .hint(format!("backstay mount end {id} --keep         to go on with it later"))
                .hint(format!("backstay mount end {id} --discard      throws it away"))),
        }
    }

    /// Unmounts a directory, unless somebody uses it: then nothing has changed.
    fn leave_in_order(&self, record: &Record) -> Result<(), Refusal> {
        let mount = match self.lock().get(&record.id).and_then(|mount| mount.live.as_ref()) {
            Some(Live { served: Served::Files(served), .. }) => served.mount(),
            _ => return Ok(()),
        };
        mount.end(Unmount::Orderly).map_err(|e| {
            refusal(&e).what(&record.id).hint(format!(
                "backstay mount end {} --force      takes it away all the same",
                record.id
            ))
        })
    }

    /// Whether nothing was written to a mount. Not known without its overlays being open.
    pub(super) fn is_untouched(&self, record: &Record) -> bool {
        let mounts = self.lock();
        let live = mounts.get(&record.id).and_then(|mount| mount.live.as_ref());
        live.is_some_and(Live::is_untouched)
    }

    /// Ends a mount that the caller has taken.
    pub(super) fn finish(
        &self,
        mut record: Record,
        fate: OverlayFate,
        why: &str,
    ) -> Result<MountView, Refusal> {
        let id = record.id.clone();
        let keep = fate == OverlayFate::Keep && record.writable;
        if keep && matches!(record.intent, Intent::Keep { .. }) {
            self.release(&id, |_| {});
            return self.show(&id);
        }
        record.intent =
            if keep { Intent::Keep { since: Timestamp::now() } } else { Intent::Discard };
        self.ledger.save(&record).map_err(|e| refusal(&e))?;
        let live = self.lock().get_mut(&id).and_then(|mount| mount.live.take());
        if let Some(live) = live {
            self.take_down(&id, live);
        }
        if keep {
            tracing::info!(id, why, "ended; what was written is kept");
            self.release(&id, |mount| {
                mount.record = record;
                mount.trouble = None;
                mount.ending = false;
            });
            return self.show(&id);
        }
        let view = super::view::of_record(self, &record, MountState::Ended);
        let repository = self.repository_of(&record);
        self.release(&id, |mount| {
            mount.record = record.clone();
            mount.busy = true;
        });
        self.clear(&record, repository.as_ref())?;
        self.note_end(&record, why);
        self.lock().remove(&id);
        tracing::info!(id, why, "ended");
        Ok(view)
    }

    fn repository_of(&self, record: &Record) -> Option<Repository> {
        self.repositories.already_open(&record.repository)
    }

    /// Removes all that a mount has outside of the ledger, then its record. Can be done again after a failure.
    pub(super) fn clear(
        &self,
        record: &Record,
        repository: Option<&Repository>,
    ) -> Result<(), Refusal> {
        self.ledger.remove_overlays(&record.id).map_err(|e| refusal(&e))?;
        self.ledger.remove_reservations(&record.id).map_err(|e| refusal(&e))?;
        if record.writable {
            self.unpin(record, repository);
        }
        self.ledger.remove(&record.id).map_err(|e| refusal(&e))
    }

    /// Takes a mount's pins away. One that stays keeps a point too long and loses nothing, so it stops nothing;
    /// whoever lists pins sees whose it was.
    fn unpin(&self, record: &Record, repository: Option<&Repository>) {
        let id = &record.id;
        let Some(repository) = repository else {
            tracing::warn!(id, "the pin of an ended mount stays: its repository is not open");
            return;
        };
        let mut pins: Vec<PinId> =
            record.pin.iter().filter_map(|pin| pin.parse::<PinId>().ok()).collect();
        if pins.is_empty() {
            // It ended between the pin and the record of it.
            let reason = pin_reason(id);
            let ours = |pin: &backstay_store::PinInfo| {
                pin.cause.by == self.pin_owner && pin.cause.reason == reason
            };
            match repository.pins() {
                Ok(list) => pins.extend(list.into_iter().filter(ours).map(|pin| pin.id)),
                Err(error) => tracing::warn!(id, %error, "cannot look for the mount's pin"),
            }
        }
        for pin in pins {
            match repository.unpin(pin) {
                Err(error) if error.kind() != backstay_store::ErrorKind::NotFound => {
                    tracing::warn!(id, %pin, %error, "the pin of an ended mount stays");
                }
                _ => {}
            }
        }
    }

    /// Ends sessions. See [`backstay_api::mountd::Request::Kick`].
    pub(super) fn kick(&self, id: &str, session: Option<u16>) -> Result<MountView, Refusal> {
        let view = self.show(id)?;
        if view.iscsi.is_none() {
            return Err(Refusal::new(RefusalKind::Usage, "only iSCSI mounts have sessions")
                .what(id)
                .hint(format!("backstay mount end {id} --force      cuts its clients off")));
        }
        if !self.doors.iscsi.kick(id, session) {
            let number = session.map_or_else(String::new, |number| number.to_string());
            return Err(Refusal::new(RefusalKind::NotFound, "there is no such session")
                .what(number)
                .hint(format!("backstay mount show {id}")));
        }
        self.show(id)
    }

    /// Changes the end or the limit of a mount.
    pub(super) fn extend(
        &self,
        id: &str,
        for_seconds: Option<u64>,
        limit_bytes: Option<u64>,
    ) -> Result<MountView, Refusal> {
        let mut record = self.take(id)?;
        let change = || -> Result<Record, Refusal> {
            if let Some(seconds) = for_seconds {
                let end = later(Timestamp::now(), seconds)?;
                record.ends = (seconds > 0).then_some(end);
            }
            if let Some(limit) = limit_bytes {
                if !record.writable {
                    return Err(Refusal::new(RefusalKind::Usage, "it has no overlay").what(id));
                }
                record.limit_bytes = (limit > 0).then_some(limit);
            }
            self.ledger.save(&record).map_err(|e| refusal(&e))?;
            Ok(record)
        };
        match change() {
            Ok(record) => {
                self.release(id, |mount| {
                    let overlays = mount.live.as_ref().map(|live| &live.overlays);
                    for overlay in overlays.into_iter().flatten() {
                        overlay.set_limit(record.limit_bytes);
                    }
                    let over = record.ends.is_some_and(|end| end <= Timestamp::now());
                    (mount.warned, mount.ending) = (false, mount.ending && over);
                    mount.record = record;
                });
                self.doors.reopen(id);
                self.show(id)
            }
            Err(why) => {
                self.release(id, |_| {});
                Err(why)
            }
        }
    }

    /// Clears away what is left over.
    pub(super) fn prune(
        &self,
        dry_run: bool,
        kept_older_than: Option<u64>,
    ) -> Result<Answer, Refusal> {
        let now = Timestamp::now();
        let old = |since: Timestamp| {
            kept_older_than.is_some_and(|seconds| {
                u64::try_from((now - since).get_seconds()).unwrap_or(0) >= seconds
            })
        };
        let due: Vec<String> = {
            let mounts = self.lock();
            let due = |record: &Record| match record.intent {
                Intent::Keep { since } => old(since),
                Intent::Discard | Intent::Starting => true,
                Intent::Serve => false,
            };
            let idle = mounts.values().filter(|mount| !mount.busy && mount.live.is_none());
            idle.filter(|m| due(&m.record)).map(|m| m.record.id.clone()).collect()
        };
        let strays = self.strays()?;
        let mut removed = Vec::new();
        for id in due {
            if !dry_run {
                let record = self.take(&id)?;
                if let Err(why) = self.finish(record, OverlayFate::Discard, "pruned") {
                    self.release(&id, |_| {});
                    return Err(why);
                }
            }
            removed.push(id);
        }
        for name in strays {
            if !dry_run {
                self.ledger.remove_overlays(&name).map_err(|e| refusal(&e))?;
            }
            removed.push(format!("overlays/{name}"));
        }
        Ok(Answer::Pruned { removed })
    }

    /// Overlays that belong to no mount.
    pub(super) fn strays(&self) -> Result<Vec<String>, Refusal> {
        let mounts = self.lock();
        self.ledger.stray_overlays(&|name| mounts.contains_key(name)).map_err(|e| refusal(&e))
    }
}
