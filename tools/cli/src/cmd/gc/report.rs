//! What collections did, for programs and for people.

use backstay_store::{Amount, CollectReport};
use serde::Serialize;

use crate::cmd::session::{SessionView, table};
use crate::output::clean;
use crate::units;

/// The result in JSON.
#[derive(Debug, Serialize)]
pub(super) struct Document {
    dry_run: bool,
    /// It was not cut short, and nothing waits for a session.
    pub(super) complete: bool,
    /// The newest collection this was about; zero when there was nothing to do.
    collection: u64,
    points: u64,
    /// All packs that were looked at.
    looked_at: AmountView,
    /// Deleted now; on a dry run, what would be.
    freed: AmountView,
    /// Deleted when the sessions of `waiting_for` have ended.
    later: AmountView,
    waiting_for: Vec<SessionView>,
    /// Packs of `freed` or `later` whose data was copied into new packs first.
    repacked: AmountView,
    copied_bytes: u64,
    fenced: Vec<SessionView>,
    /// Came into use again, or differ from what the index says of them.
    kept: AmountView,
    /// Under a retention lock.
    locked: AmountView,
    forgotten_points: u64,
    missing_chunks: u64,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct AmountView {
    packs: u64,
    bytes: u64,
}

impl From<Amount> for AmountView {
    fn from(amount: Amount) -> Self {
        Self { packs: amount.packs, bytes: amount.bytes }
    }
}

impl AmountView {
    fn told(self) -> String {
        let packs = if self.packs == 1 { "pack" } else { "packs" };
        format!("{} in {} {packs}", units::size(self.bytes), self.packs)
    }
}

impl Document {
    pub(super) fn new(report: &CollectReport, dry_run: bool, to_its_end: bool) -> Self {
        Self {
            dry_run,
            complete: to_its_end && report.waiting_for.is_empty(),
            collection: report.generation.0,
            points: report.points,
            looked_at: report.stored.into(),
            freed: report.freed.into(),
            later: report.later.into(),
            waiting_for: SessionView::all(&report.waiting_for),
            repacked: report.repacked.into(),
            copied_bytes: report.copied_bytes,
            fenced: SessionView::all(&report.fenced),
            kept: report.kept.into(),
            locked: report.locked.into(),
            forgotten_points: report.buried,
            missing_chunks: report.missing_chunks,
        }
    }

    pub(super) fn show(&self, to: &mut String) {
        let mut say = |text: String| {
            to.push_str(&text);
            to.push('\n');
        };
        say(format!("{} {}", if self.dry_run { "would free" } else { "freed" }, self.freed.told()));
        if self.repacked.packs > 0 {
            say(match self.dry_run {
                true => format!("after copying what is needed out of {}", self.repacked.told()),
                false => {
                    let copied = units::size(self.copied_bytes);
                    format!("copied {copied} out of {}", self.repacked.told())
                }
            });
        }
        if self.kept.packs > 0 {
            say(format!("kept {}: in use again, or not as the index says", self.kept.told()));
        }
        if self.locked.packs > 0 {
            say(format!("under a retention lock {}: a later collection", self.locked.told()));
        }
        for session in &self.fenced {
            let fenced = if self.dry_run { "would fence" } else { "fenced" };
            say(format!("{fenced} session {}", clean(&session.told())));
        }
        if self.missing_chunks > 0 {
            let count = self.missing_chunks;
            say(format!("missing {count} chunks that recovery points need"));
            say("find out more:  backstay repo check".to_owned());
        }
        if self.waiting_for.is_empty() {
            return;
        }
        say(format!("later {}, when these have ended:", self.later.told()));
        table(to, &self.waiting_for);
        to.push_str("then:  backstay gc      or wait for them:  backstay gc --wait\n");
        to.push_str("if one of them hangs:  backstay session fence SESSION\n");
    }
}
