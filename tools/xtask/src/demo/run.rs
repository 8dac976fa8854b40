//! The demo's steps.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::guard::{Loop, Mounted, Served};
use super::guest::{self, Guest, ROOT_MIB, ROOT_START_BYTES};
use super::proof;
use crate::proc;
use crate::steps::{Outcome, seconds};
use crate::workdir::{self, WorkDir};

/// Size of the file that the change adds to the guest.
const NEW_FILE_BYTES: usize = 6 << 20;
/// Text the change puts into a file that the first point has with other content.
const NEW_MOTD: &str = "This machine was changed after its first backup.\n";
/// Least of a second backup that deduplication must save here: most of the disk did not change.
const MIN_SAVED_PERCENT: u64 = 80;

/// What the steps hand on to each other. Fields are dropped in order: servers and mounts go before
/// the directory they are in.
#[derive(Debug)]
pub(super) struct Demo {
    files: Option<Served>,
    daemon: Option<Served>,
    /// Names of the mounts that the daemon serves.
    exports: Vec<String>,
    addresses: Vec<String>,
    work: WorkDir,
    backstay: PathBuf,
    guest: Guest,
    disk: PathBuf,
    points: Vec<Point>,
}

#[derive(Debug)]
struct Point {
    id: String,
    read_bytes: u64,
    new_bytes: u64,
    stored_bytes: u64,
}

impl Demo {
    pub(super) fn new(parent: &Path, backstay: PathBuf, guest: Guest) -> Result<Demo> {
        let work = WorkDir::new(parent)?;
        let disk = work.path().join("web01.raw");
        proc::output(proc::command("cp").arg("--sparse=always").arg(&guest.image).arg(&disk))?;
        Ok(Demo {
            files: None,
            daemon: None,
            exports: Vec::new(),
            addresses: Vec::new(),
            work,
            backstay,
            guest,
            disk,
            points: Vec::new(),
        })
    }

    /// `backstay`, told where its repository, key and cache are, and nothing of the user's own.
    fn backstay(&self, args: &[&str]) -> Command {
        let mut command = proc::command(&self.backstay);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("BACKSTAY_") {
                command.env_remove(name);
            }
        }
        command
            .env("BACKSTAY_REPO", self.path("repository"))
            .env("BACKSTAY_KEY_FILE", self.path("key"))
            .env("BACKSTAY_CACHE_DIR", self.path("cache"))
            .env("BACKSTAY_STATE_DIR", self.path("state"))
            .args(args);
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        let mut command = self.backstay(args);
        let text = proc::capture(command.arg("--json"))?;
        serde_json::from_str(&text)
            .with_context(|| format!("`{}` printed no JSON: {text}", proc::shown(&command)))
    }

    /// The disk as it was at a point: the untouched original, and the changed one.
    fn originals(&self) -> [&Path; 2] {
        [&self.guest.image, &self.disk]
    }

    pub(super) fn init(&mut self) -> Result<Outcome> {
        let key = self.path("key").display().to_string();
        let mut init = self.backstay(&["repo", "init", "--new-key-file", &key]);
        proc::output(init.env_remove("BACKSTAY_KEY_FILE"))?;
        Ok(Outcome::Pass("encrypted, opened by a key file".into()))
    }

    fn backup(&mut self) -> Result<Outcome> {
        let disk = self.disk.display().to_string();
        let start = Instant::now();
        let answer = self.json(&["backup", &disk, "--machine", "web01"])?;
        let took = start.elapsed();
        let point = &answer["point"];
        let number = |name: &str| {
            point[name].as_u64().with_context(|| format!("no number `{name}` in {answer}"))
        };
        let made = Point {
            id: point["id"].as_str().context("no id in the answer")?.to_owned(),
            read_bytes: number("read_bytes")?,
            new_bytes: number("new_bytes")?,
            stored_bytes: number("stored_bytes")?,
        };
        let note = format!(
            "read {} MiB, new {} MiB, stored {} MiB, {} MiB/s",
            mib(made.read_bytes),
            mib(made.new_bytes),
            mib(made.stored_bytes),
            (mib(made.read_bytes) as f64 / took.as_secs_f64()).round(),
        );
        self.points.push(made);
        Ok(Outcome::Pass(note))
    }

    pub(super) fn first_backup(&mut self) -> Result<Outcome> {
        self.backup()
    }

    /// Changes files the way a guest would: through a kernel mount where that may be done here,
    /// otherwise with debugfs. The originals' bytes are never looked at by Backstay's own code.
    pub(super) fn change(&mut self) -> Result<Outcome> {
        let new = self.path("new-file");
        fs::write(&new, noise(NEW_FILE_BYTES))?;
        let motd = self.path("new-motd");
        fs::write(&motd, NEW_MOTD)?;
        let how = match self.change_by_mount(&new) {
            Ok(()) => "through a kernel mount",
            Err(why) => {
                eprintln!("    no kernel mount here ({why:#}); using debugfs");
                self.change_by_debugfs(&new, &motd)?;
                "with debugfs"
            }
        };
        guest::file_system_is_sound(&self.disk)?;
        Ok(Outcome::Pass(format!("{how}: edited, appended, added, removed")))
    }

    fn change_by_mount(&self, new: &Path) -> Result<()> {
        if !proc::is_root() {
            bail!("only root may mount");
        }
        let device = Loop::new(&self.disk, ROOT_START_BYTES, ROOT_MIB << 20, false)?;
        let point = self.path("edit");
        let mounted = Mounted::new(device.device(), &point, "rw")?;
        fs::write(point.join("etc/motd"), NEW_MOTD)?;
        fs::copy(new, point.join("srv/data/new-file"))?;
        let mut log =
            fs::OpenOptions::new().append(true).open(point.join("var/log/service.log"))?;
        for i in 0..1000 {
            writeln!(log, "{i:08} web01 service: after the first backup")?;
        }
        drop(log);
        fs::remove_dir_all(point.join("usr/share/doc/bash"))?;
        mounted.unmount()?;
        device.detach()
    }

    fn change_by_debugfs(&self, new: &Path, motd: &Path) -> Result<()> {
        let script = self.path("debugfs-script");
        let text = format!(
            "rm /etc/motd\nwrite {} /etc/motd\nwrite {} /srv/data/new-file\n\
             rm /usr/share/doc/bash/copyright\n",
            motd.display(),
            new.display()
        );
        fs::write(&script, text)?;
        let mut debugfs = proc::command("debugfs");
        debugfs.arg("-w").arg("-f").arg(&script).arg(guest::partition_name(&self.disk));
        proc::output(&mut debugfs).map(drop)
    }

    pub(super) fn second_backup(&mut self) -> Result<Outcome> {
        let Outcome::Pass(note) = self.backup()? else { bail!("the backup told nothing") };
        let [first, second] = self.points.as_slice() else { bail!("there are not two points") };
        if first.new_bytes == 0 || first.read_bytes == 0 {
            bail!("the first backup stored nothing: {first:?}");
        }
        let saved = 100 - (second.new_bytes * 100).div_ceil(second.read_bytes.max(1)).min(100);
        if saved < MIN_SAVED_PERCENT {
            bail!("deduplication saved only {saved} %: {second:?}");
        }
        Ok(Outcome::Pass(format!("{note}; {saved} % was there already")))
    }

    pub(super) fn list(&mut self) -> Result<Outcome> {
        let listed = self.json(&["list"])?;
        let ids: Vec<&str> = listed["points"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|p| p["id"].as_str())
            .collect();
        let wanted: Vec<&str> = self.points.iter().map(|p| p.id.as_str()).collect();
        if ids != wanted {
            bail!("`list` shows {ids:?}, made were {wanted:?}");
        }
        let [a, b] = [format!("@{}:disk0", wanted[0]), format!("@{}:disk0", wanted[1])];
        let diff = self.json(&["diff", &a, &b])?;
        let [before, after] = self.originals();
        let changed = proof::check_diff(&diff, before, after)?;
        Ok(Outcome::Pass(format!("2 points; {changed} KiB changed, every differing byte named")))
    }

    pub(super) fn open_files(&mut self) -> Result<Outcome> {
        if !Path::new("/dev/fuse").exists() {
            return Ok(Outcome::Skip("this machine has no /dev/fuse".into()));
        }
        let point = self.path("mnt");
        fs::create_dir_all(&point)?;
        let shown = point.display().to_string();
        let served = Served::start(&self.backstay(&["mount", "image", &shown]))?;
        let line = served.line().to_owned();
        self.files = Some(served);
        self.opened()?;
        Ok(Outcome::Pass(line))
    }

    /// The two points' disks below the mount, older first.
    fn opened(&self) -> Result<[PathBuf; 2]> {
        let machine = self.path("mnt").join("web01");
        let mut found: Vec<PathBuf> = fs::read_dir(&machine)
            .with_context(|| format!("cannot list {}", machine.display()))?
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path().join("disks/disk0.raw"))
            .collect();
        found.sort();
        <[PathBuf; 2]>::try_from(found).map_err(|found| anyhow::anyhow!("two were due: {found:?}"))
    }

    fn without_files() -> Result<Outcome> {
        Ok(Outcome::Skip("no FUSE mount on this machine".into()))
    }

    pub(super) fn compare_files(&mut self) -> Result<Outcome> {
        if self.files.is_none() {
            return Self::without_files();
        }
        for (file, original) in self.opened()?.iter().zip(self.originals()) {
            proof::same_disk(&file.display().to_string(), "raw", original)?;
        }
        let [older, newer] = self.opened()?;
        proof::different_files(&older, &newer)?;
        Ok(Outcome::Pass("both identical".into()))
    }

    pub(super) fn read_guest_files(&mut self) -> Result<Outcome> {
        if self.files.is_none() {
            return Self::without_files();
        }
        if !proc::is_root() {
            return Ok(Outcome::Skip("only root may mount".into()));
        }
        let [older, _] = self.opened()?;
        let device = match Loop::new(&older, ROOT_START_BYTES, ROOT_MIB << 20, true) {
            Ok(device) => device,
            Err(error) => return Ok(Outcome::Skip(format!("no loop devices: {error:#}"))),
        };
        let point = self.path("guest");
        let mounted = Mounted::new(device.device(), &point, "ro,noload")?;
        let motd = fs::read_to_string(point.join("etc/motd"))?;
        if motd == NEW_MOTD || motd.is_empty() {
            bail!("the older point shows the newer file");
        }
        proof::manifest_holds(&point, &self.guest.manifest)?;
        mounted.unmount()?;
        device.detach()?;
        Ok(Outcome::Pass(format!("sha256 of all {} files right", self.guest.files)))
    }

    pub(super) fn close_files(&mut self) -> Result<Outcome> {
        let Some(files) = self.files.take() else { return Self::without_files() };
        files.end()?;
        let left = workdir::mounts_below(self.work.path());
        if !left.is_empty() {
            bail!("still mounted: {left:?}");
        }
        Ok(Outcome::Pass("unmounted, process ended well".into()))
    }

    pub(super) fn serve(&mut self) -> Result<Outcome> {
        // By hand, so that it ends with this program.
        self.daemon = Some(Served::start(self.backstay(&["mountd"]).arg("--json"))?);
        for i in 0..self.points.len() {
            let name = format!("@{}:disk0", self.points[i].id);
            let socket = self.path(&format!("{i}.sock")).display().to_string();
            let told = self.json(&["mount", "nbd", &name, "--socket", &socket])?;
            let text = |name: &str| {
                told[name].as_str().map(str::to_owned).with_context(|| format!("no {name} told"))
            };
            let (id, uri) = (text("id")?, text("uri")?);
            self.exports.push(id);
            self.addresses.push(uri);
        }
        Ok(Outcome::Pass("two Unix sockets".into()))
    }

    pub(super) fn inspect_exports(&mut self) -> Result<Outcome> {
        let mut holes = 0;
        for (address, original) in self.addresses.iter().zip(self.originals()) {
            holes = proof::nbdinfo(address, original)?;
        }
        Ok(Outcome::Pass(format!("right size, read-only, {} MiB of holes known", mib(holes))))
    }

    pub(super) fn compare_exports(&mut self) -> Result<Outcome> {
        for (address, original) in self.addresses.iter().zip(self.originals()) {
            proof::same_disk(address, "raw", original)?;
        }
        Ok(Outcome::Pass("both identical".into()))
    }

    pub(super) fn checksum_exports(&mut self) -> Result<Outcome> {
        let mut sums = Vec::new();
        for (address, original) in self.addresses.iter().zip(self.originals()) {
            sums.push(proof::same_sum(address, original)?);
        }
        if sums[0] == sums[1] {
            bail!("both points have the same checksum, though the disk was changed between");
        }
        Ok(Outcome::Pass("both sums right".into()))
    }

    pub(super) fn stop_serving(&mut self) -> Result<Outcome> {
        for id in std::mem::take(&mut self.exports) {
            self.json(&["mount", "end", &id])?;
        }
        for i in [0, 1] {
            let socket = self.path(&format!("{i}.sock"));
            if socket.exists() {
                bail!("{} is still there", socket.display());
            }
        }
        if let Some(daemon) = self.daemon.take() {
            daemon.end()?;
        }
        Ok(Outcome::Pass("mounts ended, sockets gone, the daemon ended well".into()))
    }

    pub(super) fn restore(&mut self) -> Result<Outcome> {
        let mut note = Vec::new();
        for (point, format) in self.points.iter().zip(["raw", "qcow2"]) {
            let name = format!("@{}:disk0", point.id);
            let to = self.path(&format!("restored.{format}")).display().to_string();
            let start = Instant::now();
            let args = ["restore", "disk", &name, "--to", &to, "--format", format];
            proc::output(&mut self.backstay(&args))?;
            note.push(format!("{format} {}", seconds(start.elapsed())));
        }
        Ok(Outcome::Pass(note.join(", ")))
    }

    pub(super) fn compare_restored(&mut self) -> Result<Outcome> {
        for (format, original) in ["raw", "qcow2"].into_iter().zip(self.originals()) {
            let file = self.path(&format!("restored.{format}"));
            proof::same_disk(&file.display().to_string(), format, original)?;
        }
        let qcow2 = self.path("restored.qcow2");
        proc::output(proc::command("qemu-img").args(["check", "-f", "qcow2"]).arg(qcow2))?;
        Ok(Outcome::Pass("both identical, the qcow2 is sound".into()))
    }

    pub(super) fn check_repository(&mut self) -> Result<Outcome> {
        proc::output(&mut self.backstay(&["repo", "check", "--read-data"]))?;
        let mut keyless = self.backstay(&["repo", "check", "--without-key"]);
        proc::output(keyless.env_remove("BACKSTAY_KEY_FILE"))?;
        Ok(Outcome::Pass("all data read; and once more without the key".into()))
    }

    /// Takes everything down and looks whether anything stayed.
    pub(super) fn clean(self) -> Result<Outcome> {
        let dir = self.work.path().to_path_buf();
        drop(self);
        let mounts = workdir::mounts_below(&dir);
        let loops = workdir::loops_below(&dir);
        if dir.exists() || !mounts.is_empty() || !loops.is_empty() {
            bail!("left: {} {mounts:?} {loops:?}", dir.display());
        }
        Ok(Outcome::Pass(String::new()))
    }
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// Bytes that do not compress and are the same in every run.
fn noise(len: usize) -> Vec<u8> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
