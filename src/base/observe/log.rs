//! The log for callers that know no `tracing`: one process-wide callback that can be replaced.
//!
//! Owns the callback and the subscriber that feeds it. The subscriber becomes the global one of
//! the process the first time a callback is set, and never before; it passes on the events of
//! this library alone. Events are delivered on the thread on which they happen.
//!
//! No lock is held that a callback could wait for: events of other threads are delivered at the
//! same time, and a callback that blocks holds up only its own thread and [`set_callback`]. An
//! event that happens inside the callback is dropped, or it would never end; setting the callback
//! from inside the callback is refused, because it would wait for itself. A callback that panics
//! is stopped at the border; the library goes on.

use std::cell::Cell;
use std::fmt::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, TryLockError};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span;
use tracing::subscriber::{Interest, Subscriber};
use tracing::{Event, Level, Metadata};

use super::events;
use crate::base::error::{Error, Result};

/// Receives an event: its level (1 error to 5 trace), its target, and message and fields in one
/// line without control characters.
pub type Callback = Box<dyn Fn(u32, &str, &str) + Send + Sync>;

/// The most detailed level.
const LEVEL_MAX: u32 = 5;
/// Longest line in bytes; the rest is cut off. BOUND: fields carry paths of any length.
const LINE_BYTES_MAX: usize = 8192;

/// A callback and what it wants to hear.
struct Sink {
    level: u32,
    /// Read while it is called, written once to take it away.
    callback: RwLock<Option<Callback>>,
}

/// The sink in use. Held only to copy or exchange the pointer.
static CURRENT: Mutex<Option<Arc<Sink>>> = Mutex::new(None);
/// The level of the sink in use, so that an event nobody wants costs one load.
static LEVEL: AtomicU32 = AtomicU32::new(0);
/// One replacement at a time; true once the subscriber is installed.
static INSTALLED: Mutex<bool> = Mutex::new(false);

thread_local! {
    /// Whether this thread is inside the callback.
    static DELIVERING: Cell<bool> = const { Cell::new(false) };
}

/// Sets, replaces or (with `None` or level 0) removes the callback that receives the events of
/// this library up to a level: 0 off, 1 error, 2 warn, 3 info, 4 debug, 5 trace.
///
/// When it returns, no call of the earlier callback is running or will begin, on any thread.
/// Any thread may call it, except from inside a callback.
///
/// # Errors
/// `InvalidArgument` where the level is above 5; `Busy` where it is called from inside a
/// callback, or where the process has another global `tracing` subscriber, which then is the one
/// that receives the events. The earlier callback then stays.
pub fn set_callback(callback: Option<Callback>, level: u32) -> Result<()> {
    if level > LEVEL_MAX {
        return Err(Error::invalid(format!(
            "log level {level} is unknown (0 to {LEVEL_MAX} are)"
        )));
    }
    if DELIVERING.get() {
        return Err(Error::Busy(
            "the log cannot be set from inside its callback".to_owned(),
        ));
    }
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    let next = match callback.filter(|_| level > 0) {
        None => None,
        Some(callback) => {
            if !*installed {
                install()?;
                *installed = true;
            }
            Some(Arc::new(Sink {
                level,
                callback: RwLock::new(Some(callback)),
            }))
        }
    };
    LEVEL.store(
        next.as_ref().map_or(0, |sink| sink.level),
        Ordering::Relaxed,
    );
    let earlier = {
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, next)
    };
    if *installed {
        // `tracing` remembers per place whether an event is wanted; the answer has changed.
        tracing::callsite::rebuild_interest_cache();
    }
    if let Some(sink) = earlier {
        // Waits for the calls that are running. Who copied the pointer and comes later finds
        // nothing there.
        let callback = sink
            .callback
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(callback);
    }
    Ok(())
}

fn install() -> Result<()> {
    tracing::subscriber::set_global_default(LogSubscriber).map_err(|_| {
        Error::Busy(
            "set_log: the process has a global tracing subscriber already, which receives the \
             events"
                .to_owned(),
        )
    })
}

/// Hands an event to the callback in use, if it wants it.
fn deliver(level: u32, target: &str, event: &Event<'_>) {
    // One turn, unless the callback is being replaced at this very moment: then one more for
    // each replacement.
    loop {
        let sink = CURRENT
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Some(sink) = sink.filter(|sink| level <= sink.level) else {
            return;
        };
        let callback = match sink.callback.try_read() {
            Ok(callback) => callback,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => continue,
        };
        let Some(callback) = callback.as_deref() else {
            continue;
        };
        let line = line_of(event);
        // The library must survive its observer; a panic has told its story on its own.
        let _ = catch_unwind(AssertUnwindSafe(|| callback(level, target, &line)));
        return;
    }
}

/// Marks this thread as delivering until it is dropped.
struct Delivering;

impl Delivering {
    /// `None` where it is marked already, and where the thread is being torn down.
    fn enter() -> Option<Delivering> {
        let entered = DELIVERING
            .try_with(|flag| !flag.replace(true))
            .unwrap_or(false);
        // Made only where it was entered: dropping it clears the mark.
        entered.then(|| Delivering)
    }
}

impl Drop for Delivering {
    fn drop(&mut self) {
        // A thread that is being torn down has no flag left to clear.
        let _ = DELIVERING.try_with(|flag| flag.set(false));
    }
}

/// The subscriber: knows no spans, keeps nothing.
struct LogSubscriber;

impl Subscriber for LogSubscriber {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
            && is_ours(metadata.target())
            && number_of(*metadata.level()) <= LEVEL.load(Ordering::Relaxed)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match LEVEL.load(Ordering::Relaxed) {
            0 => LevelFilter::OFF,
            1 => LevelFilter::ERROR,
            2 => LevelFilter::WARN,
            3 => LevelFilter::INFO,
            4 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        })
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        if let Some(_delivering) = Delivering::enter() {
            let metadata = event.metadata();
            deliver(number_of(*metadata.level()), metadata.target(), event);
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// Whether a target is one of this library's.
fn is_ours(target: &str) -> bool {
    target
        .strip_prefix(events::ROOT)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn number_of(level: Level) -> u32 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => LEVEL_MAX,
    }
}

/// Message and fields in one line: `direct I/O refused path=/mnt/a errno=EINVAL`.
fn line_of(event: &Event<'_>) -> String {
    let mut fields = Fields {
        message: Line::default(),
        others: Line::default(),
    };
    event.record(&mut fields);
    let mut line = fields.message;
    if !line.0.is_empty() && !fields.others.0.is_empty() {
        // A line that is full stays as it is.
        let _ = line.write_char(' ');
    }
    let _ = line.write_str(&fields.others.0);
    line.0
}

/// A text that takes at most `LINE_BYTES_MAX` bytes and writes control characters as escapes.
#[derive(Default)]
struct Line(String);

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| self.write_char(c))
    }

    fn write_char(&mut self, c: char) -> fmt::Result {
        if self.0.len() + c.len_utf8() > LINE_BYTES_MAX {
            return Err(fmt::Error);
        }
        if c.is_control() {
            self.0.extend(c.escape_default());
        } else {
            self.0.push(c);
        }
        Ok(())
    }
}

/// Collects the fields of an event in their order. A write fails only where the line is full,
/// and what does not fit is left out.
struct Fields {
    message: Line,
    others: Line,
}

impl Fields {
    fn field(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        if field.name() == "message" {
            let _ = self.message.write_fmt(value);
            return;
        }
        let blank = if self.others.0.is_empty() { "" } else { " " };
        let _ = write!(self.others, "{blank}{}={value}", field.name());
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        let is_plain = !value.is_empty()
            && !value.contains(|c: char| c.is_whitespace() || c.is_control() || "\"=".contains(c));
        if is_plain || field.name() == "message" {
            self.field(field, format_args!("{value}"));
        } else {
            self.field(field, format_args!("{value:?}"));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.field(field, format_args!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU64};

    const TARGET: &str = "tensorswap::log_test";

    /// The log is the process's: one test at a time. Starts and ends without a callback.
    fn alone(test: impl FnOnce()) {
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        set_callback(None, 0).unwrap();
        test();
        set_callback(None, 0).unwrap();
    }

    type Lines = Arc<Mutex<Vec<(u32, String)>>>;

    /// A callback that keeps the lines of these tests; other tests of the process log too.
    fn keeping(lines: &Lines) -> Option<Callback> {
        let lines = Arc::clone(lines);
        Some(Box::new(move |level, target, line| {
            if target == TARGET {
                lines.lock().unwrap().push((level, line.to_owned()));
            }
        }))
    }

    fn taken(lines: &Lines) -> Vec<(u32, String)> {
        std::mem::take(&mut lines.lock().unwrap())
    }

    #[test]
    fn message_and_fields_are_one_line() {
        alone(|| {
            let lines = Lines::default();
            set_callback(keeping(&lines), 5).unwrap();
            tracing::warn!(target: TARGET, path = "/mnt/a", errno = 28, last = true, "no space");
            tracing::info!(target: TARGET, path = "a b=\"c\"\n\0", empty = "", "two\nlines\0 {}", 1);
            tracing::error!(target: TARGET, only = ?Some("field"));
            tracing::trace!(target: TARGET, "ß{}", "x".repeat(2 * LINE_BYTES_MAX));
            let mut lines = taken(&lines);
            let long = lines.pop().unwrap();
            assert_eq!(
                lines,
                [
                    (2, "no space path=/mnt/a errno=28 last=true".to_owned()),
                    (
                        3,
                        r#"two\nlines\u{0} 1 path="a b=\"c\"\n\0" empty="""#.to_owned()
                    ),
                    (1, "only=Some(\"field\")".to_owned()),
                ]
            );
            assert_eq!((long.0, long.1.len()), (5, LINE_BYTES_MAX));
        });
    }

    #[test]
    fn the_level_can_be_changed_both_ways_and_others_events_do_not_come() {
        alone(|| {
            let lines = Lines::default();
            let all = || {
                tracing::error!(target: TARGET, "1");
                tracing::warn!(target: TARGET, "2");
                tracing::info!(target: TARGET, "3");
                tracing::debug!(target: TARGET, "4");
                tracing::trace!(target: TARGET, "5");
            };
            for level in [2, 5, 0, 3, 1, 4] {
                set_callback(keeping(&lines), level).unwrap();
                all();
                let levels: Vec<u32> = taken(&lines).into_iter().map(|(level, _)| level).collect();
                assert_eq!(levels, (1..=level).collect::<Vec<_>>());
            }
            set_callback(None, 5).unwrap();
            all();
            assert!(taken(&lines).is_empty());
            assert!(matches!(
                set_callback(None, 6),
                Err(Error::InvalidArgument(_))
            ));
        });
        assert!(is_ours("tensorswap") && is_ours("tensorswap::io"));
        assert!(!is_ours("tensorswapper::io") && !is_ours("hyper"));
    }

    #[test]
    fn a_callback_that_logs_sets_itself_or_panics_does_no_harm() {
        alone(|| {
            let calls = Arc::new(AtomicU64::new(0));
            let seen = Arc::clone(&calls);
            let callback: Callback = Box::new(move |_, target, _| {
                if target == TARGET {
                    seen.fetch_add(1, Ordering::SeqCst);
                    tracing::error!(target: TARGET, "from inside");
                    assert!(matches!(set_callback(None, 0), Err(Error::Busy(_))));
                    std::panic::resume_unwind(Box::new("a panic of the callback"));
                }
            });
            set_callback(Some(callback), 5).unwrap();
            tracing::error!(target: TARGET, "one");
            tracing::error!(target: TARGET, "two");
            assert_eq!(calls.load(Ordering::SeqCst), 2);
        });
    }

    #[test]
    fn no_call_of_the_earlier_callback_after_it_was_replaced() {
        alone(|| {
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        while !stop.load(Ordering::Relaxed) {
                            tracing::info!(target: TARGET, "busy");
                        }
                    });
                }
                let delivered = Arc::new(AtomicU64::new(0));
                for _ in 0..300 {
                    let (alive, count) = (Arc::new(AtomicBool::new(true)), Arc::clone(&delivered));
                    let seen = Arc::clone(&alive);
                    let callback: Callback = Box::new(move |_, _, _| {
                        assert!(seen.load(Ordering::SeqCst), "called after it was replaced");
                        count.fetch_add(1, Ordering::SeqCst);
                    });
                    set_callback(Some(callback), 3).unwrap();
                    let before = delivered.load(Ordering::SeqCst);
                    while delivered.load(Ordering::SeqCst) == before {
                        std::thread::yield_now();
                    }
                    set_callback(None, 0).unwrap();
                    // All that the callback owned is gone with it.
                    assert_eq!(Arc::strong_count(&alive), 1);
                    alive.store(false, Ordering::SeqCst);
                }
                stop.store(true, Ordering::Relaxed);
            });
        });
    }
}
