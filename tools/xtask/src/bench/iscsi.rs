//! `cargo xtask bench iscsi`: our iSCSI target beside tgt, in one run (B8, copies, processor time).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;

use super::image;
use super::process::{Process, Product, middle};
use crate::bootstrap::{self, Purpose};
use crate::env::House;
use crate::guest;
use crate::proc;
use crate::workdir::{Stop, WorkDir};

/// Where tgt listens, and the number of its control socket: not those of one that may be there.
const TGT_PORT: u16 = 10_982;
const TGT_CONTROL: &str = "82";
const TGT_TARGET: &str = "iqn.2026-11.internal.backstay:bench";

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// How often each is measured; the medians count
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=101))]
    rounds: u32,
    /// Length of each measurement
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Size of the image; within everybody's caches
    #[arg(long, default_value_t = 512)]
    size_mib: u64,
    /// The same seed makes the same image
    #[arg(long, default_value_t = image::DEFAULT_SEED)]
    seed: u64,
    /// Directory for images and repository [default: the system's temporary directory]
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// One way to use a target, of whose disk all is at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    /// Random reads of 4 KiB, one at a time.
    One,
    /// 16 at a time.
    Sixteen,
    /// 32 at a time.
    ThirtyTwo,
    /// Four sessions with 8 each.
    Sessions,
    /// Sequential reads of 1 MiB, four at a time.
    Sequential,
    /// qemu-img convert to nowhere.
    Convert,
}

impl Work {
    const ALL: [Self; 6] = [
        Self::One,
        Self::Sixteen,
        Self::ThirtyTwo,
        Self::Sessions,
        Self::Sequential,
        Self::Convert,
    ];

    /// The arguments for iscsi-perf, and how many of it run; `None` for qemu-img.
    fn perf(self) -> Option<(&'static [&'static str], u32)> {
        match self {
            Self::One => Some((&["-r", "-m", "1", "-b", "8"], 1)),
            Self::Sixteen => Some((&["-r", "-m", "16", "-b", "8"], 1)),
            Self::ThirtyTwo => Some((&["-r", "-m", "32", "-b", "8"], 1)),
            Self::Sessions => Some((&["-r", "-m", "8", "-b", "8"], 4)),
            Self::Sequential => Some((&["-m", "4", "-b", "2048"], 1)),
            Self::Convert => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A recovery point, read-only, by the mount daemon.
    Ours,
    /// tgtd with 16 threads over the raw image.
    Tgt,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Ours => "backstay",
            Self::Tgt => "tgt",
        }
    }
}

/// What one measurement brought.
#[derive(Debug, Clone, Copy)]
struct Measured {
    /// Requests, or MiB, a second.
    rate: f64,
    /// Processor time of the target for each, in microseconds.
    cpu_us: f64,
}

type Figures = BTreeMap<(Work, Kind), Vec<Measured>>;

/// A target that runs.
struct Target {
    process: Process,
    uri: String,
}

/// The chore.
pub(super) fn run(house: &House, args: &Args) -> Result<ExitCode> {
    let purpose = Purpose::Measure { restic: false, borg: false, tgt: true };
    let cargo = bootstrap::ready(house, purpose)?;
    let program = cargo.release_binary("backstay", "backstay")?;
    guest::ready(house);
    // The machine's own qemu-img may lack the driver, and the driver's package another version than it.
    let qemu_img = house.cache.join("linux-guest/qemu-img");
    if !qemu_img.exists() {
        eprintln!("SKIPPED qemu-img convert: there is no {} (see above)", qemu_img.display());
    }
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir).join("backstay-bench");
    let stop = Stop::catch()?;
    let work = WorkDir::new(&parent)?;
    let raw = work.path().join("image.raw");
    eprintln!("preparing an image of {} MiB, seed {}", args.size_mib, args.seed);
    image::write(&raw, args.size_mib, args.seed)?;
    let product = Product { work: work.path().to_owned(), program };
    product.back_up(&raw)?;
    let (ours, tgt) = (ours(&product)?, tgt(&product.work, &raw)?);
    let mut figures = Figures::new();
    for round in 1..=args.rounds {
        for work in Work::ALL.into_iter().filter(|w| w.perf().is_some() || qemu_img.exists()) {
            for (kind, target) in [(Kind::Ours, &ours), (Kind::Tgt, &tgt)] {
                stop.check()?;
                let measured = measure(work, target, args, &qemu_img)
                    .with_context(|| format!("{work:?} of {}", kind.name()))?;
                eprintln!(
                    "round {round}: {work:?}, {}: {:.0} a second, {:.1} us of processor each",
                    kind.name(),
                    measured.rate,
                    measured.cpu_us
                );
                figures.entry((work, kind)).or_default().push(measured);
            }
        }
    }
    drop((ours, tgt));
    print!("{}", text(&figures, args.size_mib));
    Ok(ExitCode::SUCCESS)
}

/// The product's daemon with a read-only mount, all of it read once and once more.
fn ours(product: &Product) -> Result<Target> {
    let process = product.daemon(&[])?;
    let args = ["mount", "iscsi", "bench", "--listen", "127.0.0.1:0", "--json"];
    let said = proc::capture(&mut product.command(&args))?;
    let said: Value = serde_json::from_str(&said)?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("the mount has no target");
    let (name, portal) = (text(&said["iscsi"]["target"])?, text(&said["iscsi"]["portals"][0])?);
    let uri = format!("iscsi://{portal}/{name}/0");
    // So that every chunk has been there twice.
    for _ in 0..2 {
        perf(&uri, &["-m", "4", "-b", "2048"], 1, 2)?;
    }
    Ok(Target { process, uri })
}

fn tgt(work: &Path, raw: &Path) -> Result<Target> {
    let log = work.join("tgtd.log");
    let mut command = proc::command("tgtd");
    let portal = format!("portal=127.0.0.1:{TGT_PORT}");
    command.args(["-f", "-C", TGT_CONTROL, "-t", "16", "--iscsi", &portal]);
    let mut process = Process::start(&mut command, &log)?;
    process.wait(&log, || TcpStream::connect(("127.0.0.1", TGT_PORT)).is_ok())?;
    let admin = |args: &[&str]| {
        let mut command = proc::command("tgtadm");
        command.args(["-C", TGT_CONTROL, "--lld", "iscsi", "--tid", "1"]).args(args);
        proc::output(&mut command).map(drop)
    };
    let raw = raw.display().to_string();
    admin(&["--op", "new", "--mode", "target", "-T", TGT_TARGET])?;
    admin(&["--op", "new", "--mode", "logicalunit", "--lun", "1", "-b", &raw])?;
    let read_only = ["--lun", "1", "--params", "readonly=1"];
    admin(&[&["--op", "update", "--mode", "logicalunit"][..], &read_only].concat())?;
    admin(&["--op", "bind", "--mode", "target", "-I", "ALL"])?;
    Ok(Target { process, uri: format!("iscsi://127.0.0.1:{TGT_PORT}/{TGT_TARGET}/1") })
}

fn measure(work: Work, target: &Target, args: &Args, qemu_img: &Path) -> Result<Measured> {
    let cpu = target.process.cpu()?;
    let start = Instant::now();
    let (rate, count) = match work.perf() {
        Some((how, sessions)) => {
            let rate = perf(&target.uri, how, sessions, args.seconds)?;
            (rate, rate * f64::from(args.seconds))
        }
        None => {
            let size = format!("driver=null-co,size={}", args.size_mib << 20);
            let mut convert = Command::new(qemu_img);
            convert.args(["convert", "-n", "-f", "raw", "--target-image-opts"]);
            proc::output(convert.args([&target.uri, &size]))?;
            (args.size_mib as f64 / start.elapsed().as_secs_f64(), args.size_mib as f64)
        }
    };
    let used = target.process.cpu()?.saturating_sub(cpu);
    Ok(Measured { rate, cpu_us: used.as_secs_f64() * 1e6 / count.max(1.0) })
}

/// Requests a second of all sessions together.
fn perf(uri: &str, how: &[&str], sessions: u32, seconds: u32) -> Result<f64> {
    let said: Vec<Result<String>> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..sessions)
            .map(|i| {
                scope.spawn(move || {
                    let mut command = proc::command("iscsi-perf");
                    command.args(["-i", &format!("iqn.2026-11.internal.backstay:perf-{i}")]);
                    command.args(["-t", &seconds.to_string()]).args(how).arg(uri);
                    let said = proc::output(&mut command)?;
                    Ok(String::from_utf8_lossy(&said.stdout).into_owned())
                })
            })
            .collect();
        runs.into_iter()
            .map(|run| run.join().unwrap_or_else(|_| anyhow::bail!("it panicked")))
            .collect()
    });
    said.into_iter().map(|said| average(&said?)).sum()
}

/// The average that iscsi-perf tells last. It writes its lines one over the other.
fn average(said: &str) -> Result<f64> {
    let sign = "iops average ";
    let (_, behind) = said.rsplit_once(sign).context("iscsi-perf tells no average")?;
    let number: String = behind.chars().take_while(char::is_ascii_digit).collect();
    number.parse().with_context(|| format!("iscsi-perf tells no number: {behind:?}"))
}

fn text(figures: &Figures, size_mib: u64) -> String {
    let mut out =
        format!("\niSCSI over loopback TCP; image {size_mib} MiB, all of it at hand.\n\n");
    let _ = writeln!(out, "{:12} {:10} {:>10} {:>14}", "", "", "a second", "target's cpu");
    let get = |work, kind| figures.get(&(work, kind)).map(Vec::as_slice).unwrap_or_default();
    for ((work, kind), samples) in figures {
        let rate = middle(samples.iter().map(|s| s.rate));
        let cpu = middle(samples.iter().map(|s| s.cpu_us));
        let unit = if work.perf().is_some() { "op" } else { "MiB" };
        let name = format!("{work:?}");
        let cpu = format!("{cpu:.1} us/{unit}");
        let _ = writeln!(out, "{name:12} {:10} {rate:>10.0} {cpu:>14}", kind.name());
    }
    out.push('\n');
    let mut judge = |what: &str, ours: &[Measured], theirs: &[Measured], goal: f64, cpu: bool| {
        if ours.is_empty() || theirs.is_empty() {
            let _ = writeln!(out, "{what}: SKIPPED");
            return;
        }
        let value = |m: &Measured| if cpu { m.cpu_us } else { m.rate };
        let ratio = middle(ours.iter().zip(theirs).map(|(o, t)| value(o) / value(t)));
        let (reached, bound) =
            if cpu { (ratio <= goal, "at most") } else { (ratio >= goal, "at least") };
        let verdict = if reached { "reached" } else { "NOT REACHED" };
        let _ = writeln!(out, "{what}: {ratio:.2} x (goal: {bound} {goal} x): {verdict}");
    };
    for (what, work, goal) in [
        ("B8 random 4 KiB, 32 at a time, by tgt's", Work::ThirtyTwo, 1.5),
        ("B8 1 MiB sequential, by tgt's", Work::Sequential, 1.5),
        ("qemu-img convert, by tgt's", Work::Convert, 2.0),
    ] {
        judge(what, get(work, Kind::Ours), get(work, Kind::Tgt), goal, false);
    }
    let (four, one) = (get(Work::Sessions, Kind::Ours), get(Work::ThirtyTwo, Kind::Ours));
    judge("B8 four sessions, by one session's", four, one, 1.5, false);
    for work in Work::ALL {
        let what = format!("processor, {work:?}, by tgt's");
        judge(&what, get(work, Kind::Ours), get(work, Kind::Tgt), 0.7, true);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iscsi_perfs_words() {
        let said = "iops current 1 (0 MB/s)\riops average 10 \riops average 48551 (189 MB/s)   \n";
        assert_eq!(average(said).expect("an average"), 48551.0);
        assert!(average("connection refused").is_err());
    }

    #[test]
    fn goals_are_judged_by_ratios_of_the_same_round() {
        let measured = |rate, cpu_us| Measured { rate, cpu_us };
        let figures = Figures::from([
            ((Work::ThirtyTwo, Kind::Ours), vec![measured(150.0, 7.0), measured(300.0, 9.0)]),
            ((Work::ThirtyTwo, Kind::Tgt), vec![measured(100.0, 10.0), measured(200.0, 12.0)]),
            ((Work::Sessions, Kind::Ours), vec![measured(200.0, 1.0)]),
        ]);
        let text = text(&figures, 1);
        let says = |part: &str| assert!(text.contains(part), "{part}\n{text}");
        says("32 at a time, by tgt's: 1.50 x (goal: at least 1.5 x): reached");
        says("four sessions, by one session's: 1.33 x (goal: at least 1.5 x): NOT REACHED");
        says("processor, ThirtyTwo, by tgt's: 0.75 x (goal: at most 0.7 x): NOT REACHED");
        says("qemu-img convert, by tgt's: SKIPPED");
    }
}
