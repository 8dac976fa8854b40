use std::fmt;

use zeroize::Zeroizing;

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

/// What opens a repository.
#[derive(Clone, Debug)]
pub enum Unlock {
    /// Nothing: enough for repositories made without encryption.
    None,
    /// A passphrase.
    Passphrase(Secret),
    /// The content of a key file, at least 32 bytes.
    KeyFile(Secret),
}
