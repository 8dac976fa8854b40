//! The kernel's iSCSI initiator loses portals and daemons: multipath goes on over the other portal,
//! and a killed daemon costs time but nothing else.

use std::time::Duration;

use super::iscsi_target::{BACK, Gate, Proof, Server, can_serve};
use super::kernel_iscsi::{Kernel, Way};
use super::kernel_nbd::sound;
use super::linux_guest::note;
use super::mountd::with_backup;
use super::support::noise;

/// How often the daemon is killed.
const KILLS: usize = 3;
/// Writes that must be acknowledged between two of them.
const BETWEEN: u64 = 60;

/// Lets fio finish the pass that it is at, and shows what it said if it failed.
const FIO_ENDS: &str = "touch /tmp/enough; wait $fio || { cat /tmp/fio.log; false; }";

/// One pass of fio: it writes every block of the device once, reads them all, and compares what it
/// reads with what it has written, which is something else for every `$seed`.
fn pass(device: &str, more: &str) -> String {
    // The link's name has colons, which part names for fio.
    format!(
        "fio --name=verified --eta=never --filename=$(readlink -f {device}) --direct=1 \
         --ioengine=libaio --iodepth=8 --rw=randwrite --bs=8k --verify=crc32c --verify_fatal=1 \
         --do_verify=1 --randseed=$seed {more} >/tmp/fio.log 2>&1"
    )
}

/// Passes in the background, one after the other: a busy host is slow at what the test does
/// meanwhile.
fn passes(device: &str, more: &str) -> String {
    let pass = pass(device, more);
    format!(
        "(seed=1; while {pass}; do echo $seed >/tmp/seed; seed=$((seed + 1)); \
         [ -e /tmp/enough ] && exit 0; done; exit 1) & fio=$!"
    )
}

/// Requests to write that a device has answered, of which there must be one.
fn writes(kernel: &mut Kernel, device: &str) -> u64 {
    let stat = format!("cat /sys/block/$(basename $(readlink -f {device}))/stat");
    let said = kernel.run(&stat);
    let count = said.split_whitespace().nth(4).and_then(|count| count.parse().ok());
    count.unwrap_or_else(|| panic!("{said}"))
}

/// Waits until so many more have been answered.
fn wait_for_writes(kernel: &mut Kernel, device: &str, more: u64) {
    let wanted = writes(kernel, device) + more;
    let start = std::time::Instant::now();
    while writes(kernel, device) < wanted {
        if start.elapsed() > BACK {
            let why = kernel.guest.tell("cat /tmp/fio.log; jobs; dmesg | tail").1.join("\n");
            panic!("{device} does not go on: {why}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// How multipathd is told to do it: both paths at once, and no patience with a path that is gone.
const MULTIPATH: &str = "defaults {\\n user_friendly_names yes\\n find_multipaths no\\n \
    path_grouping_policy group_by_prio\\n path_selector \"round-robin 0\"\\n polling_interval 1\\n \
    no_path_retry 60\\n}\\nblacklist {\\n devnode \"^(nbd|vd)\"\\n}\\n";

#[test]
fn multipath_goes_on_when_a_portal_is_gone() {
    let content = noise(41, 8 << 20);
    let place = with_backup(&content);
    if !can_serve("kernel_iscsi_multipath", &place) {
        return;
    }
    let mut server = Server::start(&place);
    let disk = server.serve(&place, "web01", true, Proof::Initiator, 2);
    let gates = [Gate::open(disk.ports[0]), Gate::open(disk.ports[1])];
    let ports = [gates[0].port, gates[1].port];
    let Some(mut kernel) = Kernel::boot("kernel_iscsi_multipath", &place, &ports) else { return };
    kernel.run(&format!("printf '{MULTIPATH}' >/etc/multipath.conf; multipathd"));
    let ways = [0, 1].map(|port| Way { target: &disk, port });
    for way in ways {
        kernel.record(way, "default");
        kernel.set(way, &[("node.session.timeo.replacement_timeout", "2")]);
        kernel.login(way);
    }
    let all = "multipathd show paths raw format '%d %t %o' | grep -c 'active *running'";
    kernel.wait_until("both paths", BACK, &format!("[ $({all}) = 2 ]"));
    kernel.run("udevadm settle --timeout=20");
    let seen = kernel.run("multipath -ll");
    assert_eq!(seen.lines().filter(|line| line.contains("dm-")).count(), 1, "not one disk: {seen}");
    if server.is_ours() {
        assert!(seen.contains("hwhandler='1 alua'"), "ALUA is not used: {seen}");
    }
    note(&seen);
    kernel.step("assembling");

    let both: Vec<String> = ways.iter().map(Way::device).collect();
    let before = [writes(&mut kernel, &both[0]), writes(&mut kernel, &both[1])];
    kernel.run(&passes("/dev/mapper/mpatha", "--rate_iops=100,100"));
    for round in 0..2 {
        // The one, then the other: each must be good for everything.
        let (gate, lost, left) = (&gates[round], &both[round], &both[1 - round]);
        wait_for_writes(&mut kernel, lost, 20);
        gate.cut();
        let failed = "multipathd show paths raw format '%d %t %o' | grep -q failed";
        kernel.wait_until("the path is given up", BACK, failed);
        wait_for_writes(&mut kernel, left, 40);
        kernel.run("kill -0 $fio");
        gate.mend();
        kernel.wait_until("both paths are back", BACK, &format!("[ $({all}) = 2 ]"));
        kernel.step(&format!("losing portal {round}"));
    }
    kernel.run(FIO_ENDS);
    for (device, before) in both.iter().zip(before) {
        assert!(writes(&mut kernel, device) > before, "{device} was never used");
    }
    kernel
        .run("udevadm settle --timeout=20 && multipath -R 5 -f mpatha && kill $(pidof multipathd)");
    for way in ways {
        kernel.logout(way);
    }
    kernel.step("everything");
}

#[test]
fn a_killed_daemon_costs_the_initiator_nothing_but_time() {
    let place = with_backup(&noise(42, 12 << 20));
    let image = place.image("web02.raw", &vec![0; 16 << 20]);
    place.run(&["backup", &image, "-m", "web02"]).code(0);
    if !can_serve("kernel_iscsi_killed", &place) {
        return;
    }
    let mut server = Server::start(&place);
    let raw = server.serve(&place, "web01", true, Proof::Initiator, 1);
    let files = server.serve(&place, "web02", true, Proof::None, 1);
    let ports = [raw.ports[0], files.ports[0]];
    let Some(mut kernel) = Kernel::boot("kernel_iscsi_killed", &place, &ports) else { return };
    let ways = [Way { target: &raw, port: 0 }, Way { target: &files, port: 1 }];
    for way in ways {
        kernel.record(way, "default");
        kernel.login(way);
    }
    let devices = ways.map(|way| way.device());
    kernel.run(&format!("mke2fs -F -q -t ext4 {0} && mount -t ext4 {0} /mnt", devices[1]));
    let writer = "(for i in $(seq 5000); do echo \"file $i\" >/mnt/f$i && sync /mnt/f$i /mnt && \
                  echo $i >>/tmp/acked || break; [ -e /tmp/enough ] && exit 0; done; exit 1) & \
                  writer=$!";
    kernel.run(writer);
    kernel.run(&passes(&devices[0], "--rate_iops=80,80"));
    for round in 1..=KILLS {
        for device in &devices {
            wait_for_writes(&mut kernel, device, BETWEEN);
        }
        kernel.run("kill -0 $fio && kill -0 $writer");
        server.kill_and_restart(&place);
        let logged_in = "! grep -v LOGGED_IN /sys/class/iscsi_session/session*/state";
        // The initiator notices when it is told, or when a ping remains unanswered.
        for device in &devices {
            wait_for_writes(&mut kernel, device, 1);
        }
        kernel.wait_until("both sessions are back", BACK, logged_in);
        kernel.step(&format!("kill {round}"));
    }
    kernel.run(FIO_ENDS);
    kernel.run("wait $writer");
    let lost = kernel.run("dmesg | grep -c 'detected conn error'");
    let lost: usize = lost.parse().expect("a number");
    assert!(lost >= 2 * KILLS, "{lost} connections were lost");
    let errors = kernel.guest.tell("dmesg | grep -iE 'I/O error|JBD2.*error|EXT4-fs error'").1;
    assert!(errors.is_empty(), "the kernel saw errors: {errors:?}");

    kernel.run("umount /mnt");
    for way in ways {
        kernel.logout(way);
        kernel.login(way);
    }
    kernel.run(&format!("e2fsck -fn {0} && mount -t ext4 -o ro {0} /mnt", devices[1]));
    let check =
        "for i in $(cat /tmp/acked); do [ \"$(cat /mnt/f$i)\" = \"file $i\" ] || echo $i; done";
    assert_eq!(kernel.run(check), "", "files that were acknowledged are lost");
    let acked = kernel.run("wc -l </tmp/acked; umount /mnt");
    note(&format!("kernel_iscsi_killed: {acked} files were acknowledged"));
    // Once more what fio had written, by another process and over another session.
    let again = pass(&devices[0], "--verify_only=1");
    kernel.run(&format!("seed=$(cat /tmp/seed); {again} || {{ cat /tmp/fio.log; false; }}"));
    for way in ways {
        kernel.logout(way);
    }
    kernel.step("everything");
    drop(kernel);
    sound(&place, &server.contents(&place, "web02", &files));
}
