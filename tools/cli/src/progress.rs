//! Progress of long work: a bar on a terminal, lines elsewhere, JSON lines on request.

use std::io::IsTerminal as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::cli::{Global, ProgressMode};
use crate::output::{clean, note};
use crate::signals::Signals;
use crate::units;

/// How often a line is printed where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// How often a JSON event is printed.
const EVENT_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum Shown {
    Bar(ProgressBar),
    Lines,
    Events,
    Nothing,
}

/// Shows progress on stderr and passes the user's wish to stop on to the work.
#[derive(Debug)]
pub(crate) struct Reporter {
    shown: Shown,
    signals: Option<Signals>,
    total: AtomicU64,
    done: AtomicU64,
    /// Whether this step counts things, not bytes.
    counts_things: AtomicBool,
    /// Things counted in all steps so far.
    counted: Mutex<Vec<Counted>>,
    state: Mutex<State>,
}

/// How many things of a kind were done, of how many.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Counted {
    pub(crate) what: &'static str,
    pub(crate) done: u64,
    pub(crate) total: u64,
}

#[derive(Debug)]
struct State {
    phase: String,
    phase_started: Instant,
    last_shown: Instant,
}

impl Reporter {
    pub(crate) fn new(global: &Global, signals: Option<Signals>) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let shown = match global.progress {
            ProgressMode::Plain => Shown::Lines,
            ProgressMode::Json => Shown::Events,
            ProgressMode::None => Shown::Nothing,
            ProgressMode::Auto if global.quiet => Shown::Nothing,
            ProgressMode::Auto if terminal => Shown::Bar(bar()),
            // Under --json stderr is for JSON; whoever wants progress there says so.
            ProgressMode::Auto if global.json => Shown::Nothing,
            ProgressMode::Auto => Shown::Lines,
        };
        let now = Instant::now();
        Self {
            shown,
            signals,
            total: AtomicU64::new(0),
            done: AtomicU64::new(0),
            counts_things: AtomicBool::new(false),
            counted: Mutex::new(Vec::new()),
            state: Mutex::new(State { phase: String::new(), phase_started: now, last_shown: now }),
        }
    }

    /// A new step begins; its bytes are counted from zero.
    pub(crate) fn begin(&self, phase: &str) {
        self.total.store(0, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
        if let Ok(mut state) = self.state.lock() {
            let now = Instant::now();
            *state = State { phase: phase.to_owned(), phase_started: now, last_shown: now };
        }
        match &self.shown {
            Shown::Bar(bar) => {
                bar.set_length(0);
                bar.set_position(0);
                bar.reset_eta();
                bar.set_prefix(clean(phase));
            }
            Shown::Events => {
                note(&serde_json::json!({"event": "phase", "phase": phase}).to_string());
            }
            // Lines come only with an amount: short work stays silent in logs.
            Shown::Lines | Shown::Nothing => {}
        }
    }

    /// How much this step has to do.
    pub(crate) fn expect(&self, amount: u64) {
        self.total.store(amount, Ordering::Relaxed);
        if let Shown::Bar(bar) = &self.shown {
            bar.set_length(amount);
        }
    }

    /// That much is done.
    pub(crate) fn advance(&self, amount: u64) {
        let done = self.done.fetch_add(amount, Ordering::Relaxed).saturating_add(amount);
        let every = match &self.shown {
            Shown::Bar(bar) => {
                bar.set_position(done);
                return;
            }
            Shown::Lines => LINE_EVERY,
            Shown::Events => EVENT_EVERY,
            Shown::Nothing => return,
        };
        // Another thread that is printing right now says enough.
        if let Ok(mut state) = self.state.try_lock()
            && state.last_shown.elapsed() >= every
        {
            state.last_shown = Instant::now();
            self.tell(&state, done);
        }
    }

    fn tell(&self, state: &State, done: u64) {
        let total = self.total.load(Ordering::Relaxed);
        let seconds = state.phase_started.elapsed().as_secs_f64();
        let speed = if seconds > 0.0 { done as f64 / seconds } else { 0.0 };
        let left = (total > done && speed > 0.0).then(|| (total - done) as f64 / speed);
        let known_total = (total > 0).then_some(total);
        let things = self.counts_things.load(Ordering::Relaxed);
        if matches!(self.shown, Shown::Events) {
            let mut event = serde_json::json!({
                "event": "progress",
                "phase": state.phase,
                "eta_seconds": left,
            });
            if things {
                event["done"] = done.into();
                event["total"] = known_total.into();
            } else {
                event["done_bytes"] = done.into();
                event["total_bytes"] = known_total.into();
                event["bytes_per_second"] = (speed as u64).into();
            }
            note(&event.to_string());
            return;
        }
        let show = |amount| if things { format!("{amount}") } else { units::size(amount) };
        let mut line = format!("{}  {}", clean(&state.phase), show(done));
        if let Some(total) = known_total {
            let percent = u128::from(done) * 100 / u128::from(total);
            line.push_str(&format!(" of {}  {percent} %", show(total)));
        }
        if !things {
            line.push_str(&format!("  {}", units::rate(done, seconds)));
        }
        if let Some(left) = left {
            line.push_str(&format!("  eta {}", units::span(left)));
        }
        note(&line);
    }

    /// What was counted, one entry for each kind of thing.
    pub(crate) fn counted(&self) -> Vec<Counted> {
        self.counted.lock().map(|counted| counted.clone()).unwrap_or_default()
    }

    /// Something worth a line that is no trouble: what the work waits for.
    pub(crate) fn event(&self, event: &str, text: &str) {
        let text = clean(text);
        match &self.shown {
            Shown::Bar(bar) => bar.suspend(|| note(&text)),
            Shown::Events => {
                note(&serde_json::json!({"event": event, "message": text}).to_string());
            }
            Shown::Lines => note(&text),
            Shown::Nothing => {}
        }
    }

    /// Something went wrong that does not end the work.
    pub(crate) fn trouble(&self, text: &str) {
        let text = clean(text);
        match &self.shown {
            Shown::Bar(bar) => bar.suspend(|| note(&format!("warning: {text}"))),
            Shown::Events => {
                note(&serde_json::json!({"event": "problem", "message": text}).to_string());
            }
            Shown::Lines | Shown::Nothing => note(&format!("warning: {text}")),
        }
    }

    /// Whether the user asked to stop.
    pub(crate) fn must_stop(&self) -> bool {
        self.signals.as_ref().is_some_and(|signals| signals.caught().is_some())
    }

    /// Clears the bar, so that the result stands alone.
    pub(crate) fn finish(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.finish();
    }
}

const BYTES: &str = "{prefix:10} {bar:20} {percent:>3} %  {binary_bytes} of {binary_total_bytes}  \
                     {binary_bytes_per_sec}  eta {eta}";
const THINGS: &str = "{prefix:10} {bar:20} {percent:>3} %  {pos} of {len}  eta {eta}";

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(8));
    bar.set_style(style(BYTES));
    bar
}

/// A template that does not parse would give indicatif's own; a unit test holds ours.
fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template);
    style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("██░")
}

impl backstay_core::monitor::Monitor for Reporter {
    fn phase(&self, name: &str) {
        self.begin(name);
    }
    fn total_bytes(&self, bytes: u64) {
        self.expect(bytes);
    }
    fn add_bytes(&self, bytes: u64) {
        self.advance(bytes);
    }
    fn problem(&self, text: &str) {
        self.trouble(text);
    }
    fn cancelled(&self) -> bool {
        self.must_stop()
    }
}

/// The store counts things of several kinds, one kind after the other.
impl backstay_store::Progress for Reporter {
    fn total(&self, what: &'static str, count: u64) {
        self.counts_things.store(true, Ordering::Relaxed);
        if let Shown::Bar(bar) = &self.shown {
            bar.set_style(style(THINGS));
        }
        if let Ok(mut counted) = self.counted.lock() {
            counted.push(Counted { what, done: 0, total: count });
        }
        self.begin(what);
        self.expect(count);
    }
    fn add(&self, what: &'static str, count: u64) {
        if let Ok(mut counted) = self.counted.lock()
            && let Some(of_kind) = counted.iter_mut().find(|counted| counted.what == what)
        {
            of_kind.done += count;
        }
        self.advance(count);
    }
    fn cancelled(&self) -> bool {
        self.must_stop()
    }
}

#[cfg(test)]
mod tests {
    use indicatif::ProgressStyle;

    #[test]
    fn the_templates_parse() {
        for template in [super::BYTES, super::THINGS] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
