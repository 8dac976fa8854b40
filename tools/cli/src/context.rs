//! What every command works with: the global options, the output, and the repository they name.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use backstay_api::mountd::Key;
use backstay_format::config::{Encryption, RepoConfig};
use backstay_store::{ErrorKind, Location, OpenOptions, Repository, Unlock};
use jiff::Timestamp;

use crate::cli::Global;
use crate::exit::{CliError, Exit};
use crate::output::Output;
use crate::units::shell_word;
use crate::{registry, secret};

/// The global options, resolved only as far as a command asks for it.
#[derive(Debug)]
pub(crate) struct Ctx {
    pub(crate) global: Global,
    pub(crate) out: Output,
}

impl Ctx {
    pub(crate) fn new(global: Global) -> Self {
        start_log(&global);
        let out = Output { json: global.json, quiet: global.quiet };
        Self { global, out }
    }

    /// The repository's location, from the option or the environment.
    pub(crate) fn location(&self) -> Result<Location, CliError> {
        let text =
            self.global.repo.as_deref().filter(|text| !text.is_empty()).ok_or_else(|| {
                CliError::usage("no repository is named")
                    .hint("--repo LOCATION                  or BACKSTAY_REPO")
                    .hint("backstay repo list               shows those this machine has used")
            })?;
        Self::parse_location(text)
    }

    /// A location as a user writes it.
    pub(crate) fn parse_location(text: &str) -> Result<Location, CliError> {
        if has_password(text) {
            // The text itself is not repeated: it holds the secret.
            return Err(CliError::usage("a repository location must not hold a password")
                .hint("BACKSTAY_PASSPHRASE_FILE or --passphrase-file names a file that holds it"));
        }
        Location::parse(text).map_err(|error| {
            let mut made = CliError::from(error).what(text);
            made.exit = Exit::Usage;
            made
        })
    }

    /// Where derived data goes.
    pub(crate) fn cache_dir(&self) -> Result<PathBuf, CliError> {
        if let Some(dir) = &self.global.cache_dir {
            return Ok(dir.clone());
        }
        if rustix::process::geteuid().is_root() {
            return Ok(PathBuf::from("/var/cache/backstay"));
        }
        let absolute = |name: &str| {
            std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
        };
        absolute("XDG_CACHE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
            .map(|base| base.join("backstay"))
            .ok_or_else(|| {
                CliError::usage("there is no place for the cache: HOME is not set")
                    .hint("--cache-dir DIR or BACKSTAY_CACHE_DIR")
            })
    }

    /// The configuration of the repository at `location`; needs no key.
    pub(crate) fn config(&self, location: &Location) -> Result<RepoConfig, CliError> {
        Repository::read_config(location).map_err(|error| at_opening(error, location))
    }

    /// Opens the repository the options name, and tells how the mount daemon can open it, too.
    pub(crate) fn open_for_daemon(&self) -> Result<(Repository, Location, Key), CliError> {
        let location = self.location()?;
        let (unlock, key) = self.key_for_daemon(&location)?;
        let repository = self.open_with(&location, &unlock)?;
        Ok((repository, location, key))
    }

    pub(crate) fn key_for_daemon(&self, location: &Location) -> Result<(Unlock, Key), CliError> {
        if self.config(location)?.encryption == Encryption::None {
            return Ok((Unlock::None, Key::None));
        }
        if let Some(source) = secret::Source::chosen(&self.global)? {
            return secret::for_daemon(&source);
        }
        if secret::can_ask(&self.global) {
            let prompt = format!("passphrase or recovery key for {location}");
            return secret::ask_for_daemon(&prompt, false);
        }
        Err(no_key(location))
    }

    /// How to unlock an existing repository: with `key`, or else as the global options say.
    fn unlock(&self, location: &Location, key: Option<secret::Source>) -> Result<Unlock, CliError> {
        if self.config(location)?.encryption == Encryption::None {
            return Ok(Unlock::None);
        }
        let key = match key {
            Some(key) => Some(key),
            None => secret::Source::chosen(&self.global)?,
        };
        if let Some(source) = key {
            return source.unlock();
        }
        if secret::can_ask(&self.global) {
            return secret::ask(&format!("passphrase or recovery key for {location}"), false);
        }
        Err(no_key(location))
    }

    /// Opens the repository the options name.
    pub(crate) fn open(&self) -> Result<Repository, CliError> {
        self.open_at(&self.location()?, None)
    }

    /// Opens the repository at `location` with `key`, or else as the global options say.
    pub(crate) fn open_at(
        &self,
        location: &Location,
        key: Option<secret::Source>,
    ) -> Result<Repository, CliError> {
        let unlock = self.unlock(location, key)?;
        self.open_with(location, &unlock)
    }

    fn open_with(&self, location: &Location, unlock: &Unlock) -> Result<Repository, CliError> {
        let cache_dir = self.cache_dir()?;
        let mut options = OpenOptions::new(&cache_dir);
        options.cache_bytes = backstay_daemon::memory::cache_bytes();
        options.disk_cache_bytes = self.global.disk_cache.unwrap_or(options.disk_cache_bytes);
        let repository = Repository::open(location, unlock, &options)
            .map_err(|error| at_opening(error, location))?;
        remember(&cache_dir, repository.config(), location);
        Ok(repository)
    }

    /// Asks before something that cannot be undone. `word` is typed to agree.
    pub(crate) fn confirm(&self, question: &str, word: &str) -> Result<(), CliError> {
        if self.global.yes {
            return Ok(());
        }
        if !secret::can_ask(&self.global) {
            return Err(CliError::new(Exit::NeedsConfirmation, "this needs a confirmation")
                .what(question)
                .hint("the same command with --yes"));
        }
        let mut to = std::io::stderr().lock();
        let mut answer = String::new();
        write!(to, "{question}\ntype {word} to go on: ")
            .and_then(|()| to.flush())
            .and_then(|()| std::io::stdin().read_line(&mut answer))
            .map_err(|error| CliError::io("cannot ask for a confirmation", &error))?;
        if answer.trim() == word {
            return Ok(());
        }
        Err(CliError::new(Exit::NeedsConfirmation, "not confirmed, nothing was done"))
    }

    /// Tells a failure to the user and gives its exit code.
    pub(crate) fn fail(&self, error: &CliError) -> ExitCode {
        if error.quiet {
            return error.exit.into();
        }
        let mut to = std::io::stderr().lock();
        // If stderr is closed there is nobody to tell; the exit code still does.
        let _ = if self.out.json {
            writeln!(to, "{}", error.for_programs())
        } else {
            let plain = self.global.no_color
                || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
                || !std::io::stderr().is_terminal();
            let (on, off) = if plain { ("", "") } else { ("\x1b[1;31m", "\x1b[0m") };
            let message = crate::output::clean(&error.message);
            write!(to, "{on}error:{off} {message}\n{}", error.for_people())
        };
        error.exit.into()
    }
}

fn no_key(location: &Location) -> CliError {
    secret::name_the_options(
        CliError::usage("a key is needed, and there is no terminal to ask for it")
            .what(location.to_string()),
    )
}

/// Writes the machine's memory of its repositories; failing to is no failure of the command.
pub(crate) fn remember(cache_dir: &Path, config: &RepoConfig, location: &Location) {
    let record = registry::Record {
        id: config.id.to_string(),
        location: location.to_string(),
        last_used: Timestamp::now(),
    };
    if let Err(error) = registry::remember(cache_dir, &record) {
        tracing::debug!(%error, "the use of the repository was not noted");
    }
}

/// At opening, what is not found is the repository itself.
fn at_opening(error: backstay_store::Error, location: &Location) -> CliError {
    let kind = error.kind();
    let mut made = CliError::from(error).what(location.to_string());
    match kind {
        ErrorKind::NotFound => {
            made.exit = Exit::NoRepository;
            let word = shell_word(&location.to_string());
            made.hint(format!("backstay repo init --repo {word}      makes one there"))
                .hint("backstay repo list                shows those this machine has used")
        }
        ErrorKind::NeedsKey => secret::name_the_options(made),
        _ => made,
    }
}

/// Whether a location has the form scheme://user:password@host.
fn has_password(text: &str) -> bool {
    let Some((_, rest)) = text.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
}

/// Warnings and, with -v, more, from the libraries to stderr.
fn start_log(global: &Global) {
    let level = match (global.verbose, global.json || global.quiet) {
        (0, true) => "error",
        (0, false) => "warn",
        (1, _) => "info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::new(format!("off,backstay={level}"));
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .try_init();
    debug_assert!(started.is_ok(), "the log is started once");
}

#[cfg(test)]
mod tests {
    use super::has_password;

    #[test]
    fn passwords_in_locations_are_seen() {
        assert!(has_password("sftp://user:secret@host/path"));
        assert!(has_password("s3://key:secret@bucket"));
        assert!(!has_password("sftp://user@host/path:with@colon"));
        assert!(!has_password("/srv/a:b@c"));
        assert!(!has_password("file:///srv/bk"));
    }
}
