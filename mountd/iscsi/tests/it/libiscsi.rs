//! libiscsi's conformance suite, one process a test. What it does not test, and why, is in conformance/exceptions.tsv.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use backstay_blockdev::{BlockDevice, MemDevice};
use backstay_iscsi::server::{ServerConfig, ServerHandle, TargetTable};

use crate::support::{LOOPBACK, has, target, unit};

const EXCEPTIONS: &str = include_str!("../conformance/exceptions.tsv");
/// A test takes no longer.
const LIMIT: Duration = Duration::from_secs(30);
/// Tests at once, each on a target of its own.
const LANES: usize = 2;
const UNIT_BYTES: usize = 64 << 20;

/// How a test went.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Passed,
    Skipped(String),
    Failed(String),
}

/// Targets `lane-0`, `lane-1` and so on, each with unit 0 (physical blocks of 4 KiB) and unit 1 (of 512 bytes).
struct Lanes {
    server: ServerHandle,
}

impl Lanes {
    fn new(read_only: bool) -> Self {
        let table = Arc::new(TargetTable::new());
        for lane in 0..LANES {
            let device = || -> Arc<dyn BlockDevice> {
                match read_only {
                    true => Arc::new(MemDevice::read_only(vec![0; UNIT_BYTES])),
                    false => Arc::new(MemDevice::new(vec![0; UNIT_BYTES])),
                }
            };
            let mut small = unit(1, device());
            small.physical_block_bytes = 512;
            table.add(target(&name(lane), vec![unit(0, device()), small])).unwrap();
        }
        let server = ServerHandle::start(&[LOOPBACK], table, ServerConfig::default()).unwrap();
        Self { server }
    }

    fn uri(&self, lane: usize, lun: u16) -> String {
        format!("iscsi://{}/{}/{lun}", self.server.addresses()[0], name(lane))
    }
}

fn name(lane: usize) -> String {
    format!("iqn.2026-11.io.backstay:lane-{lane}")
}

/// Runs tests of the suite in one process.
fn run(tests: &str, uris: &[String], dataloss: bool) -> Verdict {
    let mut command = Command::new("iscsi-test-cu");
    if dataloss {
        command.arg("--dataloss");
    }
    command.args(["--normal", "-t", tests]).args(uris);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut said = Vec::new();
        std::io::Read::read_to_end(&mut stdout, &mut said).unwrap();
        String::from_utf8_lossy(&said).into_owned()
    });
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > LIMIT {
            child.kill().unwrap();
            child.wait().unwrap();
            return Verdict::Failed("it hangs".into());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    judge(&reader.join().unwrap())
}

/// What a run's words mean. The suite calls skipped tests passed, so their own word counts.
fn judge(said: &str) -> Verdict {
    let Some(summary) = said.lines().find(|line| line.trim_start().starts_with("tests ")) else {
        return Verdict::Failed(format!("it died: {}", said.lines().last().unwrap_or_default()));
    };
    let counts: Vec<u32> = summary.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let line = |sign: &str| said.lines().find(|line| line.contains(sign)).map(str::trim);
    match counts[..] {
        [total, ran, passed, failed, _]
            if total == ran && ran == passed && failed == 0 && ran > 0 =>
        {
            match line("[SKIPPED]") {
                Some(why) => Verdict::Skipped(why.to_owned()),
                None => Verdict::Passed,
            }
        }
        _ => Verdict::Failed(line("CU_").or(line("[FAILED]")).unwrap_or(summary).to_owned()),
    }
}

#[derive(Debug)]
struct Exception {
    run: &'static str,
    prefix: &'static str,
    is_out: bool,
}

fn exceptions(run: &str) -> Vec<Exception> {
    let lines = EXCEPTIONS.lines().filter(|line| !line.starts_with('#'));
    let all = lines.map(|line| {
        let fields: Vec<&str> = line.split('\t').collect();
        let [run, prefix, how, reason] = fields[..] else { panic!("four columns: {line}") };
        assert!(!reason.is_empty() && matches!(how, "SKIP" | "OUT"), "{line}");
        Exception { run, prefix, is_out: how == "OUT" }
    });
    all.filter(|exception| exception.run == run).collect()
}

/// All tests of the suite, but for those of `exceptions` that are left out; how many there are besides.
fn suite(exceptions: &[Exception]) -> Vec<String> {
    let list = Command::new("iscsi-test-cu").arg("--list").output().unwrap();
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let mut tests: Vec<String> = list
        .lines()
        .map(|line| line.trim().replace(' ', ""))
        .filter(|name| name.starts_with("ALL.") && name.split('.').count() == 3)
        .collect();
    tests.sort();
    tests.dedup();
    assert_eq!(tests.len(), 230, "libiscsi's suite is another one");
    for exception in exceptions {
        let used = tests.iter().any(|test| test.starts_with(exception.prefix));
        assert!(used, "no test begins with {}", exception.prefix);
    }
    let out = |test: &String| {
        exceptions.iter().any(|exception| exception.is_out && test.starts_with(exception.prefix))
    };
    tests.retain(|test| !out(test));
    tests
}

/// Runs all tests, some at once.
fn run_all(lanes: &Lanes, tests: Vec<String>, dataloss: bool) -> BTreeMap<String, Verdict> {
    let queue = Mutex::new(tests);
    let verdicts = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for lane in 0..LANES {
            let (queue, verdicts) = (&queue, &verdicts);
            scope.spawn(move || {
                loop {
                    let Some(test) = queue.lock().unwrap().pop() else { return };
                    let verdict = run(&test, &[lanes.uri(lane, 0)], dataloss);
                    verdicts.lock().unwrap().insert(test, verdict);
                }
            });
        }
    });
    verdicts.into_inner().unwrap()
}

/// Fails on failures, and on skips that are on no list; answers how many passed.
#[track_caller]
fn check(verdicts: &BTreeMap<String, Verdict>, exceptions: &[Exception]) -> usize {
    let mut passed = 0;
    let mut wrong = Vec::new();
    for (test, verdict) in verdicts {
        match verdict {
            Verdict::Passed => passed += 1,
            Verdict::Skipped(_) if exceptions.iter().any(|e| test.starts_with(e.prefix)) => {}
            verdict => wrong.push(format!("{test}: {verdict:?}")),
        }
    }
    let skipped = verdicts.len() - passed - wrong.len();
    println!("libiscsi: {passed} passed, {} failed, {skipped} skipped", wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    passed
}

#[test]
fn a_writable_unit() {
    if !has("iscsi-test-cu") {
        return;
    }
    let (lanes, exceptions) = (Lanes::new(false), exceptions("rw"));
    let verdicts = run_all(&lanes, suite(&exceptions), true);
    let mut passed = check(&verdicts, &exceptions);
    // What the list leaves out of the run above.
    let one = |tests: &str, lun| {
        assert_eq!(run(tests, &[lanes.uri(0, lun)], true), Verdict::Passed, "{tests}");
    };
    one("ALL.GetLBAStatus.UnmapSingle", 1);
    one("ALL.iSCSITMF", 0);
    passed += 3;
    println!("libiscsi, writable, one path: {passed} passed");
    assert!(passed >= 189, "only {passed} passed");
    for test in ["Simple", "Reset", "CompareAndWrite", "CompareAndWriteAsync"] {
        // They compare blocks that they have not written, with zeros.
        let fresh = Lanes::new(false);
        let paths = [fresh.uri(0, 0), fresh.uri(0, 0)];
        let test = format!("ALL.MultipathIO.{test}");
        assert_eq!(run(&test, &paths, true), Verdict::Passed, "{test}");
    }
}

#[test]
fn a_read_only_unit() {
    if !has("iscsi-test-cu") {
        return;
    }
    let (lanes, exceptions) = (Lanes::new(true), exceptions("ro"));
    let verdicts = run_all(&lanes, suite(&exceptions), false);
    let passed = check(&verdicts, &exceptions);
    assert!(passed >= 90, "only {passed} passed");
    let reservations = [
        "ALL.PrinReadKeys",
        "ALL.ProutRegister",
        "ALL.ProutClear",
        "ALL.ProutPreempt",
        "ALL.ReadOnly",
    ];
    let types = ["WE", "EA", "WERO", "EARO", "WEAR", "EAAR"];
    let owners = types.map(|kind| format!("ALL.ProutReserve.Ownership{kind}"));
    for tests in reservations.into_iter().chain(owners.iter().map(String::as_str)) {
        assert_eq!(run(tests, &[lanes.uri(0, 0)], true), Verdict::Passed, "{tests}");
    }
}

#[test]
fn the_suites_words() {
    let summary = "               tests      1      1      1      0        0\n";
    assert_eq!(judge(summary), Verdict::Passed);
    let skipped = format!("    [SKIPPED] not here\n{summary}");
    assert!(matches!(judge(&skipped), Verdict::Skipped(_)), "it calls it passed");
    let failed = "    1. x.c:1  - CU_FAIL(\"no\")\n tests      1      1      0      1        0\n";
    assert!(matches!(judge(failed), Verdict::Failed(_)));
    assert!(matches!(judge("Segmentation fault"), Verdict::Failed(_)));
    let none = "               tests      0      0      0      0        0\n";
    assert!(matches!(judge(none), Verdict::Failed(_)), "a test that did not run");
}
