//! READ FULL STATUS, and names of initiator ports (SPC-4, 6.15.5 and 7.6.4.5).

use super::super::InitiatorPort;
use super::super::inquiry::PORT;
use super::state::State;

/// The format of an iSCSI initiator port's TransportID, and the protocol.
const PORT_FORMAT: u8 = 0x40 | 0x05;

/// All registrants, with what they hold.
pub(super) fn status(state: &State) -> Vec<u8> {
    let mut body = Vec::new();
    for registrant in &state.registrants {
        let holds = state.is_held_by(&registrant.port);
        body.extend(registrant.key.to_be_bytes());
        body.extend([0; 4]);
        body.push(holds.into());
        body.push(state.kind().filter(|_| holds).map_or(0, |kind| kind as u8));
        body.extend([0; 4]);
        body.extend(PORT.to_be_bytes());
        let transport = transport_id(&registrant.port);
        body.extend((transport.len() as u32).to_be_bytes());
        body.extend(transport);
    }
    body
}

/// `NAME,i,0xISID`.
pub(super) fn transport_id(port: &InitiatorPort) -> Vec<u8> {
    let isid: String = port.isid.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut name = format!("{},i,0x{isid}", port.name).into_bytes();
    name.resize((name.len() + 1).next_multiple_of(4).max(20), 0);
    let mut bytes = vec![PORT_FORMAT, 0];
    bytes.extend((name.len() as u16).to_be_bytes());
    bytes.extend(name);
    bytes
}

/// The port that a TransportID names. Its lengths are checked against what is there (the kernel's target read beyond it:
/// CVE-2026-72084).
pub(super) fn port_of(bytes: &[u8]) -> Option<InitiatorPort> {
    let [PORT_FORMAT, _, high, low, name @ ..] = bytes else { return None };
    let name = name.get(..usize::from(u16::from_be_bytes([*high, *low])))?;
    let end = name.iter().position(|byte| *byte == 0)?;
    let (name, isid) = std::str::from_utf8(&name[..end]).ok()?.split_once(",i,0x")?;
    let name = crate::proto::InitiatorName::new(name)?.to_string();
    let isid = crate::proto::text::binary(&format!("0x{isid}"), 6)?;
    Some(InitiatorPort { name, isid: isid.try_into().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transport_ids_there_and_back() {
        let port =
            InitiatorPort { name: "iqn.2001-04.com.x:y".into(), isid: [0x40, 1, 2, 3, 4, 5] };
        assert_eq!(port_of(&transport_id(&port)), Some(port));
    }

    /// CVE-2026-72084: a TransportID that says it is longer than it is.
    #[test]
    fn cve_2026_72084_transport_ids_that_lie_about_their_length() {
        let port = InitiatorPort { name: "iqn.2001-04.com.x:y".into(), isid: [1; 6] };
        let whole = transport_id(&port);
        for len in 0..whole.len() {
            assert_eq!(port_of(&whole[..len]), None);
        }
        let mut longer = whole.clone();
        longer[2..4].copy_from_slice(&u16::MAX.to_be_bytes());
        assert_eq!(port_of(&longer), None);
        let mut endless = whole;
        endless.iter_mut().skip(4).for_each(|byte| *byte = b'a');
        assert_eq!(port_of(&endless), None);
    }
}
