//! `backstay repo repair`.

use std::path::PathBuf;
use std::sync::Arc;

use backstay_blockdev::BlockDevice;
use backstay_core::source::{self, SourceSpec};
use backstay_store::{
    ChunkSource, ErrorKind, ImageBytes, ImageSource, RepairOptions, RepairReport, RepositorySource,
};
use serde::Serialize;

use super::finding::{self, Finding};
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{field, note};
use crate::progress::Reporter;
use crate::secret::Source;
use crate::signals::Signals;
use crate::units;

/// Store again what was lost, from whoever still has it
///
/// Reads everything, puts what is bad into quarantine, and looks for what no whole copy is left of:
/// in the parity of packs, in a copy of the repository or another one that has the same machine
/// (--from), and in images of the machines' disks (--from-image). Every byte is compared with its
/// id before it counts. Nothing is ever deleted. At the end everything is looked at once more: what
/// is still damaged is listed, and the exit code tells.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay repo repair --dry-run
  backstay repo repair --from /mnt/offsite --from-key-file /root/offsite.key
  backstay repo repair --from-image web01:disk0=/var/lib/libvirt/images/web01.qcow2",
    &[
        Exit::NoRepository, Exit::WrongKey, Exit::Damaged, Exit::Denied, Exit::NotFound,
        Exit::Refused, Exit::Interrupted, Exit::Terminated,
    ]
))]
pub(crate) struct Args {
    /// Another repository that may have what is lost: a copy of this one, or one with other keys
    #[arg(long, value_name = "LOCATION")]
    from: Option<String>,

    /// Unlock that repository with the content of this file. Without an option of its own it is
    /// unlocked as this one
    #[arg(long, value_name = "FILE", group = "from_key", requires = "from")]
    from_key_file: Option<PathBuf>,

    /// Unlock that repository with the passphrase in this file
    #[arg(long, value_name = "FILE", group = "from_key", requires = "from")]
    from_passphrase_file: Option<PathBuf>,

    /// Unlock that repository with the passphrase this shell command prints
    #[arg(long, value_name = "COMMAND", group = "from_key", requires = "from")]
    from_passphrase_command: Option<String>,

    /// An image of a machine's disk, of today or any other day; may be given several times
    #[arg(long, value_name = "MACHINE:DISK=FILE", value_parser = named_image)]
    from_image: Vec<NamedImage>,

    /// Read no data first: repair what is known to be bad, and what is missing
    #[arg(long)]
    known: bool,

    /// Only tell what could be repaired; write nothing
    #[arg(long)]
    dry_run: bool,
}

/// An image with the disk it is of.
#[derive(Debug, Clone)]
struct NamedImage {
    machine: String,
    disk: String,
    image: String,
}

fn named_image(text: &str) -> Result<NamedImage, String> {
    let wrong =
        || "write MACHINE:DISK=FILE, for example web01:disk0=/images/web01.qcow2".to_owned();
    let (name, image) = text.split_once('=').ok_or_else(wrong)?;
    let (machine, disk) = name.rsplit_once(':').ok_or_else(wrong)?;
    if machine.is_empty() || disk.is_empty() || image.is_empty() {
        return Err(wrong());
    }
    Ok(NamedImage { machine: machine.into(), disk: disk.into(), image: image.into() })
}

#[derive(Serialize)]
struct Document {
    /// `pass`: nothing is damaged any more. On a dry run: nothing would be.
    verdict: &'static str,
    dry_run: bool,
    read_packs: u64,
    read_bytes: u64,
    quarantined_packs: u64,
    quarantined_chunks: u64,
    /// What was damaged before.
    found: Vec<Finding>,
    found_left_out: u64,
    /// Chunks and tree nodes that no whole copy was left of.
    wanted_chunks: u64,
    healed: Vec<Healed>,
    parity_renewed: u64,
    stored_bytes: u64,
    /// What is still damaged.
    left: Vec<Finding>,
    left_out: u64,
}

#[derive(Serialize)]
struct Healed {
    by: String,
    chunks: u64,
    bytes: u64,
}

/// An opened image, as the store reads it.
#[derive(Debug)]
struct Device {
    device: Arc<dyn BlockDevice>,
    size_bytes: u64,
}

impl ImageBytes for Device {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.device.read_at(offset, buf).map_err(std::io::Error::other)
    }
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let repository = ctx.open()?;
    let mut options = RepairOptions {
        sources: sources(ctx, &args)?,
        dry_run: args.dry_run,
        read_data: !args.known,
    };
    let signals = Signals::listen()?;
    let reporter = Reporter::new(&ctx.global, Some(signals.clone()));
    let report =
        repository.repair(&mut options, &reporter).map_err(|error| match signals.caught() {
            Some(exit) if error.kind() == ErrorKind::Aborted => {
                CliError::new(exit, "stopped as asked; run it again to go on")
            }
            _ => CliError::from(error).what(repository.location().to_string()),
        })?;
    reporter.finish();
    let document = Document::from(report);
    ctx.out.report(&document, |to| show(to, &document, ctx.out.quiet))?;
    Ok(if document.verdict == "pass" { Exit::Done } else { Exit::Damaged })
}

fn sources(ctx: &Ctx, args: &Args) -> Result<Vec<Box<dyn ChunkSource>>, CliError> {
    let mut sources: Vec<Box<dyn ChunkSource>> = Vec::new();
    if let Some(text) = &args.from {
        let other = ctx.open_at(&Ctx::parse_location(text)?, args.key())?;
        sources.push(Box::new(RepositorySource::new(other)));
    }
    for named in &args.from_image {
        let open = source::open(&SourceSpec::new(&named.image))
            .map_err(|error| CliError::from(error).what(named.image.clone()))?;
        for warning in &open.warnings {
            note(&format!("warning: {}", crate::output::clean(warning)));
        }
        let device = Device { device: open.device, size_bytes: open.size_bytes };
        let source = ImageSource::new(&named.machine, &named.disk, Box::new(device));
        sources.push(Box::new(source));
    }
    Ok(sources)
}

impl Args {
    fn key(&self) -> Option<Source> {
        let file = self.from_key_file.clone().map(Source::KeyFile);
        file.or_else(|| self.from_passphrase_file.clone().map(Source::PassphraseFile))
            .or_else(|| self.from_passphrase_command.clone().map(Source::PassphraseCommand))
    }
}

impl From<RepairReport> for Document {
    fn from(report: RepairReport) -> Self {
        let fails = !report.left.is_empty() || report.left_out > 0;
        let healed = report.healed.into_iter();
        Self {
            verdict: if fails { "fail" } else { "pass" },
            dry_run: report.dry_run,
            read_packs: report.found.packs,
            read_bytes: report.found.read_bytes,
            quarantined_packs: report.found.quarantined_packs,
            quarantined_chunks: report.found.quarantined_chunks,
            found: report.found.damage.into_iter().map(Finding::from).collect(),
            found_left_out: report.found.damage_left_out,
            wanted_chunks: report.wanted,
            healed: healed.map(|h| Healed { by: h.by, chunks: h.chunks, bytes: h.bytes }).collect(),
            parity_renewed: report.parity_renewed,
            stored_bytes: report.stored_bytes,
            left: report.left.into_iter().map(Finding::from).collect(),
            left_out: report.left_out,
        }
    }
}

fn show(to: &mut String, document: &Document, quiet: bool) {
    if !quiet {
        finding::show(to, "was", &document.found, document.found_left_out);
        let would = if document.dry_run { " (a dry run: nothing was written)" } else { "" };
        let read = format!("{} packs, {}", document.read_packs, units::size(document.read_bytes));
        field(to, "read", &read);
        field(to, "lost", &format!("{} chunks had no whole copy", document.wanted_chunks));
        for healed in &document.healed {
            let amount = format!("{} chunks, {}", healed.chunks, units::size(healed.bytes));
            field(to, "healed", &format!("{amount}, from {}{would}", healed.by));
        }
        if document.parity_renewed > 0 {
            let text = format!("made anew for {} packs{would}", document.parity_renewed);
            field(to, "parity", &text);
        }
        if document.stored_bytes > 0 {
            field(to, "stored", &units::size(document.stored_bytes));
        }
    }
    finding::show(to, "left", &document.left, document.left_out);
    if !quiet {
        to.push_str(&format!("verdict: {}\n", document.verdict));
    }
}

#[cfg(test)]
mod tests {
    use super::named_image;

    #[test]
    fn images_are_named_with_machine_and_disk() {
        let named = named_image("a:b:disk0=/x/y=z.raw").unwrap();
        assert_eq!((&*named.machine, &*named.disk, &*named.image), ("a:b", "disk0", "/x/y=z.raw"));
        for bad in ["", "web01", "web01=/x", "web01:disk0", ":disk0=/x", "web01:=/x", "web01:d="] {
            assert!(named_image(bad).is_err(), "{bad}");
        }
    }
}
