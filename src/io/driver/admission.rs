//! Admission: from a path in a request to a place in the order of its file.
//!
//! The part of the [`Scheduler`] that has files found and opened, ahead of their turn and several
//! at once, and then admits tasks strictly in the order of submission. What a metadata thread saw
//! before an earlier task changed it is not believed.

use std::sync::Arc;

use super::metadata::{Found, Job};
use super::scheduler::Scheduler;
use super::task::{Phase, Task};
use crate::base::observe::events;
use crate::io::request::{Direction, Length};
use crate::io::storage::{FileIdentity, OpenedFile};

impl Scheduler {
    /// Turns parts of requests into tasks and has their files resolved, as far as bounds allow.
    pub(super) fn extend_window(&mut self) {
        while self.window.len() < self.limits.window {
            let Some(&key) = self.backlog.front() else {
                return;
            };
            let live = &mut self.requests[key];
            let part = live.next_part;
            live.next_part += 1;
            if live.next_part == live.request.files.len() {
                self.backlog.pop_front();
            }
            let request = Arc::clone(&self.requests[key].request);
            let task = self.tasks.insert(Task::new(key, part, &request));
            self.tasks[task].resolved_at = self.files.now();
            self.window.push_back(task);
            self.metadata.post(Job::Resolve {
                task,
                request,
                part,
                open: false,
            });
        }
    }

    fn resolve_again(&mut self, task: usize, open: bool) {
        let (request, part) = (self.tasks[task].request, self.tasks[task].part);
        let request = Arc::clone(&self.requests[request].request);
        self.tasks[task].phase = Phase::Resolving;
        self.tasks[task].resolved_at = self.files.now();
        self.metadata.post(Job::Resolve {
            task,
            request,
            part,
            open,
        });
    }

    /// Admits the oldest task of the window if its file is known; true if something moved.
    pub(super) fn admit_front(&mut self) -> bool {
        let Some(&task) = self.window.front() else {
            return false;
        };
        if !matches!(self.tasks[task].phase, Phase::Resolved(_)) {
            return false;
        }
        if !self.has_room_for(task) {
            return false;
        }
        let phase = std::mem::replace(&mut self.tasks[task].phase, Phase::Queued);
        let Phase::Resolved(found) = phase else {
            return false;
        };
        match found {
            Err(errno @ (libc::EMFILE | libc::ENFILE)) if self.can_free_descriptors() => {
                events::descriptors_exhausted(errno);
                self.tasks[task].phase = Phase::Starved;
                self.feed_starved();
                return false;
            }
            // An earlier write may have made, or opened, the file since a metadata thread looked:
            // then this task's failure comes after what that write does.
            Err(_) if self.writer_admitted_at > self.tasks[task].resolved_at => {
                self.resolve_again(task, false);
            }
            // Deleted files that are open here may keep the last blocks and inodes.
            Err(libc::ENOSPC | libc::EDQUOT)
                if self.files.free_space(self.tasks[task].resolved_at) =>
            {
                self.resolve_again(task, true);
            }
            Err(errno) => {
                self.window.pop_front();
                let detail = match errno {
                    libc::ESTALE => "the path leads to another file than before",
                    _ => "opening the file",
                };
                self.fail_errno(task, None, errno, detail);
                self.end_task(task);
            }
            Ok(Found::Known {
                identity,
                len_bytes,
            }) => {
                let usable = self.files.find(identity).filter(|key| {
                    self.files.files[*key].writable || self.tasks[task].direction == Direction::In
                });
                match usable {
                    Some(file) => self.admit(task, file, len_bytes),
                    // Closed since a metadata thread looked.
                    None => self.resolve_again(task, true),
                }
            }
            Ok(Found::Opened(opened)) if self.limits.require_direct && !opened.direct => {
                self.window.pop_front();
                self.fail_direct(task, opened.fallback_errno.unwrap_or(libc::EINVAL));
                self.end_task(task);
            }
            // Written by us and closed since a metadata thread looked at its length.
            Ok(Found::Opened(opened))
                if self.files.find(opened.identity).is_none()
                    && self
                        .files
                        .forgot_since(opened.identity, self.tasks[task].resolved_at) =>
            {
                self.resolve_again(task, true);
            }
            Ok(Found::Opened(opened)) => {
                let len_bytes = opened.len_bytes;
                self.note_fallback(task, &opened);
                let device = self.devices.index_of(opened.identity.device);
                self.flights.grow_to(self.devices.depth());
                let file = self.files.insert(opened, device);
                self.admit(task, file, len_bytes);
            }
        }
        true
    }

    /// Whether the task's file is in the table, or room for it could be made.
    fn has_room_for(&mut self, task: usize) -> bool {
        let Phase::Resolved(Ok(Found::Opened(opened))) = &self.tasks[task].phase else {
            return true;
        };
        self.files.find(opened.identity).is_some()
            || self
                .files
                .make_room(&mut |handle| self.metadata.post(Job::Close { handle }))
    }

    /// Whether descriptors of ours are open that could be closed, now or later.
    fn can_free_descriptors(&self) -> bool {
        let holds = |task: &usize| {
            matches!(
                self.tasks[*task].phase,
                Phase::Resolved(Ok(Found::Opened(_)))
            )
        };
        !self.files.files.is_empty() || self.window.iter().any(holds)
    }

    /// Closes the files that were opened ahead of their turn; they are opened again then.
    fn close_window(&mut self) -> bool {
        let mut closed = false;
        for task in &self.window {
            let phase = &mut self.tasks[*task].phase;
            if let Phase::Resolved(Ok(Found::Opened(opened))) = phase {
                let known = Found::Known {
                    identity: opened.identity,
                    len_bytes: opened.len_bytes,
                };
                let handle = Arc::clone(&opened.handle);
                *phase = Phase::Resolved(Ok(known));
                self.metadata.post(Job::Close { handle });
                closed = true;
            }
        }
        closed
    }

    /// Closes a file that no task uses.
    pub(super) fn close_file(&mut self, identity: FileIdentity) {
        if let Some(handle) = self.files.close(identity) {
            self.metadata.post(Job::Close { handle });
        }
    }

    /// Tries again what found too many files open.
    pub(super) fn feed_starved(&mut self) {
        let Some(&task) = self.window.front() else {
            return;
        };
        if !matches!(self.tasks[task].phase, Phase::Starved) {
            return;
        }
        let evicted = self
            .files
            .evict(&mut |handle| self.metadata.post(Job::Close { handle }));
        if evicted || self.close_window() || self.files.files.is_empty() {
            self.resolve_again(task, false);
        }
    }

    fn note_fallback(&self, task: usize, opened: &OpenedFile) {
        if let Some(errno) = opened.fallback_errno {
            let task = &self.tasks[task];
            self.counters.of(task.direction).fallbacks.add(1);
            let request = &self.requests[task.request].request;
            events::direct_io_fallback(request.path(&request.files[task.part]), errno);
        }
    }

    /// Puts the oldest task of the window into the order of its file.
    fn admit(&mut self, task: usize, file: usize, len_bytes: u64) {
        self.window.pop_front();
        self.files.thin_out(|| {
            let window = self.window.iter().chain([&task]);
            let moments = window.map(|task| self.tasks[*task].resolved_at);
            moments.min().unwrap_or(0)
        });
        self.recall_failure(task, file);
        if self.tasks[task].direction == Direction::Out {
            self.agree_on_length(task, file);
            self.writer_admitted_at = self.files.tick();
        }
        let entry = &mut self.files.files[file];
        let fresh = entry.believed_from <= self.tasks[task].resolved_at;
        if fresh && entry.queue.is_empty() && !entry.is_settling() {
            // Nobody of ours has changed the file since: storage knows best.
            entry.len_bytes = len_bytes;
            entry.disk_len_bytes = len_bytes;
        }
        self.tasks[task].file = file;
        // Only a write that sets the length can shorten the file, and all later ones wait for it.
        if !entry
            .queue
            .iter()
            .any(|earlier| self.tasks[*earlier].sets_length())
        {
            entry.planned_len_bytes = entry.len_bytes;
        }
        let admitted = &mut self.tasks[task];
        admitted.concern(entry.alignment, entry.planned_len_bytes);
        if admitted.sets_length() {
            entry.planned_len_bytes = admitted.final_len(entry.planned_len_bytes);
        }
        let blockers = entry
            .queue
            .iter()
            .filter(|earlier| self.tasks[task].must_wait_for(&self.tasks[**earlier]))
            .count();
        self.tasks[task].blockers = blockers;
        entry.queue.push_back(task);
        if blockers == 0 {
            self.startable.push_back(task);
        }
    }

    /// Gives the file what failed when its path could not be opened.
    fn recall_failure(&mut self, task: usize, file: usize) {
        if self.unopened.is_empty() {
            return;
        }
        let task = &self.tasks[task];
        let request = &self.requests[task.request].request;
        let path = request.path(&request.files[task.part]);
        if let Some(failed) = self.unopened.remove(path) {
            self.files.files[file].failed.add_all(failed);
        }
    }

    /// One list may name one file in several ways: the file then ends with the largest end of all.
    fn agree_on_length(&mut self, key: usize, file: usize) {
        let file = &mut self.files.files[file];
        let (group, end) = (self.tasks[key].group, self.tasks[key].target_len());
        if file.group.0 != group {
            file.group = (group, end);
            return;
        }
        let end = end.max(file.group.1);
        file.group.1 = end;
        for member in file.queue.iter().chain([&key]) {
            let member = &mut self.tasks[*member];
            if member.group == group
                && member.direction == Direction::Out
                && let Length::Exact { bytes, .. } = &mut member.length
            {
                *bytes = end;
            }
        }
    }
}
