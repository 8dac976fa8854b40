//! `backstay mount end`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use backstay_api::mountd::{DiskView, MountState, MountView, OverlayFate, Request};
use backstay_core::save::{self, SavePlan};
use backstay_store::PointId;
use jiff::Timestamp;
use serde::Serialize;

use crate::cmd::stopped;
use crate::cmd::view::PointView;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::mountd;
use crate::output::{Stream, clean};
use crate::progress::Reporter;
use crate::signals::Signals;
use crate::units;

/// End a mount
///
/// What was written to it must not get lost by accident: if something was, say whether it is saved as a new
/// recovery point, kept to go on with later, or thrown away. Saving reads only what was written; if it is
/// interrupted the overlay is kept. Ending a mount that has ended is success.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay mount end m-4x7kq2
  backstay mount end m-4x7kq2 --save --note 'after the repair'
  backstay mount end m-4x7kq2 --discard --force",
    &[
        Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::Denied, Exit::NotFound, Exit::InUse,
        Exit::Refused, Exit::NeedsConfirmation,
    ]
))]
pub(crate) struct Args {
    /// The mount's name, as mount list shows it
    mount: String,

    /// Save the disks as they are now, and the point's other disks, as one new recovery point
    #[arg(long, group = "fate")]
    save: bool,

    /// Keep what was written; mount resume goes on with it
    #[arg(long, group = "fate")]
    keep: bool,

    /// Throw away what was written
    #[arg(long, group = "fate")]
    discard: bool,

    /// Cut off clients that are attached
    #[arg(long)]
    force: bool,

    /// With --save: the machine of the new point [default: the same]
    #[arg(long, value_name = "NAME", requires = "save")]
    machine: Option<String>,

    /// With --save: a note kept with the new point
    #[arg(long, value_name = "TEXT", requires = "save")]
    note: Option<String>,
}

#[derive(Serialize)]
struct Document<'a> {
    mount: &'a MountView,
    /// The recovery point that was made of it.
    saved: Option<PointView>,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let end = |overlay| Request::End { id: args.mount.clone(), overlay, force: args.force };
    if args.save {
        return save(ctx, &args, &end);
    }
    let fate = match (args.keep, args.discard) {
        (true, _) => Some(OverlayFate::Keep),
        (_, true) => Some(OverlayFate::Discard),
        _ => None,
    };
    let view = mountd::ask_mount(ctx, &end(fate))?;
    told(ctx, &view, None)
}

/// Stops serving, makes the point, and only then lets go of the overlay.
fn save(
    ctx: &Ctx,
    args: &Args,
    end: &dyn Fn(Option<OverlayFate>) -> Request,
) -> Result<Exit, CliError> {
    let before = mountd::ask_mount(ctx, &Request::Show { id: args.mount.clone(), secrets: false })?;
    let overlay = |disk: &DiskView| {
        Some((disk.name.clone(), PathBuf::from(&disk.overlay.as_ref()?.directory)))
    };
    let overlays: BTreeMap<String, PathBuf> = before.disks.iter().filter_map(overlay).collect();
    if overlays.is_empty() {
        return Err(CliError::usage("it cannot be written to, so there is nothing to save")
            .what(args.mount.clone()));
    }
    let location = Ctx::parse_location(&before.repository)?;
    let repository = ctx.open_at(&location, None)?;
    let signals = Signals::listen()?;
    mountd::ask_mount(ctx, &end(Some(OverlayFate::Keep)))?;
    let point: PointId = before
        .point
        .parse()
        .map_err(|_| CliError::new(Exit::Failed, "the mount names no recovery point"))?;
    let plan = SavePlan {
        point,
        overlays,
        machine: args.machine.clone(),
        note: args.note.clone(),
        time: Timestamp::now(),
    };
    let reporter = Reporter::new(&ctx.global, Some(signals.clone()));
    let saved = save::run(&repository, &plan, &reporter).map_err(|error| {
        stopped(error, &signals).hint(format!(
            "backstay mount resume {}      goes on with what was written: nothing is lost",
            args.mount
        ))
    });
    reporter.finish();
    let saved = saved?;
    let view = mountd::ask_mount(ctx, &end(Some(OverlayFate::Discard)))?;
    let all = repository.points()?.points;
    told(ctx, &view, Some(PointView::new(&saved.point, &all)))
}

fn told(ctx: &Ctx, view: &MountView, saved: Option<PointView>) -> Result<Exit, CliError> {
    let document = Document { mount: view, saved };
    ctx.out.summary(Stream::Stdout, &document, |to| {
        if let Some(point) = &document.saved {
            let size = units::size(point.new_bytes);
            to.push_str(&format!(
                "saved as {}@{}, {size} new\n",
                clean(&point.machine),
                point.short_id
            ));
        }
        if view.state == MountState::Kept {
            to.push_str(&format!("ended {}; what was written is kept\n", view.id));
            to.push_str(&format!("go on with it:  backstay mount resume {}\n", view.id));
            to.push_str(&format!("throw it away:  backstay mount end {} --discard\n", view.id));
        } else {
            to.push_str(&format!("ended {}\n", view.id));
        }
    })?;
    Ok(Exit::Done)
}
