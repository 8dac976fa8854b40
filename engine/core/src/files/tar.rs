//! A tree as a tar archive: POSIX.1-2017 `pax` interchange format, with attributes as `SCHILY.xattr` and
//! holes in GNU's sparse format 1.0. GNU tar and bsdtar read it (bsdtar takes fractions of seconds before
//! 1970 in the wrong direction). The same tree gives the same bytes.

use std::io::Write;

use backstay_guestfs::fs::{NodeKind, Stat, Time};

pub use super::archive::Options;
use super::archive::{Body, Content, Format, Item, Run, add_all, failed};
use super::{Report, Tree, What, shown};
use crate::error::Result;
use crate::monitor::Monitor;

/// The unit of the format.
const BLOCK: usize = 512;
/// Longest name that has room in a header.
const NAME_MAX: usize = 100;
/// Largest number of 7 octal digits.
const OCTAL_7_MAX: u64 = 0o7_777_777;
/// Largest number of 11 octal digits.
const OCTAL_11_MAX: u64 = 0o77_777_777_777;

/// Writes `tree` to `out` as a tar archive.
///
/// What is passed over or not as it was is in the report. Ends the run, with an archive that no reader takes
/// for whole: errors of `out`, the monitor, more entries than the limit, an unreadable start, and a large
/// file that becomes unreadable half way (see [`Options::check_large`]).
pub fn write(
    tree: Tree<'_>,
    out: &mut dyn Write,
    options: &Options,
    monitor: &dyn Monitor,
) -> Result<Report> {
    let mut tar = Tar { out };
    let report = add_all(tree, options, monitor, &mut tar)?;
    // Two empty blocks are the end.
    tar.out.write_all(&[0; 2 * BLOCK]).and_then(|()| tar.out.flush()).map_err(failed)?;
    Ok(report)
}

struct Tar<'a> {
    out: &'a mut dyn Write,
}

impl Format for Tar<'_> {
    fn add(&mut self, item: &Item, run: &mut Run<'_>) -> Result<bool> {
        let mut records = Records::default();
        let stat = &item.stat;
        common(&mut records, item, run);
        let mut path = item.path.clone();
        let (mut kind, mut size, mut map) = (type_of(stat.kind), 0, Vec::new());
        let mut link: &[u8] = b"";
        match &item.body {
            Body::Directory => path.push(b'/'),
            Body::Symlink(target) => link = target,
            Body::HardLink(first) => (kind, link) = (b'1', first),
            Body::Special => {}
            Body::File(content) => {
                size = stat.size_bytes;
                if is_sparse(content, size) {
                    map = sparse_map(content, size);
                    let data = content.ranges.iter().map(|data| data.len).sum::<u64>();
                    records.add(b"GNU.sparse.major", b"1");
                    records.add(b"GNU.sparse.minor", b"0");
                    records.add(b"GNU.sparse.name", &path);
                    records.add(b"GNU.sparse.realsize", size.to_string().as_bytes());
                    size = data + map.len() as u64;
                    // What a reader that does not know the format takes for the name.
                    let at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
                    path.splice(at..at, *b"GNUSparseFile.0/");
                }
            }
        }
        // Records are UTF-8; what is none stands as it is in the header, where there is room.
        let recorded = |name: &[u8]| {
            name.len() > NAME_MAX || !name.is_ascii() && std::str::from_utf8(name).is_ok()
        };
        let (long_path, long_link) = (recorded(&path), recorded(link));
        let binary = |name: &[u8]| std::str::from_utf8(name).is_err();
        if (long_path && binary(&path)) || (long_link && binary(link)) {
            records.add(b"hdrcharset", b"BINARY");
        }
        if long_path {
            records.add(b"path", &path);
        }
        if long_link {
            records.add(b"linkpath", link);
        }
        if size > OCTAL_11_MAX {
            records.add(b"size", size.to_string().as_bytes());
        }
        self.records(&records)?;
        let header = header(&path, link, kind, size, stat);
        self.put(&header)?;
        self.put(&map)?;
        if let Body::File(content) = &item.body {
            run.copy(item, content, !map.is_empty(), self.out)?;
            self.pad(size)?;
        }
        Ok(true)
    }

    fn further_names(&self) -> bool {
        true
    }
}

impl Tar<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(failed)
    }

    fn pad(&mut self, len: u64) -> Result<()> {
        let over = usize::try_from(len % BLOCK as u64).unwrap_or(0);
        let zeros = [0; BLOCK];
        self.put(if over == 0 { &[] } else { zeros.get(over..).unwrap_or(&zeros) })
    }

    /// The header before the header.
    fn records(&mut self, records: &Records) -> Result<()> {
        if records.0.is_empty() {
            return Ok(());
        }
        let size = records.0.len() as u64;
        self.put(&block(b"PaxHeader", b"", b'x', size, 0o644, (0, 0), 0, (0, 0)))?;
        self.put(&records.0)?;
        self.pad(size)
    }
}

/// Extended records: `LENGTH KEY=VALUE\n`, the length counting itself.
#[derive(Debug, Default)]
struct Records(Vec<u8>);

impl Records {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while len != rest + len.to_string().len() {
            len = rest + len.to_string().len();
        }
        self.0.extend_from_slice(len.to_string().as_bytes());
        self.0.push(b' ');
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }

    fn time(&mut self, key: &[u8], time: Time) {
        let nanos = time.nanos.min(999_999_999);
        // A fraction goes on from the seconds towards zero: before 1970 it is what lacks to the next.
        let text = match (time.seconds < 0, nanos) {
            (_, 0) => time.seconds.to_string(),
            (false, _) => format!("{}.{nanos:09}", time.seconds),
            (true, _) => {
                let sum = i128::from(time.seconds) * 1_000_000_000 + i128::from(nanos);
                let (seconds, part) = (-sum / 1_000_000_000, -sum % 1_000_000_000);
                format!("-{seconds}.{part:09}")
            }
        };
        self.add(key, text.as_bytes());
    }
}

/// What all kinds may need records for.
fn common(records: &mut Records, item: &Item, run: &mut Run<'_>) {
    let stat = &item.stat;
    let fits = u64::try_from(stat.modified.seconds).is_ok_and(|time| time <= OCTAL_11_MAX);
    if !fits || stat.modified.nanos != 0 {
        records.time(b"mtime", stat.modified);
    }
    if stat.accessed != stat.modified {
        records.time(b"atime", stat.accessed);
    }
    for (key, id) in [(&b"uid"[..], stat.uid), (b"gid", stat.gid)] {
        if u64::from(id) > OCTAL_7_MAX {
            records.add(key, id.to_string().as_bytes());
        }
    }
    // The first name has them; they would be put on the same node again.
    if matches!(item.body, Body::HardLink(_)) {
        return;
    }
    for xattr in &item.xattrs {
        if xattr.name.iter().any(|byte| matches!(byte, b'=' | 0)) {
            let text = format!("attribute {} has a name no archive holds", shown(&xattr.name));
            run.report.note(&item.path, What::Xattr, text);
            continue;
        }
        records.add(&[b"SCHILY.xattr.", xattr.name.as_slice()].concat(), &xattr.value);
    }
    if stat.attributes.immutable || stat.attributes.append_only {
        run.report.note(&item.path, What::Flags, "immutable or append-only not kept");
    }
}

fn is_sparse(content: &Content, size: u64) -> bool {
    content.ranges.iter().map(|data| data.len).sum::<u64>() != size
}

/// The map of format 1.0: decimal numbers, a line each, filled up to whole blocks.
fn sparse_map(content: &Content, size: u64) -> Vec<u8> {
    let ends = content.ranges.last().is_some_and(|data| data.offset + data.len == size);
    let count = content.ranges.len() + usize::from(!ends);
    let mut text = format!("{count}\n");
    for data in &content.ranges {
        text.push_str(&format!("{}\n{}\n", data.offset, data.len));
    }
    if !ends {
        text.push_str(&format!("{size}\n0\n"));
    }
    let mut map = text.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

fn type_of(kind: NodeKind) -> u8 {
    match kind {
        NodeKind::File | NodeKind::Socket => b'0',
        NodeKind::Symlink => b'2',
        NodeKind::CharDevice => b'3',
        NodeKind::BlockDevice => b'4',
        NodeKind::Directory => b'5',
        NodeKind::Fifo => b'6',
    }
}

fn header(path: &[u8], link: &[u8], kind: u8, size: u64, stat: &Stat) -> [u8; BLOCK] {
    let device = match stat.kind {
        NodeKind::CharDevice | NodeKind::BlockDevice => stat.device.unwrap_or_default(),
        _ => (0, 0),
    };
    let mtime = u64::try_from(stat.modified.seconds).unwrap_or(0);
    block(path, link, kind, size, stat.mode, (stat.uid, stat.gid), mtime, device)
}

/// A `ustar` header. What does not fit is cut, and stands in a record before.
#[allow(clippy::too_many_arguments, reason = "the fields of one structure")]
fn block(
    path: &[u8],
    link: &[u8],
    kind: u8,
    size: u64,
    mode: u16,
    owner: (u32, u32),
    mtime: u64,
    device: (u32, u32),
) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8], max: usize| {
        for (to, from) in block.iter_mut().skip(at).zip(bytes.iter().take(max)) {
            *to = *from;
        }
    };
    put(0, path, NAME_MAX);
    put(100, format!("{:07o}", mode & 0o7777).as_bytes(), 7);
    let seven = |number: u32| format!("{:07o}", u64::from(number).min(OCTAL_7_MAX));
    put(108, seven(owner.0).as_bytes(), 7);
    put(116, seven(owner.1).as_bytes(), 7);
    let eleven = |number: u64| format!("{:011o}", number.min(OCTAL_11_MAX));
    put(124, eleven(size).as_bytes(), 11);
    put(136, eleven(mtime).as_bytes(), 11);
    put(148, b"        ", 8);
    put(156, &[kind], 1);
    put(157, link, NAME_MAX);
    put(257, b"ustar\x0000", 8);
    put(329, seven(device.0).as_bytes(), 7);
    put(337, seven(device.1).as_bytes(), 7);
    // The sum of all bytes, its own field taken as blanks.
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    for (to, from) in block.iter_mut().skip(148).zip(format!("{sum:06o}\0 ").bytes()) {
        *to = from;
    }
    block
}
