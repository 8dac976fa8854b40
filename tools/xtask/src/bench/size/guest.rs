//! A guest's disk and its days: an ext4 file system made by `mke2fs`, filled and changed by
//! `debugfs`, which leaves in place what is not touched, and by writing to the blocks of a database
//! and a journal. The programs and documents in it are those of this machine; all else, and all
//! that happens, comes from a seed.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::super::image::Random;
use super::content::{self, PAGE_BYTES};
use crate::proc;

const BLOCK: usize = 4096;
const MIB: u64 = 1 << 20;
/// When the guest was installed, in seconds; a day later is its first day.
const INSTALLED: u64 = 1_760_000_000;
const DAY: u64 = 86_400;
const UUID: &str = "6e1f5a52-7d5c-4b38-9d55-0f2f6f1c8a11";
/// Where the machine's programs and documents are taken from.
const SYSTEM: [&str; 2] = ["/usr/lib", "/usr/share"];
/// Larger files would leave a small disk little variety.
const SYSTEM_FILE_MAX: u64 = 8 * MIB;
const DATABASE: &str = "/var/lib/db/table";
const JOURNAL: &str = "/var/log/journal.log";
const SEGMENTS: u64 = 4;

/// A disk that lives from day to day.
pub(super) struct Guest {
    image: PathBuf,
    /// Where the contents of new files stand until they are in the image.
    stage: PathBuf,
    size_mib: u64,
    random: Random,
    day: u64,
    /// What `debugfs` does next.
    script: String,
    staged: usize,
    /// Files of packages, with where they come from.
    system: Vec<(String, PathBuf)>,
    /// Files of users.
    users: Vec<String>,
    made: usize,
    database: Vec<u64>,
    journal: Vec<u64>,
    journal_used: usize,
    segments: Vec<Vec<u64>>,
}

impl Guest {
    /// Makes the disk as it is on its first day.
    pub(super) fn new(image: &Path, stage: &Path, size_mib: u64, seed: u64) -> Result<Guest> {
        fs::create_dir_all(stage)?;
        let mut guest = Guest {
            image: image.to_owned(),
            stage: stage.to_owned(),
            size_mib,
            random: Random::new(seed),
            day: 1,
            script: String::new(),
            staged: 0,
            system: Vec::new(),
            users: Vec::new(),
            made: 0,
            database: Vec::new(),
            journal: Vec::new(),
            journal_used: 0,
            segments: Vec::new(),
        };
        guest.format()?;
        guest.install(seed)?;
        guest.fill()?;
        guest.play()?;
        guest.database = guest.blocks(DATABASE)?;
        guest.journal = guest.blocks(JOURNAL)?;
        for i in 0..SEGMENTS {
            let blocks = guest.blocks(&segment(i))?;
            guest.segments.push(blocks);
        }
        Ok(guest)
    }

    /// So many bytes for each MiB of the disk.
    fn share(&self, bytes: u64) -> u64 {
        self.size_mib * bytes
    }

    fn format(&self) -> Result<()> {
        let file = File::create(&self.image)?;
        file.set_len(self.size_mib * MIB)?;
        let mut mke2fs = proc::command("mke2fs");
        mke2fs.env("E2FSPROGS_FAKE_TIME", INSTALLED.to_string());
        mke2fs.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-U", UUID, "-E"]);
        mke2fs.arg(format!("hash_seed={UUID},lazy_itable_init=0,lazy_journal_init=0"));
        proc::output(mke2fs.arg(&self.image)).map(drop)
    }

    /// A third of the disk: programs, libraries and documents of this machine.
    fn install(&mut self, seed: u64) -> Result<()> {
        let mut found = Vec::new();
        for dir in SYSTEM {
            walk(Path::new(dir), &mut found);
        }
        // Which of them is the seed's choice; in the order of their names as packages lay them down.
        found.sort_by_cached_key(|(path, _)| hash(seed, path));
        let mut left = self.share(340 << 10);
        found.retain(|(_, size)| {
            let fits = *size <= left;
            left -= if fits { *size } else { 0 };
            fits
        });
        ensure!(
            left < self.share(40 << 10),
            "this machine has too few files below {SYSTEM:?} to fill a guest of {} MiB",
            self.size_mib
        );
        found.sort();
        let mut dirs = BTreeSet::new();
        for (path, _) in &found {
            let parents = Path::new(path).ancestors().skip(1).filter(|p| *p != Path::new("/"));
            dirs.extend(parents.map(Path::to_owned));
        }
        for dir in ["/home", "/var", "/var/log", "/var/lib", "/var/lib/db"] {
            dirs.insert(dir.into());
        }
        for dir in dirs {
            let _ = writeln!(self.script, "mkdir {}", dir.display());
        }
        for (path, _) in found {
            let _ = writeln!(self.script, "write {path} {path}");
            self.system.push((path.clone(), path.into()));
        }
        Ok(())
    }

    /// Database, its log, the system's journal, and what users keep.
    fn fill(&mut self) -> Result<()> {
        let pages = self.share(128 << 10) / PAGE_BYTES as u64;
        let mut table = Vec::new();
        for number in 0..pages {
            table.extend(content::page(&mut self.random, number));
        }
        self.add(DATABASE, &table)?;
        for i in 0..SEGMENTS {
            let segment_bytes = self.share(8 << 10) as usize;
            let records = content::log(&mut self.random, INSTALLED, segment_bytes);
            self.add(&segment(i), &records)?;
        }
        // Its space is there from the beginning, as systemd does it. No block of it is zeros, which
        // would make a hole.
        let used = self.share(4 << 10) as usize / BLOCK * BLOCK;
        let mut journal = content::log(&mut self.random, INSTALLED, used);
        journal.resize(self.share(24 << 10) as usize, b'-');
        self.journal_used = used;
        self.add(JOURNAL, &journal)?;
        self.users_add(self.share(120 << 10), self.share(40 << 10))
    }

    /// New files of users: so many bytes that cannot be packed, and so many that can.
    fn users_add(&mut self, packed: u64, text: u64) -> Result<()> {
        for (kind, total) in [("jpg", packed), ("txt", text)] {
            let mut left = total as usize;
            while left > 0 {
                let most = (self.size_mib * 2048).clamp(64 << 10, 4 << 20);
                let bytes = left.min((16 << 10) + self.random.below(most) as usize);
                left -= bytes;
                let data = if kind == "jpg" {
                    content::packed(&mut self.random, bytes)
                } else {
                    content::log(&mut self.random, INSTALLED + self.day * DAY, bytes)
                };
                self.made += 1;
                let name = format!("/home/{:05}.{kind}", self.made);
                self.add(&name, &data)?;
                self.users.push(name);
            }
        }
        Ok(())
    }

    /// Stages a new file.
    fn add(&mut self, name: &str, data: &[u8]) -> Result<PathBuf> {
        let staged = self.stage.join(self.staged.to_string());
        fs::write(&staged, data)?;
        let _ = writeln!(self.script, "write {} {name}", staged.display());
        self.staged += 1;
        Ok(staged)
    }

    /// Lets `debugfs` do what was written down.
    fn play(&mut self) -> Result<()> {
        let script = self.stage.join("script");
        fs::write(&script, std::mem::take(&mut self.script))?;
        let now = INSTALLED + self.day * DAY;
        let mut debugfs = proc::command("debugfs");
        debugfs.env("E2FSPROGS_FAKE_TIME", now.to_string());
        debugfs.args(["-w", "-f"]).arg(&script).arg(&self.image);
        let output = proc::output(&mut debugfs)?;
        // It ends well whatever happened; what went wrong it says.
        let said = String::from_utf8_lossy(&output.stderr);
        let wrong = said.lines().find(|line| !line.starts_with("debugfs ") && !line.is_empty());
        if let Some(line) = wrong {
            bail!("debugfs could not fill the guest's disk: {line}");
        }
        self.staged = 0;
        proc::output(proc::command("e2fsck").arg("-fn").arg(&self.image))
            .context("the guest's file system is broken")?;
        Ok(())
    }

    /// The blocks of a file, in the order of the file.
    fn blocks(&self, name: &str) -> Result<Vec<u64>> {
        let mut debugfs = proc::command("debugfs");
        let text = proc::capture(debugfs.arg("-R").arg(format!("blocks {name}")).arg(&self.image))?;
        let blocks: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
        let blocks = blocks.with_context(|| format!("debugfs said {text}"))?;
        ensure!(blocks.len() > 8, "{name} has only {} blocks", blocks.len());
        Ok(blocks)
    }

    /// A day goes by.
    pub(super) fn live(&mut self) -> Result<()> {
        self.day += 1;
        self.change_database()?;
        self.write_journal()?;
        self.change_users()?;
        if self.day % 3 == 1 {
            self.upgrade()?;
        }
        for name in [DATABASE, JOURNAL] {
            let now = INSTALLED + self.day * DAY;
            let _ = writeln!(self.script, "sif {name} mtime @{now}");
        }
        self.play()
    }

    /// Every seventieth page: half of them in a sixteenth of the table, the others anywhere. What
    /// was done stands in the log of the database too, in one of its segments after the other.
    fn change_database(&mut self) -> Result<()> {
        let file = self.open()?;
        let pages = (self.database.len() * BLOCK / PAGE_BYTES) as u64;
        for i in 0..pages / 70 {
            let among = if i % 2 == 0 { pages } else { pages / 16 };
            let number = self.random.below(among) as usize;
            let blocks = [self.database[number * 2], self.database[number * 2 + 1]];
            let mut page = vec![0; PAGE_BYTES];
            for (part, block) in page.chunks_mut(BLOCK).zip(blocks) {
                file.read_exact_at(part, block * BLOCK as u64)?;
            }
            content::update(&mut self.random, &mut page);
            for (part, block) in page.chunks(BLOCK).zip(blocks) {
                file.write_all_at(part, block * BLOCK as u64)?;
            }
        }
        let blocks = &self.segments[(self.day % SEGMENTS) as usize];
        let start = INSTALLED + self.day * DAY;
        let records = content::log(&mut self.random, start, blocks.len() * BLOCK);
        for (part, block) in records.chunks(BLOCK).zip(blocks) {
            file.write_all_at(part, block * BLOCK as u64)?;
        }
        Ok(())
    }

    /// A thousandth of the disk of new lines, behind those of yesterday.
    fn write_journal(&mut self) -> Result<()> {
        let file = self.open()?;
        let lines = self.share(1 << 10) as usize / BLOCK * BLOCK;
        let start = INSTALLED + self.day * DAY;
        let text = content::log(&mut self.random, start, lines);
        let blocks = self.journal.iter().skip(self.journal_used / BLOCK);
        for (part, block) in text.chunks(BLOCK).zip(blocks) {
            file.write_all_at(part, block * BLOCK as u64)?;
        }
        self.journal_used += lines;
        Ok(())
    }

    /// Users remove some files and bring others.
    fn change_users(&mut self) -> Result<()> {
        for _ in 0..self.users.len() / 50 + 1 {
            let at = self.random.below(self.users.len() as u64) as usize;
            let _ = writeln!(self.script, "rm {}", self.users.remove(at));
        }
        self.users_add(self.share(3 << 10), self.share(2 << 10))
    }

    /// Packages are upgraded: new files are written beside the old ones and take their names.
    fn upgrade(&mut self) -> Result<()> {
        let mut left = self.share(10 << 10);
        while left > 0 {
            let at = self.random.below(self.system.len() as u64) as usize;
            let (name, content) = self.system[at].clone();
            let old = fs::read(&content)?;
            left = left.saturating_sub(old.len() as u64 + 1);
            let new = content::newer(&mut self.random, &old);
            // Kept, since the next version is made of this one.
            let kept = self.stage.join(format!("package-{at}"));
            fs::write(&kept, new)?;
            let (fresh, kept_name) = (format!("{name}.dpkg-new"), kept.display());
            let _ = writeln!(
                self.script,
                "write {kept_name} {fresh}\nrm {name}\nln {fresh} {name}\nunlink {fresh}"
            );
            self.system[at].1 = kept;
        }
        Ok(())
    }

    fn open(&self) -> Result<File> {
        Ok(File::options().read(true).write(true).open(&self.image)?)
    }
}

fn segment(number: u64) -> String {
    format!("/var/lib/db/log-{number}")
}

/// Regular files with names that `debugfs` takes as they are, and their sizes.
fn walk(dir: &Path, found: &mut Vec<(String, u64)>) {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:,=".contains(c);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(data) = entry.metadata() else { continue };
        let path = entry.path();
        let Some(name) = path.to_str().filter(|name| name.chars().all(plain)) else { continue };
        if data.is_dir() {
            walk(&path, found);
        } else if data.is_file() && (1..=SYSTEM_FILE_MAX).contains(&data.len()) {
            found.push((name.to_owned(), data.len()));
        }
    }
}

/// A number for a name, by the seed.
fn hash(seed: u64, name: &str) -> u64 {
    let mix = |hash: u64, byte: u8| Random::new(hash ^ u64::from(byte)).below(u64::MAX);
    name.bytes().fold(seed, mix)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::Guest;
    use crate::proc;

    #[test]
    fn the_same_seed_makes_the_same_days() {
        if proc::find("mke2fs").is_none() || proc::find("debugfs").is_none() {
            println!("SKIPPED the_same_seed_makes_the_same_days: e2fsprogs is not installed");
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let days = |name: &str, seed| {
            let image = dir.path().join(name);
            // The same place each time: another would be another file.
            let stage = dir.path().join("stage");
            let mut guest = Guest::new(&image, &stage, 64, seed).expect("a guest");
            let mut days = vec![fs::read(&image).expect("read")];
            for _ in 0..3 {
                guest.live().expect("a day");
                days.push(fs::read(&image).expect("read"));
            }
            fs::remove_dir_all(&stage).expect("removed");
            days
        };
        let first = days("a", 7);
        assert!(first == days("b", 7), "the same seed made something else");
        assert!(first != days("c", 8));
        for pair in first.windows(2) {
            let blocks = |day: &[u8], at: usize| day[at * 4096..][..4096].to_vec();
            let changed =
                (0..64 * 256).filter(|&at| blocks(&pair[0], at) != blocks(&pair[1], at)).count();
            // Some of the disk changes, and most of it stays where it is.
            assert!((64..4096).contains(&changed), "{changed} blocks changed");
        }
    }
}
