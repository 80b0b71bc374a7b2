//! How a run ends: the statuses that scripts see, and errors of one line.

use std::fmt;
use std::path::Path;

use tensorswap::base::error::{Error, Status};

/// A run that did what it was asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All is well.
    Well,
    /// What was looked at is not well, and the report says so.
    Unwell,
}

impl Outcome {
    pub(crate) fn status(self) -> u8 {
        match self {
            Outcome::Well => 0,
            Outcome::Unwell => 1,
        }
    }

    pub(crate) fn well_if(is_well: bool) -> Outcome {
        match is_well {
            true => Outcome::Well,
            false => Outcome::Unwell,
        }
    }
}

/// A run that could not do what it was asked to: one line that says why.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What was looked at is damaged, so that there is nothing to report.
    Damaged(String),
    /// The command line, or a file that it names, makes no sense.
    Wrong(String),
    /// The machine refused.
    Refused(String),
    /// Nobody reads the output any more: nothing to say.
    Unread,
}

impl Failure {
    pub(crate) fn status(&self) -> u8 {
        match self {
            Failure::Unread => 0,
            Failure::Damaged(_) => 1,
            Failure::Wrong(_) => 2,
            Failure::Refused(_) => 3,
        }
    }

    pub(crate) fn wrong(message: impl Into<String>) -> Failure {
        Failure::Wrong(message.into())
    }

    /// What failed on a path, for `map_err`.
    pub(crate) fn at(
        operation: &'static str,
        path: &Path,
    ) -> impl Fn(std::io::Error) -> Failure + use<> {
        let path = path.display().to_string();
        move |error| Failure::Refused(format!("{operation} {path}: {}", words_of(&error)))
    }
}

/// The words of an error of the system without the number that Rust adds.
pub(crate) fn words_of(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Damaged(message) | Failure::Wrong(message) | Failure::Refused(message) => {
                // One line, whatever a name in it holds.
                let line = message.replace(|c: char| c.is_control(), " ");
                f.write_str(&line)
            }
            Failure::Unread => Ok(()),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let message = error.to_string();
        match error.status() {
            Status::Corrupt | Status::Checksum => Failure::Damaged(message),
            Status::Config | Status::InvalidArgument | Status::Budget => Failure::Wrong(message),
            _ => Failure::Refused(message),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::Refused(words_of(&error))
    }
}
