//! Looking after the mounts: ends that are due, and what does not agree with the ledger.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_api::mountd::{MountState, OverlayFate};
use jiff::{SignedDuration, Timestamp};

use super::record::{Intent, Record};
use super::{Mount, Mountd};
use crate::Error;

/// How often ends are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often ledger and reality are compared.
const RECONCILE_EVERY: Duration = Duration::from_secs(60);
/// So long before its end a mount is announced in the log.
const WARN_BEFORE: SignedDuration = SignedDuration::from_mins(30);

/// What is due for a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Nothing,
    /// Say that the end is near.
    Warn,
    /// Let nobody else in.
    Close,
    /// End it, for this reason.
    End(&'static str),
}

impl Mountd {
    /// Starts the thread that looks after the mounts. It holds the daemon weakly.
    pub(super) fn keep(self: &Arc<Self>) -> Result<(), Error> {
        let weak = Arc::downgrade(self);
        let run = move || {
            let mut reconciled = Instant::now();
            loop {
                let Some(daemon) = weak.upgrade() else { return };
                let mut stop = daemon.keeper.stop.lock();
                if !*stop {
                    daemon.keeper.changed.wait_for(&mut stop, LOOK_EVERY);
                }
                if *stop {
                    return;
                }
                drop(stop);
                daemon.end_what_is_due();
                if reconciled.elapsed() >= RECONCILE_EVERY {
                    daemon.reconcile();
                    reconciled = Instant::now();
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("mounts".to_owned())
            .spawn(run)
            .map_err(|e| Error::os("cannot start a thread", e))?;
        *self.keeper.thread.lock() = Some(thread);
        Ok(())
    }

    fn end_what_is_due(&self) {
        let now = Timestamp::now();
        let mut ends = Vec::new();
        for (id, mount) in self.lock().iter_mut() {
            let attached = mount.live.as_ref().is_some_and(|live| {
                !live.served.users().is_empty() || !self.doors.clients(id).is_empty()
            });
            if attached || mount.busy {
                mount.alone_since = Instant::now();
            }
            if mount.live.as_ref().is_some_and(|live| live.served.is_gone()) && !mount.busy {
                ends.push((id.clone(), "its directory was unmounted"));
                continue;
            }
            match due(mount, attached, now) {
                Due::Nothing => {}
                Due::Warn => {
                    mount.warned = true;
                    tracing::warn!(
                        id,
                        "ends in half an hour; `backstay mount extend` gives it more"
                    );
                }
                Due::Close => {
                    mount.ending = true;
                    self.doors.close_to_new(id);
                    tracing::warn!(id, "its time is over; it ends when its clients have left");
                }
                Due::End(why) => ends.push((id.clone(), why)),
            }
        }
        for (id, why) in ends {
            let Ok(record) = self.take(&id) else { continue };
            // What was written is never thrown away by a clock.
            let fate =
                if self.is_untouched(&record) { OverlayFate::Discard } else { OverlayFate::Keep };
            if let Err(error) = self.finish(record, fate, why) {
                tracing::warn!(id, %error, "cannot end a mount");
                self.release(&id, |_| {});
            }
        }
    }

    /// Compares the ledger with what is there, and mends what can be mended.
    fn reconcile(&self) {
        self.doors.mend();
        let again: Vec<String> = {
            let mounts = self.lock();
            let again = |mount: &&Mount| {
                let failed = matches!(mount.trouble, Some((MountState::Failed, _)));
                let undone = matches!(mount.record.intent, Intent::Starting | Intent::Discard);
                !mount.busy && mount.live.is_none() && (failed || undone)
            };
            mounts.values().filter(again).map(|mount| mount.record.id.clone()).collect()
        };
        for id in again {
            self.take_up_one(&id);
        }
        let used: Vec<String> =
            self.lock().values().map(|mount| mount.record.repository.clone()).collect();
        self.repositories.forget_unused(&|location| used.iter().any(|used| used == location));
    }
}

/// What is due for a mount at `now`.
fn due(mount: &Mount, attached: bool, now: Timestamp) -> Due {
    let Record { ends, hard_end, idle_seconds, intent, .. } = &mount.record;
    if mount.busy || *intent != Intent::Serve {
        return Due::Nothing;
    }
    if let Some(ends) = *ends {
        if now >= ends {
            return match attached && !hard_end {
                false => Due::End("its time was over"),
                true if mount.ending => Due::Nothing,
                true => Due::Close,
            };
        }
        let soon = ends.checked_sub(WARN_BEFORE).is_ok_and(|from| now >= from);
        let short = mount.record.created.checked_add(WARN_BEFORE).is_ok_and(|t| t >= ends);
        if soon && !short && !mount.warned {
            return Due::Warn;
        }
    }
    let idle = idle_seconds.is_some_and(|seconds| mount.alone_since.elapsed().as_secs() >= seconds);
    if idle && !attached && mount.live.is_some() {
        return Due::End("nobody was attached");
    }
    Due::Nothing
}

/// What a file takes on the disk; 0 if nobody can tell.
pub(super) fn file_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.blocks() * 512)
}
