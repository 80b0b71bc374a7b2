//! Whether somebody uses a store, without touching its lock.

use std::os::linux::fs::MetadataExt;
use std::path::Path;

use procfs::{FromRead, LockType};
use serde::Serialize;

/// Who uses a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub(crate) enum Usage {
    /// Nobody, and whoever did ended in order.
    Free,
    /// A process has it locked.
    InUse {
        /// Its number, where this process can see it.
        pid: Option<i32>,
    },
    /// Nobody; the process that had it was killed or lost power.
    LeftByKilled,
    /// The system does not tell.
    Unknown,
}

/// Compares the lock file with the locks that the kernel lists. Opening and locking the file to see
/// would keep a process out that wants the store at this moment.
pub(crate) fn usage_of(store: &Path) -> Usage {
    let lock = store.join("lock");
    let (Ok(status), Ok(text)) = (lock.metadata(), std::fs::read_to_string(&lock)) else {
        return Usage::Unknown;
    };
    let Ok(locks) = procfs::Locks::from_file("/proc/locks") else {
        return Usage::Unknown;
    };
    let holder: Option<i32> = text.trim_end().parse().ok();
    let device = rustix::fs::major(status.st_dev()) << 20 | rustix::fs::minor(status.st_dev());
    let found = locks.0.iter().find(|found| {
        // Some file systems show another device here than to stat(2); the process is proof as well.
        let is_here = found.devmaj << 20 | found.devmin == device
            || (found.pid.is_some() && found.pid == holder);
        found.lock_type == LockType::FLock && found.inode == status.st_ino() && is_here
    });
    match found {
        Some(found) => Usage::InUse {
            // 0: it runs in another namespace.
            pid: found.pid.filter(|pid| *pid > 0),
        },
        None if text.is_empty() => Usage::Free,
        None => Usage::LeftByKilled,
    }
}
