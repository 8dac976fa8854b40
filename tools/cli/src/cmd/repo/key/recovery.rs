//! `backstay repo key recovery`, and how a recovery key is handed out.

use std::path::{Path, PathBuf};

use backstay_store::{ErrorKind, KeySlotInfo, RecoveryKey, Repository, SlotKind, SystemEntropy};
use jiff::Timestamp;
use serde::Serialize;
use zeroize::Zeroizing;

use super::list::SlotView;
use crate::context::Ctx;
use crate::exit::{CliError, Exit, help_tail};
use crate::output::{Stream, write_stdout};
use crate::secret;

/// Make a recovery key to keep on paper, for when all other keys are lost
///
/// It is a text that opens the repository by itself. It is shown once and cannot be shown again. The old recovery key stays what it is unless
/// --replace is given; then it is removed as soon as the new one was shown.
#[derive(Debug, clap::Args)]
#[command(after_help = help_tail(
    "  backstay repo key recovery
  backstay repo key recovery --replace --new-recovery-key-file /media/usb/recovery.txt",
    &[Exit::NoRepository, Exit::WrongKey, Exit::Denied, Exit::InUse, Exit::Refused]
))]
pub(crate) struct Args {
    /// Remove the recovery key there is
    #[arg(long)]
    replace: bool,

    /// Write the key to this new file, for its owner only, instead of showing it
    #[arg(long, value_name = "FILE")]
    new_recovery_key_file: Option<PathBuf>,
}

/// A new recovery key on its way to a person.
pub(crate) struct Handout<'a> {
    pub(crate) key: RecoveryKey,
    file: Option<&'a Path>,
    text: Option<Zeroizing<String>>,
}

impl<'a> Handout<'a> {
    /// Makes the key. If it goes to a file it is durable there when this returns.
    pub(crate) fn new(file: Option<&'a Path>) -> Result<Self, CliError> {
        let key = RecoveryKey::generate(&SystemEntropy);
        if let Some(path) = file {
            secret::write_recovery_key(path, &key)?;
        }
        let text = if file.is_none() { Some(key.to_text()) } else { None };
        Ok(Self { key, file, text })
    }

    /// Takes back the file of a key that came to nothing.
    pub(crate) fn withdraw(&self) {
        if let Some(path) = self.file {
            secret::withdraw(path);
        }
    }

    /// The text, if it is to be shown.
    pub(crate) fn text(&self) -> Option<&str> {
        self.text.as_ref().map(|text| text.as_str())
    }

    /// The file's name, if the key is in one.
    pub(crate) fn file(&self) -> Option<String> {
        let path = self.file?;
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        Some(path.display().to_string())
    }

    /// Adds what people should know.
    pub(crate) fn tell(&self, to: &mut String) {
        match (self.text(), self.file()) {
            (Some(text), _) => {
                to.push_str("\nrecovery key:\n");
                to.push_str(text);
                to.push_str(
                    "\n\nWrite it down and keep it away from this machine: it alone opens the \
                     repository,\nand it is not shown again.\n",
                );
            }
            (None, Some(file)) => {
                to.push_str(&format!(
                    "\nThe recovery key is in {file}. Keep it away from this machine: it alone\n\
                     opens the repository, and it is not shown again.\n"
                ));
            }
            (None, None) => {}
        }
    }

    /// Shows the document. Whoever asked for quiet still gets the key itself: nobody could ever
    /// see it again.
    pub(crate) fn show<T: Serialize>(
        &self,
        ctx: &Ctx,
        document: &T,
        human: impl FnOnce(&mut String),
    ) -> Result<(), CliError> {
        let shown = match self.text() {
            Some(text) if ctx.out.quiet && !ctx.out.json => {
                write_stdout(&Zeroizing::new([text.as_bytes(), b"\n"].concat()))
            }
            _ => ctx.out.summary(Stream::Stdout, document, human),
        };
        if self.text.is_none() {
            return shown;
        }
        shown.map_err(|cause| {
            let mut error = CliError::new(Exit::Failed, "the recovery key could not be shown")
                .hint("backstay repo key recovery --replace      makes another one");
            error.causes = cause.causes;
            error
        })
    }
}

#[derive(Serialize)]
struct Document<'a> {
    key: SlotView,
    recovery_key: Option<&'a str>,
    recovery_key_file: Option<String>,
    replaced: Vec<String>,
}

pub(crate) fn run(ctx: &Ctx, args: Args) -> Result<Exit, CliError> {
    let repository = ctx.open()?;
    let mut old = repository.keys()?;
    old.retain(|slot| slot.kind == SlotKind::Recovery);
    if !old.is_empty() && !args.replace {
        return Err(CliError::new(Exit::InUse, "there is a recovery key already")
            .what(old[0].id.to_string())
            .hint("backstay repo key recovery --replace      puts a new one in its place"));
    }
    let new = Handout::new(args.new_recovery_key_file.as_deref())?;
    let slot = repository
        .add_recovery_key(&new.key, old.first().map(|slot| slot.id), Timestamp::now())
        .inspect_err(|_| new.withdraw())?;
    let document = Document {
        key: SlotView::from(&KeySlotInfo { replaces: None, ..slot.clone() }),
        recovery_key: new.text(),
        recovery_key_file: new.file(),
        replaced: old.iter().map(|slot| slot.id.to_string()).collect(),
    };
    // Shown before the old one goes: a key that nobody has seen must not take its place.
    new.show(ctx, &document, |to| {
        to.push_str(&format!("added recovery key {}\n", slot.id));
        new.tell(to);
    })?;
    old.iter().try_for_each(|slot| remove(&repository, slot))?;
    Ok(Exit::Done)
}

fn remove(repository: &Repository, old: &KeySlotInfo) -> Result<(), CliError> {
    match repository.remove_key(&old.id.to_string()) {
        // Somebody else was as quick.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other.map_err(|error| {
            CliError::from(error.context(
                "the new recovery key opens the repository, and so does the old one still",
            ))
            .hint(format!("backstay repo key remove {} --give-up-recovery-key --yes", old.id))
        }),
    }
}
