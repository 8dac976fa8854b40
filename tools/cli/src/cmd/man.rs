//! `backstay man`.

use std::path::PathBuf;

use clap::CommandFactory as _;
use serde::Serialize;

use crate::cli::Cli;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::Stream;

/// Write the manual pages of all commands into a directory
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail("  backstay man /usr/local/share/man/man1", &[Exit::Denied]))]
pub(crate) struct Args {
    /// The directory; made if it is missing. Pages in it are replaced
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

#[derive(Serialize)]
struct Document {
    directory: String,
    files: Vec<String>,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let failed = |error: std::io::Error| {
        CliError::io("cannot write the manual pages", &error)
            .what(args.directory.display().to_string())
    };
    std::fs::create_dir_all(&args.directory).map_err(failed)?;
    let mut document =
        Document { directory: args.directory.display().to_string(), files: Vec::new() };
    // Each page names its sections and its parent from the built tree.
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    let mut open = vec![root];
    while let Some(command) = open.pop() {
        let file =
            format!("{}.1", command.get_display_name().unwrap_or_else(|| command.get_name()));
        let mut page = Vec::new();
        clap_mangen::Man::new(command.clone()).render(&mut page).map_err(failed)?;
        std::fs::write(args.directory.join(&file), page).map_err(failed)?;
        document.files.push(file);
        open.extend(command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned());
    }
    document.files.sort();
    ctx.out.summary(Stream::Stdout, &document, |to| {
        to.push_str(&format!(
            "wrote {} pages to {}\nread one:  man {}/backstay.1\n",
            document.files.len(),
            document.directory,
            document.directory
        ));
    })?;
    Ok(Exit::Done)
}
