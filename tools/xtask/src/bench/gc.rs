//! `cargo xtask bench gc`: how fast a collection marks, whether its cost follows the change, and
//! what backups feel of it (B14).

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::bootstrap::{self, Purpose};
use crate::env::House;
use crate::proc;
use crate::workdir::{Stop, WorkDir};

/// B14: references a second.
const REFERENCES: f64 = 1.5e6;
/// B14: what a collection after one change may take, with ten times the history: no more but for
/// noise, and for the list of points, which is longer.
const TIMES_HISTORY: f64 = 1.5;
/// B14: a backup waits if it takes this share of the collection longer than one with nobody beside.
const WAITS: f64 = 0.5;
/// Two programs on two processors that both use both: a backup may take twice the time and no more.
const TIMES_BESIDE: f64 = 2.0;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Chunks of the disk [default: 500000; with --release-size 4000000]
    #[arg(long)]
    chunks: Option<u64>,
    /// Larger, as the figures for a release are measured: about 20 GiB and ten minutes
    #[arg(long)]
    release_size: bool,
    /// Two lengths of history
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100])]
    points: Vec<u64>,
    /// Chunks that differ from point to point, anywhere on the disk
    #[arg(long, default_value_t = 500)]
    changed: u64,
    /// How often each is measured; the medians count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=101))]
    runs: u32,
    /// The same seed makes the same disk
    #[arg(long, default_value_t = super::image::DEFAULT_SEED)]
    seed: u64,
    /// Directory for the repository (about 6 KiB a chunk) [default: the system's temporary
    /// directory]
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Args {
    /// As `bench store` runs it.
    pub(super) fn beside_store(dir: Option<PathBuf>) -> Self {
        let (points, seed) = (vec![10, 100], super::image::DEFAULT_SEED);
        Self { chunks: None, release_size: false, points, changed: 500, runs: 3, seed, dir }
    }
}

/// The chore.
pub(super) fn run(house: &House, args: &Args) -> Result<ExitCode> {
    let cargo = bootstrap::ready(house, Purpose::Build)?;
    let collect = cargo.release_binary("backstay-tests", "collect")?;
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir).join("backstay-bench");
    let stop = Stop::catch()?;
    let work = WorkDir::new(&parent)?;
    let usual = if args.release_size { 4_000_000 } else { 500_000 };
    let points: Vec<String> = args.points.iter().map(u64::to_string).collect();
    let mut command = proc::command(collect);
    for (name, value) in [
        ("--chunks", args.chunks.unwrap_or(usual).to_string()),
        ("--points", points.join(",")),
        ("--changed", args.changed.to_string()),
        ("--runs", args.runs.to_string()),
        ("--seed", args.seed.to_string()),
        ("--dir", work.path().display().to_string()),
    ] {
        command.args([name, &value]);
    }
    let said = proc::capture(&mut command);
    stop.check()?;
    let said = said?;
    let seen: Value =
        serde_json::from_str(&said).with_context(|| format!("no figures in {said}"))?;
    print!("{}", text(&seen)?);
    Ok(ExitCode::SUCCESS)
}

/// The page of text for what the program measured.
fn text(seen: &Value) -> Result<String> {
    let number = |value: &Value, name: &str| {
        value[name].as_f64().with_context(|| format!("no figure `{name}` in {seen}"))
    };
    let mut out = format!(
        "\nCollections of a repository of one machine, {} chunks of 4 KiB, {} of them other from \
         point to point; medians of {}.\n\n",
        seen["chunks"], seen["changed"], seen["runs"]
    );
    let mut line = |what: String, goal: String, reached: bool| {
        let verdict = if reached { "reached" } else { "NOT REACHED" };
        let _ = writeln!(out, "B14 {what} (goal: {goal}): {verdict}");
    };
    let cold = &seen["cold"];
    let (references, wall) = (number(cold, "references")?, number(cold, "wall_s")?);
    let rate = references / wall;
    line(
        format!(
            "first: {:.2} million references a second, {references:.0} in {wall:.2} s ({:.2} s of \
             processors)",
            rate / 1e6,
            number(cold, "cpu_s")?
        ),
        format!("at least {:.1} million", REFERENCES / 1e6),
        rate >= REFERENCES,
    );
    let later = seen["later"].as_array().context("no later collections")?;
    for (name, unit, each) in
        [("wall_s", "s", 1.0), ("cpu_s", "s", 1.0), ("read_bytes", "MiB", f64::from(1 << 20))]
    {
        let of = |one: &Value| Ok::<_, anyhow::Error>(number(&one["cost"], name)? / each);
        let (Some(short), Some(long)) = (later.first(), later.last()) else { continue };
        let times = of(long)? / of(short)?;
        line(
            format!(
                "after one change: {name} {:.3} {unit} with {} points, {:.3} {unit} with {}: \
                 {times:.2} x",
                of(short)?,
                short["points"],
                of(long)?,
                long["points"]
            ),
            format!("at most {TIMES_HISTORY} x"),
            times <= TIMES_HISTORY,
        );
    }
    beside(&mut out, &seen["beside"], number)?;
    Ok(out)
}

fn beside(
    out: &mut String,
    seen: &Value,
    number: impl Fn(&Value, &str) -> Result<f64>,
) -> Result<()> {
    let of = |name: &str| number(seen, name);
    let verdict = |reached: bool| if reached { "reached" } else { "NOT REACHED" };
    let (collection, longest, quiet) = (of("collect_s")?, of("max_s")?, of("quiet_max_s")?);
    let waited = longest - quiet;
    // Where it is that short, nothing tells waiting from noise.
    let most = (collection * WAITS).max(0.5);
    let _ = writeln!(
        out,
        "B14 longest small backup beside a collection of {collection:.2} s: {longest:.3} s, alone \
         {quiet:.3} s (goal: at most {most:.2} s longer): {}",
        verdict(waited <= most)
    );
    let times = of("median_s")? / of("quiet_median_s")?;
    let _ = writeln!(
        out,
        "B14 median small backup beside it: {:.3} s ({} of them), alone {:.3} s ({}): {times:.2} x \
         (goal: at most {TIMES_BESIDE} x): {}",
        of("median_s")?,
        seen["count"],
        of("quiet_median_s")?,
        seen["quiet_count"],
        verdict(times <= TIMES_BESIDE)
    );
    let mib = |name: &str| Ok::<_, anyhow::Error>(of(name)? / f64::from(1 << 20));
    let _ = writeln!(
        out,
        "    freed {:.0} MiB of {:.0} MiB (half of the points were removed), {:.0} MiB of them when the \
         backups beside it were over; {:.0} MiB were copied; {} backups could not build upon the \
         one before",
        mib("freed_bytes")?,
        mib("stored_bytes")?,
        mib("later_bytes")?,
        mib("copied_bytes")?,
        seen["whole"]
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::text;

    #[test]
    fn goals_are_told_reached_or_not() {
        let cost = |wall: f64, read: u64, references: u64| {
            serde_json::json!({
                "wall_s": wall, "cpu_s": wall, "read_bytes": read, "reads": 1,
                "references": references,
            })
        };
        let seen = serde_json::json!({
            "chunks": 1000, "changed": 10, "runs": 1,
            "cold": cost(1.0, 0, 1_500_000),
            "later": [
                {"points": 10, "cost": cost(0.1, 2 << 20, 1)},
                {"points": 100, "cost": cost(0.2, 2 << 20, 1)},
            ],
            "beside": {
                "collect_s": 4.0, "stored_bytes": 4 << 20, "freed_bytes": 1 << 20,
                "later_bytes": 0, "copied_bytes": 0, "quiet_max_s": 0.5, "quiet_median_s": 0.1,
                "quiet_count": 3, "max_s": 2.6, "median_s": 0.19, "count": 4, "whole": 0,
            },
        });
        let said = text(&seen).expect("a page");
        let lines: Vec<&str> = said.lines().filter(|l| l.contains("goal")).collect();
        let reached: Vec<bool> = lines.iter().map(|l| !l.contains("NOT REACHED")).collect();
        assert_eq!(reached, [true, false, false, true, false, true], "{said}");
        assert!(said.contains("1.50 million references a second"), "{said}");
        assert!(text(&serde_json::json!({})).is_err());
    }
}
