//! How much memory the process may still take before something is killed for it.
//!
//! Mapping memory succeeds long before there is any; the bill comes when pages are touched, and
//! is paid by whatever process the kernel chooses to kill. Whoever populates large mappings asks
//! here first. The answer is a snapshot: others may take the memory in between.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that can be populated now: what the machine has, and no more than the control groups of
/// this process (versions 1 and 2) leave. `None` where nothing tells.
#[must_use]
pub fn memory_available_bytes() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| field(&text, "MemAvailable:"))
        .and_then(|kib| kib.checked_mul(1024));
    let groups = fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|groups| left_by_groups(Path::new("/sys/fs/cgroup"), &groups));
    match (machine, groups) {
        (Some(machine), Some(groups)) => Some(machine.min(groups)),
        (machine, groups) => machine.or(groups),
    }
}

/// The number after `name` in a text of lines `name number …`.
fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_ascii_whitespace);
    let mut found = lines.find_map(|mut words| (words.next()? == name).then_some(words))?;
    found.next()?.parse().ok()
}

/// The names of one version's files.
struct Files {
    limit: &'static str,
    usage: &'static str,
    /// In `memory.stat`: page cache, which the kernel takes back before it kills.
    cache: [&'static str; 2],
}

const VERSION_1: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    cache: ["total_inactive_file", "total_active_file"],
};
const VERSION_2: Files = Files {
    limit: "memory.max",
    usage: "memory.current",
    cache: ["inactive_file", "active_file"],
};

/// What the strictest of the groups in `groups` (the text of `/proc/self/cgroup`) leaves.
///
/// Inside a container the path may be the host's while the tree that is mounted begins at the
/// container's own group; walking up to the root of the mount meets that one.
fn left_by_groups(mount: &Path, groups: &str) -> Option<u64> {
    let mut least = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (root, files) = if controllers.is_empty() {
            (mount.to_path_buf(), &VERSION_2)
        } else if controllers.split(',').any(|name| name == "memory") {
            (mount.join(controllers), &VERSION_1)
        } else {
            continue;
        };
        let own: PathBuf = root.join(path.trim_start_matches('/'));
        for group in own.ancestors().take_while(|group| group.starts_with(&root)) {
            if let Some(left) = left_by(group, files) {
                least = Some(least.map_or(left, |least: u64| least.min(left)));
            }
        }
    }
    least
}

/// What one group leaves; `None` where it does not exist or sets no limit.
fn left_by(group: &Path, files: &Files) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        let text = fs::read_to_string(group.join(name)).ok()?;
        text.trim().parse().ok()
    };
    // "max" is no number: no limit.
    let limit = number(files.limit)?;
    let usage = number(files.usage)?;
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cache = files.cache.iter().filter_map(|name| field(&stat, name));
    let cache = cache.fold(0_u64, u64::saturating_add);
    Some(limit.saturating_sub(usage.saturating_sub(cache)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(path: &Path, contents: &[(&str, &str)]) {
        fs::create_dir_all(path).unwrap();
        for (name, text) in contents {
            fs::write(path.join(name), text).unwrap();
        }
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(memory_available_bytes().unwrap() > 0);
    }

    #[test]
    fn the_strictest_ancestor_counts_and_cache_is_free() {
        let mount = tempfile::tempdir().unwrap();
        let own = mount.path().join("slice/job");
        group(&own, &[("memory.max", "max\n"), ("memory.current", "70\n")]);
        let stat = "anon 30\ninactive_file 25\nactive_file 15\n";
        group(
            &mount.path().join("slice"),
            &[
                ("memory.max", "100\n"),
                ("memory.current", "70\n"),
                ("memory.stat", stat),
            ],
        );
        assert_eq!(left_by_groups(mount.path(), "0::/slice/job\n"), Some(70));
        assert_eq!(left_by_groups(mount.path(), "0::/elsewhere\n"), None);
        assert_eq!(left_by_groups(mount.path(), "nonsense\n\n"), None);
    }

    #[test]
    fn version_1_is_read_and_a_foreign_path_meets_the_root_of_the_mount() {
        let mount = tempfile::tempdir().unwrap();
        group(
            &mount.path().join("memory"),
            &[
                ("memory.limit_in_bytes", "1000"),
                ("memory.usage_in_bytes", "1500"),
                ("memory.stat", "inactive_file 9\ntotal_inactive_file 600\n"),
            ],
        );
        let groups = "4:memory:/docker/0123\n1:cpu:/\n";
        assert_eq!(left_by_groups(mount.path(), groups), Some(100));
    }
}
