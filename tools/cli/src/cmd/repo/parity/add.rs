//! `backstay repo parity add`.

use backstay_store::ErrorKind;
use serde::Serialize;

use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Stream, field};
use crate::progress::Reporter;
use crate::signals::Signals;
use crate::units;

/// Give parity to every pack that has none
///
/// Takes 3.5 % more space. With it `repo repair` rebuilds packs in which up to 3 % of the 4 KiB
/// blocks are damaged, without any other source. Damaged packs get none: repair them first. In a
/// repository made with `repo init --parity` backups write it themselves.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay repo parity add",
    &[
        Exit::Partial, Exit::NoRepository, Exit::WrongKey, Exit::Denied, Exit::Refused,
        Exit::Interrupted, Exit::Terminated,
    ]
))]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Document {
    packs: u64,
    added: u64,
    stored_bytes: u64,
    /// Packs that are damaged and got none.
    left_out: u64,
}

pub(crate) fn run(ctx: &Ctx, _args: Args) -> Result<Exit, CliError> {
    let repository = ctx.open()?;
    let signals = Signals::listen()?;
    let reporter = Reporter::new(&ctx.global, Some(signals.clone()));
    let report = repository.add_parity(&reporter).map_err(|error| match signals.caught() {
        Some(exit) if error.kind() == ErrorKind::Aborted => {
            CliError::new(exit, "stopped as asked; the next run goes on from here")
        }
        _ => CliError::from(error).what(repository.location().to_string()),
    })?;
    reporter.finish();
    let document = Document {
        packs: report.packs,
        added: report.added,
        stored_bytes: report.stored_bytes,
        left_out: report.left_out,
    };
    ctx.out.summary(Stream::Stdout, &document, |to| {
        let text = format!("{} of {} packs", document.added, document.packs);
        field(to, "added to", &text);
        field(to, "stored", &units::size(document.stored_bytes));
        if document.left_out > 0 {
            let text = format!("{} damaged packs; backstay repo repair", document.left_out);
            field(to, "left out", &text);
        }
    })?;
    Ok(if document.left_out > 0 { Exit::Partial } else { Exit::Done })
}
