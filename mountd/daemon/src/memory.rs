//! How much memory the cache of decoded chunks may take on this machine.

use std::fs;
use std::path::Path;

/// Not less: the chunks that one reader is at, and those ahead of it.
const LEAST_BYTES: u64 = 64 << 20;
/// Not more, unless somebody says so.
const MOST_BYTES: u64 = 4 << 30;
/// This part of what is to be had.
const PART: u64 = 4;

/// A quarter of the memory that is to be had now, within the limit of our control group: 64 MiB at least,
/// 4 GiB at most. It is taken as chunks are read, not at once.
pub fn cache_bytes() -> u64 {
    let available = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    let limit = fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| limit(&text));
    let most = available.into_iter().chain(limit).min().unwrap_or(LEAST_BYTES * PART);
    (most / PART).clamp(LEAST_BYTES, MOST_BYTES)
}

/// proc(5), /proc/meminfo: `MemAvailable`, in KiB.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// cgroups(7): the lowest limit of our group and those above it.
fn limit(groups: &str) -> Option<u64> {
    let root = Path::new("/sys/fs/cgroup");
    let mut least = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let (top, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            c if c.split(',').any(|c| c == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let ours = top.join(group.trim_start_matches('/'));
        for dir in ours.ancestors().take_while(|dir| dir.starts_with(&top)) {
            // "max" is no number, and no limit.
            let said = fs::read_to_string(dir.join(file)).ok();
            let bytes = said.and_then(|text| text.trim().parse::<u64>().ok());
            least = least.into_iter().chain(bytes).min();
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_understood() {
        let text = "MemTotal:       24665080 kB\nMemFree:  1 kB\nMemAvailable:   20480000 kB\n";
        assert_eq!(available(text), Some(20_480_000 * 1024));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
        assert_eq!(limit("nonsense\n1:cpu:/x\n"), None);
        assert!((LEAST_BYTES..=MOST_BYTES).contains(&cache_bytes()));
    }
}
