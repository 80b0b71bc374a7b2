//! What the optimizer adds to the engine's timeline: what becomes of each parameter, and what the
//! threads do with it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::base::observe::trace::{Details, Row, Span, Trace};
use crate::base::sync::{Mutex, lock};
use crate::io::Engine;

/// The timeline, where the engine has one.
#[derive(Debug)]
pub(super) struct Timeline {
    drawn: Option<Drawn>,
}

#[derive(Debug)]
struct Drawn {
    trace: Arc<Trace>,
    /// Since when records are moving.
    moving: Mutex<HashMap<u32, Instant>>,
}

impl Timeline {
    pub(super) fn new(engine: &Engine) -> Timeline {
        let drawn = engine.trace().map(|trace| Drawn {
            trace: Arc::clone(trace),
            moving: Mutex::default(),
        });
        Timeline { drawn }
    }

    /// A record is about to be read or written.
    pub(super) fn move_begins(&self, record: u32) {
        if let Some(drawn) = &self.drawn {
            lock(&drawn.moving).insert(record, Instant::now());
        }
    }

    /// A record was read or written.
    pub(super) fn move_ended(&self, record: u32, id: u64, writes: bool, failed: bool) {
        let Some(drawn) = &self.drawn else { return };
        let Some(started) = lock(&drawn.moving).remove(&record) else {
            return;
        };
        let name = if writes { "write" } else { "read" };
        let details = Details {
            failed,
            ..Details::default()
        };
        let span = Span::new(name, Row::Parameter(id), started, details);
        drawn.trace.span(span);
    }

    /// A caller had a parameter until now.
    pub(super) fn updated(&self, id: u64, started: Instant) {
        if let Some(drawn) = &self.drawn {
            let details = Details::default();
            let span = Span::new("update", Row::Parameter(id), started, details);
            drawn.trace.span(span);
        }
    }

    /// The calling thread has worked on a parameter until now.
    pub(super) fn worked(&self, name: &'static str, id: u64, started: Instant) {
        let Some(drawn) = &self.drawn else { return };
        let span = Span::new(name, Row::Parameter(id), started, Details::default());
        drawn.trace.span(span);
        let details = Details {
            parameter: Some(id),
            ..Details::default()
        };
        drawn
            .trace
            .span(Span::of_this_thread(name, started, details));
    }
}
