//! `backstay version`.

use serde::Serialize;

use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};

/// Print the version
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail("  backstay version --json", &[]))]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Document {
    name: &'static str,
    version: &'static str,
    target: String,
}

pub(crate) fn run(ctx: &Ctx, _args: Args) -> Result<Exit, CliError> {
    let document = Document {
        name: "backstay",
        version: env!("CARGO_PKG_VERSION"),
        target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
    };
    ctx.out.report(&document, |to| {
        to.push_str(&format!("{} {} {}\n", document.name, document.version, document.target));
    })?;
    Ok(Exit::Done)
}
