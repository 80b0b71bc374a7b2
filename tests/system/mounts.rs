//! File systems of their own in image files, and the commands that make them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{PoisonError, RwLock};

use crate::{common, support};

/// A file system of its own in an image file, unmounted and removed in the end.
pub(crate) struct Mount {
    pub(crate) point: PathBuf,
    /// Holds the image, and the directory that is mounted on.
    _directory: tempfile::TempDir,
}

impl Mount {
    /// Makes and mounts one. `None`, and said so, where that is not possible here.
    pub(crate) fn new(kind: &str, size_bytes: u64, options: &[&str]) -> Option<Mount> {
        // SAFETY: no memory is involved.
        if unsafe { libc::geteuid() } != 0 {
            common::skip(kind, "mounting takes root");
            return None;
        }
        let directory = support::directory();
        let (image, point) = (directory.path().join("image"), directory.path().join("on"));
        std::fs::create_dir(&point).unwrap();
        let mut mount = system("mount");
        if kind == "tmpfs" {
            let size = format!("size={size_bytes}");
            mount.args(["-t", kind, "-o", &size, "tensorswap"]);
        } else {
            let file = std::fs::File::create(&image).unwrap();
            file.set_len(size_bytes).unwrap();
            let mut make = system(&format!("mkfs.{kind}"));
            make.arg("-q").args(options).arg(&image);
            if let Err(reason) = succeeds(&mut make) {
                common::skip(kind, &reason);
                return None;
            }
            mount.args(["-t", kind, "-o", "loop"]).arg(&image);
        }
        if let Err(reason) = succeeds(mount.arg(&point)) {
            common::skip(kind, &reason);
            return None;
        }
        Some(Mount {
            point,
            _directory: directory,
        })
    }

    /// Unmounts, which takes that nobody has a file open, and mounts again.
    pub(crate) fn again(&self) {
        // A driver closes its files behind the back of whoever dropped it.
        let patience = std::time::Duration::from_millis(20);
        let mut outcome = Ok(());
        for _ in 0..500 {
            outcome = succeeds(system("umount").arg(&self.point));
            // Where nothing is mounted any more, the image may still be in use.
            if outcome.is_ok() || !self.is_mounted() {
                break;
            }
            std::thread::sleep(patience);
        }
        assert!(outcome.is_ok() || !self.is_mounted(), "{outcome:?}");
        let image = self.point.with_file_name("image");
        while !devices_of(&image).is_empty() {
            std::thread::sleep(patience);
        }
        let mut mount = system("mount");
        mount.args(["-o", "loop"]).arg(image).arg(&self.point);
        assert_eq!(succeeds(&mut mount), Ok(()));
    }

    pub(crate) fn is_mounted(&self) -> bool {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        mounts.contains(self.point.to_str().unwrap())
    }
}

/// The loop devices that an image is behind.
pub(crate) fn devices_of(image: &Path) -> String {
    common::run(system("losetup").arg("-j").arg(image))
}

impl Drop for Mount {
    fn drop(&mut self) {
        // The loop device detaches itself when its file system goes.
        if succeeds(system("umount").arg(&self.point)).is_err() {
            // Something still has a file open: the rest happens when it is closed.
            let detached = succeeds(system("umount").arg("-l").arg(&self.point));
            assert!(detached.is_ok() || std::thread::panicking(), "{detached:?}");
        }
    }
}

/// A command of the administrator, who has them in the path.
pub(crate) fn system(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// Held while a program is started: until it runs, it has a copy of every descriptor, and what a
/// deleted file took is not free as long as somebody has it open.
pub(crate) static STARTING: RwLock<()> = RwLock::new(());

pub(crate) fn output_of(command: &mut Command) -> std::io::Result<Output> {
    let child = {
        let _starting = STARTING.write().unwrap_or_else(PoisonError::into_inner);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?
    };
    child.wait_with_output()
}

pub(crate) fn succeeds(command: &mut Command) -> Result<(), String> {
    let output = output_of(command).map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}", errors.trim()))
}
