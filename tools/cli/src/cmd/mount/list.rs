//! `backstay mount list`.

use backstay_api::mountd::{Answer, Request};
use serde::Serialize;

use super::shown::{self, Document};
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::mountd;
use crate::output::clean;

/// List the mounts, oldest first, and what is left over of others
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay mount list
  backstay mount list --json",
    &[Exit::NotFound]
))]
pub(crate) struct Args {}

#[derive(Serialize)]
struct All<'a> {
    mounts: Vec<Document<'a>>,
    leftovers: &'a [String],
}

pub(crate) fn run(ctx: &Ctx, _args: Args) -> Result<Exit, CliError> {
    let answer = mountd::ask(ctx, &Request::List {})?;
    let Answer::Mounts { mounts, leftovers } = answer else {
        return Err(mountd::unexpected(&answer));
    };
    let all = All { mounts: mounts.iter().map(Document::new).collect(), leftovers: &leftovers };
    ctx.out.report(&all, |to| {
        if mounts.is_empty() {
            to.push_str("nothing is mounted\n");
        } else {
            shown::table(to, &mounts);
        }
        for leftover in &leftovers {
            to.push_str(&format!("left over: {}\n", clean(leftover)));
        }
        if !leftovers.is_empty() {
            to.push_str("clear it away:  backstay mount prune\n");
        }
    })?;
    Ok(Exit::Done)
}
