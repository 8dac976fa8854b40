//! Which process stands behind a session, and whether it is known to be dead.

use backstay_format::session::Owner;

/// This process.
pub(crate) fn this_process() -> Owner {
    let read =
        |path: &str| std::fs::read_to_string(path).map(|s| s.trim().to_owned()).unwrap_or_default();
    let pid = std::process::id();
    Owner {
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        boot: boot(&read("/etc/machine-id"), &read("/proc/sys/kernel/random/boot_id")),
        pid,
        namespace: namespace(),
        started: started(pid).unwrap_or(0),
    }
}

/// The machine and one run of its kernel; empty where either is not known.
fn boot(machine: &str, boot: &str) -> String {
    if machine.is_empty() || boot.is_empty() { String::new() } else { format!("{machine}/{boot}") }
}

fn namespace() -> String {
    let link = std::fs::read_link("/proc/self/ns/pid");
    link.map(|p| p.to_string_lossy().into_owned()).unwrap_or_default()
}

/// When process `pid` of our namespace started: field 22 of `/proc/PID/stat` (proc(5)). Nothing if
/// there is no such process.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// Whether the owner certainly lives no more, as far as this host can tell: it ran here, and its
/// process is gone or its kernel is not running any more. Another host's owner is never known to be
/// dead.
pub(crate) fn known_dead(owner: &Owner) -> bool {
    let me = this_process();
    let (Some((my_machine, _)), Some((machine, _))) =
        (me.boot.split_once('/'), owner.boot.split_once('/'))
    else {
        return false;
    };
    if machine != my_machine || owner.host != me.host {
        return false;
    }
    if owner.boot != me.boot {
        return true;
    }
    // Numbers of processes mean nothing across namespaces.
    let comparable = !owner.namespace.is_empty() && owner.namespace == me.namespace;
    comparable && owner.started != 0 && started(owner.pid) != Some(owner.started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_living_the_dead_and_the_unknown() {
        let me = this_process();
        assert!(!known_dead(&me));
        if me.boot.is_empty() || me.started == 0 {
            println!("SKIPPED: this machine does not tell its boot or its processes' start");
            return;
        }
        assert!(known_dead(&Owner { started: me.started + 1, ..me.clone() }), "number used again");
        let machine = me.boot.split_once('/').unwrap().0;
        assert!(known_dead(&Owner { boot: format!("{machine}/other"), ..me.clone() }), "rebooted");
        let elsewhere = [
            Owner { boot: "other/other".into(), ..me.clone() },
            Owner { boot: String::new(), ..me.clone() },
            Owner { namespace: "other".into(), started: 1, ..me.clone() },
            Owner { host: "other".into(), started: 1, ..me.clone() },
        ];
        assert!(elsewhere.iter().all(|o| !known_dead(o)));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let of_child = Owner { pid: child.id(), started: 1, ..me };
        child.wait().unwrap();
        assert!(known_dead(&of_child));
    }
}
