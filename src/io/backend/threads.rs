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

/// The transfers of one device that no worker has taken yet.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<(u64, Transfer)>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Work {
    queue: Mutex<Queue>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Done {
    reaped: Vec<Reaped>,
    woken: bool,
}

#[derive(Debug, Default)]
struct Results {
    done: Mutex<Done>,
    news: Condvar,
}

impl Wake for Results {
    fn wake(&self) {
        lock(&self.done).woken = true;
        self.news.notify_one();
    }
}

/// The workers of one device.
#[derive(Debug)]
struct Pool {
    work: Arc<Work>,
    /// Submitted since the last `drive`; handed over in one go.
    staged: Vec<(u64, Transfer)>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts workers, as many of `threads` as can be; the error is why there is none.
    fn start(
        device: usize,
        threads: u32,
        depth: usize,
        results: &Arc<Results>,
    ) -> std::io::Result<Pool> {
        let work = Arc::new(Work::default());
        lock(&work.queue).waiting.reserve(depth);
        let mut workers = Vec::new();
        for number in 0..threads {
            let (work, results) = (Arc::clone(&work), Arc::clone(results));
            let started = std::thread::Builder::new()
                .name(format!("tsw-io-{device}-{number}"))
                .spawn(move || run(&work, &results));
            match started {
                Ok(worker) => workers.push(worker),
                Err(error) if workers.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(Pool {
            work,
            staged: Vec::with_capacity(depth),
            workers,
        })
    }

    /// Hands over what was staged.
    fn send(&mut self) {
        let count = self.staged.len();
        if count == 0 {
            return;
        }
        lock(&self.work.queue).waiting.extend(self.staged.drain(..));
        if count > 1 {
            self.work.news.notify_all();
        } else {
            self.work.news.notify_one();
        }
    }
}

/// Threads that each do one transfer at a time: a pool of them for each device, so that a device
/// that hangs holds up only its own.
#[derive(Debug)]
pub(crate) struct ThreadBackend {
    /// By index of the device; started with its first transfer. None where no thread could be
    /// had: then the first device's do the work.
    pools: Vec<Option<Pool>>,
    /// Workers of each device, and its depth.
    threads: u32,
    depth: usize,
    results: Arc<Results>,
}

impl ThreadBackend {
    /// Starts `threads` workers with room for `depth` transfers for the first device; further
    /// devices get as many.
    ///
    /// # Errors
    /// `Unsupported` where not even one thread can be started.
    pub(crate) fn new(threads: u32, depth: u32) -> Result<ThreadBackend> {
        let results = Arc::new(Results::default());
        let depth = depth as usize;
        lock(&results.done).reaped.reserve(depth);
        let first = Pool::start(0, threads, depth, &results);
        let first = first.map_err(|error| Error::Unsupported {
            message: format!("no I/O thread could be started: {error}"),
            errno: error.raw_os_error().unwrap_or(0),
        })?;
        Ok(ThreadBackend {
            pools: vec![Some(first)],
            threads,
            depth,
            results,
        })
    }

    /// The workers that serve a device.
    fn pool(&mut self, device: usize) -> Option<&mut Pool> {
        while self.pools.len() <= device {
            let next = self.pools.len();
            let pool = Pool::start(next, self.threads, self.depth, &self.results);
            self.pools.push(pool.ok());
        }
        let served_by = if self.pools[device].is_some() {
            device
        } else {
            0
        };
        self.pools[served_by].as_mut()
    }
}

impl Backend for ThreadBackend {
    fn submit(&mut self, key: u64, transfer: Transfer) {
        // The first device always has its workers.
        if let Some(pool) = self.pool(transfer.device) {
            pool.staged.push((key, transfer));
        }
    }

    fn drive(&mut self, wait: bool, reaped: &mut Vec<Reaped>) -> Result<(), Errno> {
        self.pools.iter_mut().flatten().for_each(Pool::send);
        let mut done = lock(&self.results.done);
        while wait && done.reaped.is_empty() && !done.woken {
            done = self
                .results
                .news
                .wait(done)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        done.woken = false;
        reaped.append(&mut done.reaped);
        Ok(())
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.results) as Arc<dyn Wake>
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.work.queue).closed = true;
        self.work.news.notify_all();
        for worker in self.workers.drain(..) {
            // A worker cannot panic: it only makes system calls. Its end is all that matters here.
            let _ended = worker.join();
        }
    }
}

/// What each worker does until the queue is closed and empty.
fn run(work: &Work, results: &Results) {
    sys::block_signals();
    let mut queue = lock(&work.queue);
    loop {
        if let Some((key, transfer)) = queue.waiting.pop_front() {
            drop(queue);
            let result = move_bytes(&transfer);
            drop(transfer);
            lock(&results.done).reaped.push(Reaped { key, result });
            results.news.notify_one();
            queue = lock(&work.queue);
        } else if queue.closed {
            return;
        } else {
            queue = work
                .news
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::config::Policy;
    use crate::memory::Buffer;

    #[test]
    fn workers_of_one_device_do_nothing_for_another() {
        let file = tempfile::tempfile().unwrap();
        let file = Arc::new(FileHandle::Disk(file.into()));
        let buffer = Buffer::allocate(4096, Policy::Off, Policy::Off).unwrap();
        let transfer = |device| Transfer {
            direction: Direction::Out,
            device,
            file: Arc::clone(&file),
            memory: buffer.range(),
            file_offset: 0,
            ring_slot: None,
        };
        let mut backend = ThreadBackend::new(1, 4).unwrap();
        let work = Arc::clone(&backend.pools[0].as_ref().unwrap().work);
        // The only worker of the first device can take nothing while this is locked.
        let hangs = lock(&work.queue);
        let mut reaped = Vec::new();
        for key in 0..10 {
            backend.submit(key, transfer(2));
            while reaped.is_empty() {
                backend.drive(true, &mut reaped).unwrap();
            }
            let result = Ok(buffer.range().len());
            assert_eq!(std::mem::take(&mut reaped), [Reaped { key, result }]);
        }
        drop(hangs);
        backend.submit(10, transfer(0));
        backend.drive(true, &mut reaped).unwrap();
        assert_eq!(reaped[0].key, 10);
    }
}
