//! `backstay repo key rotate`.

use backstay_store::{Repository, SlotId, SlotKind};
use jiff::Timestamp;
use serde::Serialize;

use super::NewKey;
use super::list::SlotView;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Stream, clean};

/// Put a new key in the place of an old one
///
/// The new key is added first, then the old one is removed; no data is written again. If that is
/// interrupted both open the repository, and repo key list says so.
///
/// Whoever has both the old key and a copy of its key slot from before can still open the
/// repository: if a key was stolen together with the storage, make a new repository.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay repo key rotate node2 --new-key-file /root/node2-2027.key
  backstay repo key rotate 3k9d2m7p1q4xw --new-passphrase-command 'pass show backup-2027'",
    &[
        Exit::NoRepository, Exit::WrongKey, Exit::Denied, Exit::NotFound, Exit::InUse,
        Exit::Refused,
    ]
))]
pub(crate) struct Args {
    /// The old key: its id or its label, as repo key list shows them
    #[arg(value_name = "KEY")]
    old: String,

    /// A new name for people; by default the old one
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,

    #[command(flatten)]
    new: NewKey,
}

#[derive(Serialize)]
struct Document {
    key: SlotView,
    removed: String,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let repository = ctx.open()?;
    let old = super::find(&repository, &args.old)?;
    if old.kind == SlotKind::Recovery {
        return Err(CliError::usage("this is a recovery key, which is made and not chosen")
            .what(args.old)
            .hint("backstay repo key recovery --replace"));
    }
    let new = args.new.get(ctx)?;
    let done = repository
        .rotate_key(&old.id.to_string(), &new, args.label.as_deref(), Timestamp::now())
        .map_err(|error| {
            if is_rotating(&repository, old.id) {
                return CliError::from(error)
                    .hint(format!("backstay repo key remove {} --yes", old.id));
            }
            args.new.withdraw();
            CliError::from(error)
        })?;
    let document = Document { key: SlotView::from(&done.added), removed: done.removed.to_string() };
    ctx.out.summary(Stream::Stdout, &document, |to| {
        to.push_str(&format!("added key {}  {}\n", done.added.id, clean(&done.added.label)));
        to.push_str(&format!("removed key {}\n", document.removed));
    })?;
    Ok(Exit::Done)
}

/// Whether a new key is, or may be, there in the place of the old one: then its file must stay.
fn is_rotating(repository: &Repository, old: SlotId) -> bool {
    match repository.keys() {
        Ok(keys) => keys.iter().any(|key| key.replaces == Some(old)),
        Err(_) => true,
    }
}
