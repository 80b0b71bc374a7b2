//! Starting an engine: which backend, how many files; and telling about it afterwards.

use std::sync::Arc;

use serde_json::json;

use super::backend::fault::{FaultBackend, FaultPlan, FaultStorage};
use super::backend::memory::MemoryBackend;
use super::backend::threads::ThreadBackend;
use super::backend::uring::UringBackend;
use super::backend::{Backend, fault};
use super::counters::Counters;
use super::driver::{BackendFacts, Driver, MakeBackend};
use super::storage::Storage;
use super::storage::disk::DiskStorage;
use super::storage::memory::MemoryStorage;
use crate::base::config::{BackendChoice, EngineOptions};
use crate::base::error::{Error, Result, errno_name};
use crate::base::observe::trace::Trace;
use crate::memory::Registry;
use crate::sys;

/// Files kept open at most where the options leave it to the engine.
const OPEN_FILES_MAX: u32 = 16_384;

/// How many files may be open: as told, or half of what the process may have.
pub(super) fn open_files_max(options: &EngineOptions) -> usize {
    let limit = sys::file_limit().unwrap_or(1024);
    let half = u32::try_from(limit / 2)
        .unwrap_or(u32::MAX)
        .clamp(1, OPEN_FILES_MAX);
    let files = if options.open_files_max == 0 {
        half
    } else {
        options.open_files_max
    };
    files as usize
}

/// Starts the driver over the storage and the backend that the options choose.
pub(super) fn driver(
    options: &EngineOptions,
    files_max: usize,
    faults: Option<FaultPlan>,
    counters: Arc<Counters>,
    trace: Option<Arc<Trace>>,
) -> Result<(Driver, BackendFacts)> {
    let storage: Arc<dyn Storage> = match options.backend {
        BackendChoice::Memory => Arc::new(MemoryStorage::default()),
        _ => Arc::new(DiskStorage::new(options.direct_io)),
    };
    let chosen = options.clone();
    let Some(plan) = faults else {
        let make: MakeBackend = Box::new(move || backend(&chosen));
        return Driver::start(options, files_max, storage, make, counters, trace);
    };
    let buffered = Arc::new(fault::BufferedFiles::default());
    let storage = Arc::new(FaultStorage::new(storage, plan, Arc::clone(&buffered)));
    let make: MakeBackend = Box::new(move || {
        let (inner, facts) = backend(&chosen)?;
        Ok((
            Box::new(FaultBackend::new(inner, plan, buffered)) as Box<dyn Backend>,
            facts,
        ))
    });
    Driver::start(options, files_max, storage, make, counters, trace)
}

/// The backend that the options choose; runs on the driver thread.
fn backend(options: &EngineOptions) -> Result<(Box<dyn Backend>, BackendFacts)> {
    let depth = options.queue_depth;
    match options.backend {
        BackendChoice::Memory => Ok((
            Box::new(MemoryBackend::default()),
            BackendFacts {
                name: "memory",
                reason: "chosen".to_owned(),
            },
        )),
        BackendChoice::Threads => threads(options, "chosen".to_owned()),
        BackendChoice::IoUring | BackendChoice::Auto => {
            match UringBackend::new(depth, options.sqpoll, options.register_buffers) {
                Ok(ring) => {
                    let reason = format!("ring flags: {}", ring.features());
                    Ok((
                        Box::new(ring),
                        BackendFacts {
                            name: "io_uring",
                            reason,
                        },
                    ))
                }
                Err(errno) if options.backend == BackendChoice::Auto => {
                    threads(options, refusal(errno))
                }
                Err(errno) => Err(Error::Unsupported {
                    message: refusal(errno),
                    errno,
                }),
            }
        }
    }
}

fn threads(options: &EngineOptions, reason: String) -> Result<(Box<dyn Backend>, BackendFacts)> {
    let backend = ThreadBackend::new(options.threads, options.queue_depth)?;
    Ok((
        Box::new(backend),
        BackendFacts {
            name: "threads",
            reason,
        },
    ))
}

/// Why there is no ring, and what mends it.
fn refusal(errno: i32) -> String {
    let cause = match errno {
        libc::EPERM => "forbidden by a seccomp profile or by kernel.io_uring_disabled",
        libc::ENOSYS => "not in this kernel, or forbidden by a seccomp profile",
        libc::ENOMEM => "locked memory is exhausted (RLIMIT_MEMLOCK)",
        libc::EMFILE | libc::ENFILE => "too many files are open (RLIMIT_NOFILE)",
        _ => "refused by the kernel",
    };
    format!("io_uring_setup: {}: {cause}", errno_name(errno))
}

/// What is in effect, as JSON.
pub(super) fn describe(
    options: &EngineOptions,
    files_max: usize,
    backend: &BackendFacts,
    registry: &Registry,
) -> String {
    let buffers: Vec<_> = registry
        .buffers()
        .iter()
        .map(|buffer| {
            json!({
                "len_bytes": buffer.len_bytes(),
                "pages": buffer.pages_name(),
                "locked": buffer.is_locked(),
                "registered": buffer.ring_slot().is_some(),
            })
        })
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "kernel": sys::kernel_release(),
        "backend": backend.name,
        "backend_reason": backend.reason,
        "queue_depth": options.queue_depth,
        "block_bytes": options.block_bytes,
        "threads": options.threads,
        "direct_io": options.direct_io.name(),
        "pin": options.pin.name(),
        "huge_pages": options.huge_pages.name(),
        "register_buffers": options.register_buffers,
        "tickets_max": options.tickets_max,
        "open_files_max": files_max,
        "memlock_limit_bytes": sys::memlock_limit_bytes().ok(),
        "buffers": buffers,
    })
    .to_string()
}
