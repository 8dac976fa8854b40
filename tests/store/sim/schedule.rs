//! Who takes the next step. Actors are threads of which exactly one runs: before each call to the
//! storage it hands over to whomever the seed names.

use std::time::Duration;

use backstay_store::{Folder, ObjectKey};
use parking_lot::{Condvar, Mutex};

/// Numbers from a seed: small and fast, since one is drawn at every step.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number (splitmix64).
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % (bound.max(1) as u64)) as usize
    }

    /// True in so many of a thousand draws.
    pub(crate) fn chance(&mut self, of_thousand: u64) -> bool {
        self.next() % 1000 < of_thousand
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        if of.is_empty() { None } else { Some(of[self.below(of.len())]) }
    }
}

/// What a step is about to do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    Put(ObjectKey),
    Get(ObjectKey),
    Read(ObjectKey),
    Size(ObjectKey),
    List(Folder),
    ListEnds(Folder),
    Delete(ObjectKey),
    Tidy,
}

impl Call {
    /// How much the protocol's decisions turn around this call: actors fall asleep more often
    /// before those that do.
    fn weight(&self) -> u64 {
        match self {
            Call::Put(ObjectKey::Pack(_)) => 1,
            Call::Put(_) => 8,
            Call::Delete(k) if !matches!(k, ObjectKey::Session(..)) => 6,
            Call::List(f) | Call::ListEnds(f) if !matches!(f, Folder::Slots) => 4,
            Call::Size(ObjectKey::Removal(_) | ObjectKey::GcEnd(_)) => 4,
            Call::Get(ObjectKey::GcVerdict(_)) => 4,
            _ => 1,
        }
    }
}

/// One line of the trace.
#[derive(Clone, Debug)]
enum Line {
    Call(usize, Call),
    Note(usize, String),
}

/// How restless a run is; drawn from its seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Temper {
    /// An actor goes on this often of a thousand steps before another's turn.
    pub(crate) keeps_on: u64,
    /// Of a thousand steps, how many put the actor to sleep.
    pub(crate) sleeps: u64,
    /// Of a thousand steps, how many kill the actor.
    pub(crate) dies: u64,
    /// Of a thousand calls that change something, how many answer with an error.
    pub(crate) lies: u64,
}

impl Temper {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        Self {
            keeps_on: rng.pick(&[0, 500, 750, 900, 950, 980]).unwrap_or(0),
            sleeps: rng.pick(&[0, 3, 8, 15, 30]).unwrap_or(0),
            dies: rng.pick(&[0, 0, 1, 3]).unwrap_or(0),
            lies: rng.pick(&[0, 0, 0, 4, 15]).unwrap_or(0),
        }
    }
}

/// How long an actor sleeps that is not to wake while another can run.
const TO_THE_END: u64 = u64::MAX - 1;
/// How long an actor sleeps that is killed in its sleep at the end of the run.
const FOR_EVER: u64 = u64::MAX;
/// Steps of a run. Runs take some hundreds; one that takes so many goes round in circles.
pub(crate) const STEPS_MAX: u64 = 50_000;
/// A run in which nobody takes a step for so long hangs.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, Default)]
struct Actor {
    finished: bool,
    killed: bool,
    sleeps_until: u64,
}

#[derive(Debug)]
struct State {
    rng: Rng,
    temper: Temper,
    actors: Vec<Actor>,
    current: Option<usize>,
    steps: u64,
    naps: u64,
    deaths: u64,
    overrun: bool,
    trace: Vec<Line>,
}

/// The turn-taking of one run.
#[derive(Debug)]
pub(crate) struct Schedule {
    state: Mutex<State>,
    turns: Vec<Condvar>,
    over: Condvar,
}

/// The actor was killed: nothing it does has any effect from now on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Killed;

impl Schedule {
    pub(crate) fn new(seed: u64, actors: usize) -> Self {
        let mut rng = Rng::new(seed);
        let temper = Temper::draw(&mut rng);
        let state = State {
            rng,
            temper,
            actors: vec![Actor::default(); actors],
            current: None,
            steps: 0,
            naps: 0,
            deaths: 0,
            overrun: false,
            trace: Vec::new(),
        };
        Self {
            state: Mutex::new(state),
            turns: (0..actors).map(|_| Condvar::new()).collect(),
            over: Condvar::new(),
        }
    }

    /// Lets the first actor run, waits until all are done, and tells whether they are.
    pub(crate) fn run(&self) -> Result<(), String> {
        let mut state = self.state.lock();
        state.choose();
        self.wake(&state);
        while state.current.is_some() {
            let before = state.steps;
            let timed_out = self.over.wait_for(&mut state, PATIENCE).timed_out();
            if timed_out && state.steps == before {
                return Err(format!("nobody took a step for {PATIENCE:?}: a deadlock"));
            }
        }
        if state.overrun {
            return Err(format!("{STEPS_MAX} steps and no end"));
        }
        Ok(())
    }

    /// Waits for the actor's first turn.
    pub(crate) fn enter(&self, actor: usize) {
        let mut state = self.state.lock();
        while state.current != Some(actor) {
            self.turns[actor].wait(&mut state);
        }
    }

    /// Hands over after the actor's last step.
    pub(crate) fn leave(&self, actor: usize) {
        let mut state = self.state.lock();
        state.actors[actor].finished = true;
        state.choose();
        self.wake(&state);
    }

    /// One step of `actor`: others may run before this returns, and `call` comes right after.
    pub(crate) fn step(&self, actor: usize, call: Call) -> Result<(), Killed> {
        let mut state = self.state.lock();
        state.steps += 1;
        if state.steps > STEPS_MAX {
            state.overrun = true;
            state.actors.iter_mut().for_each(|a| a.killed = true);
        }
        if state.actors[actor].killed {
            return Err(Killed);
        }
        if state.disturb(actor, call) {
            state.choose();
            self.wake(&state);
            while state.current != Some(actor) {
                self.turns[actor].wait(&mut state);
            }
        }
        if state.actors[actor].killed {
            state.trace.push(Line::Note(actor, "is killed".into()));
            return Err(Killed);
        }
        state.trace.push(Line::Call(actor, call));
        Ok(())
    }

    /// Whether this call answers with an error, and if so whether it takes effect all the same.
    pub(crate) fn lie(&self, actor: usize) -> Option<bool> {
        let mut state = self.state.lock();
        let lies = state.temper.lies;
        if !state.rng.chance(lies) {
            return None;
        }
        let effect = state.rng.chance(700);
        let what = if effect { "the answer is lost" } else { "the request is lost" };
        state.trace.push(Line::Note(actor, what.into()));
        Some(effect)
    }

    /// A choice that the storage leaves open.
    pub(crate) fn toss(&self) -> bool {
        self.state.lock().rng.chance(500)
    }

    /// A promise was broken: nobody does anything more.
    pub(crate) fn kill_all(&self) {
        self.state.lock().actors.iter_mut().for_each(|a| a.killed = true);
    }

    pub(crate) fn is_killed(&self, actor: usize) -> bool {
        self.state.lock().actors[actor].killed
    }

    /// Whether calls of this run may answer with an error.
    pub(crate) fn lies(&self) -> bool {
        self.state.lock().temper.lies > 0
    }

    pub(crate) fn note(&self, actor: usize, text: String) {
        self.state.lock().trace.push(Line::Note(actor, text));
    }

    /// Steps, naps, deaths.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let state = self.state.lock();
        (state.steps, state.naps, state.deaths)
    }

    /// What happened, in order, one line each.
    pub(crate) fn trace(&self) -> Vec<String> {
        let state = self.state.lock();
        let line = |l: &Line| match l {
            Line::Call(a, call) => format!("{}    {}", name(*a), tell(call)),
            Line::Note(a, text) => format!("{}  {text}", name(*a)),
        };
        state.trace.iter().map(line).collect()
    }

    fn wake(&self, state: &State) {
        match state.current {
            Some(next) => _ = self.turns[next].notify_one(),
            None => _ = self.over.notify_one(),
        }
    }
}

/// Actors are called A, B, C.
pub(crate) fn name(actor: usize) -> char {
    char::from(b'A' + (actor % 26) as u8)
}

fn tell(call: &Call) -> String {
    let short = |k: &ObjectKey| {
        let path = k.path();
        let (folder, name) = path.split_once('/').unwrap_or(("", &path));
        let name = name.rsplit('/').next().unwrap_or(name);
        // Ids are random: eight letters tell them apart. Beats and generations stand at the end.
        match name.split_once('.') {
            Some((id, rest)) if id.len() > 20 => format!("{folder}/{}.{rest}", &id[..8]),
            None if name.len() > 8 => format!("{folder}/{}", &name[..8]),
            _ => format!("{folder}/{name}"),
        }
    };
    match call {
        Call::Put(k) => format!("put {}", short(k)),
        Call::Get(k) => format!("get {}", short(k)),
        Call::Read(k) => format!("read {}", short(k)),
        Call::Size(k) => format!("size {}", short(k)),
        Call::List(f) => format!("list {}", f.name()),
        Call::ListEnds(f) => format!("list {} ends", f.name()),
        Call::Delete(k) => format!("delete {}", short(k)),
        Call::Tidy => "tidy".into(),
    }
}

impl State {
    /// Whether somebody else may run before `call`.
    fn disturb(&mut self, actor: usize, call: Call) -> bool {
        let (temper, scale) = (self.temper, call.weight());
        if self.rng.chance(temper.dies * scale / 4) {
            self.actors[actor].killed = true;
            self.deaths += 1;
            return false;
        }
        if self.rng.chance(temper.sleeps * scale) {
            let last = [TO_THE_END, TO_THE_END, FOR_EVER];
            let until = match self.rng.below(20) {
                n @ 0..3 => last[n],
                n => self.steps + [10, 40, 100, 200, 400][n % 5],
            };
            self.actors[actor].sleeps_until = until;
            self.naps += 1;
            self.trace.push(Line::Note(actor, format!("sleeps before: {}", tell(&call))));
            return true;
        }
        !self.rng.chance(temper.keeps_on)
    }

    /// Chooses who runs next.
    fn choose(&mut self) {
        let steps = self.steps;
        let awake = |a: &Actor| !a.finished && (a.killed || a.sleeps_until <= steps);
        let ready: Vec<usize> =
            (0..self.actors.len()).filter(|&i| awake(&self.actors[i])).collect();
        self.current = match self.rng.pick(&ready) {
            Some(next) => Some(next),
            None => self.wake_one(),
        };
    }

    /// Nobody is awake: the lightest sleeper wakes. Who sleeps for ever is killed.
    fn wake_one(&mut self) -> Option<usize> {
        let asleep = (0..self.actors.len()).filter(|&i| !self.actors[i].finished);
        let next = asleep.min_by_key(|&i| self.actors[i].sleeps_until)?;
        let actor = &mut self.actors[next];
        if actor.sleeps_until == FOR_EVER {
            actor.killed = true;
            self.deaths += 1;
        }
        actor.sleeps_until = 0;
        Some(next)
    }
}
