//! The limits of locked memory and of open files.

use rustix::process::{Resource, getrlimit};
use tensorswap::base::config::Policy;
use tensorswap::memory::PinnedMemory;

use super::finding::Finding;
use crate::sizes::shown;

/// What is locked to see whether it can be: more than the usual limit of a user.
const PROBE_BYTES: u64 = 64 << 20;
/// Fewer open files than this are soon in use.
const OPEN_FILES_MIN: u64 = 4096;

pub(super) fn findings() -> Vec<Finding> {
    vec![locked_memory(), open_files()]
}

/// The limit does not say it all: privileged processes may lock what they want.
fn locked_memory() -> Finding {
    let limit = match tensorswap::sys::memlock_limit_bytes() {
        Ok(u64::MAX) | Err(_) => "no limit".to_owned(),
        Ok(bytes) => format!("limit {}", shown(bytes)),
    };
    match PinnedMemory::allocate(PROBE_BYTES, Policy::Require, Policy::Off) {
        Ok(_) => Finding::good(
            "locked memory",
            format!("{limit}; {} were locked", shown(PROBE_BYTES)),
        ),
        Err(error) => Finding::remark("locked memory", limit)
            .meaning(format!(
                "buffers stay unlocked, and under memory pressure the kernel may take them away \
                 ({error})"
            ))
            .mend("sudo prlimit --pid $$ --memlock=unlimited:unlimited")
            .mend(
                "for every login: echo '* - memlock unlimited' | sudo tee \
                 /etc/security/limits.d/90-tensorswap.conf",
            ),
    }
}

fn open_files() -> Finding {
    let limit = getrlimit(Resource::Nofile);
    let (soft, hard) = (limit.current, limit.maximum);
    let seen = match soft {
        None => "no limit".to_owned(),
        Some(soft) => format!("limit {soft}"),
    };
    match (soft, hard) {
        (Some(soft), hard) if soft < OPEN_FILES_MIN => {
            let command = match hard {
                Some(hard) if hard < OPEN_FILES_MIN => {
                    "sudo prlimit --pid $$ --nofile=65536:65536".to_owned()
                }
                Some(hard) => format!("ulimit -n {}", hard.min(65536)),
                None => "ulimit -n 65536".to_owned(),
            };
            Finding::remark("open files", seen)
                .meaning("many small tensors in files of their own are opened again and again")
                .mend(command)
        }
        _ => Finding::good("open files", seen),
    }
}
