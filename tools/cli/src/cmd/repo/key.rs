//! `backstay repo key`.

pub(super) mod add;
pub(super) mod list;
pub(super) mod recovery;
pub(super) mod remove;
pub(super) mod rotate;

use std::path::PathBuf;

use backstay_store::{KeySlotInfo, Repository, SlotKind, Unlock};

use crate::context::Ctx;
use crate::exit::{CliError, Exit};
use crate::secret::{self, Source};

/// List, add, replace and remove the keys that open a repository
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    List(list::Args),
    Add(add::Args),
    Rotate(rotate::Args),
    Recovery(recovery::Args),
    Remove(remove::Args),
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    match args.what {
        What::List(args) => list::run(ctx, args),
        What::Add(args) => add::run(ctx, args),
        What::Rotate(args) => rotate::run(ctx, args),
        What::Recovery(args) => recovery::run(ctx, args),
        What::Remove(args) => remove::run(ctx, args),
    }
}

/// The kind of a key as it is shown.
fn kind(slot: &KeySlotInfo) -> &'static str {
    match slot.kind {
        SlotKind::Passphrase => "passphrase",
        SlotKind::KeyFile => "key_file",
        SlotKind::Recovery => "recovery_key",
    }
}

/// The key slot that an id or a label names.
fn find(repository: &Repository, which: &str) -> Result<KeySlotInfo, CliError> {
    repository.find_key(which).map_err(|error| {
        CliError::from(error).what(which).hint("backstay repo key list      shows the keys")
    })
}

/// Where a new key comes from.
#[derive(Debug, clap::Args)]
#[group(id = "new", multiple = false)]
pub(crate) struct NewKey {
    /// Make a key file of 32 random bytes and add it; an existing file is never overwritten
    #[arg(long, value_name = "FILE")]
    new_key_file: Option<PathBuf>,

    /// Add the key that this file holds
    #[arg(long, value_name = "FILE")]
    add_key_file: Option<PathBuf>,

    /// Add the passphrase in this file
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,

    /// Add the passphrase this shell command prints
    #[arg(long, value_name = "COMMAND")]
    new_passphrase_command: Option<String>,
}

impl NewKey {
    /// Makes, reads or asks for the new key.
    fn get(&self, ctx: &Ctx) -> Result<Unlock, CliError> {
        if let Some(path) = &self.new_key_file {
            return secret::make_key_file(path);
        }
        let source = (self.add_key_file.clone().map(Source::KeyFile))
            .or_else(|| self.new_passphrase_file.clone().map(Source::PassphraseFile))
            .or_else(|| self.new_passphrase_command.clone().map(Source::PassphraseCommand));
        if let Some(source) = source {
            return source.unlock();
        }
        if secret::can_ask(&ctx.global) {
            return secret::ask("new passphrase", true);
        }
        Err(CliError::usage("a new key is needed, and there is no terminal to ask for it")
            .hint("--new-key-file FILE              makes a key file")
            .hint("--add-key-file FILE              takes an existing one")
            .hint("--new-passphrase-file FILE       or --new-passphrase-command COMMAND"))
    }

    /// Takes back the key file that was made, if one was.
    fn withdraw(&self) {
        if let Some(path) = &self.new_key_file {
            secret::withdraw(path);
        }
    }
}
