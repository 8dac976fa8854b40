//! The iSCSI target that tests of initiators log in to: a mount of ours.
//!
//! With `BACKSTAY_ISCSI_TARGET=tgt` it is one of tgtd's (package tgt) with the same disk. What then
//! fails as well is not our server's fault, but the test's, the guest's or the initiator's.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::linux_guest::guarded;
use super::mountd::{daemon, list, restored, text};
use super::support::{Place, Running, skipped, wait_until};

/// Who proves what to whom.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    None,
    Initiator,
    Mutual,
}

/// A name and what it proves itself with.
#[derive(Clone)]
pub(super) struct Secret {
    pub(super) name: String,
    pub(super) secret: String,
}

/// A target with one disk.
pub(super) struct Target {
    pub(super) name: String,
    /// Its ports on the loopback.
    pub(super) ports: Vec<u16>,
    pub(super) lun: u64,
    /// What the initiator has to prove, and what the target proves in turn.
    pub(super) chap: Option<Secret>,
    pub(super) chap_target: Option<Secret>,
    /// The mount's name, or the backing file's.
    id: String,
}

/// What serves targets; it is gone when the test ends, however it ends.
pub(super) enum Server {
    Ours(Option<Running>),
    Tgt(Tgt),
}

impl Server {
    /// Starts it; machines are backed up at the place by their names.
    pub(super) fn start(place: &Place) -> Self {
        if std::env::var("BACKSTAY_ISCSI_TARGET").is_ok_and(|name| name == "tgt") {
            return Self::Tgt(Tgt::new());
        }
        Self::Ours(Some(daemon(place)))
    }

    /// Whether it has everything that ours is asked to have.
    pub(super) fn is_ours(&self) -> bool {
        matches!(self, Self::Ours(_))
    }

    /// Presents the newest point of a machine, whose disk is at `MACHINE.raw`, at so many portals.
    pub(super) fn serve(
        &mut self,
        place: &Place,
        machine: &str,
        writable: bool,
        proof: Proof,
        portals: usize,
    ) -> Target {
        match self {
            Self::Ours(_) => mount(place, machine, writable, proof, portals),
            Self::Tgt(tgt) => tgt.serve(place, machine, writable, proof, portals),
        }
    }

    /// Kills it and starts it again, with the same targets.
    pub(super) fn kill_and_restart(&mut self, place: &Place) {
        match self {
            Self::Ours(running) => {
                if let Some(running) = running.take() {
                    running.signal(Signal::KILL);
                    running.end();
                }
                *running = Some(daemon(place));
            }
            Self::Tgt(tgt) => tgt.kill_and_restart(),
        }
    }

    /// What was written through the target, when nobody is logged in any more: saved as a recovery
    /// point and restored.
    pub(super) fn contents(&self, place: &Place, machine: &str, target: &Target) -> Vec<u8> {
        match self {
            Self::Ours(_) => {
                place.run(&["mount", "end", &target.id, "--save"]).code(0);
                restored(place, &format!("{machine}@latest"))
            }
            Self::Tgt(_) => std::fs::read(&target.id).expect("the backing file"),
        }
    }
}

impl Server {
    /// Bytes that the overlay of a target takes, where there is one.
    pub(super) fn kept_bytes(&self, place: &Place, target: &Target) -> Option<u64> {
        let mounts = self.is_ours().then(|| list(place))?;
        let found = mounts.iter().find(|mount| mount["id"] == *target.id).expect("the mount");
        found["disks"][0]["overlay"]["data_bytes"].as_u64()
    }
}

/// Whether this binary serves iSCSI; a test that cannot run says so.
pub(super) fn can_serve(test: &str, place: &Place) -> bool {
    let ours = place.run(&["mount", "iscsi", "--help"]).code == 0;
    let there = ours || std::env::var_os("BACKSTAY_ISCSI_TARGET").is_some();
    if !there {
        skipped(&format!("{test}: this binary has no `mount iscsi`"));
    }
    there
}

fn mount(place: &Place, machine: &str, writable: bool, proof: Proof, portals: usize) -> Target {
    let mut args = vec!["mount", "iscsi", machine, "--json"];
    for _ in 0..portals {
        args.extend(["--listen", "127.0.0.1:0"]);
    }
    args.extend(writable.then_some("--writable"));
    args.extend((proof == Proof::Initiator).then_some("--chap"));
    args.extend((proof == Proof::Mutual).then_some("--chap-mutual"));
    let view = place.run(&args).code(0).json();
    let iscsi = &view["iscsi"];
    let portal = |portal: &Value| {
        let port = portal.as_str().and_then(|p| p.strip_prefix("127.0.0.1:")?.parse().ok());
        port.unwrap_or_else(|| panic!("no portal of the loopback: {portal}"))
    };
    let ports: Vec<u16> =
        iscsi["portals"].as_array().expect("portals").iter().map(portal).collect();
    let secret = |name: &str| {
        let chap = iscsi.get(name)?;
        Some(Secret { name: text(chap, "name"), secret: text(chap, "secret") })
    };
    Target {
        name: text(iscsi, "target"),
        // Those of its own come first.
        ports: ports[..portals].to_vec(),
        lun: view["disks"][0]["lun"].as_u64().expect("a unit number"),
        chap: secret("chap"),
        chap_target: secret("chap_target"),
        id: text(&view, "id"),
    }
}

/// A port of the loopback that is free now.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

/// Ports of a `tgtd` of the test's own; enough for every test.
const TGT_PORTS: usize = 3;

/// A `tgtd` of the test's own, with the commands that made its targets.
pub(super) struct Tgt {
    dir: tempfile::TempDir,
    child: Child,
    ports: Vec<u16>,
    used: usize,
    targets: usize,
    told: Vec<Vec<String>>,
}

impl Tgt {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ports: Vec<u16> = (0..TGT_PORTS).map(|_| free_port()).collect();
        let child = Self::spawn(&dir, &ports);
        Self { dir, child, ports, used: 0, targets: 0, told: Vec::new() }
    }

    fn spawn(dir: &tempfile::TempDir, ports: &[u16]) -> Child {
        let portals: Vec<String> = ports.iter().map(|p| format!("portal=127.0.0.1:{p}")).collect();
        let mut command = guarded(std::path::Path::new("/usr/sbin/tgtd"));
        command.args(["-f", "-C", "7", "--iscsi", &portals.join(",")]);
        command.env("TGT_IPC_SOCKET", dir.path().join("control"));
        let child = command.stderr(Stdio::null()).spawn().expect("tgtd (package tgt) starts");
        wait_until("tgtd answers", || Self::tell(dir, &["--op", "show", "--mode", "system"]));
        child
    }

    fn tell<A: AsRef<std::ffi::OsStr>>(dir: &tempfile::TempDir, args: &[A]) -> bool {
        let mut command = Command::new("/usr/sbin/tgtadm");
        command.env("TGT_IPC_SOCKET", dir.path().join("control"));
        command.args(["-C", "7"]).args(args).output().is_ok_and(|done| done.status.success())
    }

    /// Tells it and remembers it, for the next one.
    fn order(&mut self, line: &str) {
        let words = ["--lld", "iscsi"].into_iter().chain(line.split(' '));
        let words: Vec<String> = words.map(str::to_owned).collect();
        assert!(Self::tell(&self.dir, &words), "tgtadm {line}");
        self.told.push(words);
    }

    fn serve(
        &mut self,
        place: &Place,
        machine: &str,
        writable: bool,
        proof: Proof,
        portals: usize,
    ) -> Target {
        self.targets += 1;
        let tid = self.targets;
        let file = place.text(&format!("{machine}.tgt{tid}"));
        std::fs::copy(place.path(&format!("{machine}.raw")), &file).expect("a copy of the disk");
        let name = format!("iqn.2026-11.test.tgt:{machine}.{tid}");
        self.order(&format!("--op new --mode target --tid {tid} -T {name}"));
        self.order(&format!("--op new --mode logicalunit --tid {tid} --lun 1 -b {file}"));
        let access = u8::from(!writable);
        self.order(&format!(
            "--op update --mode logicalunit --tid {tid} --lun 1 --params \
             scsi_sn=serial{tid},lbppbe=3,thin_provisioning={writable},readonly={access}",
            writable = u8::from(writable)
        ));
        self.order(&format!("--op bind --mode target --tid {tid} -I ALL"));
        for digest in ["HeaderDigest", "DataDigest"] {
            let line = format!("--op update --mode target --tid {tid} --name {digest}");
            self.order(&format!("{line} --value CRC32C,None"));
        }
        let mut account = |name: &str, outgoing: &str| {
            let name = format!("{name}{tid}");
            let secret = format!("secret-of-{name}");
            self.order(&format!("--op new --mode account --user {name} --password {secret}"));
            self.order(&format!("--op bind --mode account --tid {tid} --user {name}{outgoing}"));
            Secret { name, secret }
        };
        let chap = (proof != Proof::None).then(|| account("guest", ""));
        let chap_target = (proof == Proof::Mutual).then(|| account("target", " --outgoing"));
        self.used += portals;
        let ports = self.ports[self.used - portals..self.used].to_vec();
        Target { name, ports, lun: 1, chap, chap_target, id: file }
    }

    fn kill_and_restart(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.child = Self::spawn(&self.dir, &self.ports);
        for line in &self.told {
            assert!(Self::tell(&self.dir, line), "tgtadm {line:?}");
        }
    }
}

impl Drop for Tgt {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A way to a port of the loopback that the test can cut.
pub(super) struct Gate {
    pub(super) port: u16,
    shut: Arc<AtomicBool>,
    inside: Arc<Mutex<Vec<TcpStream>>>,
}

impl Gate {
    /// Opens it. Its threads end with the connections, the first one with the test.
    pub(super) fn open(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let (shut, inside) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::default()));
        let gate = Self { port, shut, inside };
        let (shut, inside) = (Arc::clone(&gate.shut), Arc::clone(&gate.inside));
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                // Under the lock: `cut` sees this connection, or this sees that it is shut.
                let mut inside = inside.lock().expect("nobody fails with it");
                if shut.load(Ordering::Acquire) {
                    continue;
                }
                let Ok(far) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    from.set_nodelay(true).expect("a socket");
                    let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
                    let (from, to) = (clone(from), clone(to));
                    inside.push(clone(&from));
                    std::thread::spawn(move || carry(from, to));
                }
            }
        });
        gate
    }

    /// Ends what goes through it, and lets nobody in.
    pub(super) fn cut(&self) {
        let mut inside = self.inside.lock().expect("nobody fails with it");
        self.shut.store(true, Ordering::Release);
        for stream in inside.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Lets all in again.
    pub(super) fn mend(&self) {
        self.shut.store(false, Ordering::Release);
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 256 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// How long a killed server is given until the initiator is back.
pub(super) const BACK: Duration = Duration::from_secs(60);
