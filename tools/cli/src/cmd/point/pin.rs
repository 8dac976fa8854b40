//! `backstay point pin`.

use backstay_store::Cause;
use serde::Serialize;

use crate::cmd::keepers;
use crate::cmd::point::pins::PinView;
use crate::cmd::view;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Stream, clean};

/// Keep a recovery point until its pin is taken away
///
/// A pinned point is neither removed by hand nor by rules. A point may have several pins, each with
/// a reason of its own.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay point pin web01@2026-11-20 --reason 'audit of November'",
    &[
        Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::Denied, Exit::NotFound,
        Exit::Refused,
    ]
))]
pub(crate) struct Args {
    /// The recovery point: MACHINE, MACHINE@latest, MACHINE@TIME or @ID
    point: String,

    /// Why it must stay
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

#[derive(Serialize)]
struct Document {
    pin: PinView,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    if args.reason.trim().is_empty() {
        return Err(CliError::usage("a pin needs a reason: somebody will ask for it one day")
            .hint("--reason 'audit of November'"));
    }
    let repository = ctx.open()?;
    let list = repository.points()?;
    let point = view::find_point(&list, &args.point)?;
    let cause = Cause { by: keepers::me(), reason: args.reason };
    let pin = repository
        .pin(point.id, &cause)
        .map_err(|error| CliError::from(error).what(args.point.clone()))?;
    let pins = repository.pins()?;
    let document = Document { pin: PinView::new(&pin, &pins, &list) };
    ctx.out.summary(Stream::Stdout, &document, |to| {
        let pin = &document.pin;
        to.push_str(&format!("pinned {}: {}\n", clean(&pin.name()), clean(&pin.reason)));
        to.push_str(&format!("take it away:  backstay point unpin {}\n", pin.short_id));
    })?;
    Ok(Exit::Done)
}
