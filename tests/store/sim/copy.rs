//! Copying to another repository while everything else goes on.

use backstay_core::copy::{CopyPlan, Outcome, Select, Verify, run};
use backstay_core::monitor::Monitor;
use backstay_store::{Error, ErrorKind, PointId};

use crate::nodes::Nodes;

use super::actor::{Actor, Done};
use super::count::Event;
use super::truth::compare;

struct Silent;

impl Monitor for Silent {}

impl Actor<'_> {
    /// Copies all that this node sees to a repository of its own, with other keys. Every point
    /// arrives bit for bit, or was removed meanwhile.
    pub(super) fn copy(&mut self) -> Done {
        self.count(Event::Copy);
        self.note("copies".into());
        let other = Nodes::of(self.rng.next());
        let plan = CopyPlan {
            verify: Verify::Full,
            workers: std::num::NonZeroUsize::new(1),
            ..CopyPlan::new(Select::All)
        };
        let report = match run(&self.repo, &other.node(), &plan, &Silent) {
            Ok(report) => report,
            Err(e) => return self.copy_failed(None, &e),
        };
        if let Some((id, e)) = report.unreadable.first() {
            return self.fail(format!("copy: point {} is unreadable: {e}", id.short()));
        }
        if let Some(e) = &report.stopped {
            self.copy_failed(None, e)?;
        }
        let there = other.node();
        for copy in &report.points {
            match &copy.outcome {
                Outcome::Copied { point, .. } => {
                    self.count(Event::Copied);
                    let content = self.content(copy.source.id)?;
                    compare(&there, point, &content)
                        .or_else(|e| self.fail(format!("copy: {e}")))?;
                }
                Outcome::Failed(e) => self.copy_failed(Some(copy.source.id), e)?,
                Outcome::Present(_) | Outcome::Planned { .. } => {}
            }
        }
        self.note(format!("has copied {} points", report.points.len()));
        Ok(())
    }

    /// A copy may fail as reading may: because of a bad line, or for a point that was removed.
    fn copy_failed(&self, point: Option<PointId>, e: &backstay_core::Error) -> Done {
        let truth = self.world.truth.lock();
        let gone = point.and_then(|id| truth.points.get(&id)).is_some_and(|p| p.may_be_gone());
        drop(truth);
        if gone {
            return Ok(());
        }
        let mut cause = std::error::Error::source(e);
        while let Some(c) = cause {
            if let Some(of_store) = c.downcast_ref::<Error>() {
                let kind = of_store.kind();
                let again = Error::new(kind, format!("{e}: {c}"));
                let allowed = [ErrorKind::Fenced, ErrorKind::Busy];
                return self.expect("copy", Err::<(), _>(again), &allowed).map(drop);
            }
            cause = c.source();
        }
        self.fail(format!("copy: {e}"))
    }
}
