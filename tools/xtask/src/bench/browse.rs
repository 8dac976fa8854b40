//! `cargo xtask bench browse`: files of guests beside the kernel's own mounts (B11), a disk's image through FUSE beside a bare server, squashfuse
//! and QEMU's (B9), and how soon the first listing of a large point is there.

mod search;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::image;
use super::process::{Process, Product, middle};
use crate::bootstrap::{self, Purpose};
use crate::cargo::Cargo;
use crate::env::House;
use crate::proc;
use crate::workdir::{Stop, WorkDir};

/// Files of the directory that is listed.
const ENTRIES: u32 = 100_000;
/// Files that are read, and their size.
const FILES: (u32, usize) = (4000, 48 << 10);
/// File systems of guests, as `mkfs.NAME` and the kernel call them.
const FILE_SYSTEMS: &[&str] = &["ext4", "xfs", "btrfs"];

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// How often each is measured; the medians count
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=101))]
    rounds: u32,
    /// Only this one of the file systems (ext4, xfs, btrfs)
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Size of the image that is read through FUSE
    #[arg(long, default_value_t = 512)]
    size_mib: u64,
    /// The same seed makes the same image
    #[arg(long, default_value_t = image::DEFAULT_SEED)]
    seed: u64,
    /// Directory for images and repositories [default: the system's temporary directory]
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Seconds, or something a second, by what and by whom.
type Figures = BTreeMap<(String, String), Vec<f64>>;

/// A mount that goes when this is dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        for _ in 0..50 {
            let done = Command::new("umount").arg(&self.0).output();
            if done.is_ok_and(|done| done.status.success()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The chore.
pub(super) fn run(house: &House, args: &Args) -> Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        bail!("the kernel's own mounts, and emptying its caches, need root");
    }
    let purpose = Purpose::Measure { restic: false, borg: false, tgt: false };
    let cargo = bootstrap::ready(house, purpose)?;
    let program = cargo.release_binary("backstay", "backstay")?;
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir).join("backstay-bench");
    let stop = Stop::catch()?;
    let work = WorkDir::new(&parent)?;
    let mut figures = Figures::new();
    let wanted = |kind: &&&str| args.only.as_deref().is_none_or(|only| only == **kind);
    for kind in FILE_SYSTEMS.iter().filter(wanted) {
        let place = work.path().join(kind);
        fs::create_dir(&place)?;
        let product = Product { work: place, program: program.clone() };
        guest(&product, kind, args.rounds, &stop, &mut figures)
            .with_context(|| format!("files of {kind}"))?;
    }
    let place = work.path().join("image");
    fs::create_dir(&place)?;
    whole_image(
        &cargo,
        &Product { work: place, program: program.clone() },
        args,
        &stop,
        &mut figures,
    )?;
    let place = work.path().join("large");
    fs::create_dir(&place)?;
    let product = Product { work: place, program: program.clone() };
    large_point(&product, args.rounds, &stop, &mut figures)?;
    let place = work.path().join("points");
    fs::create_dir(&place)?;
    let product = Product { work: place, program };
    search::many_points(&product, args.rounds, &stop, &mut figures)?;
    print!("{}", text(&figures));
    Ok(ExitCode::SUCCESS)
}

fn run_tool(program: &str, args: &[&str]) -> Result<()> {
    proc::output(proc::command(program).args(args)).map(drop)
}

fn sparse(path: &Path, bytes: u64) -> Result<()> {
    Ok(File::create(path)?.set_len(bytes)?)
}

fn mount(image: &Path, at: &Path, options: &str) -> Result<Mounted> {
    fs::create_dir_all(at)?;
    let (image, dir) = (image.display().to_string(), at.display().to_string());
    run_tool("mount", &["-o", options, &image, &dir])?;
    Ok(Mounted(at.to_owned()))
}

/// Everybody begins with nothing in memory.
fn forget() -> Result<()> {
    rustix::fs::sync();
    Ok(fs::write("/proc/sys/vm/drop_caches", "3")?)
}

/// Seconds that a shell command takes.
fn timed(command: &str) -> Result<f64> {
    let start = Instant::now();
    run_tool("sh", &["-c", command])?;
    Ok(start.elapsed().as_secs_f64())
}

/// A file system with many files, ours and the kernel's.
fn guest(
    product: &Product,
    kind: &str,
    rounds: u32,
    stop: &Stop,
    figures: &mut Figures,
) -> Result<()> {
    let image = product.work.join("guest.raw");
    sparse(&image, 4 << 30)?;
    run_tool(&format!("mkfs.{kind}"), &["-q", &image.display().to_string()])?;
    let at = product.work.join("kernel");
    {
        let mounted = mount(&image, &at, "loop")?;
        fill(&mounted.0)?;
    }
    product.back_up(&image)?;
    let directory = product.work.join("ours");
    fs::create_dir(&directory)?;
    let _daemon = product.daemon(&[])?;
    let works = |root: &Path| {
        let root = root.display();
        [
            (
                "listing 100,000 files",
                format!("find {root}/many -printf '%M %n %U %G %s %t %f\\n' > /dev/null"),
            ),
            // It asks for two extended attributes of each besides.
            ("ls -l of 100,000 files", format!("ls -lU {root}/many > /dev/null")),
            ("reading 4,000 files", format!("cat {root}/small/* > /dev/null")),
            (
                "reading one file of 400 MiB",
                format!("dd if={root}/large of=/dev/null bs=1M status=none"),
            ),
        ]
    };
    for round in 1..=rounds {
        for (at_kernel, who) in [(true, "kernel"), (false, "backstay")] {
            for number in 0..works(&at).len() {
                stop.check()?;
                forget()?;
                // A mount of its own for each: nothing is left from the one before.
                let (root, _mounted, id) = if at_kernel {
                    (at.clone(), Some(mount(&image, &at, "loop,ro")?), None)
                } else {
                    let dir = directory.display().to_string();
                    let args = ["mount", "files", "bench", &dir, "--json"];
                    let said = proc::capture(&mut product.command(&args))?;
                    let said: serde_json::Value = serde_json::from_str(&said)?;
                    let id = said["id"].as_str().context("the mount has no name")?.to_owned();
                    (directory.join("files/disk0"), None, Some(id))
                };
                let (what, command) = &works(&root)[number];
                let seconds = timed(command)?;
                if let Some(id) = id {
                    proc::output(&mut product.command(&["mount", "end", &id]))?;
                }
                eprintln!("round {round}: {kind}, {what}, {who}: {seconds:.3} s");
                figures.entry((format!("{kind}, {what}"), who.into())).or_default().push(seconds);
            }
        }
    }
    Ok(())
}

fn fill(root: &Path) -> Result<()> {
    let many = root.join("many");
    fs::create_dir(&many)?;
    for i in 0..ENTRIES {
        File::create(many.join(format!("file number {i}")))?;
    }
    let small = root.join("small");
    fs::create_dir(&small)?;
    let (count, size) = FILES;
    let large = root.join("large");
    image::write(&large, 400, image::DEFAULT_SEED)?;
    let content = fs::read(&large)?;
    for i in 0..count as usize {
        let at = i * size % (content.len() - size);
        fs::write(small.join(i.to_string()), &content[at..at + size])?;
    }
    Ok(())
}

/// A disk's image as a file: random reads and one sequential reader.
fn whole_image(
    cargo: &Cargo,
    product: &Product,
    args: &Args,
    stop: &Stop,
    figures: &mut Figures,
) -> Result<()> {
    cargo.run(&[
        "build",
        "--release",
        "--package",
        "backstay-daemon",
        "--example",
        "fuse_ceiling",
    ])?;
    let release = product.program.parent().context("the program is somewhere")?;
    let ceiling = release.join("examples/fuse_ceiling");
    let raw = product.work.join("disk.raw");
    eprintln!("an image of {} MiB, seed {}", args.size_mib, args.seed);
    image::write(&raw, args.size_mib, args.seed)?;
    product.back_up(&raw)?;
    let squash = product.work.join("image.squash");
    let has_squash = proc::command("mksquashfs").arg("-version").output().is_ok();
    if has_squash {
        let (raw, squash) = (raw.display().to_string(), squash.display().to_string());
        run_tool("mksquashfs", &[&raw, &squash, "-comp", "zstd", "-quiet", "-no-progress"])?;
    } else {
        eprintln!("SKIPPED squashfuse: this machine has no mksquashfs");
    }
    for round in 1..=args.rounds {
        for who in ["fuser alone", "backstay", "qemu-storage-daemon", "squashfuse"] {
            if who == "squashfuse" && !has_squash {
                continue;
            }
            stop.check()?;
            let at = product.work.join("mnt");
            fs::create_dir_all(&at)?;
            let (file, _server) = serve(product, who, &ceiling, &raw, &squash, &at)?;
            let _mounted = (who != "qemu-storage-daemon").then(|| Mounted(at.clone()));
            // All of it once: what is measured is the way, not the disk.
            timed(&format!("dd if={} of=/dev/null bs=1M status=none", file.display()))?;
            for (what, arguments) in [
                ("4 KiB at random, one at a time", &["--numjobs=1"][..]),
                (
                    "4 KiB at random, 16 at a time",
                    &["--numjobs=16", "--thread", "--group_reporting"],
                ),
            ] {
                let rate = fio(&file, arguments)?;
                eprintln!("round {round}: {what}, {who}: {rate:.0} a second");
                figures.entry((format!("image, {what}"), who.into())).or_default().push(rate);
            }
            drop_cached(&file)?;
            let seconds =
                timed(&format!("dd if={} of=/dev/null bs=1M status=none", file.display()))?;
            let rate = args.size_mib as f64 / seconds;
            eprintln!("round {round}: one dd, {who}: {rate:.0} MiB/s");
            figures.entry(("image, one dd".into(), who.into())).or_default().push(rate);
        }
    }
    Ok(())
}

/// Starts a server of the image; answers the file and the process.
fn serve(
    product: &Product,
    who: &str,
    ceiling: &Path,
    raw: &Path,
    squash: &Path,
    at: &Path,
) -> Result<(PathBuf, Process)> {
    let log = product.work.join("server.log");
    let (raw, dir) = (raw.display().to_string(), at.display().to_string());
    let (mut command, file) = match who {
        "fuser alone" => {
            let mut command = proc::command(ceiling);
            command.args([&raw, &dir]);
            (command, at.join("disk.raw"))
        }
        "backstay" => {
            (product.command(&["mount", "image", &dir]), at.join("bench/latest/disks/disk0.raw"))
        }
        "qemu-storage-daemon" => {
            let file = product.work.join("export");
            File::create(&file)?;
            let mut command = proc::command("qemu-storage-daemon");
            let node = format!("driver=file,node-name=n,filename={raw},read-only=on");
            let export = format!("type=fuse,id=e,node-name=n,mountpoint={}", file.display());
            command.args(["--blockdev", &node, "--export", &export]);
            (command, file)
        }
        _ => {
            let mut command = proc::command("squashfuse_ll");
            command.args(["-f", &squash.display().to_string(), &dir]);
            (command, at.join("disk.raw"))
        }
    };
    let mut process = Process::start(&mut command, &log)?;
    process.wait(&log, || fs::metadata(&file).is_ok_and(|m| m.len() > 0))?;
    Ok((file, process))
}

/// Takes a file's pages out of the kernel's cache, so that the next reader asks the server.
fn drop_cached(file: &Path) -> Result<()> {
    let file = File::open(file)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

fn fio(file: &Path, arguments: &[&str]) -> Result<f64> {
    let mut command = proc::command("fio");
    command.args(["--name=x", "--readonly", "--rw=randread", "--bs=4k", "--direct=1"]);
    command.args(["--ioengine=psync", "--time_based", "--runtime=2", "--output-format=json"]);
    command.arg(format!("--filename={}", file.display())).args(arguments);
    let said: serde_json::Value = serde_json::from_str(&proc::capture(&mut command)?)?;
    said["jobs"][0]["read"]["iops"].as_f64().context("fio tells no rate")
}

/// From the command to the first listing, of a point of 1 TiB.
fn large_point(product: &Product, rounds: u32, stop: &Stop, figures: &mut Figures) -> Result<()> {
    let image = product.work.join("large.raw");
    sparse(&image, 1 << 40)?;
    run_tool("mkfs.btrfs", &["-q", &image.display().to_string()])?;
    let at = product.work.join("kernel");
    {
        let mounted = mount(&image, &at, "loop")?;
        let source = mounted.0.join("one-mib");
        image::write(&source, 1, image::DEFAULT_SEED)?;
        fs::create_dir(mounted.0.join("directory"))?;
    }
    product.back_up(&image)?;
    let directory = product.work.join("ours");
    fs::create_dir(&directory)?;
    let _daemon = product.daemon(&[])?;
    for round in 1..=rounds {
        stop.check()?;
        forget()?;
        let dir = directory.display().to_string();
        let start = Instant::now();
        let said =
            proc::capture(&mut product.command(&["mount", "files", "bench", &dir, "--json"]))?;
        run_tool("ls", &["-l", &format!("{dir}/files/disk0")])?;
        let first = start.elapsed().as_secs_f64();
        let said: serde_json::Value = serde_json::from_str(&said)?;
        let id = said["id"].as_str().context("the mount has no name")?.to_owned();
        proc::output(&mut product.command(&["mount", "end", &id]))?;
        forget()?;
        let start = Instant::now();
        proc::output(&mut product.command(&["cat", "bench//one-mib"]))?;
        let cat = start.elapsed().as_secs_f64();
        eprintln!("round {round}: 1 TiB, first listing {first:.3} s, a file of 1 MiB {cat:.3} s");
        let mut note = |what: &str, seconds| {
            figures.entry((format!("1 TiB, {what}"), "backstay".into())).or_default().push(seconds);
        };
        note("first listing", first);
        note("a file of 1 MiB", cat);
    }
    Ok(())
}

fn text(figures: &Figures) -> String {
    let mut out =
        String::from("\nMedians. Times in seconds, image rates in requests or MiB a second.\n\n");
    for ((what, who), samples) in figures {
        let _ = writeln!(out, "{what:44} {who:20} {:>12.3}", middle(samples.iter().copied()));
    }
    out.push('\n');
    let get = |what: &str, who: &str| {
        let found = figures.get(&(what.to_owned(), who.to_owned()));
        found.map(Vec::as_slice).unwrap_or_default()
    };
    let mut judge = |what: &str, ratio: Option<f64>, goal: f64, at_most: bool, unit: &str| {
        let Some(ratio) = ratio else {
            let _ = writeln!(out, "{what}: SKIPPED");
            return;
        };
        let reached = if at_most { ratio <= goal } else { ratio >= goal };
        let bound = if at_most { "at most" } else { "at least" };
        let verdict = if reached { "reached" } else { "NOT REACHED" };
        let _ = writeln!(out, "{what}: {ratio:.2} {unit} (goal: {bound} {goal} {unit}): {verdict}");
    };
    let ratio = |ours: &[f64], theirs: &[f64]| {
        let pairs = ours.iter().zip(theirs).map(|(o, t)| o / t);
        (!ours.is_empty() && !theirs.is_empty()).then(|| middle(pairs))
    };
    for kind in FILE_SYSTEMS {
        for (work, goal, inverse) in [
            ("listing 100,000 files", 3.0, false),
            ("ls -l of 100,000 files", 3.0, false),
            ("reading 4,000 files", 0.7, true),
            ("reading one file of 400 MiB", 0.7, true),
        ] {
            let what = format!("{kind}, {work}");
            let (ours, kernel) = (get(&what, "backstay"), get(&what, "kernel"));
            // Reading is told as a speed, listing as a time.
            let found = if inverse { ratio(kernel, ours) } else { ratio(ours, kernel) };
            let name =
                format!("B11 {what}, by the kernel's {}", if inverse { "speed" } else { "time" });
            judge(&name, found, goal, !inverse, "x");
        }
    }
    for (what, goal) in [
        ("image, 4 KiB at random, one at a time", 0.7),
        ("image, 4 KiB at random, 16 at a time", 0.7),
        ("image, one dd", 0.8),
    ] {
        let found = ratio(get(what, "backstay"), get(what, "fuser alone"));
        judge(&format!("B9 {what}, by fuser alone"), found, goal, false, "x");
    }
    for (what, goal) in
        [("1 TiB, first listing", 1.0), ("1 TiB, a file of 1 MiB", 1.0), (search::SEARCHING, 5.0)]
    {
        let samples = get(what, "backstay");
        let found = (!samples.is_empty()).then(|| middle(samples.iter().copied()));
        judge(what, found, goal, true, "s");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_judged_by_ratios_of_the_same_round() {
        let key = |what: &str, who: &str| (what.to_owned(), who.to_owned());
        let figures = Figures::from([
            (key("btrfs, listing 100,000 files", "kernel"), vec![1.0, 2.0, 1.0]),
            (key("btrfs, listing 100,000 files", "backstay"), vec![3.5, 4.0, 2.0]),
            (key("image, one dd", "fuser alone"), vec![1000.0]),
            (key("image, one dd", "backstay"), vec![700.0]),
            (key("1 TiB, first listing", "backstay"), vec![0.2, 0.4, 0.3]),
        ]);
        let text = text(&figures);
        let says = |part: &str| assert!(text.contains(part), "{part}\n{text}");
        says(
            "btrfs, listing 100,000 files, by the kernel's time: 2.00 x (goal: at most 3 x): reached",
        );
        says("B9 image, one dd, by fuser alone: 0.70 x (goal: at least 0.8 x): NOT REACHED");
        says("1 TiB, first listing: 0.30 s (goal: at most 1 s): reached");
        says("B11 xfs, reading 4,000 files, by the kernel's speed: SKIPPED");
    }
}
