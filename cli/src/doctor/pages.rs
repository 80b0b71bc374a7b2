//! Huge pages: reserved ones, and transparent ones.

use procfs::{FromRead, Meminfo};
use tensorswap::base::config::Policy;
use tensorswap::memory::{PageKind, PinnedMemory};

use super::finding::Finding;
use crate::sizes::shown;

/// What is allocated to see in what pages it comes.
const PROBE_BYTES: u64 = 32 << 20;
const TRANSPARENT: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

pub(super) fn findings() -> Vec<Finding> {
    let reserved = match Meminfo::from_file("/proc/meminfo") {
        Ok(memory) => {
            let total = memory.hugepages_total.unwrap_or(0);
            let free = memory.hugepages_free.unwrap_or(0);
            let page = memory.hugepagesize.unwrap_or(0);
            match total {
                0 => "none reserved".to_owned(),
                total => format!("{free} of {total} reserved ones of {} free", shown(page)),
            }
        }
        Err(_) => "reserved ones not known".to_owned(),
    };
    let mode = transparent_mode();
    let transparent = mode.as_deref().unwrap_or("not in this kernel");
    let seen = format!("{reserved}; transparent ones: {transparent}");
    vec![judged(seen, mode.as_deref())]
}

/// What memory comes in is what counts, whatever the settings say.
fn judged(seen: String, mode: Option<&str>) -> Finding {
    let memory = PinnedMemory::allocate(PROBE_BYTES, Policy::Off, Policy::Prefer);
    let wish = |seen: String| {
        Finding::remark("huge pages", seen)
            .meaning("transfers from 4 KiB pages take up to twice the time and five times the CPU")
    };
    match memory.map(|memory| memory.pages()) {
        Ok(PageKind::HugeTlb) => Finding::good("huge pages", seen + "; buffers get reserved ones"),
        Ok(PageKind::Transparent) => {
            Finding::good("huge pages", seen + "; buffers get transparent ones")
        }
        Ok(PageKind::Base) => {
            let finding = wish(seen + "; buffers get none");
            match mode {
                Some("never") => finding
                    .mend(format!("echo madvise | sudo tee {TRANSPARENT}"))
                    .mend("or reserve 1 GiB: sudo sysctl -w vm.nr_hugepages=512"),
                // They are on, but memory is in small pieces.
                _ => finding
                    .mend("echo 1 | sudo tee /proc/sys/vm/compact_memory")
                    .mend("or reserve 1 GiB: sudo sysctl -w vm.nr_hugepages=512"),
            }
        }
        Err(error) => Finding::problem("huge pages", format!("{seen}; no memory: {error}")),
    }
}

/// `always`, `madvise` or `never`: the word in brackets.
fn transparent_mode() -> Option<String> {
    let text = std::fs::read_to_string(TRANSPARENT).ok()?;
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}
