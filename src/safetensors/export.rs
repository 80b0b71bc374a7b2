//! An export under way: the tensors of a [`Plan`] one after the other, into its files.

use std::ffi::CString;
use std::path::Path;

use super::partial::Partials;
use super::plan::{ELEMENT_BYTES, Plan};
use super::stream::{Stream, Target};
use crate::base::error::{Error, Result};
use crate::base::units::to_u64;
use crate::io::Engine;
use crate::memory::MemoryRange;

/// Files that are being written. Dropped before [`publish`](Export::publish) they are gone.
#[derive(Debug)]
pub(crate) struct Export {
    plan: Plan,
    /// Of the file that is being written.
    path: CString,
    file: usize,
    /// Tensors written so far.
    done: usize,
    // DROP ORDER: before the files, which nothing is to be written into when they are removed.
    streams: Streams,
    partials: Partials,
    engine: Engine,
}

/// One for each size of elements: these lie together in a file.
#[derive(Debug, Default)]
struct Streams([Stream; ELEMENT_BYTES.len()]);

impl Drop for Streams {
    fn drop(&mut self) {
        for stream in &mut self.0 {
            // An export that was given up: nobody asks.
            let _ = stream.settle();
        }
    }
}

impl Export {
    /// Makes the files of a plan in a directory and reserves their space.
    ///
    /// # Errors
    /// `Io`: with `NO_SPACE` it names the bytes needed and those free; `Locked` where another export is
    /// writing them. Nothing is left then.
    pub(crate) fn create(engine: Engine, directory: &Path, plan: Plan) -> Result<Export> {
        let mut partials = Partials::new(directory)?;
        for file in &plan.files {
            partials.add(&file.name, file.len_bytes)?;
        }
        let mut export = Export {
            engine,
            path: partials.path_of(0),
            file: 0,
            done: 0,
            plan,
            streams: Streams::default(),
            partials,
        };
        export.begin_file()?;
        Ok(export)
    }

    /// Adds the next tensor of the plan; without memory, one that is all zeros. The memory is the
    /// caller's again when this returns.
    ///
    /// # Errors
    /// `NoMemory`, `Memlock`; what kept this, or something before it, from being written.
    pub(crate) fn push(&mut self, memory: Option<MemoryRange>) -> Result<()> {
        while self.done == self.plan.files[self.file].entries.end {
            self.end_file()?;
            self.file += 1;
            self.begin_file()?;
        }
        let entry = &self.plan.entries[self.done];
        let len_bytes = entry.len_bytes()?;
        let stream = &mut self.streams.0[entry.section()];
        let target = Target {
            engine: &self.engine,
            path: &self.path,
            only: self.partials.identity_of(self.file),
        };
        match memory {
            None => stream.push_zeros(target, len_bytes)?,
            Some(memory) if to_u64(memory.len()) == len_bytes => {
                stream.push_memory(target, memory)?;
            }
            Some(_) => return Err(Error::Internal("a tensor of another length".to_owned())),
        }
        self.done += 1;
        Ok(())
    }

    /// The first stream of a file begins with the header.
    fn begin_file(&mut self) -> Result<()> {
        self.path = self.partials.path_of(self.file);
        let file = &self.plan.files[self.file];
        let entries = &self.plan.entries[file.entries.clone()];
        let first = entries.iter().map(|entry| entry.section()).min();
        for (stream, start) in self.streams.0.iter_mut().zip(file.sections) {
            stream.begin(start);
        }
        let target = Target {
            engine: &self.engine,
            path: &self.path,
            only: self.partials.identity_of(self.file),
        };
        let first = &mut self.streams.0[first.unwrap_or(0)];
        first.begin(0);
        first.push(target, &file.header)
    }

    fn end_file(&mut self) -> Result<()> {
        let target = Target {
            engine: &self.engine,
            path: &self.path,
            only: self.partials.identity_of(self.file),
        };
        for stream in &mut self.streams.0 {
            stream.finish(target)?;
        }
        self.partials.sync(self.file)?;
        self.engine.close_file(self.partials.identity_of(self.file));
        Ok(())
    }

    /// Ends the last file and gives all of them their names.
    ///
    /// # Errors
    /// What kept something from being written, synced or renamed. Nothing is left then.
    pub(crate) fn publish(mut self) -> Result<()> {
        if self.done != self.plan.entries.len() {
            return Err(Error::Internal("an export lacks tensors".to_owned()));
        }
        self.end_file()?;
        let Export {
            plan, mut partials, ..
        } = self;
        if let Some((name, content)) = &plan.index {
            partials.add_whole(name, content)?;
        }
        partials.publish()
    }
}
