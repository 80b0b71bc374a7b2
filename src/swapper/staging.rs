//! Staging: tensors are copied into the current buffer, piece by piece, and submitted.
//!
//! The part of the [`Swapper`] that fills buffers. It waits only in `take_buffer`, and there for
//! one buffer.

use std::ffi::CStr;
use std::time::Instant;

use super::async_tensor_swapper::{Desk, SUBMIT_BYTES, Swapper};
use super::staged::{Piece, exclusive};
use crate::base::error::{Error, Result};
use crate::base::units::{nanos, to_usize};
use crate::io::{Length, Tensor, length_of};

impl Swapper {
    /// Stages a checked list, file by file.
    pub(super) fn stage_list(
        &self,
        desk: &mut Desk,
        tensors: &[Tensor],
        paths: &[&CStr],
        order: &[u32],
    ) -> Result<()> {
        let group = self.engine.next_group();
        for run in order.chunk_by(|a, b| paths[*a as usize] == paths[*b as usize]) {
            let length = length_of(run.iter().map(|index| &tensors[*index as usize]));
            for (position, index) in run.iter().enumerate() {
                let ends_file = position + 1 == run.len();
                let tensor = &tensors[*index as usize];
                let path = paths[*index as usize];
                self.stage_tensor(desk, tensor, path, *index, group, length, ends_file)?;
            }
        }
        Ok(())
    }

    /// Copies one tensor, in as many pieces as the buffers demand.
    #[expect(
        clippy::too_many_arguments,
        reason = "one call site; the facts belong to one tensor"
    )]
    pub(super) fn stage_tensor(
        &self,
        desk: &mut Desk,
        tensor: &Tensor,
        path: &CStr,
        index: u32,
        group: u64,
        length: Length,
        ends_file: bool,
    ) -> Result<()> {
        let mut done_bytes = 0;
        loop {
            if desk.pool.current().is_none() {
                self.take_buffer(desk)?;
            }
            let file_offset = tensor.file_offset + done_bytes;
            let left_bytes = tensor.len_bytes() - done_bytes;
            let Some(place) = desk.pool.stage(file_offset, left_bytes) else {
                self.submit_staged(desk)?;
                desk.pool.retire();
                continue;
            };
            let memory = desk.buffers[place.buffer].whole_range();
            let (at, len) = (to_usize(place.offset)?, to_usize(place.len_bytes)?);
            let padding = to_usize(place.padding_bytes)?;
            let from = tensor
                .memory
                .slice(to_usize(done_bytes)?, len)
                .ok_or_else(|| Error::Internal("a piece lies outside of its tensor".to_owned()))?;
            memory.stream_into(at, from)?;
            memory.zero(at + len, padding)?;
            let memory = memory
                .slice(at, len + padding)
                .ok_or_else(|| Error::Internal("a piece lies outside of its buffer".to_owned()))?;
            done_bytes += place.len_bytes;
            let over = done_bytes == tensor.len_bytes();
            let length = match length {
                Length::Exact { bytes, .. } => Length::Exact {
                    bytes,
                    last: ends_file && over,
                },
                Length::Grow => Length::Grow,
            };
            let user_tag = tensor.user_tag;
            let piece = Piece {
                place,
                memory,
                file_offset,
                length,
                group,
                index,
                user_tag,
            };
            desk.staged.push(path, piece);
            if desk.staged.len_bytes() >= SUBMIT_BYTES {
                self.submit_staged(desk)?;
            }
            if over {
                return Ok(());
            }
        }
    }

    /// Makes a free buffer the current one, waiting for one to become free if need be.
    pub(super) fn take_buffer(&self, desk: &mut Desk) -> Result<()> {
        desk.collect(&self.shared, false, None);
        while desk.pool.take().is_none() {
            if desk.writes_in_flight == 0 {
                return Err(Error::Internal(
                    "no buffer is free and none is in flight".to_owned(),
                ));
            }
            let started = Instant::now();
            desk.collect(&self.shared, true, None);
            self.shared.figures.waited_ns.add(nanos(started.elapsed()));
            self.shared.figures.wait.record(started.elapsed());
        }
        Ok(())
    }

    /// Hands what is staged to the engine.
    pub(super) fn submit_staged(&self, desk: &mut Desk) -> Result<()> {
        let Some(buffer) = desk.pool.current() else {
            return Ok(());
        };
        if desk.staged.is_empty() {
            return Ok(());
        }
        self.engine.check_open()?;
        let len_bytes = desk.staged.len_bytes();
        let mut request = self.engine.blank_request();
        match exclusive(&mut request) {
            Some(request) => desk.staged.fill(request, &desk.buffers[buffer]),
            None => return Err(Error::Internal("a blank request is shared".to_owned())),
        }
        if let Err(error) = self
            .shared
            .submit_write(&self.engine, request, buffer, len_bytes)
        {
            // Shut down since the check above: what was staged is lost, and flush says so too.
            desk.first_error.get_or_insert(error.clone());
            return Err(error);
        }
        desk.pool.submitted(buffer);
        desk.writes_in_flight += 1;
        Ok(())
    }
}
