//! `backstay cat`.

use std::ffi::OsString;
use std::io::Write as _;

use backstay_guestfs::fs::{FileSystem as _, NodeKind};

use crate::browse;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::units;

/// What is read and written at once.
const PIECE_BYTES: usize = 1 << 20;

/// Write a file inside a guest's disk to stdout
///
/// Symbolic links are followed within the guest. Nothing is mounted, and no privilege is needed.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay cat web01//etc/fstab
  backstay cat web01@-2d:disk0p2//var/log/syslog
  backstay cat web01//var/lib/db.bin --offset 1G --length 4K | xxd",
    &[Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::NotFound, Exit::Refused]
))]
pub(crate) struct Args {
    /// The file: `MACHINE[@POINT][:VOLUME]//PATH`
    what: OsString,

    /// Begin at this byte
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size, default_value = "0")]
    offset: u64,

    /// Write so many bytes at most
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size)]
    length: Option<u64>,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let browsed = browse::open(ctx, &args.what)?;
    let named = browsed.name.to_string();
    let Some(path) = &browsed.name.path else {
        return Err(CliError::usage("no file is named").what(named).hint("MACHINE//PATH"));
    };
    let failed = |error: backstay_guestfs::Error| CliError::from(error).what(named.clone());
    let found = browsed.files.find(browsed.name.volume.as_deref(), path, true).map_err(failed)?;
    let stat = found.fs.stat(found.node).map_err(failed)?;
    if stat.kind != NodeKind::File {
        let text = match stat.kind {
            NodeKind::Directory => "this is a directory",
            _ => "this is no file",
        };
        let hint = format!("backstay ls {}", units::shell_word(&named));
        return Err(CliError::new(Exit::Usage, text).what(named).hint(hint));
    }
    let content = found.fs.open_content(found.node).map_err(failed)?;
    let size = content.size_bytes();
    let end = args.length.map_or(size, |len| args.offset.saturating_add(len).min(size));
    let mut buffer = vec![0; PIECE_BYTES];
    let mut at = args.offset;
    let mut to = std::io::stdout().lock();
    while at < end {
        let len = usize::try_from(end - at).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        // What comes next is fetched while this is written.
        content.prefetch(at + len as u64, 2 * PIECE_BYTES as u64);
        let read = content.read_at(at, &mut buffer[..len]).map_err(failed)?;
        to.write_all(&buffer[..read]).map_err(|error| CliError::output(&error))?;
        at += read as u64;
    }
    to.flush().map_err(|error| CliError::output(&error))?;
    Ok(Exit::Done)
}
