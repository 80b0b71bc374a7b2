//! File systems in image files, on loop devices. Takes root.

use std::fs::File;
use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::model::scratch;

/// A mounted file system, unmounted and removed in the end.
#[derive(Debug)]
pub(crate) struct Mount {
    pub(crate) point: PathBuf,
    /// The loop device.
    device: String,
    /// Holds the image, and the directory that is mounted on.
    _directory: TempDir,
}

impl Mount {
    /// Makes one of a kind that `mkfs` knows. The image goes past the page cache where it can.
    pub(crate) fn new(kind: &str, len_bytes: u64, parent: &Path) -> Result<Mount> {
        let directory = scratch(parent)?;
        let (image, point) = (directory.path().join("image"), directory.path().join("on"));
        std::fs::create_dir(&point)?;
        File::create(&image)?.set_len(len_bytes)?;
        run(administer(&format!("mkfs.{kind}")).arg("-q").arg(&image))?;
        let device = run(administer("losetup")
            .args(["-f", "--show", "--direct-io=on"])
            .arg(&image))?;
        // From here on dropping it detaches the device.
        let mount = Mount {
            point,
            device: device.trim().to_owned(),
            _directory: directory,
        };
        run(administer("mount")
            .args(["-t", kind, &mount.device])
            .arg(&mount.point))?;
        Ok(mount)
    }

    /// The device's numbers, as `MAJOR:MINOR`.
    pub(crate) fn number(&self) -> Result<String> {
        let name = self.device.trim_start_matches("/dev/");
        let number = std::fs::read_to_string(format!("/sys/block/{name}/dev"))?;
        Ok(number.trim().to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // An engine that was dropped closes its files a moment later.
        for _ in 0..250 {
            if run(administer("umount").arg(&self.point)).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = run(administer("losetup").args(["-d", &self.device]));
    }
}

/// Says why a section is left out, unless the process is root.
pub(crate) fn is_root(section: &str) -> bool {
    // SAFETY: no memory is involved.
    let is_root = unsafe { libc::geteuid() } == 0;
    if !is_root {
        eprintln!("{section}: left out, mounting takes root");
    }
    is_root
}

/// A command of the administrator, who has them in the path.
fn administer(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// Runs a command; what it said, or why it failed.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::other(format!("{command:?}: {}", said.trim())))
}
