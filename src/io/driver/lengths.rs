//! Lengths of files: reserved before a writer starts, set exactly after it has ended.
//!
//! The part of the [`Scheduler`] that decides about a file's length. A padded tail or a shrinking
//! file needs its length set; that waits until no other writer of the file runs, because cutting a
//! file would hurt them, and new writers wait until it is done.

use std::sync::Arc;

use super::metadata::Job;
use super::scheduler::Scheduler;
use super::task::Phase;
use crate::io::storage::{Errno, FileHandle};

impl Scheduler {
    pub(super) fn reserve(
        &mut self,
        task: usize,
        from: u64,
        end: u64,
        close: Vec<Arc<FileHandle>>,
    ) {
        self.tasks[task].phase = Phase::Reserving;
        let handle = Arc::clone(&self.files.files[self.tasks[task].file].handle);
        self.metadata.post(Job::Reserve {
            task,
            handle,
            from,
            end,
            close,
        });
    }

    pub(super) fn reserved(&mut self, key: usize, result: Result<(), Errno>) {
        if matches!(result, Err(libc::ENOSPC | libc::EDQUOT)) {
            // Files that the caller deleted keep their space as long as they are open here.
            let mut close = Vec::new();
            while self.files.evict(&mut |handle| close.push(handle)) {}
            if !close.is_empty() {
                let task = &self.tasks[key];
                let from = self.files.files[task.file].len_bytes;
                let end = task.target_len().max(from);
                self.reserve(key, from, end, close);
                return;
            }
        }
        let task = &mut self.tasks[key];
        let file = &mut self.files.files[task.file];
        match result {
            Ok(()) => {
                file.len_bytes = file.len_bytes.max(task.target_len());
                file.disk_len_bytes = file.disk_len_bytes.max(file.len_bytes);
                self.run(key);
            }
            Err(errno) => {
                // A part may have been reserved: the file gets its old length back.
                file.disk_len_bytes = u64::MAX;
                let detail = format!("reserving {} bytes", task.target_len());
                let at = Some(task.bytes.start);
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
        let settling = std::mem::take(&mut file.settling);
        let held = std::mem::take(&mut file.held);
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
        for task in settling {
            self.end_task(task);
        }
        self.startable.extend(held);
    }
}
