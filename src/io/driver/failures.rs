//! Failures: what a task's error says, whom it is told, and what it makes later reads meet.
//!
//! The part of the [`Scheduler`] that words errors. The first error of a request is the request's;
//! every failed write is remembered with its file until the range has been rewritten.

use super::scheduler::Scheduler;
use super::task::runs;
use crate::base::error::{Error, IoFailure, errno_name};
use crate::io::request::{Direction, Failure};
use crate::io::storage::Errno;

/// Paths that are remembered because they could not be opened for writing; further ones are only
/// reported by their tickets.
const UNOPENED_MAX: usize = 4096;

impl Scheduler {
    /// Notes a task's error; the first of a request is the request's.
    pub(super) fn fail(&mut self, key: usize, offset: Option<u64>, error: Error) {
        let task = &mut self.tasks[key];
        if task.failed {
            return;
        }
        task.failed = true;
        self.counters.of(task.direction).errors.add(1);
        if task.direction == Direction::Out {
            self.stick(key, &error);
        }
        let task = &self.tasks[key];
        let live = &mut self.requests[task.request];
        let segments = live.request.segments(&live.request.files[task.part]);
        let struck = offset
            .and_then(|offset| segments.iter().find(|segment| segment.file_end() > offset))
            .or(segments.first());
        if live.failure.is_none() {
            live.failure = Some(Failure {
                error,
                index: struck.map_or(0, |segment| u64::from(segment.index)),
                user_tag: struck.map_or(0, |segment| segment.user_tag),
            });
        }
    }

    /// Makes later reads of what a failed write was to change fail as well: what is there is not
    /// what the caller last wrote.
    pub(super) fn stick(&mut self, key: usize, error: &Error) {
        let task = &self.tasks[key];
        if matches!(error, Error::Cancelled(_)) && !task.touched {
            return;
        }
        let request = &self.requests[task.request].request;
        let part = &request.files[task.part];
        let failed = if let Some(file) = self.files.files.get_mut(task.file) {
            &mut file.failed
        } else if self.unopened.len() < UNOPENED_MAX {
            self.unopened.entry(request.path(part).into()).or_default()
        } else {
            return;
        };
        for run in runs(request.segments(part), 0) {
            failed.add(run, error);
        }
    }

    /// Notes that direct I/O was required and refused.
    pub(super) fn fail_direct(&mut self, key: usize, errno: Errno) {
        let task = &self.tasks[key];
        let request = &self.requests[task.request].request;
        let path = String::from_utf8_lossy(request.path(&request.files[task.part])).into_owned();
        let message = format!(
            "{} {path}: {}: the file system refuses direct I/O (direct_io=require)",
            task.direction.operation(),
            errno_name(errno),
        );
        self.fail(key, None, Error::Unsupported { message, errno });
    }

    /// Notes an errno as the task's error.
    pub(super) fn fail_errno(
        &mut self,
        key: usize,
        offset: Option<u64>,
        errno: Errno,
        detail: &str,
    ) {
        let task = &self.tasks[key];
        let request = &self.requests[task.request].request;
        let path = request.path(&request.files[task.part]);
        let error = Error::io(task.direction.operation(), path, offset, errno, detail);
        self.fail(key, offset, error);
    }

    /// Notes that a read met the end of the file.
    pub(super) fn fail_short(&mut self, key: usize, offset: u64, end: u64, read_up_to_it: bool) {
        let task = &self.tasks[key];
        let request = &self.requests[task.request].request;
        let path = request.path(&request.files[task.part]);
        let error = Error::SizeMismatch(Box::new(IoFailure {
            operation: task.direction.operation(),
            path: String::from_utf8_lossy(path).into_owned(),
            offset_bytes: Some(offset),
            errno: 0,
            detail: format!(
                "the file ends at {end}{}, {} wanted",
                // What begins behind the end of the file cannot tell where that is.
                if read_up_to_it { "" } else { " or before" },
                task.bytes.end
            ),
        }));
        self.fail(key, Some(offset), error);
    }

    pub(super) fn fail_cancelled(&mut self, key: usize) {
        let task = &self.tasks[key];
        let request = &self.requests[task.request].request;
        let path = String::from_utf8_lossy(request.path(&request.files[task.part])).into_owned();
        let error = Error::Cancelled(format!(
            "{} {path}: cancelled ({} of {} bytes done)",
            task.direction.operation(),
            task.done_bytes,
            task.bytes.end - task.bytes.start,
        ));
        self.fail(key, None, error);
    }
}
