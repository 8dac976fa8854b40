//! What a reader may still do: talk on its lanes, use a bounded amount of memory, end.

use std::collections::BTreeMap;

use rustix::process::{DumpableBehavior, Resource, Rlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// Calls that a thread which computes and waits needs, whatever their arguments.
const FREE: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
];
/// Calls whose first argument is a descriptor: only for the sockets to the parent.
const ON_LANES: &[libc::c_long] = &[
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_write,
    libc::SYS_writev,
];
/// Calls whose third argument must not ask for memory that can be executed.
const WITHOUT_EXEC: &[libc::c_long] = &[libc::SYS_mmap, libc::SYS_mprotect];

/// Confines this process, all its threads, for good. Afterwards every other system call is refused.
///
/// `lanes` are the descriptors it may use; `memory_bytes` is what it may take beyond what it has now.
pub(super) fn confine(lanes: &[i32], memory_bytes: u64) -> Result<(), String> {
    limits(memory_bytes).map_err(|e| format!("cannot set limits: {e}"))?;
    let filter = filter(lanes).map_err(|e| format!("cannot make a seccomp filter: {e}"))?;
    // Sets "no new privileges" first.
    seccompiler::apply_filter_all_threads(&filter)
        .map_err(|e| format!("this kernel does not confine it (seccomp): {e}"))
}

fn limits(memory_bytes: u64) -> std::io::Result<()> {
    let set = |resource, most| {
        rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
    };
    // What is mapped already is mostly this program.
    let mapped = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = mapped.split(' ').next().and_then(|p| p.parse().ok()).unwrap_or(0);
    set(Resource::As, pages * rustix::param::page_size() as u64 + memory_bytes)?;
    set(Resource::Fsize, 0)?;
    set(Resource::Core, 0)?;
    set(Resource::Nproc, 0)?;
    set(Resource::Nofile, 0)?;
    // Nobody else of this user looks into what it reads.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

fn filter(lanes: &[i32]) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in FREE {
        rules.insert(*call, Vec::new());
    }
    for call in ON_LANES {
        let mut list = Vec::with_capacity(lanes.len());
        for lane in lanes {
            let is = SeccompCondition::new(
                0,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::Eq,
                u64::try_from(*lane).unwrap_or(u64::MAX),
            )?;
            list.push(SeccompRule::new(vec![is])?);
        }
        rules.insert(*call, list);
    }
    for call in WITHOUT_EXEC {
        let none = SeccompCondition::new(
            2,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64),
            0,
        )?;
        rules.insert(*call, vec![SeccompRule::new(vec![none])?]);
    }
    let arch = std::env::consts::ARCH.try_into()?;
    // Refused and not killed: libraries ask the system for this and that (how many processors there are), and do without.
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, refused, SeccompAction::Allow, arch)?;
    filter.try_into()
}
