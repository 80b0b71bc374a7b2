//! The thread pool backend: `preadv`/`pwritev` on worker threads.
//!
//! The fallback where the kernel or a container's seccomp profile refuses io_uring: as fast for
//! large transfers, at about twice the CPU. Workers end when the backend is dropped, after what is
//! queued has been done.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::{Backend, Reaped, Transfer, Wake};
use crate::base::error::{Error, Result};
use crate::base::sync::{Condvar, Mutex, lock};
use crate::io::request::Direction;
use crate::io::storage::{Errno, FileHandle};
use crate::sys;

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<(u64, Transfer)>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Results {
    done: Vec<Reaped>,
    woken: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    results: Mutex<Results>,
    news: Condvar,
}

impl Wake for Shared {
    fn wake(&self) {
        lock(&self.results).woken = true;
        self.news.notify_one();
    }
}

/// A pool of threads that each do one transfer at a time.
#[derive(Debug)]
pub(crate) struct ThreadBackend {
    shared: Arc<Shared>,
    /// Submitted since the last `drive`; handed over in one go.
    staged: Vec<(u64, Transfer)>,
    workers: Vec<JoinHandle<()>>,
}

impl ThreadBackend {
    /// Starts `threads` workers with room for `depth` transfers.
    ///
    /// # Errors
    /// `Unsupported` where not even one thread can be started.
    pub(crate) fn new(threads: u32, depth: u32) -> Result<ThreadBackend> {
        let shared = Arc::new(Shared::default());
        let depth = depth as usize;
        lock(&shared.queue).waiting.reserve(depth);
        lock(&shared.results).done.reserve(depth);
        let mut workers = Vec::new();
        for number in 0..threads {
            let shared = Arc::clone(&shared);
            let started = std::thread::Builder::new()
                .name(format!("tsw-io-{number}"))
                .spawn(move || work(&shared));
            match started {
                Ok(worker) => workers.push(worker),
                Err(error) if workers.is_empty() => {
                    return Err(Error::Unsupported {
                        message: format!("no I/O thread could be started: {error}"),
                        errno: error.raw_os_error().unwrap_or(0),
                    });
                }
                Err(_) => break,
            }
        }
        Ok(ThreadBackend {
            shared,
            staged: Vec::with_capacity(depth),
            workers,
        })
    }
}

impl Backend for ThreadBackend {
    fn submit(&mut self, key: u64, transfer: Transfer) {
        self.staged.push((key, transfer));
    }

    fn drive(&mut self, wait: bool, reaped: &mut Vec<Reaped>) -> Result<(), Errno> {
        let count = self.staged.len();
        if count > 0 {
            lock(&self.shared.queue)
                .waiting
                .extend(self.staged.drain(..));
            if count > 1 {
                self.shared.work.notify_all();
            } else {
                self.shared.work.notify_one();
            }
        }
        let mut results = lock(&self.shared.results);
        while wait && results.done.is_empty() && !results.woken {
            results = self
                .shared
                .news
                .wait(results)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        results.woken = false;
        reaped.append(&mut results.done);
        Ok(())
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.shared) as Arc<dyn Wake>
    }
}

impl Drop for ThreadBackend {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.work.notify_all();
        for worker in self.workers.drain(..) {
            // A worker cannot panic: it only makes system calls. Its end is all that matters here.
            let _ended = worker.join();
        }
    }
}

/// What each worker does until the queue is closed and empty.
fn work(shared: &Shared) {
    sys::block_signals();
    let mut queue = lock(&shared.queue);
    loop {
        if let Some((key, transfer)) = queue.waiting.pop_front() {
            drop(queue);
            let result = move_bytes(&transfer);
            drop(transfer);
            lock(&shared.results).done.push(Reaped { key, result });
            shared.news.notify_one();
            queue = lock(&shared.queue);
        } else if queue.closed {
            return;
        } else {
            queue = shared
                .work
                .wait(queue)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}

fn move_bytes(transfer: &Transfer) -> Result<usize, Errno> {
    let FileHandle::Disk(file) = &*transfer.file else {
        return Err(libc::EBADF);
    };
    match transfer.direction {
        Direction::Out => sys::pwrite(file.as_fd(), transfer.memory, transfer.file_offset),
        Direction::In => sys::pread(file.as_fd(), transfer.memory, transfer.file_offset),
    }
}
