//! PERSISTENT RESERVE OUT (SPC-4, 6.16).

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::attention::{
    REGISTRATIONS_PREEMPTED, RESERVATIONS_PREEMPTED, RESERVATIONS_RELEASED,
};
use super::super::sense::{Code, Sense};
use super::super::table::{Answer, Call};
use super::super::task::Task;
use super::super::unit::Unit;
use super::super::{Fault, InitiatorPort, get16, get32, get64};
use super::full;
use super::state::{Kind, MAX_REGISTRANTS, Registrant, Reservation, State};

/// The length of every parameter list but REGISTER AND MOVE's.
const LIST_BYTES: usize = 24;
/// A list longer than this names more than one port, which REGISTER AND MOVE does not.
const MAX_LIST_BYTES: u32 = 1024;
/// How long PREEMPT AND ABORT waits for tasks that a thread has.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is asked, and by whom.
struct Request {
    action: u8,
    scope: u8,
    kind: u8,
    port: InitiatorPort,
    key: u64,
    service_key: u64,
    through_power_loss: bool,
}

/// What a change means for others.
#[derive(Default)]
struct Told {
    /// Ports that are told something.
    ports: Vec<(InitiatorPort, Code)>,
    /// Ports whose tasks are aborted.
    abort: Vec<InitiatorPort>,
}

pub(in super::super) fn change(call: &Call<'_>) -> Answer {
    let len = call.get32(5);
    if len > MAX_LIST_BYTES || len < LIST_BYTES as u32 {
        return Err(Sense::list_length().into());
    }
    let (unit, port, id) = (call.unit.clone(), call.nexus.port.clone(), call.nexus.id());
    let (action, scope, kind) = (call.cdb[1] & 0x1f, call.cdb[2] >> 4, call.cdb[2] & 0x0f);
    Ok(call.work(len, move |data| {
        let moves = action == 7;
        if data.len() < LIST_BYTES || (!moves && data.len() != LIST_BYTES) {
            return Err(Sense::list_length().into());
        }
        let flags = data[if moves { 17 } else { 20 }];
        let request = Request {
            action,
            scope,
            kind,
            port: port.clone(),
            key: get64(data, 0),
            service_key: get64(data, 8),
            through_power_loss: flags & 0x01 != 0,
        };
        let told = settle(&unit, &request, data)?;
        for (port, code) in &told.ports {
            unit.raise(*code, |other, theirs| other != id && theirs == port);
        }
        abort(&unit, id, &told.abort);
        Ok(Vec::new())
    }))
}

/// Makes the new state, has it kept, and puts it in the place of the old one.
fn settle(unit: &Arc<Unit>, request: &Request, data: &[u8]) -> Result<Told, Fault> {
    let reservations = &unit.reservations;
    let mut held = reservations.held.lock();
    let mut state = held.persistent.clone();
    let registers = matches!(request.action, 0 | 6 | 7);
    if registers && request.through_power_loss && reservations.keeper.is_none() {
        return Err(Sense::parameter(20).into());
    }
    let told = apply(&mut state, request, data)?;
    if registers {
        state.through_power_loss = request.through_power_loss;
    }
    if state != held.persistent {
        if let Some(keeper) = &reservations.keeper {
            keeper.save(&state.encode()).map_err(|error| {
                tracing::warn!(lun = unit.lun, %error, "cannot keep persistent reservations");
                // INSUFFICIENT REGISTRATION RESOURCES: nothing has changed.
                Sense::illegal((0x55, 0x04))
            })?;
        }
        held.persistent = state;
        reservations.note(&held);
    }
    Ok(told)
}

fn apply(state: &mut State, request: &Request, data: &[u8]) -> Result<Told, Fault> {
    match request.action {
        0 | 6 => register(state, request, data),
        7 => register_and_move(state, request, data),
        action => {
            // All others are for those who are registered, and know their key.
            if state.key_of(&request.port) != Some(request.key) {
                return Err(Fault::Conflict);
            }
            match action {
                1 => reserve(state, request),
                2 => release(state, request),
                3 => Ok(clear(state, request)),
                _ => preempt(state, request),
            }
        }
    }
}

/// REGISTER, and REGISTER AND IGNORE EXISTING KEY.
fn register(state: &mut State, request: &Request, data: &[u8]) -> Result<Told, Fault> {
    if data[20] & 0x08 != 0 {
        // SPEC_I_PT: ports register for themselves.
        return Err(Sense::parameter(20).into());
    }
    let known = state.key_of(&request.port);
    if request.action == 0 && known.unwrap_or(0) != request.key {
        return Err(Fault::Conflict);
    }
    let told = match (known, request.service_key) {
        (None, 0) => return Ok(Told::default()),
        (Some(_), 0) => unregister(state, &request.port),
        (_, key) => {
            put(state, &request.port, key)?;
            Told::default()
        }
    };
    state.generation = state.generation.wrapping_add(1);
    Ok(told)
}

/// Registers a port, or gives it another key.
fn put(state: &mut State, port: &InitiatorPort, key: u64) -> Result<(), Fault> {
    if let Some(known) = state.registrants.iter_mut().find(|r| r.port == *port) {
        known.key = key;
        return Ok(());
    }
    if state.registrants.len() >= MAX_REGISTRANTS {
        return Err(Sense::illegal((0x55, 0x04)).into());
    }
    state.registrants.push(Registrant { port: port.clone(), key });
    Ok(())
}

/// Takes a port off, and what it holds with it (SPC-4, 5.9.11.3).
fn unregister(state: &mut State, port: &InitiatorPort) -> Told {
    let held = state.is_held_by(port);
    state.registrants.retain(|r| r.port != *port);
    let Some(kind) = state.kind().filter(|_| held) else { return Told::default() };
    if kind.is_of_all() && !state.registrants.is_empty() {
        return Told::default();
    }
    state.reservation = None;
    match kind.is_alone() {
        true => Told::default(),
        false => tell(&state.registrants, RESERVATIONS_RELEASED),
    }
}

fn tell(registrants: &[Registrant], code: Code) -> Told {
    let ports = registrants.iter().map(|r| (r.port.clone(), code)).collect();
    Told { ports, abort: Vec::new() }
}

/// The type of a request that has one; the scope has to be the whole unit.
fn kind(request: &Request) -> Result<Kind, Fault> {
    let kind = Kind::from_code(request.kind).filter(|_| request.scope == 0);
    kind.ok_or_else(|| Sense::cdb(2).into())
}

fn reserve(state: &mut State, request: &Request) -> Result<Told, Fault> {
    let kind = kind(request)?;
    if let Some(there) = &state.reservation {
        let same = there.kind == kind && state.is_held_by(&request.port);
        return if same { Ok(Told::default()) } else { Err(Fault::Conflict) };
    }
    state.reservation = Some(Reservation { kind, holder: request.port.clone() });
    Ok(Told::default())
}

fn release(state: &mut State, request: &Request) -> Result<Told, Fault> {
    let Some(there) = state.kind().filter(|_| state.is_held_by(&request.port)) else {
        return Ok(Told::default());
    };
    if request.scope != 0 || request.kind != there as u8 {
        // INVALID RELEASE OF PERSISTENT RESERVATION.
        return Err(Sense::illegal((0x26, 0x04)).into());
    }
    state.reservation = None;
    Ok(match there.is_alone() {
        true => Told::default(),
        false => tell(&state.registrants, RESERVATIONS_RELEASED),
    })
}

fn clear(state: &mut State, _request: &Request) -> Told {
    let told = tell(&state.registrants, RESERVATIONS_PREEMPTED);
    state.registrants.clear();
    state.reservation = None;
    state.generation = state.generation.wrapping_add(1);
    told
}

/// PREEMPT, and PREEMPT AND ABORT (SPC-4, 5.9.11.4 and 5.9.11.5).
fn preempt(state: &mut State, request: &Request) -> Result<Told, Fault> {
    let victim = request.service_key;
    let there = state.kind();
    let takes = match there {
        // 0 means all of those who hold it together.
        Some(kind) if kind.is_of_all() => victim == 0,
        Some(_) => victim == state.holders_key(),
        None => false,
    };
    if victim == 0 && !takes {
        return Err(Sense::parameter(8).into());
    }
    let new = if takes { Some(kind(request)?) } else { None };
    let hit =
        |r: &Registrant| r.port != request.port && (r.key == victim || (takes && victim == 0));
    let gone: Vec<Registrant> = state.registrants.iter().filter(|r| hit(r)).cloned().collect();
    let own = state.key_of(&request.port) == Some(victim);
    if gone.is_empty() && !takes && !own {
        return Err(Fault::Conflict);
    }
    state.registrants.retain(|r| !hit(r));
    let mut told = tell(&gone, REGISTRATIONS_PREEMPTED);
    if let Some(kind) = new {
        if there != Some(kind) {
            // Those who stay learn that what was reserved has changed.
            let stay = state.registrants.iter().filter(|r| r.port != request.port);
            told.ports.extend(stay.map(|r| (r.port.clone(), RESERVATIONS_RELEASED)));
        }
        state.reservation = Some(Reservation { kind, holder: request.port.clone() });
    }
    state.generation = state.generation.wrapping_add(1);
    if request.action == 5 {
        told.abort = gone.into_iter().map(|r| r.port).collect();
    }
    Ok(told)
}

/// REGISTER AND MOVE: the holder gives the reservation to another port (SPC-4, 5.9.8).
fn register_and_move(state: &mut State, request: &Request, data: &[u8]) -> Result<Told, Fault> {
    if state.key_of(&request.port) != Some(request.key) {
        return Err(Fault::Conflict);
    }
    let Some(there) = state.reservation.clone() else {
        return Err(Sense::cdb_bit(1, 4).into());
    };
    if there.kind.is_of_all() || there.holder != request.port {
        return Err(Fault::Conflict);
    }
    if request.service_key == 0 {
        return Err(Sense::parameter(8).into());
    }
    if get16(data, 18) != super::super::inquiry::PORT {
        return Err(Sense::parameter(18).into());
    }
    let len = get32(data, 20) as usize;
    let named = data[LIST_BYTES..].get(..len).and_then(full::port_of);
    let Some(to) = named.filter(|to| *to != request.port) else {
        return Err(Sense::parameter(LIST_BYTES as u16).into());
    };
    put(state, &to, request.service_key)?;
    state.reservation = Some(Reservation { kind: there.kind, holder: to });
    if data[17] & 0x02 != 0 {
        state.registrants.retain(|r| r.port != request.port);
    }
    state.generation = state.generation.wrapping_add(1);
    Ok(Told::default())
}

/// Aborts the tasks of ports, and waits until no thread has one of them.
fn abort(unit: &Unit, by: u64, ports: &[InitiatorPort]) {
    if ports.is_empty() {
        return;
    }
    let nexuses = unit.nexuses_of(|port| ports.contains(port));
    let aborted = unit.tasks.abort(|nexus, _| nexus != by && nexuses.contains(&nexus));
    let start = Instant::now();
    let running = |task: &Arc<Task>| !task.is_over();
    while aborted.running.iter().any(running) && start.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(1));
    }
}
