//! `backstay backup`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use backstay_core::ErrorKind;
use backstay_core::backup::{self, BackupPlan};
use backstay_core::source::{ImageFormat, SourceSpec};
use clap::ValueEnum;
use jiff::Timestamp;
use serde::Serialize;

use crate::cmd::view::PointView;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Stream, clean};
use crate::progress::Reporter;
use crate::signals::Signals;
use crate::units;

/// Back up the disk images of a machine as one recovery point
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay backup web01.qcow2 --machine web01
  backstay backup system=/dev/vg0/db1 data=/srv/images/db1-data.raw --machine db1
  backstay backup top.qcow2 --backing base.qcow2 --machine web02 --note 'before the upgrade'",
    &[
        Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::Denied, Exit::NotFound,
        Exit::InUse, Exit::Refused, Exit::Interrupted, Exit::Terminated,
    ]
))]
pub(crate) struct Args {
    /// Image files or block devices, each as PATH or NAME=PATH; without a name they are called
    /// disk0, disk1, ... A path that holds a = is written ./PATH
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,

    /// The machine these disks belong to
    #[arg(long, short, value_name = "NAME")]
    machine: String,

    /// The format of the images, where it should not be found out
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,

    /// A backing file the images may use; any other is refused. May be given several times
    #[arg(long, value_name = "FILE")]
    backing: Vec<PathBuf>,

    /// A note kept with the recovery point
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,

    /// Keep the recovery point even if an image is in use or changes while it is read; it is then
    /// marked as changing
    #[arg(long)]
    allow_changed: bool,

    /// Threads that read and store, at most 8 [default: one per core]
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,
}

/// The format of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Raw,
    Qcow2,
    Vmdk,
    Vhdx,
    Vdi,
}

impl From<Format> for ImageFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Raw => Self::Raw,
            Format::Qcow2 => Self::Qcow2,
            Format::Vmdk => Self::Vmdk,
            Format::Vhdx => Self::Vhdx,
            Format::Vdi => Self::Vdi,
        }
    }
}

#[derive(Serialize)]
struct Document {
    point: PointView,
    known_chunks: u64,
    zero_chunks: u64,
    duration_seconds: f64,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let plan = BackupPlan {
        note: args.note.clone(),
        workers: args.workers,
        allow_changed: args.allow_changed,
        ..BackupPlan::new(args.machine.clone(), sources(&args)?, Timestamp::now())
    };
    let repository = ctx.open()?;
    let signals = Signals::listen()?;
    let reporter = Reporter::new(&ctx.global, Some(signals.clone()));
    let report = backup::run(&repository, &plan, &reporter).map_err(|error| {
        let changing = matches!(error.kind(), ErrorKind::SourceChanged | ErrorKind::InUse);
        let told = crate::cmd::stopped(error, &signals);
        if changing { told.hint("--allow-changed      keeps it, marked as changing") } else { told }
    })?;
    reporter.finish();
    let document = Document {
        point: PointView::new(&report.point, &[]),
        known_chunks: report.known_chunks,
        zero_chunks: report.zero_chunks,
        duration_seconds: report.duration.as_secs_f64(),
    };
    ctx.out.summary(Stream::Stdout, &document, |to| summary(to, &document))?;
    Ok(Exit::Done)
}

fn summary(to: &mut String, document: &Document) {
    let point = &document.point;
    let plural = if point.disks.len() == 1 { "disk" } else { "disks" };
    to.push_str(&format!(
        "point  @{}  {}  {} {plural}, {}\n",
        point.short_id,
        clean(&point.machine),
        point.disks.len(),
        units::size(point.size_bytes),
    ));
    to.push_str(&format!(
        "read {}  holes {}  new {}  stored {}  in {} ({})\n",
        units::size(point.read_bytes),
        units::size(point.hole_bytes),
        units::size(point.new_bytes),
        units::size(point.stored_bytes),
        units::span(document.duration_seconds),
        units::rate(point.read_bytes, document.duration_seconds),
    ));
    to.push_str(&format!("look at it:  backstay show @{}\n", point.short_id));
}

/// What the arguments name.
fn sources(args: &Args) -> Result<Vec<SourceSpec>, CliError> {
    let parsed = args.images.iter().map(|image| {
        let spec = SourceSpec::parse(image).map_err(|e| CliError::from(e).what(image.clone()))?;
        Ok(SourceSpec {
            format: args.format.map(ImageFormat::from),
            backing: args.backing.clone(),
            ..spec
        })
    });
    parsed.collect()
}
