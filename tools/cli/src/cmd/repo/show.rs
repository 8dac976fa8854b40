//! `backstay repo show`.

use backstay_format::config::Encryption;
use backstay_store::{RepoStats, Repository};
use serde::Serialize;

use crate::cmd::repo::key::list::SlotView;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::field;
use crate::units;

/// Show what a repository is and what it holds
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay repo show
  backstay repo show --without-key --json",
    &[Exit::NoRepository, Exit::WrongKey, Exit::Damaged]
))]
pub(crate) struct Args {
    /// Show only what can be seen without a key
    #[arg(long)]
    without_key: bool,
}

#[derive(Serialize)]
struct Document {
    id: String,
    location: String,
    encryption: &'static str,
    chunk_size_bytes: u32,
    parity: bool,
    created: String,
    keys: Vec<SlotView>,
    contents: Option<Contents>,
}

#[derive(Serialize)]
struct Contents {
    points: u64,
    packs: u64,
    chunks: u64,
    stored_bytes: u64,
}

/// The name of a kind of encryption.
pub(super) fn encryption(kind: Encryption) -> &'static str {
    match kind {
        Encryption::Aes256Gcm => "aes-256-gcm",
        Encryption::None => "none",
    }
}

impl From<RepoStats> for Contents {
    fn from(stats: RepoStats) -> Self {
        Self {
            points: stats.points,
            packs: stats.packs,
            chunks: stats.chunks,
            stored_bytes: stats.stored_bytes,
        }
    }
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let location = ctx.location()?;
    let config = ctx.config(&location)?;
    let keys = Repository::key_slots(&location)?;
    let contents = if args.without_key { None } else { Some(Contents::from(ctx.open()?.stats()?)) };
    let document = Document {
        id: config.id.to_string(),
        location: location.to_string(),
        encryption: encryption(config.encryption),
        chunk_size_bytes: config.chunk_size.bytes(),
        parity: config.has_parity(),
        created: units::utc_time(config.created),
        keys: keys.iter().map(SlotView::from).collect(),
        contents,
    };
    ctx.out.report(&document, |to| {
        field(to, "location", &document.location);
        field(to, "id", &document.id);
        field(to, "created", &units::local_time(config.created));
        field(to, "encryption", document.encryption);
        field(to, "keys", &document.keys.len().to_string());
        field(to, "chunk size", &config.chunk_size.to_string());
        field(to, "parity", if document.parity { "every pack" } else { "none" });
        if let Some(contents) = &document.contents {
            field(to, "points", &contents.points.to_string());
            field(to, "packs", &contents.packs.to_string());
            field(to, "chunks", &contents.chunks.to_string());
            field(to, "stored", &units::size_exact(contents.stored_bytes));
        }
    })?;
    Ok(Exit::Done)
}
