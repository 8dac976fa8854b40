//! The figures as a page of text: medians, ratios in the same round, goals.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::super::process::middle;
use super::servers::Kind;
use super::{Measured, WARM_MIB, Work};

/// Everything measured, round by round.
#[derive(Debug)]
pub(super) struct Figures {
    size_mib: u64,
    all: BTreeMap<(Work, Kind), Vec<Measured>>,
    ready: BTreeMap<&'static str, Vec<Duration>>,
}

/// What a goal compares.
#[derive(Debug, Clone, Copy)]
enum What {
    Rate,
    Cpu,
}

/// A bar: ours against a peer, and the ratio that must be reached.
struct Goal {
    name: &'static str,
    work: Work,
    what: What,
    peer: Kind,
    /// At least, for rates; at most, for processor time.
    ratio: f64,
}

const GOALS: [Goal; 10] = [
    goal("B6 warm 4 KiB, one at a time: processor", Work::WarmOne, What::Cpu, Kind::Nbdkit, 1.2),
    goal("B6 warm 4 KiB, 16 at a time: processor", Work::WarmMany, What::Cpu, Kind::Nbdkit, 1.2),
    goal("B6 warm 4 KiB, 4 connections", Work::WarmConnections, What::Rate, Kind::QemuRaw, 2.0),
    goal("B7 cold 4 KiB", Work::ColdMany, What::Rate, Kind::QemuZstd, 2.0),
    goal("B7 cold 4 KiB: processor", Work::ColdMany, What::Cpu, Kind::QemuZstd, 0.6),
    goal("B7 cold sequential nbdcopy", Work::ColdCopy, What::Rate, Kind::QemuZstd, 1.5),
    goal("cold sequential nbdcopy, holes skipped", Work::ColdSkip, What::Rate, Kind::QemuZstd, 1.5),
    goal("warm sequential", Work::WarmCopy, What::Rate, Kind::QemuRaw, 1.0),
    goal("overlay, random writes of 4 KiB", Work::WriteMany, What::Rate, Kind::QemuOverlay, 1.0),
    goal("overlay, write and flush", Work::WriteFlush, What::Rate, Kind::QemuOverlay, 1.0),
];

const fn goal(name: &'static str, work: Work, what: What, peer: Kind, ratio: f64) -> Goal {
    Goal { name, work, what, peer, ratio }
}

impl Figures {
    pub(super) fn new(size_mib: u64) -> Self {
        Self { size_mib, all: BTreeMap::new(), ready: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, work: Work, kind: Kind, measured: Measured) {
        self.all.entry((work, kind)).or_default().push(measured);
    }

    pub(super) fn ready(&mut self, times: &BTreeMap<&'static str, Duration>) {
        for (name, time) in times {
            self.ready.entry(name).or_default().push(*time);
        }
    }

    /// The page.
    pub(super) fn text(&self) -> String {
        let mut out = format!(
            "\nNBD over loopback TCP; image {} MiB, files of all servers in the page cache; warm: {WARM_MIB} MiB of it, \
             read before; cold: the server was just started.\n\n",
            self.size_mib
        );
        let _ = writeln!(
            out,
            "{:16} {:24} {:>10} {:>12} {:>12}",
            "", "", "a second", "server cpu", "slowest 1 %"
        );
        for ((work, kind), samples) in &self.all {
            let rate = middle(samples.iter().map(|s| s.rate));
            let cpu = middle(samples.iter().map(|s| s.cpu_us));
            let p99 = middle(samples.iter().map(|s| s.p99_us));
            let unit = if work.fio().is_some() { "op" } else { "MiB" };
            let _ = writeln!(
                out,
                "{:16} {:24} {rate:>10.0} {:>12} {:>12}",
                format!("{work:?}"),
                kind.name(),
                format!("{cpu:.1} us/{unit}"),
                if p99 > 0.0 { format!("{p99:.0} us") } else { "-".to_owned() },
            );
        }
        out.push('\n');
        for goal in &GOALS {
            self.judge(&mut out, goal);
        }
        for (what, limit) in [("export", 1.0), ("first read", 0.1)] {
            let Some(times) = self.ready.get(what) else { continue };
            let mut seconds = middle(times.iter().map(Duration::as_secs_f64));
            if what == "first read" {
                // Starting the client is not the server's time.
                let again = self.ready.get("again").map(Vec::as_slice).unwrap_or_default();
                seconds -= middle(again.iter().map(Duration::as_secs_f64));
            }
            let verdict = if seconds <= limit { "reached" } else { "NOT REACHED" };
            let _ = writeln!(
                out,
                "B5 a point of 1 TiB, {what}: {:.0} ms (goal: at most {:.0} ms): {verdict}",
                seconds.max(0.0) * 1000.0,
                limit * 1000.0
            );
        }
        out
    }

    fn judge(&self, out: &mut String, goal: &Goal) {
        let ours = if goal.peer == Kind::QemuOverlay { Kind::OursWritable } else { Kind::Ours };
        let pair = (self.all.get(&(goal.work, ours)), self.all.get(&(goal.work, goal.peer)));
        let (Some(ours), Some(theirs)) = pair else { return };
        let value = |m: &Measured| match goal.what {
            What::Rate => m.rate,
            What::Cpu => m.cpu_us,
        };
        let ratio = middle(ours.iter().zip(theirs).map(|(o, t)| value(o) / value(t)));
        let (reached, bound) = match goal.what {
            What::Rate => (ratio >= goal.ratio, "at least"),
            What::Cpu => (ratio <= goal.ratio, "at most"),
        };
        let verdict = if reached { "reached" } else { "NOT REACHED" };
        let _ = writeln!(
            out,
            "{}: {ratio:.2} x {} (goal: {bound} {} x): {verdict}",
            goal.name,
            goal.peer.name(),
            goal.ratio
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_judged_by_ratios_of_the_same_round() {
        let mut figures = Figures::new(100);
        let measured = |rate, cpu_us| Measured { rate, cpu_us, p99_us: 10.0 };
        for (ours, theirs) in [(200.0, 100.0), (20.0, 5.0), (300.0, 200.0)] {
            figures.add(Work::ColdMany, Kind::Ours, measured(ours, 61.0));
            figures.add(Work::ColdMany, Kind::QemuZstd, measured(theirs, 100.0));
        }
        let times = BTreeMap::from([
            ("export", Duration::from_millis(1001)),
            ("first read", Duration::from_millis(150)),
            ("again", Duration::from_millis(60)),
        ]);
        figures.ready(&times);
        let text = figures.text();
        let says = |part: &str| assert!(text.contains(part), "{part}\n{text}");
        says("B7 cold 4 KiB: 2.00 x qemu-nbd zstd qcow2 (goal: at least 2 x): reached");
        says("processor: 0.61 x qemu-nbd zstd qcow2 (goal: at most 0.6 x): NOT REACHED");
        says("export: 1001 ms (goal: at most 1000 ms): NOT REACHED");
        says("first read: 90 ms (goal: at most 100 ms): reached");
    }
}
