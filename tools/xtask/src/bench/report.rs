//! The figures as a page of text: what was measured, medians, ratios, goals.

use std::fmt::Write;

use super::measure::{Sample, median};
use super::tools::Tool;

const MIB: f64 = (1_u64 << 20) as f64;
/// B1, B2, B4: the share of the limit that must be reached.
const SHARE_OF_LIMIT: f64 = 0.80;
/// B1: times the fastest peer, first backup.
const TIMES_BACKUP: f64 = 2.0;
/// B4: times the fastest peer, restore.
const TIMES_RESTORE: f64 = 3.0;
/// A backup's peak memory stays below.
const MEMORY_MIB: f64 = 512.0;

/// What this machine can do at most, all threads together, in MiB of data a second.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Limits {
    pub(super) threads: f64,
    /// Data of the image that is not zeros, in MiB.
    pub(super) data_mib: f64,
    /// BLAKE3 + zstd-1 + AES-256-GCM.
    pub(super) encode: f64,
    /// The same, and each chunk decoded again before it counts.
    pub(super) encode_verified: f64,
    /// BLAKE3 alone.
    pub(super) hash: f64,
    /// BLAKE3, with each chunk read from the page cache before.
    pub(super) read_hash: f64,
    /// AES-256-GCM + zstd + BLAKE3.
    pub(super) decode: f64,
    /// Writing alone, one thread, to the file system that is restored to.
    pub(super) write: f64,
}

/// The samples of one program.
#[derive(Debug, Default)]
pub(super) struct Row {
    name: String,
    version: String,
    ours: bool,
    pub(super) backup: Vec<Sample>,
    pub(super) again: Vec<Sample>,
    pub(super) restore: Vec<Sample>,
    pub(super) stored_bytes: u64,
}

/// Everything measured in one run.
#[derive(Debug)]
pub(super) struct Report {
    size_mib: u64,
    file_system: String,
    pub(super) limits: Vec<Limits>,
    pub(super) rows: Vec<Row>,
}

impl Report {
    pub(super) fn new(size_mib: u64, file_system: String, tools: &[Tool]) -> Report {
        let row = |tool: &Tool| Row {
            name: tool.name.clone(),
            version: tool.version.clone(),
            ours: tool.is_ours(),
            ..Row::default()
        };
        let rows = tools.iter().map(row).collect();
        Report { size_mib, file_system, limits: Vec::new(), rows }
    }

    /// The page.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        let limits = self.limit();
        self.head(&mut out, &limits);
        self.table(&mut out);
        self.goals(&mut out, &limits);
        out
    }

    fn limit(&self) -> Limits {
        let middle = |figure: fn(&Limits) -> f64| {
            let mut all: Vec<f64> = self.limits.iter().map(figure).collect();
            all.sort_by(f64::total_cmp);
            all.get(all.len() / 2).copied().unwrap_or_default()
        };
        Limits {
            threads: middle(|l| l.threads),
            data_mib: middle(|l| l.data_mib),
            encode: middle(|l| l.encode),
            encode_verified: middle(|l| l.encode_verified),
            hash: middle(|l| l.hash),
            read_hash: middle(|l| l.read_hash),
            decode: middle(|l| l.decode),
            write: middle(|l| l.write),
        }
    }

    fn head(&self, out: &mut String, limits: &Limits) {
        let (size, data, fs) = (self.size_mib, limits.data_mib, &self.file_system);
        let _ = writeln!(
            out,
            "\nImage {size} MiB, {data:.0} MiB of it not zeros; on {fs}; medians of {}, page cache \
             warm.\nThe image's time is renewed before the second backup, so everybody reads it.\n",
            self.limits.len()
        );
        let _ = writeln!(out, "Limits of {} threads on this image's data:", limits.threads);
        for (name, rate) in [
            ("BLAKE3 + zstd-1 + AES-GCM", limits.encode),
            ("the same, decoded again", limits.encode_verified),
            ("BLAKE3", limits.hash),
            ("BLAKE3 and reading", limits.read_hash),
            ("AES-GCM + zstd + BLAKE3", limits.decode),
            ("writing it (one thread)", limits.write),
        ] {
            let _ = writeln!(out, "  {name:26} {rate:7.0} MiB/s  {:6.2} s", data / rate);
        }
        out.push('\n');
    }

    fn table(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "{:10} {:17} {:>8} {:>8} {:>8} {:>9} {:>9} {:>11}",
            "", "", "wall", "on disk", "cpu", "MiB/s", "peak", "repository"
        );
        for row in &self.rows {
            let stored = format!("{:.0} MiB", row.stored_bytes as f64 / MIB);
            for (i, (what, samples)) in row.operations().into_iter().enumerate() {
                let sample = median(samples);
                let (wall, cpu) = (sample.wall.as_secs_f64(), sample.cpu.as_secs_f64());
                let durable = sample.durable.as_secs_f64();
                let (name, stored) =
                    if i == 0 { (row.name.as_str(), stored.as_str()) } else { ("", "") };
                let _ = writeln!(
                    out,
                    "{name:10} {what:17} {wall:6.2} s {durable:6.2} s {cpu:6.2} s {:9.0} {:5.0} MiB {stored:>11}",
                    self.size_mib as f64 / wall,
                    sample.peak_bytes as f64 / MIB,
                );
            }
        }
        out.push('\n');
        for row in &self.rows {
            let _ = writeln!(out, "{}", row.version);
        }
        out.push('\n');
    }

    fn goals(&self, out: &mut String, limits: &Limits) {
        let Some(ours) = self.rows.iter().find(|row| row.ours) else { return };
        for (goal, what, rate, times) in [
            ("B1", 0, limits.encode, Some(TIMES_BACKUP)),
            ("B2", 1, limits.hash, None),
            ("B4", 2, limits.decode, Some(TIMES_RESTORE)),
        ] {
            let (name, samples) = ours.operations()[what];
            let wall = median(samples).wall.as_secs_f64();
            let share = limits.data_mib / rate / wall;
            let text = format!("{goal} {name}: {:.0} % of the limit", share * 100.0);
            line(out, &text, SHARE_OF_LIMIT * 100.0, "%", share >= SHARE_OF_LIMIT);
            let Some(times) = times else { continue };
            for (until, time) in [("", wall_of as Time), (", until all is on the disk", durable_of)]
            {
                let Some((peer, theirs)) = self.fastest_peer(what, time) else { continue };
                let ratio = theirs / time(&median(samples));
                let text = format!("{goal} {name}: {ratio:.2} x the fastest peer ({peer}){until}");
                line(out, &text, times, "x", ratio >= times);
            }
        }
        for (name, samples) in &ours.operations()[..2] {
            let peak = median(samples).peak_bytes as f64 / MIB;
            let fits = peak < MEMORY_MIB;
            let verdict = if fits { "reached" } else { "NOT REACHED" };
            let _ = writeln!(
                out,
                "memory {name}: at most {peak:.0} MiB (goal: below {MEMORY_MIB} MiB): {verdict}"
            );
        }
    }

    fn fastest_peer(&self, what: usize, time: Time) -> Option<(&str, f64)> {
        self.rows
            .iter()
            .filter(|row| !row.ours)
            .map(|row| (row.name.as_str(), time(&median(row.operations()[what].1))))
            .min_by(|a, b| a.1.total_cmp(&b.1))
    }
}

/// Which time of a sample counts, in seconds.
type Time = fn(&Sample) -> f64;

fn wall_of(sample: &Sample) -> f64 {
    sample.wall.as_secs_f64()
}

fn durable_of(sample: &Sample) -> f64 {
    sample.durable.as_secs_f64()
}

impl Row {
    fn operations(&self) -> [(&'static str, &[Sample]); 3] {
        [
            ("first backup", self.backup.as_slice()),
            ("unchanged backup", self.again.as_slice()),
            ("restore", self.restore.as_slice()),
        ]
    }
}

fn line(out: &mut String, text: &str, goal: f64, unit: &str, reached: bool) {
    let verdict = if reached { "reached" } else { "NOT REACHED" };
    let _ = writeln!(out, "{text} (goal: at least {goal} {unit}): {verdict}");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::measure::Sample;
    use super::{Limits, Report, Row};

    fn row(name: &str, ours: bool, seconds: [u64; 3]) -> Row {
        let sample = |s| {
            let wall = Duration::from_secs(s);
            let durable = wall * 2;
            vec![Sample { wall, durable, cpu: wall, peak_bytes: 100 << 20 }]
        };
        Row {
            name: name.into(),
            ours,
            backup: sample(seconds[0]),
            again: sample(seconds[1]),
            restore: sample(seconds[2]),
            ..Row::default()
        }
    }

    #[test]
    fn goals_are_judged_against_the_limit_and_the_fastest_peer() {
        let limits = Limits {
            threads: 2.0,
            data_mib: 900.0,
            encode: 100.0,
            encode_verified: 90.0,
            hash: 900.0,
            read_hash: 800.0,
            decode: 100.0,
            write: 500.0,
        };
        let report = Report {
            size_mib: 1000,
            file_system: "tmpfs".into(),
            limits: vec![limits],
            rows: vec![
                row("backstay", true, [10, 2, 12]),
                row("slow", false, [90, 9, 90]),
                row("quick", false, [20, 3, 35]),
            ],
        };
        let text = report.text();
        let says = |part: &str| assert!(text.contains(part), "{part}\n{text}");
        says("B1 first backup: 90 % of the limit (goal: at least 80 %): reached");
        says("B1 first backup: 2.00 x the fastest peer (quick) (goal: at least 2 x): reached");
        says("2.00 x the fastest peer (quick), until all is on the disk (goal");
        says("B2 unchanged backup: 50 % of the limit (goal: at least 80 %): NOT REACHED");
        says("B4 restore: 75 % of the limit (goal: at least 80 %): NOT REACHED");
        says("B4 restore: 2.92 x the fastest peer (quick) (goal: at least 3 x): NOT REACHED");
        says("memory first backup: at most 100 MiB (goal: below 512 MiB): reached");
    }
}
