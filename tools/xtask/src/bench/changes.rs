//! `cargo xtask bench changes`: backups of huge sparse disks that are told what changed (B3).

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::image::Random;
use super::measure::{self, Sample, median};
use super::store::size_below;
use super::tools::Tool;
use crate::bootstrap::{self, Purpose};
use crate::env::House;
use crate::proc;
use crate::workdir::{Stop, WorkDir};

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;
/// The goal speaks of both: what it costs must not depend on the disk.
const DISKS: [(&str, u64); 2] = [("1 TiB", TIB), ("10 TiB", 10 * TIB)];
/// Places with data, spread over the disk, and the data at each.
const REGIONS: u64 = 1024;
const REGION_BYTES: u64 = 2 * MIB;
/// One dirty piece a region: 64 MiB in all.
const PIECE_BYTES: u64 = 64 << 10;
/// Half of a piece is noise; the other half is one line again and again, which shrinks to nothing.
const NOISE_BYTES: u64 = PIECE_BYTES / 2;
/// B3: seconds, and bytes written.
const SECONDS: f64 = 2.0;
const TIMES_DIRTY: f64 = 1.2;
const BESIDES: f64 = 2.0 * MIB as f64;
/// B2: ten times the disk may take that many times as long when nothing changed.
const TIMES_LARGER: f64 = 1.5;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// How often each is measured; the medians count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=101))]
    runs: u32,
    /// The same seed makes the same disks
    #[arg(long, default_value_t = super::image::DEFAULT_SEED)]
    seed: u64,
    /// Directory for disks and repositories (about 6 GiB), on a file system that takes files of
    /// 10 TiB [default: the system's temporary directory]
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// The chore.
pub(super) fn run(house: &House, args: &Args) -> Result<ExitCode> {
    let cargo = bootstrap::ready(house, Purpose::Build)?;
    let ours = Tool::ours(cargo.release_binary("backstay", "backstay")?)?;
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir).join("backstay-bench");
    let stop = Stop::catch()?;
    let work = WorkDir::new(&parent)?;
    print!("{}", measure(&ours, work.path(), args.runs, args.seed, &stop)?);
    Ok(ExitCode::SUCCESS)
}

/// Measures both disks in a directory of their own below `work`; the answer is a page of text.
pub(super) fn measure(
    ours: &Tool,
    work: &Path,
    runs: u32,
    seed: u64,
    stop: &Stop,
) -> Result<String> {
    let mut rows = Vec::new();
    for (name, size) in DISKS {
        let dir = work.join("changes");
        fs::create_dir_all(&dir)?;
        eprintln!("changes: a disk of {name}");
        rows.push(Disk::new(ours, &dir, size, seed)?.measure(name, runs, stop)?);
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(report(&rows, runs))
}

/// What was measured of one disk.
struct Row {
    name: &'static str,
    dirty: Vec<Sample>,
    clean: Vec<Sample>,
    /// Bytes that the worst dirty backup added to repository and index.
    written: u64,
    /// Bytes that the unchanged backups read of the disk, all together.
    clean_read: u64,
}

/// A sparse disk with a full backup of it.
struct Disk<'a> {
    ours: &'a Tool,
    dir: &'a Path,
    image: PathBuf,
    map: PathBuf,
    regions: Vec<u64>,
    random: Random,
}

impl<'a> Disk<'a> {
    fn new(ours: &'a Tool, dir: &'a Path, size: u64, seed: u64) -> Result<Disk<'a>> {
        let image = dir.join("disk.raw");
        let file = File::create(&image)?;
        file.set_len(size)
            .with_context(|| format!("this file system takes no file of {size} bytes"))?;
        let mut random = Random::new(seed ^ size);
        let mut buffer = vec![0; REGION_BYTES as usize];
        let mut regions = Vec::new();
        for i in 0..REGIONS {
            // Anywhere in its part of the disk, on a border of chunks as a bitmap has them.
            let part = size / REGIONS;
            let place = random.below((part - REGION_BYTES) / PIECE_BYTES) * PIECE_BYTES;
            let at = i * part + place;
            random.fill(&mut buffer);
            file.write_all_at(&buffer, at)?;
            regions.push(at);
        }
        file.sync_all()?;
        ours.init(dir)?;
        proc::run(ours.backup(dir, &image, 1).stdout(std::process::Stdio::null()))?;
        Ok(Disk { ours, dir, map: dir.join("changes.json"), image, regions, random })
    }

    fn measure(mut self, name: &'static str, runs: u32, stop: &Stop) -> Result<Row> {
        let (mut dirty, mut clean) = (Vec::new(), Vec::new());
        let (mut written, mut clean_read) = (0, 0);
        for _ in 0..runs {
            stop.check()?;
            let changes = self.change()?;
            let before = self.stored()?;
            dirty.push(self.backup(&changes)?.0);
            written = written.max(self.stored()?.saturating_sub(before));
            let (sample, said) = self.backup("[]")?;
            clean.push(sample);
            clean_read += number(&said, "read_bytes")?;
        }
        // Read as a whole, the disk must hold nothing that the points above lack.
        let log = self.dir.join("log");
        let again = measure::run(self.ours.backup(self.dir, &self.image, 2).arg("--json"), &log);
        again.context("the last backup cannot be compared")?;
        let said = said_in(&log)?;
        ensure!(number(&said, "new_bytes")? == 0, "what the maps left out was not unchanged");
        Ok(Row { name, dirty, clean, written, clean_read })
    }

    /// Changes a piece of each region; tells where, as the file of `--change-map`.
    fn change(&mut self) -> Result<String> {
        let file = File::options().write(true).open(&self.image)?;
        let line = b"the quick brown fox jumps over the lazy dog, again and again.\n";
        let mut piece: Vec<u8> = line.iter().copied().cycle().take(PIECE_BYTES as usize).collect();
        let mut extents = Vec::new();
        for region in &self.regions {
            let at = region + self.random.below(REGION_BYTES / PIECE_BYTES) * PIECE_BYTES;
            self.random.fill(&mut piece[..NOISE_BYTES as usize]);
            file.write_all_at(&piece, at)?;
            extents.push(serde_json::json!({"offset": at, "length": PIECE_BYTES}));
        }
        file.sync_all()?;
        Ok(Value::from(extents).to_string())
    }

    fn backup(&self, changes: &str) -> Result<(Sample, Value)> {
        fs::write(&self.map, changes)?;
        let log = self.dir.join("log");
        let mut command = self.ours.backup(self.dir, &self.image, 2);
        command.args(["--changed-since", "bench", "--json", "--change-map"]).arg(&self.map);
        let sample = measure::run(&mut command, &log)?;
        let said = said_in(&log)?;
        ensure!(said["change_maps"][0]["used"] == true, "the map was not used: {said}");
        eprintln!("    {:6.2} s  {}", sample.wall.as_secs_f64(), proc::shown(&command));
        Ok((sample, said))
    }

    /// Bytes of the repository and of its index.
    fn stored(&self) -> Result<u64> {
        Ok(size_below(&self.dir.join("repo"))? + size_below(&self.dir.join("cache"))?)
    }
}

fn said_in(log: &Path) -> Result<Value> {
    let text = fs::read_to_string(log)?;
    serde_json::from_str(&text).with_context(|| format!("no document in {text}"))
}

fn number(said: &Value, name: &str) -> Result<u64> {
    said["point"][name].as_u64().with_context(|| format!("no `{name}` in {said}"))
}

fn report(rows: &[Row], runs: u32) -> String {
    let mut out = format!(
        "\nBackups with a change map, {} MiB dirty in pieces of {} KiB, half of them noise; \
         medians of {runs}.\n\n",
        REGIONS * PIECE_BYTES / MIB,
        PIECE_BYTES >> 10
    );
    let verdict = |reached: bool| if reached { "reached" } else { "NOT REACHED" };
    // What compresses is counted as nothing, so this is less than any compressor leaves.
    let dirty = (REGIONS * NOISE_BYTES) as f64;
    let goal = TIMES_DIRTY * dirty + BESIDES;
    let mib = |bytes: f64| bytes / MIB as f64;
    for row in rows {
        let (changed, clean) = (median(&row.dirty), median(&row.clean));
        let seconds = changed.wall.as_secs_f64();
        let _ = writeln!(
            out,
            "B3 {:6}: {seconds:.2} s (goal: at most {SECONDS} s): {}",
            row.name,
            verdict(seconds <= SECONDS)
        );
        let written = row.written as f64;
        let _ = writeln!(
            out,
            "B3 {:6}: {:.1} MiB written for {:.1} MiB of noise (goal: at most {:.1} MiB): {}",
            row.name,
            mib(written),
            mib(dirty),
            mib(goal),
            verdict(written <= goal)
        );
        let _ = writeln!(
            out,
            "B2 {:6}: nothing changed: {} bytes read in {:.2} s (goal: 0): {}",
            row.name,
            row.clean_read,
            clean.wall.as_secs_f64(),
            verdict(row.clean_read == 0)
        );
        let peak = mib(changed.peak_bytes as f64);
        let _ = writeln!(out, "   {:6}: peak memory {peak:.0} MiB", row.name);
    }
    if let [small, large] = rows {
        let wall = |row: &Row| median(&row.clean).wall.as_secs_f64();
        let times = wall(large) / wall(small);
        let _ = writeln!(
            out,
            "B2 unchanged, ten times the disk: {times:.2} x the time (goal: at most \
             {TIMES_LARGER} x): {}",
            verdict(times <= TIMES_LARGER)
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{MIB, Row, report};
    use crate::bench::measure::Sample;

    #[test]
    fn goals_are_told_reached_or_not() {
        let sample = |millis| Sample { wall: Duration::from_millis(millis), ..Sample::default() };
        let row = |name, dirty, clean, written, clean_read| Row {
            name,
            dirty: vec![sample(dirty)],
            clean: vec![sample(clean)],
            written,
            clean_read,
        };
        let rows = [row("1 TiB", 1999, 100, 40 * MIB, 0), row("10 TiB", 2001, 160, 41 * MIB, 1)];
        let text = report(&rows, 1);
        let lines: Vec<&str> = text.lines().filter(|l| l.contains("goal")).collect();
        let reached: Vec<bool> = lines.iter().map(|l| !l.contains("NOT REACHED")).collect();
        assert_eq!(reached, [true, true, true, false, false, false, false], "{text}");
    }
}
