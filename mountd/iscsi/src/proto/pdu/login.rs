//! Logins (RFC 7143, 11.12 and 11.13).

use super::{BHS_BYTES, FINAL, IMMEDIATE, expect, get16, get32, header, opcode, put16, put32};
use crate::proto::{Malformed, Serial};

/// The continue bit.
const CONTINUE: u8 = 0x40;

/// A stage of the login (RFC 7143, 11.12.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// SecurityNegotiation.
    Security = 0,
    /// LoginOperationalNegotiation.
    Operational = 1,
    /// FullFeaturePhase.
    FullFeature = 3,
}

impl Stage {
    fn from_code(code: u8) -> Result<Self, Malformed> {
        match code & 0x03 {
            0 => Ok(Self::Security),
            1 => Ok(Self::Operational),
            3 => Ok(Self::FullFeature),
            code => Err(Malformed::new("no stage of a login", code)),
        }
    }
}

/// Login Request (RFC 7143, 11.12).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginRequest {
    /// The initiator is ready for the next stage.
    pub transit: bool,
    /// Its text goes on in the next PDU.
    pub continues: bool,
    /// The stage it is in.
    pub csg: Stage,
    /// The stage it wants to be in; means nothing without `transit`.
    pub nsg: Option<Stage>,
    /// The highest version it speaks.
    pub version_max: u8,
    /// The lowest.
    pub version_min: u8,
    /// The initiator's part of the session's name.
    pub isid: [u8; 6],
    /// The target's; 0 for a new session.
    pub tsih: u16,
    /// Its tag.
    pub initiator_task_tag: u32,
    /// The connection's number in the session.
    pub cid: u16,
    /// The number of the first command.
    pub cmd_sn: Serial,
    /// The status number the initiator expects next.
    pub exp_stat_sn: Serial,
}

impl LoginRequest {
    /// From a header.
    pub fn decode(from: &[u8; BHS_BYTES]) -> Result<Self, Malformed> {
        expect(from, opcode::LOGIN)?;
        let transit = from[1] & FINAL != 0;
        let continues = from[1] & CONTINUE != 0;
        if transit && continues {
            return Err(Malformed::new("a login that goes on and is over", from[1]));
        }
        let mut isid = [0; 6];
        isid.copy_from_slice(&from[8..14]);
        Ok(Self {
            transit,
            continues,
            csg: Stage::from_code(from[1] >> 2)?,
            nsg: transit.then(|| Stage::from_code(from[1])).transpose()?,
            version_max: from[2],
            version_min: from[3],
            isid,
            tsih: get16(from, 14),
            initiator_task_tag: get32(from, 16),
            cid: get16(from, 20),
            cmd_sn: Serial::new(get32(from, 24)),
            exp_stat_sn: Serial::new(get32(from, 28)),
        })
    }

    /// To a header.
    pub fn encode(&self) -> [u8; BHS_BYTES] {
        let flags = stages(self.transit, self.continues, self.csg, self.nsg);
        let mut to = header(opcode::LOGIN | IMMEDIATE, flags);
        to[2] = self.version_max;
        to[3] = self.version_min;
        to[8..14].copy_from_slice(&self.isid);
        put16(&mut to, 14, self.tsih);
        put32(&mut to, 16, self.initiator_task_tag);
        put16(&mut to, 20, self.cid);
        put32(&mut to, 24, self.cmd_sn.get());
        put32(&mut to, 28, self.exp_stat_sn.get());
        to
    }
}

fn stages(transit: bool, continues: bool, csg: Stage, nsg: Option<Stage>) -> u8 {
    let transit = if transit { FINAL } else { 0 };
    let continues = if continues { CONTINUE } else { 0 };
    transit | continues | (csg as u8) << 2 | nsg.map_or(0, |nsg| nsg as u8)
}

/// What a login leads to (RFC 7143, 11.13.5): class and detail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum LoginStatus {
    /// So far, so good.
    Success = 0x0000,
    /// The initiator is to blame, in no way that has a name.
    InitiatorError = 0x0200,
    /// It did not prove who it is.
    AuthenticationFailure = 0x0201,
    /// It may not have the target.
    AuthorisationFailure = 0x0202,
    /// There is no such target.
    NotFound = 0x0203,
    /// The target has gone for good.
    TargetRemoved = 0x0204,
    /// None of its versions is spoken here.
    UnsupportedVersion = 0x0205,
    /// The session has as many connections as it may.
    TooManyConnections = 0x0206,
    /// A key that has to be there is not.
    MissingParameter = 0x0207,
    /// The session cannot have this connection.
    CannotInclude = 0x0208,
    /// There are no sessions of this type.
    SessionType = 0x0209,
    /// There is no such session.
    NoSuchSession = 0x020a,
    /// It makes no sense at this point.
    InvalidRequest = 0x020b,
    /// The target is to blame.
    TargetError = 0x0300,
    /// The target is busy.
    ServiceUnavailable = 0x0301,
    /// The target has no room.
    OutOfResources = 0x0302,
}

/// Login Response (RFC 7143, 11.13).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoginResponse {
    /// The target goes to the next stage, too.
    pub transit: bool,
    /// Its text goes on in the next PDU.
    pub continues: bool,
    /// The stage it answers in.
    pub csg: Stage,
    /// The stage it goes to.
    pub nsg: Option<Stage>,
    /// The initiator's part of the session's name.
    pub isid: [u8; 6],
    /// The target's, in the last response of a good login.
    pub tsih: u16,
    /// The request it answers.
    pub initiator_task_tag: u32,
    /// Its status number.
    pub stat_sn: Serial,
    /// The command number expected next.
    pub exp_cmd_sn: Serial,
    /// The last command number that may be sent.
    pub max_cmd_sn: Serial,
    /// Class and detail of the status (11.13.5).
    pub status: u16,
}

impl LoginResponse {
    /// To a header. Version 0 is the only one there is.
    pub fn encode(&self) -> [u8; BHS_BYTES] {
        let flags = stages(self.transit, self.continues, self.csg, self.nsg);
        let mut to = header(opcode::LOGIN_RESPONSE, flags);
        to[8..14].copy_from_slice(&self.isid);
        put16(&mut to, 14, self.tsih);
        put32(&mut to, 16, self.initiator_task_tag);
        put32(&mut to, 24, self.stat_sn.get());
        put32(&mut to, 28, self.exp_cmd_sn.get());
        put32(&mut to, 32, self.max_cmd_sn.get());
        put16(&mut to, 36, self.status);
        to
    }

    /// From a header.
    pub fn decode(from: &[u8; BHS_BYTES]) -> Result<Self, Malformed> {
        expect(from, opcode::LOGIN_RESPONSE)?;
        let transit = from[1] & FINAL != 0;
        let mut isid = [0; 6];
        isid.copy_from_slice(&from[8..14]);
        Ok(Self {
            transit,
            continues: from[1] & CONTINUE != 0,
            csg: Stage::from_code(from[1] >> 2)?,
            nsg: transit.then(|| Stage::from_code(from[1])).transpose()?,
            isid,
            tsih: get16(from, 14),
            initiator_task_tag: get32(from, 16),
            stat_sn: Serial::new(get32(from, 24)),
            exp_cmd_sn: Serial::new(get32(from, 28)),
            max_cmd_sn: Serial::new(get32(from, 32)),
            status: get16(from, 36),
        })
    }
}
