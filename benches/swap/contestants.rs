//! What takes part in a round, and the library's own contestants.

use std::ffi::CStr;
use std::io::{Error, Result};

use tensorswap::base::config::Config;
use tensorswap::base::dtype::Dtype;
use tensorswap::io::{Engine, Tensor};
use tensorswap::memory::Buffer;

use crate::data::{Area, Files};

/// Which way data moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Out,
    In,
}

/// One contestant's work in one round.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) direction: Direction,
    /// The files do not exist.
    pub(crate) new: bool,
    pub(crate) files: &'a Files,
}

/// Does the work of a round.
pub(crate) trait Contestant {
    fn name(&self) -> &'static str;

    /// The work. Seconds and processor seconds where it was done by another process.
    fn run(&mut self, job: &Job<'_>) -> Result<Option<(f64, f64)>>;

    /// What is done after the clock was stopped.
    fn finish(&mut self) {}

    /// The most operations that were in flight at once, where somebody counted.
    fn depth_peak(&self) -> Option<u64> {
        None
    }

    /// Whether the files must be dropped from the page cache after a round.
    fn uses_page_cache(&self) -> bool {
        false
    }

    /// The memory that is written to the files; `None` where it cannot be seen.
    fn source(&self) -> Option<Area>;

    /// The memory that the files are read to.
    fn target(&self) -> Option<Area>;
}

/// Requests straight to the engine, from pinned buffers.
pub(crate) struct Direct {
    name: &'static str,
    engine: Engine,
    /// One list for all files, or a request for each.
    one_list: bool,
    buffers: [Buffer; 2],
    source: Area,
    target: Area,
}

impl Direct {
    pub(crate) fn new(
        name: &'static str,
        config: &Config,
        bytes: usize,
        one_list: bool,
    ) -> Result<Direct> {
        let engine = Engine::new(config).map_err(Error::other)?;
        let bytes = u64::try_from(bytes).map_err(Error::other)?;
        let allocate = || engine.allocate_buffer(bytes).map_err(Error::other);
        let buffers = [allocate()?, allocate()?];
        let [source, target] = buffers.each_ref().map(area_of);
        Ok(Direct {
            name,
            engine,
            one_list,
            buffers,
            source,
            target,
        })
    }

    /// The source and the target; whoever uses their memory holds them.
    pub(crate) fn buffers(&self) -> [Buffer; 2] {
        self.buffers.clone()
    }
}

/// A buffer's memory; the caller holds the buffer as long as the area is used.
pub(crate) fn area_of(buffer: &Buffer) -> Area {
    let len = usize::try_from(buffer.len_bytes()).unwrap_or(0);
    // SAFETY: the scenario and the contestant hold the buffer longer than they use the area.
    unsafe { Area::new(buffer.as_ptr(), len) }
}

/// The list of a job: a tensor for each file.
fn tensors_of(job: &Job<'_>, area: Area) -> Result<Vec<Tensor>> {
    let file_bytes = job.files.file_bytes;
    let numel = u64::try_from(file_bytes).map_err(Error::other)?;
    (0..job.files.paths.len())
        .map(|index| {
            let part = area.part(index, file_bytes);
            // SAFETY: the areas outlive the round, which waits for every request, and nothing else
            // touches them meanwhile.
            unsafe { Tensor::new(part.as_ptr(), numel, Dtype::Bytes) }.map_err(Error::other)
        })
        .collect()
}

impl Contestant for Direct {
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&mut self, job: &Job<'_>) -> Result<Option<(f64, f64)>> {
        let area = match job.direction {
            Direction::Out => self.source,
            Direction::In => self.target,
        };
        let tensors = tensors_of(job, area)?;
        let paths: Vec<&CStr> = job.files.names.iter().map(|name| name.as_c_str()).collect();
        let chunk = if self.one_list { tensors.len() } else { 1 };
        let mut tickets = Vec::new();
        for (tensors, paths) in tensors.chunks(chunk).zip(paths.chunks(chunk)) {
            let ticket = match job.direction {
                Direction::Out => self.engine.swap_out(tensors, paths),
                Direction::In => self.engine.swap_in(tensors, paths),
            };
            tickets.push(ticket.map_err(Error::other)?);
        }
        for ticket in tickets {
            let done = self.engine.wait(ticket, None).map_err(Error::other)?;
            done.outcome.map_err(Error::other)?;
        }
        Ok(None)
    }

    fn depth_peak(&self) -> Option<u64> {
        Some(self.engine.stats().in_flight_peak_count)
    }

    fn source(&self) -> Option<Area> {
        Some(self.source)
    }

    fn target(&self) -> Option<Area> {
        Some(self.target)
    }
}
