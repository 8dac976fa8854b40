//! One node of a run: its own opening of the repository, its own clock, and what it has open.

use std::fmt;
use std::sync::Arc;

use backstay_store::testkit::SeededEntropy;
use backstay_store::{
    Entropy, Error, ErrorKind, Hold, IndexChoice, Location, OpenOptions, Owner, PinId, PointId,
    RecoveryPoint, Repository, Storage,
};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use crate::support::key;

use super::content::Content;
use super::count::{Counts, Event};
use super::disk::{Disk, StepStorage};
use super::ops::Theme;
use super::schedule::{Rng, Schedule, name};
use super::truth::{Truth, Verdict};

/// What the actors of a run share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) disk: Arc<Disk>,
    pub(crate) schedule: Arc<Schedule>,
    /// Never locked during a call to the store: another actor may run then.
    pub(crate) truth: Mutex<Truth>,
    pub(crate) counts: Mutex<Counts>,
    /// Seconds that passed, for every clock.
    clock: Arc<Mutex<i64>>,
    pub(crate) seed: u64,
    pub(crate) theme: Theme,
}

/// An actor's random bytes and clock, which may jump.
pub(crate) struct NodeEntropy {
    bytes: SeededEntropy,
    clock: Arc<Mutex<i64>>,
    ahead: Mutex<i64>,
}

impl fmt::Debug for NodeEntropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeEntropy")
    }
}

impl Entropy for NodeEntropy {
    fn fill(&self, buf: &mut [u8]) {
        self.bytes.fill(buf);
    }

    fn now(&self) -> Timestamp {
        let mut clock = self.clock.lock();
        *clock += 5;
        let start: Timestamp = "2026-11-22T03:00:00Z".parse().unwrap();
        start + SignedDuration::from_secs(*clock + *self.ahead.lock())
    }
}

impl World {
    pub(crate) fn new(seed: u64, theme: Theme, disk: Arc<Disk>, actors: usize) -> Self {
        Self {
            disk,
            schedule: Arc::new(Schedule::new(seed, actors)),
            truth: Mutex::default(),
            counts: Mutex::default(),
            clock: Arc::default(),
            seed,
            theme,
        }
    }

    fn entropy(&self, stream: u64) -> Arc<NodeEntropy> {
        let seed = Rng::new(self.seed ^ (stream << 48)).next();
        let (clock, ahead) = (self.clock.clone(), Mutex::default());
        Arc::new(NodeEntropy { bytes: SeededEntropy::new(seed), clock, ahead })
    }

    /// A node that was never there before and that nobody interrupts.
    pub(crate) fn node(&self) -> Result<Repository, String> {
        open(self.disk.clone(), self.entropy(999), "observer")
            .map_err(|e| format!("the repository does not open: {e}"))
    }

    /// Looks whether all that must be there is there now.
    pub(crate) fn check(&self) -> Verdict {
        let node = self.node()?;
        self.truth.lock().check(&node)
    }

    pub(crate) fn count(&self, event: Event) {
        self.counts.lock().add(event);
    }
}

pub(crate) fn open(
    storage: Arc<dyn Storage>,
    entropy: Arc<NodeEntropy>,
    host: &str,
) -> Result<Repository, Error> {
    // Nobody knows whether this process lives: as on another host.
    let owner = Owner {
        host: host.into(),
        boot: String::new(),
        pid: 1,
        namespace: String::new(),
        started: 0,
    };
    let options = OpenOptions {
        cache_bytes: 64 << 10,
        fetch_threads: 0,
        background: false,
        owner: Some(owner),
        ..OpenOptions::new("/nonexistent")
    };
    let location = Location::parse("/sim").unwrap();
    Repository::open_on(storage, location, &key(), &options, IndexChoice::Memory, entropy)
}

/// Why an actor does no more.
#[derive(Debug)]
pub(crate) enum Stop {
    /// It was killed.
    Killed,
    /// A promise was broken.
    Failed(String),
}

/// What the actor does next, or that it stops.
pub(crate) type Done<T = ()> = Result<T, Stop>;

/// A point that the actor holds.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) number: u64,
    pub(crate) point: RecoveryPoint,
    pub(crate) content: Arc<Content>,
    pub(crate) hold: Option<Hold>,
}

/// One node.
#[derive(Debug)]
pub(crate) struct Actor<'w> {
    pub(crate) number: usize,
    pub(crate) world: &'w World,
    pub(crate) rng: Rng,
    pub(crate) entropy: Arc<NodeEntropy>,
    pub(crate) repo: Repository,
    pub(crate) last: Option<(RecoveryPoint, Arc<Content>)>,
    pub(crate) held: Vec<Held>,
    pub(crate) pins: Vec<PinId>,
}

impl<'w> Actor<'w> {
    pub(crate) fn new(world: &'w World, number: usize) -> Done<Self> {
        let entropy = world.entropy(number as u64 + 1);
        let rng = Rng::new(world.seed ^ ((number as u64 + 1) << 56));
        let repo = match open(Self::storage(world, number), entropy.clone(), &host(number)) {
            Ok(repo) => repo,
            Err(_) if world.schedule.is_killed(number) => return Err(Stop::Killed),
            Err(e) => return Err(Stop::Failed(format!("opening: {e}"))),
        };
        let (last, held, pins) = (None, Vec::new(), Vec::new());
        Ok(Self { number, world, rng, entropy, repo, last, held, pins })
    }

    fn storage(world: &World, number: usize) -> Arc<StepStorage> {
        Arc::new(StepStorage::new(world.disk.clone(), world.schedule.clone(), number))
    }

    /// Opens the repository anew: nothing is in memory any more.
    pub(crate) fn reopen(&mut self) -> Done {
        let storage = Self::storage(self.world, self.number);
        let opened = open(storage, self.entropy.clone(), &host(self.number));
        if let Some(repo) = self.expect("opening", opened, &[])? {
            self.repo = repo;
        }
        Ok(())
    }

    /// The clock of this node jumps by up to thirty years.
    pub(crate) fn jump(&mut self) -> Done {
        let years = [-30 * 365, -365, -1, 1, 365, 30 * 365];
        let days = self.rng.pick(&years).unwrap_or(0);
        self.note(format!("its clock jumps by {days} days"));
        *self.entropy.ahead.lock() += days * 86_400;
        Ok(())
    }

    pub(crate) fn note(&self, text: String) {
        self.world.schedule.note(self.number, text);
    }

    pub(crate) fn count(&self, event: Event) {
        self.world.count(event);
    }

    /// The value, or nothing for an error that may be; any other error breaks a promise.
    pub(crate) fn expect<T>(
        &self,
        what: &str,
        result: Result<T, Error>,
        allowed: &[ErrorKind],
    ) -> Done<Option<T>> {
        let e = match result {
            Ok(value) => return Ok(Some(value)),
            Err(e) => e,
        };
        if self.world.schedule.is_killed(self.number) {
            return Err(Stop::Killed);
        }
        let broken = e.kind() == ErrorKind::Io && self.world.schedule.lies();
        if broken || allowed.contains(&e.kind()) {
            self.note(format!("{what}: {e}"));
            return Ok(None);
        }
        self.fail(format!("{what}: {} ({:?})", story(&e), e.kind()))
    }

    /// A promise was broken; unless this node was killed and sees nothing but errors.
    pub(crate) fn fail<T>(&self, text: String) -> Done<T> {
        if self.world.schedule.is_killed(self.number) {
            return Err(Stop::Killed);
        }
        Err(Stop::Failed(format!("{}: {text}", name(self.number))))
    }

    /// Fails unless all that must be there is there.
    pub(crate) fn look_around(&self) -> Done {
        self.count(Event::LookAround);
        self.world.check().or_else(|e| self.fail(e))
    }

    /// Any point that this node sees.
    pub(crate) fn any_point(&mut self) -> Done<Option<RecoveryPoint>> {
        let listed = self.repo.points();
        let Some(list) = self.expect("listing points", listed, &[])? else { return Ok(None) };
        if let Some((id, e)) = list.damaged.first() {
            return self.fail(format!("point {} is listed as damaged: {e}", id.short()));
        }
        let n = self.rng.below(list.points.len());
        Ok(list.points.into_iter().nth(n))
    }

    /// What the point must read as.
    pub(crate) fn content(&self, id: PointId) -> Done<Arc<Content>> {
        match self.world.truth.lock().points.get(&id) {
            Some(p) => Ok(p.content.clone()),
            None => self.fail(format!("point {} was never made", id.short())),
        }
    }
}

/// The error and all that caused it.
pub(crate) fn story(e: &Error) -> String {
    let mut text = e.to_string();
    let mut cause = std::error::Error::source(e);
    while let Some(c) = cause {
        text = format!("{text}: {c}");
        cause = c.source();
    }
    text
}

fn host(number: usize) -> String {
    format!("node-{}", name(number))
}
