//! The kernel's own NBD client against the mount daemon: a Linux guest attaches exports, makes and
//! checks file systems on them, and loses the daemon under it.
//!
//! A killed daemon leaves its host's cache behind. That a flush reaches the disk itself is shown
//! where power cuts are simulated, with the overlay.

use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use super::linux_guest::{FIRST_PORT, Guest, SERVER, note};
use super::mountd::{contents, daemon, list, mount, restored, text, with_backup};
use super::support::{Place, noise, sample};

/// Bytes of a write that the kernel sends in one piece.
const BLOCK: usize = 64 << 10;

/// The loopback port of a mount.
fn port(view: &Value) -> u16 {
    let uris = view["uris"].as_array().expect("uris").iter().filter_map(Value::as_str);
    let mut ports = uris.filter_map(|uri| {
        let (port, _) = uri.strip_prefix("nbd://127.0.0.1:")?.split_once('/')?;
        port.parse().ok()
    });
    ports.next().expect("a port of the loopback")
}

/// A mount as it is listed.
fn found(place: &Place, id: &str) -> Value {
    list(place).into_iter().find(|m| m["id"] == *id).expect("the mount")
}

/// Attaches the first server's export over two connections.
fn attach(guest: &mut Guest, name: &str) {
    guest.run(&format!("nbd-client -C 2 -N {name} {SERVER} {FIRST_PORT} /dev/nbd0"));
}

/// The command that `mount nbd` has told for it, with the address as the guest sees it.
fn told(view: &Value, port: u16, guest_port: u16, device: &str) -> String {
    let commands = view["client_commands"].as_array().expect("commands");
    let told = commands.iter().find(|c| c["tool"] == "nbd-client").expect("one for nbd-client");
    let there = text(told, "command").replace(&format!("127.0.0.1 {port} "), "HOST PORT ");
    assert!(there.contains("HOST PORT /dev/nbd0 "), "{told}");
    there.replace("HOST PORT /dev/nbd0", &format!("{SERVER} {guest_port} {device}"))
}

/// A device's checksum, read past the guest's cache.
pub(super) fn sum(guest: &mut Guest, device: &str) -> String {
    let said = guest.run(&format!("dd if={device} bs=1M iflag=direct status=none | sha256sum"));
    said.split(' ').next().expect("a sum").to_owned()
}

/// The same of bytes of ours, by another program.
pub(super) fn sum_of(place: &Place, bytes: &[u8]) -> String {
    let path = place.image("summed.raw", bytes);
    let done = Command::new("sha256sum").arg(path).output().expect("sha256sum runs");
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    said.split(' ').next().expect("a sum").to_owned()
}

/// The ext4 tools of this host find nothing to say about it.
pub(super) fn sound(place: &Place, bytes: &[u8]) {
    let path = place.image("checked.raw", bytes);
    let mut check = Command::new("e2fsck");
    check.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    let done = check.args(["-f", "-n", &path]).output().expect("e2fsck is installed");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
}

#[test]
fn the_kernel_reads_writes_and_trims() {
    let mut content = noise(11, 8 << 20);
    content.resize(16 << 20, 0);
    content.extend(noise(12, 8 << 20));
    let place = with_backup(&content);
    // An odd end, of which a kernel sees whole sectors.
    let odd = sample(13);
    let image = place.image("web02.raw", &odd);
    place.run(&["backup", &image, "-m", "web02"]).code(0);
    let daemon = daemon(&place);
    let view = mount(&place, &["web01", "--writable", "--listen", "127.0.0.1:0"]);
    let plain = mount(&place, &["web02", "--listen", "127.0.0.1:0"]);
    let ports = [port(&view), port(&plain)];
    let Some(mut guest) = Guest::boot("kernel_nbd", &place, &ports) else { return };

    guest.run(&told(&plain, ports[1], FIRST_PORT + 1, "/dev/nbd1"));
    let sectors = &odd[..odd.len() / 512 * 512];
    assert_eq!(guest.run("blockdev --getsize64 /dev/nbd1"), sectors.len().to_string());
    assert_eq!(guest.run("blockdev --getro /dev/nbd1"), "1");
    assert_eq!(sum(&mut guest, "/dev/nbd1"), sum_of(&place, sectors));
    let (status, _) = guest.tell("dd if=/dev/zero of=/dev/nbd1 bs=4k count=1 oflag=direct");
    assert_ne!(status, 0, "a read-only export was written to");
    guest.run("nbd-client -d /dev/nbd1");

    let id = text(&view, "id");
    attach(&mut guest, &id);
    let seen = found(&place, &id);
    assert_eq!(seen["clients"].as_array().map(Vec::len), Some(2), "{seen}");
    assert_eq!(guest.run("blockdev --getsize64 /dev/nbd0"), content.len().to_string());
    let queue = "cat /sys/block/nbd0/queue/write_cache /sys/block/nbd0/queue/fua";
    assert_eq!(guest.run(queue), "write back\n1", "flush and FUA are not used");
    assert_eq!(sum(&mut guest, "/dev/nbd0"), sum_of(&place, &content));

    guest.run("blkdiscard -o 1048576 -l 1048576 /dev/nbd0");
    let mut expected = content.clone();
    expected[1 << 20..2 << 20].fill(0);
    assert_eq!(sum(&mut guest, "/dev/nbd0"), sum_of(&place, &expected), "discarded");
    file_system(&mut guest, &place, &id);
    let seen = sum(&mut guest, "/dev/nbd0");
    guest.run("nbd-client -d /dev/nbd0");
    // The command that users are told does the same.
    guest.run(&told(&view, ports[0], FIRST_PORT, "/dev/nbd2"));
    assert_eq!(sum(&mut guest, "/dev/nbd2"), seen);
    guest.run("nbd-client -d /dev/nbd2");
    drop(guest);

    let written = contents(&place, &text(&view, "uri"));
    assert_eq!(sum_of(&place, &written), seen, "the overlay holds something else");
    sound(&place, &written);
    assert!(restored(&place, "web01") == content, "the recovery point changed");
    place.run(&["mount", "end", &id, "--save"]).code(0);
    assert!(restored(&place, "web01@latest") == written, "the saved point");
    drop(daemon);
}

/// Makes a file system, fills, trims and checks it; what it held is there when it is mounted again.
fn file_system(guest: &mut Guest, place: &Place, id: &str) {
    let kept = || found(place, id)["disks"][0]["overlay"]["data_bytes"].as_u64().expect("a number");
    guest.run("mke2fs -F -q -t ext4 /dev/nbd0");
    guest.run("mount -t ext4 /dev/nbd0 /mnt");
    for name in ["kept", "gone"] {
        guest.run(&format!("dd if=/dev/urandom of=/mnt/{name} bs=64k count=64 status=none"));
    }
    guest.run("for i in $(seq 100); do echo $i >/mnt/small$i; done");
    guest.run("sync; rm /mnt/gone; (cd /mnt; sha256sum kept small*) >/tmp/sums; sync");
    let before = kept();
    let trimmed = guest.run("fstrim -v /mnt");
    // `/mnt: 17.1 MiB (17922048 bytes) trimmed`
    let bytes = trimmed.split_once('(').and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    let bytes: u64 = bytes.unwrap_or_else(|| panic!("{trimmed}"));
    assert!(bytes >= 4 << 20, "{trimmed}");
    // The ends of what is free need not be where the overlay's blocks end.
    assert!(kept() + (3 << 20) <= before, "trimmed, and yet kept: {before}, {}", kept());
    guest.run("umount /mnt");
    guest.run("e2fsck -fn /dev/nbd0");
    // Without what the guest remembers of it.
    guest.run("echo 3 >/proc/sys/vm/drop_caches; blockdev --flushbufs /dev/nbd0");
    guest.run("mount -t ext4 -o ro /dev/nbd0 /mnt && (cd /mnt && sha256sum -c -s /tmp/sums)");
    guest.run("umount /mnt");
}

/// The seed of this run, printed so that it can be repeated.
fn seed() -> u64 {
    let named = std::env::var("BACKSTAY_SEED").ok().and_then(|s| s.parse().ok());
    let seed = named.unwrap_or_else(|| u64::from(std::process::id()));
    note(&format!("seed {seed} (repeat with BACKSTAY_SEED={seed})"));
    seed
}

/// What block `block` holds after it was written in round `round`.
fn block(round: u8, block: usize) -> Vec<u8> {
    let line = format!("round {round} block {block}\n");
    line.bytes().cycle().take(BLOCK).collect()
}

/// A guest's loop that writes blocks one after the other and says so when each is on the disk.
fn writer(round: u8, name: usize, first: usize, last: usize) -> String {
    format!(
        "(for i in $(seq {first} {last}); do yes \"round {round} block $i\" | head -c {BLOCK} | \
         dd of=/dev/nbd0 bs={BLOCK} seek=$i count=1 iflag=fullblock oflag=direct \
         conv=fsync,notrunc status=none || break; echo acked $i; done) 2>/dev/null & \
         writer{name}=$!"
    )
}

/// The numbers of lines that say `acked N`.
fn acked(said: &[String]) -> impl Iterator<Item = usize> + '_ {
    said.iter().filter_map(|line| line.strip_prefix("acked ")?.parse().ok())
}

#[test]
fn what_the_kernel_was_told_is_written_survives_a_killed_daemon() {
    let seed = seed();
    let mut expected = noise(21, 24 << 20);
    let place = with_backup(&expected);
    let mut running = daemon(&place);
    let view = mount(&place, &["web01", "--writable", "--listen", "127.0.0.1:0"]);
    let (id, uri) = (text(&view, "id"), text(&view, "uri"));
    let Some(mut guest) = Guest::boot("kernel_nbd", &place, &[port(&view)]) else { return };
    let blocks = expected.len() / BLOCK;
    for round in 1..=3u8 {
        attach(&mut guest, &id);
        // Two at once, on a half of the disk each.
        let firsts = [0, blocks / 2];
        let wanted = 4 + (seed.wrapping_mul(u64::from(round)) % 24) as usize;
        let mut said = Vec::new();
        for (name, first) in firsts.into_iter().enumerate() {
            said.extend(guest.tell(&writer(round, name, first, first + blocks / 2 - 1)).1);
        }
        while acked(&said).count() < wanted {
            said.push(guest.line());
        }
        running.signal(Signal::KILL);
        running.end();
        // What is under way fails only when somebody gives the device up.
        said.extend(guest.tell("nbd-client -d /dev/nbd0").1);
        said.extend(guest.tell("wait $writer0; wait $writer1").1);
        note(&format!("round {round}: {} writes were acknowledged", acked(&said).count()));
        running = daemon(&place);
        let found = contents(&place, &uri);
        for i in acked(&said) {
            expected[i * BLOCK..][..BLOCK].copy_from_slice(&block(round, i));
            assert!(found[i * BLOCK..][..BLOCK] == block(round, i), "round {round}, block {i}");
        }
        // The one that each was writing may have come in, in part.
        for first in firsts {
            let done = acked(&said).filter(|i| (first..first + blocks / 2).contains(i)).count();
            assert!(done < blocks / 2, "it was through before the daemon was killed");
            let under_way = (first + done) * BLOCK..(first + done + 1) * BLOCK;
            expected[under_way.clone()].copy_from_slice(&found[under_way]);
        }
        assert!(found == expected, "round {round}: something else changed");
    }
    journal(&mut guest, &place, &id, running);
    assert!(restored(&place, "web01") == noise(21, 24 << 20), "the recovery point changed");
}

/// The daemon dies under a mounted file system: what was synced is there after the journal was
/// replayed, and the file system is sound.
fn journal(guest: &mut Guest, place: &Place, id: &str, daemon: super::support::Running) {
    attach(guest, id);
    guest.run("mke2fs -F -q -t ext4 /dev/nbd0 && mount -t ext4 /dev/nbd0 /mnt");
    let writer = "(for i in $(seq 1000); do echo \"file $i\" >/mnt/f$i && sync /mnt/f$i /mnt && \
                  echo acked $i || break; done) 2>/dev/null & writer=$!";
    let mut said = guest.tell(writer).1;
    while acked(&said).count() < 8 {
        said.push(guest.line());
    }
    daemon.signal(Signal::KILL);
    daemon.end();
    said.extend(guest.tell("nbd-client -d /dev/nbd0").1);
    said.extend(guest.tell("wait $writer").1);
    guest.run("umount /mnt");
    let running = super::mountd::daemon(place);
    attach(guest, id);
    guest.run("mount -t ext4 /dev/nbd0 /mnt");
    for i in acked(&said) {
        assert_eq!(guest.run(&format!("cat /mnt/f{i}")), format!("file {i}"));
    }
    note(&format!("journal: {} files were acknowledged", acked(&said).count()));
    guest.run("umount /mnt && e2fsck -fn /dev/nbd0");
    guest.run("nbd-client -d /dev/nbd0");
    drop(running);
}
