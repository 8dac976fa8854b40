//! `backstay repo key remove`.

use backstay_store::{KeySlotInfo, Repository, SlotKind};
use serde::Serialize;

use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::Stream;

/// Remove a key; the last one cannot be removed
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay repo key remove 3k9d2m7p1q4xw --yes
  backstay repo key remove node2",
    &[
        Exit::NoRepository, Exit::WrongKey, Exit::Denied, Exit::NotFound, Exit::InUse,
        Exit::NeedsConfirmation,
    ]
))]
pub(crate) struct Args {
    /// The key: its id or its label, as repo key list shows them
    #[arg(value_name = "KEY")]
    which: String,

    /// Remove it even if it is the only recovery key
    #[arg(long)]
    give_up_recovery_key: bool,
}

#[derive(Serialize)]
struct Document {
    removed: String,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let repository = ctx.open()?;
    let slot = super::find(&repository, &args.which)?;
    if !args.give_up_recovery_key && is_only_recovery_key(&repository, &slot)? {
        return Err(CliError::new(
            Exit::NeedsConfirmation,
            "this is the recovery key: without it, who loses the other keys loses the backups",
        )
        .what(slot.id.to_string())
        .hint("backstay repo key recovery --replace      puts a new one in its place")
        .hint("--give-up-recovery-key                    removes it all the same"));
    }
    let id = slot.id.to_string();
    let question = format!("whoever holds only key {id} can no longer open the repository");
    ctx.confirm(&question, &id)?;
    repository.remove_key(&id).map_err(|error| {
        CliError::from(error).what(id.clone()).hint("backstay repo key list      shows the keys")
    })?;
    let document = Document { removed: id };
    ctx.out.summary(Stream::Stdout, &document, |to| {
        to.push_str(&format!("removed key {}\n", document.removed));
    })?;
    Ok(Exit::Done)
}

fn is_only_recovery_key(repository: &Repository, slot: &KeySlotInfo) -> Result<bool, CliError> {
    let keys = repository.keys()?;
    let others = keys.iter().any(|key| key.kind == SlotKind::Recovery && key.id != slot.id);
    Ok(slot.kind == SlotKind::Recovery && !others)
}
