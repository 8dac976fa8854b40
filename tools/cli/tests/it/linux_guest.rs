//! An emulated Linux machine of the test's own, told what to do line by line.
//!
//! It has no disk and no network but the addresses the test gives it: what it knocks at there goes
//! to a port of this host's loopback, and to nothing else.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::support::{Place, skipped};

/// Where the guest finds the first server; the second is at the next port, and so on.
pub(super) const SERVER: &str = "10.0.2.100";
pub(super) const FIRST_PORT: u16 = 10809;

/// Until it must answer for the first time. It takes 4 seconds where nothing else runs.
const BOOT: Duration = Duration::from_secs(60);
/// Until a test must be through with it, from its start on. They take 11 seconds, with iSCSI up to
/// a minute.
const LIFE: Duration = Duration::from_secs(120);
const LIFE_WITH_STORAGE: Duration = Duration::from_secs(240);
/// Until a machine that boots from a disk of the test's must have ended by itself.
const DISK_LIFE: Duration = Duration::from_secs(90);

/// A running guest; killed when the test ends, however it ends.
pub(super) struct Guest {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    /// What its kernel said.
    console: PathBuf,
    booted: Instant,
    end: Instant,
}

/// Says what was seen, for whoever reads the test's output.
pub(super) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// What `cargo xtask bootstrap` has made for this, if it has.
fn made(test: &str) -> Option<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = named("BACKSTAY_BUILD_CACHE")
        .or_else(|| named("XDG_CACHE_HOME").map(|dir| dir.join("backstay")))
        .or_else(|| named("HOME").map(|home| home.join(".cache/backstay")));
    let dir = cache.map(|cache| cache.join("linux-guest"));
    let there = dir.filter(|dir| dir.join("recipe").is_file());
    if there.is_none() {
        skipped(&format!("{test}: no Linux guest in the build cache (`cargo xtask bootstrap`)"));
    }
    there
}

/// The program, ended by the kernel when the test's thread is gone.
pub(super) fn guarded(program: &Path) -> Command {
    let guard = Path::new("/usr/bin/setpriv");
    if !guard.exists() {
        return Command::new(program);
    }
    let mut command = Command::new(guard);
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A machine that is emulated, without any device yet.
fn machine(made: &Path, mib: &str) -> Command {
    let mut qemu = guarded(&made.join("qemu"));
    // Two processors, so that the kernel uses both connections; one thread of the host.
    qemu.args(["-M", "pc", "-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2"]).args([
        "-m",
        mib,
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    qemu
}

/// Starts it; what it says on the pipe comes line by line.
fn start(mut qemu: Command) -> (Child, Receiver<String>) {
    let qemu = qemu.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = qemu.spawn().expect("the guest's QEMU starts");
    let output = BufReader::new(child.stdout.take().expect("a pipe"));
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in output.split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    (child, lines)
}

impl Guest {
    /// Boots it, with servers at these ports of the loopback. Where it cannot be had, says so and
    /// returns `None`.
    pub(super) fn boot(test: &str, place: &Place, ports: &[u16]) -> Option<Self> {
        Self::with(test, place, ports, false)
    }

    /// The same with the tools for iSCSI; `iscsid` and `udev` run when it is ready.
    pub(super) fn boot_with_storage(test: &str, place: &Place, ports: &[u16]) -> Option<Self> {
        Self::with(test, place, ports, true)
    }

    fn with(test: &str, place: &Place, ports: &[u16], storage: bool) -> Option<Self> {
        let made = made(test)?;
        let console = place.path("console.log");
        let relay = made.join("relay").display().to_string();
        let mut network = "user,id=net,restrict=on,ipv6=off".to_owned();
        for (port, to) in (FIRST_PORT..).zip(ports) {
            // A process for each connection: QEMU itself would share one between all.
            let command = format!("'{relay}' {to}").replace(',', ",,");
            let _ = write!(network, ",guestfwd=tcp:{SERVER}:{port}-cmd:{command}");
        }
        let mut qemu = machine(&made, if storage { "512" } else { "256" });
        // Where this host is busy the emulated timer may look broken to the kernel, which then stops.
        let mut append = "console=ttyS0 quiet loglevel=4 panic=-1 no_timer_check".to_owned();
        if storage {
            append.push_str(" storage");
            let image = made.join("storage.raw").display().to_string().replace(',', ",,");
            qemu.args(["-drive", &format!("if=none,id=tools,format=raw,readonly=on,file={image}")])
                .args(["-device", "virtio-blk-pci,drive=tools"]);
        }
        qemu.arg("-kernel")
            .arg(made.join("kernel"))
            .arg("-initrd")
            .arg(made.join("initramfs"))
            .args(["-append", &append])
            .args(["-chardev", &format!("file,id=console,path={}", console.display())])
            .args(["-serial", "chardev:console", "-serial", "stdio"])
            .args(["-netdev", &network, "-device", "virtio-net-pci,netdev=net,romfile="]);
        let booted = Instant::now();
        let (mut child, lines) = start(qemu);
        let input = child.stdin.take().expect("a pipe");
        let mut guest = Self { child, input, lines, console, booted, end: booted + BOOT };
        let ready = guest.line();
        assert!(ready.starts_with("ready "), "the guest says {ready}: {}", guest.dying());
        let after = booted.elapsed().as_secs_f64();
        note(&format!("{test}: guest {ready} of its own, {after:.1} s of ours"));
        guest.end = booted + if storage { LIFE_WITH_STORAGE } else { LIFE };
        Some(guest)
    }

    /// How long it has been running.
    pub(super) fn age(&self) -> Duration {
        self.booted.elapsed()
    }

    /// The next line it says.
    #[track_caller]
    pub(super) fn line(&mut self) -> String {
        let left = self.end.saturating_duration_since(Instant::now());
        match self.lines.recv_timeout(left) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => panic!("the guest is too slow: {}", self.dying()),
            Err(RecvTimeoutError::Disconnected) => panic!("the guest ended: {}", self.dying()),
        }
    }

    /// Has it run one line of shell; returns the status and what was said meanwhile.
    #[track_caller]
    pub(super) fn tell(&mut self, command: &str) -> (i32, Vec<String>) {
        assert!(!command.contains('\n'), "one line");
        writeln!(self.input, "{command}").expect("the guest reads");
        let mut said = Vec::new();
        loop {
            let line = self.line();
            if let Some(status) = line.strip_prefix("@@ ") {
                return (status.parse().expect("a status"), said);
            }
            said.push(line);
        }
    }

    /// As [`Guest::tell`]; it must succeed. Returns what was said, in one.
    #[track_caller]
    pub(super) fn run(&mut self, command: &str) -> String {
        let (status, said) = self.tell(command);
        let said = said.join("\n");
        assert_eq!(status, 0, "{command}: {said}\n{}", self.dying());
        said
    }

    /// The end of what its kernel said.
    fn dying(&self) -> String {
        let log = std::fs::read(&self.console).unwrap_or_default();
        let from = log.len().saturating_sub(4096);
        format!("console: {}", String::from_utf8_lossy(&log[from..]))
    }
}

/// Boots a machine from the disk that QEMU calls by this name, through its firmware, and returns what
/// it said until it ended. Where it cannot be had, says so and returns `None`.
pub(super) fn boot_from(test: &str, disk: &str) -> Option<Vec<String>> {
    let mut qemu = machine(&made(test)?, "256");
    let disk = disk.replace(',', ",,");
    qemu.args(["-drive", &format!("if=none,id=disk,format=raw,cache=none,file={disk}")]).args([
        "-device",
        "virtio-blk-pci,drive=disk,bootindex=0",
        "-serial",
        "stdio",
    ]);
    let begun = Instant::now();
    let (child, lines) = start(qemu);
    let child = Ended(child);
    let mut said = Vec::new();
    loop {
        match lines.recv_timeout(DISK_LIFE.saturating_sub(begun.elapsed())) {
            Ok(line) => said.push(line),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => panic!("it does not end: {said:?}"),
        }
    }
    drop(child);
    note(&format!("{test}: booted and ended in {:.1} s", begun.elapsed().as_secs_f64()));
    Some(said)
}

/// The disk that boots by itself, if it has been made.
pub(super) fn bootable(test: &str) -> Option<PathBuf> {
    Some(made(test)?.join("boot.raw"))
}

/// A machine that must not be left behind.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
