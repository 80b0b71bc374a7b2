//! The library's own contestants: direct requests, and the swapper.

use std::ffi::CStr;
use std::io::{Error, Result};

use tensorswap::base::config::Config;
use tensorswap::base::dtype::Dtype;
use tensorswap::io::{Engine, Tensor};
use tensorswap::memory::Buffer;
use tensorswap::swapper::Swapper;

use crate::common::area::Area;
use crate::contestants::{Contestant, Direction, Job};

/// How an engine of the library comes to a turn.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) config: Config,
    /// Files that exist are open when the clock starts, as they are for all but the first step.
    pub(crate) files_open: bool,
    /// Many small files in one list: descriptors for one such engine at a time are all there are.
    pub(crate) small: bool,
}

/// The list of a job: a tensor for each file.
fn tensors_of(job: &Job<'_>, area: Area) -> Result<Vec<Tensor>> {
    let file_bytes = job.files.file_bytes;
    let numel = u64::try_from(file_bytes).map_err(Error::other)?;
    (0..job.files.paths.len())
        .map(|index| {
            let part = area.part(index, file_bytes);
            // SAFETY: the areas outlive the turn, which waits for every request, and nothing else
            // touches them meanwhile.
            unsafe { Tensor::new(part.as_ptr(), numel, Dtype::Bytes) }.map_err(Error::other)
        })
        .collect()
}

fn paths_of<'a>(job: &'a Job<'_>) -> Vec<&'a CStr> {
    job.files.names.iter().map(|name| name.as_c_str()).collect()
}

/// Reads all files once, so that they are open, and forgets what was read.
fn open_files(engine: &Engine, job: &Job<'_>, mut target: Area) -> Result<()> {
    let ticket = engine
        .swap_in(&tensors_of(job, target)?, &paths_of(job))
        .map_err(Error::other)?;
    let done = engine.wait(ticket, None).map_err(Error::other)?;
    done.outcome.map_err(Error::other)?;
    target.as_mut_slice().fill(0);
    Ok(())
}

/// Requests straight to the engine, from pinned buffers.
pub(crate) struct Direct {
    setting: Setting,
    source: Area,
    target: Area,
    /// The engine, and the areas registered with it.
    running: Option<(Engine, [Buffer; 2])>,
    depth_peak: u64,
}

impl Direct {
    pub(crate) fn new(setting: Setting, source: Area, target: Area) -> Direct {
        Direct {
            setting,
            source,
            target,
            running: None,
            depth_peak: 0,
        }
    }

    fn start(&mut self, job: &Job<'_>) -> Result<()> {
        let engine = Engine::new(&self.setting.config).map_err(Error::other)?;
        let register = |area: Area| {
            let len_bytes = u64::try_from(area.len()).map_err(Error::other)?;
            // SAFETY: the scenario owns the memory and outlives its contestants.
            unsafe { engine.register_buffer(area.as_ptr(), len_bytes, None) }.map_err(Error::other)
        };
        let buffers = [register(self.source)?, register(self.target)?];
        if self.setting.files_open && !job.new {
            open_files(&engine, job, self.target)?;
        }
        self.running = Some((engine, buffers));
        Ok(())
    }
}

impl Contestant for Direct {
    fn name(&self) -> &'static str {
        match self.setting.files_open {
            true => "direct requests",
            false => "direct requests, files not open",
        }
    }

    fn prepare(&mut self, job: &Job<'_>) -> Result<()> {
        match self.running {
            Some(_) => Ok(()),
            None => self.start(job),
        }
    }

    fn run(&mut self, job: &Job<'_>) -> Result<Option<(f64, f64)>> {
        let Some((engine, _)) = &self.running else {
            return Err(Error::other("no engine runs"));
        };
        let area = match job.direction {
            Direction::Out => self.source,
            Direction::In => self.target,
        };
        let (tensors, paths) = (tensors_of(job, area)?, paths_of(job));
        // One list for many small files, a request for each large one.
        let chunk = if self.setting.small { tensors.len() } else { 1 };
        let mut tickets = Vec::new();
        for (tensors, paths) in tensors.chunks(chunk).zip(paths.chunks(chunk)) {
            let ticket = match job.direction {
                Direction::Out => engine.swap_out(tensors, paths),
                Direction::In => engine.swap_in(tensors, paths),
            };
            tickets.push(ticket.map_err(Error::other)?);
        }
        for ticket in tickets {
            let done = engine.wait(ticket, None).map_err(Error::other)?;
            done.outcome.map_err(Error::other)?;
        }
        Ok(None)
    }

    fn finish(&mut self, job: &Job<'_>) {
        if let Some((engine, _)) = &self.running {
            self.depth_peak = engine.stats().in_flight_peak_count;
        }
        // An engine keeps files open, also those that are then removed.
        if job.new || self.setting.small {
            self.running = None;
        }
    }

    fn depth_peak(&self) -> Option<u64> {
        Some(self.depth_peak)
    }

    fn source(&mut self) -> Option<Area> {
        Some(self.source)
    }

    fn target(&mut self) -> Option<Area> {
        Some(self.target)
    }
}

/// Buffers of the swapper, and the length of each.
const STAGING_BUFFERS: usize = 8;
const STAGING_BYTES: u64 = 32 << 20;

/// The swapper, from ordinary memory through its staging buffers.
pub(crate) struct Staged {
    setting: Setting,
    running: Option<Swapper>,
    source: Vec<u8>,
    target: Vec<u8>,
    depth_peak: u64,
}

impl Staged {
    pub(crate) fn new(setting: Setting, bytes: usize) -> Staged {
        let mut source = vec![0; bytes];
        memory_of(&mut source).randomize(77);
        Staged {
            setting,
            running: None,
            source,
            // Written to, so that it has its memory before the first turn.
            target: vec![1; bytes],
            depth_peak: 0,
        }
    }

    fn start(&mut self, job: &Job<'_>) -> Result<()> {
        let engine = Engine::new(&self.setting.config).map_err(Error::other)?;
        let buffers = (0..STAGING_BUFFERS)
            .map(|_| engine.allocate_buffer(STAGING_BYTES))
            .collect::<std::result::Result<Vec<Buffer>, _>>()
            .map_err(Error::other)?;
        let swapper = Swapper::new(&engine, None).map_err(Error::other)?;
        swapper
            .add_buffers(&buffers, Dtype::Bytes)
            .map_err(Error::other)?;
        if self.setting.files_open && !job.new {
            open_files(&engine, job, memory_of(&mut self.target))?;
        }
        self.running = Some(swapper);
        Ok(())
    }
}

/// The memory of a list, which keeps its place.
fn memory_of(bytes: &mut [u8]) -> Area {
    // SAFETY: the lists live, and never grow, as long as their contestant, whose areas these are.
    unsafe { Area::new(bytes.as_mut_ptr(), bytes.len()) }
}

impl Contestant for Staged {
    fn name(&self) -> &'static str {
        "swapper"
    }

    fn prepare(&mut self, job: &Job<'_>) -> Result<()> {
        match self.running {
            Some(_) => Ok(()),
            None => self.start(job),
        }
    }

    fn run(&mut self, job: &Job<'_>) -> Result<Option<(f64, f64)>> {
        let area = match job.direction {
            Direction::Out => memory_of(&mut self.source),
            Direction::In => memory_of(&mut self.target),
        };
        let (tensors, paths) = (tensors_of(job, area)?, paths_of(job));
        let Some(swapper) = &self.running else {
            return Err(Error::other("no swapper runs"));
        };
        match job.direction {
            Direction::Out => swapper
                .swap_out(&tensors, &paths)
                .and_then(|()| swapper.flush(None)),
            Direction::In => swapper.swap_in(&tensors, &paths),
        }
        .map_err(Error::other)?;
        Ok(None)
    }

    fn finish(&mut self, job: &Job<'_>) {
        if let Some(swapper) = &self.running {
            self.depth_peak = swapper.engine().stats().in_flight_peak_count;
        }
        if job.new || self.setting.small {
            self.running = None;
        }
    }

    fn depth_peak(&self) -> Option<u64> {
        Some(self.depth_peak)
    }

    fn source(&mut self) -> Option<Area> {
        Some(memory_of(&mut self.source))
    }

    fn target(&mut self) -> Option<Area> {
        Some(memory_of(&mut self.target))
    }
}
