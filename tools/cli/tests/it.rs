//! The real binary, run as users run it: arguments in, exit code, stdout and stderr out.

mod it {
    mod browse;
    mod changes;
    mod copy;
    mod errors;
    mod gc;
    mod guest_disk;
    mod help;
    mod interrupt;
    mod iscsi_target;
    mod journey;
    mod kernel_iscsi;
    mod kernel_iscsi_boot;
    mod kernel_iscsi_lost;
    mod kernel_nbd;
    mod keys;
    mod linux_guest;
    mod mount_iscsi;
    mod mountd;
    mod mountd_killed;
    mod mountd_service;
    mod mountd_tls;
    mod mounts;
    mod point;
    mod recovery;
    mod repair;
    mod retention;
    mod search;
    mod support;
    mod together;
    mod volume_groups;
}
