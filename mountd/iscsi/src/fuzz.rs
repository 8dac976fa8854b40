//! What a fuzzer runs here: headers, logins, commands with their parameter lists. A target is a function that takes any
//! bytes and panics when a promise is broken. `tests/corpus.rs` runs them with their seeds, cut and changed.

use std::sync::Arc;

use backstay_blockdev::MemDevice;

use crate::proto::chap::{ChapConfig, Credentials};
use crate::proto::login::{Access, Agreed, Login, Policy, Step};
use crate::proto::pdu::{LoginRequest, Request, Stage};
use crate::proto::text::{self, Writer};
use crate::proto::{BHS_BYTES, InitiatorName, Serial, is_name};
use crate::scsi::{
    BLOCK_BYTES, Device, DeviceSpec, Identity, InitiatorPort, Outcome, Plan, Ran, TargetPort,
};
use crate::server::UnitSpec;

/// One parser under test.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Takes any bytes; panics when a promise is broken.
    pub run: fn(&[u8]),
    /// Inputs made by the real encoders, each with a name. The same at every call.
    pub seeds: fn() -> Vec<(&'static str, Vec<u8>)>,
    /// Bytes of memory a run may hold at once, beside what its input accounts for.
    pub memory: usize,
}

/// Every target of this crate.
pub const TARGETS: &[Target] = &[
    Target { name: "iscsi_headers", run: headers, seeds: header_seeds, memory: 64 << 10 },
    Target { name: "iscsi_login", run: logins, seeds: login_seeds, memory: 1 << 20 },
    Target { name: "iscsi_commands", run: commands, seeds: command_seeds, memory: 12 << 20 },
];

/// Headers, one behind the other: what is understood is what was said.
fn headers(bytes: &[u8]) {
    for header in bytes.chunks_exact(BHS_BYTES) {
        let Some(header) = header.first_chunk::<BHS_BYTES>() else { return };
        let Ok(request) = Request::decode(header) else { continue };
        let again = match &request {
            Request::NopOut(pdu) => pdu.encode(),
            Request::ScsiCommand(pdu) => pdu.encode(),
            Request::TaskManagement(pdu) => pdu.encode(),
            Request::Login(pdu) => pdu.encode(),
            Request::Text(pdu) => pdu.encode(),
            Request::DataOut(pdu) => pdu.encode(),
            Request::Logout(pdu) => pdu.encode(),
            Request::Snack | Request::Unknown => continue,
        };
        assert_eq!(Request::decode(&again).as_ref(), Ok(&request));
    }
}

fn header_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut all = Vec::new();
    for opcode in [0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x10, 0x40, 0x41] {
        let mut header: [u8; BHS_BYTES] = std::array::from_fn(|i| i as u8);
        (header[0], header[1]) = (opcode, 0x80);
        all.extend(header);
    }
    vec![("each", all)]
}

struct Door;

impl Policy for Door {
    fn target(&self, name: &str, initiator: &InitiatorName) -> Access {
        assert!(is_name(initiator.as_str()));
        let side =
            |name: &str, secret: &[u8]| Credentials { name: name.into(), secret: secret.into() };
        let chap = ChapConfig {
            initiator: side("web", b"sixteen bytes ok"),
            target: Some(side("us", b"another secret..")),
        };
        match name {
            "iqn.2026-11.x:open" => Access::Open { chap: None, alias: "open".into() },
            "iqn.2026-11.x:chap" => Access::Open { chap: Some(chap), alias: String::new() },
            _ => Access::NotFound,
        }
    }
}

/// A login, request by request: a byte of flags, two of length, and text.
fn logins(bytes: &[u8]) {
    let mut login = Login::new(Box::new(|bytes: &mut [u8]| {
        bytes.fill(7);
        Ok(())
    }));
    let mut rest = bytes;
    while let [flags, high, low, behind @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(behind.len());
        let (data, next) = behind.split_at(len);
        rest = next;
        let stage = |bits: u8| match bits & 3 {
            0 => Stage::Security,
            1 => Stage::Operational,
            _ => Stage::FullFeature,
        };
        let transit = flags & 0x80 != 0;
        let request = LoginRequest {
            transit,
            continues: !transit && flags & 0x40 != 0,
            csg: stage(flags >> 2),
            nsg: transit.then(|| stage(*flags)),
            version_max: 0,
            version_min: flags >> 5 & u8::from(flags & 0x30 == 0x30),
            isid: [0; 6],
            tsih: 0,
            initiator_task_tag: 0,
            cid: 0,
            cmd_sn: Serial::new(0),
            exp_stat_sn: Serial::new(0),
        };
        match login.step(&request, data, &Door) {
            Ok(Step::Answer(answer)) => {
                assert!(answer.text.len() <= 8192, "an answer of {} bytes", answer.text.len());
                text::parse(&answer.text).expect("text of our own");
                assert_ne!(answer.nsg, Some(Stage::Security));
            }
            Ok(Step::Done(answer, agreed)) => {
                assert!(answer.transit && answer.text.len() <= 8192);
                return agreed_well(&agreed);
            }
            Err(failure) => {
                assert!(!failure.answer.transit && failure.answer.text.is_empty());
                return;
            }
        }
    }
}

fn agreed_well(agreed: &Agreed) {
    let params = agreed.params;
    assert!(params.first_burst_length <= params.max_burst_length);
    assert!((512..1 << 24).contains(&params.max_recv_data_segment_length));
    // Nobody guesses the answer to the challenge: it is the digest of a secret.
    if let crate::proto::login::SessionKind::Normal { target } = &agreed.session {
        assert_eq!(target, "iqn.2026-11.x:open");
    }
}

fn login_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let request = |flags: u8, keys: &[(&str, &str)]| {
        let mut writer = Writer::default();
        keys.iter().for_each(|(key, value)| writer.pair(key, value));
        let text = writer.finish();
        let mut bytes = vec![flags];
        bytes.extend((text.len() as u16).to_be_bytes());
        bytes.extend(text);
        bytes
    };
    let who = |target| [("InitiatorName", "iqn.2001-04.com.x:y"), ("TargetName", target)];
    let open = who("iqn.2026-11.x:open");
    let keys = [
        ("HeaderDigest", "CRC32C,None"),
        ("MaxBurstLength", "16776192"),
        ("FirstBurstLength", "0x40000"),
        ("InitialR2T", "No"),
        ("MaxRecvDataSegmentLength", "262144"),
        ("X-a", "1"),
    ];
    let chap = [&who("iqn.2026-11.x:chap")[..], &[("AuthMethod", "CHAP,None")]].concat();
    let answer = [("CHAP_N", "web"), ("CHAP_R", "0x00112233445566778899aabbccddeeff")];
    vec![
        ("straight", request(0x87, &[&open[..], &keys].concat())),
        (
            "stages",
            [request(0x81, &[&open[..], &[("AuthMethod", "None")]].concat()), request(0x87, &keys)]
                .concat(),
        ),
        (
            "chap",
            [request(0x00, &chap), request(0x00, &[("CHAP_A", "5")]), request(0x83, &answer)]
                .concat(),
        ),
        ("discovery", request(0x87, &[open[0], ("SessionType", "Discovery")])),
        ("pieces", [request(0x44, &open[..1]), request(0x87, &open[1..])].concat()),
    ]
}

/// Bytes of the unit that commands go to.
const UNIT_BYTES: usize = 64 << 10;

/// Commands, one behind the other: a CDB, two bytes of length, and data.
fn commands(bytes: &[u8]) {
    let identity = Identity { serial: "FUZZ".into(), naa: [0x30; 16], product: "fuzz".into() };
    let device = Arc::new(MemDevice::new(vec![0; UNIT_BYTES]));
    let unit = UnitSpec { lun: 0, device, identity, physical_block_bytes: 4096, keeper: None };
    let port = TargetPort { name: "iqn.2026-11.x:fuzz".into() };
    let device = Device::new(DeviceSpec { port, units: vec![unit] }).expect("a device");
    let port = InitiatorPort { name: "iqn.2001-04.com.x:y".into(), isid: [1; 6] };
    let nexus = device.attach(port, true);
    let mut rest = bytes;
    let mut left = 64;
    while let Some((cdb, behind)) = rest.split_first_chunk::<16>()
        && left > 0
    {
        left -= 1;
        let [high, low, behind @ ..] = behind else { return };
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(behind.len());
        let (data, next) = behind.split_at(len);
        rest = next;
        let outcome = match nexus.start(0, cdb) {
            Plan::Done(outcome) => outcome,
            Plan::Read { offset_bytes, len_bytes, .. } => {
                assert!(offset_bytes + u64::from(len_bytes) <= UNIT_BYTES as u64);
                assert!(len_bytes.is_multiple_of(BLOCK_BYTES));
                continue;
            }
            Plan::Work { data_out_bytes, mut work } => {
                let mut out = data.to_vec();
                out.resize(data_out_bytes as usize, 0);
                match work.run(&out) {
                    Ran::Done(outcome) => outcome,
                    Ran::Later => panic!("this device puts nothing off"),
                }
            }
        };
        told_well(&outcome);
    }
}

fn told_well(outcome: &Outcome) {
    use crate::scsi::Status;
    assert_eq!(outcome.status == Status::CheckCondition, outcome.sense.is_some());
    assert!(outcome.status == Status::Good || outcome.data.is_empty());
    if let Some(sense) = &outcome.sense {
        assert!(matches!(sense[0] & 0x7f, 0x70 | 0x72) && sense.len() <= 252);
    }
}

fn command_seeds() -> Vec<(&'static str, Vec<u8>)> {
    let command = |cdb: &[u8], data: &[u8]| {
        let mut bytes = cdb.to_vec();
        bytes.resize(16, 0);
        bytes.extend((data.len() as u16).to_be_bytes());
        bytes.extend(data);
        bytes
    };
    let ready = command(&[0], &[]);
    let with = |more: Vec<Vec<u8>>| [vec![ready.clone()], more].concat().concat();
    let mut unmap = vec![0, 22, 0, 16, 0, 0, 0, 0];
    unmap.extend([0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 4, 0, 0, 0, 0]);
    let key = |service: u8| {
        let mut list = [0; 24];
        (list[7], list[15]) = (if service == 0 { 0 } else { 5 }, 5);
        list
    };
    let register =
        |action: u8, kind: u8, list: &[u8]| command(&[0x5f, action, kind, 0, 0, 0, 0, 0, 24], list);
    vec![
        (
            "told",
            with(
                [
                    [0x12, 0, 0, 0, 96, 0],
                    [0x12, 1, 0x83, 0, 252, 0],
                    [0x12, 1, 0xb0, 0, 64, 0],
                    [0x1a, 0, 0x3f, 0, 252, 0],
                    [0x03, 0, 0, 0, 18, 0],
                ]
                .iter()
                .map(|cdb| command(cdb, &[]))
                .chain([
                    command(&[0xa3, 0x0c, 0x80, 0, 0, 0, 0, 0, 255, 255], &[]),
                    command(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 255], &[]),
                    command(&[0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], &[]),
                ])
                .collect(),
            ),
        ),
        (
            "moved",
            with(vec![
                command(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1], &[7; 512]),
                command(&[0x28, 0, 0, 0, 0, 0, 0, 0, 1], &[]),
                command(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24], &unmap),
                command(&[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], &[0; 1024]),
                command(&[0x93, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8], &[0; 512]),
                command(&[0x2f, 2, 0, 0, 0, 0, 0, 0, 1], &[0; 512]),
                command(&[0x8b, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], &[1; 512]),
                command(
                    &[0x55, 0x10, 0, 0, 0, 0, 0, 0, 20],
                    &[0, 0, 0, 0, 0, 0, 0, 0, 0x0a, 0x0a, 4, 0x10, 8, 0, 0, 0, 0, 0, 0, 0],
                ),
            ]),
        ),
        (
            "reserved",
            with(vec![
                register(0, 0, &key(0)),
                register(1, 1, &key(1)),
                command(&[0x5e, 3, 0, 0, 0, 0, 0, 1, 0], &[]),
                register(4, 3, &key(1)),
                register(2, 1, &key(1)),
                register(3, 0, &key(1)),
            ]),
        ),
    ]
}
