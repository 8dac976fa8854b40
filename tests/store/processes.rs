//! Several processes of one host on one repository at once. The test binary starts itself.

use std::process::{Child, Command};

use backstay_store::{CheckOptions, Encryption, NoProgress, Repository};

use crate::support::{CHUNK, back_up, image, init_real, key, read, real};

const ROLE: &str = "BACKSTAY_TEST_ROLE";
const DIR: &str = "BACKSTAY_TEST_DIR";

fn start(role: &str, dir: &std::path::Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["processes::child", "--exact", "--nocapture"])
        .env(ROLE, role)
        .env(DIR, dir)
        .spawn()
        .unwrap()
}

/// Does nothing by itself; the work of a child process when started by the tests below.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let dir = std::path::PathBuf::from(std::env::var(DIR).unwrap());
    let (location, options) = real(&dir);
    let repo = Repository::open(&location, &key(), &options).unwrap();
    let (what, n) = role.split_once('-').unwrap();
    let n: u64 = n.parse().unwrap();
    for round in 0..4u64 {
        match what {
            "backup" => {
                let disk = image(n * 100 + round, 400 * CHUNK);
                let point = back_up(&repo, &format!("m{n}"), &disk).unwrap();
                assert!(read(&repo, &point.disks[0]).unwrap() == disk);
            }
            "read" => {
                for point in repo.points().unwrap().points {
                    read(&repo, &point.disks[0]).unwrap();
                }
            }
            "check" => {
                let report = repo.check(&CheckOptions { read_data: true }, &NoProgress).unwrap();
                assert!(report.damage.is_empty(), "{:?}", report.damage);
            }
            "kill" => {
                // Backs up without end until it is killed.
                for i in 0.. {
                    back_up(&repo, "killed", &image(n * 1000 + i, 600 * CHUNK)).unwrap();
                }
            }
            other => panic!("no such role: {other}"),
        }
    }
}

#[test]
fn backups_readers_and_checks_together() {
    let dir = tempfile::tempdir().unwrap();
    let repo = init_real(dir.path(), Encryption::Aes256Gcm);
    let roles = ["backup-1", "backup-2", "backup-1", "read-0", "check-0"];
    let children: Vec<Child> = roles.iter().map(|r| start(r, dir.path())).collect();
    for (role, mut child) in roles.iter().zip(children) {
        assert!(child.wait().unwrap().success(), "{role}");
    }
    assert_eq!(repo.points().unwrap().points.len(), 12);
    let report = repo.check(&CheckOptions { read_data: true }, &NoProgress).unwrap();
    assert!(report.damage.is_empty());
}

#[test]
fn killed_backups_lose_nothing_and_leave_nothing_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let repo = init_real(dir.path(), Encryption::Aes256Gcm);
    let disk = image(1, 300 * CHUNK);
    let kept = back_up(&repo, "kept", &disk).unwrap();
    let rounds = if std::env::var_os("BACKSTAY_RELEASE_SIZE").is_some() { 200 } else { 12 };
    for n in 0..rounds {
        let mut child = start(&format!("kill-{n}"), dir.path());
        std::thread::sleep(std::time::Duration::from_millis(60 + n % 7 * 45));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    repo.refresh().unwrap();
    let (location, options) = real(dir.path());
    let fresh = Repository::open(&location, &key(), &options).unwrap();
    let list = fresh.points().unwrap();
    assert!(list.damaged.is_empty());
    println!("{} backups were acknowledged before their process was killed", list.points.len() - 1);
    for point in &list.points {
        read(&fresh, &point.disks[0]).unwrap();
    }
    assert!(read(&fresh, &kept.disks[0]).unwrap() == disk);
    let report = fresh.check(&CheckOptions { read_data: true }, &NoProgress).unwrap();
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    back_up(&fresh, "kept", &disk).unwrap();
    let left = std::fs::read_dir(dir.path().join("repo/tmp")).unwrap().count();
    assert_eq!(left, 0, "temporary files of killed processes are removed");
}
