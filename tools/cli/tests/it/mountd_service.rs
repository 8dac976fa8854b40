//! The mount daemon under a service manager: a socket handed over, and readiness told.

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::mountd::{list, mount, text, with_backup};
use super::support::{BIN, noise, wait_until};

/// What a service manager does: makes the socket, hands it over as descriptor 3, and runs the program.
const MANAGER: &str = "
import os, socket, sys
path, program = sys.argv[1:3]
os.makedirs(os.path.dirname(path))
made = socket.socket(socket.AF_UNIX)
made.bind(path)
made.listen()
if made.fileno() != 3:
    os.dup2(made.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))
os.execv(program, sys.argv[2:])
";

#[test]
fn a_service_manager_hands_over_the_socket_and_hears_that_it_is_ready() {
    let place = with_backup(&noise(31, 256 << 10));
    let (control, notify) = (place.text("state/run/mountd.sock"), place.path("notify"));
    let hears = UnixDatagram::bind(&notify).expect("a socket");
    hears.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    let as_users_do = place.command(&["mountd"]);
    let mut manager = Command::new("python3");
    manager.args(["-c", MANAGER, &control, BIN, "mountd"]).env("NOTIFY_SOCKET", &notify);
    manager.envs(as_users_do.get_envs().filter_map(|(name, value)| Some((name, value?))));
    // So that it is ended with the test: its pid is in the lock file.
    let manager = manager.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut manager = manager.expect("python3 is installed");
    let mut said = [0; 64];
    let n = hears.recv(&mut said).expect("it says that it is ready");
    assert_eq!(&said[..n], b"READY=1");
    // Nobody started another: the mount is with this one.
    let id = text(&mount(&place, &["web01"]), "id");
    let lock = std::fs::read_to_string(place.path("state/lock")).expect("the lock file");
    assert_eq!(lock.trim(), manager.id().to_string());
    assert_eq!(list(&place).len(), 1);
    place.run(&["mount", "end", &id]).code(0);
    let pid = rustix::process::Pid::from_child(&manager);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("the signal is sent");
    wait_until("it ends", || manager.try_wait().expect("its end").is_some());
    assert!(place.path("state/run/mountd.sock").exists(), "the socket is the manager's");
}
