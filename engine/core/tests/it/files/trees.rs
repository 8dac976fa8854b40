//! What is in trees, and what they differ in.

use backstay_core::ErrorKind;
use backstay_core::files::What;
use backstay_core::files::diff::{Change, Compare, Options, diff};
use backstay_core::files::find::{Pattern, Query, find};
use backstay_core::files::walk::{Limits, measure};
use backstay_core::monitor::Silent;
use backstay_guestfs::fs::{NodeKind, Time};

use super::directory::sample;
use super::memory::{MemoryFs, ROOT, WHEN};
use super::whole;

/// The paths that fit.
fn found(fs: &MemoryFs, patterns: &[&str], change: impl FnOnce(&mut Query)) -> Vec<String> {
    let names = patterns.iter().map(|text| Pattern::new(text, false).unwrap()).collect();
    let mut query = Query { names, ..Query::default() };
    change(&mut query);
    let mut paths = vec![];
    find(whole(fs), &query, Limits::default(), &Silent, &mut |visit| {
        paths.push(backstay_core::files::shown(&visit.path));
        Ok(())
    })
    .unwrap();
    paths.sort();
    paths
}

#[test]
fn names_kinds_sizes_and_ages_are_found() {
    let fs = sample();
    let any = |_: &mut Query| ();
    assert_eq!(found(&fs, &["o*"], any), ["etc/old", "one"]);
    assert_eq!(found(&fs, &["/o*"], any), ["etc/old", "one"], "a name is at home anywhere");
    assert_eq!(found(&fs, &["*/o*"], any), ["etc/old"]);
    assert_eq!(found(&fs, &["**/o*"], any), ["etc/old", "one"]);
    assert_eq!(found(&fs, &["not*text", "{pipe,empty}"], any), ["empty", "not \\xff text", "pipe"]);
    assert_eq!(found(&fs, &[], |q| q.kinds = vec![NodeKind::Fifo]), ["pipe"]);
    assert_eq!(found(&fs, &[], |q| q.min_bytes = Some(1 << 20)), ["big", "sparse"]);
    assert_eq!(found(&fs, &[], |q| q.max_bytes = Some(0)), ["empty"]);
    let epoch = Some(Time::default());
    assert_eq!(found(&fs, &[], |q| q.older = epoch), ["etc/old"]);
    assert_eq!(found(&fs, &["ol?"], |q| q.newer = epoch), [""; 0]);
    assert_eq!(Pattern::new("[", false).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(found(&fs, &["OLD"], any), [""; 0]);
    let query = Query { names: vec![Pattern::new("OLD", true).unwrap()], ..Query::default() };
    let mut count = 0;
    let mut each = |_: &_| {
        count += 1;
        Ok(())
    };
    find(whole(&fs), &query, Limits::default(), &Silent, &mut each).unwrap();
    assert_eq!(count, 1);
}

#[test]
fn a_tree_is_measured_with_each_file_once() {
    let fs = sample();
    let size = measure(whole(&fs), Limits::default(), &|| Ok(())).unwrap();
    assert_eq!(size.nodes, 13);
    assert!(size.logical_bytes > 10 << 30);
    assert!(size.data_bytes < 6_000_000);
}

/// What two trees differ in, a line each.
fn lines(before: &MemoryFs, after: &MemoryFs, compare: Compare) -> Vec<String> {
    let mut lines = vec![];
    let options = Options { compare, ..Options::default() };
    diff(whole(before), whole(after), options, &Silent, &mut |path, change| {
        let what = match change {
            Change::Added(_) => "added",
            Change::Removed(_) => "removed",
            Change::Kind(..) => "kind",
            Change::Changed { content: true, metadata: true, .. } => "content, metadata",
            Change::Changed { content: true, .. } => "content",
            Change::Changed { .. } => "metadata",
        };
        lines.push(format!("{} {what}", backstay_core::files::shown(path)));
        Ok(())
    })
    .unwrap();
    lines
}

#[test]
fn every_difference_is_told_once() {
    let make = |changed: bool| {
        let mut fs = MemoryFs::new();
        let dir = fs.dir(ROOT, "dir");
        fs.file(dir, "same", b"same");
        let touched = fs.file(dir, "touched", b"same");
        let hidden = fs.file(dir, "hidden", if changed { b"new" } else { b"old" });
        let mode = fs.file(dir, "mode", b"m");
        fs.file(dir, "longer", if changed { b"longer" } else { b"long" });
        fs.symlink(dir, "link", if changed { b"a" } else { b"b" });
        if changed {
            let later = Time { seconds: WHEN.seconds + 1, nanos: 0 };
            fs.get(touched).stat.modified = later;
            fs.get(mode).stat.mode = 0o600;
            let new = fs.dir(ROOT, "new");
            fs.file(new, "inside", b"");
            fs.dir(ROOT, "turned");
        } else {
            fs.file(ROOT, "gone", b"");
            fs.file(ROOT, "turned", b"");
        }
        assert_eq!(fs.get(hidden).stat.modified, WHEN);
        fs
    };
    let (before, after) = (make(false), make(true));
    let common =
        ["gone removed", "new added", "turned kind", "dir/link content", "dir/longer content"];
    let all = |more: &[&str]| {
        let mut all: Vec<_> = common.iter().chain(more).map(ToString::to_string).collect();
        all.sort();
        all
    };
    let sorted = |compare| {
        let mut lines = lines(&before, &after, compare);
        lines.sort();
        lines
    };
    let mode = "dir/mode metadata";
    let touched = "dir/touched metadata";
    let by_time = all(&[mode, "dir/touched content, metadata"]);
    assert_eq!(sorted(Compare::Metadata), by_time);
    assert_eq!(sorted(Compare::Doubtful), all(&[mode, touched]));
    assert_eq!(sorted(Compare::All), all(&[mode, touched, "dir/hidden content"]));
    assert_eq!(lines(&before, &make(false), Compare::All), [""; 0]);
}

#[test]
fn what_cannot_be_read_does_not_seem_removed() {
    let before = sample();
    let mut after = sample();
    let etc = after.nodes.iter().find(|(_, node)| node.stat.mode == 0o750).map(|(id, _)| *id);
    after.get(etc.unwrap()).broken_from = Some(2);
    let up = after.dir(ROOT, "..");
    after.file(up, "x", b"");
    let mut each = |_: &[u8], change| panic!("{change:?}");
    let report = diff(whole(&before), whole(&after), Options::default(), &Silent, &mut each);
    let report = report.unwrap();
    assert_eq!(report.count(What::Unreadable), 1, "{:?}", report.notes);
    assert_eq!(report.count(What::BadName), 1);
}

#[test]
fn loops_in_both_trees_end() {
    let mut fs = MemoryFs::new();
    let a = fs.dir(ROOT, "a");
    fs.name(a, "b", ROOT);
    assert_eq!(lines(&fs, &fs, Compare::All), [""; 0]);
}
