//! Entries of directories, for people and programs.

use std::fmt::Write as _;

use backstay_guestfs::fs::{NodeKind, Stat, Time};
use jiff::Timestamp;
use serde::Serialize;

use super::Entry;
use crate::output::{Align, Table, clean};
use crate::units;

/// What is known of a node.
#[derive(Debug, Serialize)]
pub(super) struct Meta {
    kind: &'static str,
    mode: String,
    uid: u32,
    gid: u32,
    links: u32,
    size_bytes: u64,
    allocated_bytes: u64,
    modified: Option<String>,
    changed: Option<String>,
    accessed: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<[u32; 2]>,
    inode: u64,
    #[serde(skip)]
    modified_at: Option<Timestamp>,
    #[serde(skip)]
    node_kind: NodeKind,
}

impl From<Stat> for Meta {
    fn from(stat: Stat) -> Self {
        let utc = |time: Time| timestamp(time).map(units::utc_time);
        Self {
            kind: kind(stat.kind),
            mode: format!("{:04o}", stat.mode),
            uid: stat.uid,
            gid: stat.gid,
            links: stat.links,
            size_bytes: stat.size_bytes,
            allocated_bytes: stat.allocated_bytes,
            modified: utc(stat.modified),
            changed: utc(stat.changed),
            accessed: utc(stat.accessed),
            created: stat.created.and_then(utc),
            device: stat.device.map(|(major, minor)| [major, minor]),
            inode: stat.node.inode,
            modified_at: timestamp(stat.modified),
            node_kind: stat.kind,
        }
    }
}

/// None for times beyond the year 9999, which some formats can hold.
fn timestamp(time: Time) -> Option<Timestamp> {
    Timestamp::new(time.seconds, i32::try_from(time.nanos).ok()?).ok()
}

/// The kind as JSON has it.
pub(crate) fn kind(kind: NodeKind) -> &'static str {
    match kind {
        NodeKind::File => "file",
        NodeKind::Directory => "directory",
        NodeKind::Symlink => "symlink",
        NodeKind::CharDevice => "char_device",
        NodeKind::BlockDevice => "block_device",
        NodeKind::Fifo => "fifo",
        NodeKind::Socket => "socket",
    }
}

/// `drwxr-xr-x`, as ls(1) has it.
fn mode(kind: NodeKind, mode: &str) -> String {
    let bits = u16::from_str_radix(mode, 8).unwrap_or(0);
    let mut text = String::with_capacity(10);
    text.push(match kind {
        NodeKind::File => '-',
        NodeKind::Directory => 'd',
        NodeKind::Symlink => 'l',
        NodeKind::CharDevice => 'c',
        NodeKind::BlockDevice => 'b',
        NodeKind::Fifo => 'p',
        NodeKind::Socket => 's',
    });
    for (shift, special, set) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let part = bits >> shift;
        text.push(if part & 4 != 0 { 'r' } else { '-' });
        text.push(if part & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & special != 0, part & 1 != 0) {
            (true, true) => set,
            (true, false) => set.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

pub(super) fn entries(to: &mut String, entries: &[Entry], long: bool) {
    if !long {
        for entry in entries {
            let slash = match &entry.meta {
                Some(meta) if meta.node_kind == NodeKind::Directory => "/",
                _ => "",
            };
            let _ = writeln!(to, "{}{slash}", clean(&entry.name));
        }
        return;
    }
    let mut table = Table::new(&[
        ("MODE", Align::Left),
        ("OWNER", Align::Right),
        ("GROUP", Align::Right),
        ("SIZE", Align::Right),
        ("MODIFIED", Align::Left),
        ("NAME", Align::Left),
    ]);
    for entry in entries {
        let name = match (&entry.target, &entry.error) {
            (Some(target), _) => format!("{} -> {target}", entry.name),
            (None, Some(error)) => format!("{}  ({error})", entry.name),
            (None, None) => entry.name.clone(),
        };
        let Some(meta) = &entry.meta else {
            table.row(["?".into(), "?".into(), "?".into(), "?".into(), "?".into(), name]);
            continue;
        };
        let size = match meta.device {
            Some([major, minor]) => format!("{major}, {minor}"),
            None => units::size(meta.size_bytes),
        };
        table.row([
            mode(meta.node_kind, &meta.mode),
            meta.uid.to_string(),
            meta.gid.to_string(),
            size,
            meta.modified_at.map_or_else(|| "?".into(), units::local_time),
            name,
        ]);
    }
    table.render(to);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_as_ls_writes_them() {
        assert_eq!(mode(NodeKind::Directory, "0755"), "drwxr-xr-x");
        assert_eq!(mode(NodeKind::File, "4755"), "-rwsr-xr-x");
        assert_eq!(mode(NodeKind::File, "2644"), "-rw-r-Sr--");
        assert_eq!(mode(NodeKind::Directory, "1777"), "drwxrwxrwt");
        assert_eq!(mode(NodeKind::CharDevice, "1000"), "c--------T");
    }
}
