//! The repository configuration: what every reader must know before it has a key.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::envelope::Envelope;
use crate::limits::SMALL_PAYLOAD_MAX;
use crate::{ChunkSize, FormatError, RepoId, magic};

/// How stored bytes are sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encryption {
    /// AES-256-GCM under a key per pack.
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
    /// Stored in the clear: anybody who reads the storage reads the backups.
    None,
}

/// What was chosen when the repository was made. Never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepoConfig {
    /// The repository's id.
    pub id: RepoId,
    /// The size of disk-image chunks.
    pub chunk_size: ChunkSize,
    /// How stored bytes are sealed.
    pub encryption: Encryption,
    /// When it was made.
    pub created: Timestamp,
    /// Features a program must know to read or write here. Unknown ones are refused.
    #[serde(default)]
    pub features: Vec<String>,
    /// Keyed BLAKE3 over the other fields, hexadecimal: whoever lacks the key cannot change them
    /// unseen (for example switch encryption off).
    #[serde(default)]
    pub mac: String,
}

/// The feature of repositories whose writers give every pack parity.
pub const FEATURE_PARITY: &str = "parity";

/// Features this program knows.
const KNOWN_FEATURES: &[&str] = &[FEATURE_PARITY];

impl RepoConfig {
    /// Whether writers give every pack parity.
    pub fn has_parity(&self) -> bool {
        self.features.iter().any(|f| f == FEATURE_PARITY)
    }

    /// The bytes that the MAC covers: the payload with an empty `mac`.
    pub fn mac_input(&self) -> Vec<u8> {
        let bare = RepoConfig { mac: String::new(), ..self.clone() };
        serde_json::to_vec(&bare).expect("a configuration is always valid JSON")
    }

    /// The object's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        let payload = serde_json::to_vec(self)
            .map_err(|e| FormatError::invalid("configuration", e.to_string()))?;
        Envelope { repo_id: self.id, sealed: false, payload }.encode(magic::CONFIG)
    }

    /// Reads the object's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let envelope = Envelope::decode(bytes, magic::CONFIG, SMALL_PAYLOAD_MAX)?;
        let config: RepoConfig = serde_json::from_slice(&envelope.payload)
            .map_err(|e| FormatError::damaged("configuration", e.to_string()))?;
        if config.id != envelope.repo_id {
            return Err(FormatError::damaged("repo_id", "head and payload name two repositories"));
        }
        for feature in &config.features {
            if !KNOWN_FEATURES.contains(&feature.as_str()) {
                return Err(FormatError::unsupported("features", format!("'{feature}'")));
            }
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FormatErrorKind;

    fn sample() -> RepoConfig {
        RepoConfig {
            id: RepoId::from_bytes([3; 16]),
            chunk_size: ChunkSize::DEFAULT,
            encryption: Encryption::Aes256Gcm,
            created: "2026-11-22T03:00:00Z".parse().unwrap(),
            features: Vec::new(),
            mac: "00".into(),
        }
    }

    #[test]
    fn there_and_back() {
        let c = sample();
        assert_eq!(RepoConfig::decode(&c.encode().unwrap()).unwrap(), c);
        assert_eq!(c.mac_input(), RepoConfig { mac: "ff".into(), ..c.clone() }.mac_input());
    }

    #[test]
    fn an_unknown_feature_is_refused() {
        let c = RepoConfig { features: vec!["time-travel".into()], ..sample() };
        let e = RepoConfig::decode(&c.encode().unwrap()).unwrap_err();
        assert_eq!(e.kind(), FormatErrorKind::Unsupported);
        assert!(e.to_string().contains("time-travel"));
    }
}
