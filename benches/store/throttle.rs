//! Devices slowed down for this process, by a control group of its own. Takes root.

use std::fs;
use std::io::Result;
use std::path::{Path, PathBuf};

use crate::model::other;

/// A control group in which this process is until this is dropped.
#[derive(Debug)]
pub(crate) struct Throttle {
    group: PathBuf,
    /// Where the process was before.
    origin: PathBuf,
    is_unified: bool,
}

impl Throttle {
    /// Makes the group, of whichever version rules devices here, and moves the process there.
    pub(crate) fn new() -> Result<Throttle> {
        let root = Path::new("/sys/fs/cgroup");
        let kinds = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        let is_unified = kinds.split_whitespace().any(|kind| kind == "io");
        let root = if is_unified {
            root.to_owned()
        } else {
            root.join("blkio")
        };
        if is_unified {
            fs::write(root.join("cgroup.subtree_control"), "+io")?;
        }
        let memberships = fs::read_to_string("/proc/self/cgroup")?;
        let own = memberships.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (kinds, path) = rest.split_once(':')?;
            let wanted = if is_unified { "" } else { "blkio" };
            kinds.split(',').any(|kind| kind == wanted).then_some(path)
        });
        let own = own.ok_or_else(|| other("no control group for devices"))?;
        let throttle = Throttle {
            group: root.join(format!("tensorswap-bench-{}", std::process::id())),
            origin: root.join(own.trim_start_matches('/')),
            is_unified,
        };
        fs::create_dir(&throttle.group)?;
        enter(&throttle.group)?;
        Ok(throttle)
    }

    /// Limits a device, `MAJOR:MINOR`, to so many bytes a second read and as many written.
    pub(crate) fn limit(&self, device: &str, bytes: u64) -> Result<()> {
        if self.is_unified {
            let line = format!("{device} rbps={bytes} wbps={bytes}");
            return fs::write(self.group.join("io.max"), line);
        }
        ["read", "write"].iter().try_for_each(|way| {
            let file = format!("blkio.throttle.{way}_bps_device");
            fs::write(self.group.join(file), format!("{device} {bytes}"))
        })
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        let _ = enter(&self.origin);
        let _ = fs::remove_dir(&self.group);
    }
}

fn enter(group: &Path) -> Result<()> {
    fs::write(group.join("cgroup.procs"), std::process::id().to_string())
}
