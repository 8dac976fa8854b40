//! Logging in: who may, how, and what is told to those who may not.

use backstay_iscsi::proto::pdu::{
    LoginRequest, LoginStatus, NopOut, Stage, TextRequest, TextResponse,
};
use backstay_iscsi::proto::{Serial, text};
use backstay_iscsi::server::{Chap, ChapSide, ServerConfig};

use crate::support::{LOOPBACK, NAME, NONE, Raw, Server, TARGET, target, unit};

fn side(name: &str, secret: &str) -> ChapSide {
    ChapSide { name: name.into(), secret: secret.into() }
}

fn chap() -> Chap {
    Chap {
        initiator: side("web", "sixteen bytes ok"),
        target: Some(side("us", "another secret..")),
    }
}

fn refused(server: &Server, name: &str, keys: &[(&str, &str)]) -> u16 {
    let mut raw = Raw::connect(server.address());
    let status = raw.log_in_as(name, keys).0.status;
    assert!(raw.receive().is_none(), "a refused login ends the connection");
    status
}

#[test]
fn a_login_and_what_is_agreed() {
    let server = Server::new(vec![0; 1 << 20]);
    let mut raw = Raw::connect(server.address());
    let keys = [("HeaderDigest", "CRC32C,None"), ("InitialR2T", "No"), ("MaxBurstLength", "65536")];
    let (response, answers) = raw.log_in_as(NAME, &keys);
    assert_eq!(response.nsg, Some(Stage::FullFeature));
    assert_ne!(response.tsih, 0);
    assert_eq!(response.max_cmd_sn.get() - response.exp_cmd_sn.get(), 127);
    let answer = |key: &str| answers.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
    assert_eq!(answer("TargetPortalGroupTag"), Some("1"));
    assert_eq!(answer("HeaderDigest"), Some("CRC32C"));
    assert_eq!(answer("InitialR2T"), Some("No"));
    assert_eq!(answer("MaxBurstLength"), Some("65536"));
    assert_eq!(answer("MaxRecvDataSegmentLength"), Some("262144"));
    raw.ready();
}

#[test]
fn who_may_not_learns_nothing() {
    let server = Server::restricted(&["iqn.2001-04.com.example:other", "10.0.0.0/8"], None);
    assert_eq!(refused(&server, NAME, &[]), LoginStatus::NotFound as u16);
    let unknown =
        refused(&server, "iqn.2001-04.com.example:other", &[("TargetName", "iqn.2026-11.x:y")]);
    // (The key is said twice, and the second is another.)
    assert_eq!(unknown, LoginStatus::InitiatorError as u16);
    let mut friend = Raw::connect(server.address());
    assert_eq!(friend.log_in_as("iqn.2001-04.com.example:other", &[]).0.status, 0);
    let mut raw = Raw::connect(server.address());
    assert!(discover(&mut raw, NAME, "All").is_empty(), "it is not even named");
}

/// A discovery session, and what it is told.
fn discover(raw: &mut Raw, name: &str, value: &str) -> Vec<(String, String)> {
    let request = raw.login_request(Stage::Operational, Some(Stage::FullFeature));
    let (response, _) =
        raw.ask_login(&request, &[("InitiatorName", name), ("SessionType", "Discovery")]);
    assert_eq!((response.status, response.tsih), (0, 0));
    ask(raw, &format!("SendTargets={value}\0"))
}

fn ask(raw: &mut Raw, question: &str) -> Vec<(String, String)> {
    let request = TextRequest {
        immediate: false,
        final_pdu: true,
        continues: false,
        lun: 0,
        initiator_task_tag: 9,
        target_transfer_tag: NONE,
        cmd_sn: Serial::new(raw.cmd_sn),
        exp_stat_sn: Serial::new(raw.stat_sn),
    };
    raw.cmd_sn += 1;
    raw.send(request.encode(), question.as_bytes());
    let pdu = raw.receive().unwrap();
    assert!(TextResponse::decode(&pdu.header).unwrap().final_pdu);
    let pairs = text::parse(&pdu.data).unwrap();
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

#[test]
fn discovery_names_targets_and_portals() {
    let server = Server::new(vec![0; 1 << 20]);
    let device = std::sync::Arc::new(backstay_blockdev::MemDevice::new(vec![0; 1 << 20]));
    server.table.add(target("iqn.2026-11.io.backstay:other", vec![unit(0, device)])).unwrap();
    let addresses = server.handle.as_ref().unwrap().addresses().to_vec();
    let told = discover(&mut Raw::connect(addresses[1]), NAME, "All");
    let names: Vec<&str> =
        told.iter().filter(|(k, _)| k == "TargetName").map(|(_, v)| v.as_str()).collect();
    assert_eq!(names, [TARGET, "iqn.2026-11.io.backstay:other"]);
    let portals: Vec<&str> =
        told.iter().filter(|(k, _)| k == "TargetAddress").map(|(_, v)| v.as_str()).collect();
    // First where it came in.
    let portal = |at: usize| format!("{},1", addresses[at]);
    assert_eq!(portals[..2], [portal(1), portal(0)]);
    let one = discover(&mut Raw::connect(addresses[0]), NAME, TARGET);
    assert_eq!(one.len(), 3);
    // Within a session a target tells of itself alone.
    let mut raw = server.login();
    assert_eq!(ask(&mut raw, "SendTargets=\0").len(), 3);
    assert_eq!(ask(&mut raw, "SendTargets=All\0"), [("SendTargets".into(), "Reject".into())]);
    assert!(ask(&mut raw, "SendTargets=iqn.2026-11.io.backstay:other\0").is_empty());
    assert_eq!(ask(&mut raw, "X-odd=1\0"), [("X-odd".into(), "NotUnderstood".into())]);
    assert_eq!(
        ask(&mut raw, "ErrorRecoveryLevel=2\0"),
        [("ErrorRecoveryLevel".into(), "Reject".into())]
    );
    assert!(ask(&mut raw, "MaxRecvDataSegmentLength=65536\0").is_empty());
}

/// SPDK #1442: many targets, and an initiator that takes little at a time.
#[test]
fn spdk_1442_long_lists_come_in_pieces() {
    let server = Server::new(vec![0; 1 << 20]);
    for i in 0..200 {
        let device = std::sync::Arc::new(backstay_blockdev::MemDevice::new(vec![0; 4096]));
        let name = format!("iqn.2026-11.io.backstay:target-{i:03}");
        server.table.add(target(&name, vec![unit(0, device)])).unwrap();
    }
    let mut raw = Raw::connect(server.address());
    let request = raw.login_request(Stage::Operational, Some(Stage::FullFeature));
    let keys = [
        ("InitiatorName", NAME),
        ("SessionType", "Discovery"),
        ("MaxRecvDataSegmentLength", "512"),
    ];
    assert_eq!(raw.ask_login(&request, &keys).0.status, 0);
    let (mut told, mut question, mut transfer) = (Vec::new(), &b"SendTargets=All\0"[..], NONE);
    loop {
        let request = TextRequest {
            immediate: false,
            final_pdu: true,
            continues: false,
            lun: 0,
            initiator_task_tag: 9,
            target_transfer_tag: transfer,
            cmd_sn: Serial::new(raw.cmd_sn),
            exp_stat_sn: Serial::new(raw.stat_sn),
        };
        raw.cmd_sn += 1;
        raw.send(request.encode(), question);
        let pdu = raw.receive().unwrap();
        let response = TextResponse::decode(&pdu.header).unwrap();
        assert!(pdu.data.len() <= 512);
        told.extend(pdu.data);
        if response.final_pdu {
            break;
        }
        (question, transfer) = (b"", response.target_transfer_tag);
    }
    let pairs =
        told.split(|byte| *byte == 0).filter(|pair| pair.starts_with(b"TargetName=")).count();
    assert_eq!(pairs, 201);
}

#[test]
fn chap_lets_in_who_knows_the_secret() {
    let server = Server::restricted(&["127.0.0.0/8"], Some(chap()));
    let failed = LoginStatus::AuthenticationFailure as u16;
    assert_eq!(refused(&server, NAME, &[]), failed, "without proof");
    let digest = |id: u8, secret: &str, challenge: &[u8]| {
        use md5::Digest as _;
        let sum = md5::Md5::new().chain_update([id]).chain_update(secret).chain_update(challenge);
        text::to_hexadecimal(&sum.finalize())
    };
    for (secret, good) in [("sixteen bytes ok", true), ("sixteen bytes no", false)] {
        let mut raw = Raw::connect(server.address());
        let request = raw.login_request(Stage::Security, None);
        let keys = [
            ("InitiatorName", NAME),
            ("SessionType", "Normal"),
            ("TargetName", TARGET),
            ("AuthMethod", "CHAP"),
        ];
        let (_, answers) = raw.ask_login(&request, &keys);
        assert!(answers.contains(&("AuthMethod".into(), "CHAP".into())));
        let (_, posed) = raw.ask_login(&request, &[("CHAP_A", "5")]);
        let value = |key: &str| posed.iter().find(|(k, _)| k == key).unwrap().1.clone();
        let challenge = text::binary(&value("CHAP_C"), 1024).unwrap();
        assert_eq!(challenge.len(), 16);
        let proof = digest(value("CHAP_I").parse().unwrap(), secret, &challenge);
        let last = raw.login_request(Stage::Security, Some(Stage::FullFeature));
        let keys = [("CHAP_N", "web"), ("CHAP_R", &proof), ("CHAP_I", "9"), ("CHAP_C", "0x0102")];
        let (response, answers) = raw.ask_login(&last, &keys);
        if good {
            assert_eq!(response.status, 0);
            let own = digest(9, "another secret..", &[1, 2]);
            assert!(answers.contains(&("CHAP_R".into(), own)), "the target proves itself, too");
            raw.ready();
        } else {
            assert_eq!(response.status, failed);
        }
    }
}

#[test]
fn challenges_are_new_each_time() {
    let server = Server::restricted(&["127.0.0.0/8"], Some(chap()));
    let mut seen = std::collections::HashSet::new();
    for _ in 0..50 {
        let mut raw = Raw::connect(server.address());
        let request = raw.login_request(Stage::Security, None);
        raw.ask_login(
            &request,
            &[("InitiatorName", NAME), ("TargetName", TARGET), ("AuthMethod", "CHAP")],
        );
        let (_, posed) = raw.ask_login(&request, &[("CHAP_A", "5")]);
        assert!(seen.insert(posed.iter().find(|(k, _)| k == "CHAP_C").unwrap().1.clone()));
    }
}

#[test]
fn secrets_that_are_no_secrets_are_refused() {
    let table = backstay_iscsi::server::TargetTable::new();
    let device = || std::sync::Arc::new(backstay_blockdev::MemDevice::new(vec![0; 4096]));
    let with = |chap| backstay_iscsi::server::TargetSpec {
        chap: Some(chap),
        ..target(TARGET, vec![unit(0, device())])
    };
    for bad in [
        Chap { initiator: side("web", "too short"), target: None },
        Chap { initiator: side("", "sixteen bytes ok"), target: None },
        Chap {
            initiator: side("web", "sixteen bytes ok"),
            target: Some(side("us", "sixteen bytes ok")),
        },
    ] {
        assert!(table.add(with(bad)).is_err());
    }
    assert!(!format!("{:?}", chap()).contains("sixteen"), "a secret is not shown");
}

/// SPDK #3927: anything but a login, before the login.
#[test]
fn spdk_3927_nothing_before_the_login() {
    let server = Server::new(vec![0; 1 << 20]);
    let nop = NopOut {
        immediate: true,
        lun: 0,
        initiator_task_tag: 1,
        target_transfer_tag: NONE,
        cmd_sn: Serial::new(1),
        exp_stat_sn: Serial::new(1),
    };
    for opcode in 0..=0x3f {
        let mut raw = Raw::connect(server.address());
        let mut header = nop.encode();
        header[0] = 0x40 | opcode;
        raw.send(header, &[]);
        if opcode == 3 {
            // An empty login is one, and is answered.
            assert!(raw.receive().is_some());
        }
        assert!(raw.receive().is_none(), "operation code {opcode:#x}");
    }
    server.login().ready();
}

#[test]
fn what_is_no_login_is_told_so() {
    let server = Server::new(vec![0; 1 << 20]);
    let status = |change: &dyn Fn(&mut LoginRequest), keys: &[(&str, &str)]| {
        let mut raw = Raw::connect(server.address());
        let mut request = raw.login_request(Stage::Operational, Some(Stage::FullFeature));
        change(&mut request);
        raw.ask_login(&request, keys).0.status
    };
    let who = [("InitiatorName", NAME), ("TargetName", TARGET)];
    assert_eq!(status(&|r| r.version_min = 1, &who), LoginStatus::UnsupportedVersion as u16);
    assert_eq!(status(&|r| r.tsih = 77, &who), LoginStatus::NoSuchSession as u16);
    assert_eq!(status(&|_| {}, &who[1..]), LoginStatus::MissingParameter as u16);
    assert_eq!(status(&|_| {}, &who[..1]), LoginStatus::MissingParameter as u16);
    assert_eq!(
        status(&|_| {}, &[who[0], who[1], ("SessionType", "x")]),
        LoginStatus::SessionType as u16
    );
    assert_eq!(
        status(&|_| {}, &[who[0], ("TargetName", "iqn.2026-11.x:nothing")]),
        LoginStatus::NotFound as u16
    );
}

#[test]
fn a_login_has_its_time() {
    let spec = target(
        TARGET,
        vec![unit(0, std::sync::Arc::new(backstay_blockdev::MemDevice::new(vec![0; 4096])))],
    );
    let config = ServerConfig {
        login_timeout: std::time::Duration::from_millis(200),
        ..ServerConfig::default()
    };
    let server = Server::with(spec, config);
    let mut silent = Raw::connect(server.address());
    assert!(silent.receive().is_none());
    server.login().ready();
    assert!(LOOPBACK.ip().is_loopback());
}
