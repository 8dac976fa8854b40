//! A logical unit: what all nexuses share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use backstay_blockdev::{BlockDevice, Caps};
use parking_lot::{Mutex, RwLock};

use super::attention::Attention;
use super::padded::Padded;
use super::reserve::Reservations;
use super::sense::Code;
use super::task::TaskSet;
use super::{BLOCK_BYTES, Fault, Identity, InitiatorPort, Outcome, Status, UnitSpec};
use crate::error::{Error, ErrorKind};

/// A nexus, as a unit knows it.
#[derive(Debug)]
struct Known {
    nexus: u64,
    port: InitiatorPort,
    attention: Weak<Attention>,
}

/// A logical unit.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) lun: u16,
    pub(super) device: Arc<dyn BlockDevice>,
    pub(super) caps: Caps,
    pub(super) blocks: u64,
    /// A physical block is 2 to the power of this logical ones.
    pub(super) physical_exponent: u8,
    pub(super) identity: Identity,
    pub(super) tasks: Arc<TaskSet>,
    /// Held to write what was compared or merged first, and shared by all other writes.
    pub(super) writes: RwLock<()>,
    /// Software write protection, and the format of sense (control mode page).
    pub(super) protected: AtomicBool,
    pub(super) descriptors: AtomicBool,
    pub(super) reservations: Reservations,
    nexuses: Mutex<Vec<Known>>,
}

impl Unit {
    pub(super) fn new(spec: UnitSpec) -> Result<Self, Error> {
        let UnitSpec { lun, device, identity, physical_block_bytes, keeper } = spec;
        let invalid = |why: &str| Error::new(ErrorKind::Invalid, format!("unit {lun}: {why}"));
        let printable = |text: &str| text.chars().all(|c| c.is_ascii_graphic() || c == ' ');
        let serial = &identity.serial;
        if serial.is_empty() || serial.len() > 36 || !serial.chars().all(|c| c.is_ascii_graphic()) {
            return Err(invalid("a serial number has 1 to 36 printable characters"));
        }
        if identity.product.len() > 16 || !printable(&identity.product) {
            return Err(invalid("a product name has at most 16 printable characters"));
        }
        if !matches!(identity.naa[0] >> 4, 3 | 6) {
            return Err(invalid("its NAA designator is of another kind than 3 and 6"));
        }
        if !physical_block_bytes.is_power_of_two() || physical_block_bytes < BLOCK_BYTES {
            return Err(invalid("a physical block is a power of two, at least 512 bytes"));
        }
        let device = Padded::wrap(device, BLOCK_BYTES.into());
        let blocks = device.geometry().size_bytes / u64::from(BLOCK_BYTES);
        if blocks == 0 {
            return Err(invalid("its device is empty"));
        }
        Ok(Self {
            lun,
            caps: device.caps(),
            device,
            blocks,
            physical_exponent: (physical_block_bytes / BLOCK_BYTES).ilog2() as u8,
            identity,
            tasks: Arc::default(),
            writes: RwLock::default(),
            protected: AtomicBool::new(false),
            descriptors: AtomicBool::new(false),
            reservations: Reservations::open(keeper, lun)?,
            nexuses: Mutex::default(),
        })
    }

    /// The outcome of a command that did not go well; `None` if it is to be run again.
    pub(super) fn outcome(&self, fault: &Fault) -> Option<Outcome> {
        match fault {
            Fault::Sense(sense) => {
                Some(Outcome::failed(sense, self.descriptors.load(Ordering::Relaxed)))
            }
            Fault::Conflict => {
                Some(Outcome { status: Status::ReservationConflict, sense: None, data: Vec::new() })
            }
            Fault::Later => None,
        }
    }

    /// Makes a nexus known, so that it is told what others do.
    pub(super) fn join(&self, nexus: u64, port: InitiatorPort, attention: &Arc<Attention>) {
        let attention = Arc::downgrade(attention);
        self.nexuses.lock().push(Known { nexus, port, attention });
    }

    /// A nexus is gone. What it had reserved by SPC-2's RESERVE is free.
    pub(super) fn leave(&self, nexus: u64) {
        self.nexuses.lock().retain(|known| known.nexus != nexus);
        self.reservations.forget_nexus(nexus);
    }

    /// Tells the nexuses that `which` picks.
    pub(super) fn raise(&self, code: Code, which: impl Fn(u64, &InitiatorPort) -> bool) {
        for known in self.nexuses.lock().iter().filter(|k| which(k.nexus, &k.port)) {
            if let Some(attention) = known.attention.upgrade() {
                attention.raise(code);
            }
        }
    }

    /// The nexuses of initiator ports that `which` picks.
    pub(super) fn nexuses_of(&self, which: impl Fn(&InitiatorPort) -> bool) -> Vec<u64> {
        let nexuses = self.nexuses.lock();
        nexuses.iter().filter(|known| which(&known.port)).map(|known| known.nexus).collect()
    }

    /// Whether a whole range lies in the unit; an empty one has to start in it.
    pub(super) fn holds(&self, lba: u64, count: u64) -> bool {
        match lba.checked_add(count) {
            Some(end) => end <= self.blocks && lba < self.blocks,
            None => false,
        }
    }

    /// Whether what is deallocated reads as zeros.
    pub(super) fn zeroes(&self) -> bool {
        !self.caps.writable || self.caps.write_zeroes
    }
}
