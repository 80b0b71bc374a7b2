//! What an engine tells about itself. Any thread may ask, at any time.

use std::sync::Weak;

use super::Engine;
use crate::base::sync::lock;
use crate::io::metrics::{self, Metrics};
use crate::io::start;
use crate::io::stats::{DeviceStats, EngineStats};

impl Engine {
    /// What the engine has done.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        EngineStats::of(&self.core.counters, self.core.registry.len_bytes())
    }

    /// What the engine has moved on each device, in the order in which it met them.
    #[must_use]
    pub fn devices(&self) -> Vec<DeviceStats> {
        DeviceStats::of_all(&self.core.counters)
    }

    /// What is in effect, and why, as one JSON object.
    #[must_use]
    pub fn describe(&self) -> String {
        start::describe(
            &self.core.options,
            self.core.open_files_max,
            &self.core.backend,
            &self.core.registry,
        )
    }

    /// The counters in the text format of Prometheus, with those of the swappers and optimizers on
    /// this engine.
    #[must_use]
    pub fn prometheus(&self) -> String {
        let sources = lock(&self.core.sources).values();
        metrics::prometheus(&self.stats(), &self.devices(), &sources)
    }

    /// Adds the metrics of a layer above to the engine's, for as long as it lives.
    pub(crate) fn add_metrics(&self, source: Weak<dyn Metrics>) {
        lock(&self.core.sources).add(source);
    }
}
