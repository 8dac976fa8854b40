//! The state of a unit's persistent reservations, and how it is kept.

use super::super::InitiatorPort;
use super::super::table::Needs;

/// Registrations of one unit.
pub(super) const MAX_REGISTRANTS: usize = 256;
/// How kept states begin.
const MAGIC: &[u8; 4] = b"BPR1";

/// Types of reservations (SPC-4, table 64).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    WriteExclusive = 1,
    ExclusiveAccess = 3,
    WriteExclusiveRegistrants = 5,
    ExclusiveAccessRegistrants = 6,
    WriteExclusiveAll = 7,
    ExclusiveAccessAll = 8,
}

impl Kind {
    pub(super) fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::WriteExclusive,
            3 => Self::ExclusiveAccess,
            5 => Self::WriteExclusiveRegistrants,
            6 => Self::ExclusiveAccessRegistrants,
            7 => Self::WriteExclusiveAll,
            8 => Self::ExclusiveAccessAll,
            _ => return None,
        })
    }

    /// All registrants hold it.
    pub(super) fn is_of_all(self) -> bool {
        matches!(self, Self::WriteExclusiveAll | Self::ExclusiveAccessAll)
    }

    /// Only one has access, registered or not.
    pub(super) fn is_alone(self) -> bool {
        matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    fn lets_read(self) -> bool {
        matches!(
            self,
            Self::WriteExclusive | Self::WriteExclusiveRegistrants | Self::WriteExclusiveAll
        )
    }
}

/// A registered initiator port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Registrant {
    pub(super) port: InitiatorPort,
    pub(super) key: u64,
}

/// A reservation. `holder` means nothing where all hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reservation {
    pub(super) kind: Kind,
    pub(super) holder: InitiatorPort,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) generation: u32,
    pub(super) registrants: Vec<Registrant>,
    pub(super) reservation: Option<Reservation>,
    /// APTPL of the last registration.
    pub(super) through_power_loss: bool,
}

/// Whether a state that a [`super::super::Keeper`] was given is to outlive a loss of the target's power (APTPL). A keeper may
/// forget any other when the machine was restarted. `false` for what is no state.
pub fn outlives_power_loss(kept: &[u8]) -> bool {
    State::decode(kept).is_some_and(|state| state.through_power_loss)
}

impl State {
    pub(super) fn is_empty(&self) -> bool {
        self.registrants.is_empty()
    }

    pub(super) fn key_of(&self, port: &InitiatorPort) -> Option<u64> {
        self.registrants.iter().find(|r| r.port == *port).map(|r| r.key)
    }

    pub(super) fn kind(&self) -> Option<Kind> {
        self.reservation.as_ref().map(|reservation| reservation.kind)
    }

    /// Whether a registered port holds the reservation.
    pub(super) fn is_held_by(&self, port: &InitiatorPort) -> bool {
        self.reservation.as_ref().is_some_and(|reservation| match reservation.kind.is_of_all() {
            true => self.key_of(port).is_some(),
            false => reservation.holder == *port,
        })
    }

    /// The key of the holder; 0 where all hold it.
    pub(super) fn holders_key(&self) -> u64 {
        match &self.reservation {
            Some(r) if !r.kind.is_of_all() => self.key_of(&r.holder).unwrap_or(0),
            _ => 0,
        }
    }

    /// Whether a command of `port` with these needs may go on (SPC-4, table 66; SBC-3, table 13).
    pub(super) fn lets(&self, port: &InitiatorPort, needs: Needs) -> bool {
        let Some(reservation) = &self.reservation else { return true };
        let registered = self.key_of(port).is_some();
        needs == Needs::Nothing
            || self.is_held_by(port)
            || (registered && !reservation.kind.is_alone())
            || (needs == Needs::Reading && reservation.kind.lets_read())
    }

    /// The state as it is kept. The byte behind the sign is 1 if it is to be kept through a loss of power.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.push(self.through_power_loss.into());
        bytes.extend(self.generation.to_be_bytes());
        let (kind, holder) = match &self.reservation {
            None => (0, u16::MAX),
            Some(r) => {
                let at = self.registrants.iter().position(|other| other.port == r.holder);
                (r.kind as u8, at.map_or(u16::MAX, |at| at as u16))
            }
        };
        bytes.push(kind);
        bytes.extend(holder.to_be_bytes());
        bytes.extend((self.registrants.len() as u16).to_be_bytes());
        for Registrant { port, key } in &self.registrants {
            bytes.extend(key.to_be_bytes());
            bytes.extend(port.isid);
            bytes.push(port.name.len() as u8);
            bytes.extend(port.name.as_bytes());
        }
        bytes
    }

    /// A state that was kept; `None` if it is none.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut from = bytes.strip_prefix(MAGIC)?;
        let mut take = |n: usize| {
            let (head, rest) = from.split_at_checked(n)?;
            from = rest;
            Some(head)
        };
        let through_power_loss = take(1)?[0] != 0;
        let generation = u32::from_be_bytes(take(4)?.try_into().ok()?);
        let kind = take(1)?[0];
        let holder = u16::from_be_bytes(take(2)?.try_into().ok()?);
        let count = u16::from_be_bytes(take(2)?.try_into().ok()?);
        if usize::from(count) > MAX_REGISTRANTS {
            return None;
        }
        let mut registrants = Vec::new();
        for _ in 0..count {
            let key = u64::from_be_bytes(take(8)?.try_into().ok()?);
            let isid = take(6)?.try_into().ok()?;
            let len = take(1)?[0];
            let name = String::from_utf8(take(len.into())?.to_vec()).ok()?;
            registrants.push(Registrant { port: InitiatorPort { name, isid }, key });
        }
        if !from.is_empty() {
            return None;
        }
        let reservation = match kind {
            0 => None,
            code => {
                let kind = Kind::from_code(code)?;
                let holder: &Registrant = match registrants.get(usize::from(holder)) {
                    Some(holder) => holder,
                    None if kind.is_of_all() => registrants.first()?,
                    None => return None,
                };
                Some(Reservation { kind, holder: holder.port.clone() })
            }
        };
        Some(Self { generation, registrants, reservation, through_power_loss })
    }
}
