//! Reservations: SPC-2's RESERVE and RELEASE, and persistent ones (SPC-4, 5.9, 6.15, 6.16).
//!
//! The state is a value ([`State`]); a PERSISTENT RESERVE OUT makes a new one of it, has it kept, and only then puts it in
//! the old one's place and tells the others. Reads and writes ask an atomic first whether anything is reserved at all.

mod full;
mod out;
mod state;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::sense::Sense;
use super::table::{Answer, Call, Needs};
use super::{Fault, Keeper, cut};
use crate::error::{Error, ErrorKind};
pub(super) use out::change;
use state::State;
pub use state::outlives_power_loss;

/// The reservations of one unit.
#[derive(Debug)]
pub(super) struct Reservations {
    /// Whether a command has to ask.
    any: AtomicBool,
    held: Mutex<Held>,
    keeper: Option<Arc<dyn Keeper>>,
}

#[derive(Debug, Default)]
struct Held {
    /// The nexus that holds SPC-2's RESERVE.
    nexus: Option<u64>,
    persistent: State,
}

impl Reservations {
    /// With what was kept.
    pub(super) fn open(keeper: Option<Arc<dyn Keeper>>, lun: u16) -> Result<Self, Error> {
        let failed =
            |e| Error::io(format!("cannot read the persistent reservations of unit {lun}"), e);
        let kept = keeper.as_ref().map(|keeper| keeper.load()).transpose().map_err(failed)?;
        let persistent = match kept.flatten() {
            None => State::default(),
            Some(bytes) => State::decode(&bytes).ok_or_else(|| {
                let why = format!(
                    "what was kept of the persistent reservations of unit {lun} is damaged"
                );
                Error::new(ErrorKind::Invalid, why)
            })?,
        };
        let any = AtomicBool::new(!persistent.is_empty());
        Ok(Self { any, held: Mutex::new(Held { nexus: None, persistent }), keeper })
    }

    /// Whether reservations of others let a command through.
    pub(super) fn lets(&self, call: &Call<'_>, needs: Needs) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return true;
        }
        let held = self.held.lock();
        if held.nexus.is_some_and(|nexus| nexus != call.nexus.id()) {
            // INQUIRY, REPORT LUNS, REQUEST SENSE, RELEASE and what only tells sizes and commands.
            let opcode = call.cdb[0];
            return matches!(opcode, 0x03 | 0x12 | 0x17 | 0x25 | 0xa0 | 0xa3)
                || (opcode == 0x9e && needs == Needs::Nothing);
        }
        held.persistent.lets(&call.nexus.port, needs)
    }

    /// A nexus is gone, and what it held by SPC-2's RESERVE is free.
    pub(super) fn forget_nexus(&self, nexus: u64) {
        let mut held = self.held.lock();
        if held.nexus == Some(nexus) {
            held.nexus = None;
            self.note(&held);
        }
    }

    /// A reset frees what SPC-2's RESERVE held.
    pub(super) fn release_all(&self) {
        let mut held = self.held.lock();
        held.nexus = None;
        self.note(&held);
    }

    fn note(&self, held: &Held) {
        let any = held.nexus.is_some() || !held.persistent.is_empty();
        self.any.store(any, Ordering::Release);
    }
}

pub(super) fn reserve6(call: &Call<'_>) -> Answer {
    if call.cdb[1] & 0x1f != 0 {
        // Extents and third parties are obsolete.
        return Err(Sense::cdb_bit(1, 4).into());
    }
    let reservations = &call.unit.reservations;
    let mut held = reservations.held.lock();
    if !held.persistent.is_empty() {
        return Err(Fault::Conflict);
    }
    held.nexus = Some(call.nexus.id());
    reservations.note(&held);
    Call::good()
}

pub(super) fn release6(call: &Call<'_>) -> Answer {
    let reservations = &call.unit.reservations;
    let mut held = reservations.held.lock();
    if !held.persistent.is_empty() {
        return Err(Fault::Conflict);
    }
    if held.nexus == Some(call.nexus.id()) {
        held.nexus = None;
        reservations.note(&held);
    }
    Call::good()
}

/// PERSISTENT RESERVE IN with what `tell` says of the state behind the generation and the length.
fn tell(call: &Call<'_>, tell: impl FnOnce(&State) -> Vec<u8>) -> Answer {
    let held = call.unit.reservations.held.lock();
    let body = tell(&held.persistent);
    let mut data = held.persistent.generation.to_be_bytes().to_vec();
    data.extend((body.len() as u32).to_be_bytes());
    data.extend(body);
    Ok(cut(data, call.get16(7).into()))
}

pub(super) fn read_keys(call: &Call<'_>) -> Answer {
    tell(call, |state| state.registrants.iter().flat_map(|r| r.key.to_be_bytes()).collect())
}

pub(super) fn read_reservation(call: &Call<'_>) -> Answer {
    tell(call, |state| {
        let Some(kind) = state.kind() else { return Vec::new() };
        let mut body = state.holders_key().to_be_bytes().to_vec();
        body.extend([0, 0, 0, 0, 0, kind as u8, 0, 0]);
        body
    })
}

pub(super) fn read_full_status(call: &Call<'_>) -> Answer {
    tell(call, full::status)
}

pub(super) fn report_capabilities(call: &Call<'_>) -> Answer {
    let keeps = call.unit.reservations.keeper.is_some();
    let active = call.unit.reservations.held.lock().persistent.through_power_loss;
    // ATP_C (there is one port), PTPL_C; TMV, PTPL_A; all six types.
    let first = 0x04 | u8::from(keeps);
    let second = 0x80 | u8::from(active);
    let data = vec![0, 8, first, second, 0x80 | 0x40 | 0x20 | 0x08 | 0x02, 0x01, 0, 0];
    Ok(cut(data, call.get16(7).into()))
}
