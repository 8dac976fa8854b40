//! `backstay list`.

use serde::Serialize;

use crate::cmd::keepers::{self, Keepers};
use crate::cmd::view::PointView;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Align, Table, clean, note};
use crate::units;

/// List recovery points, oldest first
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay list
  backstay list web01 --json",
    &[Exit::Partial, Exit::NoRepository, Exit::WrongKey, Exit::NotFound]
))]
pub(crate) struct Args {
    /// Only those of this machine
    machine: Option<String>,
}

#[derive(Serialize)]
struct Document {
    points: Vec<PointView>,
    damaged: Vec<DamagedView>,
}

#[derive(Serialize)]
struct DamagedView {
    id: String,
    message: String,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let repository = ctx.open()?;
    let list = repository.points()?;
    let wanted = |machine: &str| args.machine.as_deref().is_none_or(|name| name == machine);
    let shown: Vec<_> = list.points.iter().filter(|point| wanted(&point.machine)).collect();
    if let (Some(machine), true, true) = (&args.machine, shown.is_empty(), list.damaged.is_empty())
    {
        return Err(CliError::new(Exit::NotFound, "there is no recovery point of this machine")
            .what(machine)
            .hint("backstay list      shows all recovery points"));
    }
    // What cannot be read of the keepers hides no point.
    let keepers = Keepers::read(&repository);
    let view = |point| {
        let mut view = PointView::new(point, &list.points);
        view.kept_by = Some(keepers.as_ref().ok().map(|keepers| keepers.of(point.id)));
        view
    };
    let document = Document {
        points: shown.iter().map(|point| view(point)).collect(),
        damaged: list
            .damaged
            .iter()
            .map(|(id, error)| DamagedView { id: id.to_string(), message: error.to_string() })
            .collect(),
    };
    ctx.out.report(&document, |to| {
        if shown.is_empty() && document.damaged.is_empty() {
            to.push_str("there are no recovery points yet\n");
            to.push_str("make one:  backstay backup IMAGE --machine NAME\n");
            return;
        }
        let mut table = Table::new(&[
            ("MACHINE", Align::Left),
            ("POINT", Align::Left),
            ("TIME", Align::Left),
            ("DISKS", Align::Right),
            ("SIZE", Align::Right),
            ("NEW", Align::Right),
            ("KEPT BY", Align::Left),
            ("NOTE", Align::Left),
        ]);
        for (point, view) in shown.iter().zip(&document.points) {
            table.row([
                point.machine.clone(),
                format!("@{}", view.short_id),
                units::local_time(point.time),
                point.disks.len().to_string(),
                units::size(view.size_bytes),
                units::size(point.stats.new_bytes),
                view.kept_by.as_ref().map_or("", keepers::mark).to_owned(),
                point.note.clone().unwrap_or_default(),
            ]);
        }
        table.render(to);
    })?;
    if document.damaged.is_empty() && keepers.is_ok() {
        return Ok(Exit::Done);
    }
    if !ctx.out.json {
        keepers::tell_unknown(&keepers);
        tell_damaged(&document.damaged);
    }
    Ok(Exit::Partial)
}

fn tell_damaged(damaged: &[DamagedView]) {
    for point in damaged {
        let message = clean(&point.message);
        note(&format!("warning: point {} cannot be read: {message}", point.id));
    }
    if !damaged.is_empty() {
        note("find out more:  backstay repo check");
    }
}
