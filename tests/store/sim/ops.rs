//! What nodes do. Each operation tells the model before and after what it asked for, so that an
//! answer that was lost leaves open what may be open.

use std::sync::Arc;

use backstay_store::testkit::layout;
use backstay_store::{
    Cause, CheckOptions, ChunkIndex, CollectOptions, CollectReport, Damage, DamageKind, DiskRecord,
    ErrorKind, Folder, NewPoint, NoProgress, ObjectKey, RecoveryPoint, RepairOptions, SessionKind,
    Storage, VerifyOptions, WriteScratch, WriteSession,
};
use jiff::SignedDuration;

use super::actor::{Actor, Done, Held};
use super::content::Content;
use super::count::Event;
use super::schedule::Rng;
use super::truth::{Answer, PointTruth, compare};

/// What the nodes of a run are mostly about: races of two kinds of operations are found sooner
/// where there is little else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Theme {
    /// Everything.
    Mixed,
    /// The same data stored again while it is removed and collected.
    Again,
    /// Each backup on top of the last, which is removed and collected.
    Bases,
    /// Readers and pins of points that are removed and collected.
    Readers,
}

impl Theme {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let all = [Self::Mixed, Self::Mixed, Self::Again, Self::Again, Self::Bases, Self::Readers];
        rng.pick(&all).unwrap_or(Self::Mixed)
    }

    /// Whether points have few chunks, so that all have much in common.
    pub(crate) fn small(self) -> bool {
        self != Self::Mixed
    }

    fn share(self, o: &Operation) -> u64 {
        match self {
            Self::Mixed => o.mixed,
            Self::Again => o.again,
            Self::Bases => o.bases,
            Self::Readers => o.readers,
        }
    }
}

/// An operation with its share in each theme. A new operation gets a line in [`OPERATIONS`] and a
/// method below.
struct Operation {
    run: fn(&mut Actor<'_>, bool) -> Done,
    mixed: u64,
    again: u64,
    bases: u64,
    readers: u64,
}

const fn share(
    mixed: u64,
    again: u64,
    bases: u64,
    readers: u64,
    run: fn(&mut Actor<'_>, bool) -> Done,
) -> Operation {
    Operation { run, mixed, again, bases, readers }
}

const OPERATIONS: &[Operation] = &[
    share(30, 40, 40, 12, |a, within| a.back_up(within)),
    share(16, 30, 30, 25, |a, _| a.remove()),
    share(20, 40, 30, 25, |a, _| a.collect()),
    share(8, 0, 0, 20, |a, within| a.hold(within)),
    share(6, 0, 0, 4, |a, _| a.let_go()),
    share(6, 0, 0, 5, |a, _| a.restore()),
    share(4, 0, 0, 15, |a, _| a.pin()),
    share(3, 0, 0, 4, |a, _| a.unpin()),
    share(3, 2, 2, 0, |a, _| a.fence()),
    share(2, 0, 0, 1, |a, _| a.check()),
    share(2, 0, 0, 1, |a, _| a.verify()),
    share(2, 0, 0, 1, |a, _| a.copy()),
    share(2, 1, 1, 1, |a, _| a.quarantine()),
    share(2, 1, 1, 1, |a, _| a.repair()),
    share(2, 1, 1, 1, |a, _| a.reopen_counted()),
    share(2, 1, 1, 3, |a, _| a.jump_counted()),
    share(1, 1, 1, 1, |a, _| a.look_around()),
];

/// The kinds of errors that a session may answer with, besides those of a bad line.
const SESSION: &[ErrorKind] = &[ErrorKind::Fenced, ErrorKind::Busy];

impl Actor<'_> {
    /// Does something. `within`: another operation of this node is under way.
    pub(crate) fn act(&mut self, within: bool) -> Done {
        let theme = self.world.theme;
        let total: u64 = OPERATIONS.iter().map(|o| theme.share(o)).sum();
        let mut at = self.rng.next() % total;
        for operation in OPERATIONS {
            let share = theme.share(operation);
            if at < share {
                return (operation.run)(self, within);
            }
            at -= share;
        }
        Ok(())
    }

    /// At the end of a node's work: what it holds is given back.
    pub(crate) fn go_home(&mut self) -> Done {
        while !self.held.is_empty() {
            self.let_go()?;
        }
        Ok(())
    }

    fn back_up(&mut self, within: bool) -> Done {
        self.count(Event::Backup);
        let base = self.choose_base()?;
        let mut content = match &base {
            Some((_, content)) => (**content).clone(),
            None => self.draw(),
        };
        if !self.rng.chance(if self.world.theme == Theme::Again { 700 } else { 200 }) {
            content.age(&mut self.rng, &mut self.world.truth.lock().fresh);
        }
        self.note(format!("backs up {:?} on {:?}", content.chunks, id_of(&base)));
        let begun = self.repo.begin(base.as_ref().map(|(p, _)| p));
        let Some(mut session) = self.expect("begin", begun, SESSION)? else { return Ok(()) };
        self.note(format!("is session {}", session.id().short()));
        if let (Some((point, _)), true) = (&base, self.rng.chance(400)) {
            self.count(Event::BaseTrusted);
            // A base that was removed, or packs that vanish meanwhile: it is not trusted then.
            let trusted = session.trust_base(point, &NoProgress);
            let allowed = [ErrorKind::NotFound, ErrorKind::Damaged, SESSION[0], SESSION[1]];
            self.expect("trust", trusted, &allowed)?;
        }
        let old = base.as_ref().map(|(_, content)| content.clone());
        let Some(disk) = self.write(&session, &content, old, within)? else { return Ok(()) };
        if self.rng.chance(100) {
            self.count(Event::GivenUp);
            self.note("gives up".into());
            return Ok(());
        }
        if self.rng.chance(100) && self.expect("beat", session.beat(), SESSION)?.is_none() {
            return Ok(());
        }
        self.commit(session, disk, content, base)
    }

    /// Writes a disk: what its base has at the same place is sometimes kept unseen.
    fn write(
        &mut self,
        session: &WriteSession,
        content: &Content,
        old: Option<Arc<Content>>,
        within: bool,
    ) -> Done<Option<DiskRecord>> {
        let writer = session.image("disk0", "sim", content.len() as u64);
        let mut scratch = self.expect("scratch", WriteScratch::new(), &[])?;
        let Some(scratch) = &mut scratch else { return Ok(None) };
        let same = |at: usize| {
            let old = old.as_ref().filter(|_| (at as u64) < writer.keepable());
            old.is_some_and(|o| o.chunks.get(at) == content.chunks.get(at))
        };
        let (mut at, nap) = (0, self.rng.below(content.chunks.len()));
        while at < content.chunks.len() {
            if at >= nap && !within && self.rng.chance(100) {
                self.act(true)?;
            }
            if same(at) && self.rng.chance(600) {
                let kept = writer.keep(ChunkIndex(at as u64), 1);
                if self.expect("keep", kept, &[ErrorKind::Damaged])?.is_some() {
                    self.count(Event::Kept);
                    at += 1;
                    continue;
                }
            }
            let count = 1 + self.rng.below(4);
            let data = content.bytes(at, count);
            let wrote = writer.write_chunks(ChunkIndex(at as u64), &data, scratch);
            if self.expect("write", wrote, SESSION)?.is_none() {
                return Ok(None);
            }
            at += count;
        }
        self.expect("finish", writer.finish(), SESSION)
    }

    fn commit(
        &mut self,
        session: WriteSession,
        disk: DiskRecord,
        content: Content,
        base: Option<(RecoveryPoint, Arc<Content>)>,
    ) -> Done {
        let (id, content) = (session.id(), Arc::new(content));
        self.world.truth.lock().committing(id, content.clone());
        let time = backstay_store::Entropy::now(&*self.entropy);
        let new = NewPoint {
            time,
            ..crate::support::new_point(&format!("m{}", self.number), base.map(|(p, _)| p.id))
        };
        match session.commit(new, vec![disk]) {
            Ok(point) => {
                self.note(format!("has committed {}", id.short()));
                self.world.truth.lock().committed(point.clone());
                self.last = Some((point, content));
            }
            Err(e) if e.kind() == ErrorKind::Fenced => {
                self.count(Event::FencedCommit);
                self.note(format!("may not commit {}: {e}", id.short()));
                if !self.world.truth.lock().fences {
                    return self.fail(format!("nobody fences, and yet: {e}"));
                }
                self.world.truth.lock().fenced(id);
            }
            Err(e) => {
                self.expect("commit", Err::<(), _>(e), &[])?;
                self.count(Event::UnknownCommit);
            }
        }
        Ok(())
    }

    /// A disk of its own, or one that somebody backed up before, perhaps to remove it since.
    fn draw(&mut self) -> Content {
        let mut truth = self.world.truth.lock();
        let again = if self.world.theme == Theme::Again { 900 } else { 300 };
        let n = self.rng.below(truth.points.len());
        if let (Some(p), true) = (truth.points.values().nth(n), self.rng.chance(again)) {
            return (*p.content).clone();
        }
        Content::draw(&mut self.rng, &mut truth.fresh, self.world.theme.small())
    }

    /// The node's last point, any other, or none.
    fn choose_base(&mut self) -> Done<Option<(RecoveryPoint, Arc<Content>)>> {
        let own = match self.world.theme {
            Theme::Again => 1,
            Theme::Bases => 9,
            _ => 5,
        };
        match self.rng.below(10) {
            n if n < own && self.last.is_some() => {
                self.count(Event::BaseUsed);
                Ok(self.last.clone())
            }
            6 | 7 if self.world.theme == Theme::Mixed => {
                let Some(point) = self.any_point()? else { return Ok(None) };
                let content = self.content(point.id)?;
                Ok(Some((point, content)))
            }
            _ => Ok(None),
        }
    }

    fn remove(&mut self) -> Done {
        let Some(point) = self.any_point()? else { return Ok(()) };
        let id = point.id;
        self.count(Event::Removal);
        self.note(format!("removes {}", id.short()));
        let before = self.world.truth.lock().removing(id);
        let cause = Cause { by: "sim".into(), reason: String::new() };
        let report = self.repo.remove_points(&[id], &cause);
        let removed = report.as_ref().ok().map(|r| r.removed.contains(&id));
        let after = {
            let mut truth = self.world.truth.lock();
            let gone = matches!(&report, Err(e) if e.kind() == ErrorKind::NotFound);
            truth.removal_over(id, if gone { Some(false) } else { removed });
            truth.keepers(id)
        };
        if removed == Some(false) {
            self.count(Event::RemovalRefused);
        }
        if removed == Some(true) && before.iter().any(|k| after.contains(k)) {
            return self.fail(format!("{} was removed although {before:?} keep it", id.short()));
        }
        self.expect("remove", report, &[ErrorKind::NotFound, ErrorKind::Busy]).map(drop)
    }

    fn collect(&mut self) -> Done {
        let patience = [0, 1, 30 * 24 * 365].map(SignedDuration::from_hours);
        let options = CollectOptions {
            dry_run: self.rng.chance(40),
            repack: self.rng.chance(600),
            waste_percent: self.rng.pick(&[0, 5, 50]).unwrap_or(0),
            repack_bytes: self.rng.pick(&[u64::MAX, u64::MAX, 10_000]).unwrap_or(0),
            stale_after: self.rng.pick(&patience[..]).unwrap_or_default(),
            by: "sim".into(),
        };
        self.world.truth.lock().fences = true;
        self.count(if options.dry_run { Event::DryRun } else { Event::Collection });
        self.note(format!("collects: {options:?}"));
        let report = match self.repo.collect(&options, &NoProgress) {
            Err(e) if e.kind() == ErrorKind::Busy => {
                self.count(Event::Busy);
                self.note(format!("collects no more: {e}"));
                return Ok(());
            }
            // Its own session, with which it repacks, may be fenced like any other.
            other => self.expect("collect", other, &[ErrorKind::Fenced])?,
        };
        let Some(report) = report else { return Ok(()) };
        self.note(format!("has collected {}: {}", report.generation.0, tell(&report)));
        let done = [
            (report.freed.packs > 0, Event::Freed),
            (report.copied_bytes > 0, Event::Repacked),
            (report.kept.packs > 0, Event::Resurrected),
            (!report.waiting_for.is_empty(), Event::Waited),
            (!report.fenced.is_empty(), Event::WriterFenced),
        ];
        for (_, event) in done.iter().filter(|(happened, _)| *happened) {
            self.count(*event);
        }
        // What is left in quarantine only counts as missing, and stays.
        if report.missing_chunks > 0 && !self.world.truth.lock().quarantined {
            return self.fail(format!("{} chunks are missing", report.missing_chunks));
        }
        if report.freed.packs > 0 { self.look_around() } else { Ok(()) }
    }

    /// Holds a point, and keeps it held while other things are done.
    fn hold(&mut self, within: bool) -> Done {
        let Some(point) = self.any_point()? else { return Ok(()) };
        let content = self.content(point.id)?;
        let Some(held) = self.take_hold(point, content)? else { return Ok(()) };
        self.held.push(held);
        if !within && self.rng.chance(500) {
            self.act(true)?;
        }
        self.read_held()
    }

    /// Holds a point; nothing if it may be gone.
    fn take_hold(&mut self, point: RecoveryPoint, content: Arc<Content>) -> Done<Option<Held>> {
        self.count(Event::Hold);
        let id = point.id;
        let number = self.world.truth.lock().hold_number();
        let taken = self.repo.hold(&[id], &format!("hold {number}"));
        let gone = match self.world.truth.lock().points.get(&id) {
            Some(p) => p.may_be_gone(),
            None => false,
        };
        let allowed: &[ErrorKind] = if gone { &[ErrorKind::NotFound] } else { &[] };
        let Some(hold) = self.expect("hold", taken, allowed)? else { return Ok(None) };
        if hold.is_held() {
            self.world.truth.lock().held(number, id);
            self.note(format!("holds {} as {number}", id.short()));
        }
        Ok(Some(Held { number, point, content, hold: Some(hold) }))
    }

    /// Reads all that is held, bit for bit, on this node.
    fn read_held(&mut self) -> Done {
        for held in &self.held {
            let id = held.point.id;
            let removed = self.world.truth.lock().points.get(&id).is_some_and(|p| p.may_be_gone());
            let read = compare(&self.repo, &held.point, &held.content);
            // What was given up by a fence meanwhile is not held any more.
            let still = self.world.truth.lock().is_held(held.number);
            match read {
                Err(e) if still => return self.fail(format!("held as {}: {e}", held.number)),
                Err(e) => self.note(format!("not held any more: {e}")),
                Ok(()) if removed && still => self.count(Event::ReadWhileRemoved),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn let_go(&mut self) -> Done {
        if self.held.is_empty() {
            return Ok(());
        }
        self.read_held()?;
        let n = self.rng.below(self.held.len());
        let mut held = self.held.swap_remove(n);
        self.note(format!("lets {} go", held.number));
        self.world.truth.lock().hold_ends(held.number, held.point.id);
        held.hold = None;
        Ok(())
    }

    /// Holds, reads, and lets go.
    fn restore(&mut self) -> Done {
        self.count(Event::Restore);
        let before = self.held.len();
        self.hold(true)?;
        if self.held.len() > before {
            let held = self.held.swap_remove(self.held.len() - 1);
            self.world.truth.lock().hold_ends(held.number, held.point.id);
        }
        Ok(())
    }

    fn pin(&mut self) -> Done {
        let Some(point) = self.any_point()? else { return Ok(()) };
        self.count(Event::Pin);
        let cause = Cause { by: "sim".into(), reason: String::new() };
        let pinned = self.repo.pin(point.id, &cause);
        let gone = match self.world.truth.lock().points.get(&point.id) {
            Some(p) => p.may_be_gone(),
            None => false,
        };
        let allowed: &[ErrorKind] = if gone { &[ErrorKind::NotFound] } else { &[] };
        let Some(pin) = self.expect("pin", pinned, allowed)? else { return Ok(()) };
        self.note(format!("has pinned {}", point.id.short()));
        self.world.truth.lock().pinned(pin.id, point.id);
        self.pins.push(pin.id);
        Ok(())
    }

    fn unpin(&mut self) -> Done {
        if self.pins.is_empty() {
            return Ok(());
        }
        self.count(Event::Unpin);
        let n = self.rng.below(self.pins.len());
        let pin = self.pins.swap_remove(n);
        self.world.truth.lock().unpinning(pin);
        let taken = self.repo.unpin(pin);
        self.expect("unpin", taken, &[]).map(drop)
    }

    /// Gives up any session, this node's own included.
    fn fence(&mut self) -> Done {
        let sessions = self.repo.sessions();
        let Some(sessions) = self.expect("sessions", sessions, &[ErrorKind::Busy])? else {
            return Ok(());
        };
        let n = self.rng.below(sessions.len());
        let Some(session) = sessions.into_iter().nth(n) else { return Ok(()) };
        self.count(Event::Fence);
        self.note(format!("fences {}", session.id.short()));
        {
            let mut truth = self.world.truth.lock();
            truth.fences = true;
            let number = session.purpose.strip_prefix("hold ").and_then(|n| n.parse().ok());
            if let (SessionKind::Reader, Some(number)) = (session.kind, number) {
                truth.hold_ends(number, session.holds[0]);
            }
        }
        let cause = Cause { by: "sim".into(), reason: "taken for dead".into() };
        let fenced = self.repo.fence_session(session.id, &cause);
        let committed = self.expect("fence", fenced, &[])?;
        let truth = self.world.truth.lock();
        let there = |p: &PointTruth| p.answer == Answer::Acknowledged && !p.may_be_gone();
        if committed == Some(false) && truth.points.get(&session.id).is_some_and(there) {
            return self.fail(format!("{} was acknowledged and fenced", session.id.short()));
        }
        Ok(())
    }

    fn check(&mut self) -> Done {
        self.count(Event::Check);
        let options = CheckOptions { read_data: self.rng.chance(500) };
        let checked = self.repo.check(&options, &NoProgress);
        let Some(report) = self.expect("check", checked, &[ErrorKind::NotFound])? else {
            self.count(Event::CheckOvertaken);
            return Ok(());
        };
        self.no_damage("check", &report.damage)
    }

    /// Nothing is damaged, but what was collected meanwhile.
    fn no_damage(&mut self, what: &str, damage: &[Damage]) -> Done {
        for damage in damage {
            let gone = match &damage.kind {
                DamageKind::Pack(id) => !self.world.disk.has(ObjectKey::Pack(*id)),
                DamageKind::Index(id) => !self.world.disk.has(ObjectKey::Index(*id)),
                DamageKind::Object(_) => false,
                DamageKind::Point(id) | DamageKind::Disk { point: id, .. } => {
                    self.world.truth.lock().points.get(id).is_some_and(|p| p.may_be_gone())
                }
            };
            if !gone {
                return self.fail(format!("{what}: {:?}: {}", damage.kind, damage.reason));
            }
            self.count(Event::CheckOvertaken);
        }
        Ok(())
    }

    /// Reads packs, and writes down which.
    fn verify(&mut self) -> Done {
        self.count(Event::Verify);
        let max_bytes = self.rng.pick(&[None, Some(1), Some(100_000)]).flatten();
        let options = VerifyOptions { max_bytes, threads: 1, ..VerifyOptions::default() };
        self.note(format!("verifies at most {max_bytes:?}"));
        let verified = self.repo.verify(&options, &NoProgress);
        let Some(report) = self.expect("verify", verified, &[ErrorKind::NotFound])? else {
            return Ok(());
        };
        if report.quarantined_packs > 0 {
            return self.fail(format!("verify: what is whole was found bad: {report:?}"));
        }
        self.no_damage("verify", &report.damage)
    }

    /// Puts chunks into quarantine that are whole, as a host with bad memory would.
    fn quarantine(&mut self) -> Done {
        let listed = self.world.disk.list(Folder::Packs);
        let Some(packs) = self.expect("listing packs", listed, &[])? else { return Ok(()) };
        let Some(ObjectKey::Pack(pack)) = self.rng.pick(&packs) else { return Ok(()) };
        self.world.truth.lock().quarantined = true;
        let chunks = if self.rng.chance(300) {
            None
        } else {
            let chunks = layout::chunks(&self.repo, pack);
            let Some(all) = self.expect("chunks", chunks, &[ErrorKind::NotFound])? else {
                return Ok(());
            };
            Some(all.into_iter().filter(|_| self.rng.chance(500)).collect::<Vec<_>>())
        };
        let some = chunks.as_ref().is_none_or(|c| !c.is_empty());
        if some {
            self.count(Event::Quarantine);
            self.note(format!("quarantines {pack}: {chunks:?}"));
            let written = layout::quarantine(&self.repo, pack, chunks);
            self.expect("quarantine", written, &[])?;
        }
        Ok(())
    }

    /// Stores again what only copies in quarantine are left of.
    fn repair(&mut self) -> Done {
        self.count(Event::Repair);
        let read_data = self.rng.chance(500);
        let mut options = RepairOptions { read_data, ..RepairOptions::default() };
        self.note("repairs".into());
        let repaired = self.repo.repair(&mut options, &NoProgress);
        let allowed = [ErrorKind::NotFound, SESSION[0], SESSION[1]];
        let Some(report) = self.expect("repair", repaired, &allowed)? else { return Ok(()) };
        if !report.healed.is_empty() {
            self.count(Event::Healed);
            self.note(format!("has healed {:?}", report.healed));
        }
        self.no_damage("repair", &report.left)
    }

    fn reopen_counted(&mut self) -> Done {
        self.count(Event::Reopen);
        self.reopen()
    }

    fn jump_counted(&mut self) -> Done {
        self.count(Event::ClockJump);
        self.jump()
    }
}

fn id_of(base: &Option<(RecoveryPoint, Arc<Content>)>) -> String {
    base.as_ref().map(|(p, _)| p.id.short()).unwrap_or_default()
}

fn tell(r: &CollectReport) -> String {
    format!(
        "{} points, freed {}, later {}, kept {}, repacked {}, waiting for {}, fenced {}, buried {}",
        r.points,
        r.freed.packs,
        r.later.packs,
        r.kept.packs,
        r.repacked.packs,
        r.waiting_for.len(),
        r.fenced.len(),
        r.buried
    )
}
