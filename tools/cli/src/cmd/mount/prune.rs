//! `backstay mount prune`.

use backstay_api::mountd::{Answer, Request};
use backstay_core::retention::Length;
use serde::Serialize;

use super::nbd;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::mountd;
use crate::output::{Stream, clean};

/// Clear away what is left over of mounts
///
/// Overlays that belong to no mount go, and ends that failed are finished. Overlays that were kept stay, unless
/// --kept-older-than names them.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay mount prune --dry-run
  backstay mount prune --kept-older-than 30d",
    &[Exit::Denied, Exit::NotFound, Exit::NeedsConfirmation]
))]
pub(crate) struct Args {
    /// Only tell what would go
    #[arg(long)]
    dry_run: bool,

    /// Throw away overlays, too, that were kept when their mount ended longer ago than this
    #[arg(long, value_name = "LENGTH")]
    kept_older_than: Option<Length>,
}

#[derive(Serialize)]
struct Document {
    removed: Vec<String>,
    dry_run: bool,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let age = args.kept_older_than.as_ref();
    let kept = age.map(|length| nbd::seconds(length, "--kept-older-than")).transpose()?;
    let ask = |dry_run| -> Result<Vec<String>, CliError> {
        let request = Request::Prune { dry_run, kept_older_than_seconds: kept };
        match mountd::ask(ctx, &request)? {
            Answer::Pruned { removed } => Ok(removed),
            other => Err(mountd::unexpected(&other)),
        }
    };
    let mut removed = ask(true)?;
    if !args.dry_run && !removed.is_empty() {
        let names = removed.join(", ");
        ctx.confirm(&format!("remove {}, with all that was written?", clean(&names)), "remove")?;
        removed = ask(false)?;
    }
    let document = Document { removed, dry_run: args.dry_run };
    ctx.out.summary(Stream::Stdout, &document, |to| {
        if document.removed.is_empty() {
            to.push_str("nothing is left over\n");
        }
        let what = if args.dry_run { "would remove" } else { "removed" };
        for name in &document.removed {
            to.push_str(&format!("{what} {}\n", clean(name)));
        }
    })?;
    Ok(Exit::Done)
}
