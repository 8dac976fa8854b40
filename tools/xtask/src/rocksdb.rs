//! RocksDB as one static library, built in minutes instead of a quarter of an hour.
//!
//! Most of the time a C++ compiler spends on RocksDB goes into reading the same headers 340 times.
//! Here the files of one folder are compiled together, two dozen at once, from the source that
//! cargo fetched for `librocksdb-sys`. The result lives outside the clone, named by everything that
//! decided its bytes, and appears there whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::env::House;
use crate::proc;
use crate::steps::seconds;

/// Files compiled as one unit. More saves a little time and costs memory (about 1 GiB a unit).
const FILES_PER_GROUP: usize = 24;
/// Memory one compiler may need; bounds how many run at once on a small machine.
const COMPILER_MEMORY_KIB: u64 = 1_600_000;

/// Made from the library's version by the crate instead of from this file.
const GENERATED: &str = "util/build_version.cc";

const DEFINES: &[&str] = &[
    "-DZSTD=1",
    "-DNDEBUG=1",
    "-DHAVE_ALIGNED_NEW",
    "-DHAVE_UINT128_EXTENSION",
    "-DOS_LINUX",
    "-DROCKSDB_PLATFORM_POSIX",
    "-DROCKSDB_LIB_IO_POSIX",
    "-DROCKSDB_SCHED_GETCPU_PRESENT",
    "-DROCKSDB_AUXV_GETAUXVAL_PRESENT",
    "-DROCKSDB_FALLOCATE_PRESENT",
    "-DROCKSDB_RANGESYNC_PRESENT",
];

/// The directory that holds `librocksdb.a`, built now if this machine has none yet. Who set
/// `ROCKSDB_LIB_DIR` has one already.
pub(crate) fn library(house: &House) -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("ROCKSDB_LIB_DIR").map(PathBuf::from)
        && dir.join("librocksdb.a").is_file()
    {
        return Ok(dir);
    }
    let source = Source::find(house)?;
    let compiler = Compiler::find(&source)?;
    let name = format!("rocksdb-{}-{:016x}", source.version, compiler.fingerprint(&source));
    let dir = house.cache.join(&name);
    if dir.join("librocksdb.a").is_file() {
        return Ok(dir);
    }
    // One builder at a time; who waited finds the work done.
    let lock = fs::File::create(house.cache.join("rocksdb.lock"))?;
    lock.lock().context("cannot lock the build cache")?;
    if dir.join("librocksdb.a").is_file() {
        return Ok(dir);
    }
    let temp = house.cache.join(format!(".{name}.{}", std::process::id()));
    let built = build(&source, &compiler, &temp).and_then(|()| publish(&temp, &dir));
    if built.is_err() {
        let _ = fs::remove_dir_all(&temp);
    }
    built.map(|()| dir)
}

#[allow(clippy::disallowed_methods, reason = "a cache entry, not stored data: lost is rebuilt")]
fn publish(temp: &Path, dir: &Path) -> Result<()> {
    fs::rename(temp, dir).with_context(|| format!("cannot name the library {}", dir.display()))
}

/// The source that cargo fetched.
#[derive(Debug)]
struct Source {
    version: String,
    rocksdb: PathBuf,
    zstd: PathBuf,
    files: Vec<String>,
}

impl Source {
    fn find(house: &House) -> Result<Source> {
        let metadata = crate::levels::metadata(house, true)?;
        let package = |name: &str| {
            let found = metadata.packages.iter().find(|p| p.name.as_str() == name);
            let found = found.with_context(|| format!("no dependency is named {name}"))?;
            let dir = found.manifest_path.parent().context("a manifest without a folder")?;
            Ok::<_, anyhow::Error>((found.version.to_string(), PathBuf::from(dir.as_str())))
        };
        let (version, rocksdb) = package("librocksdb-sys")?;
        let (_, zstd) = package("zstd-sys")?;
        let list = rocksdb.join("rocksdb_lib_sources.txt");
        let list = fs::read_to_string(&list)
            .with_context(|| format!("cannot read the list of files {}", list.display()))?;
        let files: Vec<String> = list
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && *line != GENERATED)
            .map(str::to_owned)
            .collect();
        if files.is_empty() {
            bail!("the list of RocksDB's files is empty");
        }
        // `+11.8.1` is part of the version and safe in a file name.
        Ok(Source { version, rocksdb, zstd, files })
    }

    /// Files by top folder, in groups, the fullest first so that the last to finish is small.
    fn groups(&self) -> Vec<Group> {
        let mut folders: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for file in &self.files {
            let folder = file.split('/').next().unwrap_or("top");
            folders.entry(folder).or_default().push(file.clone());
        }
        let mut groups = Vec::new();
        for (folder, files) in folders {
            for (i, part) in files.chunks(FILES_PER_GROUP).enumerate() {
                groups.push(Group { name: format!("{folder}_{i}"), files: part.to_vec() });
            }
        }
        groups.sort_by_key(|g| std::cmp::Reverse(g.files.len()));
        groups
    }
}

/// Files compiled as one unit.
#[derive(Debug, Clone)]
struct Group {
    name: String,
    files: Vec<String>,
}

/// The C++ compiler and the flags it is called with.
#[derive(Debug)]
struct Compiler {
    program: String,
    version: String,
    flags: Vec<String>,
}

impl Compiler {
    fn find(source: &Source) -> Result<Compiler> {
        let program = std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
        let version = proc::capture(proc::command(&program).arg("--version"))?;
        let version = version.lines().next().unwrap_or_default().to_owned();
        let mut flags: Vec<String> = vec!["-O2".into(), "-std=c++20".into(), "-fPIC".into()];
        flags.extend(cpu_flags().iter().map(|f| (*f).to_owned()));
        flags.extend(["-include", "cstdint", "-w"].map(str::to_owned));
        flags.extend(DEFINES.iter().map(|d| (*d).to_owned()));
        for dir in [
            source.rocksdb.join("rocksdb/include"),
            source.rocksdb.join("rocksdb"),
            source.rocksdb.clone(),
            source.zstd.join("zstd/lib"),
        ] {
            flags.push(format!("-I{}", dir.display()));
        }
        Ok(Compiler { program, version, flags })
    }

    /// Everything that decides the library's bytes, as one number (FNV-1a: stable for ever).
    fn fingerprint(&self, source: &Source) -> u64 {
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        let parts = [&self.program, &self.version].into_iter().chain(&self.flags);
        for byte in parts.chain(&source.files).flat_map(|part| part.bytes().chain([0])) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        hash
    }

    fn compile(&self, input: &Path, output: &Path) -> Result<()> {
        let mut command: Command = proc::command(&self.program);
        command.args(&self.flags).arg("-c").arg(input).arg("-o").arg(output);
        proc::output(&mut command).map(drop)
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_flags() -> &'static [&'static str] {
    // Hardware CRC32C where this machine has it; the library is for this machine only.
    if std::is_x86_feature_detected!("sse4.2") && std::is_x86_feature_detected!("pclmulqdq") {
        &["-msse4.2", "-mpclmul"]
    } else {
        &[]
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_flags() -> &'static [&'static str] {
    &[]
}

fn build(source: &Source, compiler: &Compiler, dir: &Path) -> Result<()> {
    let start = Instant::now();
    let _ = fs::remove_dir_all(dir);
    fs::create_dir_all(dir)?;
    let groups = source.groups();
    let jobs = jobs();
    eprintln!(
        "rocksdb: building {} files as {} units with {jobs} jobs (minutes, once a machine)",
        source.files.len() + 1,
        groups.len()
    );
    let objects = compile_all(source, compiler, dir, &groups, jobs)?;
    let library = dir.join("librocksdb.a");
    proc::output(proc::command("ar").arg("rcs").arg(&library).args(&objects))?;
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.path() != library {
            fs::remove_file(entry.path())?;
        }
    }
    fs::File::open(&library)?.sync_all()?;
    eprintln!("rocksdb: built in {}", seconds(start.elapsed()));
    Ok(())
}

fn compile_all(
    source: &Source,
    compiler: &Compiler,
    dir: &Path,
    groups: &[Group],
    jobs: usize,
) -> Result<Vec<PathBuf>> {
    let (next, finished) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let objects = Mutex::new(Vec::new());
    let failure = Mutex::new(None);
    let worker = || {
        while let Some(group) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failure.lock().is_ok_and(|f| f.is_some()) {
                return;
            }
            let start = Instant::now();
            let result = compile_group(source, compiler, dir, group);
            let done = finished.fetch_add(1, Ordering::Relaxed) + 1;
            let (name, took) = (&group.name, seconds(start.elapsed()));
            eprintln!(
                "rocksdb: {done:2}/{} {name} ({} files) {took}",
                groups.len(),
                group.files.len()
            );
            match result {
                Ok(made) => objects.lock().map(|mut all| all.extend(made)).unwrap_or_default(),
                Err(error) => {
                    failure.lock().map(|mut f| *f = Some(error)).unwrap_or_default();
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(worker);
        }
    });
    if let Some(error) = failure.into_inner().unwrap_or_default() {
        return Err(error);
    }
    let mut objects = objects.into_inner().unwrap_or_default();
    let version = dir.join("build_version.o");
    compiler.compile(&source.rocksdb.join("build_version.cc"), &version)?;
    objects.push(version);
    objects.sort();
    Ok(objects)
}

/// Compiles the files of a group together; files that do not go together are halved until they do.
fn compile_group(
    source: &Source,
    compiler: &Compiler,
    dir: &Path,
    group: &Group,
) -> Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    // Depth is bounded: each round halves a group of at most FILES_PER_GROUP files.
    let mut open = vec![group.clone()];
    while let Some(group) = open.pop() {
        let input = dir.join(format!("{}.cc", group.name));
        let object = dir.join(format!("{}.o", group.name));
        let folder = source.rocksdb.join("rocksdb");
        let includes: String = group
            .files
            .iter()
            .map(|file| format!("#include \"{}\"\n", folder.join(file).display()))
            .collect();
        fs::write(&input, includes)?;
        match compiler.compile(&input, &object) {
            Ok(()) => made.push(object),
            Err(error) if group.files.len() == 1 => return Err(error),
            Err(_) => {
                eprintln!("rocksdb: {} does not compile as one unit, halving it", group.name);
                let _ = fs::remove_file(&object);
                let (left, right) = group.files.split_at(group.files.len() / 2);
                for (part, files) in [("a", left), ("b", right)] {
                    let name = format!("{}{part}", group.name);
                    open.push(Group { name, files: files.to_vec() });
                }
            }
        }
    }
    Ok(made)
}

fn jobs() -> usize {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?.to_owned();
        line.split_whitespace().next()?.parse::<u64>().ok()
    });
    let fits = memory.map_or(2, |kib| (kib / COMPILER_MEMORY_KIB) as usize);
    cores.min(fits).max(1)
}

#[cfg(test)]
mod tests {
    use super::{FILES_PER_GROUP, Source};

    fn source(files: &[String]) -> Source {
        let (version, rocksdb, zstd) = ("1".into(), "/none".into(), "/none".into());
        Source { version, rocksdb, zstd, files: files.to_vec() }
    }

    #[test]
    fn groups_hold_every_file_once_and_never_mix_folders() {
        let files: Vec<String> = (0..70)
            .map(|i| format!("db/f{i}.cc"))
            .chain((0..5).map(|i| format!("util/deep/g{i}.cc")))
            .collect();
        let groups = source(&files).groups();
        let mut seen: Vec<&String> = groups.iter().flat_map(|g| &g.files).collect();
        seen.sort();
        let mut wanted: Vec<&String> = files.iter().collect();
        wanted.sort();
        assert_eq!(seen, wanted);
        for group in &groups {
            assert!(group.files.len() <= FILES_PER_GROUP);
            let folder = group.files[0].split('/').next();
            assert!(group.files.iter().all(|f| f.split('/').next() == folder));
        }
        assert!(groups.windows(2).all(|w| w[0].files.len() >= w[1].files.len()));
    }
}
