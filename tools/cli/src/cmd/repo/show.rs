//! `backstay repo show`.

use backstay_format::config::Encryption;
use backstay_store::{LastCollection, Repository};
use serde::Serialize;

use crate::cmd::repo::key::list::SlotView;
use crate::cmd::session::SessionView;
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
    /// Removed, and not yet taken by a collection.
    removed_points: u64,
    pins: u64,
    sessions: Vec<SessionView>,
    /// Nothing if there was none.
    last_collection: Option<CollectionView>,
}

#[derive(Serialize)]
struct CollectionView {
    collection: u64,
    /// Null: it waits for sessions, or was interrupted; the next `backstay gc` goes on with it.
    ended: Option<String>,
    planned: Option<String>,
    /// Deleted, or condemned when it has not ended.
    packs: u64,
    #[serde(skip)]
    told: String,
}

/// The name of a kind of encryption.
pub(super) fn encryption(kind: Encryption) -> &'static str {
    match kind {
        Encryption::Aes256Gcm => "aes-256-gcm",
        Encryption::None => "none",
    }
}

impl Contents {
    fn read(repository: &Repository) -> Result<Self, CliError> {
        let stats = repository.stats()?;
        let list = repository.points()?;
        Ok(Self {
            points: (list.points.len() + list.damaged.len()) as u64,
            packs: stats.packs,
            chunks: stats.chunks,
            stored_bytes: stats.stored_bytes,
            removed_points: repository.removed_points()?.len() as u64,
            pins: repository.pins()?.len() as u64,
            sessions: SessionView::all(&repository.sessions()?),
            last_collection: repository.last_collection()?.map(CollectionView::from),
        })
    }

    fn show(&self, to: &mut String) {
        field(to, "points", &self.points.to_string());
        if self.removed_points > 0 {
            let told = format!("{}; backstay gc takes back their space", self.removed_points);
            field(to, "removed", &told);
        }
        field(to, "pins", &self.pins.to_string());
        field(to, "packs", &self.packs.to_string());
        field(to, "chunks", &self.chunks.to_string());
        field(to, "stored", &units::size_exact(self.stored_bytes));
        let last = self.last_collection.as_ref().map_or("none", |last| &last.told);
        field(to, "collection", last);
        field(to, "sessions", &self.sessions.len().to_string());
        for session in &self.sessions {
            field(to, "", &session.told());
        }
    }
}

impl From<LastCollection> for CollectionView {
    fn from(last: LastCollection) -> Self {
        let (number, packs) = (last.generation, last.packs);
        let told = match (last.ended, last.planned) {
            (Some(ended), _) => {
                format!("{number}, ended {}, deleted {packs} packs", units::local_time(ended))
            }
            (None, planned) => {
                let planned = planned.map_or_else(String::new, units::local_time);
                format!("{number}, planned {planned}, not ended; {packs} packs are condemned")
            }
        };
        Self {
            collection: number.0,
            ended: last.ended.map(units::utc_time),
            planned: last.planned.map(units::utc_time),
            packs,
            told,
        }
    }
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let location = ctx.location()?;
    let config = ctx.config(&location)?;
    let keys = Repository::key_slots(&location)?;
    let contents = if args.without_key { None } else { Some(Contents::read(&ctx.open()?)?) };
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
            contents.show(to);
        }
    })?;
    Ok(Exit::Done)
}
