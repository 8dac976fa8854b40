//! New mounts, and mounts that are taken up again.

use std::sync::Arc;
use std::time::Instant;

use backstay_api::mountd::{ChapRequest, Key, MountRequest, MountState, MountView};
use backstay_api::{Refusal, RefusalKind};
use backstay_blockdev::overlay::{Overlay, RealDirectory};
use backstay_store::{Cause, Repository};
use jiff::{SignedDuration, Timestamp};

use super::ledger::MAX_RECORDS;
use super::live::{Base, BaseDisk, Live, disk_name, overlay_options};
use super::record::{Disk, Intent, KeyMemory, Kind, Record, Side, Target, VERSION};
use super::{Asker, Mount, Mountd, door, iscsi, overlay_refusal, refusal};

/// Letters of names: no two look alike.
const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
/// Letters of a name after `m-`.
const NAME_LETTERS: usize = 6;
/// The longest reason kept.
const MAX_REASON_BYTES: usize = 4096;
/// The longest time a mount may be given: a hundred years.
const MAX_SECONDS: u64 = 100 * 366 * 86_400;

impl Mountd {
    /// Opens a disk of a recovery point as a new mount.
    pub(super) fn mount(&self, request: &MountRequest, asker: Asker) -> Result<MountView, Refusal> {
        self.doors.check(request, asker)?;
        if request.reason.len() > MAX_REASON_BYTES {
            return Err(Refusal::new(RefusalKind::Usage, "the reason is too long"));
        }
        let repository = self.repositories.open(&request.repository, &request.key)?;
        let disks: Vec<&str> = request.disks.iter().map(String::as_str).collect();
        let base = self.base(&repository, &request.machine, &request.point, &disks)?;
        let record = self.new_record(request, asker, &base)?;
        let id = record.id.clone();
        match self.make(record, &repository, base) {
            Ok((record, live)) => {
                self.release(&id, |mount| {
                    mount.record = record;
                    mount.live = Some(live);
                    mount.alone_since = Instant::now();
                });
                tracing::info!(id, "mounted");
                // Told once, to who asked for it.
                self.show_with(&id, true)
            }
            Err(why) => {
                self.undo(&id, Some(&repository));
                Err(why)
            }
        }
    }

    /// A record with a name of its own, noted among the mounts.
    fn new_record(
        &self,
        request: &MountRequest,
        asker: Asker,
        base: &Base,
    ) -> Result<Record, Refusal> {
        let created = Timestamp::now();
        let mut mounts = self.lock();
        if mounts.len() >= MAX_RECORDS {
            return Err(Refusal::new(RefusalKind::Refused, "there are too many mounts")
                .hint("backstay mount list")
                .hint("backstay mount prune"));
        }
        let id = loop {
            let id = new_name()?;
            if !mounts.contains_key(&id) && !self.has_ended(&id) {
                break id;
            }
        };
        let lun = |at: usize| request.iscsi.as_ref().and_then(|_| u16::try_from(at).ok());
        let disk = |(at, disk): (usize, &BaseDisk)| Disk {
            name: disk.record.name.clone(),
            size_bytes: disk.record.size_bytes,
            lun: lun(at),
            overlay: request.writable.then(|| Record::overlay_name(&id, lun(at))),
        };
        let disks = base.disks.iter().enumerate().map(disk).collect();
        let record = Record {
            version: VERSION,
            id: id.clone(),
            kind: kind(request, &id)?,
            intent: Intent::Starting,
            repository: request.repository.clone(),
            key: KeyMemory::of(&request.key),
            machine: request.machine.clone(),
            point: request.point.clone(),
            point_time: base.point.time,
            disks,
            writable: request.writable,
            limit_bytes: request.limit_bytes,
            pause_when_full: request.pause_when_full,
            allow: request.allow.clone(),
            listen: request.listen.clone(),
            owner: door::user_name(asker.uid),
            owner_uid: asker.uid,
            reason: request.reason.clone(),
            created,
            ends: request.for_seconds.map(|s| later(created, s)).transpose()?,
            hard_end: request.hard_end,
            idle_seconds: request.idle_seconds,
            pin: None,
        };
        let mut mount = Mount::new(record.clone());
        mount.busy = true;
        mounts.insert(id, mount);
        Ok(record)
    }

    /// Makes what a mount consists of, in the order that [`super`] tells.
    fn make(
        &self,
        mut record: Record,
        repository: &Repository,
        base: Base,
    ) -> Result<(Record, Live), Refusal> {
        let save = |record: &Record| self.ledger.save(record).map_err(|e| refusal(&e));
        save(&record)?;
        if record.writable {
            // Without it retention could take the point from under what was written over it.
            let cause = Cause { by: self.pin_owner.clone(), reason: pin_reason(&record.id) };
            let pin = repository.pin(base.point.id, &cause).map_err(|e| {
                super::repos::refusal(&e)
                    .what("the pin that keeps the recovery point as long as its overlay is there")
            })?;
            record.pin = Some(pin.id.to_string());
            save(&record)?;
            self.make_overlays(&record, &base)?;
        }
        let live = self.serve(&record, base)?;
        record.intent = Intent::Serve;
        // A port that was any is this one from now on, also for the next daemon.
        record.listen = live.served.bound().to_vec();
        if let Err(why) = save(&record) {
            self.take_down(&record.id, live);
            return Err(why);
        }
        Ok((record, live))
    }

    fn make_overlays(&self, record: &Record, base: &Base) -> Result<(), Refusal> {
        for (disk, base) in record.disks.iter().zip(&base.disks) {
            let Some(name) = &disk.overlay else { continue };
            let what = disk_name(record, disk);
            let directory =
                self.ledger.make_overlay_dir(name).map_err(|e| refusal(&e).what(&what))?;
            let mut nonce = [0; 8];
            random(&mut nonce)?;
            let made = Overlay::create(
                Arc::new(RealDirectory::new(directory)),
                base.device.clone(),
                base.identity,
                u64::from_le_bytes(nonce),
                overlay_options(record),
            );
            made.map_err(|e| overlay_refusal(&e).what(what))?;
        }
        Ok(())
    }

    /// Takes away a mount that nobody was told of.
    pub(super) fn undo(&self, id: &str, repository: Option<&Repository>) {
        let Some(record) = self.lock().get(id).map(|mount| mount.record.clone()) else { return };
        match self.clear(&record, repository) {
            Ok(()) => {
                self.lock().remove(id);
            }
            Err(why) => {
                tracing::warn!(id, %why, "a mount that failed is not wholly cleared away");
                self.release(id, |mount| {
                    mount.trouble = Some((MountState::Failed, why));
                });
            }
        }
    }

    /// Serves again a mount that was ended with its overlay kept, or that could not be opened.
    pub(super) fn resume(&self, id: &str, key: Option<&Key>) -> Result<MountView, Refusal> {
        let mut record = self.take(id)?;
        let is_live = self.lock().get(id).is_some_and(|mount| mount.live.is_some());
        let resumable = matches!(record.intent, Intent::Serve | Intent::Keep { .. });
        if is_live || !resumable {
            self.release(id, |_| {});
            return if is_live { self.show(id) } else { Err(super::no_such(id)) };
        }
        let was_kept = matches!(record.intent, Intent::Keep { .. });
        if was_kept && record.ends.is_some_and(|end| end <= Timestamp::now()) {
            // Its time was over; who takes it up again sets a new one.
            record.ends = None;
        }
        record.intent = Intent::Serve;
        let up = self.up_again(&record, key).and_then(|live| match self.ledger.save(&record) {
            Ok(()) => Ok(live),
            Err(e) => {
                self.take_down(id, live);
                Err(refusal(&e))
            }
        });
        match up {
            Ok(live) => {
                self.release(id, |mount| {
                    *mount = Mount { live: Some(live), ..Mount::new(record) };
                });
                self.show(id)
            }
            Err(why) => {
                let told = why.clone();
                self.release(id, |mount| {
                    if !was_kept {
                        mount.trouble = Some((state_of(&why), why));
                    }
                });
                Err(told)
            }
        }
    }

    /// Brings a mount up with the key given, or with the one that is remembered.
    fn up_again(&self, record: &Record, key: Option<&Key>) -> Result<Live, Refusal> {
        let remembered = record.key.key();
        let Some(key) = key.or(remembered.as_ref()) else {
            return Err(Refusal::new(RefusalKind::NeedsKey, "its repository needs a key")
                .what(&record.repository)
                .hint(format!("backstay mount resume {} --key-file FILE", record.id)));
        };
        self.bring_up(record, key)
    }

    /// After a start: serves what should be served, and finishes what was half done.
    pub(super) fn take_up(&self) {
        let ids: Vec<String> = self.lock().keys().cloned().collect();
        for id in ids {
            self.take_up_one(&id);
        }
    }

    /// Tries once more what a mount's record says.
    pub(super) fn take_up_one(&self, id: &str) {
        let Ok(record) = self.take(id) else { return };
        let keyed = record.key.key();
        match &record.intent {
            Intent::Keep { .. } => self.release(id, |_| {}),
            Intent::Serve => match self.up_again(&record, None) {
                Ok(live) => {
                    tracing::info!(id, "served again");
                    self.release(id, |mount| {
                        *mount = Mount { live: Some(live), ..Mount::new(record) };
                    });
                }
                Err(why) => {
                    tracing::warn!(id, %why, "a mount cannot be served");
                    self.release(id, |mount| {
                        mount.trouble = Some((state_of(&why), why));
                    });
                }
            },
            Intent::Starting | Intent::Discard => {
                let repository = keyed
                    .map(|key| self.repositories.open(&record.repository, &key))
                    .and_then(Result::ok);
                self.undo(id, repository.as_ref());
            }
        }
    }
}

/// How a new mount is presented, and what its initiators must know.
fn kind(request: &MountRequest, id: &str) -> Result<Kind, Refusal> {
    if let Some(files) = &request.files {
        return Ok(Kind::Files(files.clone()));
    }
    let Some(iscsi) = &request.iscsi else { return Ok(Kind::Nbd) };
    let side = |name: String| -> Result<Side, Refusal> {
        Ok(Side { name, secret: iscsi::secret(iscsi.short_secrets)? })
    };
    let initiator = iscsi.chap != ChapRequest::None;
    let mutual = iscsi.chap == ChapRequest::Mutual;
    Ok(Kind::Iscsi(Target {
        name: iscsi::target_name(&request.machine, id),
        initiator: initiator.then(|| side(id.to_owned())).transpose()?,
        target: mutual.then(|| side(format!("{id}-target"))).transpose()?,
    }))
}

/// What state a mount is in that cannot be served.
fn state_of(why: &Refusal) -> MountState {
    if why.kind == RefusalKind::NeedsKey { MountState::Locked } else { MountState::Failed }
}

/// The reason of a mount's pin; with the daemon's name it finds the pin again.
pub(super) fn pin_reason(id: &str) -> String {
    format!("overlay of mount {id}")
}

pub(super) fn random(bytes: &mut [u8]) -> Result<(), Refusal> {
    getrandom::fill(bytes).map_err(|e| {
        Refusal::new(RefusalKind::Failed, "the system gives no random numbers").because(&e)
    })
}

fn new_name() -> Result<String, Refusal> {
    let mut bytes = [0; NAME_LETTERS];
    random(&mut bytes)?;
    let letters = bytes.iter().map(|b| char::from(LETTERS[usize::from(b % 32)]));
    Ok("m-".chars().chain(letters).collect())
}

/// So many seconds from a moment on.
pub(super) fn later(from: Timestamp, seconds: u64) -> Result<Timestamp, Refusal> {
    let far = || Refusal::new(RefusalKind::Usage, "the end is too far away");
    if seconds > MAX_SECONDS {
        return Err(far());
    }
    let seconds = i64::try_from(seconds).map_err(|_| far())?;
    from.checked_add(SignedDuration::from_secs(seconds)).map_err(|_| far())
}
