//! The kernel's own iSCSI initiator, with open-iscsi, udev, sg3-utils and fio, in a Linux guest
//! against our target.
//!
//! The guest knows the portals by other addresses than the target tells in discovery, so what is
//! discovered is compared, and the records to log in with are made by name.

use std::time::{Duration, Instant};

use super::iscsi_target::{Proof, Server, Target, can_serve};
use super::kernel_nbd::{sound, sum, sum_of};
use super::linux_guest::{FIRST_PORT, Guest, SERVER, note};
use super::mountd::with_backup;
use super::support::{Place, noise};

/// open-iscsi's exit status where a login was refused for want of proof.
const REFUSED: i32 = 24;
/// The same where no session is there.
const NO_SESSION: i32 = 21;

/// Exit status of sg3-utils where a unit says that it is write protected.
const PROTECTED: i32 = 7;

/// The same where it has something to tell before it does what it was asked.
const UNIT_ATTENTION: i32 = 6;

/// The initiator in the guest.
pub(super) struct Kernel {
    pub(super) guest: Guest,
    test: &'static str,
}

/// A way to a target: one of its portals, as the guest sees it.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) target: &'a Target,
    /// Which of the ports that the guest was booted with.
    pub(super) port: u16,
}

impl Way<'_> {
    fn portal(&self) -> String {
        format!("{SERVER}:{}", FIRST_PORT + self.port)
    }

    fn node(&self) -> String {
        format!("iscsiadm -m node -T {} -p {}", self.target.name, self.portal())
    }

    /// The device that udev names after it.
    pub(super) fn device(&self) -> String {
        let Target { name, lun, .. } = self.target;
        format!("/dev/disk/by-path/ip-{}-iscsi-{name}-lun-{lun}", self.portal())
    }
}

impl Kernel {
    pub(super) fn boot(test: &'static str, place: &Place, ports: &[u16]) -> Option<Self> {
        Some(Self { guest: Guest::boot_with_storage(test, place, ports)?, test })
    }

    /// Says how far the test is, and when.
    pub(super) fn step(&self, what: &str) {
        note(&format!("{}: {what} done after {:.1} s", self.test, self.guest.age().as_secs_f64()));
    }

    #[track_caller]
    pub(super) fn run(&mut self, command: &str) -> String {
        self.guest.run(command)
    }

    /// Makes the record of a way, with what the target wants proven.
    #[track_caller]
    pub(super) fn record(&mut self, way: Way<'_>, interface: &str) {
        self.run(&format!("{} -o new -I {interface}", way.node()));
        let mut settings = Vec::new();
        if let Some(chap) = &way.target.chap {
            settings.extend([
                ("node.session.auth.authmethod", "CHAP"),
                ("node.session.auth.username", &chap.name),
                ("node.session.auth.password", &chap.secret),
            ]);
        }
        if let Some(chap) = &way.target.chap_target {
            settings.extend([
                ("node.session.auth.username_in", chap.name.as_str()),
                ("node.session.auth.password_in", &chap.secret),
            ]);
        }
        self.set(way, &settings);
    }

    #[track_caller]
    pub(super) fn set(&mut self, way: Way<'_>, settings: &[(&str, &str)]) {
        for (name, value) in settings {
            self.run(&format!("{} -o update -n '{name}' -v '{value}'", way.node()));
        }
    }

    /// Logs in and waits for the devices.
    #[track_caller]
    pub(super) fn login(&mut self, way: Way<'_>) {
        self.run(&format!("{} --login", way.node()));
        // The kernel looks for units by itself, and udev does not wait for what it has not heard of.
        let there = format!("udevadm settle --timeout=20 && test -b {}", way.device());
        self.wait_until(&way.device(), Duration::from_secs(30), &there);
    }

    /// Tries to log in; it must be refused, and no session be left.
    #[track_caller]
    fn is_refused(&mut self, way: Way<'_>, what: &str) -> i32 {
        let (status, said) = self.guest.tell(&format!("{} --login", way.node()));
        assert_ne!(status, 0, "{what}: it was let in: {said:?}");
        let (sessions, said) = self.guest.tell("iscsiadm -m session");
        assert_eq!(sessions, NO_SESSION, "{what}: a session is there: {said:?}");
        status
    }

    /// Runs `sg_persist`, once more where a unit had something to tell first: who loses a reservation
    /// is told so when it next says something.
    #[track_caller]
    fn persist(&mut self, command: &str) -> String {
        let command = format!("sg_persist {command}");
        match self.guest.tell(&command) {
            (UNIT_ATTENTION, _) => self.run(&command),
            (0, said) => said.join("\n"),
            (status, said) => panic!("{command}: status {status}: {said:?}"),
        }
    }

    #[track_caller]
    pub(super) fn logout(&mut self, way: Way<'_>) {
        self.run(&format!("{} --logout && udevadm settle --timeout=20", way.node()));
    }

    /// Waits until the command succeeds.
    #[track_caller]
    pub(super) fn wait_until(&mut self, what: &str, limit: Duration, command: &str) {
        let start = Instant::now();
        while self.guest.tell(command).0 != 0 {
            assert!(start.elapsed() < limit, "waited in vain: {what}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[test]
fn the_kernel_logs_in_and_uses_the_disk() {
    let mut content = noise(31, 6 << 20);
    content.resize(12 << 20, 0);
    content.extend(noise(32, 4 << 20));
    let place = with_backup(&content);
    if !can_serve("kernel_iscsi", &place) {
        return;
    }
    let mut server = Server::start(&place);
    let disk = server.serve(&place, "web01", true, Proof::Mutual, 2);
    let plain = server.serve(&place, "web01", false, Proof::Initiator, 1);
    let ports = [disk.ports[0], disk.ports[1], plain.ports[0]];
    let Some(mut kernel) = Kernel::boot("kernel_iscsi", &place, &ports) else { return };
    let ways = [(&disk, 0), (&disk, 1), (&plain, 2)].map(|(target, port)| Way { target, port });

    discovery(&mut kernel, &disk, server.is_ours());
    proofs(&mut kernel, ways);
    kernel.step("logging in");
    identity(&mut kernel, ways, content.len(), server.is_ours());
    kernel.step("looking at the devices");
    let whole = sum_of(&place, &content);
    for way in [ways[1], ways[2]] {
        assert_eq!(sum(&mut kernel.guest, &way.device()), whole, "{}", way.device());
    }
    kernel.step("reading them");
    reservations(&mut kernel, [&ways[0].device(), &ways[1].device()]);
    kernel.step("reserving");
    kernel.logout(ways[1]);
    file_system(&mut kernel, &place, ways[0], &server);
    kernel.step("a file system");

    // Nothing may be left in the guest's cache that the sum would see.
    kernel.run(&format!("blockdev --flushbufs {}", ways[0].device()));
    let seen = sum(&mut kernel.guest, &ways[0].device());
    kernel.logout(ways[0]);
    kernel.logout(ways[2]);
    let (status, said) = kernel.guest.tell("iscsiadm -m session");
    assert_eq!(status, NO_SESSION, "a session is left: {said:?}");
    drop(kernel);
    let written = server.contents(&place, "web01", &disk);
    assert_eq!(sum_of(&place, &written), seen, "what is kept is something else");
    sound(&place, &written);
}

/// The target is found at its portal, with every portal it has.
fn discovery(kernel: &mut Kernel, target: &Target, ours: bool) {
    let found = format!("iscsiadm -m discovery -t sendtargets -p {SERVER}:{FIRST_PORT}");
    let found = kernel.run(&found);
    // tgtd names only the one that it was asked at.
    for port in &target.ports[..if ours { target.ports.len() } else { 1 }] {
        let line = format!("127.0.0.1:{port},1 {}", target.name);
        assert!(found.lines().any(|found| found == line), "{line} is not in {found}");
    }
    kernel.run("iscsiadm -m node -o delete");
}

/// Who does not prove who it is stays out, and so does a target that does not.
fn proofs(kernel: &mut Kernel, [way, other, plain]: [Way<'_>; 3]) {
    let [method, name, secret, name_in, secret_in] = [
        "node.session.auth.authmethod",
        "node.session.auth.username",
        "node.session.auth.password",
        "node.session.auth.username_in",
        "node.session.auth.password_in",
    ];
    let own = way.target.chap.as_ref().expect("it wants proof");
    let back = way.target.chap_target.as_ref().expect("it gives proof");
    let wrong = "another-secret-than-that";
    kernel.record(way, "default");
    // Where it has a name it proves that, whatever the method.
    let none = [(method, "None"), (name, ""), (secret, ""), (name_in, ""), (secret_in, "")];
    kernel.set(way, &none);
    assert_eq!(kernel.is_refused(way, "no proof"), REFUSED);
    kernel.set(way, &[(method, "CHAP"), (name, &own.name), (secret, wrong)]);
    assert_eq!(kernel.is_refused(way, "a wrong secret"), REFUSED);
    kernel.set(way, &[(secret, &own.secret), (name_in, &back.name), (secret_in, wrong)]);
    kernel.is_refused(way, "a target with a wrong secret");
    kernel.set(way, &[(secret_in, &back.secret)]);
    let digests = ["node.conn[0].iscsi.HeaderDigest", "node.conn[0].iscsi.DataDigest"];
    kernel.set(way, &digests.map(|name| (name, "CRC32C")));
    kernel.login(way);
    let agreed = "cat /sys/class/iscsi_connection/*/header_digest \
                  /sys/class/iscsi_connection/*/data_digest";
    assert_eq!(kernel.run(agreed), "1\n1", "digests are not used");

    // Another initiator, which wants no proof of the target.
    let interface = "iscsiadm -m iface -I second";
    kernel.run(&format!("{interface} -o new"));
    let name = "-o update -n iface.initiatorname -v iqn.2026-11.test.guest:second";
    kernel.run(&format!("{interface} {name}"));
    kernel.record(other, "second");
    kernel.set(other, &[(name_in, ""), (secret_in, "")]);
    kernel.login(other);
    kernel.record(plain, "default");
    kernel.login(plain);
}

/// Size, blocks, names and rights are what they should be, the same over both ways.
fn identity(kernel: &mut Kernel, ways: [Way<'_>; 3], bytes: usize, ours: bool) {
    let devices = ways.map(|way| way.device());
    let look = |kernel: &mut Kernel, columns: &str, device: &str| {
        let said = kernel.run(&format!("lsblk -bdno {columns} {device}"));
        said.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    for (device, read_only) in devices.iter().zip(["0", "0", "1"]) {
        let seen = look(kernel, "SIZE,LOG-SEC,PHY-SEC,RO", device);
        assert_eq!(seen, [&bytes.to_string(), "512", "4096", read_only], "{device}");
    }
    let mut names = devices.clone().map(|device| look(kernel, "SERIAL,WWN", &device));
    assert!(names[0].len() == 2 && names[0][1].starts_with("0x"), "{names:?}");
    assert_eq!(names[0], names[1], "the same disk has another name at another portal");
    assert_ne!(names[0][1], names[2][1], "another disk has the same name");
    names.clone_from_slice(&devices.clone().map(|device| {
        let said = kernel.run(&format!("sg_inq {device} && sg_vpd -p di {device}"));
        vec![said]
    }));
    assert_eq!(names[0], names[1]);
    note(&names[0][0]);
    let write = format!("dd if=/dev/zero of={} bs=4k count=1 oflag=direct", devices[2]);
    assert_ne!(kernel.guest.tell(&write).0, 0, "a read-only unit was written to");
    // What the kernel would not even send, the target refuses: DATA PROTECT.
    let block = |device: &str| format!("/sys/block/$(basename $(readlink -f {device}))");
    let generic = format!("/dev/$(basename $(readlink {}/device/generic))", block(&devices[2]));
    let write = format!("sg_raw -s 512 -i /dev/zero {generic} 2a 0 0 0 0 0 0 0 1 0");
    let (status, said) = kernel.guest.tell(&write);
    assert_eq!(status, PROTECTED, "a read-only unit was written to: {said:?}");
    let queue = format!("cd {}/queue; cat write_cache fua; cd /", block(&devices[0]));
    assert_eq!(kernel.run(&queue), "write back\n1", "flush and FUA are not used");
    let provisioning = kernel.run(&format!("sg_vpd -p lbpv {}", devices[0]));
    assert!(provisioning.contains("Unmap command supported (LBPU): 1"), "{provisioning}");
    if ours {
        // Of the hole in the middle of the disk.
        let hole = kernel.run(&format!("sg_get_lba_status -l {} {}", 8 << 11, devices[0]));
        assert!(hole.contains("deallocated"), "{hole}");
        let ports = kernel.run(&format!("sg_rtpg -d {}", devices[0]));
        assert!(ports.contains("active/optimized"), "{ports}");
    }
}

/// A reservation of one initiator keeps the other from writing, until that one takes it over.
fn reservations(kernel: &mut Kernel, [first, second]: [&str; 2]) {
    let out = |kernel: &mut Kernel, what: &str, device: &str| {
        kernel.persist(&format!("--out {what} {device}"));
    };
    let seen = |kernel: &mut Kernel, what: &str| kernel.persist(&format!("--in {what} {first}"));
    let writes = |kernel: &mut Kernel, device: &str| {
        let write = format!("dd if=/dev/zero of={device} bs=4k seek=9 count=1 oflag=direct");
        kernel.guest.tell(&write).0 == 0
    };
    out(kernel, "--register --param-sark=0x1a", first);
    out(kernel, "--register --param-sark=0x2b", second);
    let keys = seen(kernel, "--read-keys");
    assert!(keys.contains("0x1a") && keys.contains("0x2b"), "{keys}");
    // Write exclusive.
    out(kernel, "--reserve --param-rk=0x1a --prout-type=1", first);
    let holder = seen(kernel, "--read-reservation");
    assert!(holder.contains("Key=0x1a") && holder.contains("Write Exclusive"), "{holder}");
    assert!(writes(kernel, first), "who holds the reservation cannot write");
    assert!(!writes(kernel, second), "the other writes in spite of the reservation");
    let read = format!("dd if={second} of=/dev/null bs=4k count=1 iflag=direct");
    kernel.run(&read);
    let (status, _) = kernel
        .guest
        .tell(&format!("sg_persist --out --reserve --param-rk=0x2b --prout-type=1 {second}"));
    assert_ne!(status, 0, "it was reserved twice");
    let preempt = "--preempt --param-rk=0x2b --param-sark=0x1a --prout-type=1";
    out(kernel, preempt, second);
    let keys = seen(kernel, "--read-keys");
    assert!(!keys.contains("0x1a") && keys.contains("0x2b"), "preempted: {keys}");
    assert!(writes(kernel, second), "who has taken it over cannot write");
    assert!(!writes(kernel, first), "who has lost it still writes");
    out(kernel, "--clear --param-rk=0x2b", second);
    let keys = seen(kernel, "--read-keys");
    assert!(!keys.contains("0x2b"), "cleared: {keys}");
    assert!(writes(kernel, first) && writes(kernel, second), "cleared, and yet refused");
}

/// Makes a file system, fills, verifies, trims and checks it; what it held is there when it is
/// mounted again.
fn file_system(kernel: &mut Kernel, place: &Place, way: Way<'_>, server: &Server) {
    let device = way.device();
    kernel.run(&format!("blkdiscard -o 1048576 -l 1048576 {device}"));
    let zeros = format!(
        "dd if={device} bs=1M skip=1 count=1 iflag=direct status=none | tr -d '\\0' | wc -c"
    );
    assert_eq!(kernel.run(&zeros), "0", "discarded, and yet there");
    kernel.run(&format!("mke2fs -F -q -t ext4 {device} && mount -t ext4 {device} /mnt"));
    for name in ["kept", "gone"] {
        kernel.run(&format!("dd if=/dev/urandom of=/mnt/{name} bs=64k count=32 status=none"));
    }
    kernel.run("for i in $(seq 100); do echo $i >/mnt/small$i; done");
    let fio = "fio --name=verified --eta=never --directory=/mnt --size=3m --direct=1 --ioengine=libaio \
               --iodepth=16 --rw=randwrite --bsrange=4k-64k --verify=crc32c --verify_fatal=1 \
               --do_verify=1 --end_fsync=1 --group_reporting=1";
    let said = kernel.run(fio);
    assert!(said.contains("err= 0"), "{said}");
    kernel.run("sync; rm /mnt/gone; (cd /mnt; sha256sum kept small* verified*) >/tmp/sums; sync");
    let before = server.kept_bytes(place, way.target);
    let trimmed = kernel.run("fstrim -v /mnt");
    // `/mnt: 17.1 MiB (17922048 bytes) trimmed`
    let bytes = trimmed.split_once('(').and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    let bytes: u64 = bytes.unwrap_or_else(|| panic!("{trimmed}"));
    assert!(bytes >= 2 << 20, "{trimmed}");
    if let (Some(before), Some(after)) = (before, server.kept_bytes(place, way.target)) {
        // The ends of what is free need not be where the overlay's blocks end.
        assert!(after + (1 << 20) <= before, "trimmed, and yet kept: {before}, {after}");
    }
    kernel.run(&format!("umount /mnt && e2fsck -fn {device}"));
    // Without what the guest remembers of it.
    kernel.run(&format!("echo 3 >/proc/sys/vm/drop_caches; blockdev --flushbufs {device}"));
    kernel.run(&format!(
        "mount -t ext4 -o ro {device} /mnt && (cd /mnt && sha256sum -c -s /tmp/sums)"
    ));
    kernel.run("umount /mnt");
}
