//! A timeline of what the engine does, in Chrome's trace event format (opens in Perfetto).
//!
//! One thread writes the file, so that whoever reports a span never waits for it: spans go through
//! a bounded queue, and those that do not fit are counted and dropped. The array is closed when
//! the trace is dropped; viewers also read one that a crash left open.
//!
//! Three groups of rows: what threads do in the library's calls and what they wait for; what
//! happens to each parameter (read, prepare, update, put back, write); the operations on storage.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{JoinHandle, Thread, ThreadId};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Counter, events};
use crate::base::error::{Error, Result};
use crate::base::units::to_u64;

/// Spans that wait to be written.
const QUEUE_MAX: usize = 1 << 14;

/// The row in which a span is drawn. Spans of one row do not overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Row {
    /// An operation of the backend, by its slot.
    Operation(usize),
    /// What happens to a parameter, by its id.
    Parameter(u64),
    /// What the calling thread does.
    Thread(ThreadId),
}

/// One thing that took time.
#[derive(Debug)]
pub(crate) struct Span {
    pub(crate) name: &'static str,
    pub(crate) row: Row,
    /// The name of the thread, for its row.
    thread: Option<Thread>,
    pub(crate) started: Instant,
    pub(crate) elapsed: Duration,
    pub(crate) details: Details,
}

/// What is told of a span beside its time; what is empty or zero is left out.
#[derive(Debug, Default)]
pub(crate) struct Details {
    pub(crate) path: String,
    pub(crate) parameter: Option<u64>,
    pub(crate) bytes: u64,
    pub(crate) failed: bool,
}

impl Span {
    /// What ends now.
    pub(crate) fn new(name: &'static str, row: Row, started: Instant, details: Details) -> Span {
        Span {
            name,
            row,
            thread: None,
            started,
            elapsed: started.elapsed(),
            details,
        }
    }

    /// What the calling thread has done until now.
    pub(crate) fn of_this_thread(name: &'static str, started: Instant, details: Details) -> Span {
        let thread = std::thread::current();
        let mut span = Span::new(name, Row::Thread(thread.id()), started, details);
        span.thread = Some(thread);
        span
    }
}

/// The writer of one timeline.
#[derive(Debug)]
pub(crate) struct Trace {
    sender: Option<SyncSender<Span>>,
    thread: Option<JoinHandle<()>>,
    dropped: Counter,
}

impl Trace {
    /// Makes the file, replacing what another process left there, and starts the writer. In the
    /// path `{pid}` stands for the number of the process. What this process has written is kept:
    /// the second timeline at `a.json` is `a.2.json`.
    ///
    /// # Errors
    /// The errno of making the file; `Unsupported` where the thread cannot be started.
    pub(crate) fn create(path: &Path) -> Result<Trace> {
        let path = &of_this_process(path);
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

/// The path of the next timeline that is to be at `path`.
fn of_this_process(path: &Path) -> PathBuf {
    static MADE: Mutex<BTreeMap<PathBuf, u32>> = Mutex::new(BTreeMap::new());
    let pid = std::process::id().to_string();
    let path = match path.to_str() {
        Some(text) => PathBuf::from(text.replace("{pid}", &pid)),
        None => path.to_owned(),
    };
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let count = made.entry(path.clone()).or_default();
    *count += 1;
    match (*count, path.extension()) {
        (1, _) => path,
        (count, None) => path.with_extension(count.to_string()),
        (count, Some(extension)) => {
            let extension = extension.to_string_lossy();
            path.with_extension(format!("{count}.{extension}"))
        }
    }
}

/// Writes spans until the sender is gone.
fn write_all(file: BufWriter<File>, spans: &Receiver<Span>, epoch: Instant) -> std::io::Result<()> {
    let mut timeline = Timeline {
        file,
        epoch,
        separator: "\n",
        rows: HashMap::new(),
    };
    write!(timeline.file, "[")?;
    for span in spans {
        timeline.write(&span)?;
    }
    writeln!(timeline.file, "\n]")?;
    timeline.file.flush()
}

/// The file, and which rows have a name in it already.
struct Timeline {
    file: BufWriter<File>,
    epoch: Instant,
    /// What comes before the next event.
    separator: &'static str,
    /// The number of each row.
    rows: HashMap<Row, u64>,
}

impl Timeline {
    fn write(&mut self, span: &Span) -> std::io::Result<()> {
        let group = Group::of(span.row);
        let row = match self.rows.get(&span.row) {
            Some(row) => *row,
            None => self.name_row(span, group)?,
        };
        let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
        let details = &span.details;
        let mut more = serde_json::Map::new();
        if !details.path.is_empty() {
            more.insert("path".to_owned(), json!(details.path));
        }
        if let Some(parameter) = details.parameter {
            more.insert("parameter".to_owned(), json!(parameter));
        }
        if details.bytes > 0 {
            more.insert("bytes".to_owned(), json!(details.bytes));
        }
        if details.failed {
            more.insert("failed".to_owned(), json!(true));
        }
        self.event(&json!({
            "name": span.name,
            "ph": "X",
            "ts": micros(span.started.saturating_duration_since(self.epoch)),
            "dur": micros(span.elapsed),
            "pid": group.number(),
            "tid": row,
            "args": more,
        }))
    }

    /// Gives a row a number, and tells its name and that of its group.
    fn name_row(&mut self, span: &Span, group: Group) -> std::io::Result<u64> {
        let in_group = |row: &&Row| Group::of(**row) == group;
        let others = to_u64(self.rows.keys().filter(in_group).count());
        let (row, name) = match span.row {
            Row::Operation(slot) => (to_u64(slot), format!("operation {slot}")),
            Row::Parameter(id) => (id, format!("parameter {id}")),
            Row::Thread(_) => {
                let name = span.thread.as_ref().and_then(Thread::name);
                let name = name.map_or_else(|| format!("thread {others}"), str::to_owned);
                (others, name)
            }
        };
        self.rows.insert(span.row, row);
        let label = |kind: &str, name: &str| {
            json!({
                "name": kind,
                "ph": "M",
                "pid": group.number(),
                "tid": row,
                "args": { "name": name },
            })
        };
        let process = std::process::id();
        let group_name = format!("tensorswap {process}: {}", group.name());
        self.event(&label("process_name", &group_name))?;
        self.event(&label("thread_name", &name))?;
        Ok(row)
    }

    fn event(&mut self, event: &serde_json::Value) -> std::io::Result<()> {
        write!(self.file, "{}{event}", self.separator)?;
        self.separator = ",\n";
        Ok(())
    }
}

/// Rows that are drawn together. The format knows groups as processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    Threads,
    Parameters,
    Operations,
}

impl Group {
    fn of(row: Row) -> Group {
        match row {
            Row::Operation(_) => Group::Operations,
            Row::Parameter(_) => Group::Parameters,
            Row::Thread(_) => Group::Threads,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Group::Threads => "threads",
            Group::Parameters => "parameters",
            Group::Operations => "storage operations",
        }
    }

    /// Different for each group of each process, so that timelines of several ranks can be joined.
    fn number(self) -> u64 {
        u64::from(std::process::id()) * 4 + self as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn the_file_is_json_with_every_span() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace.json");
        let trace = Trace::create(&path).unwrap();
        for track in 0..3 {
            let details = Details {
                path: "/a \"quoted\" path".to_owned(),
                bytes: 7,
                ..Details::default()
            };
            let row = Row::Operation(track);
            trace.span(Span::new("swap_out", row, Instant::now(), details));
        }
        let parameter = Row::Parameter(u64::MAX - 1);
        let failed = Details {
            failed: true,
            ..Details::default()
        };
        trace.span(Span::new("read", parameter, Instant::now(), failed));
        let nothing = Details::default();
        trace.span(Span::of_this_thread("wait", Instant::now(), nothing));
        drop(trace);
        let events = events_in(&path);
        let spans: Vec<&Value> = events.iter().filter(|event| event["ph"] == "X").collect();
        assert_eq!(spans.len(), 5);
        assert_eq!(spans[2]["args"]["path"], "/a \"quoted\" path");
        assert_eq!(spans[2]["tid"], 2);
        assert_eq!(spans[3]["tid"], u64::MAX - 1);
        assert_eq!(spans[3]["args"]["failed"], true);
        let is_named = |span: &&Value| {
            events.iter().any(|event| {
                event["name"] == "thread_name"
                    && event["pid"] == span["pid"]
                    && event["tid"] == span["tid"]
            })
        };
        assert!(spans.iter().all(is_named));
        let mut groups: Vec<u64> = spans
            .iter()
            .filter_map(|span| span["pid"].as_u64())
            .collect();
        groups.dedup();
        assert_eq!(groups.len(), 3);
    }

    fn events_in(path: &Path) -> Vec<Value> {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn a_timeline_of_nothing_is_json_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace.json");
        drop(Trace::create(&path).unwrap());
        assert!(events_in(&path).is_empty());
    }

    #[test]
    fn a_process_keeps_all_its_timelines() {
        let directory = tempfile::tempdir().unwrap();
        let name = |text: &str| directory.path().join(text);
        for _ in 0..3 {
            drop(Trace::create(&name("a-{pid}.json")).unwrap());
            drop(Trace::create(&name("plain")).unwrap());
        }
        let pid = std::process::id();
        for expected in [
            format!("a-{pid}.json"),
            format!("a-{pid}.2.json"),
            format!("a-{pid}.3.json"),
            "plain".to_owned(),
            "plain.2".to_owned(),
            "plain.3".to_owned(),
        ] {
            assert!(name(&expected).is_file(), "{expected}");
        }
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
