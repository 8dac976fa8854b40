//! `backstay repo key add`.

use jiff::Timestamp;
use serde::Serialize;

use super::NewKey;
use super::list::SlotView;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Stream, clean};

/// Add a key; the global key options name one that opens the repository already
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay repo key add --label 'anna' --new-passphrase-file /root/anna.txt
  backstay repo key add --new-key-file /root/second.key --label node2",
    &[Exit::NoRepository, Exit::WrongKey, Exit::Denied, Exit::InUse, Exit::Refused]
))]
pub(crate) struct Args {
    /// A name for people, shown in the list
    #[arg(long, value_name = "TEXT", default_value = "")]
    label: String,

    #[command(flatten)]
    new: NewKey,
}

#[derive(Serialize)]
struct Document {
    key: SlotView,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    // The old key first: nothing is made for somebody who cannot use it.
    let repository = ctx.open()?;
    let new = args.new.get(ctx)?;
    let slot = repository
        .add_key(&new, &args.label, Timestamp::now())
        .inspect_err(|_| args.new.withdraw())?;
    let document = Document { key: SlotView::from(&slot) };
    ctx.out.summary(Stream::Stdout, &document, |to| {
        to.push_str(&format!("added key {}  {}\n", slot.id, clean(&slot.label)));
        to.push_str("see all:  backstay repo key list\n");
    })?;
    Ok(Exit::Done)
}
