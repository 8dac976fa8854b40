//! `backstay get`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use backstay_core::files::directory::{self, IdRange, Options, Ownership};
use backstay_core::files::to_archive::{self, Format};
use backstay_core::files::{self, Report, Tree, tar};
use backstay_daemon::FoundTree;
use serde::Serialize;

use crate::browse;
use crate::cmd::mount::{ids, range};
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Stream, clean};
use crate::progress::Reporter;
use crate::signals::Signals;
use crate::units;

/// Notes shown to people; all are counted.
const NOTES_SHOWN: usize = 20;

/// Take files out of a guest's disk, into a directory of this machine or an archive
///
/// A file, or a directory with all that is below it, with owners, modes, times, links, holes, ACLs and attributes; what the
/// target cannot hold is told. Without root everything belongs to who runs this. Nothing outside of the target is touched,
/// whatever the guest wrote: links are made and never followed. What gives rights (setuid, devices, security attributes) comes
/// only when asked for.
///
/// What the guest mounts below the directory comes with it; with a :VOLUME, only what is on that volume does. A tar archive has all
/// metadata; a zip archive has names, content, modes and times, and the list tells what it lost.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay get web01//etc/nginx
  backstay get web01@-2d//home/anna/report.odt --to /tmp
  backstay get web01:vg0/home// --to /srv/restored-home
  backstay get web01//home/anna --tar - | ssh other tar -x",
    &[
        Exit::Partial, Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::Denied, Exit::NotFound,
        Exit::InUse, Exit::Refused, Exit::Interrupted, Exit::Terminated,
    ]
))]
pub(crate) struct Args {
    /// What to take: `MACHINE[@POINT][:VOLUME]//PATH`
    what: OsString,

    /// The directory it comes into; made if it is not there
    #[arg(long, value_name = "DIR", default_value = ".", conflicts_with_all = ["tar", "zip"])]
    to: PathBuf,

    /// Into a tar archive instead; - is standard output
    #[arg(long, value_name = "FILE", conflicts_with_all = ["zip", "as_user", "map", "max_size"])]
    tar: Option<PathBuf>,

    /// Into a zip archive instead; - is standard output
    #[arg(long, value_name = "FILE", conflicts_with_all = ["as_user", "map", "max_size"])]
    zip: Option<PathBuf>,

    /// Replace files that are there
    #[arg(long)]
    overwrite: bool,

    /// Give everything to this user and group
    #[arg(long = "as", value_name = "UID[:GID]", value_parser = ids, conflicts_with = "map")]
    as_user: Option<(u32, u32)>,

    /// Give what users and groups FROM, FROM+1, ... of the guest own to TO, TO+1, ...
    #[arg(long, value_name = "FROM:TO:COUNT", value_parser = range)]
    map: Vec<(u32, u32, u32)>,

    /// Take what gives rights, too: setuid and setgid, device nodes, attributes of security. and trusted.; archives always
    /// have them
    #[arg(long, conflicts_with_all = ["tar", "zip"])]
    privileged_metadata: bool,

    /// Most bytes of content that may be written
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size)]
    max_size: Option<u64>,
}

#[derive(Serialize)]
struct Document {
    machine: String,
    point: String,
    what: String,
    target: String,
    files: u64,
    directories: u64,
    symlinks: u64,
    hard_links: u64,
    others: u64,
    data_bytes: u64,
    complete: bool,
    notes: Vec<NoteView>,
    notes_total: u64,
    left_out: Vec<browse::LeftOutView>,
}

#[derive(Serialize)]
struct NoteView {
    path: String,
    what: String,
    text: String,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let browsed = browse::open(ctx, &args.what)?;
    let named = browsed.name.to_string();
    let Some(path) = &browsed.name.path else {
        return Err(CliError::usage("no file is named").what(named).hint("MACHINE//PATH"));
    };
    let failed = |error: backstay_guestfs::Error| CliError::from(error).what(named.clone());
    // The link itself is taken, not what it leads to.
    let found = browsed.files.tree(browsed.name.volume.as_deref(), path, false).map_err(failed)?;
    let signals = Signals::listen()?;
    let reporter = Reporter::new(&ctx.global, Some(signals.clone()));
    let (target, report) = take(&args, &found, &reporter)
        .map_err(|error| crate::cmd::stopped(error, &signals).what(named.clone()))?;
    reporter.finish();
    let stream = if target == "-" { Stream::Stderr } else { Stream::Stdout };
    let document = Document {
        machine: browsed.point.machine.clone(),
        point: browsed.point.id.to_string(),
        what: named,
        target,
        left_out: browse::left_out(&found),
        ..Document::of(&report)
    };
    ctx.out.summary(stream, &document, |to| show(to, &document))?;
    let whole = report.is_complete() && document.left_out.is_empty();
    Ok(if whole { Exit::Done } else { Exit::Partial })
}

/// Takes what was found to where it shall go; answers where that is.
fn take(
    args: &Args,
    found: &FoundTree,
    reporter: &Reporter,
) -> Result<(String, Report), backstay_core::Error> {
    let tree = Tree { fs: &*found.fs, node: found.node };
    let name = found.path.rsplit(|b| *b == b'/').next().filter(|name| !name.is_empty());
    let name = name.map(<[u8]>::to_vec);
    let archive = args.tar.as_deref().map(|path| (path, Format::Tar));
    let Some((path, format)) = archive.or(args.zip.as_deref().map(|path| (path, Format::Zip)))
    else {
        let options = Options {
            name,
            overwrite: args.overwrite,
            ownership: ownership(args),
            privileged_metadata: args.privileged_metadata,
            max_bytes: args.max_size,
            sync: true,
            ..Options::default()
        };
        let report = directory::write(tree, &args.to, &options, reporter)?;
        return Ok((args.to.display().to_string(), report));
    };
    let options = tar::Options { name, ..tar::Options::default() };
    let report = match path == Path::new("-") {
        true => {
            let mut out = std::io::stdout().lock();
            to_archive::write(tree, format, &mut out, &options, reporter)?
        }
        false => {
            let target = (path, args.overwrite);
            to_archive::write_file(tree, format, target, &options, reporter)?
        }
    };
    Ok((path.display().to_string(), report))
}

fn ownership(args: &Args) -> Ownership {
    let ranges = || -> Vec<IdRange> {
        args.map.iter().map(|&(guest, host, len)| IdRange { guest, host, len }).collect()
    };
    match args.as_user {
        Some((uid, gid)) => Ownership::As { uid, gid },
        None if args.map.is_empty() => Ownership::Auto,
        None => Ownership::Map { users: ranges(), groups: ranges() },
    }
}

impl Document {
    fn of(report: &Report) -> Self {
        let note = |note: &files::Note| NoteView {
            path: files::shown(&note.path),
            what: format!("{:?}", note.what),
            text: note.text.clone(),
        };
        Self {
            machine: String::new(),
            point: String::new(),
            what: String::new(),
            target: String::new(),
            files: report.files,
            directories: report.directories,
            symlinks: report.symlinks,
            hard_links: report.hard_links,
            others: report.others,
            data_bytes: report.data_bytes,
            complete: report.is_complete(),
            notes: report.notes.iter().map(note).collect(),
            notes_total: report.totals.values().sum(),
            left_out: Vec::new(),
        }
    }
}

fn show(to: &mut String, document: &Document) {
    let Document { files, directories, symlinks, data_bytes, target, .. } = document;
    let size = units::size(*data_bytes);
    to.push_str(&format!(
        "{files} files, {directories} directories, {symlinks} links, {size} into {}\n",
        clean(target)
    ));
    browse::show_left_out(to, &document.left_out);
    for note in document.notes.iter().take(NOTES_SHOWN) {
        to.push_str(&format!("not as it was: {}: {}\n", clean(&note.path), clean(&note.text)));
    }
    let more = document.notes_total.saturating_sub(NOTES_SHOWN as u64);
    if more > 0 {
        to.push_str(&format!("and {more} more (--json lists up to a thousand)\n"));
    }
}
