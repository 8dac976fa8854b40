//! The arguments: parser, help, man pages and completions all come from these definitions.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::cmd;
use crate::exit::{CliError, Exit};

/// Backup and instant restore of virtual machine disks.
///
/// Disks are kept in a deduplicating, encrypted repository. Every recovery point is complete in
/// itself and can be opened at once: as a file (mount image), as a network block device
/// (mount nbd), or written back to a disk (restore disk).
#[derive(Debug, Parser)]
#[command(
    name = "backstay",
    version,
    propagate_version = false,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = root_tail()
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The repository: a directory, file:///DIRECTORY, or s3://BUCKET/PREFIX?endpoint=URL (keys as
    /// AWS's tools take them: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)
    #[arg(
        long,
        global = true,
        value_name = "LOCATION",
        env = "BACKSTAY_REPO",
        hide_env_values = true
    )]
    pub(crate) repo: Option<String>,

    /// Where derived data is cached; safe to delete [default: /var/cache/backstay for root, else
    /// ~/.cache/backstay]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "BACKSTAY_CACHE_DIR",
        hide_env_values = true
    )]
    pub(crate) cache_dir: Option<PathBuf>,

    /// Where mounts are noted and what is written to them is kept [default: /var/lib/backstay for root, else
    /// ~/.local/state/backstay]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "BACKSTAY_STATE_DIR",
        hide_env_values = true
    )]
    pub(crate) state_dir: Option<PathBuf>,

    /// Most of a bucket's packs that is kept in the cache; 0 keeps nothing [default: 4GiB]
    #[arg(
        long,
        global = true,
        value_name = "SIZE",
        env = "BACKSTAY_DISK_CACHE",
        hide_env_values = true,
        value_parser = crate::units::parse_size
    )]
    pub(crate) disk_cache: Option<u64>,

    /// Unlock with the content of this file [env: BACKSTAY_KEY_FILE]
    #[arg(long, global = true, value_name = "FILE", group = "key")]
    pub(crate) key_file: Option<PathBuf>,

    /// Unlock with the passphrase in this file [env: BACKSTAY_PASSPHRASE_FILE]
    #[arg(long, global = true, value_name = "FILE", group = "key")]
    pub(crate) passphrase_file: Option<PathBuf>,

    /// Unlock with the passphrase this shell command prints [env: BACKSTAY_PASSPHRASE_COMMAND, or
    /// the passphrase itself in BACKSTAY_PASSPHRASE]
    #[arg(long, global = true, value_name = "COMMAND", group = "key")]
    pub(crate) passphrase_command: Option<String>,

    /// Unlock with the recovery key in this file [env: BACKSTAY_RECOVERY_KEY_FILE, or the key itself
    /// in BACKSTAY_RECOVERY_KEY]
    #[arg(long, global = true, value_name = "FILE", group = "key")]
    pub(crate) recovery_key_file: Option<PathBuf>,

    /// Print one JSON document on stdout, and errors as JSON on stderr
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Print nothing but errors and what was asked for
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,

    /// How progress is shown: a bar on a terminal and lines elsewhere, unless chosen
    #[arg(long, global = true, value_name = "HOW", default_value = "auto")]
    pub(crate) progress: ProgressMode,

    /// No colours; the same as setting NO_COLOR
    #[arg(long, global = true)]
    pub(crate) no_color: bool,

    /// Never ask anything: fail instead
    #[arg(long, global = true)]
    pub(crate) no_input: bool,

    /// Answer yes where a confirmation is wanted
    #[arg(long, short, global = true)]
    pub(crate) yes: bool,

    /// Say more on stderr; twice for still more
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressMode {
    /// A bar on a terminal, lines every few seconds elsewhere, nothing with --quiet
    Auto,
    /// Lines every few seconds
    Plain,
    /// JSON objects on stderr, one a line
    Json,
    /// Nothing
    None,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Repo(cmd::repo::Args),
    Backup(cmd::backup::Args),
    Copy(cmd::copy::Args),
    List(cmd::list::Args),
    Show(cmd::show::Args),
    Ls(cmd::ls::Args),
    Cat(cmd::cat::Args),
    Get(cmd::get::Args),
    Find(cmd::find::Args),
    Restore(cmd::restore::Args),
    Mount(cmd::mount::Args),
    Mountd(cmd::mountd::Args),
    Point(cmd::point::Args),
    Retention(cmd::retention::Args),
    Gc(cmd::gc::Args),
    Session(cmd::session::Args),
    Diff(cmd::diff::Args),
    Completion(cmd::completion::Args),
    Man(cmd::man::Args),
    Version(cmd::version::Args),
    #[command(hide = true)]
    Guard(cmd::guard::Args),
    #[command(hide = true)]
    ReadGuest(cmd::read_guest::Args),
}

fn root_tail() -> String {
    let examples = "  backstay repo init --repo /srv/backup --new-key-file /root/backup.key
  export BACKSTAY_REPO=/srv/backup BACKSTAY_KEY_FILE=/root/backup.key
  backstay backup /var/lib/libvirt/images/web01.qcow2 --machine web01
  backstay list
  backstay mount image /mnt/backups
  backstay restore disk web01@latest:disk0 --to web01.raw

Names of what is in a repository:
  web01, web01@latest            the newest recovery point of machine web01
  web01@2026-11-20T03:00         the newest at or before that time (Z at the end for UTC)
  web01@-2d                      the newest that is at least two days old
  @b7f3k2                        the recovery point whose id starts like this
  web01@latest:disk0             one disk of it
  web01@latest//etc/passwd       a file inside its disks, where the guest has it
  web01:disk0p2//etc/passwd      the same, on the volume named";
    crate::exit::help_tail(examples, &Exit::ALL[3..])
}

/// Reads the arguments of this process. Help and version, and wrong usage, end here.
pub(crate) fn parse() -> Result<Cli, ExitCode> {
    Cli::try_parse().map_err(|error| {
        let wrong = error.use_stderr();
        if wrong && std::env::args_os().any(|arg| arg == "--json") {
            let text = error.to_string();
            let message = text.split("\n\n").next().unwrap_or(&text).trim_start_matches("error: ");
            let told = CliError::usage(message.trim()).hint("backstay --help");
            crate::output::note(&told.for_programs());
        } else if error.print().is_err() {
            // Nobody reads the help or the message any more; the exit code still tells.
        }
        let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        if asked { Exit::Done.into() } else { Exit::Usage.into() }
    })
}
