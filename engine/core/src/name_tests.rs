use backstay_store::{Consistency, Origin, PointStats};

use super::*;

fn point(id: [u8; 16], machine: &str, time: &str, disks: &[&str]) -> RecoveryPoint {
    let disks = disks.iter().map(|name| DiskRecord {
        name: (*name).to_owned(),
        source: "x".into(),
        size_bytes: 1,
        levels: 1,
        root: None,
    });
    RecoveryPoint {
        id: PointId::from_bytes(id),
        machine: machine.into(),
        time: time.parse().unwrap(),
        disks: disks.collect(),
        parent: None,
        consistency: Consistency::Offline,
        origin: Origin { host: "h".into(), tool: "t".into() },
        stats: PointStats::default(),
        note: None,
        copied_from: None,
    }
}

/// Times of web01 in UTC; the local zone of the tests is two hours ahead.
fn points() -> Vec<RecoveryPoint> {
    let id = |last| {
        let mut id = [0u8; 16];
        id[0] = last;
        id
    };
    let mut twin = id(3);
    twin[15] = 9;
    vec![
        point(id(1), "web01", "2026-11-18T03:00:00Z", &["disk0"]),
        point(id(2), "web01", "2026-11-20T01:00:30Z", &["disk0"]),
        point(id(3), "web01", "2026-11-20T22:30:00Z", &["disk0", "data"]),
        point(id(4), "web01", "2026-11-21T22:30:00Z", &["disk0", "data"]),
        point(twin, "db", "2026-11-22T00:00:00Z", &["disk0"]),
    ]
}

fn now() -> Zoned {
    "2026-11-22T12:00:00+02:00[Etc/GMT-2]".parse().unwrap()
}

/// The number of the point, or the kind of the error.
fn resolve(text: &str) -> Result<usize, ErrorKind> {
    let points = points();
    let name: Name = text.parse().map_err(|e: Error| e.kind())?;
    let damaged = [PointId::from_bytes([0xff; 16])];
    let found = name.resolve_in(&points, &damaged, &now()).map_err(|e| e.kind())?;
    Ok(points.iter().position(|p| p.id == found.id).unwrap())
}

#[test]
fn the_table_of_names() {
    use ErrorKind::{Ambiguous, Damaged, Invalid, NotFound};
    let table: &[(&str, Result<usize, ErrorKind>)] = &[
        ("web01", Ok(3)),
        ("web01@latest", Ok(3)),
        ("web01:disk0", Ok(3)),
        ("db", Ok(4)),
        ("web01@-1", Ok(2)),
        ("web01@-3", Ok(0)),
        ("web01@-4", Err(NotFound)),
        ("web01@-0", Err(Invalid)),
        ("web01@-2d", Ok(1)),
        ("web01@-1d", Ok(2)),
        ("web01@-11h", Ok(3)),
        ("web01@-12h", Ok(2)),
        ("web01@-690m", Ok(3)),
        ("web01@-41400s", Ok(3)),
        ("web01@-41401s", Ok(2)),
        ("web01@-1w", Err(NotFound)),
        ("web01@-1mo", Err(NotFound)),
        ("web01@-1y", Err(NotFound)),
        ("web01@-1x", Err(Invalid)),
        ("web01@-99999999999999999999d", Err(Invalid)),
        ("web01@-9223372036854775807d", Err(Invalid)),
        // The whole day in the local zone: 22:30 UTC is half past midnight of the day after.
        ("web01@2026-11-20", Ok(1)),
        ("web01@2026-11-21", Ok(2)),
        ("web01@2026-11-22", Ok(3)),
        ("web01@2026-11-19", Ok(0)),
        ("web01@2026-11-17", Err(NotFound)),
        // The whole minute, hour or second.
        ("web01@2026-11-20T03:00", Ok(1)),
        ("web01@2026-11-20T03:00:29", Ok(0)),
        ("web01@2026-11-20T03:00:30", Ok(1)),
        ("web01@2026-11-20T03", Ok(1)),
        ("web01@2026-11-20T02:59", Ok(0)),
        ("web01@2026-11-20T01:00Z", Ok(1)),
        ("web01@2026-11-20T00:59Z", Ok(0)),
        ("web01@2026-11-20T05:00+04:00", Ok(1)),
        ("web01@2026-11-20T03:00:disk0", Ok(1)),
        ("web01@2026-13-20", Err(Invalid)),
        ("web01@2026-11-20T25:00", Err(Invalid)),
        ("web01@latest-verified", Err(Invalid)),
        ("@040000", Ok(0)),
        ("@08000000000000000000000000", Ok(1)),
        ("web01@0c0000", Ok(2)),
        ("db@0c0000", Ok(4)),
        ("@0c0000", Err(Ambiguous)),
        ("@0C0000:disk0", Err(Ambiguous)),
        ("@zzzzzz", Err(Damaged)),
        ("@zzzzza", Err(NotFound)),
        ("@04000", Err(Invalid)),
        ("@ilouil", Err(Invalid)),
        ("@latest", Err(Invalid)),
        ("web02", Err(NotFound)),
        ("", Err(Invalid)),
        ("@", Err(Invalid)),
        (":disk0", Err(Invalid)),
        ("web01@", Err(Invalid)),
        ("web01:", Err(Invalid)),
        ("web01:a/b", Err(Invalid)),
        ("we/b01", Err(Invalid)),
        ("web01:a:b", Err(Invalid)),
        ("web01\n", Err(Invalid)),
    ];
    for (text, want) in table {
        assert_eq!(resolve(text), *want, "{text:?}");
    }
}

#[test]
fn disks_are_found_or_listed() {
    let points = points();
    let disk = |text: &str, point: usize| {
        let name: Name = text.parse().unwrap();
        name.disk_of(&points[point]).map(|d| d.name.clone())
    };
    assert_eq!(disk("web01", 0).unwrap(), "disk0");
    assert_eq!(disk("web01:data", 3).unwrap(), "data");
    let many = disk("web01", 3).unwrap_err();
    assert_eq!(many.kind(), ErrorKind::Ambiguous);
    assert!(many.to_string().contains(":disk0 or :data"), "{many}");
    let none = disk("web01:root", 3).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NotFound);
    assert!(none.to_string().contains("disk0, data"), "{none}");
}

#[test]
fn messages_help_on() {
    let points = points();
    let message = |text: &str| {
        let name: Name = text.parse().unwrap();
        name.resolve_in(&points, &[], &now()).unwrap_err().to_string()
    };
    assert!(message("web1").contains("did you mean web01?"), "{}", message("web1"));
    assert!(message("wbe").contains("there are db, web01"), "{}", message("wbe"));
    assert!(message("@0c0000").contains("(web01), @0c"), "{}", message("@0c0000"));
    let early = message("web01@2020-01-01");
    assert!(early.contains("4 points") && early.contains("2026-11-18 05:00:00 +02:00"), "{early}");
    let name: Name = "web01".parse().unwrap();
    let empty = name.resolve_in(&[], &[], &now()).unwrap_err().to_string();
    assert!(empty.contains("no points yet"), "{empty}");
}

#[test]
fn no_text_makes_the_parser_panic() {
    let alphabet = ["web", "@", ":", "-", "1", "T", "d", "mo", "Z", "+", "2026-11-20", "é", "="];
    let mut state = 1u64;
    for _ in 0..200_000 {
        let mut text = String::new();
        for _ in 0..(state >> 60) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            text.push_str(alphabet[(state >> 33) as usize % alphabet.len()]);
        }
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        if let Ok(name) = text.parse::<Name>() {
            assert_eq!(name.to_string(), text);
            let _ = name.resolve_in(&points(), &[], &now());
        }
    }
}
