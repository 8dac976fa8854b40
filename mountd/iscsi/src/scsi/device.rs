//! The device: its units, the ways to them, and task management.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::attention::{Attention, COMMANDS_CLEARED, RESET, UNIT_RESET};
use super::sense::Sense;
use super::table::{self, Call};
use super::task::{Task, TaskSet};
use super::unit::Unit;
use super::{Fault, InitiatorPort, Outcome, Plan, TargetPort, UnitSpec};
use crate::error::{Error, ErrorKind};
use crate::proto::pdu::FunctionResponse;

/// Units of one device.
const MAX_UNITS: usize = 256;
/// The highest number of a unit: what flat space addressing holds (SAM-5, 4.7.7.5).
const MAX_LUN: u16 = 0x3fff;

/// What a device is made of.
#[derive(Debug)]
pub struct DeviceSpec {
    /// Its port.
    pub port: TargetPort,
    /// Its units.
    pub units: Vec<UnitSpec>,
}

/// A SCSI device.
#[derive(Debug)]
pub struct Device {
    pub(super) port: TargetPort,
    /// By their numbers.
    pub(super) units: Vec<Arc<Unit>>,
    nexuses: AtomicU64,
}

/// Task management functions (RFC 7143, 11.5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// One task.
    AbortTask,
    /// All tasks of the nexus in a unit.
    AbortTaskSet,
    /// Not needed: there is no auto contingent allegiance.
    ClearAca,
    /// All tasks in a unit.
    ClearTaskSet,
    /// A unit as new, but for what it holds.
    LunReset,
    /// All units.
    TargetWarmReset,
    /// All units, and all sessions end.
    TargetColdReset,
    /// Is the task there?
    QueryTask,
    /// Is any task of the nexus in the unit?
    QueryTaskSet,
    /// Is there a unit attention?
    QueryAsyncEvent,
    /// Other paths' tasks.
    TaskReassign,
    /// The nexus as new.
    NexusReset,
}

impl Function {
    /// By its code.
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::AbortTask,
            2 => Self::AbortTaskSet,
            3 => Self::ClearAca,
            4 => Self::ClearTaskSet,
            5 => Self::LunReset,
            6 => Self::TargetWarmReset,
            7 => Self::TargetColdReset,
            8 => Self::TaskReassign,
            9 => Self::QueryTask,
            10 => Self::QueryTaskSet,
            11 => Self::NexusReset,
            12 => Self::QueryAsyncEvent,
            _ => return None,
        })
    }
}

/// What task management has done.
#[derive(Debug)]
pub struct Managed {
    /// What is to be answered.
    pub response: FunctionResponse,
    /// Once all of these have ended ([`Task::ended`]).
    pub running: Vec<Arc<Task>>,
}

impl Managed {
    fn answer(response: FunctionResponse) -> Self {
        Self { response, running: Vec::new() }
    }
}

impl Device {
    /// A device of these units.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if there are none or too many, two of one number, or one that cannot be.
    pub fn new(spec: DeviceSpec) -> Result<Arc<Self>, Error> {
        let DeviceSpec { port, units } = spec;
        let invalid = |why: &str| Err(Error::new(ErrorKind::Invalid, why));
        if units.is_empty() || units.len() > MAX_UNITS {
            return invalid("a target has 1 to 256 units");
        }
        if units.iter().any(|unit| unit.lun > MAX_LUN) {
            return invalid("a unit's number is at most 16383");
        }
        let mut units = units
            .into_iter()
            .map(|unit| Unit::new(unit).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        units.sort_by_key(|unit| unit.lun);
        if units.windows(2).any(|pair| pair[0].lun == pair[1].lun) {
            return invalid("two units have one number");
        }
        Ok(Arc::new(Self { port, units, nexuses: AtomicU64::new(0) }))
    }

    /// A new way from an initiator port to the units; with `writable` false they are write protected on it. The first
    /// command of each unit is told of a reset, as after power on.
    pub fn attach(self: &Arc<Self>, port: InitiatorPort, writable: bool) -> Nexus {
        let id = self.nexuses.fetch_add(1, Ordering::Relaxed);
        let link = |unit: &Arc<Unit>| {
            let attention = Arc::<Attention>::default();
            attention.raise(RESET);
            unit.join(id, port.clone(), &attention);
            Link { unit: unit.clone(), attention }
        };
        let links = self.units.iter().map(link).collect();
        Nexus { id, port, writable, device: self.clone(), links }
    }

    /// Manages the tasks of a unit, or of all.
    pub fn manage(&self, nexus: &Nexus, function: Function, lun: u64, tag: u32) -> Managed {
        use FunctionResponse as Answer;
        match function {
            Function::TargetWarmReset | Function::TargetColdReset => {
                let mut running = Vec::new();
                for unit in &self.units {
                    running.extend(reset(unit, RESET));
                }
                return Managed { response: Answer::Complete, running };
            }
            Function::TaskReassign => return Managed::answer(Answer::NoReassignment),
            Function::ClearAca | Function::NexusReset => {
                return Managed::answer(Answer::Unsupported);
            }
            _ => {}
        }
        let Some(unit) = nexus.link(lun).map(|link| &link.unit) else {
            return Managed::answer(Answer::NoLun);
        };
        let own = |other: u64, _: u32| other == nexus.id;
        match function {
            Function::AbortTask if !unit.tasks.contains(nexus.id, tag) => {
                Managed::answer(Answer::NoTask)
            }
            Function::AbortTask => {
                let aborted = unit.tasks.abort(|other, t| other == nexus.id && t == tag);
                Managed { response: Answer::Complete, running: aborted.running }
            }
            Function::AbortTaskSet => {
                let aborted = unit.tasks.abort(own);
                Managed { response: Answer::Complete, running: aborted.running }
            }
            Function::ClearTaskSet => {
                let aborted = unit.tasks.abort(|_, _| true);
                let hit = |id: u64| id != nexus.id && aborted.nexuses.contains(&id);
                unit.raise(COMMANDS_CLEARED, |id, _| hit(id));
                Managed { response: Answer::Complete, running: aborted.running }
            }
            Function::LunReset => {
                Managed { response: Answer::Complete, running: reset(unit, UNIT_RESET) }
            }
            Function::QueryTask if unit.tasks.contains(nexus.id, tag) => {
                Managed::answer(Answer::Complete)
            }
            Function::QueryTask => Managed::answer(Answer::NoTask),
            _ => Managed::answer(Answer::Unsupported),
        }
    }
}

/// A reset of a unit (SAM-5, 6.3.3): its tasks are gone, what SPC-2's RESERVE held is free, its modes are as at first. All
/// nexuses are told. Persistent reservations stay.
fn reset(unit: &Unit, code: super::sense::Code) -> Vec<Arc<Task>> {
    let aborted = unit.tasks.abort(|_, _| true);
    unit.reservations.release_all();
    unit.protected.store(false, Ordering::Relaxed);
    unit.descriptors.store(false, Ordering::Relaxed);
    unit.raise(code, |_, _| true);
    aborted.running
}

/// One nexus and one unit.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) unit: Arc<Unit>,
    pub(super) attention: Arc<Attention>,
}

/// An initiator port's way to a device's units.
#[derive(Debug)]
pub struct Nexus {
    id: u64,
    pub(super) port: InitiatorPort,
    pub(super) writable: bool,
    pub(super) device: Arc<Device>,
    links: Vec<Link>,
}

impl Drop for Nexus {
    fn drop(&mut self) {
        for link in &self.links {
            link.unit.leave(self.id);
        }
    }
}

impl Nexus {
    /// Its number, by which its tasks are known.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The tasks of a unit; `None` if there is no such unit.
    pub fn tasks(&self, lun: u64) -> Option<&Arc<TaskSet>> {
        self.link(lun).map(|link| &link.unit.tasks)
    }

    /// Understands and checks a command. Never blocks.
    pub fn start(&self, lun: u64, cdb: &[u8; 16]) -> Plan {
        let link = self.link(lun);
        let planned = match link {
            Some(link) => table::start(&Call { nexus: self, link, unit: &link.unit, cdb }),
            None => super::report::start_without_unit(&self.device, cdb),
        };
        planned.unwrap_or_else(|fault| {
            let told = link.and_then(|link| link.unit.outcome(&fault));
            Plan::Done(told.unwrap_or_else(|| match &fault {
                Fault::Sense(sense) => Outcome::failed(sense, false),
                _ => Outcome::internal_failure(),
            }))
        })
    }

    fn link(&self, lun: u64) -> Option<&Link> {
        let number = number_of(lun)?;
        let at = self.links.binary_search_by_key(&number, |link| link.unit.lun).ok()?;
        self.links.get(at)
    }
}

/// A unit's number from the eight bytes of its address (SAM-5, 4.7.7): peripheral or flat, one level.
fn number_of(lun: u64) -> Option<u16> {
    let [first, second, rest @ ..] = lun.to_be_bytes();
    if rest != [0; 6] {
        return None;
    }
    match first >> 6 {
        0b00 if first == 0 => Some(second.into()),
        0b01 => Some(u16::from_be_bytes([first & 0x3f, second])),
        _ => None,
    }
}

/// The address of a unit.
pub(super) fn address_of(number: u16) -> [u8; 8] {
    let [high, low] = number.to_be_bytes();
    let first = if number > 255 { 0x40 | high } else { 0 };
    [first, low, 0, 0, 0, 0, 0, 0]
}

/// LOGICAL UNIT NOT SUPPORTED.
pub(super) const NO_UNIT: Sense = Sense::illegal((0x25, 0x00));
