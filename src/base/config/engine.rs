//! The engine's keys as types.

use std::path::PathBuf;

use super::Config;
use crate::base::error::{Error, Result};

/// Types for the legal words of a key: a name for each, and back.
macro_rules! choices {
    ($($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
            pub enum $name { $($(#[$variant_doc])* $variant),* }

            impl $name {
                /// Every name, as the configuration spells it.
                pub const NAMES: &'static [&'static str] = &[$($text),*];

                /// The name as the configuration spells it.
                #[must_use]
                pub const fn name(self) -> &'static str {
                    match self { $($name::$variant => $text),* }
                }

                /// The value with this name, if there is one.
                #[must_use]
                pub fn from_name(name: &str) -> Option<$name> {
                    match name { $($text => Some($name::$variant),)* _ => None }
                }
            }
        )*
    };
}

pub(super) use choices;

choices! {
    /// Who does the I/O.
    BackendChoice {
        /// io_uring where the kernel lets us, the thread pool elsewhere.
        Auto = "auto",
        /// io_uring or nothing.
        IoUring = "io_uring",
        /// A pool of threads with blocking calls.
        Threads = "threads",
        /// Files live in memory; there is no storage.
        Memory = "memory",
    }

    /// Whether transfers go past the page cache.
    DirectIo {
        /// A file that cannot is an error.
        Require = "require",
        /// A file that cannot goes through the page cache; logged and counted.
        Prefer = "prefer",
        /// Always through the page cache.
        Off = "off",
    }

    /// How much something is wanted that a machine may refuse.
    Policy {
        /// A refusal is an error.
        Require = "require",
        /// A refusal is logged, and work goes on without.
        Prefer = "prefer",
        /// Not even tried.
        Off = "off",
    }
}

/// What an engine is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineOptions {
    /// Who does the I/O.
    pub backend: BackendChoice,
    /// Operations in flight at once on one device, at least 1.
    pub queue_depth: u32,
    /// Largest operation in bytes, a multiple of 4096.
    pub block_bytes: u64,
    /// Whether transfers go past the page cache.
    pub direct_io: DirectIo,
    /// Threads of the thread pool for each device, at least 1.
    pub threads: u32,
    /// Whether a kernel thread polls the ring.
    pub sqpoll: bool,
    /// Whether buffers are locked in memory.
    pub pin: Policy,
    /// Whether buffers are made of 2 MiB pages.
    pub huge_pages: Policy,
    /// Whether buffers are registered with the ring.
    pub register_buffers: bool,
    /// Tickets alive at once, at least 1.
    pub tickets_max: u32,
    /// Files kept open for reuse; 0 leaves it to the engine.
    pub open_files_max: u32,
    /// The file that receives a trace of every operation.
    pub trace: Option<PathBuf>,
}

impl EngineOptions {
    /// The engine's part of a configuration.
    ///
    /// # Errors
    /// None where the configuration was checked when it was set, as it is; `Internal` otherwise.
    pub fn from_config(config: &Config) -> Result<EngineOptions> {
        let count = |key: &str| {
            u32::try_from(config.number(key)?)
                .map_err(|_| Error::Internal(format!("{key} exceeds 32 bits")))
        };
        Ok(EngineOptions {
            backend: chosen(config, "backend", BackendChoice::from_name)?,
            queue_depth: count("queue_depth")?,
            block_bytes: config.number("block_bytes")?,
            direct_io: chosen(config, "direct_io", DirectIo::from_name)?,
            threads: count("threads")?,
            sqpoll: config.flag("sqpoll")?,
            pin: chosen(config, "pin", Policy::from_name)?,
            huge_pages: chosen(config, "huge_pages", Policy::from_name)?,
            register_buffers: config.flag("register_buffers")?,
            tickets_max: count("tickets_max")?,
            open_files_max: count("open_files_max")?,
            trace: config.file("trace")?,
        })
    }
}

/// The typed value of a choice.
pub(super) fn chosen<T>(config: &Config, key: &str, from_name: fn(&str) -> Option<T>) -> Result<T> {
    let name = config.choice(key)?;
    from_name(name).ok_or_else(|| Error::Internal(format!("{key}: {name} has no type")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults() {
        let options = EngineOptions::from_config(&Config::new()).unwrap();
        let expected = EngineOptions {
            backend: BackendChoice::Auto,
            queue_depth: 32,
            block_bytes: 1 << 20,
            direct_io: DirectIo::Prefer,
            threads: 8,
            sqpoll: false,
            pin: Policy::Prefer,
            huge_pages: Policy::Prefer,
            register_buffers: true,
            tickets_max: 4096,
            open_files_max: 0,
            trace: None,
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn every_legal_word_has_a_type() {
        let mut config = Config::new();
        for key in ["backend", "direct_io", "pin", "huge_pages"] {
            for name in [BackendChoice::NAMES, Policy::NAMES].concat() {
                if config.set(key, name).is_ok() {
                    EngineOptions::from_config(&config).unwrap();
                }
            }
        }
        for name in BackendChoice::NAMES {
            assert_eq!(
                BackendChoice::from_name(name).map(BackendChoice::name),
                Some(*name)
            );
        }
    }

    #[test]
    fn what_was_set_arrives() {
        let mut config = Config::new();
        for (key, value) in [
            ("backend", "memory"),
            ("open_files_max", "17"),
            ("trace", "/tmp/trace"),
            ("block_bytes", "1GiB"),
            ("cache_bytes", "1TiB"),
        ] {
            config.set(key, value).unwrap();
        }
        let options = EngineOptions::from_config(&config).unwrap();
        assert_eq!(options.backend, BackendChoice::Memory);
        assert_eq!(options.open_files_max, 17);
        assert_eq!(options.trace, Some(PathBuf::from("/tmp/trace")));
        assert_eq!(options.block_bytes, 1 << 30);
    }
}
