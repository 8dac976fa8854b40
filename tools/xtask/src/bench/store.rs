//! `cargo xtask bench store`: backup, unchanged backup and restore of the mixed image, then the
//! backups with change maps.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::changes;
use super::image;
use super::measure::{self, Sample};
use super::report::{Limits, Report, Row};
use super::tools::{Peer, Tool};
use crate::bootstrap::{self, Purpose};
use crate::env::House;
use crate::proc;
use crate::workdir::{Stop, WorkDir};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// How often each is measured; the medians count
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=101))]
    runs: u32,
    /// Size of the image
    #[arg(long, default_value_t = image::DEFAULT_MIB)]
    size_mib: u64,
    /// The same seed makes the same image
    #[arg(long, default_value_t = image::DEFAULT_SEED)]
    seed: u64,
    /// Beside whom; `--peers=` for nobody
    #[arg(long, value_delimiter = ',', default_value = "restic,borg,rustic")]
    peers: Vec<String>,
    /// Directory for image, repositories and what is restored (about three times the image); a
    /// memory file system such as /dev/shm measures the programs and not the disk [default: the
    /// system's temporary directory]
    #[arg(long)]
    pub(super) dir: Option<PathBuf>,
}

/// The chore.
pub(super) fn run(house: &House, args: &Args) -> Result<ExitCode> {
    let peers = parse_peers(&args.peers)?;
    let purpose = Purpose::Measure {
        restic: peers.contains(&Peer::Restic),
        borg: peers.contains(&Peer::Borg),
        tgt: false,
    };
    let cargo = bootstrap::ready(house, purpose)?;
    let ours = Tool::ours(cargo.release_binary("backstay", "backstay")?)?;
    let limits = cargo.release_binary("backstay-tests", "limits")?;
    let mut tools = vec![ours];
    for peer in peers {
        match Tool::peer(house, peer) {
            Ok(tool) => tools.push(tool),
            Err(error) => eprintln!("SKIPPED: {peer:?} is not measured: {error:#}"),
        }
    }
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir).join("backstay-bench");
    let stop = Stop::catch()?;
    let work = WorkDir::new(&parent)?;
    let image = work.path().join("image.raw");
    eprintln!("writing the image, {} MiB, seed {}", args.size_mib, args.seed);
    write_image(&image, args.size_mib, args.seed)?;
    let mut report = Report::new(args.size_mib, file_system(work.path())?, &tools);
    for round in 1..=args.runs {
        stop.check()?;
        eprintln!("round {round} of {}: limits", args.runs);
        report.limits.push(measure_limits(&limits, &image)?);
        // Another order every round, so that nobody always runs on the heels of the same one.
        for i in 0..tools.len() {
            let at = (i + round as usize) % tools.len();
            stop.check()?;
            eprintln!("round {round} of {}: {}", args.runs, tools[at].name);
            measure_tool(&tools[at], work.path(), &image, &mut report.rows[at])?;
        }
    }
    print!("{}", report.text());
    print!("{}", changes::measure(&tools[0], work.path(), args.runs, args.seed, &stop)?);
    Ok(ExitCode::SUCCESS)
}

pub(super) fn parse_peers(names: &[String]) -> Result<Vec<Peer>> {
    let mut peers = Vec::new();
    for name in names.iter().filter(|name| !name.is_empty()) {
        match <Peer as clap::ValueEnum>::from_str(name, true) {
            Ok(peer) if !peers.contains(&peer) => peers.push(peer),
            Ok(_) => {}
            Err(_) => bail!("no peer is called {name}: choose from restic, borg, rustic"),
        }
    }
    Ok(peers)
}

/// Writes the image in a process of its own: a child's peak memory starts at its parent's, so this
/// program must stay small.
pub(super) fn write_image(image: &Path, size_mib: u64, seed: u64) -> Result<()> {
    let me = std::env::current_exe().context("cannot tell where this program is")?;
    let mut command = proc::command(me);
    command.args(["bench", "image"]).arg(image);
    command.arg("--size-mib").arg(size_mib.to_string());
    proc::run(command.arg("--seed").arg(seed.to_string()))
}

fn file_system(dir: &Path) -> Result<String> {
    let text = proc::capture(proc::command("stat").args(["-f", "-c", "%T"]).arg(dir))?;
    Ok(text.trim().to_owned())
}

fn measure_limits(program: &Path, image: &Path) -> Result<Limits> {
    let text = proc::capture(proc::command(program).arg(image))?;
    let seen: Value =
        serde_json::from_str(&text).with_context(|| format!("no figures in {text}"))?;
    let number =
        |name: &str| seen[name].as_f64().with_context(|| format!("no figure `{name}` in {text}"));
    Ok(Limits {
        threads: number("threads")?,
        data_mib: number("data_mib")?,
        encode: number("encode_mib_s")?,
        encode_verified: number("encode_verified_mib_s")?,
        hash: number("hash_mib_s")?,
        read_hash: number("read_hash_mib_s")?,
        decode: number("decode_mib_s")?,
        write: number("write_mib_s")?,
    })
}

fn measure_tool(tool: &Tool, work: &Path, image: &Path, row: &mut Row) -> Result<()> {
    let dir = work.join(&tool.name);
    let out = dir.join("out");
    fs::create_dir_all(&out)?;
    let log = dir.join("log");
    tool.init(&dir)?;
    let run = |command: &mut std::process::Command| -> Result<Sample> {
        let sample = measure::run(command, &log)?;
        eprintln!("    {:6.2} s  {}", sample.wall.as_secs_f64(), proc::shown(command));
        Ok(sample)
    };
    row.backup.push(run(&mut tool.backup(&dir, image, 1))?);
    // A guest's disk was written since; only then do the peers read it again.
    let now = std::time::SystemTime::now();
    fs::File::options().write(true).open(image)?.set_modified(now)?;
    row.again.push(run(&mut tool.backup(&dir, image, 2))?);
    row.restore.push(run(&mut tool.restore(&dir, &out, 2))?);
    row.stored_bytes = size_below(&dir.join("repo"))?;
    same(image, &restored(&out)?)?;
    fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))
}

/// The one file below a directory, wherever the tool put it.
pub(super) fn restored(out: &Path) -> Result<PathBuf> {
    let text = proc::capture(proc::command("find").arg(out).args(["-type", "f"]))?;
    let mut files = text.lines();
    match (files.next(), files.next()) {
        (Some(file), None) => Ok(PathBuf::from(file)),
        _ => bail!("one restored file was due: {text}"),
    }
}

pub(super) fn size_below(dir: &Path) -> Result<u64> {
    // Our reserve holds nothing, and the others keep none.
    let exclude = "--exclude=reserve";
    let text = proc::capture(proc::command("du").args(["-s", "-B1", exclude]).arg(dir))?;
    let number = text.split_whitespace().next().unwrap_or_default();
    number.parse().with_context(|| format!("du said {text}"))
}

pub(super) fn same(a: &Path, b: &Path) -> Result<()> {
    proc::output(proc::command("cmp").args([a, b])).map(drop).context("restored wrongly")
}
