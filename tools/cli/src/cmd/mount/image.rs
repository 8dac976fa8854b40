//! `backstay mount image`.

use std::path::PathBuf;

use backstay_daemon::ErrorKind;
use backstay_daemon::fuse::{GuardianCommand, ImageMount, ImageMountOptions, Only, Unmount};
use backstay_store::Repository;
use serde::Serialize;

use crate::browse;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Stream, clean, note};
use crate::signals::Signals;
use crate::units::shell_word;

/// Show every recovery point's disks as files, and the files inside them, read-only
///
/// DIR/MACHINE/POINT/disks/NAME.raw is a disk's whole image, DIR/MACHINE/POINT/files what is inside the disks
/// (as `mount files` shows it), and DIR/MACHINE/latest the newest point; new ones appear by themselves. The command stays until it is interrupted or DIR is
/// unmounted.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay mount image /mnt/backups
  backstay mount image /mnt/backups --machine web01 --allow-other",
    &[
        Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::Denied, Exit::NotFound,
        Exit::InUse, Exit::Refused,
    ]
))]
pub(crate) struct Args {
    /// The directory to mount on; it must be there
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// Only the recovery points of this machine
    #[arg(long, value_name = "NAME")]
    machine: Option<String>,

    /// Let other users read the files too; the modes of the files are then enforced
    #[arg(long)]
    allow_other: bool,
}

#[derive(Serialize)]
struct Document {
    kind: &'static str,
    mountpoint: String,
    pid: u32,
    end_command: String,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let repository = ctx.open()?;
    let options = ImageMountOptions {
        allow_other: args.allow_other,
        only: args.machine.map_or(Only::All, Only::Machine),
        reader: Some(browse::reader()?),
        guardian: Some(guardian()?),
        ..ImageMountOptions::new(args.directory)
    };
    serve(ctx, repository, options, "image")
}

/// Mounts, and serves until interrupted or unmounted.
pub(super) fn serve(
    ctx: &Ctx,
    repository: Repository,
    options: ImageMountOptions,
    kind: &'static str,
) -> Result<Exit, CliError> {
    // Before the mount: a signal between the two must not leave a stale one.
    let signals = Signals::listen()?;
    let named = options.mountpoint.display().to_string();
    let look = match options.only {
        Only::Point(_) => "/files",
        Only::All | Only::Machine(_) => "/*/latest/",
    };
    let mount = ImageMount::start(repository, options)
        .map_err(|error| CliError::from(error).what(named))?;
    let shown = mount.mountpoint().display().to_string();
    let document = Document {
        kind,
        end_command: format!("fusermount3 -u {}", shell_word(&shown)),
        mountpoint: shown,
        pid: std::process::id(),
    };
    let told = ctx.out.summary(Stream::Stdout, &document, |to| {
        to.push_str(&format!("mounted on {}, read-only\n", clean(&document.mountpoint)));
        to.push_str(&format!("look:    ls {}{look}\n", shell_word(&document.mountpoint)));
        to.push_str(&format!("end it:  Ctrl-C here, or {}\n", document.end_command));
    });
    // Nobody reading our words is no reason to take the mount away from those who use it.
    if let Err(error) = told
        && !error.quiet
    {
        return Err(error);
    }
    if signals.wait(|| mount.has_ended()).is_some() {
        end(&mount)?;
    } else {
        mount.wait_until_ended();
    }
    Ok(Exit::Done)
}

/// The user wants the end. Files still open would keep an orderly end away for ever, so then the
/// mount leaves the tree, and those who hold files are told of.
fn end(mount: &ImageMount) -> Result<(), CliError> {
    match mount.end(Unmount::Orderly) {
        Err(error) if error.kind() == ErrorKind::Busy => {
            note(&format!("warning: {}; detached all the same", clean(&error.to_string())));
            Ok(mount.end(Unmount::Detach)?)
        }
        ended => Ok(ended?),
    }
}

/// This program again, as the guardian of the mount.
pub(crate) fn guardian() -> Result<GuardianCommand, CliError> {
    let program = std::env::current_exe()
        .map_err(|error| CliError::io("cannot find this program for the guardian", &error))?;
    Ok(GuardianCommand { program, args: vec!["guard".into()] })
}
