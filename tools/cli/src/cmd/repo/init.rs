//! `backstay repo init`.

use std::path::PathBuf;

use backstay_format::ChunkSize;
use backstay_format::config::{Encryption, RepoConfig};
use backstay_store::{ErrorKind, InitOptions, Location, Repository, Unlock};
use jiff::Timestamp;
use serde::Serialize;

use crate::cmd::repo::key::recovery::Handout;
use crate::context::{Ctx, remember};
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Stream, field};
use crate::secret;
use crate::units::{self, shell_word};

/// Make a new repository
///
/// It is encrypted, and its first key is the one the global key options name, a new key file
/// (--new-key-file), or a passphrase asked for on the terminal. Whoever loses every key loses
/// the backups. So a recovery key is made besides and shown once: write it down, and keep it away
/// from this machine.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay repo init --repo /srv/backup
  backstay repo init --repo /srv/backup --new-key-file /root/backup.key
  backstay repo init --repo /mnt/usb/backup --passphrase-command 'pass show backup' --chunk-size 256K",
    &[Exit::Denied, Exit::InUse, Exit::Refused]
))]
pub(crate) struct Args {
    /// Make a key file of 32 random bytes and use it; an existing file is never overwritten
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    new_key_file: Option<PathBuf>,

    /// Write the recovery key to this new file, for its owner only, instead of showing it
    #[arg(long, value_name = "FILE")]
    new_recovery_key_file: Option<PathBuf>,

    /// Make no recovery key
    #[arg(long, conflicts_with = "new_recovery_key_file")]
    no_recovery_key: bool,

    /// Store everything in the clear: whoever reads the storage reads the backups
    #[arg(long, conflicts_with_all = ["key", "new_key_file", "new_recovery_key_file"])]
    unencrypted: bool,

    /// Give every pack parity: 3.5 % more space, from which damaged packs are repaired
    #[arg(long)]
    parity: bool,

    /// The size of the blocks disks are cut into: a power of two from 4K to 4M
    #[arg(long, value_name = "SIZE", default_value = "64K", value_parser = chunk_size)]
    chunk_size: ChunkSize,
}

#[derive(Serialize)]
struct Document<'a> {
    id: String,
    location: String,
    encryption: &'static str,
    chunk_size_bytes: u32,
    parity: bool,
    created: String,
    key_file: Option<String>,
    recovery_key: Option<&'a str>,
    recovery_key_file: Option<String>,
}

fn chunk_size(text: &str) -> Result<ChunkSize, String> {
    let bytes = u32::try_from(units::parse_size(text)?).map_err(|_| "too large".to_owned())?;
    ChunkSize::new(bytes).map_err(|error| error.to_string())
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let location = ctx.location()?;
    // Before any key is asked for or made: nothing is done where a repository is.
    if Repository::read_config(&location).is_ok() {
        return Err(exists(&location));
    }
    let key = first_key(ctx, &args, &location)?;
    let recovery = if args.unencrypted || args.no_recovery_key {
        None
    } else {
        let file = args.new_recovery_key_file.as_deref();
        let made = Handout::new(file).inspect_err(|_| args.withdraw_key_file());
        Some(made?)
    };
    let options = InitOptions {
        chunk_size: args.chunk_size,
        encryption: if args.unencrypted { Encryption::None } else { Encryption::Aes256Gcm },
        time: Timestamp::now(),
        parity: args.parity,
    };
    let recovery_key = recovery.as_ref().map(|handout| &handout.key);
    let config = Repository::init_with_recovery(&location, &options, &key, recovery_key).map_err(
        |error| {
            if surely_not_made(&location) {
                args.withdraw_key_file();
                if let Some(handout) = &recovery {
                    handout.withdraw();
                }
            }
            CliError::from(error).what(location.to_string())
        },
    )?;
    if let Ok(cache_dir) = ctx.cache_dir() {
        remember(&cache_dir, &config, &location);
    }
    report(ctx, &args, &location, &config, recovery.as_ref())
}

/// Tells what was made, and hands the recovery key out.
fn report(
    ctx: &Ctx,
    args: &Args,
    location: &Location,
    config: &RepoConfig,
    recovery: Option<&Handout<'_>>,
) -> Result<Exit, CliError> {
    let document = Document {
        id: config.id.to_string(),
        location: location.to_string(),
        encryption: super::show::encryption(config.encryption),
        chunk_size_bytes: config.chunk_size.bytes(),
        parity: config.has_parity(),
        created: units::utc_time(config.created),
        key_file: args.new_key_file.as_ref().map(|path| {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            path.display().to_string()
        }),
        recovery_key: recovery.and_then(Handout::text),
        recovery_key_file: recovery.and_then(Handout::file),
    };
    let human = |to: &mut String| {
        field(to, "made", &document.location);
        field(to, "id", &document.id);
        field(to, "encryption", document.encryption);
        field(to, "chunks", &config.chunk_size.to_string());
        if let Some(path) = &document.key_file {
            field(to, "key file", path);
        }
        match (recovery, &document.key_file) {
            (Some(handout), _) => handout.tell(to),
            (None, Some(_)) => to.push_str(
                "\nWithout this key file nobody can read the backups. Keep a copy elsewhere.\n",
            ),
            (None, None) => {}
        }
        let key = document.key_file.as_ref();
        let key = key.map(|path| format!(" --key-file {}", shell_word(path))).unwrap_or_default();
        let directory = location.directory().map(|path| path.display().to_string());
        let repo = shell_word(&directory.unwrap_or_else(|| location.to_string()));
        to.push_str(&format!("next:  backstay backup IMAGE --machine NAME --repo {repo}{key}\n"));
    };
    match recovery {
        Some(handout) => handout.show(ctx, &document, human)?,
        None => ctx.out.summary(Stream::Stdout, &document, human)?,
    }
    Ok(Exit::Done)
}

/// The key that opens the new repository first.
fn first_key(ctx: &Ctx, args: &Args, location: &Location) -> Result<Unlock, CliError> {
    if args.unencrypted {
        return Ok(Unlock::None);
    }
    if let Some(path) = &args.new_key_file {
        return secret::make_key_file(path);
    }
    if let Some(source) = secret::Source::chosen(&ctx.global)? {
        if source.is_recovery() {
            return Err(CliError::usage("a recovery key cannot be a repository's first key")
                .hint("--new-recovery-key-file FILE     takes the recovery key that is made"));
        }
        return source.unlock();
    }
    if secret::can_ask(&ctx.global) {
        return secret::ask(&format!("new passphrase for {location}"), true);
    }
    let error =
        CliError::usage("a new repository needs a key, and there is no terminal to ask for one")
            .what(location.to_string())
            .hint("--new-key-file FILE              makes a key file");
    Err(secret::name_the_options(error)
        .hint("--unencrypted                    if everybody may read the backups"))
}

fn exists(location: &Location) -> CliError {
    CliError::new(Exit::InUse, "there is a repository already; nothing was changed")
        .what(location.to_string())
        .hint(format!("backstay repo show --repo {}", shell_word(&location.to_string())))
}

/// Whether there is no repository for certain. If there may be one, the keys made for it must stay.
fn surely_not_made(location: &Location) -> bool {
    location.directory().is_some_and(|directory| !directory.is_dir())
        || Repository::read_config(location).is_err_and(|e| e.kind() == ErrorKind::NotFound)
}

impl Args {
    fn withdraw_key_file(&self) {
        if let Some(path) = &self.new_key_file {
            secret::withdraw(path);
        }
    }
}
