//! Units: what they say of themselves, errors of their devices, reservations that outlive the target, atomic writes.

use std::io;
use std::sync::{Arc, Mutex};

use backstay_blockdev::layer::{Fault, Operation, ReadOnly, Rule};
use backstay_blockdev::{BlockDevice, ErrorKind, MemDevice};
use backstay_iscsi::scsi::Keeper;
use backstay_iscsi::server::{ServerConfig, TargetSpec};

use crate::support::{NAME, Raw, Server, TARGET, target, ten, unit};

#[test]
fn units_have_names_and_sizes_of_their_own() {
    let small = Arc::new(MemDevice::new(vec![0; 1 << 20]));
    let large = Arc::new(MemDevice::new(vec![0; 3 << 20]));
    let server = Server::with(
        target(TARGET, vec![unit(0, small), unit(300, large)]),
        ServerConfig::default(),
    );
    let mut raw = server.login();
    let luns = raw.read(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], 256).good();
    assert_eq!(luns[..4], [0, 0, 0, 16]);
    assert_eq!(luns[8..24], [0, 0, 0, 0, 0, 0, 0, 0, 0x41, 0x2c, 0, 0, 0, 0, 0, 0]);
    let mut seen = Vec::new();
    for (lun, blocks) in [(0u64, 2048u64), (0x412c_u64 << 48, 6144)] {
        let mut ask = |cdb: &[u8]| {
            let mut command = raw.prepare(cdb, 252, false);
            command.lun = lun;
            raw.send(command.encode(), &[]);
            raw.finish(&command, &[])
        };
        let mut capacity = [0; 16];
        (capacity[0], capacity[1], capacity[13]) = (0x9e, 0x10, 32);
        let told = loop {
            // The first answers tell of a reset.
            let done = ask(&capacity);
            if done.status == 0 {
                break done.good();
            }
        };
        assert_eq!(told[..8], (blocks - 1).to_be_bytes());
        assert_eq!((&told[8..12], told[13], told[14]), (&[0, 0, 2, 0][..], 3, 0xc0));
        let page = |done: Vec<u8>| done[4..].to_vec();
        let serial = page(ask(&[0x12, 1, 0x80, 0, 252, 0]).good());
        let names = page(ask(&[0x12, 1, 0x83, 0, 252, 0]).good());
        seen.push((serial, names));
    }
    assert_ne!(seen[0].0, seen[1].0);
    assert_ne!(seen[0].1, seen[1].1);
    // A unit that is not there says so, and answers INQUIRY.
    let mut command = raw.prepare(&[0; 6], 0, false);
    command.lun = 7 << 48;
    raw.send(command.encode(), &[]);
    raw.finish(&command, &[]).refused(5, 0x25, 0);
}

#[test]
fn what_may_not_be_written_is_not() {
    let bytes = vec![5; 1 << 20];
    let unwritable = Server::of(Arc::new(ReadOnly::new(Arc::new(MemDevice::new(bytes.clone())))));
    let device = Arc::new(MemDevice::new(bytes.clone()));
    let reader = Server::with(
        TargetSpec {
            allow: vec!["127.0.0.1=ro".parse().unwrap()],
            ..target(TARGET, vec![unit(0, device.clone())])
        },
        ServerConfig::default(),
    );
    for server in [&unwritable, &reader] {
        let mut raw = server.login();
        let mode = raw.read(&[0x1a, 0, 0x3f, 0, 252, 0], 252).good();
        assert_eq!(mode[2] & 0x80, 0x80, "WP");
        let mut same = [0; 16];
        (same[0], same[13]) = (0x93, 1);
        let mut compare = [0; 16];
        (compare[0], compare[13]) = (0x89, 1);
        let mut or = [0; 16];
        (or[0], or[13]) = (0x8b, 1);
        for (cdb, len) in [
            (ten(0x2a, 0, 1).to_vec(), 512),
            (vec![0x0a, 0, 0, 0, 1, 0], 512),
            (ten(0x2e, 0, 1).to_vec(), 512),
            (ten(0x41, 0, 1).to_vec(), 512),
            (vec![0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], 24),
            (same.to_vec(), 512),
            (compare.to_vec(), 1024),
            (or.to_vec(), 512),
        ] {
            raw.write(&cdb, &vec![0; len], 0).refused(7, 0x27, 0);
        }
        // What initiators send on attaching is fine.
        for cdb in [[0x1b, 0, 0, 0, 1, 0, 0, 0, 0, 0], ten(0x34, 0, 8), ten(0x35, 0, 0), [0; 10]] {
            raw.read(&cdb, 0).good();
        }
        assert_eq!(raw.read(&ten(0x28, 0, 1), 512).good(), [5; 512]);
    }
    let mut now = vec![0; 1 << 20];
    device.read_at(0, &mut now).unwrap();
    assert!(now == bytes);
}

/// LBA + length beyond the end, and beyond 64 bits.
#[test]
fn ranges_behind_the_end() {
    let server = Server::new(vec![0; 1 << 20]);
    let mut raw = server.login();
    for (lba, count) in [
        (2048u64, 1u32),
        (2047, 2),
        (u64::MAX, 1),
        (u64::MAX, u32::MAX),
        (1 << 63, 1),
        (0, u32::MAX),
    ] {
        for opcode in [0x88u8, 0x8f, 0x91, 0x90, 0x8a, 0x8e, 0x8b, 0x93] {
            let mut cdb = [0; 16];
            cdb[0] = opcode;
            cdb[2..10].copy_from_slice(&lba.to_be_bytes());
            cdb[10..14].copy_from_slice(&count.to_be_bytes());
            let done = raw.read(&cdb, 0);
            done.refused(5, 0x21, 0);
        }
    }
    let mut status = [0; 16];
    (status[0], status[1], status[13]) = (0x9e, 0x12, 24);
    status[2..10].copy_from_slice(&u64::MAX.to_be_bytes());
    raw.read(&status, 24).refused(5, 0x21, 0);
    let mut too_long = [0; 16];
    too_long[0] = 0x88;
    too_long[10..14].copy_from_slice(&1000u32.to_be_bytes());
    raw.read(&too_long, 512_000).good();
}

#[test]
fn a_devices_errors_are_told() {
    let device = Arc::new(Fault::new(Arc::new(MemDevice::new(vec![0; 1 << 20]))));
    let server = Server::of(device.clone());
    let mut raw = server.login();
    raw.ready();
    let mut check = |operation, kind, sense: (u8, u8, u8)| {
        device.add(Rule { operation, range: 0..4096, kind, times: None });
        let done = match operation {
            Operation::Write => raw.write(&ten(0x2a, 0, 1), &[1; 512], 512),
            Operation::Flush => raw.read(&ten(0x35, 0, 0), 0),
            _ => raw.read(&ten(0x28, 0, 1), 512),
        };
        done.refused(sense.0, sense.1, sense.2);
        assert!(done.data.is_empty(), "no data for a failure");
        device.clear();
        raw.ready();
    };
    check(Operation::Read, ErrorKind::Damaged, (3, 0x11, 0));
    check(Operation::Read, ErrorKind::Io, (0xb, 0x44, 0));
    check(Operation::Write, ErrorKind::NoSpace, (7, 0x27, 7));
    check(Operation::Write, ErrorKind::Io, (0xb, 0x44, 0));
    check(Operation::Flush, ErrorKind::Io, (0xb, 0x44, 0));
    // A write that is put off waits, and is done when there is room; pings and reads go on meanwhile.
    device.add(Rule {
        operation: Operation::Write,
        range: 0..4096,
        kind: ErrorKind::Paused,
        times: Some(2),
    });
    let command = raw.prepare(&ten(0x2a, 0, 1), 512, true);
    raw.send(command.encode(), &[8; 512]);
    assert_eq!(raw.read(&ten(0x28, 8, 1), 512).good(), [0; 512]);
    raw.finish(&command, &[]).good();
    assert_eq!(raw.read(&ten(0x28, 0, 1), 512).good(), [8; 512]);
}

/// What a unit's reservations are kept in, and whether that works.
#[derive(Debug, Default)]
struct Shelf {
    kept: Mutex<Option<Vec<u8>>>,
    broken: Mutex<bool>,
}

impl Keeper for Shelf {
    fn load(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.kept.lock().unwrap().clone())
    }

    fn save(&self, state: &[u8]) -> io::Result<()> {
        if *self.broken.lock().unwrap() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        *self.kept.lock().unwrap() = Some(state.to_vec());
        Ok(())
    }
}

fn persistent_out(
    raw: &mut Raw,
    action: u8,
    kind: u8,
    key: u64,
    service: u64,
) -> crate::support::Done {
    let mut list = [0; 24];
    list[..8].copy_from_slice(&key.to_be_bytes());
    list[8..16].copy_from_slice(&service.to_be_bytes());
    raw.write(&[0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0], &list, 24)
}

#[test]
fn persistent_reservations_outlive_sessions_and_targets() {
    let shelf = Arc::new(Shelf::default());
    let bytes = vec![0; 1 << 20];
    let serve = || {
        let mut spec = unit(0, Arc::new(MemDevice::new(bytes.clone())));
        spec.keeper = Some(shelf.clone());
        Server::with(target(TARGET, vec![spec]), ServerConfig::default())
    };
    let login = |server: &Server, isid: u8| {
        let mut raw = Raw::connect(server.address());
        raw.isid[5] = isid;
        assert_eq!(raw.log_in_as(NAME, &[]).0.status, 0);
        raw.ready();
        raw
    };
    let server = serve();
    let mut owner = login(&server, 1);
    persistent_out(&mut owner, 0, 0, 0, 0xabc).good();
    persistent_out(&mut owner, 1, 1, 0xabc, 0).good();
    let mut other = login(&server, 2);
    assert_eq!(other.write(&ten(0x2a, 0, 1), &[1; 512], 512).status, 0x18, "reservation conflict");
    other.read(&ten(0x28, 0, 1), 512).good();
    // The session is lost, and made anew: it is still the holder.
    drop(owner);
    let mut owner = login(&server, 1);
    owner.write(&ten(0x2a, 0, 1), &[1; 512], 512).good();
    // The target, too.
    drop((owner, other, server));
    let server = serve();
    let (mut owner, mut other) = (login(&server, 1), login(&server, 2));
    assert_eq!(other.write(&ten(0x2a, 0, 1), &[1; 512], 512).status, 0x18);
    owner.write(&ten(0x2a, 0, 1), &[1; 512], 512).good();
    // What cannot be kept is not done.
    *shelf.broken.lock().unwrap() = true;
    persistent_out(&mut owner, 2, 1, 0xabc, 0).refused(5, 0x55, 4);
    assert_eq!(other.write(&ten(0x2a, 0, 1), &[1; 512], 512).status, 0x18);
    *shelf.broken.lock().unwrap() = false;
    persistent_out(&mut owner, 2, 1, 0xabc, 0).good();
    other.write(&ten(0x2a, 0, 1), &[2; 512], 512).good();
    let status = other.read(&[0x5e, 3, 0, 0, 0, 0, 0, 1, 0, 0], 256).good();
    let name = String::from_utf8_lossy(&status).into_owned();
    assert!(name.contains(&format!("{NAME},i,0x800000000001")), "{name:?}");
}

/// Hosts take locks by COMPARE AND WRITE: of many at once one wins, every time.
#[test]
fn compare_and_write_is_one_step() {
    let server = Server::new(vec![0; 1 << 20]);
    let address = server.address();
    let wins: usize = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..4u8)
            .map(|lane| {
                scope.spawn(move || {
                    let mut raw = Raw::connect(address);
                    raw.isid[5] = lane;
                    assert_eq!(raw.log_in_as(NAME, &[]).0.status, 0);
                    raw.ready();
                    let mut cdb = [0; 16];
                    (cdb[0], cdb[13]) = (0x89, 1);
                    let mut wins = 0;
                    for round in 0..200u8 {
                        cdb[9] = round;
                        let mut data = vec![0; 1024];
                        data[512..].fill(lane + 1);
                        let done = raw.write(&cdb, &data, 1024);
                        match done.sense {
                            None => wins += 1,
                            Some(sense) => assert_eq!(sense, (0xe, 0x1d, 0)),
                        }
                    }
                    wins
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).sum()
    });
    assert_eq!(wins, 200);
}

#[test]
fn disks_of_odd_sizes_are_rounded_up() {
    let device = Arc::new(MemDevice::new(vec![9; 10_000]));
    let server = Server::of(device);
    let mut raw = server.login();
    let capacity = raw.read(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8).good();
    assert_eq!(capacity[..4], 19u32.to_be_bytes());
    let last = raw.read(&ten(0x28, 19, 1), 512).good();
    assert!(last[..272] == [9; 272] && last[272..] == [0; 240]);
    let mut new = [4; 512];
    assert_eq!(raw.write(&ten(0x2a, 19, 1), &new, 512).status, 2);
    new[272..].fill(0);
    raw.write(&ten(0x2a, 19, 1), &new, 512).good();
    assert_eq!(raw.read(&ten(0x28, 19, 1), 512).good(), new);
}
