//! Small records: JSON in a sealed envelope. Sessions, removals, pins and collections are records.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::FormatError;
use crate::limits::TEXT_MAX;

/// A record's kind: its magic, its bound, and what must hold of its fields.
pub trait Record: Serialize + DeserializeOwned {
    /// The magic of its envelope.
    const MAGIC: [u8; 8];
    /// What it is called in messages.
    const WHAT: &'static str;
    /// Longest payload accepted, sealed.
    const PAYLOAD_MAX: u32;

    /// Whether counts, names and texts stay within their bounds.
    fn check(&self) -> Result<(), FormatError>;

    /// The payload's bytes. Same record, same bytes.
    fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        serde_json::to_vec(self).map_err(|e| FormatError::invalid(Self::WHAT, e.to_string()))
    }

    /// Reads a payload.
    fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let record: Self = serde_json::from_slice(bytes)
            .map_err(|e| FormatError::damaged(Self::WHAT, e.to_string()))?;
        record.check().map_err(|e| FormatError::damaged(Self::WHAT, e.to_string()))?;
        Ok(record)
    }
}

/// A text for people: bounded, and without control characters that would act on a terminal.
pub(crate) fn check_text(field: &'static str, text: &str) -> Result<(), FormatError> {
    if text.len() > TEXT_MAX {
        return Err(FormatError::invalid(field, format!("{} bytes are too many", text.len())));
    }
    if text.chars().any(|c| c.is_control() && c != '\n') {
        return Err(FormatError::invalid(field, "it holds control characters"));
    }
    Ok(())
}
