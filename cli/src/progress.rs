//! A bar on standard error that shows how far the work is; nothing where that is no terminal.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

/// Whether a bar is being drawn.
static IS_SHOWN: AtomicBool = AtomicBool::new(false);

/// The bar of one piece of work; it disappears when this is dropped.
#[derive(Debug)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// A bar for so many parts of work, which tells how long it will still take.
    pub(crate) fn of_parts(total: u64) -> Progress {
        Progress::new(
            total,
            "{bar:30} {percent:>3}%  {msg}  {elapsed_precise} of about {duration}",
        )
    }

    /// A bar for so many bytes.
    pub(crate) fn of_bytes(total: u64) -> Progress {
        let template =
            "{bar:24} {percent:>3}%  {eta} left  {bytes} of {total_bytes}, {bytes_per_sec}";
        Progress::new(total, template)
    }

    fn new(total: u64, template: &str) -> Progress {
        let bar = ProgressBar::new(total);
        // A template that is wrong leaves the bar plain.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        // ORDERING: relaxed; only decides about a line feed at the end.
        IS_SHOWN.store(!bar.is_hidden(), Ordering::Relaxed);
        Progress(bar)
    }

    /// Says what is being done.
    pub(crate) fn say(&self, what: impl Into<String>) {
        self.0.set_message(what.into());
    }

    /// There is so much more to do.
    pub(crate) fn extend(&self, parts: u64) {
        self.0.inc_length(parts);
    }

    /// So much more is done.
    pub(crate) fn advance(&self, parts: u64) {
        self.0.inc(parts);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        // ORDERING: as above.
        IS_SHOWN.store(false, Ordering::Relaxed);
    }
}

/// Goes to a line of its own where a bar is being drawn, so that the prompt does not follow it.
pub(crate) fn leave_line() {
    // ORDERING: as above.
    if IS_SHOWN.load(Ordering::Relaxed) && std::io::stderr().is_terminal() {
        let _ = writeln!(std::io::stderr());
    }
}
