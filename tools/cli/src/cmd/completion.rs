//! `backstay completion`.

use clap::{CommandFactory as _, ValueEnum as _};
use clap_complete::Shell;
use serde::Serialize;

use crate::cli::Cli;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};

/// Print the completion script of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay completion bash > /etc/bash_completion.d/backstay
  backstay completion fish > ~/.config/fish/completions/backstay.fish",
    &[]
))]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

#[derive(Serialize)]
struct Document {
    shell: String,
    script: String,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "backstay", &mut script);
    let name = args.shell.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned());
    let document = Document { shell: name, script: String::from_utf8_lossy(&script).into_owned() };
    ctx.out.report(&document, |to| to.push_str(&document.script))?;
    Ok(Exit::Done)
}
