//! A SCSI device whose logical units are block devices.
//!
//! A [`Device`] has logical units; an initiator port reaches them through a [`Nexus`]. A command comes as a CDB, and
//! [`Nexus::start`] says what is to be done: nothing more, read, or work that may need data and may block. Whoever carries
//! commands does that, and carries the [`Outcome`] back.
//!
//! The commands are those of `table`; one that is not there is refused.

mod attention;
mod capacity;
mod change;
mod device;
mod inquiry;
mod io;
mod mode;
mod padded;
mod report;
mod reserve;
mod sense;
mod table;
mod task;
mod unit;

use std::fmt;
use std::io::Result as IoResult;
use std::sync::Arc;

use backstay_blockdev::{BlockDevice, ErrorKind};

pub use device::{Device, DeviceSpec, Function, Managed, Nexus};
pub use reserve::outlives_power_loss;
use sense::{Key, Sense};
pub use task::{Aborted, Task, TaskSet};

use crate::server::UnitSpec;

/// Bytes of a logical block.
pub const BLOCK_BYTES: u32 = 512;

/// What a logical unit is called. All names are the same over all paths and for as long as the unit is the same disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The serial number (VPD page 80h): 1 to 36 printable ASCII characters, no spaces.
    pub serial: String,
    /// The NAA designator (VPD page 83h). Its first half-byte says which: 6 (IEEE Registered Extended) takes all 16 bytes,
    /// 3 (locally assigned) the first 8.
    pub naa: [u8; 16],
    /// The product name (standard INQUIRY): at most 16 printable ASCII characters.
    pub product: String,
}

/// Where persistent reservations of a unit are kept.
pub trait Keeper: Send + Sync + fmt::Debug {
    /// What was saved last; `None` if nothing was.
    fn load(&self) -> IoResult<Option<Vec<u8>>>;

    /// Makes `state` durable in the place of what was saved before, or fails and leaves that.
    fn save(&self, state: &[u8]) -> IoResult<()>;
}

/// The port by which initiators reach a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetPort {
    /// The target's iSCSI name.
    pub name: String,
}

/// An initiator's port: it stays the same when its session is lost and made anew.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InitiatorPort {
    /// The initiator's iSCSI name.
    pub name: String,
    /// Its part of the session's name.
    pub isid: [u8; 6],
}

/// Status codes (SAM-5, 5.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// All is well.
    Good = 0x00,
    /// The sense data says what is not.
    CheckCondition = 0x02,
    /// Somebody else has reserved the unit.
    ReservationConflict = 0x18,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Its status.
    pub status: Status,
    /// Sense data, with CHECK CONDITION.
    pub sense: Option<Vec<u8>>,
    /// Data for the initiator, no longer than the command allows.
    pub data: Vec<u8>,
}

impl Outcome {
    fn good(data: Vec<u8>) -> Self {
        Self { status: Status::Good, sense: None, data }
    }

    fn failed(sense: &Sense, descriptors: bool) -> Self {
        let sense = Some(sense.encode(descriptors));
        Self { status: Status::CheckCondition, sense, data: Vec::new() }
    }

    /// A device's error.
    pub fn of_error(error: &backstay_blockdev::Error) -> Self {
        Self::failed(&sense_of(error), false)
    }

    /// The target could not do it, for no reason of the initiator's.
    pub fn internal_failure() -> Self {
        Self::failed(&Sense::new(Key::Hardware, (0x44, 0x00)), false)
    }

    /// There is no such command.
    pub fn invalid_opcode() -> Self {
        Self::failed(&Sense::opcode(), false)
    }

    /// Data came that nobody asked for (RFC 7143, 11.4.7.2).
    pub fn unexpected_data() -> Self {
        Self::failed(&Sense::new(Key::AbortedCommand, (0x0c, 0x0c)), false)
    }

    /// The initiator has another amount of data than the command wants.
    pub fn wrong_length() -> Self {
        Self::failed(&Sense::cdb(0), false)
    }

    /// INVALID FIELD IN COMMAND INFORMATION UNIT: the initiator has no whole blocks.
    pub fn broken_block() -> Self {
        Self::failed(&Sense::illegal((0x0e, 0x03)), false)
    }

    /// Less or other data came than was asked for (RFC 7143, 11.4.7.2).
    pub fn wrong_amount_of_data() -> Self {
        Self::failed(&Sense::new(Key::AbortedCommand, (0x0c, 0x0d)), false)
    }
}

/// The sense of a device's error. The one place of this mapping.
fn sense_of(error: &backstay_blockdev::Error) -> Sense {
    match error.kind() {
        ErrorKind::OutOfRange => Sense::range(),
        ErrorKind::ReadOnly => Sense::protected(),
        ErrorKind::Unsupported => Sense::opcode(),
        // SPACE ALLOCATION FAILED WRITE PROTECT: what thin disks say when they are full.
        ErrorKind::NoSpace | ErrorKind::Paused => Sense::new(Key::DataProtect, (0x27, 0x07)),
        // UNRECOVERED READ ERROR: trying again does not help, and initiators do not.
        ErrorKind::Damaged => Sense::new(Key::Medium, (0x11, 0x00)),
        // Trying again may help, and that is what initiators do after ABORTED COMMAND. (INTERNAL TARGET FAILURE.)
        _ => Sense::new(Key::AbortedCommand, (0x44, 0x00)),
    }
}

/// What is to be done for a command.
#[derive(Debug)]
pub enum Plan {
    /// Nothing more.
    Done(Outcome),
    /// Read `len_bytes` from `offset_bytes`, within the device; the status is GOOD if that goes well, and
    /// [`Outcome::of_error`] if not.
    Read {
        /// From where.
        device: Arc<dyn BlockDevice>,
        /// In bytes from its start.
        offset_bytes: u64,
        /// At most 8 MiB.
        len_bytes: u32,
    },
    /// Work on a thread that may block.
    Work {
        /// How much data the initiator has to send first.
        data_out_bytes: u32,
        /// The work.
        work: Work,
    },
}

/// What keeps a command from going well.
#[derive(Debug)]
enum Fault {
    Sense(Sense),
    Conflict,
    /// The device will take it later.
    Later,
}

impl From<Sense> for Fault {
    fn from(sense: Sense) -> Self {
        Self::Sense(sense)
    }
}

impl From<backstay_blockdev::Error> for Fault {
    fn from(error: backstay_blockdev::Error) -> Self {
        match error.kind() {
            ErrorKind::Paused => Self::Later,
            _ => {
                tracing::warn!(%error, "a command failed");
                Self::Sense(sense_of(&error))
            }
        }
    }
}

type Job = Box<dyn FnMut(&[u8]) -> Result<Vec<u8>, Fault> + Send>;

/// What holds where an initiator has less data, or more, than a command wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// Less is an error; more is not taken. So for parameter lists.
    AtLeast,
    /// Both are errors. So for commands whose data has parts.
    Exact,
    /// Whole blocks of less are written, and the residual tells of the rest. So for plain writes.
    AtMost,
}

/// Work of a command, which may block.
pub struct Work {
    length: Length,
    job: Job,
    unit: Arc<unit::Unit>,
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").finish_non_exhaustive()
    }
}

/// What became of work.
#[derive(Debug)]
pub enum Ran {
    /// It is done.
    Done(Outcome),
    /// The device takes no writes now ([`ErrorKind::Paused`]); nothing was done: run it again later, with the same data.
    Later,
}

impl Work {
    /// What is to be done with another amount of data than the plan says.
    pub fn length(&self) -> Length {
        self.length
    }

    /// Does it, with the data that the initiator sent: as much as the plan said, or with [`Length::AtMost`] whole blocks of
    /// less.
    pub fn run(&mut self, data: &[u8]) -> Ran {
        match (self.job)(data) {
            Ok(data) => Ran::Done(Outcome::good(data)),
            Err(fault) => self.unit.outcome(&fault).map_or(Ran::Later, Ran::Done),
        }
    }
}

fn get16(from: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([from[at], from[at + 1]])
}

fn get32(from: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([from[at], from[at + 1], from[at + 2], from[at + 3]])
}

fn get64(from: &[u8], at: usize) -> u64 {
    u64::from(get32(from, at)) << 32 | u64::from(get32(from, at + 4))
}

/// Data cut to the length that the CDB allows.
fn cut(mut data: Vec<u8>, allocation: usize) -> Plan {
    data.truncate(allocation);
    Plan::Done(Outcome::good(data))
}
