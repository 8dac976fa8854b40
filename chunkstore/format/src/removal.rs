//! Removals and pins: which recovery points shall go, and which must stay.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::limits::{NAME_MAX, RECORD_PAYLOAD_MAX};
use crate::record::{Record, check_text};
use crate::{FormatError, PinId, PointId, magic};

/// Says that a recovery point is removed. From then on nobody lists or opens it; a collection
/// takes its chunks, and the record last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    /// The point.
    pub point: PointId,
    /// Its machine, for people.
    pub machine: String,
    /// Who removed it.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When, by their clock.
    pub time: Timestamp,
}

impl Record for Removal {
    const MAGIC: [u8; 8] = magic::REMOVAL;
    const WHAT: &'static str = "removal";
    const PAYLOAD_MAX: u32 = RECORD_PAYLOAD_MAX;

    fn check(&self) -> Result<(), FormatError> {
        if self.machine.len() > NAME_MAX {
            return Err(FormatError::invalid("machine", "the name is too long"));
        }
        check_text("machine", &self.machine)?;
        check_text("by", &self.by)?;
        check_text("reason", &self.reason)
    }
}

/// Keeps a recovery point until the pin is taken away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The pin's id; also its object name.
    pub id: PinId,
    /// The point.
    pub point: PointId,
    /// Who pinned it.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When, by their clock.
    pub time: Timestamp,
}

impl Record for Pin {
    const MAGIC: [u8; 8] = magic::PIN;
    const WHAT: &'static str = "pin";
    const PAYLOAD_MAX: u32 = RECORD_PAYLOAD_MAX;

    fn check(&self) -> Result<(), FormatError> {
        check_text("by", &self.by)?;
        check_text("reason", &self.reason)
    }
}
