use super::*;
use backstay_store::{Consistency, Origin, PointStats};

fn point(n: u8, machine: &str, time: &str, disks: &[&str]) -> RecoveryPoint {
    let record = |name: &&str| DiskRecord {
        name: (*name).into(),
        source: "x.raw".into(),
        size_bytes: 1 << 20,
        levels: 1,
        root: None,
    };
    RecoveryPoint {
        id: PointId::from_bytes([n; 16]),
        machine: machine.into(),
        time: time.parse().unwrap(),
        disks: disks.iter().map(record).collect(),
        parent: None,
        consistency: Consistency::Offline,
        origin: Origin { host: "h".into(), tool: "t".into() },
        stats: PointStats::default(),
        note: None,
        copied_from: None,
    }
}

fn walk(view: &View, path: &[&str]) -> Option<Node> {
    path.iter().try_fold(Node::Root, |node, name| view.child(&node, name))
}

/// Every path with its inode number.
fn all(view: &View) -> BTreeMap<String, u64> {
    fn below(view: &View, node: &Node, path: &str, out: &mut BTreeMap<String, u64>) {
        let mut index = 0;
        while let Some((name, child)) = view.nth_child(node, index) {
            let path = format!("{path}/{name}");
            assert_eq!(view.child(node, name).unwrap().ino(), child.ino(), "{path}");
            assert_eq!(view.node(child.ino()).unwrap().ino(), child.ino(), "{path}");
            assert_eq!(view.parent_ino(&child), node.ino(), "{path}");
            assert!(out.insert(path.clone(), child.ino()).is_none(), "{path} twice");
            below(view, &child, &path, out);
            index += 1;
        }
    }
    let mut out = BTreeMap::new();
    below(view, &Node::Root, "", &mut out);
    out
}

#[test]
fn the_tree_of_two_machines() {
    let mut builder = Builder::default();
    let points = vec![
        point(1, "web01", "2026-11-22T03:00:00Z", &["disk0", "data/1"]),
        point(2, "..", "2026-11-22T04:00:00Z", &["disk0"]),
        point(3, "web01", "2026-11-23T03:00:00Z", &["disk0"]),
    ];
    let view = builder.update(&View::default(), points.clone()).unwrap();
    let paths: Vec<String> = all(&view).into_keys().collect();
    assert_eq!(
        paths,
        [
            "/%2E%2E",
            "/%2E%2E/2026-11-22T04-00-00Z",
            "/%2E%2E/2026-11-22T04-00-00Z/disks",
            "/%2E%2E/2026-11-22T04-00-00Z/disks/disk0.raw",
            "/%2E%2E/latest",
            "/web01",
            "/web01/2026-11-22T03-00-00Z",
            "/web01/2026-11-22T03-00-00Z/disks",
            "/web01/2026-11-22T03-00-00Z/disks/data%2F1.raw",
            "/web01/2026-11-22T03-00-00Z/disks/disk0.raw",
            "/web01/2026-11-23T03-00-00Z",
            "/web01/2026-11-23T03-00-00Z/disks",
            "/web01/2026-11-23T03-00-00Z/disks/disk0.raw",
            "/web01/latest",
        ]
    );
    assert_eq!(view.inodes(), paths.len() as u64 + 1);
    let Some(Node::Latest(web)) = walk(&view, &["web01", "latest"]) else { panic!() };
    assert_eq!(web.latest().unwrap().dir_name, "2026-11-23T03-00-00Z");
    assert!(builder.update(&view, points).is_none(), "nothing changed");
    for bad in [0, 2, 1 << 16 | 7, 3 << 16 | 99, u64::MAX] {
        assert!(view.node(bad).is_none(), "{bad}");
    }
}

#[test]
fn numbers_stay_and_are_never_used_again() {
    let mut builder = Builder::default();
    let a = point(1, "a", "2026-11-22T03:00:00Z", &["disk0"]);
    let b = point(2, "b", "2026-11-22T03:00:00Z", &["disk0"]);
    let c = point(3, "a", "2026-11-22T05:00:00Z", &["disk0"]);
    let first = builder.update(&View::default(), vec![a.clone(), b.clone()]).unwrap();
    let second = builder.update(&first, vec![a.clone(), b, c.clone()]).unwrap();
    let (before, after) = (all(&first), all(&second));
    for (path, ino) in &before {
        assert_eq!(after.get(path), Some(ino), "{path}");
    }
    // The machine b and its point end; a newcomer must not be taken for them.
    let third = builder.update(&second, vec![a, c]).unwrap();
    let gone: Vec<u64> = after.values().copied().filter(|i| third.node(*i).is_none()).collect();
    assert_eq!(gone.len(), 5, "b, latest, point, disks, disk0");
    let d = point(4, "b", "2026-11-22T03:00:00Z", &["disk0"]);
    let fourth = builder.update(&third, vec![d]).unwrap();
    for ino in all(&fourth).values() {
        assert!(!after.values().any(|i| i == ino), "{ino} was used before");
    }
}

#[test]
fn points_of_one_second_have_different_names_that_stay() {
    let mut builder = Builder::default();
    let at = "2026-11-22T03:00:00Z";
    let one = point(9, "a", at, &["disk0"]);
    let two = point(1, "a", at, &["disk0"]);
    // The twin of `two` in the short form too: only the full id tells them apart.
    let mut three = point(1, "a", at, &["disk0"]);
    let mut bytes = [1; 16];
    bytes[15] = 2;
    three.id = PointId::from_bytes(bytes);
    assert_eq!(two.id.short(), three.id.short());
    let first = builder.update(&View::default(), vec![one.clone()]).unwrap();
    let second = builder.update(&first, vec![one.clone(), two.clone(), three.clone()]).unwrap();
    let Some(Node::Machine(a)) = walk(&second, &["a"]) else { panic!() };
    let name = |id| a.points.iter().find(|p| p.record.id == id).unwrap().dir_name.clone();
    assert_eq!(name(one.id), "2026-11-22T03-00-00Z", "it had the name first");
    assert_eq!(name(two.id), format!("2026-11-22T03-00-00Z-{}", two.id.short()));
    assert_eq!(name(three.id), format!("2026-11-22T03-00-00Z-{}", three.id));
    let third = builder.update(&second, vec![two.clone()]).unwrap();
    assert!(
        walk(&third, &["a", "2026-11-22T03-00-00Z"]).is_none(),
        "no name moves to another point"
    );
    assert_eq!(all(&third).len(), 5);
}

#[test]
fn a_machine_may_be_called_like_anything_here() {
    let mut builder = Builder::default();
    let points = vec![
        point(1, "latest", "2026-11-22T03:00:00Z", &["disks"]),
        point(2, "disks", "2026-11-22T03:00:00Z", &["latest"]),
    ];
    let view = builder.update(&View::default(), points).unwrap();
    assert!(matches!(walk(&view, &["latest"]), Some(Node::Machine(_))));
    assert!(matches!(walk(&view, &["latest", "latest"]), Some(Node::Latest(_))));
    assert!(walk(&view, &["disks", "2026-11-22T03-00-00Z", "disks", "latest.raw"]).is_some());
}
