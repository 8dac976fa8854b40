//! `backstay repo key add`.

use std::path::PathBuf;

use backstay_store::Unlock;
use jiff::Timestamp;
use serde::Serialize;

use super::list::SlotView;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Stream, clean};
use crate::secret::{self, Source};

/// Add a key; the global key options name one that opens the repository already
#[derive(Debug, clap::Args)]
#[command(
    after_help = help_tail(
        "  backstay repo key add --label 'recovery sheet' --new-passphrase-file /root/sheet.txt
  backstay repo key add --new-key-file /root/second.key --label node2",
        &[Exit::NoRepository, Exit::WrongKey, Exit::Denied, Exit::InUse, Exit::Refused]
    ),
    group = clap::ArgGroup::new("new")
)]
pub(crate) struct Args {
    /// A name for people, shown in the list
    #[arg(long, value_name = "TEXT", default_value = "")]
    label: String,

    /// Make a key file of 32 random bytes and add it; an existing file is never overwritten
    #[arg(long, value_name = "FILE", group = "new")]
    new_key_file: Option<PathBuf>,

    /// Add the key that this file holds
    #[arg(long, value_name = "FILE", group = "new")]
    add_key_file: Option<PathBuf>,

    /// Add the passphrase in this file
    #[arg(long, value_name = "FILE", group = "new")]
    new_passphrase_file: Option<PathBuf>,

    /// Add the passphrase this shell command prints
    #[arg(long, value_name = "COMMAND", group = "new")]
    new_passphrase_command: Option<String>,
}

#[derive(Serialize)]
struct Document {
    key: SlotView,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    // The old key first: nothing is made for somebody who cannot use it.
    let repository = ctx.open()?;
    let new = new_key(ctx, &args)?;
    let slot = repository.add_key(&new, &args.label, Timestamp::now()).inspect_err(|_| {
        if let Some(path) = &args.new_key_file
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(%error, file = %path.display(), "the unused key file stays");
        }
    })?;
    let document = Document { key: SlotView::from(&slot) };
    ctx.out.summary(Stream::Stdout, &document, |to| {
        to.push_str(&format!("added key {}  {}\n", slot.id, clean(&slot.label)));
        to.push_str("see all:  backstay repo key list\n");
    })?;
    Ok(Exit::Done)
}

fn new_key(ctx: &Ctx, args: &Args) -> Result<Unlock, CliError> {
    if let Some(path) = &args.new_key_file {
        return secret::make_key_file(path);
    }
    let source = (args.add_key_file.clone().map(Source::KeyFile))
        .or_else(|| args.new_passphrase_file.clone().map(Source::PassphraseFile))
        .or_else(|| args.new_passphrase_command.clone().map(Source::PassphraseCommand));
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
