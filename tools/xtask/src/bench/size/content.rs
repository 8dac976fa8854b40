//! What stands in a guest's files: logs, database pages, photographs, packages made anew.

use std::fmt::Write as _;

use super::super::image::Random;

/// A page of the database.
pub(super) const PAGE_BYTES: usize = 8 << 10;
const HOSTS: [&str; 6] = ["web01", "web02", "db01", "mail", "cache1", "build"];
const PROGRAMS: [&str; 8] =
    ["sshd", "nginx", "postgres", "systemd", "cron", "kernel", "dhclient", "app"];
const VERBS: [&str; 8] =
    ["accepted", "closed", "opened", "retried", "flushed", "rotated", "denied", "started"];
const OBJECTS: [&str; 8] = [
    "connection from 10.0.",
    "session for user id ",
    "worker process ",
    "checkpoint of segment ",
    "request /api/v1/orders/",
    "request /static/img/",
    "lease of address 10.0.",
    "job number ",
];
const NAMES: [&str; 12] = [
    "anna", "bruno", "carla", "dmitri", "elena", "farid", "greta", "hiro", "ines", "jonas",
    "katya", "luis",
];

/// Lines of a system's log, exactly so many bytes of them, from second `start` on.
pub(super) fn log(random: &mut Random, start: u64, bytes: usize) -> Vec<u8> {
    let mut text = String::with_capacity(bytes + 256);
    let mut second = start;
    while text.len() < bytes {
        second += random.below(3);
        let pick = |list: &[&'static str], random: &mut Random| {
            list[random.below(list.len() as u64) as usize]
        };
        let (host, program) = (pick(&HOSTS, random), pick(&PROGRAMS, random));
        let (verb, object) = (pick(&VERBS, random), pick(&OBJECTS, random));
        let (pid, number) = (random.below(32_768), random.below(100_000_000));
        let micros = random.below(1_000_000);
        let _ = writeln!(
            text,
            "{second}.{micros:06} {host} {program}[{pid}]: {verb} {object}{number} in {} us",
            random.below(90_000)
        );
    }
    text.truncate(bytes);
    text.into_bytes()
}

/// Bytes that nothing can shrink, as of photographs, films and archives.
pub(super) fn packed(random: &mut Random, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    random.fill(&mut out);
    out
}

/// Page `number` of a table: a head, rows, and some space for more of them.
pub(super) fn page(random: &mut Random, number: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(PAGE_BYTES + 256);
    out.extend(random.below(u64::MAX).to_le_bytes());
    out.extend(number.to_le_bytes());
    let filled = PAGE_BYTES * 3 / 4 + random.below(PAGE_BYTES as u64 / 5) as usize;
    while out.len() < filled {
        out.extend(row(random));
    }
    out.resize(PAGE_BYTES, 0);
    out
}

fn row(random: &mut Random) -> Vec<u8> {
    let mut out = random.below(u64::MAX).to_be_bytes().to_vec();
    let name = |random: &mut Random| NAMES[random.below(NAMES.len() as u64) as usize];
    let (first, last, number) = (name(random), name(random), random.below(10_000));
    let text = format!("{first}.{last}{number}@example.net|{first} {last}|active|");
    out.extend(text.as_bytes());
    out.extend((1_700_000_000 + random.below(30_000_000)).to_le_bytes());
    out.extend((random.below(1_000_000) as u32).to_le_bytes());
    out
}

/// Updates a row or two of a page, and its head, as a transaction does.
pub(super) fn update(random: &mut Random, page: &mut [u8]) {
    page[..8].copy_from_slice(&random.below(u64::MAX).to_le_bytes());
    for _ in 0..1 + random.below(2) {
        let row = row(random);
        let at = 16 + random.below((PAGE_BYTES * 3 / 4 - 256) as u64) as usize;
        page[at..at + row.len()].copy_from_slice(&row);
    }
}

/// A newer version of a program or a document: some places are moved by inserted bytes, some
/// numbers differ in many places, and some parts are new, made of what such a file is made of.
pub(super) fn newer(random: &mut Random, old: &[u8]) -> Vec<u8> {
    const PART: usize = 4 << 10;
    let mut out = Vec::with_capacity(old.len() + PART);
    for (i, part) in old.chunks(PART).enumerate() {
        let start = out.len();
        out.extend_from_slice(part);
        match random.below(20) {
            0 => {
                let from = random.below((i * PART) as u64 + 1) as usize;
                let from = from.min(old.len() - part.len());
                out[start..].copy_from_slice(&old[from..from + part.len()]);
                poke(random, &mut out[start..], 64);
            }
            1 => out.extend(row(random)),
            2..8 => poke(random, &mut out[start..], 12),
            _ => {}
        }
    }
    out
}

/// Changes single bytes.
fn poke(random: &mut Random, part: &mut [u8], count: u64) {
    for _ in 0..count {
        let at = random.below(part.len() as u64) as usize;
        part[at] = random.below(256) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::image::Random;
    use super::{PAGE_BYTES, log, newer, packed, page, update};

    #[test]
    fn the_same_seed_makes_the_same_and_another_something_else() {
        let make = |seed| {
            let mut random = Random::new(seed);
            let mut page = page(&mut random, 3);
            let before = page.clone();
            update(&mut random, &mut page);
            assert!(page != before && page.len() == PAGE_BYTES);
            let text = log(&mut random, 1_700_000_000, 10_000);
            assert!(text.len() == 10_000 && text.is_ascii());
            let old = packed(&mut random, 100_000);
            let new = newer(&mut random, &old);
            assert!(new != old && new.len().abs_diff(old.len()) < 10_000);
            (page, text, new)
        };
        assert!(make(1) == make(1));
        assert!(make(1) != make(2));
        assert!(newer(&mut Random::new(1), b"").is_empty());
    }
}
