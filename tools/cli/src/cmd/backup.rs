//! `backstay backup`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use backstay_core::ErrorKind;
use backstay_core::backup::{self, BackupPlan, BackupReport, ChangeMap, MapUse};
use backstay_core::ranges::Ranges;
use backstay_core::source::{ImageFormat, SourceSpec};
use backstay_store::DiskRecord;
use clap::ValueEnum;
use jiff::Timestamp;
use serde::Serialize;

use crate::change_map;
use crate::cmd::view::{self, PointView};
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
  backstay backup top.qcow2 --backing base.qcow2 --machine web02 --note 'before the upgrade'
  nbdinfo --json --map=qemu:dirty-bitmap:b0 nbd://localhost > changes.json
  backstay backup nbd://localhost --machine web01 --changed-since web01 --change-map changes.json",
    &[
        Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::Denied, Exit::NotFound,
        Exit::InUse, Exit::Refused, Exit::Interrupted, Exit::Terminated,
    ]
))]
pub(crate) struct Args {
    /// Image files, block devices or NBD exports (nbd://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH,
    /// nbds:// for encrypted ones), each as PATH or NAME=PATH; without a name they are called
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

    /// The recovery point that the change maps are relative to
    #[arg(long, value_name = "POINT", requires = "change_maps")]
    changed_since: Option<String>,

    /// A JSON file that lists what may have changed since then, as FILE or DISK=FILE: only that is
    /// read, and everything else is taken over. [{"offset": 0, "length": 65536}, ...], or what
    /// nbdinfo prints of a dirty bitmap. A disk whose map cannot be relied upon is read as a whole
    #[arg(long = "change-map", value_name = "FILE", requires = "changed_since")]
    change_maps: Vec<String>,

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
    kept_bytes: u64,
    /// What became of the change map of each disk; only when maps were given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    change_maps: Vec<MapView>,
    duration_seconds: f64,
}

#[derive(Serialize)]
struct MapView {
    disk: String,
    used: bool,
    /// Why it was not.
    reason: Option<String>,
}

/// One entry for each disk that had a map.
fn map_views(report: &BackupReport) -> Vec<MapView> {
    let view = |(disk, map): (&DiskRecord, &MapUse)| {
        let reason = match map {
            MapUse::NotGiven => return None,
            MapUse::Used => None,
            MapUse::Refused(why) => Some(why.clone()),
        };
        Some(MapView { disk: disk.name.clone(), used: reason.is_none(), reason })
    };
    report.point.disks.iter().zip(&report.maps).filter_map(view).collect()
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let mut plan = BackupPlan {
        note: args.note.clone(),
        workers: args.workers,
        allow_changed: args.allow_changed,
        ..BackupPlan::new(args.machine.clone(), sources(&args)?, Timestamp::now())
    };
    let maps = change_maps(&args, &plan)?;
    let repository = ctx.open()?;
    if let Some(since) = &args.changed_since {
        let since = view::find_point(&repository.points()?, since)?.id;
        for (disk, changed) in maps {
            plan.sources[disk].changes = Some(ChangeMap { since, changed });
        }
    }
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
        kept_bytes: report.kept_bytes,
        change_maps: map_views(&report),
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
    if document.kept_bytes > 0 {
        to.push_str(&format!("unchanged, not read  {}\n", units::size(document.kept_bytes)));
    }
    to.push_str(&format!("look at it:  backstay show @{}\n", point.short_id));
}

/// The change maps that the arguments name, each with the position of its disk.
fn change_maps(args: &Args, plan: &BackupPlan) -> Result<Vec<(usize, Ranges)>, CliError> {
    let names = plan.disk_names()?;
    let mut maps: Vec<(usize, Ranges)> = Vec::new();
    for text in &args.change_maps {
        let named = SourceSpec::parse(text).map_err(|e| CliError::from(e).what(text.clone()))?;
        let disk = match &named.name {
            Some(name) => names.iter().position(|n| n == name),
            None => (names.len() == 1).then_some(0),
        };
        let disk = disk.ok_or_else(|| {
            CliError::usage("a change map must name its disk, as DISK=FILE")
                .what(text.clone())
                .hint(format!("the disks are {}", names.join(", ")))
        })?;
        if maps.iter().any(|(other, _)| *other == disk) {
            return Err(CliError::usage("a disk has two change maps").what(names[disk].clone()));
        }
        maps.push((disk, change_map::read(&named.path)?));
    }
    Ok(maps)
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
