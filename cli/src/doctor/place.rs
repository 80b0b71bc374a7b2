//! A directory: its file system, direct I/O, space, speed.

use std::os::fd::AsFd;
use std::path::Path;

use procfs::FromRead;
use procfs::process::{MountInfo, MountInfos};
use rustix::fs::{Access, access};
use serde::Serialize;

use super::finding::Finding;
use crate::drive::{Speeds, measure_speeds};
use crate::failure::words_of;
use crate::output::shown_path;
use crate::sizes::{shown, shown_speed};

/// Less free space than this is soon used up.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// What was found about a directory.
#[derive(Debug, Serialize)]
pub(super) struct Place {
    pub(super) path: String,
    pub(super) findings: Vec<Finding>,
    /// Where they could be measured.
    pub(super) speeds: Option<Speeds>,
}

/// Looks at a directory, and measures it with files of so many bytes.
pub(super) fn look_at(path: &Path, speed_bytes: Option<u64>) -> Place {
    let mut place = Place {
        path: shown_path(path),
        findings: Vec::new(),
        speeds: None,
    };
    let absolute = match std::fs::canonicalize(path) {
        Ok(absolute) => absolute,
        Err(error) => {
            place.findings.push(unreachable(path, &error));
            return place;
        }
    };
    if !absolute.is_dir() {
        place
            .findings
            .push(Finding::problem("directory", "is not a directory"));
        return place;
    }
    let mount = mount_of(&absolute);
    place.findings.push(file_system(mount.as_ref()));
    let free_bytes = free_bytes(&absolute);
    place.findings.push(free_space(free_bytes));
    if let Err(errno) = access(&absolute, Access::WRITE_OK | Access::EXEC_OK) {
        place
            .findings
            .push(not_writable(&absolute, mount.as_ref(), errno.into()));
        return place;
    }
    // Direct I/O is asked of a file, and best tried.
    let bytes = speed_bytes.unwrap_or(8 * 4096);
    if free_bytes.is_some_and(|free| free < 2 * bytes) {
        let needed = shown(2 * bytes);
        let finding = Finding::problem(
            "speed",
            format!("not measured: less than {needed} are free"),
        );
        place.findings.push(finding);
        return place;
    }
    match measure_speeds(&absolute, bytes) {
        Ok(speeds) => {
            place.findings.push(direct_io(&speeds, mount.as_ref()));
            if speed_bytes.is_some() {
                place.findings.push(speed(&speeds));
                place.speeds = Some(speeds);
            }
        }
        Err(failure) => place
            .findings
            .push(Finding::problem("speed", failure.to_string())),
    }
    place
}

fn unreachable(path: &Path, error: &std::io::Error) -> Finding {
    let finding = Finding::problem("directory", words_of(error));
    match error.kind() {
        std::io::ErrorKind::NotFound => finding.mend(format!("mkdir -p {}", quoted(path))),
        _ => finding,
    }
}

fn not_writable(path: &Path, mount: Option<&MountInfo>, error: std::io::Error) -> Finding {
    let finding = Finding::problem(
        "directory",
        format!("cannot be written to: {}", words_of(&error)),
    );
    let remount = |mount: &MountInfo| {
        let point = quoted(&mount.mount_point);
        format!("sudo mount -o remount,rw {point}")
    };
    match (error.raw_os_error(), mount) {
        (Some(libc::EROFS), Some(mount)) => finding.mend(remount(mount)),
        (Some(libc::EACCES), _) => finding.mend(format!("sudo chown $(id -u) {}", quoted(path))),
        _ => finding,
    }
}

/// The mount that a directory lies on: the one with the longest path that leads to it, and of
/// several on one another the last one.
fn mount_of(path: &Path) -> Option<MountInfo> {
    let mounts = MountInfos::from_file("/proc/self/mountinfo").ok()?;
    let leading = mounts
        .0
        .into_iter()
        .filter(|mount| path.starts_with(&mount.mount_point));
    leading.max_by_key(|mount| mount.mount_point.components().count())
}

fn file_system(mount: Option<&MountInfo>) -> Finding {
    let Some(mount) = mount else {
        return Finding::good("file system", "not known (no /proc)");
    };
    let kind = mount.fs_type.as_str();
    let source = mount.mount_source.as_deref().unwrap_or("no device");
    let seen = format!(
        "{kind} on {source}, mounted at {}",
        mount.mount_point.display()
    );
    let remark = |meaning: &str| Finding::remark("file system", seen.clone()).meaning(meaning);
    match kind {
        "tmpfs" | "ramfs" => {
            remark("this is memory, not a drive: nothing is gained by swapping here")
        }
        "nfs" | "nfs4" | "cifs" | "smb3" | "9p" | "virtiofs" => {
            remark("a file system of another machine: speed and durability are up to that one")
        }
        "overlay" => remark(
            "the writable layer of a container: copies on the first write; give it a volume \
             (docker run -v /DIRECTORY:/state ...)",
        ),
        kind if kind.starts_with("fuse") => remark("a file system in a process: slow"),
        _ => Finding::good("file system", seen),
    }
}

fn free_bytes(path: &Path) -> Option<u64> {
    let directory = std::fs::File::open(path).ok()?;
    tensorswap::sys::free_bytes(directory.as_fd()).ok()
}

fn free_space(free_bytes: Option<u64>) -> Finding {
    match free_bytes {
        None => Finding::good("free space", "not known"),
        Some(free) if free < FREE_BYTES_MIN => Finding::remark("free space", shown(free))
            .meaning("a store takes twice the state; tensorswap plan computes it"),
        Some(free) => Finding::good("free space", shown(free)),
    }
}

fn direct_io(speeds: &Speeds, mount: Option<&MountInfo>) -> Finding {
    let kind = mount.map_or("this file system", |mount| mount.fs_type.as_str());
    match (speeds.is_direct, speeds.alignment) {
        (false, _) => Finding::remark("direct I/O", format!("not on {kind}")).meaning(
            "transfers go through the page cache, at up to four times the CPU; ext4, xfs and \
             btrfs know direct I/O",
        ),
        (true, Some(align)) if align.offset_bytes > 0 => {
            let (memory, offset) = (align.memory_bytes, align.offset_bytes);
            Finding::good(
                "direct I/O",
                format!("works; aligned to {memory} bytes in memory, {offset} in files"),
            )
        }
        (true, _) => Finding::good(
            "direct I/O",
            "works; the alignment is not told, 4096 is used",
        ),
    }
}

fn speed(speeds: &Speeds) -> Finding {
    let text = [
        ("read", speeds.read_bytes_per_second),
        ("write", speeds.write_bytes_per_second),
        ("both at once", speeds.mixed_bytes_per_second),
    ]
    .map(|(name, speed)| format!("{name} {}", shown_speed(speed)));
    let seen = text.join(", ");
    match speeds.is_direct {
        true => Finding::good("speed", seen),
        false => Finding::good("speed", seen + " (of memory)"),
    }
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%".contains(c);
    match text.chars().all(is_plain) && !text.is_empty() {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_for_a_shell_where_they_need_it() {
        for (path, text) in [
            ("/mnt/nvme0", "/mnt/nvme0"),
            ("/a b", "'/a b'"),
            ("/it's", r"'/it'\''s'"),
            ("/$(rm)", "'/$(rm)'"),
        ] {
            assert_eq!(quoted(Path::new(path)), text);
        }
    }

    #[test]
    fn the_root_has_a_file_system() {
        let mount = mount_of(Path::new("/")).unwrap();
        assert_eq!(mount.mount_point, Path::new("/"));
    }
}
