//! The memory that is moved: random data to be written, and room for what is read.

use std::sync::Arc;

use tensorswap::base::config::Policy;
use tensorswap::memory::{PageKind, PinnedMemory};

use super::area::Area;
use crate::failure::Failure;

/// Two areas of the same length.
#[derive(Debug, Clone)]
pub(crate) struct Field {
    /// What is written; once it was, the files hold the same.
    pub(crate) source: Area,
    /// What is read.
    pub(crate) target: Area,
    memory: Arc<PinnedMemory>,
}

impl Field {
    /// Allocates both areas, of `len_bytes` each, and fills the source.
    ///
    /// # Errors
    /// `Refused` where there is not as much memory.
    pub(crate) fn new(len_bytes: u64, huge_pages: Policy) -> Result<Field, Failure> {
        let memory = PinnedMemory::allocate(2 * len_bytes, Policy::Prefer, huge_pages)?;
        let len = usize::try_from(len_bytes)
            .map_err(|_| Failure::wrong("more than this machine can address"))?;
        // SAFETY: the areas lie in the memory one behind the other, and go with it; only one
        // measurement at a time uses them.
        let (mut source, target) = unsafe {
            let start = memory.as_ptr();
            (Area::new(start, len), Area::new(start.add(len), len))
        };
        source.randomize(1);
        Ok(Field {
            source,
            target,
            memory: Arc::new(memory),
        })
    }

    /// What pages the memory lies in.
    pub(crate) fn pages(&self) -> PageKind {
        self.memory.pages()
    }

    /// Whether the kernel keeps it in memory.
    pub(crate) fn is_locked(&self) -> bool {
        self.memory.is_locked()
    }
}
