//! `backstay mount files`.

use std::path::PathBuf;

use backstay_api::mountd::{FilesOwners, FilesRequest, MountRequest, Request};
use backstay_core::retention::Length;
use backstay_daemon::fuse::{IdRange, ImageMountOptions, Only, Owners};

use super::{image, nbd, shown};
use crate::browse;
use crate::cmd::view;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::mountd;

/// Show the files inside a recovery point's disks in a directory, read-only
///
/// DIR/files/VOLUME holds the files of a partition or logical volume, DIR/files/mounted the whole tree as the guest
/// has it, and DIR/disks the disks' images. DIR/volumes.txt tells what is there and cannot be read. No kernel reads what the
/// guest wrote: that is done by a process that can do nothing else.
///
/// The mount daemon serves it; it is started if there is none, and the command returns at once. The mount stays until it is
/// ended or unmounted, its time is over, or nobody had a file open for a day; a restart of the daemon does not end it.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay mount files web01 /mnt/web01
  backstay mount files web01@-2d /mnt/web01 --for 2h --reason 'the lost report'
  backstay mount files @b7f3k2 /mnt/web01 --as 1000:1000
  backstay mount files web01 /mnt/web01 --allow-other --map 0:100000:65536",
    &[
        Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::Denied, Exit::NotFound,
        Exit::InUse, Exit::Refused,
    ]
))]
pub(crate) struct Args {
    /// The recovery point: MACHINE, MACHINE@POINT or @ID
    what: String,

    /// The directory to mount on; it must be there
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// Let other users look into it, too; the modes of the files are then enforced
    #[arg(long)]
    allow_other: bool,

    /// Show all files as of this user and group [default: the guest's numbers for root, else who mounts]
    #[arg(long = "as", value_name = "UID[:GID]", value_parser = ids, conflicts_with = "map")]
    as_user: Option<(u32, u32)>,

    /// Show users and groups FROM, FROM+1, ... of the guest as TO, TO+1, ...
    #[arg(long, value_name = "FROM:TO:COUNT", value_parser = range)]
    map: Vec<(u32, u32, u32)>,

    /// End it after this time, when nothing is open any more
    #[arg(long = "for", value_name = "LENGTH", conflicts_with = "foreground")]
    for_length: Option<Length>,

    /// End it then though files are open
    #[arg(long, requires = "for_length")]
    hard_end: bool,

    /// End it when nothing was open for this time [default: 1d]
    #[arg(long, value_name = "LENGTH", conflicts_with = "foreground")]
    idle: Option<Length>,

    /// What it is for; shown wherever mounts are listed
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,

    /// Serve it by this command itself until it is interrupted: no daemon, nothing noted
    #[arg(long)]
    foreground: bool,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let owners = owners(&args);
    if args.foreground {
        let repository = ctx.open()?;
        let point = view::find_point(&repository.points()?, &args.what)?;
        let options = ImageMountOptions {
            allow_other: args.allow_other,
            only: Only::Point(point.id),
            reader: Some(browse::reader()?),
            owners: for_mount(&owners),
            guardian: Some(image::guardian()?),
            ..ImageMountOptions::new(args.directory)
        };
        return image::serve(ctx, repository, options, "files");
    }
    let (repository, location, key) = ctx.open_for_daemon()?;
    let point = view::find_point(&repository.points()?, &args.what)?;
    let directory = std::fs::canonicalize(&args.directory).map_err(|error| {
        CliError::io("cannot mount there", &error)
            .what(args.directory.display().to_string())
            .hint("the directory must be there already")
    })?;
    let request = MountRequest {
        repository: nbd::absolute(&location.to_string()),
        key,
        machine: point.machine.clone(),
        point: point.id.to_string(),
        disks: point.disks.iter().map(|disk| disk.name.clone()).collect(),
        iscsi: None,
        files: Some(FilesRequest {
            directory: directory.display().to_string(),
            allow_other: args.allow_other,
            owners,
        }),
        writable: false,
        limit_bytes: None,
        pause_when_full: false,
        for_seconds: nbd::for_seconds(args.for_length.as_ref())?,
        hard_end: args.hard_end,
        idle_seconds: nbd::idle_seconds(args.idle.as_ref(), args.for_length.as_ref())?,
        listen: Vec::new(),
        allow: Vec::new(),
        reason: args.reason,
    };
    // The daemon holds the point by itself from here on.
    drop(repository);
    let view = mountd::ask_or_start(ctx, &Request::Mount(Box::new(request)))?;
    shown::mounted(ctx, &view)?;
    Ok(Exit::Done)
}

/// Who may read a file that only the guest's root may? Root here; everybody else mounts for himself.
fn owners(args: &Args) -> FilesOwners {
    if !args.map.is_empty() {
        return FilesOwners::Map { users: args.map.clone(), groups: args.map.clone() };
    }
    match args.as_user {
        Some((uid, gid)) => FilesOwners::As { uid, gid },
        None if rustix::process::geteuid().is_root() => FilesOwners::Guest,
        None => FilesOwners::As {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        },
    }
}

fn for_mount(owners: &FilesOwners) -> Owners {
    let ranges = |list: &[(u32, u32, u32)]| -> Vec<IdRange> {
        list.iter().map(|&(from, to, count)| IdRange { from, to, count }).collect()
    };
    match owners {
        FilesOwners::Guest => Owners::Guest,
        FilesOwners::As { uid, gid } => Owners::As { uid: *uid, gid: *gid },
        FilesOwners::Map { users, groups } => {
            Owners::Map { users: ranges(users), groups: ranges(groups) }
        }
    }
}

pub(crate) fn ids(text: &str) -> Result<(u32, u32), String> {
    let number = |text: &str| text.parse().map_err(|_| format!("`{text}` is no number of a user"));
    match text.split_once(':') {
        Some((uid, gid)) => Ok((number(uid)?, number(gid)?)),
        None => number(text).map(|id| (id, id)),
    }
}

pub(crate) fn range(text: &str) -> Result<(u32, u32, u32), String> {
    let numbers: Vec<u32> = text.split(':').map_while(|part| part.parse().ok()).collect();
    match (&numbers[..], text.matches(':').count()) {
        (&[from, to, count], 2) if count > 0 => Ok((from, to, count)),
        _ => Err("a range is FROM:TO:COUNT, three numbers, as in 0:100000:65536".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_ranges() {
        assert_eq!(ids("1000"), Ok((1000, 1000)));
        assert_eq!(ids("0:7"), Ok((0, 7)));
        assert_eq!(range("0:100000:65536"), Ok((0, 100_000, 65_536)));
        for bad in ["", ":", "a", "1:", "1:b", "-1"] {
            assert!(ids(bad).is_err(), "{bad}");
        }
        for bad in ["", "1:2", "1:2:0", "1:2:3:4", "1:2:x", "x:1:2:3"] {
            assert!(range(bad).is_err(), "{bad}");
        }
    }
}
