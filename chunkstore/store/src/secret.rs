use std::fmt;

use backstay_format::recovery;
use zeroize::Zeroizing;

use crate::entropy::{Entropy, array};
use crate::error::{Error, Result};

/// Bytes nobody may see: wiped when dropped, never printed.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// 256 random bits that open a repository when every other key is lost. People keep them on paper,
/// as text with check letters (FORMAT.md, Keys).
#[derive(Clone)]
pub struct RecoveryKey(Zeroizing<[u8; recovery::KEY_LEN]>);

impl RecoveryKey {
    /// A new one.
    pub fn generate(entropy: &dyn Entropy) -> Self {
        Self(Zeroizing::new(array(entropy)))
    }

    /// The key that was written down as `text`. `Invalid`, with the place and without the text, if
    /// there is a typing error: that is told before any repository is asked.
    pub fn parse(text: &str) -> Result<Self> {
        let key = recovery::decode(text)
            .map_err(|e| Error::format("this is no whole recovery key", e))?;
        Ok(Self(key))
    }

    /// Whether a text is, in all likelihood, a recovery key with or without typing errors.
    pub fn resembles(text: &str) -> bool {
        recovery::resembles(text)
    }

    /// The text to write down: groups of five letters with dashes between them, in one line.
    pub fn to_text(&self) -> Zeroizing<String> {
        recovery::encode(&self.0)
    }

    pub(crate) fn expose(&self) -> &[u8] {
        &*self.0
    }
}

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryKey(..)")
    }
}

/// What opens a repository.
#[derive(Clone, Debug)]
pub enum Unlock {
    /// Nothing: enough for repositories made without encryption.
    None,
    /// A passphrase.
    Passphrase(Secret),
    /// The content of a key file, at least 32 bytes.
    KeyFile(Secret),
    /// The recovery key.
    RecoveryKey(RecoveryKey),
}
