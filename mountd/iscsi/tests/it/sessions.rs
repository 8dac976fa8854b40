//! Sessions: numbers, pings, task management, reinstatement, logout, and targets that go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_blockdev::MemDevice;
use backstay_blockdev::layer::Delay;
use backstay_iscsi::proto::Serial;
use backstay_iscsi::proto::pdu::{
    AsyncEvent, AsyncMessage, FunctionResponse, LogoutReason, LogoutRequest, LogoutResponse, NopIn,
    NopOut, R2t, Reject, RejectReason, TaskManagementRequest, TaskManagementResponse, opcode,
};
use backstay_iscsi::server::ServerConfig;

use crate::support::{NAME, NONE, Pdu, Raw, Server, TARGET, eventually, target, ten, unit};

fn nop(raw: &Raw, tag: u32) -> NopOut {
    NopOut {
        immediate: true,
        lun: 0,
        initiator_task_tag: tag,
        target_transfer_tag: NONE,
        cmd_sn: Serial::new(raw.cmd_sn),
        exp_stat_sn: Serial::new(raw.stat_sn),
    }
}

fn manage(raw: &mut Raw, function: u8, tag: u32) -> FunctionResponse {
    let request = TaskManagementRequest {
        immediate: true,
        function,
        lun: 0,
        initiator_task_tag: 0x7000 + u32::from(function),
        referenced_task_tag: tag,
        cmd_sn: Serial::new(raw.cmd_sn),
        exp_stat_sn: Serial::new(raw.stat_sn),
        ref_cmd_sn: Serial::new(0),
    };
    raw.send(request.encode(), &[]);
    loop {
        let pdu = raw.receive().unwrap();
        if pdu.opcode() == opcode::TASK_MANAGEMENT_RESPONSE {
            return TaskManagementResponse::decode(&pdu.header).unwrap().response;
        }
    }
}

#[test]
fn numbers_go_on_one_by_one() {
    let server = Server::new(vec![0; 1 << 20]);
    let mut raw = server.login();
    raw.ready();
    for i in 0..300u32 {
        let command = raw.prepare(&[0; 6], 0, false);
        let due = raw.stat_sn;
        raw.send(command.encode(), &[]);
        let (stat, expected, last) = raw.receive().unwrap().numbers();
        assert_eq!((stat, expected), (due, raw.cmd_sn), "{i}");
        assert!(last.wrapping_sub(expected) < 128);
    }
}

/// RFC 7143, 4.2.2.1: what is outside of the window is ignored; a number left out ends the session.
#[test]
fn numbers_outside_of_the_window() {
    let server = Server::new(vec![0; 1 << 20]);
    let mut raw = server.login();
    raw.ready();
    for wrong in [raw.cmd_sn.wrapping_sub(1), raw.cmd_sn + 500, raw.cmd_sn.wrapping_add(1 << 31)] {
        let mut command = raw.prepare(&[0; 6], 0, false);
        raw.cmd_sn -= 1;
        command.cmd_sn = Serial::new(wrong);
        raw.send(command.encode(), &[]);
    }
    // None of them is answered: the next answer is the next command's.
    raw.ready();
    let mut command = raw.prepare(&[0; 6], 0, false);
    command.cmd_sn = Serial::new(raw.cmd_sn + 5);
    raw.send(command.encode(), &[]);
    assert!(raw.receive().is_none());
}

#[test]
fn pings_are_answered_ahead_of_io() {
    let slow = Delay::new(Arc::new(MemDevice::new(vec![1; 1 << 20])), Duration::from_millis(600));
    let server = Server::of(Arc::new(slow));
    let mut raw = server.login();
    raw.ready();
    let command = raw.prepare(&ten(0x28, 0, 8), 4096, false);
    raw.send(command.encode(), &[]);
    let start = Instant::now();
    let ping = nop(&raw, 0x55);
    raw.send(ping.encode(), b"are you there");
    let pdu = raw.receive().unwrap();
    assert_eq!((pdu.opcode(), &pdu.data[..]), (opcode::NOP_IN, &b"are you there"[..]));
    assert_eq!(NopIn::decode(&pdu.header).unwrap().initiator_task_tag, 0x55);
    assert!(start.elapsed() < Duration::from_millis(500), "it waited for the read");
    assert_eq!(raw.finish(&command, &[]).good(), [1; 4096]);
}

#[test]
fn who_does_not_answer_pings_is_gone() {
    let spec = target(TARGET, vec![unit(0, Arc::new(MemDevice::new(vec![0; 4096])))]);
    let config = ServerConfig { ping_after: Duration::from_millis(300), ..ServerConfig::default() };
    let server = Server::with(spec, config);
    let (mut alive, mut dead) = (server.login(), Raw::connect(server.address()));
    dead.isid[5] = 9;
    assert_eq!(dead.log_in_as(NAME, &[]).0.status, 0);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1500) {
        let pdu = alive.receive().unwrap();
        let ping = NopIn::decode(&pdu.header).unwrap();
        assert_eq!(ping.initiator_task_tag, NONE);
        let mut answer = nop(&alive, NONE);
        answer.target_transfer_tag = ping.target_transfer_tag;
        alive.send(answer.encode(), &[]);
    }
    assert_eq!(server.table.attached(TARGET).len(), 1);
    assert!(dead.receive().is_some(), "it was pinged");
    assert!(dead.receive().is_none(), "and ended");
    alive.ready();
}

#[test]
fn a_task_is_aborted_while_it_waits_for_data() {
    let server = Server::new(vec![0; 1 << 20]);
    let mut raw = Raw::login(server.address(), &[("InitialR2T", "Yes")]);
    raw.ready();
    let command = raw.prepare(&ten(0x2a, 0, 128), 65_536, true);
    raw.send(command.encode(), &[]);
    let r2t = R2t::decode(&raw.receive().unwrap().header).unwrap();
    assert_eq!(manage(&mut raw, 9, command.initiator_task_tag), FunctionResponse::Complete);
    assert_eq!(manage(&mut raw, 1, command.initiator_task_tag), FunctionResponse::Complete);
    assert_eq!(manage(&mut raw, 1, command.initiator_task_tag), FunctionResponse::NoTask);
    // Its data comes too late, and goes nowhere.
    raw.answer(&r2t, &[9; 65_536]);
    raw.ready();
    assert_eq!(raw.read(&ten(0x28, 0, 8), 4096).good(), [0; 4096]);
}

#[test]
fn a_task_that_runs_is_over_before_its_abort_is_answered() {
    let slow = Delay::new(Arc::new(MemDevice::new(vec![0; 1 << 20])), Duration::from_millis(400));
    let server = Server::of(Arc::new(slow));
    let mut raw = server.login();
    raw.ready();
    let command = raw.prepare(&ten(0x2a, 0, 8), 4096, true);
    raw.send(command.encode(), &[5; 4096]);
    std::thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    assert_eq!(manage(&mut raw, 1, command.initiator_task_tag), FunctionResponse::Complete);
    assert!(start.elapsed() > Duration::from_millis(200), "it was still in the device");
    // Nothing is told of the command any more.
    raw.ready();
}

#[test]
fn a_reset_tells_the_others_and_other_targets_nothing() {
    let server = Server::new(vec![0; 1 << 20]);
    let other = "iqn.2026-11.io.backstay:other";
    let device = Arc::new(MemDevice::new(vec![0; 1 << 20]));
    server.table.add(target(other, vec![unit(0, device)])).unwrap();
    let mut one = server.login();
    let mut two = Raw::connect(server.address());
    two.isid[5] = 2;
    assert_eq!(two.log_in_as(NAME, &[]).0.status, 0);
    let mut apart = Raw::connect(server.address());
    let request = apart.login_request(
        backstay_iscsi::proto::pdu::Stage::Operational,
        Some(backstay_iscsi::proto::pdu::Stage::FullFeature),
    );
    assert_eq!(
        apart.ask_login(&request, &[("InitiatorName", NAME), ("TargetName", other)]).0.status,
        0
    );
    one.ready();
    two.ready();
    apart.ready();
    let waiting = two.prepare(&ten(0x2a, 0, 128), 65_536, true);
    two.send(waiting.encode(), &[]);
    assert_eq!(two.receive().unwrap().opcode(), opcode::R2T);
    assert_eq!(manage(&mut one, 5, NONE), FunctionResponse::Complete);
    let told = |raw: &mut Raw| {
        let command = raw.prepare(&[0; 6], 0, false);
        raw.send(command.encode(), &[]);
        let pdu = raw.receive().unwrap();
        (pdu.header[3], pdu.data.get(14..16).map(<[u8]>::to_vec))
    };
    assert_eq!(told(&mut two), (2, Some(vec![0x29, 0x03])), "bus device reset function occurred");
    assert_eq!(told(&mut one), (2, Some(vec![0x29, 0x03])));
    assert_eq!(told(&mut apart), (0, None), "another target's sessions notice nothing");
    two.ready();
}

#[test]
fn unknown_functions_and_units_are_told() {
    let server = Server::new(vec![0; 1 << 20]);
    let mut raw = server.login();
    assert_eq!(manage(&mut raw, 3, NONE), FunctionResponse::Unsupported);
    assert_eq!(manage(&mut raw, 8, NONE), FunctionResponse::NoReassignment);
    assert_eq!(manage(&mut raw, 77, NONE), FunctionResponse::Unsupported);
    assert_eq!(manage(&mut raw, 4, NONE), FunctionResponse::Complete);
    assert_eq!(manage(&mut raw, 6, NONE), FunctionResponse::Complete);
}

/// RFC 7143, 6.3.5: the same initiator port logs in again, and the session before is gone.
#[test]
fn a_session_is_made_anew() {
    let server = Server::new(vec![0; 1 << 20]);
    let mut first = server.login();
    first.ready();
    let mut second = server.login();
    assert!(first.receive().is_none());
    second.ready();
    assert_eq!(server.table.attached(TARGET).len(), 1);
    // Another ISID is another session.
    let mut third = Raw::connect(server.address());
    third.isid[5] = 77;
    assert_eq!(third.log_in_as(NAME, &[]).0.status, 0);
    second.ready();
    third.ready();
    assert_eq!(server.table.attached(TARGET).len(), 2);
}

fn logout(raw: &mut Raw, reason: LogoutReason, cid: u16) -> u8 {
    let request = LogoutRequest {
        immediate: true,
        reason,
        initiator_task_tag: 3,
        cid,
        cmd_sn: Serial::new(raw.cmd_sn),
        exp_stat_sn: Serial::new(raw.stat_sn),
    };
    raw.send(request.encode(), &[]);
    LogoutResponse::decode(&raw.receive().unwrap().header).unwrap().response
}

#[test]
fn logging_out() {
    let server = Server::new(vec![0; 1 << 20]);
    let mut raw = server.login();
    assert_eq!(
        logout(&mut raw, LogoutReason::CloseConnection, 7),
        1,
        "there is no such connection"
    );
    assert_eq!(logout(&mut raw, LogoutReason::RemoveForRecovery, 0), 2);
    raw.ready();
    assert_eq!(logout(&mut raw, LogoutReason::CloseSession, 0), 0);
    assert!(raw.receive().is_none());
    eventually("the session is gone", || server.table.attached(TARGET).is_empty());
}

#[test]
fn a_target_that_goes_asks_to_log_out() {
    let server = Server::new(vec![0; 1 << 20]);
    let mut raw = server.login();
    raw.ready();
    let removed = server.table.remove(TARGET).unwrap();
    let message = AsyncMessage::decode(&raw.receive().unwrap().header).unwrap();
    assert_eq!((message.event, message.seconds), (AsyncEvent::RequestLogout, 3));
    // It is served until it does, and nobody else comes in.
    raw.ready();
    assert_ne!(Raw::connect(server.address()).log_in_as(NAME, &[]).0.status, 0);
    assert!(!removed.wait(Duration::from_millis(50)));
    assert_eq!(logout(&mut raw, LogoutReason::CloseSession, 0), 0);
    assert!(removed.wait(Duration::from_secs(5)));
    let mut stubborn = {
        let device = Arc::new(MemDevice::new(vec![0; 4096]));
        server.table.add(target(TARGET, vec![unit(0, device)])).unwrap();
        server.login()
    };
    let removed = server.table.remove(TARGET).unwrap();
    assert!(removed.wait(Duration::from_secs(10)), "who does not is cut off");
    assert!(stubborn.receive().is_some() && stubborn.receive().is_none());
}

#[test]
fn sessions_are_listed_and_kicked() {
    let server = Server::new(vec![3; 1 << 20]);
    let mut raw = server.login();
    raw.ready();
    raw.read(&ten(0x28, 0, 8), 4096).good();
    raw.write(&ten(0x2a, 0, 8), &[1; 4096], 0).good();
    let list = server.table.attached(TARGET);
    let one = &list[0];
    assert_eq!((one.initiator.as_str(), one.session, one.writable), (NAME, raw.tsih, true));
    assert_eq!((one.read_bytes, one.written_bytes), (4096, 4096));
    assert!(one.requests >= 3);
    assert!(!server.table.kick(TARGET, raw.tsih + 1));
    assert!(server.table.kick(TARGET, raw.tsih));
    assert!(raw.receive().is_none());
    eventually("it is off the list", || server.table.attached(TARGET).is_empty());
    server.table.set_closed(TARGET, true);
    assert_ne!(Raw::connect(server.address()).log_in_as(NAME, &[]).0.status, 0);
    server.table.set_closed(TARGET, false);
    server.login().ready();
}

#[test]
fn stopping_answers_what_is_under_way() {
    let slow = Delay::new(Arc::new(MemDevice::new(vec![1; 1 << 20])), Duration::from_millis(400));
    let mut server = Server::of(Arc::new(slow));
    let mut raw = server.login();
    raw.ready();
    let command = raw.prepare(&ten(0x28, 0, 8), 4096, false);
    raw.send(command.encode(), &[]);
    std::thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    server.handle.take().unwrap().stop().unwrap();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(raw.finish(&command, &[]).good(), [1; 4096]);
    assert!(raw.receive().is_none());
}

/// One by one, what no session may say.
#[test]
fn what_is_not_understood_is_rejected() {
    let server = Server::new(vec![0; 1 << 20]);
    let mut raw = server.login();
    raw.ready();
    let rejected = |pdu: &Pdu| Reject::decode(&pdu.header).unwrap().reason;
    for (code, reason) in [
        (0x10, RejectReason::SnackReject),
        (0x07, RejectReason::CommandNotSupported),
        (0x3e, RejectReason::CommandNotSupported),
    ] {
        let mut header = nop(&raw, 1).encode();
        header[0] = 0x40 | code;
        raw.send(header, &[]);
        let pdu = raw.receive().unwrap();
        assert_eq!(rejected(&pdu), reason);
        assert_eq!(pdu.data, header, "it says what was rejected");
    }
    raw.ready();
    // A second task of one tag.
    let command = raw.prepare(&ten(0x2a, 0, 128), 65_536, true);
    raw.send(command.encode(), &[]);
    assert_eq!(raw.receive().unwrap().opcode(), opcode::R2T);
    let mut again = raw.prepare(&[0; 6], 0, false);
    again.initiator_task_tag = command.initiator_task_tag;
    raw.send(again.encode(), &[]);
    assert_eq!(rejected(&raw.receive().unwrap()), RejectReason::TaskInProgress);
}
