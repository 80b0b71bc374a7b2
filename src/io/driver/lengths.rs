//! Lengths of files: reserved before a writer starts, set exactly after it has ended.
//!
//! The part of the [`Scheduler`] that decides about a file's length. A padded tail or a shrinking
//! file needs its length set; that waits until no other writer of the file runs, because cutting a
//! file would hurt them, and new writers wait until it is done.

use std::sync::Arc;

use super::metadata::Job;
use super::scheduler::Scheduler;
use super::task::Phase;
use crate::io::storage::Errno;

impl Scheduler {
    /// Has the space reserved that a writer needs beyond the file's end; lets it run at
    /// once where there is nothing to reserve.
    pub(super) fn reserve(&mut self, key: usize) {
        let task = &self.tasks[key];
        let file = &self.files.files[task.file];
        let request = &self.requests[task.request].request;
        let segments = request.segments(&request.files[task.part]);
        let range = task.reservation(file.len_bytes, segments);
        if range.is_empty() || !file.reserves {
            self.run(key);
            return;
        }
        let handle = Arc::clone(&file.handle);
        self.tasks[key].phase = Phase::Reserving;
        self.tasks[key].reserved_end = range.end;
        self.tasks[key].reserving_at = self.files.now();
        self.metadata.post(Job::Reserve {
            task: key,
            handle,
            from: range.start,
            end: range.end,
        });
    }

    pub(super) fn reserved(&mut self, key: usize, result: Result<(), Errno>) {
        let task = &self.tasks[key];
        let file = &mut self.files.files[task.file];
        match result {
            Ok(()) => {
                file.disk_len_bytes = file.disk_len_bytes.max(task.reserved_end);
                self.run(key);
            }
            // The file system cannot: the writes themselves make the file longer.
            Err(libc::EOPNOTSUPP | libc::ENOSYS) => {
                file.reserves = false;
                self.run(key);
            }
            Err(errno) => {
                // A part may have been reserved: the file gets its old length back.
                file.disk_len_bytes = u64::MAX;
                if matches!(errno, libc::ENOSPC | libc::EDQUOT)
                    && self.files.free_space(self.tasks[key].reserving_at)
                {
                    self.reserve(key);
                    return;
                }
                let detail = format!("reserving space up to {}", self.tasks[key].reserved_end);
                let at = Some(self.tasks[key].bytes.start);
                self.fail_errno(key, at, errno, &detail);
                self.settle(key);
            }
        }
    }

    /// Brings the file's length to what a finished writer demands, then ends the task.
    pub(super) fn settle(&mut self, key: usize) {
        let task = &mut self.tasks[key];
        let file = &mut self.files.files[task.file];
        file.writers -= 1;
        file.disk_len_bytes = file.disk_len_bytes.max(task.written_end);
        if !task.failed {
            file.len_bytes = task.final_len(file.len_bytes);
        }
        let unsure = task.failed && task.touched;
        if unsure || file.disk_len_bytes != file.len_bytes || file.is_settling() {
            task.phase = Phase::Settling;
            file.settling.push(key);
            self.set_length(key);
        } else {
            self.end_task(key);
        }
    }

    /// Has the length set once no writer runs that a cut could hurt.
    pub(super) fn set_length(&mut self, key: usize) {
        let file_key = self.tasks[key].file;
        let file = &mut self.files.files[file_key];
        if file.writers > 0 || file.length_job {
            return;
        }
        file.length_job = true;
        let len_bytes = (file.disk_len_bytes != file.len_bytes).then_some(file.len_bytes);
        let handle = Arc::clone(&file.handle);
        self.metadata.post(Job::Length {
            file: file_key,
            handle,
            len_bytes,
        });
    }

    pub(super) fn settled(&mut self, file_key: usize, result: Result<u64, Errno>) {
        let file = &mut self.files.files[file_key];
        file.length_job = false;
        let mut settling = std::mem::take(&mut file.settling);
        self.startable.extend(file.held.drain(..));
        match result {
            Ok(len_bytes) => {
                file.len_bytes = len_bytes;
                file.disk_len_bytes = len_bytes;
            }
            Err(errno) => {
                for &task in &settling {
                    if !self.tasks[task].failed {
                        self.fail_errno(task, None, errno, "setting the file's length");
                    }
                }
            }
        }
        for task in settling.drain(..) {
            self.end_task(task);
        }
        // Its room is used again: the steady state allocates nothing.
        if let Some(file) = self.files.files.get_mut(file_key) {
            file.settling = settling;
        }
    }
}
