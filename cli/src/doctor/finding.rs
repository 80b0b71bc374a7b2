//! One thing that was looked at.

use serde::Serialize;

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Health {
    /// As it should be.
    Good,
    /// Works, but could be faster.
    Remark,
    /// Does not work.
    Problem,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Finding {
    /// What was looked at, in a word or two: stable, for scripts.
    pub(super) name: &'static str,
    pub(super) health: Health,
    /// What was seen, in a line.
    pub(super) seen: String,
    /// What it means, where it is not as it should be.
    pub(super) meaning: Option<String>,
    /// The commands that mend it, each of them complete.
    pub(super) mend: Vec<String>,
}

impl Finding {
    pub(super) fn good(name: &'static str, seen: impl Into<String>) -> Finding {
        Finding {
            name,
            health: Health::Good,
            seen: seen.into(),
            meaning: None,
            mend: Vec::new(),
        }
    }

    pub(super) fn remark(name: &'static str, seen: impl Into<String>) -> Finding {
        Finding {
            health: Health::Remark,
            ..Finding::good(name, seen)
        }
    }

    pub(super) fn problem(name: &'static str, seen: impl Into<String>) -> Finding {
        Finding {
            health: Health::Problem,
            ..Finding::good(name, seen)
        }
    }

    pub(super) fn meaning(mut self, meaning: impl Into<String>) -> Finding {
        self.meaning = Some(meaning.into());
        self
    }

    pub(super) fn mend(mut self, command: impl Into<String>) -> Finding {
        self.mend.push(command.into());
        self
    }
}
