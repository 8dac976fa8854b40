//! Initiators that break the rules, and the published holes of others by name.

use std::io::Write;
use std::time::{Duration, Instant};

use backstay_iscsi::proto::Serial;
use backstay_iscsi::proto::pdu::{DataOut, R2t};

use crate::support::{NAME, NONE, Raw, Server, TARGET, ten};

/// A write that was asked for its data, and what it was asked for.
fn asked(raw: &mut Raw) -> (backstay_iscsi::proto::pdu::ScsiCommand, R2t) {
    let command = raw.prepare(&ten(0x2a, 0, 64), 32_768, true);
    raw.send(command.encode(), &[]);
    let r2t = R2t::decode(&raw.receive().unwrap().header).unwrap();
    (command, r2t)
}

fn data_out(raw: &Raw, r2t: &R2t) -> DataOut {
    DataOut {
        final_pdu: true,
        lun: 0,
        initiator_task_tag: r2t.initiator_task_tag,
        target_transfer_tag: r2t.target_transfer_tag,
        exp_stat_sn: Serial::new(raw.stat_sn),
        data_sn: 0,
        buffer_offset: 0,
    }
}

/// SPDK #2781: Data-Out that is longer than its R2T, elsewhere, out of order, for nobody, or too short.
#[test]
fn spdk_2781_data_that_was_not_asked_for() {
    let server = Server::new(vec![0; 1 << 20]);
    type Spoil = (&'static str, fn(&mut DataOut), usize);
    let spoils: [Spoil; 7] = [
        ("longer", |_| {}, 32_768 + 512),
        ("shorter", |_| {}, 512),
        ("not the last, but all", |out| out.final_pdu = false, 32_768),
        ("elsewhere", |out| out.buffer_offset = 512, 32_768 - 512),
        ("far beyond", |out| out.buffer_offset = u32::MAX - 511, 512),
        ("another number", |out| out.data_sn = 5, 32_768),
        ("another tag", |out| out.target_transfer_tag ^= 1, 32_768),
    ];
    for (what, spoil, len) in spoils {
        let mut raw = server.login();
        raw.ready();
        let (command, r2t) = asked(&mut raw);
        let mut out = data_out(&raw, &r2t);
        spoil(&mut out);
        raw.send(out.encode(), &vec![7; len]);
        if !out.final_pdu {
            // The end of its sequence.
            (out.final_pdu, out.data_sn) = (true, 1);
            raw.send(out.encode(), &[]);
        }
        let done = raw.finish(&command, &[]);
        assert_eq!((done.status, done.sense.map(|sense| sense.0)), (2, Some(0xb)), "{what}");
        raw.ready();
        assert_eq!(raw.read(&ten(0x28, 0, 64), 32_768).good(), vec![0; 32_768], "{what}");
    }
    // Data for no command is passed over.
    let mut raw = server.login();
    raw.ready();
    let stray = R2t {
        lun: 0,
        initiator_task_tag: 0x999,
        target_transfer_tag: 5,
        r2t_sn: 0,
        buffer_offset: 0,
        desired_data_length: 512,
    };
    let out = data_out(&raw, &stray);
    raw.send(out.encode(), &[1; 512]);
    raw.ready();
}

#[test]
fn unsolicited_data_where_none_was_agreed() {
    let server = Server::new(vec![0; 1 << 20]);
    let mut raw = Raw::login(server.address(), &[("InitialR2T", "Yes"), ("ImmediateData", "No")]);
    raw.ready();
    let command = raw.prepare(&ten(0x2a, 0, 64), 32_768, true);
    raw.send(command.encode(), &[]);
    let r2t = R2t::decode(&raw.receive().unwrap().header).unwrap();
    let mut out = data_out(&raw, &r2t);
    out.target_transfer_tag = NONE;
    raw.send(out.encode(), &[7; 32_768]);
    raw.finish(&command, &[]).refused(0xb, 0x0c, 0x0c);
    // More immediate data than was agreed ends the session.
    let mut raw = Raw::login(server.address(), &[("FirstBurstLength", "4096")]);
    raw.ready();
    let command = raw.prepare(&ten(0x2a, 0, 64), 32_768, true);
    raw.send(command.encode(), &[7; 8192]);
    assert!(raw.receive().is_none());
    server.login().ready();
}

/// Data that comes with commands that want none, or say that there is none.
#[test]
fn data_where_there_is_none() {
    let server = Server::new(vec![3; 1 << 20]);
    let mut raw = server.login();
    raw.ready();
    for cdb in [ten(0x28, 0, 8), ten(0x2a, 0, 8), ten(0x35, 0, 0), [0; 10]] {
        let command = raw.prepare(&cdb, 0, false);
        raw.send(command.encode(), &[9; 4096]);
        let done = raw.finish(&command, &[]);
        assert_eq!((done.status, done.data.len()), (0, 0));
    }
    assert_eq!(raw.read(&ten(0x28, 0, 8), 4096).good(), [3; 4096]);
}

/// A window used up at once, by commands that are answered on the spot and by such that are not.
#[test]
fn a_whole_window_at_once() {
    let server = Server::new(vec![3; 1 << 20]);
    let mut raw = server.login();
    raw.ready();
    for round in 0..20 {
        let write = round % 2 == 1;
        let mut bytes = Vec::new();
        for _ in 0..128 {
            let opcode = if write { 0x2a } else { 0x28 };
            let mut header = raw.prepare(&ten(opcode, 0, 1), 512, write).encode();
            header[6] = if write { 2 } else { 0 };
            bytes.extend(header);
            bytes.resize(bytes.len() + if write { 512 } else { 0 }, 3);
        }
        raw.stream.write_all(&bytes).unwrap();
        let mut numbers = (0, 0, 0);
        for _ in 0..128 {
            numbers = raw.receive().unwrap().numbers();
        }
        assert_eq!(numbers.2.wrapping_sub(numbers.1), 127, "the window is open again");
    }
}

#[test]
fn segments_longer_than_agreed() {
    let server = Server::new(vec![0; 1 << 20]);
    let mut raw = server.login();
    raw.ready();
    let mut header = raw.prepare(&[0; 6], 0, false).encode();
    header[5..8].fill(0xff);
    raw.stream.write_all(&header).unwrap();
    assert!(raw.receive().is_none());
    // Before the login 8 KiB are the most.
    let mut raw = Raw::connect(server.address());
    let mut header =
        raw.login_request(backstay_iscsi::proto::pdu::Stage::Operational, None).encode();
    header[5..8].copy_from_slice(&[0, 0x20, 1]);
    raw.stream.write_all(&header).unwrap();
    assert!(raw.receive().is_none());
    server.login().ready();
}

/// edk2 #9794 and #9796: lengths whose sum goes round.
#[test]
fn edk2_9796_lengths_whose_sum_goes_round() {
    let server = Server::new(vec![0; 1 << 20]);
    let mut raw = server.login();
    raw.ready();
    let mut header = raw.prepare(&[0; 6], 0, false).encode();
    // As many additional headers as there can be, and none of them sent.
    header[4] = 0xff;
    raw.stream.write_all(&header).unwrap();
    raw.stream.write_all(&[0; 1020]).unwrap();
    // Such a command has a header of its own that no command here has.
    let pdu = raw.receive().unwrap();
    assert_eq!((pdu.header[3], pdu.data[14]), (2, 0x20));
    raw.ready();
    // An UNMAP whose lengths are larger than it is.
    let mut list = [0xff; 24];
    list[4..8].fill(0);
    raw.write(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list, 24).refused(5, 0x1a, 0);
}

/// LIO, CVE-2020-28374: EXTENDED COPY reached any disk. There is none here.
#[test]
fn cve_2020_28374_no_third_party_copies() {
    let server = Server::new(vec![0; 1 << 20]);
    let mut raw = server.login();
    for opcode in [0x83, 0x84] {
        let mut cdb = [0; 16];
        cdb[0] = opcode;
        raw.write(&cdb, &[0; 64], 0).refused(5, 0x20, 0);
    }
}

/// SPDK #89: sessions that come and go with commands under way.
#[test]
fn spdk_89_initiators_that_vanish_with_commands_under_way() {
    let server = Server::new(vec![1; 8 << 20]);
    for round in 0..100u32 {
        let mut raw = Raw::connect(server.address());
        raw.isid[5] = round as u8;
        assert_eq!(raw.log_in_as(NAME, &[]).0.status, 0);
        for i in 0..32 {
            let command = match i % 3 {
                0 => raw.prepare(&ten(0x2a, 0, 128), 65_536, true),
                _ => raw.prepare(&ten(0x28, 0, 2048), 1 << 20, false),
            };
            raw.send(command.encode(), &[]);
        }
        if round % 2 == 0 {
            // Its last command is cut off.
            raw.stream.write_all(&[1; 20]).unwrap();
        }
    }
    crate::support::eventually("they are gone", || server.table.attached(TARGET).is_empty());
    let start = Instant::now();
    server.login().ready();
    assert!(start.elapsed() < Duration::from_secs(1));
}

/// An initiator that asks for much and takes nothing holds up itself.
#[test]
fn who_takes_nothing_holds_up_nobody_else() {
    let server = Server::new(vec![1; 16 << 20]);
    let mut greedy = server.login();
    for _ in 0..127 {
        let command = greedy.prepare(&ten(0x28, 0, 16384), 8 << 20, false);
        greedy.send(command.encode(), &[]);
    }
    let mut modest = Raw::connect(server.address());
    modest.isid[5] = 2;
    assert_eq!(modest.log_in_as(NAME, &[]).0.status, 0);
    let start = Instant::now();
    for _ in 0..100 {
        modest.read(&ten(0x28, 0, 8), 4096).good();
    }
    assert!(start.elapsed() < Duration::from_secs(2));
}

/// Bytes that mean nothing, and PDUs with bits changed, by a seed: the target lives, and serves others.
#[test]
fn noise() {
    let seed: u64 = std::env::var("BACKSTAY_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(5);
    println!("seed {seed}");
    let server = Server::new(vec![0; 1 << 20]);
    let mut state = seed | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u32
    };
    for round in 0..300u32 {
        let mut raw = Raw::connect(server.address());
        raw.isid[5] = round as u8;
        if round % 3 > 0 {
            assert_eq!(raw.log_in_as(NAME, &[]).0.status, 0, "{round}");
        }
        for _ in 0..20 {
            let mut pdu = match round % 3 {
                2 => raw
                    .prepare(&[random() as u8; 16], random() % 100_000, random() % 2 == 0)
                    .encode(),
                _ => std::array::from_fn(|_| random() as u8),
            };
            if round % 3 == 2 && random() % 4 == 0 {
                pdu[random() as usize % 48] ^= 1 << (random() % 8);
            }
            if raw.stream.write_all(&pdu).is_err() {
                break;
            }
        }
    }
    let start = Instant::now();
    server.login().ready();
    assert!(start.elapsed() < Duration::from_secs(2));
}
