//! `backstay list`.

use serde::Serialize;

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
    let list = ctx.open()?.points()?;
    let wanted = |machine: &str| args.machine.as_deref().is_none_or(|name| name == machine);
    let shown: Vec<_> = list.points.iter().filter(|point| wanted(&point.machine)).collect();
    if let (Some(machine), true, true) = (&args.machine, shown.is_empty(), list.damaged.is_empty())
    {
        return Err(CliError::new(Exit::NotFound, "there is no recovery point of this machine")
            .what(machine)
            .hint("backstay list      shows all recovery points"));
    }
    let document = Document {
        points: shown.iter().map(|point| PointView::new(point, &list.points)).collect(),
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
                point.note.clone().unwrap_or_default(),
            ]);
        }
        table.render(to);
    })?;
    if document.damaged.is_empty() {
        return Ok(Exit::Done);
    }
    if !ctx.out.json {
        for damaged in &document.damaged {
            note(&format!(
                "warning: point {} cannot be read: {}",
                damaged.id,
                clean(&damaged.message)
            ));
        }
        note("find out more:  backstay repo check");
    }
    Ok(Exit::Partial)
}
