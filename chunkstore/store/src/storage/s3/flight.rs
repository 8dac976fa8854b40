//! How many bytes may be asked for at once. A distant server is kept busy by much in flight; beyond
//! what the link carries, more in flight costs memory and brings nothing.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};

/// The budget to start with: what a link of 80 MB/s holds at 100 ms.
const FIRST: u64 = 8 << 20;
/// The least budget; no request counts for more.
const LEAST: u64 = 2 << 20;
/// What is counted in.
const UNIT: u64 = 1024;
/// The most: at 100 ms a link of 10 Gbit/s.
const MOST: u64 = 128 << 20;
/// A window of measuring is at least so long.
const WINDOW: Duration = Duration::from_millis(250);
/// A larger budget must bring so much more throughput to be kept growing.
const GAIN: f64 = 1.05;
/// Windows without gain after which growing is tried again: links change.
const PATIENCE: u32 = 32;

/// The rule by which the budget moves; knows times only as they are told.
#[derive(Debug)]
struct Rule {
    budget: u64,
    /// Best throughput of a full window since the budget last grew.
    best: f64,
    idle_windows: u32,
    start: Option<Instant>,
    done: u64,
    /// The budget held somebody back in this window.
    wanted_more: bool,
}

impl Rule {
    fn new() -> Self {
        Self { budget: FIRST, best: 0.0, idle_windows: 0, start: None, done: 0, wanted_more: false }
    }

    /// `bytes` have arrived at `now`.
    fn arrived(&mut self, bytes: u64, now: Instant) {
        let start = *self.start.get_or_insert(now);
        self.done += bytes;
        let time = now.saturating_duration_since(start);
        // Long enough to hold some round trips, whatever they take.
        if time < WINDOW || self.done < 2 * self.budget {
            return;
        }
        let rate = self.done as f64 / time.as_secs_f64();
        let held_back = std::mem::take(&mut self.wanted_more);
        (self.start, self.done) = (Some(now), 0);
        if !held_back {
            return;
        }
        self.idle_windows += 1;
        if rate > self.best * GAIN || self.idle_windows >= PATIENCE {
            self.budget = (self.budget * 2).min(MOST);
            self.best = rate;
            self.idle_windows = 0;
        }
    }

    /// The server asked for less, or a request was lost.
    fn refused(&mut self, now: Instant) {
        self.budget = (self.budget / 2).max(LEAST);
        (self.best, self.idle_windows) = (0.0, 0);
        (self.start, self.done) = (Some(now), 0);
    }
}

/// The bytes in flight, shared by all requests of a storage; who comes first goes first.
#[derive(Debug)]
pub(super) struct Flight {
    state: Mutex<State>,
    /// In units; holds as many as the budget, once `debt` is paid.
    free: Semaphore,
}

#[derive(Debug)]
struct State {
    rule: Rule,
    /// Units that the budget lost while they were in flight.
    debt: u64,
}

/// Bytes that may be in flight; given back when dropped.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    flight: &'a Flight,
    bytes: u64,
    units: Option<SemaphorePermit<'a>>,
}

impl Flight {
    pub(super) fn new() -> Self {
        let state = State { rule: Rule::new(), debt: 0 };
        Self { state: Mutex::new(state), free: Semaphore::new(count(FIRST)) }
    }

    /// Waits until `bytes` more may be asked for. One request may always go, however large.
    pub(super) async fn permit(&self, bytes: u64) -> Permit<'_> {
        let units = u32::try_from(bytes.clamp(UNIT, LEAST) / UNIT).unwrap_or(1);
        let units = match self.free.try_acquire_many(units) {
            Ok(units) => Some(units),
            Err(_) => {
                self.state.lock().rule.wanted_more = true;
                // It is never closed.
                self.free.acquire_many(units).await.ok()
            }
        };
        Permit { flight: self, bytes, units }
    }

    /// A request failed in a way that says there was too much.
    pub(super) fn refused(&self) {
        self.change(|rule| rule.refused(Instant::now()));
    }

    fn change(&self, change: impl FnOnce(&mut Rule)) {
        let mut state = self.state.lock();
        let before = state.rule.budget;
        change(&mut state.rule);
        let after = state.rule.budget;
        if after < before {
            let lost = before / UNIT - after / UNIT;
            let now = self.free.forget_permits(usize::try_from(lost).unwrap_or(usize::MAX));
            state.debt += lost - now as u64;
        } else {
            let more = after / UNIT - before / UNIT;
            let paid = more.min(state.debt);
            state.debt -= paid;
            self.free.add_permits(count((more - paid) * UNIT));
        }
    }
}

fn count(bytes: u64) -> usize {
    usize::try_from(bytes / UNIT).unwrap_or(usize::MAX)
}

impl Permit<'_> {
    /// Everything asked for has arrived.
    pub(super) fn arrived(self) {
        self.flight.change(|rule| rule.arrived(self.bytes, Instant::now()));
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let Some(mut units) = self.units.take() else { return };
        let mut state = self.flight.state.lock();
        let paid = state.debt.min(units.num_permits() as u64);
        state.debt -= paid;
        if let Some(gone) = units.split(usize::try_from(paid).unwrap_or(0)) {
            gone.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link of `rate` bytes a second at `delay`, used for `seconds` by a reader that always wants
    /// more; the budget at the end.
    fn settle(rule: &mut Rule, rate: f64, delay: f64, seconds: f64) -> u64 {
        let start = Instant::now();
        let piece = 1u64 << 20;
        let mut time = 0.0;
        while time < seconds {
            // What is in flight arrives within a round trip, or as fast as the link carries it.
            let speed = rate.min(rule.budget as f64 / delay);
            time += piece as f64 / speed;
            rule.wanted_more = true;
            rule.arrived(piece, start + Duration::from_secs_f64(time));
        }
        rule.budget
    }

    #[test]
    fn the_budget_grows_as_long_as_throughput_does() {
        let mut rule = Rule::new();
        // 50 MB/s at 100 ms hold 5 MB: the first budget is enough.
        let budget = settle(&mut rule, 50e6, 0.1, 20.0);
        assert!(budget <= 4 * FIRST, "{budget}");
        // 500 MB/s hold 50 MB.
        let mut rule = Rule::new();
        let budget = settle(&mut rule, 500e6, 0.1, 20.0);
        assert!((50_000_000..=MOST).contains(&budget), "{budget}");
    }

    #[test]
    fn refusals_shrink_it_and_it_comes_back() {
        let mut rule = Rule::new();
        settle(&mut rule, 500e6, 0.1, 20.0);
        for _ in 0..100 {
            rule.refused(Instant::now());
        }
        assert_eq!(rule.budget, LEAST);
        assert!(settle(&mut rule, 500e6, 0.1, 20.0) >= 50_000_000);
    }

    /// However the budget moves while permits are out, in the end as much is free as it says.
    #[test]
    fn units_are_neither_lost_nor_made() {
        let flight = Flight::new();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut out = Vec::new();
        for n in 0..4000u64 {
            match n % 7 {
                0 => flight.refused(),
                1 => flight.change(|rule| rule.budget = (rule.budget * 2).min(MOST)),
                2 | 3 => drop((!out.is_empty()).then(|| out.remove(0))),
                4 => {
                    if let Some(permit) = out.pop() {
                        Permit::arrived(permit);
                    }
                }
                _ => {
                    if flight.free.available_permits() > count(LEAST) {
                        out.push(runtime.block_on(flight.permit(n * 5000)));
                    }
                }
            }
        }
        out.clear();
        let budget = flight.state.lock().rule.budget;
        assert_eq!((flight.free.available_permits(), flight.state.lock().debt), (count(budget), 0));
    }

    #[test]
    fn nobody_held_back_no_growth() {
        let mut rule = Rule::new();
        let start = Instant::now();
        for n in 0..1000u32 {
            rule.arrived(1 << 20, start + Duration::from_millis(10) * n);
        }
        assert_eq!(rule.budget, FIRST);
    }
}
