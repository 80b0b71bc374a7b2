//! A timeline of what the engine does, in Chrome's trace event format (opens in Perfetto).
//!
//! One thread writes the file, so that whoever reports a span never waits for it: spans go through
//! a bounded queue, and those that do not fit are counted and dropped. The array is closed when
//! the trace is dropped; viewers also read one that a crash left open.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Counter, events};
use crate::base::error::{Error, Result};

/// Spans that wait to be written.
const QUEUE_MAX: usize = 1 << 14;

/// One thing that took time.
#[derive(Debug)]
pub(crate) struct Span {
    /// `swap_out`, `swap_in`.
    pub(crate) name: &'static str,
    /// Spans of one track are drawn in one row.
    pub(crate) track: usize,
    pub(crate) started: Instant,
    pub(crate) elapsed: Duration,
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) failed: bool,
}

/// The writer of one timeline.
#[derive(Debug)]
pub(crate) struct Trace {
    sender: Option<SyncSender<Span>>,
    thread: Option<JoinHandle<()>>,
    dropped: Counter,
}

impl Trace {
    /// Makes the file, replacing what is there, and starts the writer.
    ///
    /// # Errors
    /// The errno of making the file; `Unsupported` where the thread cannot be started.
    pub(crate) fn create(path: &Path) -> Result<Trace> {
        let file = File::create(path).map_err(|error| {
            let name = path.as_os_str().as_encoded_bytes();
            Error::io(
                "trace",
                name,
                None,
                error.raw_os_error().unwrap_or(0),
                "creating the file",
            )
        })?;
        let (sender, receiver) = sync_channel(QUEUE_MAX);
        let epoch = Instant::now();
        let thread = std::thread::Builder::new()
            .name("tsw-trace".to_owned())
            .spawn(move || {
                if let Err(error) = write_all(BufWriter::new(file), &receiver, epoch) {
                    events::trace_failed(&error.to_string());
                }
            })
            .map_err(|error| Error::Unsupported {
                message: format!("the trace thread could not be started: {error}"),
                errno: error.raw_os_error().unwrap_or(0),
            })?;
        Ok(Trace {
            sender: Some(sender),
            thread: Some(thread),
            dropped: Counter::new(),
        })
    }

    /// Reports a span; never waits.
    pub(crate) fn span(&self, span: Span) {
        let taken = self
            .sender
            .as_ref()
            .is_some_and(|sender| sender.try_send(span).is_ok());
        if !taken {
            self.dropped.add(1);
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        drop(self.sender.take());
        if let Some(thread) = self.thread.take() {
            // Its errors are logged by itself; a panic there loses the trace and nothing else.
            let _ended = thread.join();
        }
        if self.dropped.get() > 0 {
            events::trace_incomplete(self.dropped.get());
        }
    }
}

/// Writes spans until the sender is gone.
fn write_all(
    mut file: BufWriter<File>,
    spans: &Receiver<Span>,
    epoch: Instant,
) -> std::io::Result<()> {
    let process = std::process::id();
    write!(file, "[")?;
    let mut separator = "\n";
    for span in spans {
        let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
        let event = serde_json::json!({
            "name": span.name,
            "cat": "io",
            "ph": "X",
            "ts": micros(span.started.saturating_duration_since(epoch)),
            "dur": micros(span.elapsed),
            "pid": process,
            "tid": span.track,
            "args": { "path": span.path, "bytes": span.bytes, "failed": span.failed },
        });
        write!(file, "{separator}{event}")?;
        separator = ",\n";
    }
    writeln!(file, "\n]")?;
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_json_with_every_span() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace.json");
        let trace = Trace::create(&path).unwrap();
        for track in 0..3 {
            trace.span(Span {
                name: "swap_out",
                track,
                started: Instant::now(),
                elapsed: Duration::from_micros(5),
                path: "/a \"quoted\" path".to_owned(),
                bytes: 7,
                failed: false,
            });
        }
        drop(trace);
        let text = std::fs::read(&path).unwrap();
        let events: Vec<serde_json::Value> = serde_json::from_slice(&text).unwrap();
        assert_eq!(events.len(), 3);
        assert_eq!(events[2]["args"]["path"], "/a \"quoted\" path");
        assert_eq!(events[2]["tid"], 2);
    }

    #[test]
    fn a_file_that_cannot_be_made_is_an_error_with_its_path() {
        let error = Trace::create(Path::new("/nowhere/at/all.json")).unwrap_err();
        assert_eq!(error.os_error(), libc::ENOENT);
        assert!(
            error.to_string().contains("/nowhere/at/all.json"),
            "{error}"
        );
    }
}
