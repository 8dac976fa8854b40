//! Every PDU there and back, and headers by hand.

use super::*;
use crate::proto::Serial;

fn back(request: &Request, header: [u8; BHS_BYTES]) {
    assert_eq!(Request::decode(&header).as_ref(), Ok(request));
}

#[test]
fn what_initiators_send_there_and_back() {
    let sn = Serial::new;
    let command = ScsiCommand {
        immediate: false,
        final_pdu: true,
        read: true,
        write: false,
        attribute: 1,
        lun: 0x0001_0000_0000_0000,
        initiator_task_tag: 7,
        expected_data_transfer_length: 4096,
        cmd_sn: sn(9),
        exp_stat_sn: sn(10),
        cdb: [0x28; 16],
    };
    back(&Request::ScsiCommand(command.clone()), command.encode());
    let out = DataOut {
        final_pdu: true,
        lun: 3 << 48,
        initiator_task_tag: 8,
        target_transfer_tag: 9,
        exp_stat_sn: sn(1),
        data_sn: 2,
        buffer_offset: 65_536,
    };
    back(&Request::DataOut(out.clone()), out.encode());
    let nop = NopOut {
        immediate: true,
        lun: 5,
        initiator_task_tag: 1,
        target_transfer_tag: NO_TAG,
        cmd_sn: sn(3),
        exp_stat_sn: sn(4),
    };
    back(&Request::NopOut(nop.clone()), nop.encode());
    let manage = TaskManagementRequest {
        immediate: true,
        function: 5,
        lun: 1 << 48,
        initiator_task_tag: 4,
        referenced_task_tag: 5,
        cmd_sn: sn(1),
        exp_stat_sn: sn(2),
        ref_cmd_sn: sn(3),
    };
    back(&Request::TaskManagement(manage.clone()), manage.encode());
}

#[test]
fn what_initiators_say_there_and_back() {
    let sn = Serial::new;
    let text = TextRequest {
        immediate: false,
        final_pdu: true,
        continues: false,
        lun: 0,
        initiator_task_tag: 6,
        target_transfer_tag: NO_TAG,
        cmd_sn: sn(1),
        exp_stat_sn: sn(1),
    };
    back(&Request::Text(text.clone()), text.encode());
    let logout = LogoutRequest {
        immediate: true,
        reason: LogoutReason::CloseConnection,
        initiator_task_tag: 1,
        cid: 2,
        cmd_sn: sn(3),
        exp_stat_sn: sn(4),
    };
    back(&Request::Logout(logout.clone()), logout.encode());
    let login = LoginRequest {
        transit: true,
        continues: false,
        csg: Stage::Security,
        nsg: Some(Stage::Operational),
        version_max: 0,
        version_min: 0,
        isid: [0x40, 1, 2, 3, 4, 5],
        tsih: 0,
        initiator_task_tag: 1,
        cid: 1,
        cmd_sn: sn(1),
        exp_stat_sn: sn(0),
    };
    back(&Request::Login(login.clone()), login.encode());
}

#[test]
fn what_targets_send_there_and_back() {
    let response = ScsiResponse {
        initiator_task_tag: 1,
        response: 0,
        status: 2,
        residual: Residual::Overflow(512),
        exp_data_sn: 3,
    };
    assert_eq!(ScsiResponse::decode(&response.encode()), Ok(response));
    for status in [None, Some((0, Residual::Underflow(9)))] {
        let data =
            DataIn { final_pdu: true, initiator_task_tag: 1, status, data_sn: 2, buffer_offset: 3 };
        assert_eq!(DataIn::decode(&data.encode()), Ok(data));
    }
    let r2t = R2t {
        lun: 1,
        initiator_task_tag: 2,
        target_transfer_tag: 3,
        r2t_sn: 4,
        buffer_offset: 5,
        desired_data_length: 6,
    };
    assert_eq!(R2t::decode(&r2t.encode()), Ok(r2t));
    let nop = NopIn { lun: 1, initiator_task_tag: NO_TAG, target_transfer_tag: 3 };
    assert_eq!(NopIn::decode(&nop.encode()), Ok(nop));
    for response in
        [FunctionResponse::Complete, FunctionResponse::NoTask, FunctionResponse::Rejected]
    {
        let managed = TaskManagementResponse { initiator_task_tag: 1, response };
        assert_eq!(TaskManagementResponse::decode(&managed.encode()), Ok(managed));
    }
    let text = TextResponse {
        final_pdu: false,
        continues: true,
        lun: 0,
        initiator_task_tag: 1,
        target_transfer_tag: 2,
    };
    assert_eq!(TextResponse::decode(&text.encode()), Ok(text));
    let logout =
        LogoutResponse { initiator_task_tag: 1, response: 2, time_to_wait: 2, time_to_retain: 0 };
    assert_eq!(LogoutResponse::decode(&logout.encode()), Ok(logout));
    let reject = Reject { reason: RejectReason::TaskInProgress };
    assert_eq!(Reject::decode(&reject.encode()), Ok(reject));
    let message = AsyncMessage { lun: 0, event: AsyncEvent::RequestLogout, seconds: 3 };
    assert_eq!(AsyncMessage::decode(&message.encode()), Ok(message));
    let login = LoginResponse {
        transit: true,
        continues: false,
        csg: Stage::Operational,
        nsg: Some(Stage::FullFeature),
        isid: [1; 6],
        tsih: 7,
        initiator_task_tag: 1,
        stat_sn: Serial::new(1),
        exp_cmd_sn: Serial::new(2),
        max_cmd_sn: Serial::new(3),
        status: LoginStatus::NotFound as u16,
    };
    assert_eq!(LoginResponse::decode(&login.encode()), Ok(login));
}

/// The layout of RFC 7143, 11.3, byte by byte.
#[test]
fn a_command_by_hand() {
    let mut header = [0; BHS_BYTES];
    header[0] = 0x41;
    header[1] = 0x80 | 0x40 | 0x02;
    header[9] = 3;
    header[16..20].copy_from_slice(&[1, 2, 3, 4]);
    header[20..24].copy_from_slice(&[0, 0, 2, 0]);
    header[24..28].copy_from_slice(&[0, 0, 0, 5]);
    header[32] = 0x28;
    let Ok(Request::ScsiCommand(command)) = Request::decode(&header) else { panic!() };
    assert!(command.immediate && command.final_pdu && command.read && !command.write);
    assert_eq!((command.attribute, command.lun), (2, 3 << 48));
    assert_eq!(
        (command.initiator_task_tag, command.expected_data_transfer_length),
        (0x0102_0304, 512)
    );
    assert_eq!((command.cmd_sn.get(), command.cdb[0]), (5, 0x28));
}

#[test]
fn what_no_initiator_may_send() {
    let of = |opcode: u8, flags: u8| {
        let mut header = [0; BHS_BYTES];
        (header[0], header[1]) = (opcode, flags);
        Request::decode(&header)
    };
    assert!(of(opcode::LOGIN, 0xc0).is_err(), "a login that goes on and is over");
    assert!(of(opcode::LOGIN, 0x08).is_err(), "a stage that is none");
    assert!(of(opcode::LOGIN, 0x82).is_err(), "a next stage that is none");
    assert!(of(opcode::TEXT, 0xc0).is_err(), "a text that goes on and is over");
    assert!(of(opcode::LOGOUT, 0x83).is_err(), "a reason that is none");
    for unknown in [0x07, 0x1c, 0x1e, 0x20, 0x25, 0x3f] {
        assert_eq!(of(unknown, 0), Ok(Request::Unknown));
    }
    assert_eq!(of(opcode::SNACK, 0x80), Ok(Request::Snack));
}
