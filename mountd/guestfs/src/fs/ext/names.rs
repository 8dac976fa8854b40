//! Names that are not as they stand on the disk.

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest as _, Sha256};

/// Bytes of a name that are shown as they are; of a longer one the rest is hashed.
const PLAIN_MAX: usize = 149;

/// An encrypted name as Linux shows it without the key. Source: Linux `fs/crypto/fname.c`, "no-key name".
pub(super) fn encrypted(name: &[u8]) -> Vec<u8> {
    let (plain, rest) = name.split_at(name.len().min(PLAIN_MAX));
    // The hash of the directory's index stands before it, which is only a help for looking up.
    let mut bytes = [&[0; 8], plain].concat();
    if !rest.is_empty() {
        bytes.extend(Sha256::digest(rest));
    }
    BASE64URL_NOPAD.encode(&bytes).into_bytes()
}

/// A name without the difference of case, where it is text.
pub(super) fn folded(name: &[u8]) -> Option<String> {
    std::str::from_utf8(name).ok().map(str::to_lowercase)
}
