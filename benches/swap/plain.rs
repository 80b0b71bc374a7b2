//! What a program without the library does: open, transfer, close, one file after the other.

use std::fs::OpenOptions;
use std::io::Result;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::common::area::Area;
use crate::contestants::{Contestant, Direction, Job};

/// One thread with `open`, `pwrite` or `pread`, and `close`.
pub(crate) struct Plain {
    pub(crate) direct: bool,
    pub(crate) source: Area,
    pub(crate) target: Area,
}

impl Contestant for Plain {
    fn name(&self) -> &'static str {
        match self.direct {
            true => "open+transfer+close, direct",
            false => "open+transfer+close, buffered",
        }
    }

    fn run(&mut self, job: &Job<'_>) -> Result<Option<(f64, f64)>> {
        let flags = if self.direct { libc::O_DIRECT } else { 0 };
        for (index, path) in job.files.paths.iter().enumerate() {
            match job.direction {
                Direction::Out => {
                    let file = OpenOptions::new()
                        .write(true)
                        .create(true)
                        .truncate(false)
                        .custom_flags(flags)
                        .open(path)?;
                    let part = self.source.part(index, job.files.file_bytes);
                    file.write_all_at(part.as_slice(), 0)?;
                }
                Direction::In => {
                    let file = OpenOptions::new()
                        .read(true)
                        .custom_flags(flags)
                        .open(path)?;
                    let mut part = self.target.part(index, job.files.file_bytes);
                    file.read_exact_at(part.as_mut_slice(), 0)?;
                }
            }
        }
        Ok(None)
    }

    fn uses_page_cache(&self) -> bool {
        !self.direct
    }

    fn source(&mut self) -> Option<Area> {
        Some(self.source)
    }

    fn target(&mut self) -> Option<Area> {
        Some(self.target)
    }
}
