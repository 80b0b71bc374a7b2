//! `fio`, where it is installed: the same files, the same sizes, its own data.

use std::io::{Error, Result};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::common::area::Area;
use crate::contestants::{Contestant, Direction, Job};

/// Kinds of memory, best first.
const MEMORY: [&str; 3] = ["mmaphuge", "shmhuge", "malloc"];

/// How to start `fio`.
pub(crate) struct Fio {
    memory: &'static str,
}

impl Fio {
    /// `None` where `fio` is not installed.
    pub(crate) fn find() -> Option<Fio> {
        let found = Command::new("fio")
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        let memory = *MEMORY.iter().find(|memory| can_use(memory))?;
        found.then_some(Fio { memory })
    }
}

/// Whether `fio` gets such memory for 32 blocks; a job without a drive tells.
fn can_use(memory: &str) -> bool {
    Command::new("fio")
        .args(["--name=try", "--ioengine=null", "--size=64m", "--bs=1m"])
        .args(["--iodepth=32", &format!("--iomem={memory}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn command(job: &Job<'_>, memory: &str) -> Command {
    let names: Vec<_> = job
        .files
        .paths
        .iter()
        .filter_map(|path| path.file_name())
        .map(|name| name.to_string_lossy())
        .collect();
    let direction = match job.direction {
        Direction::Out => "write",
        Direction::In => "read",
    };
    let mut command = Command::new("fio");
    command
        .args(["--name=swap", "--ioengine=io_uring", "--direct=1"])
        .args(["--bs=1m", "--iodepth=32", "--fallocate=native"])
        .args(["--file_service_type=sequential", "--output-format=json"])
        .arg(format!("--iomem={memory}"))
        .arg(format!("--rw={direction}"))
        .arg(format!("--size={}", job.files.total_bytes()))
        .arg(format!("--directory={}", job.files.directory.display()))
        .arg(format!("--filename={}", names.join(":")));
    command
}

impl Contestant for Fio {
    fn name(&self) -> &'static str {
        match self.memory {
            "malloc" => "fio (4 KiB pages)",
            _ => "fio (huge pages)",
        }
    }

    fn run(&mut self, job: &Job<'_>) -> Result<Option<(f64, f64)>> {
        let output = command(job, self.memory).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let json = text.find('{').map_or("", |start| &text[start..]);
        let report: Value =
            serde_json::from_str(json).map_err(|_| Error::other(format!("fio said: {text}")))?;
        let result = &report["jobs"][0];
        let direction = match job.direction {
            Direction::Out => &result["write"],
            Direction::In => &result["read"],
        };
        let number = |value: &Value| value.as_f64().unwrap_or(0.0);
        let (bytes, rate) = (
            number(&direction["io_bytes"]),
            number(&direction["bw_bytes"]),
        );
        if !output.status.success() || rate <= 0.0 {
            return Err(Error::other(format!("fio failed: {text}")));
        }
        let seconds = bytes / rate;
        let busy = (number(&result["usr_cpu"]) + number(&result["sys_cpu"])) / 100.0;
        Ok(Some((seconds, busy * number(&result["job_runtime"]) / 1e3)))
    }

    fn source(&mut self) -> Option<Area> {
        None
    }

    fn target(&mut self) -> Option<Area> {
        None
    }
}
