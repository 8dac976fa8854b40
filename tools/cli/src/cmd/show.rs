//! `backstay show`.

use crate::cmd::keepers::{self, Keepers};
use crate::cmd::view::{self, PointView};
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Align, Table, field};
use crate::units;

/// Show one recovery point and its disks
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay show web01@latest
  backstay show @b7f3k2 --json",
    &[Exit::Partial, Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::NotFound]
))]
pub(crate) struct Args {
    /// The recovery point: MACHINE, MACHINE@latest, MACHINE@TIME or @ID
    point: String,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let repository = ctx.open()?;
    let list = repository.points()?;
    let point = view::find_point(&list, &args.point)?;
    let mut document = PointView::new(&point, &list.points);
    let keepers = Keepers::read(&repository);
    document.kept_by = Some(keepers.as_ref().ok().map(|keepers| keepers.of(point.id)));
    ctx.out.report(&document, |to| {
        field(to, "machine", &document.machine);
        field(to, "point", &format!("@{}", document.id));
        field(to, "time", &units::local_time(point.time));
        field(to, "consistency", &document.consistency);
        field(to, "made by", &format!("{} on {}", document.tool, document.host));
        if let Some(parent) = &document.parent {
            field(to, "before it", &format!("@{parent}"));
        }
        if let Some(from) = &document.copied_from {
            field(to, "copy of", &format!("@{} of repository {}", from.point, from.repository));
        }
        if let Some(note) = &document.note {
            field(to, "note", note);
        }
        for keeper in document.kept_by.iter().flatten().flatten() {
            field(to, "kept", &keeper.told());
            field(to, "", &format!("until  {}", keeper.release));
        }
        field(to, "size", &units::size_exact(document.size_bytes));
        field(to, "read", &units::size_exact(document.read_bytes));
        field(to, "holes", &units::size_exact(document.hole_bytes));
        let new =
            format!("{} in {} chunks", units::size_exact(document.new_bytes), document.new_chunks);
        field(to, "new", &new);
        field(to, "stored", &units::size_exact(document.stored_bytes));
        to.push('\n');
        let mut table =
            Table::new(&[("DISK", Align::Left), ("SIZE", Align::Right), ("SOURCE", Align::Left)]);
        for disk in &document.disks {
            table.row([disk.name.clone(), units::size(disk.size_bytes), disk.source.clone()]);
        }
        table.render(to);
    })?;
    if keepers.is_ok() {
        return Ok(Exit::Done);
    }
    if !ctx.out.json {
        keepers::tell_unknown(&keepers);
    }
    Ok(Exit::Partial)
}
