//! `cargo xtask bench nbd`: our NBD server beside qemu-nbd and nbdkit, all in one run (B5, B6, B7 and the bars of
//! block devices).

mod report;
mod servers;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::image;
use super::process::Product;
use crate::bootstrap::{self, Purpose};
use crate::env::House;
use crate::proc;
use crate::workdir::{Stop, WorkDir};
use report::Figures;
use servers::{Images, Kind, Server};

/// Where servers listen; one at a time.
const PORT: u16 = 10_981;
/// The sparse disk of 1 TiB.
const LARGE: &str = "large.raw";
/// What is read again and again in the warm parts: within everybody's caches.
const WARM_MIB: u64 = 160;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// How often each is measured; the medians count
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=101))]
    rounds: u32,
    /// Length of each measurement with fio
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Size of the image
    #[arg(long, default_value_t = 2048)]
    size_mib: u64,
    /// The same seed makes the same image
    #[arg(long, default_value_t = image::DEFAULT_SEED)]
    seed: u64,
    /// Directory for images and repository (about three times the image) [default: the system's
    /// temporary directory]
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// One way to use a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Work {
    /// Random reads of 4 KiB of what the server has at hand: one connection, one at a time.
    WarmOne,
    /// 16 at a time.
    WarmMany,
    /// Four connections with 8 each.
    WarmConnections,
    /// nbdcopy of what the server has at hand.
    WarmCopy,
    /// Random reads of 4 KiB all over the disk, 16 at a time, by a server that was just started.
    ColdMany,
    /// nbdcopy of the whole disk from a server that was just started, holes and all.
    ColdCopy,
    /// The same, skipping holes.
    ColdSkip,
    /// Random writes of 4 KiB all over the disk, 16 at a time.
    WriteMany,
    /// One at a time, each followed by a flush.
    WriteFlush,
}

impl Work {
    const ALL: [Self; 9] = [
        Self::WarmOne,
        Self::WarmMany,
        Self::WarmConnections,
        Self::WarmCopy,
        Self::ColdMany,
        Self::ColdCopy,
        Self::ColdSkip,
        Self::WriteMany,
        Self::WriteFlush,
    ];

    fn servers(self) -> &'static [Kind] {
        match self {
            Self::WriteMany | Self::WriteFlush => &[Kind::OursWritable, Kind::QemuOverlay],
            _ => &[Kind::Ours, Kind::QemuRaw, Kind::QemuZstd, Kind::Nbdkit],
        }
    }

    fn is_warm(self) -> bool {
        matches!(self, Self::WarmOne | Self::WarmMany | Self::WarmConnections | Self::WarmCopy)
    }

    /// The arguments for fio; `None` for nbdcopy.
    fn fio(self) -> Option<(&'static str, u32, u32)> {
        match self {
            Self::WarmOne => Some(("randread", 1, 1)),
            Self::WarmMany | Self::ColdMany => Some(("randread", 16, 1)),
            Self::WarmConnections => Some(("randread", 8, 4)),
            Self::WriteMany => Some(("randwrite", 16, 1)),
            Self::WriteFlush => Some(("randwrite", 1, 1)),
            Self::WarmCopy | Self::ColdCopy | Self::ColdSkip => None,
        }
    }
}

/// The chore.
pub(super) fn run(house: &House, args: &Args) -> Result<ExitCode> {
    let none = Purpose::Measure { restic: false, borg: false, tgt: false };
    let cargo = bootstrap::ready(house, none)?;
    let ours = cargo.release_binary("backstay", "backstay")?;
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir).join("backstay-bench");
    let stop = Stop::catch()?;
    let work = WorkDir::new(&parent)?;
    let images = prepare(work.path().to_owned(), ours, args)?;
    let mut figures = Figures::new(args.size_mib);
    for round in 1..=args.rounds {
        for work in Work::ALL {
            for kind in work.servers() {
                stop.check()?;
                let measured = measure(work, *kind, &images, args)
                    .with_context(|| format!("{work:?} of {}", kind.name()))?;
                eprintln!(
                    "round {round}: {work:?}, {}: {:.0} a second, {:.1} us of processor each",
                    kind.name(),
                    measured.rate,
                    measured.cpu_us
                );
                figures.add(work, *kind, measured);
            }
        }
        figures.ready(&ready(&images)?);
    }
    drop(images);
    print!("{}", figures.text());
    Ok(ExitCode::SUCCESS)
}

/// What one measurement brought.
#[derive(Debug, Clone, Copy)]
pub(super) struct Measured {
    /// Requests, or MiB, a second.
    pub(super) rate: f64,
    /// Processor time of the server for each, in microseconds.
    pub(super) cpu_us: f64,
    /// The slowest hundredth took at least so long, in microseconds; 0 for nbdcopy.
    pub(super) p99_us: f64,
}

/// The images and the repository.
fn prepare(work: PathBuf, program: PathBuf, args: &Args) -> Result<Images> {
    let (raw, qcow2) = (work.join("image.raw"), work.join("image.qcow2"));
    eprintln!("preparing an image of {} MiB", args.size_mib);
    image::write(&raw, args.size_mib, args.seed)?;
    let mut convert = proc::command("qemu-img");
    convert.args(["convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd"]);
    proc::output(convert.arg(&raw).arg(&qcow2))?;
    let product = Product { work: work.clone(), program };
    product.back_up(&raw)?;
    Ok(Images { work, raw, qcow2, product })
}

/// Reads every file below `dir`, so that all servers find theirs in the page cache. To be done each
/// time: some systems take pages back that were not used for some seconds.
fn bring_to_memory(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            bring_to_memory(&entry.path())?;
        } else if kind.is_file() && entry.file_name() != LARGE {
            std::io::copy(&mut fs::File::open(entry.path())?, &mut std::io::sink())?;
        }
    }
    Ok(())
}

/// Starts a server, warms it if the work wants it, and measures.
fn measure(work: Work, kind: Kind, images: &Images, args: &Args) -> Result<Measured> {
    // Nothing of the last one must be written to disk on this one's time.
    proc::run(&mut proc::command("sync"))?;
    if !work.is_warm() {
        bring_to_memory(&images.work)?;
    }
    let server = Server::start(kind, images, PORT)?;
    let mib = if work.is_warm() { WARM_MIB } else { args.size_mib };
    let target = &server.uri;
    if work.is_warm() {
        // Sequentially, so that every chunk has been there twice.
        for _ in 0..2 {
            fio(images, target, "read", 1 << 20, 4, 1, mib, None)?;
        }
    }
    let cpu = server.cpu()?;
    let (rate, units, p99_us) = match work.fio() {
        Some((how, depth, jobs)) => {
            let flush = work == Work::WriteFlush;
            let said = fio_timed(images, target, how, (depth, jobs), (mib, args.seconds), flush)?;
            (said.rate, said.operations, said.p99_us)
        }
        None => {
            let start = Instant::now();
            copy(work, &server, images)?;
            (mib as f64 / start.elapsed().as_secs_f64(), mib as f64, 0.0)
        }
    };
    let used = server.cpu()?.saturating_sub(cpu);
    Ok(Measured { rate, cpu_us: used.as_secs_f64() * 1e6 / units.max(1.0), p99_us })
}

/// nbdcopy to nowhere; of what is warm by fio, which can stop before the end.
fn copy(work: Work, server: &Server, images: &Images) -> Result<()> {
    if work == Work::WarmCopy {
        return fio(images, &server.uri, "read", 1 << 20, 4, 1, WARM_MIB, None).map(drop);
    }
    let mut command = proc::command("nbdcopy");
    command.args(["--connections=4", "--requests=16"]);
    if work == Work::ColdCopy {
        command.arg("--no-extents");
    }
    proc::output(command.args([&server.uri, "null:"])).map(drop)
}

/// What fio says of a run.
#[derive(Debug)]
struct Said {
    rate: f64,
    operations: f64,
    p99_us: f64,
}

fn fio_timed(
    images: &Images,
    uri: &str,
    how: &str,
    (depth, jobs): (u32, u32),
    (mib, seconds): (u64, u32),
    flush: bool,
) -> Result<Said> {
    fio(images, uri, how, 4096, depth, jobs, mib, Some((seconds, flush)))
}

#[allow(clippy::too_many_arguments, reason = "they are fio's")]
fn fio(
    images: &Images,
    uri: &str,
    how: &str,
    block: u64,
    depth: u32,
    jobs: u32,
    mib: u64,
    timed: Option<(u32, bool)>,
) -> Result<Said> {
    let out = images.work.join("fio.json");
    let mut command = proc::command("fio");
    command.args(["--name=b", "--ioengine=nbd", "--group_reporting", "--output-format=json"]);
    command.args(["--norandommap", "--randrepeat=1", "--output"]).arg(&out);
    command.arg(format!("--uri={uri}")).arg(format!("--rw={how}")).arg(format!("--bs={block}"));
    command.arg(format!("--iodepth={depth}")).arg(format!("--numjobs={jobs}"));
    command.arg(format!("--size={mib}M"));
    if let Some((seconds, flush)) = timed {
        command.args(["--time_based", &format!("--runtime={seconds}")]);
        if flush {
            command.arg("--fsync=1");
        }
    }
    proc::output(&mut command)?;
    let text = fs::read_to_string(&out)?;
    // Some versions say things before the document.
    let document = text.find('{').map_or("", |at| &text[at..]);
    let said: Value = serde_json::from_str(document).context("fio said no JSON")?;
    let mut all = Said { rate: 0.0, operations: 0.0, p99_us: 0.0 };
    for job in said["jobs"].as_array().context("fio did nothing")? {
        anyhow::ensure!(job["error"] == 0, "fio met an error: {job}");
        let side = &job[if how.contains("write") { "write" } else { "read" }];
        let number = |value: &Value| value.as_f64().unwrap_or_default();
        all.rate += number(&side["iops"]);
        all.operations += number(&side["total_ios"]);
        let p99 = number(&side["clat_ns"]["percentile"]["99.000000"]) / 1000.0;
        all.p99_us = all.p99_us.max(p99);
    }
    Ok(all)
}

/// B5: from the command to the export, and to the first 4 KiB read, of a sparse disk of 1 TiB.
fn ready(images: &Images) -> Result<BTreeMap<&'static str, Duration>> {
    let large = images.work.join(LARGE);
    if !large.exists() {
        let file = fs::File::create(&large)?;
        file.set_len(1 << 40).context("this file system takes no file of 1 TiB")?;
        let data = vec![0x5a; 1 << 20];
        for part in 0..1024_u64 {
            std::os::unix::fs::FileExt::write_all_at(&file, &data, part << 30)?;
        }
        let path = large.display().to_string();
        let args = ["backup", &path, "--machine", "large", "-q"];
        proc::output(&mut images.product.command(&args))?;
    }
    let daemon = images.product.daemon(&[])?;
    let measured = || -> Result<BTreeMap<&'static str, Duration>> {
        let start = Instant::now();
        let args = ["mount", "nbd", "large@latest:disk0", "--json"];
        let said = proc::capture(&mut images.product.command(&args))?;
        let export = start.elapsed();
        let said: Value = serde_json::from_str(&said)?;
        let uri = said["uri"].as_str().context("the mount has no address")?;
        // What the client itself takes is measured with a read of a hole, which the server has at hand.
        let read = |offset: &str| -> Result<Duration> {
            let start = Instant::now();
            let line = format!("read -q {offset} 4k");
            proc::output(proc::command("qemu-io").args(["-r", "-f", "raw", "-c", &line, uri]))?;
            Ok(start.elapsed())
        };
        let first = read("500g")?;
        let again = read("500g")?;
        Ok(BTreeMap::from([("export", export), ("first read", first), ("again", again)]))
    };
    let result = measured();
    drop(daemon);
    result
}
