//! The engine as it moves the same data.

use std::ffi::CStr;
use std::io;
use std::ops::Range;

use tensorswap::base::config::Config;
use tensorswap::base::dtype::Dtype;
use tensorswap::io::{Engine, Tensor, Ticket};
use tensorswap::memory::Buffer;

use super::area::Area;
use super::field::Field;
use super::files::FileSet;
use super::measure::{Kind, Mover};
use super::ring::Direction;
use crate::failure::Failure;
use crate::sizes::to_u64;

/// Files up to this length go into one list, larger ones into a request each.
const LIST_FILE_BYTES_MAX: usize = 256 << 10;

/// An engine with the memory of a field registered.
pub(crate) struct EngineMover {
    engine: Engine,
    _buffers: [Buffer; 2],
    // DROP ORDER: after the engine, which may be using it.
    _field: Field,
}

impl EngineMover {
    /// Starts an engine.
    ///
    /// # Errors
    /// `Wrong` for a configuration that it does not take, `Refused`.
    pub(crate) fn new(config: &Config, field: &Field) -> Result<EngineMover, Failure> {
        let engine = Engine::new(config)?;
        let register = |area: Area| -> Result<Buffer, Failure> {
            let len_bytes = to_u64(area.len());
            // SAFETY: the field is kept as long as the engine.
            Ok(unsafe { engine.register_buffer(area.as_ptr(), len_bytes, None) }?)
        };
        let buffers = [register(field.source)?, register(field.target)?];
        Ok(EngineMover {
            engine,
            _buffers: buffers,
            _field: field.clone(),
        })
    }

    /// What is in effect, as the engine tells it.
    pub(crate) fn description(&self) -> serde_json::Value {
        serde_json::from_str(&self.engine.describe()).unwrap_or_default()
    }

    fn submit(
        &self,
        direction: Direction,
        files: &FileSet,
        area: Area,
        range: Range<usize>,
    ) -> io::Result<Ticket> {
        let tensors = range
            .clone()
            .map(|index| {
                let part = area.part(index, files.file_bytes);
                // SAFETY: the memory outlives the request, which is waited for, and nothing else
                // touches it meanwhile.
                unsafe { Tensor::new(part.as_ptr(), to_u64(files.file_bytes), Dtype::Bytes) }
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(io::Error::other)?;
        let paths: Vec<&CStr> = files.names[range].iter().map(AsRef::as_ref).collect();
        match direction {
            Direction::Out => self.engine.swap_out(&tensors, &paths),
            Direction::In => self.engine.swap_in(&tensors, &paths),
        }
        .map_err(io::Error::other)
    }
}

impl Mover for EngineMover {
    fn run(&mut self, kind: Kind, files: &FileSet, field: &Field) -> io::Result<()> {
        let chunk = match files.file_bytes <= LIST_FILE_BYTES_MAX {
            true => files.len(),
            false => 1,
        };
        let mut lists = kind.parts(files.len()).map(|(direction, range)| {
            let starts = range.clone().step_by(chunk);
            let area = match direction {
                Direction::Out => field.source,
                Direction::In => field.target,
            };
            starts.map(move |start| (direction, area, start..range.end.min(start + chunk)))
        });
        let mut tickets = Vec::new();
        // Reads and writes in turn, as a step submits them.
        loop {
            let next = lists.each_mut().map(Iterator::next);
            if next.iter().all(Option::is_none) {
                break;
            }
            for (direction, area, range) in next.into_iter().flatten() {
                tickets.push(self.submit(direction, files, area, range)?);
            }
        }
        for ticket in tickets {
            let done = self.engine.wait(ticket, None).map_err(io::Error::other)?;
            done.outcome.map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn depth_peak(&self) -> u64 {
        self.engine.stats().in_flight_peak_count
    }
}
