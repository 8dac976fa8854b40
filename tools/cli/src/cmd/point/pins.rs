//! `backstay point pins`.

use backstay_store::{PinInfo, PointList};
use serde::Serialize;

use crate::cmd::view;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Align, Table};
use crate::units;

/// List the pins, oldest first
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay point pins
  backstay point pins --json",
    &[Exit::NoRepository, Exit::WrongKey, Exit::Damaged]
))]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Document {
    pins: Vec<PinView>,
}

/// A pin in JSON.
#[derive(Debug, Serialize)]
pub(super) struct PinView {
    pub(super) id: String,
    pub(super) short_id: String,
    pub(super) point: String,
    /// Nothing where the point's record cannot be read, or is gone.
    pub(super) machine: Option<String>,
    pub(super) by: String,
    pub(super) reason: String,
    pub(super) since: String,
    #[serde(skip)]
    short_point: String,
}

impl PinView {
    /// The view of a pin; `short_id` is long enough to name it among `all`.
    pub(super) fn new(pin: &PinInfo, all: &[PinInfo], list: &PointList) -> Self {
        let point = list.points.iter().find(|point| point.id == pin.point);
        Self {
            id: pin.id.to_string(),
            short_id: view::short_among(pin.id, all.iter().map(|other| other.id)),
            point: pin.point.to_string(),
            machine: point.map(|point| point.machine.clone()),
            by: pin.cause.by.clone(),
            reason: pin.cause.reason.clone(),
            since: units::utc_time(pin.time),
            short_point: point
                .map_or_else(|| pin.point.short(), |point| view::short_id(point, &list.points)),
        }
    }

    /// The point it keeps, as a user would name it.
    pub(super) fn name(&self) -> String {
        format!("{}@{}", self.machine.as_deref().unwrap_or_default(), self.short_point)
    }
}

pub(crate) fn run(ctx: &Ctx, _args: Args) -> Result<Exit, CliError> {
    let repository = ctx.open()?;
    let mut pins = repository.pins().map_err(|error| {
        CliError::from(error).hint("backstay point unpin ID      gives that pin up")
    })?;
    pins.sort_by_key(|pin| (pin.time, pin.id));
    let list = repository.points()?;
    let document =
        Document { pins: pins.iter().map(|pin| PinView::new(pin, &pins, &list)).collect() };
    ctx.out.report(&document, |to| {
        if pins.is_empty() {
            to.push_str("no recovery point is pinned\n");
            return;
        }
        let mut table = Table::new(&[
            ("PIN", Align::Left),
            ("MACHINE", Align::Left),
            ("POINT", Align::Left),
            ("SINCE", Align::Left),
            ("BY", Align::Left),
            ("REASON", Align::Left),
        ]);
        for (pin, view) in pins.iter().zip(&document.pins) {
            table.row([
                view.short_id.clone(),
                view.machine.clone().unwrap_or_else(|| "-".to_owned()),
                format!("@{}", view.short_point),
                units::local_time(pin.time),
                view.by.clone(),
                view.reason.clone(),
            ]);
        }
        table.render(to);
    })?;
    Ok(Exit::Done)
}
