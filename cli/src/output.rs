//! What goes to standard output and standard error.

use std::io::{ErrorKind, Write};
use std::path::Path;

use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::failure::{Failure, words_of};

/// All is well.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
/// Works, but could be better.
pub(crate) const DOUBTFUL: Style = AnsiColor::Yellow.on_default();
/// Does not work.
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
/// Titles, and commands to be typed.
pub(crate) const BOLD: Style = Style::new().bold();
/// What matters less.
pub(crate) const FAINT: Style = Style::new().dimmed();

/// Text in a style.
pub(crate) fn styled(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// Writes text to standard output; without its colours where that is no terminal.
///
/// # Errors
/// `Unread` where the reader has gone.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => Failure::Unread,
            _ => Failure::Refused(format!("standard output: {}", words_of(&error))),
        })
}

/// Writes a report as JSON.
pub(crate) fn print_json(report: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(report)
        .map_err(|error| Failure::Refused(format!("JSON: {error}")))?;
    print(&(text + "\n"))
}

/// Says on standard error, in one line, why there is no result.
pub(crate) fn complain(failure: &Failure) {
    if !matches!(failure, Failure::Unread) {
        // Nothing can be said where standard error is closed.
        let _ = writeln!(anstream::stderr().lock(), "tensorswap: {failure}");
    }
}

/// A path as reports show it: whole, so that it means something elsewhere too.
pub(crate) fn shown_path(path: &Path) -> String {
    let whole = std::fs::canonicalize(path);
    whole.as_deref().unwrap_or(path).display().to_string()
}

/// A table without lines: the first column to the left, the others to the right.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().copied());
    table.add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 3));
        if index > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        match index {
            0 => text += &styled(FAINT, line),
            _ => text += line,
        }
        text += "\n";
    }
    text
}
