//! A machine that boots from a recovery point over iSCSI, with the initiator that QEMU has of its
//! own (libiscsi): firmware, boot loader, kernel and files all come from the mount.

use super::iscsi_target::{Proof, Server, can_serve};
use super::linux_guest::{boot_from, bootable, note};
use super::mountd::with_backup;

#[test]
fn a_machine_boots_from_the_mount() {
    let test = "kernel_iscsi_boot";
    let Some(disk) = bootable(test) else { return };
    let content = std::fs::read(disk).expect("the disk");
    let place = with_backup(&content);
    if !can_serve(test, &place) {
        return;
    }
    let mut server = Server::start(&place);
    let target = server.serve(&place, "web01", true, Proof::Initiator, 1);
    let chap = target.chap.as_ref().expect("a secret");
    let uri = format!(
        "iscsi://{}%{}@127.0.0.1:{}/{}/{}",
        chap.name, chap.secret, target.ports[0], target.name, target.lun
    );
    for boot in 1..=2 {
        let Some(said) = boot_from(test, &uri) else { return };
        // What it wrote at its first boot is there at the second.
        let wanted = format!("boot {boot}: ");
        let line = said.iter().find_map(|line| line.split_once(&wanted));
        let (_, line) = line.unwrap_or_else(|| panic!("no {wanted} in {said:?}"));
        assert!(line.ends_with(" files read from /dev/vda2"), "{line}");
        note(&format!("{test}: boot {boot}: {line}"));
    }
    let written = server.contents(&place, "web01", &target);
    assert_eq!(written.len(), content.len());
    assert!(written != content, "nothing was written");
}
