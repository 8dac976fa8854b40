//! How a request fails.

use serde::{Deserialize, Serialize};

/// What the asker can do about a [`Refusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The request cannot be understood or makes no sense: ask for something else.
    Usage,
    /// There is no repository there.
    NoRepository,
    /// The key does not open it.
    WrongKey,
    /// A key is needed and was not given.
    NeedsKey,
    /// Stored data is damaged.
    Damaged,
    /// The asker may not do this.
    Denied,
    /// There is nothing of that name.
    NotFound,
    /// It is there already, or somebody uses it.
    InUse,
    /// It cannot be done here: no space, a missing tool, a newer format.
    Refused,
    /// It would lose something, and the asker has not said that it may.
    NeedsConfirmation,
    /// Anything else.
    Failed,
}

/// Why a request was not done. As a document it is the error body of every answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What the asker can do about it.
    pub kind: RefusalKind,
    /// What happened.
    pub message: String,
    /// To what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub what: Option<String>,
    /// Why, from the nearest cause to the deepest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// What to do next.
    #[serde(default, rename = "try", skip_serializing_if = "Vec::is_empty")]
    pub tries: Vec<String>,
}

impl Refusal {
    /// A refusal with nothing but its message.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { kind, message, what: None, causes: Vec::new(), tries: Vec::new() }
    }

    /// Names the object it is about; the first name given stays.
    #[must_use]
    pub fn what(mut self, what: impl Into<String>) -> Self {
        self.what.get_or_insert_with(|| what.into());
        self
    }

    /// Adds a next step.
    #[must_use]
    pub fn hint(mut self, next: impl Into<String>) -> Self {
        self.tries.push(next.into());
        self
    }

    /// Adds an error's chain of causes, each text once.
    #[must_use]
    pub fn because(mut self, error: &dyn std::error::Error) -> Self {
        let mut next = Some(error);
        while let Some(cause) = next {
            let text = cause.to_string();
            let told =
                self.message.contains(&text) || self.causes.iter().any(|c| c.contains(&text));
            if !text.is_empty() && !told {
                self.causes.push(text);
            }
            next = cause.source();
        }
        self
    }
}
