//! Data both ways: bursts, digests, residuals, and a device beside a model.

use std::sync::Arc;

use backstay_blockdev::{BlockDevice, MemDevice};
use backstay_iscsi::proto::Serial;
use backstay_iscsi::proto::pdu::{DataIn, DataOut, R2t, Reject, RejectReason, Residual, opcode};

use crate::support::{NONE, Raw, Server, ten};

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 512) as u8).collect()
}

/// Every way data can be moved: with and without digests, immediate and unsolicited data, short segments and bursts.
#[test]
fn data_comes_and_goes_however_it_is_cut() {
    let bytes = pattern(2 << 20);
    for digests in ["None", "CRC32C"] {
        for (r2t, immediate) in [("Yes", "Yes"), ("No", "Yes"), ("Yes", "No"), ("No", "No")] {
            for (segment, burst) in
                [("512", "512"), ("8192", "65536"), ("1000", "3000"), ("262144", "1048576")]
            {
                let server = Server::new(bytes.clone());
                let keys = [
                    ("HeaderDigest", digests),
                    ("DataDigest", digests),
                    ("InitialR2T", r2t),
                    ("ImmediateData", immediate),
                    ("MaxRecvDataSegmentLength", segment),
                    ("MaxBurstLength", burst),
                ];
                let mut raw = Raw::login(server.address(), &keys);
                let read = raw.read(&ten(0x28, 3, 300), 300 * 512).good();
                assert!(read == bytes[3 * 512..303 * 512], "{keys:?}");
                let new: Vec<u8> = pattern(200 * 512).iter().map(|byte| !byte).collect();
                let first = if immediate == "Yes" { 512 } else { 0 };
                raw.write(&ten(0x2a, 1000, 200), &new, first).good();
                assert!(raw.read(&ten(0x28, 1000, 200), 200 * 512).good() == new, "{keys:?}");
            }
        }
    }
}

#[test]
fn reads_keep_to_what_was_agreed() {
    let server = Server::new(pattern(1 << 20));
    let keys = [("MaxRecvDataSegmentLength", "4096"), ("MaxBurstLength", "8192")];
    let mut raw = Raw::login(server.address(), &keys);
    raw.ready();
    let command = raw.prepare(&ten(0x28, 0, 40), 40 * 512, false);
    raw.send(command.encode(), &[]);
    for i in 0..5u32 {
        let pdu = raw.receive().unwrap();
        let part = DataIn::decode(&pdu.header).unwrap();
        assert_eq!((part.data_sn, part.buffer_offset, pdu.data.len()), (i, i * 4096, 4096));
        assert_eq!(part.final_pdu, i % 2 == 1 || i == 4, "the end of a burst");
        assert_eq!(part.status.is_some(), i == 4);
    }
}

/// Unsolicited data, up to the first burst, and the rest by R2T.
#[test]
fn the_first_burst_comes_unasked() {
    let server = Server::new(vec![0; 1 << 20]);
    let keys = [("InitialR2T", "No"), ("FirstBurstLength", "8192"), ("MaxBurstLength", "16384")];
    let mut raw = Raw::login(server.address(), &keys);
    raw.ready();
    let data = pattern(64 * 512);
    let mut command = raw.prepare(&ten(0x2a, 0, 64), data.len() as u32, true);
    command.final_pdu = false;
    raw.send(command.encode(), &data[..512]);
    let mut out = DataOut {
        final_pdu: false,
        lun: 0,
        initiator_task_tag: command.initiator_task_tag,
        target_transfer_tag: NONE,
        exp_stat_sn: Serial::new(raw.stat_sn),
        data_sn: 0,
        buffer_offset: 512,
    };
    raw.send(out.encode(), &data[512..4096]);
    (out.final_pdu, out.data_sn, out.buffer_offset) = (true, 1, 4096);
    raw.send(out.encode(), &data[4096..8192]);
    for (at, len) in [(8192, 16384), (24576, 8192)] {
        let r2t = R2t::decode(&raw.receive().unwrap().header).unwrap();
        assert_eq!((r2t.buffer_offset, r2t.desired_data_length), (at, len));
        raw.answer(&r2t, &data);
    }
    raw.finish(&command, &data).good();
    assert!(raw.read(&ten(0x28, 0, 64), data.len() as u32).good() == data);
}

/// RFC 7143, 11.4.5: what the initiator expects and what the command wants differ.
#[test]
fn residuals() {
    let server = Server::new(pattern(1 << 20));
    let mut raw = server.login();
    for (expected, moved, residual) in [
        (512, 512, Residual::None),
        (4096, 512, Residual::Underflow(3584)),
        (200, 200, Residual::Overflow(312)),
        (0, 0, Residual::Overflow(512)),
    ] {
        let done = raw.read(&ten(0x28, 0, 1), expected);
        assert_eq!((done.status, done.data.len(), done.residual), (0, moved, residual));
    }
    // Data both ways, and the wrong way.
    let mut command = raw.prepare(&ten(0x28, 0, 1), 512, true);
    command.read = false;
    raw.send(command.encode(), &[0; 512]);
    let done = raw.finish(&command, &[]);
    assert_eq!((done.status, done.data.len()), (0, 0));
    let mut command = raw.prepare(&ten(0x28, 0, 1), 512, true);
    command.read = true;
    raw.send(command.encode(), &[0; 512]);
    raw.finish(&command, &[]).refused(5, 0x20, 0);
    raw.ready();
}

/// A write whose data is too short for it writes what came, in whole blocks, and says what is missing.
#[test]
fn short_writes() {
    let device = Arc::new(MemDevice::new(vec![1; 1 << 20]));
    let server = Server::of(device.clone());
    let mut raw = server.login();
    raw.ready();
    let done = raw.write(&ten(0x2a, 0, 2), &[9; 512], 512);
    assert_eq!((done.status, done.residual), (0, Residual::Overflow(512)));
    let mut bytes = [0; 1024];
    device.read_at(0, &mut bytes).unwrap();
    assert!(bytes[..512] == [9; 512] && bytes[512..] == [1; 512]);
    raw.write(&ten(0x2a, 8, 1), &[9; 200], 200).refused(5, 0x0e, 3);
    // Lists and pairs of blocks are taken whole or not at all.
    let mut compare = [0; 16];
    (compare[0], compare[13]) = (0x89, 1);
    raw.write(&compare, &[9; 512], 512).refused(5, 0x24, 0);
    device.read_at(4096, &mut bytes).unwrap();
    assert!(bytes == [1; 1024]);
}

#[test]
fn a_wrong_digest_ends_what_it_belongs_to() {
    let server = Server::new(vec![0; 1 << 20]);
    let keys = [("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")];
    let broken = |spoil: fn(&mut Vec<u8>)| {
        let mut raw = Raw::login(server.address(), &keys);
        raw.ready();
        let command = raw.prepare(&ten(0x2a, 0, 1), 512, true);
        // As it goes over the wire, with right sums; then one bit is another.
        let mut bytes = Vec::new();
        let mut header = command.encode();
        header[6] = 2;
        bytes.extend(header);
        bytes.extend(backstay_iscsi::proto::digest::crc32c(&header).to_le_bytes());
        bytes.extend([7; 512]);
        bytes.extend(backstay_iscsi::proto::digest::crc32c(&[7; 512]).to_le_bytes());
        spoil(&mut bytes);
        std::io::Write::write_all(&mut raw.stream, &bytes).unwrap();
        raw
    };
    let mut header = broken(|bytes| bytes[33] ^= 1);
    assert!(header.receive().is_none(), "a header that lies ends the connection");
    let mut data = broken(|bytes| bytes[100] ^= 1);
    let reject = data.receive().unwrap();
    assert_eq!(Reject::decode(&reject.header).unwrap().reason, RejectReason::DataDigestError);
    assert!(data.receive().is_none(), "at error recovery level 0 the session begins anew");
    let mut raw = server.login();
    assert_eq!(raw.read(&ten(0x28, 0, 1), 512).good(), [0; 512], "nothing of it was written");
}

/// Random commands, beside a model: one session, and four that write their own part each.
#[test]
fn a_disk_behaves_as_its_model() {
    let seed: u64 = std::env::var("BACKSTAY_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(11);
    println!("seed {seed}");
    let server = Server::new(vec![0; 4 << 20]);
    let address = server.address();
    std::thread::scope(|scope| {
        for lane in 0..4u32 {
            scope.spawn(move || drive(address, seed + u64::from(lane), lane));
        }
    });
}

fn drive(address: std::net::SocketAddr, seed: u64, lane: u32) {
    let blocks = 2048u32;
    let first = lane * blocks;
    let mut model = vec![0u8; blocks as usize * 512];
    let mut raw = Raw::connect(address);
    raw.isid[5] = lane as u8;
    assert_eq!(raw.log_in_as(crate::support::NAME, &[("InitialR2T", "No")]).0.status, 0);
    raw.ready();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move |below: u32| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as u32 % below
    };
    for step in 0..2000 {
        let count = 1 + random(64);
        let lba = random(blocks - count);
        let range = lba as usize * 512..(lba + count) as usize * 512;
        let at = first + lba;
        match random(6) {
            0 | 1 => {
                let data: Vec<u8> = (0..range.len()).map(|i| (i as u32 + step) as u8).collect();
                let immediate = random(3) as usize * 1024;
                raw.write(&ten(0x2a, at, count as u16), &data, immediate).good();
                model[range].copy_from_slice(&data);
            }
            2 => {
                let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
                list.extend(u64::from(at).to_be_bytes());
                list.extend(count.to_be_bytes());
                list.extend([0; 4]);
                raw.write(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list, 24).good();
                model[range].fill(0);
            }
            3 => {
                let mut cdb = ten(0x41, at, count as u16).to_vec();
                cdb[1] = 0;
                raw.write(&cdb, &[step as u8; 512], 512).good();
                model[range].fill(step as u8);
            }
            _ => {
                let data = raw.read(&ten(0x28, at, count as u16), count * 512).good();
                assert!(data == model[range], "lane {lane}, step {step}");
            }
        }
    }
    let (mut at, mut all) = (0, Vec::new());
    while at < blocks {
        all.extend(raw.read(&ten(0x28, first + at, 256), 256 * 512).good());
        at += 256;
    }
    assert!(all == model, "lane {lane}");
    assert_eq!(opcode::DATA_IN, 0x25);
}
