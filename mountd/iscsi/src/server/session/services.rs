//! What is not I/O: pings, text, logout, rejects, messages of our own.

use std::net::SocketAddr;

use super::super::sessions::Held;
use super::Session;
use super::numbers::Stat;
use crate::error::Error;
use crate::proto::params::in_full_feature;
use crate::proto::pdu::{
    AsyncEvent, AsyncMessage, LogoutReason, LogoutRequest, LogoutResponse, NopIn, NopOut, Reject,
    RejectReason, TextRequest, TextResponse,
};
use crate::proto::{BHS_BYTES, text};

/// The portal group that all portals are in.
const PORTAL_GROUP: u16 = 1;
/// "No tag".
const NONE: u32 = u32::MAX;
/// Text of a request that comes in pieces.
const MAX_TEXT_BYTES: usize = 64 << 10;

/// A long text that is told, or heard, in pieces.
#[derive(Debug, Default)]
pub(super) struct Telling {
    heard: Vec<u8>,
    rest: Vec<u8>,
    tag: u32,
}

impl Session {
    pub(super) fn nop_out(&mut self, nop: &NopOut, data: &[u8]) -> Result<(), Error> {
        // Without a tag of its own it answers our ping, and wants nothing.
        if nop.initiator_task_tag == NONE || !self.is_due(nop.immediate, nop.cmd_sn)? {
            return Ok(());
        }
        let most = self.params.max_recv_data_segment_length as usize;
        let answer = NopIn {
            lun: nop.lun,
            initiator_task_tag: nop.initiator_task_tag,
            target_transfer_tag: NONE,
        };
        self.send(answer.encode(), &data[..data.len().min(most)], Stat::Used);
        Ok(())
    }

    /// Asks the initiator for a sign of life.
    pub(super) fn ping(&mut self) {
        self.next_tag = (self.next_tag + 1) % NONE;
        let ping = NopIn { lun: 0, initiator_task_tag: NONE, target_transfer_tag: self.next_tag };
        self.send(ping.encode(), &[], Stat::Peeked);
    }

    pub(super) fn reject(&mut self, header: &[u8; BHS_BYTES], reason: RejectReason) {
        tracing::debug!(initiator = self.initiator, ?reason, "a PDU is rejected");
        let reject = Reject { reason };
        self.send(reject.encode(), header, Stat::Used);
    }

    /// The target goes: says how long there is to log out (RFC 7143, 11.9.1).
    pub(super) fn ask_for_logout(&mut self) {
        let seconds = self.shared.config.end_grace.as_secs().min(60) as u16;
        let message = AsyncMessage { lun: 0, event: AsyncEvent::RequestLogout, seconds };
        self.send(message.encode(), &[], Stat::Used);
    }

    pub(super) fn logout(&mut self, request: &LogoutRequest) -> Result<(), Error> {
        if !self.is_due(request.immediate, request.cmd_sn)? {
            return Ok(());
        }
        // RFC 7143, 11.15.1: with one connection a session the first two reasons end the same.
        let response = match request.reason {
            LogoutReason::CloseSession => 0,
            LogoutReason::CloseConnection if request.cid == self.cid => 0,
            LogoutReason::CloseConnection => 1,
            // Recovery is not supported at error recovery level 0.
            LogoutReason::RemoveForRecovery => 2,
        };
        let answer = LogoutResponse {
            initiator_task_tag: request.initiator_task_tag,
            response,
            time_to_wait: 2,
            time_to_retain: 0,
        };
        self.send(answer.encode(), &[], Stat::Used);
        self.closing |= response == 0;
        Ok(())
    }

    pub(super) fn text(&mut self, request: &TextRequest, data: &[u8]) -> Result<(), Error> {
        if !self.is_due(request.immediate, request.cmd_sn)? {
            return Ok(());
        }
        let tag = request.initiator_task_tag;
        let mut telling = self.text.take().filter(|_| request.target_transfer_tag != NONE);
        if request.target_transfer_tag != NONE
            && telling.as_ref().is_none_or(|telling| telling.tag != request.target_transfer_tag)
        {
            return Err(Error::protocol("a text request goes on with what was not begun"));
        }
        let mut now = telling.take().unwrap_or_default();
        if !now.rest.is_empty() && data.is_empty() {
            return self.tell(tag, now);
        }
        now.heard.extend_from_slice(data);
        if now.heard.len() > MAX_TEXT_BYTES {
            return Err(Error::protocol("a text is too long"));
        }
        if request.continues {
            return self.hear_more(tag, now);
        }
        let heard = std::mem::take(&mut now.heard);
        now.rest = self.answer(&heard)?;
        self.tell(tag, now)
    }

    /// Says as much as one response takes of what is to be told.
    fn tell(&mut self, tag: u32, mut telling: Telling) -> Result<(), Error> {
        let most = (self.params.max_recv_data_segment_length as usize).min(8 << 10);
        let rest = telling.rest.split_off(telling.rest.len().min(most));
        let part = std::mem::replace(&mut telling.rest, rest);
        let more = !telling.rest.is_empty();
        self.next_tag = (self.next_tag + 1) % NONE;
        let transfer = if more { self.next_tag } else { NONE };
        let response = TextResponse {
            final_pdu: !more,
            continues: more,
            lun: 0,
            initiator_task_tag: tag,
            target_transfer_tag: transfer,
        };
        self.send(response.encode(), &part, Stat::Used);
        telling.tag = transfer;
        self.text = more.then_some(telling);
        Ok(())
    }

    /// Asks for the rest of a text.
    fn hear_more(&mut self, tag: u32, mut telling: Telling) -> Result<(), Error> {
        self.next_tag = (self.next_tag + 1) % NONE;
        telling.tag = self.next_tag;
        let response = TextResponse {
            final_pdu: false,
            continues: false,
            lun: 0,
            initiator_task_tag: tag,
            target_transfer_tag: self.next_tag,
        };
        self.send(response.encode(), &[], Stat::Used);
        self.text = Some(telling);
        Ok(())
    }

    /// The answer to a whole text.
    fn answer(&mut self, heard: &[u8]) -> Result<Vec<u8>, Error> {
        let pairs = text::parse(heard).map_err(|e| Error::codec("a text is not understood", e))?;
        let mut answer = text::Writer::default();
        for (key, value) in pairs {
            match key {
                "SendTargets" => self.send_targets(value, &mut answer),
                _ if text::is_answer(value) => {}
                "MaxRecvDataSegmentLength" => match text::number(value) {
                    Some(bytes) if (512..1 << 24).contains(&bytes) => {
                        self.params.max_recv_data_segment_length = bytes;
                    }
                    _ => answer.pair(key, "Reject"),
                },
                "InitiatorAlias" => {}
                _ => answer.pair(key, in_full_feature(key)),
            }
        }
        Ok(answer.finish())
    }

    /// SendTargets (RFC 7143, appendix C).
    fn send_targets(&self, value: &str, answer: &mut text::Writer) {
        let discovery = self.held.is_none();
        let own = self.held.as_ref().map(Held::name);
        let wanted = match value {
            "All" if discovery => None,
            "All" => return answer.pair("SendTargets", "Reject"),
            "" => own,
            name => Some(name),
        };
        let portals = self.portals();
        for target in self.shared.visible(&self.initiator, self.peer.ip()) {
            if wanted.is_none_or(|name| name == target.name)
                && (discovery || own == Some(target.name.as_str()))
            {
                answer.pair("TargetName", &target.name);
                for portal in &portals {
                    answer.pair("TargetAddress", &format!("{portal},{PORTAL_GROUP}"));
                }
            }
        }
    }

    /// Where this initiator can come in: first where it did.
    fn portals(&self) -> Vec<SocketAddr> {
        let mut portals = vec![self.local];
        for bound in self.shared.portals.iter() {
            let portal = match bound.ip().is_unspecified() {
                true => SocketAddr::new(self.local.ip(), bound.port()),
                false => *bound,
            };
            // Nobody else reaches this host's loopback addresses.
            let reachable = self.local.ip().is_loopback() || !portal.ip().is_loopback();
            if reachable && !portals.contains(&portal) {
                portals.push(portal);
            }
        }
        portals
    }
}
