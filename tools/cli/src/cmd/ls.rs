//! `backstay ls`.

use std::ffi::OsString;

use backstay_daemon::FoundFile;
use backstay_guestfs::apart::GuestFs;
use backstay_guestfs::fs::{DirCookie, DirEntry, FileSystem as _, NodeKind, Stat};
use serde::Serialize;

mod shown;
mod volumes;

use crate::browse::{self, Browsed};
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};

pub(crate) use shown::kind as kind_name;

/// Entries asked for at once.
const ENTRIES_AT_ONCE: usize = 1024;
/// Entries of one directory listed: as many as memory takes of their names, some hundred MiB.
const ENTRIES_MAX: usize = 4 << 20;

/// List what is inside a machine's disks: volumes, directories, files
///
/// Without a path the volumes are listed: partitions, logical volumes, file systems. With one, a directory as the guest has
/// it. Nothing is mounted, and no privilege is needed.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay ls web01
  backstay ls web01//etc
  backstay ls -l web01@2026-11-20:vg0/home//anna",
    &[
        Exit::Partial, Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::NotFound, Exit::Refused,
    ]
))]
pub(crate) struct Args {
    /// `MACHINE[@POINT][:VOLUME][//PATH]`
    what: OsString,

    /// Kind, mode, owner, size and time of each entry
    #[arg(long, short)]
    long: bool,
}

#[derive(Serialize)]
struct Document {
    machine: String,
    point: String,
    volume: String,
    path: String,
    entries: Vec<Entry>,
}

/// An entry as programs see it.
#[derive(Serialize)]
struct Entry {
    name: String,
    /// The bytes of the name, where they are no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    name_hex: Option<String>,
    #[serde(flatten)]
    meta: Option<shown::Meta>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    /// Why there is nothing but a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let browsed = browse::open(ctx, &args.what)?;
    let Some(path) = browsed.name.path.clone() else {
        return volumes::list(ctx, &browsed);
    };
    let named = browsed.name.to_string();
    let failed = |error: backstay_guestfs::Error| CliError::from(error).what(named.clone());
    let found = browsed.files.find(browsed.name.volume.as_deref(), &path, true).map_err(failed)?;
    let stat = found.fs.stat(found.node).map_err(failed)?;
    let entries = if stat.kind == NodeKind::Directory {
        directory(&found).map_err(failed)?
    } else {
        let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default().to_vec();
        vec![entry(&found.fs, &name, Some(stat))]
    };
    let partial = entries.iter().any(|entry| entry.error.is_some());
    let document = document(&browsed, &found, entries).map_err(failed)?;
    ctx.out.report(&document, |to| shown::entries(to, &document.entries, args.long))?;
    Ok(if partial { Exit::Partial } else { Exit::Done })
}

fn document(
    browsed: &Browsed,
    found: &FoundFile,
    entries: Vec<Entry>,
) -> Result<Document, backstay_guestfs::Error> {
    let tree = browsed.files.volumes()?;
    let volume = tree.volumes.get(found.volume).map(|v| v.name.clone()).unwrap_or_default();
    Ok(Document {
        machine: browsed.point.machine.clone(),
        point: browsed.point.id.to_string(),
        volume,
        path: browse::text(&found.path),
        entries,
    })
}

/// Everything in a directory, by name.
fn directory(found: &FoundFile) -> Result<Vec<Entry>, backstay_guestfs::Error> {
    let mut all: Vec<(DirEntry, Option<Stat>)> = Vec::new();
    let mut from = DirCookie::START;
    loop {
        let part = found.fs.read_dir_stat(found.node, from, ENTRIES_AT_ONCE)?;
        let Some((last, _)) = part.last() else { break };
        from = last.next;
        all.extend(part);
        if all.len() > ENTRIES_MAX {
            let text = format!("the directory has more than {ENTRIES_MAX} entries");
            return Err(backstay_guestfs::Error::new(backstay_guestfs::ErrorKind::Limit, text));
        }
    }
    all.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    Ok(all.into_iter().map(|(e, stat)| entry_of(&found.fs, &e, stat)).collect())
}

fn entry_of(fs: &GuestFs, listed: &DirEntry, stat: Option<Stat>) -> Entry {
    match stat {
        Some(stat) => entry(fs, &listed.name, Some(stat)),
        None => match fs.stat(listed.node) {
            Ok(stat) => entry(fs, &listed.name, Some(stat)),
            Err(error) => Entry { error: Some(error.to_string()), ..entry(fs, &listed.name, None) },
        },
    }
}

fn entry(fs: &GuestFs, name: &[u8], stat: Option<Stat>) -> Entry {
    let link = stat.filter(|stat| stat.kind == NodeKind::Symlink);
    let target = link.and_then(|stat| fs.read_link(stat.node).ok());
    let hex = || name.iter().map(|byte| format!("{byte:02x}")).collect();
    Entry {
        name: browse::text(name),
        name_hex: std::str::from_utf8(name).is_err().then(hex),
        meta: stat.map(shown::Meta::from),
        target: target.map(|target| browse::text(&target)),
        error: None,
    }
}
