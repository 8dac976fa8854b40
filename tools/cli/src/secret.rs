//! Keys and passphrases: from files, commands, the environment or a terminal, never from argv.
//!
//! Nothing is read before a command needs it, so help, completions and version never touch a
//! secret or run a passphrase command.

use std::fs::File;
use std::io::{IsTerminal as _, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use backstay_api::mountd::Key;
use backstay_store::{RecoveryKey, Secret, Unlock};
use zeroize::Zeroizing;

use crate::cli::Global;
use crate::exit::{CliError, Exit};

/// Longest passphrase: nobody types more, and a wrong file is not slurped.
const PASSPHRASE_MAX_BYTES: u64 = 4096;
/// Longest key file: 32 bytes are made, other tools' small files are taken too.
const KEY_FILE_MAX_BYTES: u64 = 64 * 1024;

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    KeyFile(PathBuf),
    PassphraseFile(PathBuf),
    PassphraseCommand(String),
    /// `BACKSTAY_PASSPHRASE` holds it.
    Environment,
    RecoveryKeyFile(PathBuf),
    /// `BACKSTAY_RECOVERY_KEY` holds it.
    RecoveryKeyEnvironment,
}

/// The environment variables that name or hold a secret, in the order they are listed to users.
const VARIABLES: [&str; 6] = [
    "BACKSTAY_KEY_FILE",
    "BACKSTAY_PASSPHRASE_FILE",
    "BACKSTAY_PASSPHRASE_COMMAND",
    "BACKSTAY_PASSPHRASE",
    "BACKSTAY_RECOVERY_KEY_FILE",
    "BACKSTAY_RECOVERY_KEY",
];

impl Source {
    /// What the options or else the environment name. Options win; two of a kind are refused,
    /// because a guess could lock somebody out.
    pub(crate) fn chosen(global: &Global) -> Result<Option<Self>, CliError> {
        let options = [
            global.key_file.clone().map(Self::KeyFile),
            global.passphrase_file.clone().map(Self::PassphraseFile),
            global.passphrase_command.clone().map(Self::PassphraseCommand),
            global.recovery_key_file.clone().map(Self::RecoveryKeyFile),
        ];
        if let Some(source) = options.into_iter().flatten().next() {
            return Ok(Some(source));
        }
        let set: Vec<&str> =
            VARIABLES.into_iter().filter(|name| std::env::var_os(name).is_some()).collect();
        let name = match set.as_slice() {
            [] => return Ok(None),
            [name] => *name,
            several => {
                return Err(CliError::usage("more than one key is set in the environment")
                    .what(several.join(", "))
                    .hint("unset all but one of them, or choose with an option"));
            }
        };
        let value = std::env::var_os(name).unwrap_or_default();
        Ok(Some(match name {
            "BACKSTAY_KEY_FILE" => Self::KeyFile(value.into()),
            "BACKSTAY_PASSPHRASE_FILE" => Self::PassphraseFile(value.into()),
            "BACKSTAY_PASSPHRASE_COMMAND" => {
                Self::PassphraseCommand(value.to_string_lossy().into_owned())
            }
            "BACKSTAY_RECOVERY_KEY_FILE" => Self::RecoveryKeyFile(value.into()),
            "BACKSTAY_RECOVERY_KEY" => Self::RecoveryKeyEnvironment,
            _ => Self::Environment,
        }))
    }

    /// Whether this names a recovery key.
    pub(crate) fn is_recovery(&self) -> bool {
        matches!(self, Self::RecoveryKeyFile(_) | Self::RecoveryKeyEnvironment)
    }

    /// Fetches the secret.
    pub(crate) fn unlock(&self) -> Result<Unlock, CliError> {
        match self {
            Self::KeyFile(path) => {
                warn_if_shared(path);
                let content = read_bounded(path, KEY_FILE_MAX_BYTES, "key file")?;
                if content.is_empty() {
                    return Err(CliError::usage("the key file is empty").what(shown(path)));
                }
                Ok(Unlock::KeyFile(Secret::new(content.to_vec())))
            }
            Self::PassphraseFile(path) => {
                warn_if_shared(path);
                let content = read_bounded(path, PASSPHRASE_MAX_BYTES, "passphrase file")?;
                passphrase(&content, &shown(path))
            }
            Self::PassphraseCommand(command) => {
                passphrase(&run(command)?, "the passphrase command's output")
            }
            Self::Environment => {
                let bytes = from_environment("BACKSTAY_PASSPHRASE");
                passphrase(&bytes, "BACKSTAY_PASSPHRASE")
            }
            Self::RecoveryKeyFile(path) => {
                warn_if_shared(path);
                let content = read_bounded(path, PASSPHRASE_MAX_BYTES, "recovery key file")?;
                recovery_key(&content, &shown(path))
            }
            Self::RecoveryKeyEnvironment => {
                let bytes = from_environment("BACKSTAY_RECOVERY_KEY");
                recovery_key(&bytes, "BACKSTAY_RECOVERY_KEY")
            }
        }
    }
}

/// A key for this process and the same for the mount daemon. Of a file the daemon gets the name, so that it can
/// read it again when it is restarted.
pub(crate) fn for_daemon(source: &Source) -> Result<(Unlock, Key), CliError> {
    let absolute = |path: &Path| -> Result<String, CliError> {
        let path = std::path::absolute(path)
            .map_err(|error| CliError::io("cannot name the key file", &error))?;
        Ok(path.display().to_string())
    };
    let typed = |bytes: Zeroizing<Vec<u8>>, origin: &str| {
        let bytes = passphrase_bytes(&bytes, origin)?;
        let key = Key::Passphrase(bytes.to_vec());
        Ok((Unlock::Passphrase(Secret::new(bytes.to_vec())), key))
    };
    match source {
        Source::KeyFile(path) => Ok((source.unlock()?, Key::File(absolute(path)?))),
        Source::PassphraseFile(path) => {
            Ok((source.unlock()?, Key::PassphraseFile(absolute(path)?)))
        }
        Source::PassphraseCommand(command) => {
            typed(run(command)?, "the passphrase command's output")
        }
        Source::Environment => {
            typed(from_environment("BACKSTAY_PASSPHRASE"), "BACKSTAY_PASSPHRASE")
        }
        Source::RecoveryKeyFile(_) | Source::RecoveryKeyEnvironment => {
            Ok(also_for_daemon(source.unlock()?))
        }
    }
}

/// A recovery key that is open already, for the daemon; anything else as no key.
fn also_for_daemon(unlock: Unlock) -> (Unlock, Key) {
    let key = match &unlock {
        Unlock::RecoveryKey(key) => Key::Recovery(key.to_text().to_string()),
        _ => Key::None,
    };
    (unlock, key)
}

fn from_environment(name: &str) -> Zeroizing<Vec<u8>> {
    let value = std::env::var_os(name).unwrap_or_default();
    Zeroizing::new(std::os::unix::ffi::OsStringExt::into_vec(value))
}

/// A recovery key from its text. A typing error is told with its place, before a repository is
/// asked whether the key fits.
fn recovery_key(text: &[u8], origin: &str) -> Result<Unlock, CliError> {
    let text = std::str::from_utf8(text)
        .map_err(|_| CliError::usage("this is no recovery key: it is no text").what(origin))?;
    let key = RecoveryKey::parse(text).map_err(|error| {
        CliError::from(error)
            .what(origin)
            .hint("compare the group named with the sheet; O and 0, I, L and 1 are the same")
    })?;
    Ok(Unlock::RecoveryKey(key))
}

/// A passphrase from bytes as a file or command gives them: one line end is not part of it.
fn passphrase(bytes: &[u8], origin: &str) -> Result<Unlock, CliError> {
    Ok(Unlock::Passphrase(Secret::new(passphrase_bytes(bytes, origin)?.to_vec())))
}

fn passphrase_bytes<'a>(bytes: &'a [u8], origin: &str) -> Result<&'a [u8], CliError> {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    if bytes.is_empty() {
        return Err(CliError::usage("the passphrase is empty")
            .what(origin)
            .hint("choose a passphrase of several words, or use a key file"));
    }
    Ok(bytes)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// Reads a small file whole; a larger one is refused, never cut.
fn read_bounded(path: &Path, max: u64, what: &str) -> Result<Zeroizing<Vec<u8>>, CliError> {
    let failed = |error: std::io::Error| {
        let mut made = CliError::io(format!("cannot read the {what}"), &error).what(shown(path));
        // A missing key file is wrong configuration, not a name missing from the repository.
        made.exit = Exit::Usage;
        made
    };
    let file = File::open(path).map_err(failed)?;
    let mut content = Zeroizing::new(Vec::new());
    file.take(max + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > max {
        return Err(
            CliError::usage(format!("the {what} is larger than {max} bytes")).what(shown(path))
        );
    }
    Ok(content)
}

/// A key that others can read protects little; say so, but do not stand in the way.
fn warn_if_shared(path: &Path) {
    if let Ok(meta) = std::fs::metadata(path)
        && meta.is_file()
        && meta.mode() & 0o077 != 0
    {
        tracing::warn!(file = %path.display(), "other users may read this key: chmod 600 it");
    }
}

/// Runs a passphrase command and takes what it prints.
fn run(command: &str) -> Result<Zeroizing<Vec<u8>>, CliError> {
    // The command may hold a secret itself, so errors name the option and not the command.
    let failed = |error: std::io::Error| {
        let mut made = CliError::io("the passphrase command could not be run", &error);
        made.exit = Exit::Usage;
        made.what("--passphrase-command")
    };
    let mut child = Command::new("/bin/sh")
        .arg("-c")
        .arg(command)
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut output = Zeroizing::new(Vec::new());
    let mut read = Ok(0);
    if let Some(pipe) = child.stdout.take() {
        read = pipe.take(PASSPHRASE_MAX_BYTES + 1).read_to_end(&mut output);
        // The pipe is closed here: a command that prints without end gets a broken pipe.
    }
    let status = child.wait().map_err(failed)?;
    read.map_err(failed)?;
    if output.len() as u64 > PASSPHRASE_MAX_BYTES {
        return Err(CliError::usage(format!(
            "the passphrase command printed more than {PASSPHRASE_MAX_BYTES} bytes"
        )));
    }
    if !status.success() {
        return Err(CliError::usage(format!("the passphrase command failed: {status}"))
            .what("--passphrase-command"));
    }
    Ok(output)
}

/// Whether somebody is there to be asked.
pub(crate) fn can_ask(global: &Global) -> bool {
    !global.no_input && std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks for a passphrase on the terminal; `twice` when a new one is made. Where one is not made,
/// the recovery key is taken too.
pub(crate) fn ask(prompt: &str, twice: bool) -> Result<Unlock, CliError> {
    ask_for_daemon(prompt, twice).map(|(unlock, _)| unlock)
}

/// The same, and the key for the mount daemon.
pub(crate) fn ask_for_daemon(prompt: &str, twice: bool) -> Result<(Unlock, Key), CliError> {
    let failed = |error: std::io::Error| CliError::io("cannot ask for a passphrase", &error);
    let first = Zeroizing::new(rpassword::prompt_password(format!("{prompt}: ")).map_err(failed)?);
    if twice {
        let again = Zeroizing::new(rpassword::prompt_password("the same again: ").map_err(failed)?);
        if *first != *again {
            return Err(CliError::usage("the two passphrases differ"));
        }
    }
    // No passphrase looks like this; so whoever has only the sheet can answer with it.
    if !twice && RecoveryKey::resembles(&first) {
        return recovery_key(first.as_bytes(), "the terminal").map(also_for_daemon);
    }
    let unlock = passphrase(first.as_bytes(), "the terminal")?;
    Ok((unlock, Key::Passphrase(passphrase_bytes(first.as_bytes(), "the terminal")?.to_vec())))
}

/// The options that name a key, for error texts.
pub(crate) fn name_the_options(error: CliError) -> CliError {
    error
        .hint("--key-file FILE                  or BACKSTAY_KEY_FILE")
        .hint("--passphrase-file FILE           or BACKSTAY_PASSPHRASE_FILE")
        .hint("--passphrase-command COMMAND     or BACKSTAY_PASSPHRASE_COMMAND")
        .hint("--recovery-key-file FILE         or BACKSTAY_RECOVERY_KEY_FILE")
}

/// Makes a key file: 32 random bytes, readable by its owner only. Never overwrites one.
pub(crate) fn make_key_file(path: &Path) -> Result<Unlock, CliError> {
    const KEY_BYTES: usize = 32;

    let mut key = Zeroizing::new(vec![0u8; KEY_BYTES]);
    getrandom::fill(&mut key)
        .map_err(|error| CliError::new(Exit::Failed, "no random bytes").because(&error))?;
    write_private(path, &key).map_err(|error| {
        let made = CliError::io("cannot make the key file", &error).what(shown(path));
        if error.kind() == std::io::ErrorKind::AlreadyExists {
            return made.hint(format!("--key-file {}      uses the key it holds", shown(path)));
        }
        made
    })?;
    Ok(Unlock::KeyFile(Secret::new(key.to_vec())))
}

/// Writes a recovery key's text to a new file, readable by its owner only.
pub(crate) fn write_recovery_key(path: &Path, key: &RecoveryKey) -> Result<(), CliError> {
    let text = key.to_text();
    write_private(path, &Zeroizing::new([text.as_bytes(), b"\n"].concat())).map_err(|error| {
        CliError::io("cannot make the file for the recovery key", &error).what(shown(path))
    })
}

/// Makes a file that only its owner may read, durable when this returns. Never overwrites one.
fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    // A key that is lost in a power cut after its repository was made would lose the repository.
    file.write_all(content).and_then(|()| file.sync_all()).inspect_err(|_| withdraw(path))?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all())
}

/// Takes back a file made for a key that came to nothing.
pub(crate) fn withdraw(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(%error, file = %path.display(), "the unused key file could not be removed");
    }
}
