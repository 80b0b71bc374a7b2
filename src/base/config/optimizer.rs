//! The optimizer's keys as types.

use super::engine::{choices, chosen};
use super::{Config, Directory};
use crate::base::error::{Error, Result};

choices! {
    /// Which store may be opened.
    StoreMode {
        /// The one that is there, or a new one.
        Auto = "auto",
        /// A new one; what was there is removed.
        New = "new",
        /// The one that is there.
        Existing = "existing",
    }

    /// What makes a step durable.
    SyncMode {
        /// Only an explicit commit.
        None = "none",
        /// The end of the step, in the background.
        Commit = "commit",
    }

    /// What is done with checksums of records.
    ChecksumMode {
        /// Nothing.
        Off = "off",
        /// They are kept, and not looked at.
        Write = "write",
        /// They are kept, and verified whenever a record is read.
        Verify = "verify",
    }

    /// Where gradients wait for the step.
    GradientPlace {
        /// In memory.
        Memory = "memory",
        /// In files, through the swapper; short ones stay in memory.
        Disk = "disk",
        /// In memory as far as the budget goes, then in files.
        Auto = "auto",
    }

    /// The type in which gradients wait for the step.
    GradientType {
        /// The type in which they come; f32 where a parameter gets several.
        Auto = "auto",
        /// binary32.
        F32 = "f32",
        /// binary16.
        F16 = "f16",
        /// bfloat16.
        Bf16 = "bf16",
    }

    /// How values are brought into a narrower type on storage.
    Rounding {
        /// To the nearest value, ties to even.
        Nearest = "nearest",
        /// Up or down by chance, so that the expected value is the exact one.
        Stochastic = "stochastic",
    }
}

/// What an optimizer swapper is made from.
#[derive(Debug, Clone, PartialEq)]
pub struct OptimizerOptions {
    /// Where the store lies; at least one.
    pub directories: Vec<Directory>,
    /// The number of this process.
    pub rank: u32,
    /// Which store may be opened.
    pub store: StoreMode,
    /// What makes a step durable.
    pub sync: SyncMode,
    /// What is done with checksums.
    pub checksum: ChecksumMode,
    /// Views given out at once, at least 1.
    pub views_max: u32,
    /// Pinned memory for records on their way; `None` takes what the pipeline needs.
    pub pinned_bytes: Option<u64>,
    /// Records read before they are asked for; `None` is as many as there is room for.
    pub read_ahead: Option<u32>,
    /// Records being written back at once; `None` is as many as there is room for.
    pub write_behind: Option<u32>,
    /// Whether records are read while another one is updated.
    pub pipeline_read: bool,
    /// Whether records are written while another one is updated.
    pub pipeline_write: bool,
    /// Memory, beyond `pinned_bytes`, for records that stay resident.
    pub cache_bytes: u64,
    /// Where gradients wait.
    pub gradients: GradientPlace,
    /// Memory for gradients with [`GradientPlace::Auto`]; `None` lets the optimizer choose.
    pub gradient_bytes: Option<u64>,
    /// The type in which gradients wait.
    pub gradient_type: GradientType,
    /// How values are brought into a narrower type.
    pub rounding: Rounding,
    /// Seed of stochastic rounding.
    pub seed: u64,
}

impl OptimizerOptions {
    /// The optimizer's part of a configuration.
    ///
    /// # Errors
    /// `Config` without a `path`.
    pub fn from_config(config: &Config) -> Result<OptimizerOptions> {
        let directories = config.directories("path")?;
        if directories.is_empty() {
            return Err(Error::Config(
                "path is not set: the directory of the optimizer's store".to_owned(),
            ));
        }
        let count = |key: &str| {
            u32::try_from(config.number(key)?)
                .map_err(|_| Error::Internal(format!("{key} exceeds 32 bits")))
        };
        let unless_zero = |number: u64| (number != 0).then_some(number);
        let unless_zero_count = |number: u32| (number != 0).then_some(number);
        Ok(OptimizerOptions {
            directories,
            rank: count("rank")?,
            store: chosen(config, "store", StoreMode::from_name)?,
            sync: chosen(config, "sync", SyncMode::from_name)?,
            checksum: chosen(config, "checksum", ChecksumMode::from_name)?,
            views_max: count("views_max")?,
            pinned_bytes: unless_zero(config.number("pinned_bytes")?),
            read_ahead: unless_zero_count(count("read_ahead")?),
            write_behind: unless_zero_count(count("write_behind")?),
            pipeline_read: config.flag("pipeline_read")?,
            pipeline_write: config.flag("pipeline_write")?,
            cache_bytes: config.number("cache_bytes")?,
            gradients: chosen(config, "gradients", GradientPlace::from_name)?,
            gradient_bytes: unless_zero(config.number("gradient_bytes")?),
            gradient_type: chosen(config, "gradient_dtype", GradientType::from_name)?,
            rounding: chosen(config, "rounding", Rounding::from_name)?,
            seed: config.number("seed")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_needs_a_directory() {
        let error = OptimizerOptions::from_config(&Config::new()).unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{error}");
    }

    #[test]
    fn zero_leaves_the_choice_to_the_optimizer() {
        let mut config = Config::new();
        config.set("path", "/a").unwrap();
        let options = OptimizerOptions::from_config(&config).unwrap();
        assert_eq!(options.pinned_bytes, None);
        assert_eq!((options.read_ahead, options.write_behind), (None, None));
        assert_eq!(options.views_max, 2);
        assert_eq!(options.sync, SyncMode::Commit);
        assert_eq!(options.gradient_type, GradientType::Auto);
        config.set("pinned_bytes", "3MiB").unwrap();
        config.set("sync", "none").unwrap();
        let options = OptimizerOptions::from_config(&config).unwrap();
        assert_eq!(options.pinned_bytes, Some(3 << 20));
        assert_eq!(options.sync, SyncMode::None);
    }
}
