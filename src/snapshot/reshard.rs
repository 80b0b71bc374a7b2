//! Cutting the snapshots of several ranks anew for another number of ranks.
//!
//! All new snapshots are made in `OUT.partial`, read again and compared element by element with
//! those they come from, and then `OUT.partial` becomes `OUT` by one rename.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::partial::PartialDirectory;
use super::pieces::Segment;
use super::reader::{PIECE_BYTES, piece_of_memory};
use super::reshard_plan::{Plan, Planned, ReshardOptions};
use super::{Manifest, Snapshot, SnapshotWriter, StateImage};
use crate::base::checksum::Checksum;
use crate::base::error::{Error, IoFailure, Result};
use crate::base::units::{to_u64, to_usize};
use crate::store::{join, rank_name};
use crate::sys;

/// New snapshots in the making. Dropped before they are published, they leave nothing. One thread
/// at a time; every call blocks.
#[derive(Debug)]
pub struct Resharding<'a> {
    sources: &'a [Snapshot],
    plan: Plan,
    // DROP ORDER: before the directory that they lie in.
    writers: Vec<SnapshotWriter>,
    out: PartialDirectory,
}

/// New snapshots that are whole, and hold the same elements as those they come from. Dropped
/// before they are published, they leave nothing.
#[derive(Debug)]
pub struct Resharded {
    out: PartialDirectory,
}

impl<'a> Resharding<'a> {
    /// Plans it, and makes `out.partial` with room for the data of all ranks. `sources` are the
    /// snapshots of all ranks of one step, from rank 0 on; what they hold of a parameter is joined
    /// in this order. The user data of rank 0 becomes that of every new rank.
    ///
    /// # Errors
    /// `InvalidArgument` names the ranks that do not go together, or the option that cannot be;
    /// `Io`: `EEXIST` where something is called `out` already, `ENOSPC` with the bytes needed and
    /// free; `Locked` where somebody else is making it.
    pub fn begin(
        sources: &'a [Snapshot],
        out: &Path,
        options: &ReshardOptions,
    ) -> Result<Resharding<'a>> {
        let manifests: Vec<&Manifest> = sources.iter().map(Snapshot::manifest).collect();
        let plan = Plan::new(&manifests, options)?;
        let out = PartialDirectory::create(out)?;
        let mut writers = Vec::new();
        for (rank, target) in (0..).zip(&plan.targets) {
            let parent = out.directory().try_clone().map_err(|error| {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                Error::io("open", out.path().to_bytes(), None, errno, "")
            })?;
            let partial = PartialDirectory::create_in(parent, out.path(), rank_name(rank))?;
            let writer = SnapshotWriter::create_in(partial, target.data_bytes)?;
            writer.reserve()?;
            writers.push(writer);
        }
        Ok(Resharding {
            sources,
            plan,
            writers,
            out,
        })
    }

    /// The directory that holds all of it until it is published.
    #[must_use]
    pub fn partial_path(&self) -> PathBuf {
        PathBuf::from(OsStr::from_bytes(self.out.path().to_bytes()))
    }

    /// What [`Resharding::run`] will have told to its `progress` in the end: the bytes of all
    /// states, read twice.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        let manifests = self.sources.iter().map(Snapshot::manifest);
        2 * manifests.map(Manifest::images_bytes).sum::<u64>()
    }

    /// Copies all elements, verifying the checksums of what is read; makes whole snapshots of
    /// them; reads these again from storage and compares every element.
    ///
    /// # Errors
    /// `Checksum` where the data of a source, or what was written, is not what was meant;
    /// `InvalidArgument` where what is to be cut off is not zero; `Io`, `NoMemory`. Nothing is left then.
    pub fn run(mut self, progress: &mut dyn FnMut(u64)) -> Result<Resharded> {
        let Plan {
            parameters,
            targets: manifests,
        } = &mut self.plan;
        let mut copying = Copying {
            sources: self.sources,
            writers: &self.writers,
            memory: piece_of_memory(PIECE_BYTES)?,
            progress,
        };
        for planned in parameters.iter() {
            copying.parameter(planned, manifests)?;
        }
        for (writer, manifest) in self.writers.drain(..).zip(manifests.iter()) {
            writer.publish(manifest)?;
        }
        let mut targets = Vec::new();
        for (rank, manifest) in (0..).zip(manifests.iter()) {
            let name = rank_name(rank);
            let path = join(&self.out.path(), &name);
            let target = sys::open_directory_at(self.out.directory().as_fd(), &name)
                .map_err(|errno| Error::io("open", path.to_bytes(), None, errno, ""))?;
            let target = Snapshot::open_in(&target, &path)?;
            if target.manifest() != manifest {
                return Err(target
                    .data()
                    .corrupt(0, "the manifest is not what was written"));
            }
            target.data().forget_cached(0, 0);
            targets.push(target);
        }
        compare(self.sources, &targets, parameters, progress)?;
        Ok(Resharded { out: self.out })
    }
}

impl Resharded {
    /// Gives `OUT.partial` its name.
    ///
    /// # Errors
    /// `Io`: `EEXIST` where the name has been taken meanwhile. Nothing is left then, unless it was
    /// the very last sync that failed.
    pub fn publish(self) -> Result<()> {
        self.out.publish()
    }
}

/// A part of an image that is not zero.
struct Part {
    /// Where the part lies in the data.
    offset_bytes: u64,
    /// Where the image begins.
    image_offset_bytes: u64,
    /// Of the whole image.
    checksum: Option<u32>,
    /// Whether it is the image's last part.
    is_last: bool,
}

impl Part {
    /// `start` and `len` are bytes in the image. `None` where it is zero.
    fn of(manifest: &Manifest, at: (usize, usize), start: u64, len: u64) -> Option<Part> {
        let (index, state) = at;
        let parameter = &manifest.parameters[index];
        let StateImage::At {
            offset_bytes: image_offset_bytes,
            checksum,
        } = parameter.states[state]
        else {
            return None;
        };
        Some(Part {
            offset_bytes: image_offset_bytes + start,
            image_offset_bytes,
            checksum,
            is_last: start + len == manifest.image_bytes(state, parameter.numel),
        })
    }
}

/// The checksum of images whose parts come one after the other.
struct Running(Checksum);

impl Running {
    /// That of the whole image, with its last part.
    fn update(&mut self, bytes: &[u8], is_last: bool) -> Option<u32> {
        self.0.update(bytes);
        is_last.then(|| std::mem::replace(&mut self.0, Checksum::new()).finish())
    }
}

/// The parts in which a state of a parameter is moved.
fn parts(planned: &Planned, element_bytes: u64) -> impl Iterator<Item = Segment> {
    let segments = planned.segments().into_iter();
    segments.flat_map(move |segment| segment.parts(element_bytes, PIECE_BYTES))
}

/// The first pass: from the sources into the files of the targets.
struct Copying<'a> {
    sources: &'a [Snapshot],
    writers: &'a [SnapshotWriter],
    memory: Vec<u8>,
    progress: &'a mut dyn FnMut(u64),
}

impl Copying<'_> {
    /// Fills in the checksums of what was written.
    fn parameter(&mut self, planned: &Planned, targets: &mut [Manifest]) -> Result<()> {
        for state in 0..targets[0].states.len() {
            let element_bytes = targets[0].states[state].disk_dtype.size_bytes();
            let (mut read, mut written) = (Running(Checksum::new()), Running(Checksum::new()));
            for part in parts(planned, element_bytes) {
                let has_data = self.read(planned, state, &part, &mut read)?;
                let Some((rank, start)) = part.target else {
                    let cut = &self.memory[..to_usize(part.len)?];
                    if has_data && cut.iter().any(|byte| *byte != 0) {
                        return Err(self.no_padding(planned, state));
                    }
                    continue;
                };
                let (manifest, index) = (&mut targets[rank], planned.targets[rank]);
                let Some(place) = Part::of(manifest, (index, state), start, part.len) else {
                    continue;
                };
                let bytes = &mut self.memory[..to_usize(part.len)?];
                match has_data {
                    true => self.writers[rank].write_at(bytes, place.offset_bytes)?,
                    // What was never written reads as zeros.
                    false => bytes.fill(0),
                }
                if let Some(checksum) = written.update(bytes, place.is_last) {
                    manifest.parameters[index].states[state] = StateImage::At {
                        offset_bytes: place.image_offset_bytes,
                        checksum: Some(checksum),
                    };
                }
            }
        }
        Ok(())
    }

    /// The error for elements that were to be cut off.
    fn no_padding(&self, planned: &Planned, state: usize) -> Error {
        let (rank, index) = planned.sources[0];
        let manifest = self.sources[rank].manifest();
        Error::invalid(format!(
            "parameter {}: what is to be cut off of its {} is not all zero, so it is no padding",
            manifest.parameters[index].id, manifest.states[state].name
        ))
    }

    /// Reads a part of a source; says whether there was anything but zeros to read.
    fn read(
        &mut self,
        planned: &Planned,
        state: usize,
        part: &Segment,
        read: &mut Running,
    ) -> Result<bool> {
        let Some((piece, start)) = part.source else {
            return Ok(false);
        };
        let (rank, index) = planned.sources[piece];
        let source = &self.sources[rank];
        let Some(place) = Part::of(source.manifest(), (index, state), start, part.len) else {
            return Ok(false);
        };
        let bytes = &mut self.memory[..to_usize(part.len)?];
        source.read_once(bytes, place.offset_bytes)?;
        if let Some(found) = read.update(bytes, place.is_last)
            && let Some(expected) = place.checksum
            && found != expected
        {
            let (offset, checksums) = (place.image_offset_bytes, [found, expected]);
            return Err(source.wrong_checksum(index, state, offset, checksums));
        }
        (self.progress)(part.len);
        Ok(true)
    }
}

/// The second pass: what the targets hold beside what the sources hold.
///
/// # Errors
/// `Checksum` at the first byte that differs; `Io`, `NoMemory`.
pub(super) fn compare(
    sources: &[Snapshot],
    targets: &[Snapshot],
    parameters: &[Planned],
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    let mut comparison = Comparison {
        sources,
        targets,
        memory: [piece_of_memory(PIECE_BYTES)?, piece_of_memory(PIECE_BYTES)?],
        progress,
    };
    let mut parameters = parameters.iter();
    parameters.try_for_each(|planned| comparison.parameter(planned))
}

struct Comparison<'a> {
    sources: &'a [Snapshot],
    targets: &'a [Snapshot],
    memory: [Vec<u8>; 2],
    progress: &'a mut dyn FnMut(u64),
}

impl Comparison<'_> {
    fn parameter(&mut self, planned: &Planned) -> Result<()> {
        let states = &self.targets[0].manifest().states;
        for (state, spec) in states.iter().enumerate() {
            let mut written = Running(Checksum::new());
            for part in parts(planned, spec.disk_dtype.size_bytes()) {
                self.part(planned, state, &part, &mut written)?;
            }
        }
        Ok(())
    }

    fn part(
        &mut self,
        planned: &Planned,
        state: usize,
        part: &Segment,
        written: &mut Running,
    ) -> Result<()> {
        let source = part.source.and_then(|(piece, start)| {
            let (rank, index) = planned.sources[piece];
            let source = &self.sources[rank];
            let place = Part::of(source.manifest(), (index, state), start, part.len)?;
            Some((source, place))
        });
        if source.is_some() {
            (self.progress)(part.len);
        }
        let Some((rank, start)) = part.target else {
            return Ok(());
        };
        let (target, index) = (&self.targets[rank], planned.targets[rank]);
        let place = Part::of(target.manifest(), (index, state), start, part.len);
        if source.is_none() && place.is_none() {
            return Ok(());
        }
        let len = to_usize(part.len)?;
        let [expected, found] = &mut self.memory;
        let (expected, found) = (&mut expected[..len], &mut found[..len]);
        match &source {
            Some((source, place)) => source.read_once(expected, place.offset_bytes)?,
            None => expected.fill(0),
        }
        let Some(place) = place else {
            return Err(different(target, index, state, 0));
        };
        target.read_once(found, place.offset_bytes)?;
        if let Some(at) = expected.iter().zip(found.iter()).position(|(a, b)| a != b) {
            let offset = place.offset_bytes + to_u64(at);
            return Err(different(target, index, state, offset));
        }
        match (written.update(found, place.is_last), place.checksum) {
            (Some(found), Some(expected)) if found != expected => {
                let (offset, checksums) = (place.image_offset_bytes, [found, expected]);
                Err(target.wrong_checksum(index, state, offset, checksums))
            }
            _ => Ok(()),
        }
    }
}

fn different(target: &Snapshot, index: usize, state: usize, offset_bytes: u64) -> Error {
    let manifest = target.manifest();
    Error::Checksum(Box::new(IoFailure {
        operation: "compare",
        path: target.data_path().to_string_lossy().into_owned(),
        offset_bytes: Some(offset_bytes),
        errno: 0,
        detail: format!(
            "{} of parameter {} is not what was written",
            manifest.states[state].name, manifest.parameters[index].id
        ),
    }))
}
