//! `cargo xtask bench s3`: a repository in a bucket behind a distance, made by a proxy.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::image;
use super::measure::{self, Sample};
use super::store;
use crate::bootstrap::{self, Purpose};
use crate::env::House;
use crate::proc;
use crate::s3_servers;
use crate::workdir::{Stop, WorkDir};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// How often each is measured; the medians count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=101))]
    runs: u32,
    /// Size of the image
    #[arg(long, default_value_t = 1024)]
    size_mib: u64,
    /// The same seed makes the same image
    #[arg(long, default_value_t = image::DEFAULT_SEED)]
    seed: u64,
    /// Round trip to the storage
    #[arg(long, default_value_t = 100)]
    delay_ms: u64,
    /// What the link carries, in each direction
    #[arg(long, default_value_t = 25)]
    mib_s: u64,
    /// Directory for image, bucket and what is restored (about three times the image) [default:
    /// the system's temporary directory]
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Args {
    /// What `cargo xtask bench store` measures besides.
    pub(super) fn beside_store(dir: Option<PathBuf>) -> Args {
        let seed = image::DEFAULT_SEED;
        Args { runs: 1, size_mib: 1024, seed, delay_ms: 100, mib_s: 25, dir }
    }
}

/// The program that runs server and proxy.
struct Range {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
    address: String,
}

impl Range {
    fn start(mut command: Command) -> Result<Range> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the server and its proxy")?;
        let to = child.stdin.take();
        let from = BufReader::new(child.stdout.take().context("no output")?);
        let mut range = Range { child, to, from, address: String::new() };
        let first = range.line()?;
        range.address = first["address"].as_str().context("no address")?.to_owned();
        Ok(range)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the proxy said '{line}'"))
    }

    fn ask(&mut self, command: &str) -> Result<Value> {
        let to = self.to.as_mut().context("the proxy has ended")?;
        writeln!(to, "{command}")?;
        to.flush()?;
        self.line()
    }

    fn number(&mut self, command: &str, field: &str) -> Result<f64> {
        let seen = self.ask(command)?;
        seen[field].as_f64().with_context(|| format!("no {field} in {seen}"))
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        // It ends its server and itself when its input ends.
        self.to = None;
        let _ = self.child.wait();
    }
}

#[derive(Debug, Default)]
struct Figures {
    backup: Vec<Sample>,
    restore: Vec<Sample>,
    /// The plain requests' time, of as many bytes as the packs have.
    fetch: Vec<Duration>,
    packs_bytes: f64,
    sent_bytes: f64,
    restored_bytes: f64,
    puts: f64,
    gets: f64,
}

/// The chore.
pub(super) fn run(house: &House, args: &Args) -> Result<ExitCode> {
    let cargo =
        bootstrap::ready(house, Purpose::Measure { restic: false, borg: false, tgt: false })?;
    s3_servers::ready(house);
    let ours = cargo.release_binary("backstay", "backstay")?;
    let range = cargo.release_binary("backstay-tests", "s3_range")?;
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir).join("backstay-bench");
    let stop = Stop::catch()?;
    let work = WorkDir::new(&parent)?;
    let image = work.path().join("image.raw");
    eprintln!("writing the image, {} MiB, seed {}", args.size_mib, args.seed);
    store::write_image(&image, args.size_mib, args.seed)?;
    let mut figures = Figures::default();
    for round in 1..=args.runs {
        stop.check()?;
        eprintln!("round {round} of {}", args.runs);
        let dir = work.path().join(format!("round-{round}"));
        let data = dir.join("server");
        fs::create_dir_all(&data)?;
        let mut command = proc::command(&range);
        command.arg(&data).env("BACKSTAY_BUILD_CACHE", &house.cache);
        let mut range = Range::start(command)?;
        measure(&mut range, &ours, &dir, &image, args, &mut figures)?;
        drop(range);
        fs::remove_dir_all(&dir)?;
    }
    print!("{}", text(args, &figures));
    Ok(ExitCode::SUCCESS)
}

fn measure(
    range: &mut Range,
    ours: &std::path::Path,
    dir: &std::path::Path,
    image: &std::path::Path,
    args: &Args,
    figures: &mut Figures,
) -> Result<()> {
    let log = dir.join("log");
    let address = range.address.clone();
    let command = |words: &[&str], cache: &str| {
        let mut command = proc::command(ours);
        command
            .env("BACKSTAY_REPO", format!("s3://bench/r?endpoint=http://{address}"))
            .env("BACKSTAY_KEY_FILE", dir.join("key"))
            .env("BACKSTAY_CACHE_DIR", dir.join(cache))
            .env("AWS_ACCESS_KEY_ID", "bench")
            .env("AWS_SECRET_ACCESS_KEY", "bench")
            .current_dir(dir)
            .args(words);
        command
    };
    proc::output(&mut command(&["repo", "init", "--new-key-file", "key"], "cache"))?;
    range.ask(&format!("link {} {}", args.delay_ms, args.mib_s << 20))?;
    let before = range.ask("counts")?;
    let name = image.display().to_string();
    let sample = measure::run(&mut command(&["backup", &name, "--machine", "b"], "cache"), &log)?;
    eprintln!("    {:6.2} s  backup", sample.wall.as_secs_f64());
    figures.backup.push(sample);
    let after = range.ask("counts")?;
    let delta = |a: &Value, b: &Value, field: &str| {
        b[field].as_f64().unwrap_or_default() - a[field].as_f64().unwrap_or_default()
    };
    figures.puts = delta(&before, &after, "writes");
    figures.sent_bytes = delta(&before, &after, "sent");
    let plain = range.ask("fetch r/packs/")?;
    figures.packs_bytes = plain["bytes"].as_f64().context("no bytes")?;
    let seconds = plain["seconds"].as_f64().context("no seconds")?;
    eprintln!("    {seconds:6.2} s  the same packs with plain ranged requests");
    figures.fetch.push(Duration::from_secs_f64(seconds));
    let out = dir.join("out.raw");
    let target = out.display().to_string();
    let before = range.number("counts", "received")?;
    let reads = range.number("counts", "reads")?;
    // As on a machine that never saw the repository: nothing is cached.
    let words = ["restore", "disk", "b@latest:disk0", "--to", &target];
    let sample = measure::run(&mut command(&words, "fresh"), &log)?;
    eprintln!("    {:6.2} s  restore", sample.wall.as_secs_f64());
    figures.restore.push(sample);
    figures.restored_bytes = range.number("counts", "received")? - before;
    figures.gets = range.number("counts", "reads")? - reads;
    let same = proc::output(proc::command("cmp").args([image, &out]));
    same.map(drop).context("restored wrongly")?;
    if figures.packs_bytes <= 0.0 {
        bail!("the bucket holds no packs");
    }
    Ok(())
}

fn text(args: &Args, f: &Figures) -> String {
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let wall = |samples: &[Sample]| measure::median(samples).wall.as_secs_f64();
    let mut fetches = f.fetch.clone();
    fetches.sort();
    let fetch = fetches.get(fetches.len() / 2).copied().unwrap_or_default().as_secs_f64();
    let (restore, backup) = (wall(&f.restore), wall(&f.backup));
    let stored = mib(f.packs_bytes);
    let rate = |seconds: f64| stored / seconds;
    let mut out = format!(
        "\nS3 at {} ms round trip, link of {} MiB/s, image of {} MiB, {stored:.0} MiB of packs, \
         medians of {}\n\n",
        args.delay_ms, args.mib_s, args.size_mib, args.runs
    );
    let mut row = |name: &str, value: String| out.push_str(&format!("  {name:<44} {value}\n"));
    row("plain ranged GET of all packs", format!("{fetch:7.2} s  {:6.1} MiB/s", rate(fetch)));
    row("restore, nothing cached", format!("{restore:7.2} s  {:6.1} MiB/s", rate(restore)));
    row("restore / plain (B12: >= 90 %)", format!("{:7.1} %", 100.0 * fetch / restore));
    row("restore: GET and HEAD requests", format!("{:7.0}", f.gets));
    row(
        "restore: bytes received / bytes of packs",
        format!("{:7.3}", f.restored_bytes / f.packs_bytes),
    );
    let peak = measure::median(&f.restore).peak_bytes as f64;
    row("restore: peak memory", format!("{:7.0} MiB", mib(peak)));
    row("backup", format!("{backup:7.2} s  {:6.1} MiB/s", rate(backup)));
    let peak = measure::median(&f.backup).peak_bytes as f64;
    row("backup: peak memory", format!("{:7.0} MiB", mib(peak)));
    row("backup: PUT requests", format!("{:7.0}", f.puts));
    let per_gib = f.puts / (mib(f.sent_bytes) / 1024.0);
    row("PUT requests a GiB stored (B16: <= 100)", format!("{per_gib:7.1}"));
    out
}
