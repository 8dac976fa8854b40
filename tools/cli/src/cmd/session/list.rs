//! `backstay session list`.

use serde::Serialize;

use super::{SessionView, table};
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};

/// List the open sessions, oldest first
///
/// A session is a backup, a copy or a collection that writes, or a mount or a restore that reads.
/// The points it uses cannot be removed, and a collection waits for those that write.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay session list
  backstay session list --json",
    &[Exit::NoRepository, Exit::WrongKey, Exit::Damaged]
))]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Document {
    sessions: Vec<SessionView>,
}

pub(crate) fn run(ctx: &Ctx, _args: Args) -> Result<Exit, CliError> {
    let sessions = ctx.open()?.sessions()?;
    let document = Document { sessions: SessionView::all(&sessions) };
    ctx.out.report(&document, |to| {
        if document.sessions.is_empty() {
            to.push_str("nobody works with the repository now\n");
        } else {
            table(to, &document.sessions);
        }
    })?;
    Ok(Exit::Done)
}
