//! The third part: several threads on the same bytes at once.

use std::sync::{Barrier, Mutex, PoisonError};

use super::oracle::{AFTER_TRIM, Candidates, ZERO, written};
use super::plan::{Kind, Plan, Step};
use super::{Answer, Config, Failure, One, Wrong, execute};

/// The part of the device that one round is about.
const WINDOW_BYTES: u64 = 24 << 10;
/// Steps of one thread in a round.
const STEPS: u64 = 4;

/// What one thread did in a round: its steps and their answers, in order.
type Done = Vec<(Step, Result<Answer, Wrong>)>;

/// What a change makes of a byte.
fn effect(step: &Step, at: u64) -> Option<Candidates> {
    match step.kind {
        _ if !(step.offset..step.offset + step.len).contains(&at) => None,
        Kind::Write(tag, _) => Some(written(tag, at)),
        Kind::Zeroes(_) => Some(ZERO),
        Kind::Trim(_) => Some(AFTER_TRIM),
        _ => None,
    }
}

/// Runs rounds: all threads do a few steps at once in one window; then everything they saw, and what
/// the window holds, is judged.
pub(super) fn run(one: &mut One<'_>, config: Config) -> Result<(), Failure> {
    let Some(device) = one.device.clone() else { return Ok(()) };
    let threads = config.threads;
    let rounds = config.operations / 4 / (threads as u64 * STEPS);
    let size = one.oracle.range().end;
    let mut plan = Plan::new(config.seed ^ 0x5a5a, one.plan.caps, WINDOW_BYTES / 2);
    plan.next = one.plan.next;
    let todo: Mutex<Option<Vec<Vec<Step>>>> = Mutex::new(None);
    let done: Mutex<Vec<Done>> = Mutex::default();
    let barrier = Barrier::new(threads + 1);
    // Nothing in here panics but the device, and that is caught.
    let lock = || todo.lock().unwrap_or_else(PoisonError::into_inner);
    let results = || done.lock().unwrap_or_else(PoisonError::into_inner);
    let worker = |thread: usize| {
        loop {
            barrier.wait();
            let Some(steps) = lock().as_ref().map(|all| all[thread].clone()) else { return };
            let run = |step: Step| (step, execute(&*device, &step));
            let mine = steps.into_iter().map(run).collect();
            results().push(mine);
            barrier.wait();
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || worker(thread));
        }
        let mut outcome = Ok(());
        for _ in 0..rounds {
            let start = plan.numbers.below(size.saturating_sub(WINDOW_BYTES) + 1);
            let window = start..(start + WINDOW_BYTES).min(size);
            let steps = (0..threads)
                .map(|thread| {
                    plan.thread = thread + 1;
                    (0..STEPS).map(|_| plan.step(&window)).collect()
                })
                .collect();
            *lock() = Some(steps);
            barrier.wait();
            barrier.wait();
            outcome = judge(one, std::mem::take(&mut *results()), &window);
            if outcome.is_err() {
                break;
            }
        }
        *lock() = None;
        barrier.wait();
        outcome
    })
    .map_err(|wrong| one.history.failure(config.seed, wrong))
}

fn judge(one: &mut One<'_>, done: Vec<Done>, window: &std::ops::Range<u64>) -> Result<(), Wrong> {
    let steps: Vec<Step> = done.iter().flatten().map(|(step, _)| *step).collect();
    let mut in_order = steps;
    in_order.sort_by_key(|step| step.number);
    in_order.into_iter().for_each(|step| one.history.push(step));
    // A fast zero that was refused did nothing.
    let refused = |answer: &Result<Answer, Wrong>| matches!(answer, Ok(Answer::Done(false)));
    let done: Vec<Done> = done
        .into_iter()
        .map(|mine| mine.into_iter().filter(|(_, answer)| !refused(answer)).collect())
        .collect();
    let before: Vec<Candidates> = one.oracle.now(window.start, window.end - window.start).to_vec();
    for (mine, others) in (0..done.len()).map(|i| {
        let others = done.iter().enumerate().filter(move |(j, _)| *j != i);
        (&done[i], others.flat_map(|(_, steps)| steps.iter().map(|(step, _)| step)))
    }) {
        let others: Vec<&Step> = others.collect();
        for (i, (step, answer)) in mine.iter().enumerate() {
            let wrong = |wrong: Wrong| Wrong { what: format!("{step}: {}", wrong.what), ..wrong };
            let answer = match answer {
                Ok(answer) => answer,
                Err(e) => return Err(wrong(Wrong { at: e.at, what: e.what.clone() })),
            };
            let Answer::Bytes(seen) = answer else { continue };
            let allowed: Vec<Candidates> = (step.offset..step.offset + step.len)
                .map(|at| {
                    let own = mine[..i].iter().rev().find_map(|(step, _)| effect(step, at));
                    let own = own.unwrap_or(before[(at - window.start) as usize]);
                    others.iter().filter_map(|step| effect(step, at)).fold(own, |all, e| all | e)
                })
                .collect();
            one.oracle.check(step.offset, seen, &allowed).map_err(|e| wrong(e.into()))?;
        }
    }
    let after: Vec<Candidates> = window
        .clone()
        .map(|at| {
            let last = |done: &Done| done.iter().rev().find_map(|(step, _)| effect(step, at));
            let all = done.iter().filter_map(last).reduce(|all, e| all | e);
            all.unwrap_or(before[(at - window.start) as usize])
        })
        .collect();
    one.oracle.set(window.start, &after);
    let Some(device) = &one.device else { return Ok(()) };
    let mut seen = vec![0xa5; after.len()];
    super::guarded(|| device.read_at(window.start, &mut seen))?;
    let check = one.oracle.check(window.start, &seen, &after);
    check.map_err(|(at, what)| Wrong { at: Some(at), what: format!("after a round: {what}") })?;
    one.oracle.settle(window.start, &seen);
    Ok(())
}
