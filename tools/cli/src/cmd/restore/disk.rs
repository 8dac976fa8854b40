//! `backstay restore disk`.

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use backstay_core::restore::{self, RestorePlan, Target};
use clap::ValueEnum;
use serde::Serialize;

use crate::cmd::view;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Stream, clean};
use crate::progress::Reporter;
use crate::signals::Signals;
use crate::units;

/// Write one disk of a recovery point to a file, a block device or stdout
///
/// A file gets its name only when it is whole: a failed restore leaves nothing behind.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay restore disk web01@latest:disk0 --to web01.raw
  backstay restore disk web01@2026-11-20 --to web01.qcow2
  backstay restore disk @b7f3k2:disk0 --to /dev/vg0/web01 --overwrite
  backstay restore disk web01 --to - | zstd > web01.raw.zst",
    &[
        Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::Denied, Exit::NotFound,
        Exit::InUse, Exit::Refused, Exit::NeedsConfirmation, Exit::Interrupted, Exit::Terminated,
    ]
))]
pub(crate) struct Args {
    /// The disk: MACHINE:DISK, MACHINE@POINT:DISK or @ID:DISK; without :DISK the only one
    what: String,

    /// A file, a block device, or - for stdout
    #[arg(long, value_name = "TARGET")]
    to: PathBuf,

    /// The format of the file [default: qcow2 if its name ends so, else raw]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,

    /// Replace the file, or overwrite the device
    #[arg(long)]
    overwrite: bool,
}

/// The format of what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Raw,
    Qcow2,
}

#[derive(Serialize)]
struct Document {
    point: String,
    machine: String,
    disk: String,
    target: String,
    format: &'static str,
    size_bytes: u64,
    data_bytes: u64,
    hole_bytes: u64,
    duration_seconds: f64,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let (target, format) = target(&args)?;
    let to_stdout = matches!(target, Target::Stdout);
    let device = matches!(target, Target::BlockDevice(_));
    let repository = ctx.open()?;
    let (point, disk) = view::find_disk(&repository.points()?, &args.what)?;
    let shown = args.to.display().to_string();
    if device {
        if !args.overwrite {
            return Err(CliError::new(
                Exit::InUse,
                "a block device is only written with --overwrite",
            )
            .what(shown)
            .hint("--overwrite      overwrites everything on it"));
        }
        ctx.confirm(&format!("everything on {shown} will be overwritten"), &shown)?;
    }
    let signals = Signals::listen()?;
    let reporter = Reporter::new(&ctx.global, Some(signals.clone()));
    let plan = RestorePlan { overwrite: args.overwrite, ..RestorePlan::new(target) };
    let report = restore::disk(&repository, &point, &disk, &plan, &reporter).map_err(|error| {
        // A reader that leaves early knows why; the exit code still says that it was not all.
        let reader_gone = to_stdout && is_broken_pipe(&error);
        let mut told = crate::cmd::stopped(error, &signals);
        told.quiet = reader_gone;
        if told.exit == Exit::InUse {
            told = told.hint("--overwrite      replaces what is there");
        }
        told
    })?;
    reporter.finish();
    let document = Document {
        point: point.id.to_string(),
        machine: point.machine.clone(),
        disk: disk.name.clone(),
        target: shown,
        format: if format == Format::Qcow2 { "qcow2" } else { "raw" },
        size_bytes: disk.size_bytes,
        data_bytes: report.data_bytes,
        hole_bytes: report.hole_bytes,
        duration_seconds: report.duration.as_secs_f64(),
    };
    let stream = if to_stdout { Stream::Stderr } else { Stream::Stdout };
    ctx.out.summary(stream, &document, |to| {
        to.push_str(&format!(
            "restored {}@{}:{} to {}  {}  in {} ({})\n",
            clean(&document.machine),
            point.id.short(),
            clean(&document.disk),
            clean(&document.target),
            units::size(document.size_bytes),
            units::span(document.duration_seconds),
            units::rate(document.size_bytes, document.duration_seconds),
        ));
    })?;
    Ok(Exit::Done)
}

fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(cause) = next {
        let io = cause.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe) {
            return true;
        }
        next = cause.source();
    }
    false
}

/// Where to, and in which format: an explicit format wins, then the file's name decides.
fn target(args: &Args) -> Result<(Target, Format), CliError> {
    let raw_only = |kind: &str| {
        if args.format == Some(Format::Qcow2) {
            return Err(CliError::usage(format!("qcow2 cannot be written to {kind}"))
                .what(args.to.display().to_string())
                .hint("--format raw"));
        }
        Ok(())
    };
    if args.to == Path::new("-") {
        raw_only("stdout")?;
        return Ok((Target::Stdout, Format::Raw));
    }
    let is_device =
        std::fs::metadata(&args.to).is_ok_and(|meta| meta.file_type().is_block_device());
    if is_device {
        raw_only("a block device")?;
        return Ok((Target::BlockDevice(args.to.clone()), Format::Raw));
    }
    let by_name = args.to.extension().is_some_and(|ext| ext.eq_ignore_ascii_case("qcow2"));
    let format = args.format.unwrap_or(if by_name { Format::Qcow2 } else { Format::Raw });
    Ok(match format {
        Format::Raw => (Target::RawFile(args.to.clone()), format),
        Format::Qcow2 => (Target::Qcow2File(args.to.clone()), format),
    })
}
