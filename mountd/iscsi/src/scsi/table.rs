//! The commands there are: how each is understood, who may use it, and which bits of its CDB mean something. The same
//! table answers REPORT SUPPORTED OPERATION CODES.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::device::{Link, Nexus};
use super::sense::Sense;
use super::unit::Unit;
use super::{
    Fault, Length, Outcome, Plan, Work, capacity, change, inquiry, io, mode, report, reserve,
};

pub(super) type Answer = Result<Plan, Fault>;

/// A command on its way to a unit.
pub(super) struct Call<'a> {
    pub(super) nexus: &'a Nexus,
    pub(super) link: &'a Link,
    pub(super) unit: &'a Arc<Unit>,
    pub(super) cdb: &'a [u8; 16],
}

impl Call<'_> {
    pub(super) fn get16(&self, at: usize) -> u16 {
        super::get16(self.cdb, at)
    }

    pub(super) fn get32(&self, at: usize) -> u32 {
        super::get32(self.cdb, at)
    }

    pub(super) fn get64(&self, at: usize) -> u64 {
        super::get64(self.cdb, at)
    }

    /// Whether nothing may be written: by this nexus, or by anybody.
    pub(super) fn is_protected(&self) -> bool {
        !self.nexus.writable
            || !self.unit.caps.writable
            || self.unit.protected.load(Ordering::Relaxed)
    }

    /// Work that needs `data_out_bytes` of data.
    pub(super) fn work(
        &self,
        data_out_bytes: u32,
        job: impl FnMut(&[u8]) -> Result<Vec<u8>, Fault> + Send + 'static,
    ) -> Plan {
        self.work_of(Length::AtLeast, data_out_bytes, job)
    }

    /// Work for which another amount of data means something else.
    pub(super) fn work_of(
        &self,
        length: Length,
        data_out_bytes: u32,
        job: impl FnMut(&[u8]) -> Result<Vec<u8>, Fault> + Send + 'static,
    ) -> Plan {
        let work = Work { length, job: Box::new(job), unit: self.unit.clone() };
        Plan::Work { data_out_bytes, work }
    }

    /// GOOD, and nothing else.
    pub(super) fn good() -> Answer {
        Ok(Plan::Done(Outcome::good(Vec::new())))
    }
}

/// What a command needs of a unit that somebody has reserved (SPC-4, 5.9.1; SBC-3, 4.20).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// Nothing: it goes past reservations.
    Nothing,
    /// It reads: only an exclusive access reservation is in its way.
    Reading,
    /// It changes something, or holds others up.
    Writing,
}

/// A command.
pub(super) struct Command {
    pub(super) opcode: u8,
    /// The service action in the low bits of byte 1, for operation codes that have some.
    pub(super) action: Option<u8>,
    /// The bits of the CDB that mean something, but for the operation code; its length is the CDB's.
    pub(super) usage: &'static [u8],
    needs: Needs,
    /// It is refused where nothing may be written.
    writes: bool,
    run: fn(&Call<'_>) -> Answer,
}

const fn command(
    opcode: u8,
    usage: &'static [u8],
    needs: Needs,
    run: fn(&Call<'_>) -> Answer,
) -> Command {
    Command { opcode, action: None, usage, needs, writes: false, run }
}

const fn writing(opcode: u8, usage: &'static [u8], run: fn(&Call<'_>) -> Answer) -> Command {
    Command { opcode, action: None, usage, needs: Needs::Writing, writes: true, run }
}

const fn service(
    opcode: u8,
    action: u8,
    usage: &'static [u8],
    needs: Needs,
    run: fn(&Call<'_>) -> Answer,
) -> Command {
    Command { opcode, action: Some(action), usage, needs, writes: false, run }
}

const ALL: u8 = 0xff;
/// The usage of a CDB of 6 bytes with a short address.
const SIX: &[u8] = &[0x1f, ALL, ALL, ALL, 0];
const TEN: &[u8] = &[0x18, ALL, ALL, ALL, ALL, 0, ALL, ALL, 0];
const TWELVE: &[u8] = &[0x18, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, 0, 0];
const SIXTEEN: &[u8] = &[0x18, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, 0, 0];
const VERIFY10: &[u8] = &[0x16, ALL, ALL, ALL, ALL, 0, ALL, ALL, 0];
const VERIFY12: &[u8] = &[0x16, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, 0, 0];
const VERIFY16: &[u8] = &[0x16, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, 0, 0];
const SYNC10: &[u8] = &[0x02, ALL, ALL, ALL, ALL, 0, ALL, ALL, 0];
const SYNC16: &[u8] = &[0x02, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, 0, 0];
/// A service action and a length in bytes 6 to 9 or 10 to 13.
const PR_IN: &[u8] = &[0x1f, 0, 0, 0, 0, 0, ALL, ALL, 0];
const PR_OUT: &[u8] = &[0x1f, ALL, 0, 0, ALL, ALL, ALL, ALL, 0];
const IN16: &[u8] = &[0x1f, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, 0, 0];
const MAINTENANCE: &[u8] = &[0x1f, 0, 0, 0, 0, ALL, ALL, ALL, ALL, 0, 0];

/// All commands, by operation code and service action.
pub(super) static COMMANDS: &[Command] = &[
    command(0x00, &[0, 0, 0, 0, 0], Needs::Nothing, |_| Call::good()),
    command(0x03, &[0x01, 0, 0, ALL, 0], Needs::Nothing, report::request_sense),
    command(0x08, SIX, Needs::Reading, io::read6),
    writing(0x0a, SIX, io::write6),
    command(0x12, &[0x01, ALL, ALL, ALL, 0], Needs::Nothing, inquiry::inquiry),
    command(0x15, &[0x11, 0, 0, ALL, 0], Needs::Writing, mode::select6),
    command(0x16, &[0, 0, 0, 0, 0], Needs::Nothing, reserve::reserve6),
    command(0x17, &[0, 0, 0, 0, 0], Needs::Nothing, reserve::release6),
    command(0x1a, &[0x08, ALL, ALL, ALL, 0], Needs::Reading, mode::sense6),
    command(0x1b, &[0x01, 0, 0x0f, 0xf7, 0], Needs::Reading, report::start_stop),
    command(0x25, &[0, ALL, ALL, ALL, ALL, 0, 0, 0, 0], Needs::Nothing, capacity::read10),
    command(0x28, TEN, Needs::Reading, io::read10),
    writing(0x2a, TEN, io::write10),
    writing(0x2e, VERIFY10, io::write_verify10),
    command(0x2f, VERIFY10, Needs::Reading, io::verify10),
    command(0x34, SYNC10, Needs::Reading, io::prefetch10),
    command(0x35, SYNC10, Needs::Writing, io::synchronize10),
    writing(0x41, &[0x18, ALL, ALL, ALL, ALL, 0, ALL, ALL, 0], change::write_same10),
    writing(0x42, &[0x01, 0, 0, 0, 0, 0, ALL, ALL, 0], change::unmap),
    command(0x55, &[0x11, 0, 0, 0, 0, 0, ALL, ALL, 0], Needs::Writing, mode::select10),
    command(0x37, &[0, 0x1f, 0, 0, 0, 0, ALL, ALL, 0], Needs::Reading, report::defects10),
    command(0x5a, &[0x18, ALL, ALL, 0, 0, 0, ALL, ALL, 0], Needs::Reading, mode::sense10),
    service(0x5e, 0x00, PR_IN, Needs::Nothing, reserve::read_keys),
    service(0x5e, 0x01, PR_IN, Needs::Nothing, reserve::read_reservation),
    service(0x5e, 0x02, PR_IN, Needs::Nothing, reserve::report_capabilities),
    service(0x5e, 0x03, PR_IN, Needs::Nothing, reserve::read_full_status),
    service(0x5f, 0x00, PR_OUT, Needs::Nothing, reserve::change),
    service(0x5f, 0x01, PR_OUT, Needs::Nothing, reserve::change),
    service(0x5f, 0x02, PR_OUT, Needs::Nothing, reserve::change),
    service(0x5f, 0x03, PR_OUT, Needs::Nothing, reserve::change),
    service(0x5f, 0x04, PR_OUT, Needs::Nothing, reserve::change),
    service(0x5f, 0x05, PR_OUT, Needs::Nothing, reserve::change),
    service(0x5f, 0x06, PR_OUT, Needs::Nothing, reserve::change),
    service(0x5f, 0x07, PR_OUT, Needs::Nothing, reserve::change),
    command(0x88, SIXTEEN, Needs::Reading, io::read16),
    writing(
        0x89,
        &[0x18, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, 0, 0, 0, ALL, 0, 0],
        change::compare_and_write,
    ),
    writing(0x8a, SIXTEEN, io::write16),
    writing(0x8b, SIXTEEN, change::or_write),
    writing(0x8e, VERIFY16, io::write_verify16),
    command(0x8f, VERIFY16, Needs::Reading, io::verify16),
    command(0x90, SYNC16, Needs::Reading, io::prefetch16),
    command(0x91, SYNC16, Needs::Writing, io::synchronize16),
    writing(
        0x93,
        &[0x19, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, 0, 0],
        change::write_same16,
    ),
    service(0x9e, 0x10, IN16, Needs::Nothing, capacity::read16),
    service(0x9e, 0x12, IN16, Needs::Reading, capacity::lba_status),
    command(0xa0, &[0, ALL, 0, 0, 0, ALL, ALL, ALL, ALL, 0, 0], Needs::Nothing, |call| {
        report::luns(&call.nexus.device, call.cdb)
    }),
    service(
        0xa3,
        0x0a,
        &[0xff, 0, 0, 0, 0, ALL, ALL, ALL, ALL, 0, 0],
        Needs::Nothing,
        report::target_port_groups,
    ),
    service(
        0xa3,
        0x0c,
        &[0x1f, 0x87, ALL, ALL, ALL, ALL, ALL, ALL, ALL, 0, 0],
        Needs::Nothing,
        report::supported_opcodes,
    ),
    service(0xa3, 0x0d, MAINTENANCE, Needs::Nothing, report::supported_functions),
    command(0xa8, TWELVE, Needs::Reading, io::read12),
    writing(0xaa, TWELVE, io::write12),
    command(
        0xb7,
        &[0x1f, ALL, ALL, ALL, ALL, ALL, ALL, ALL, ALL, 0, 0],
        Needs::Reading,
        report::defects12,
    ),
    writing(0xae, VERIFY12, io::write_verify12),
    command(0xaf, VERIFY12, Needs::Reading, io::verify12),
];

/// Where the commands of an operation code begin in [`COMMANDS`]; 255 for none.
const FIRST: [u8; 256] = {
    let mut first = [255; 256];
    let mut at = COMMANDS.len();
    while at > 0 {
        at -= 1;
        first[COMMANDS[at].opcode as usize] = at as u8;
    }
    first
};

/// Whether there is a command of this operation code, whatever its service action.
pub(super) fn has_opcode(opcode: u8) -> bool {
    FIRST[usize::from(opcode)] != 255
}

/// The command of an operation code and, where it has some, of a service action.
pub(super) fn find(opcode: u8, action: u8) -> Option<&'static Command> {
    let first = usize::from(FIRST[usize::from(opcode)]);
    let same = COMMANDS.get(first..)?.iter().take_while(|command| command.opcode == opcode);
    same.into_iter().find(|command| command.action.is_none_or(|own| own == action))
}

/// Understands and checks a command for a unit that is there.
pub(super) fn start(call: &Call<'_>) -> Answer {
    let opcode = call.cdb[0];
    let Some(command) = find(opcode, call.cdb[1] & 0x1f) else {
        // An unknown service action is a wrong field; an unknown operation code is none at all.
        let sense = if has_opcode(opcode) { Sense::cdb_bit(1, 4) } else { Sense::opcode() };
        return Err(sense.into());
    };
    // INQUIRY, REPORT LUNS and REQUEST SENSE go past unit attentions (SAM-5, 5.14.1).
    if !matches!(opcode, 0x03 | 0x12 | 0xa0)
        && let Some(sense) = call.link.attention.take()
    {
        return Err(sense.into());
    }
    if !call.unit.reservations.lets(call, command.needs) {
        return Err(Fault::Conflict);
    }
    if command.writes && call.is_protected() {
        return Err(Sense::protected().into());
    }
    // NACA in the control byte: there is no auto contingent allegiance.
    if call.cdb[command.usage.len()] & 0x04 != 0 {
        return Err(Sense::cdb_bit(command.usage.len() as u16, 2).into());
    }
    (command.run)(call)
}
