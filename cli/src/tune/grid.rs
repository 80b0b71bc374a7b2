//! What is tried, and what came of it.

use serde::Serialize;
use tensorswap::base::config::Config;

use crate::drive::Kind;
use crate::drive::figures::median;
use crate::failure::Failure;
use crate::output::{BOLD, styled, table};
use crate::sizes::{exact, shown_speed};

/// One combination of settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Setting {
    /// `io_uring` or `threads`.
    pub(super) backend: &'static str,
    /// Whether memory lies in huge pages.
    pub(super) huge_pages: bool,
    pub(super) block_bytes: u64,
    /// Operations at once; with the backend `threads`, also the number of threads.
    pub(super) queue_depth: u32,
}

impl Setting {
    /// As an engine is configured.
    pub(super) fn config(&self) -> Result<Config, Failure> {
        let mut config = Config::new();
        let huge_pages = if self.huge_pages { "prefer" } else { "off" };
        for (key, value) in [
            ("backend", self.backend),
            ("huge_pages", huge_pages),
            ("block_bytes", &exact(self.block_bytes)),
            ("queue_depth", &self.queue_depth.to_string()),
            ("threads", &self.threads().to_string()),
        ] {
            config.set(key, value)?;
        }
        Ok(config)
    }

    /// Threads of the backend `threads`; the default where it is not in use.
    fn threads(&self) -> u32 {
        match self.backend {
            "threads" => self.queue_depth,
            _ => EngineDefaults::read().threads,
        }
    }

    /// Whether only block size and depth differ.
    pub(super) fn is_beside(&self, other: &Setting) -> bool {
        (self.backend, self.huge_pages) == (other.backend, other.huge_pages)
    }

    /// In words.
    pub(super) fn text(&self) -> String {
        let pages = if self.huge_pages {
            "huge pages"
        } else {
            "4 KiB pages"
        };
        let blocks = exact(self.block_bytes);
        format!(
            "{}, {pages}, blocks of {blocks}, depth {}",
            self.backend, self.queue_depth
        )
    }
}

/// What the engine does when nothing is set.
pub(super) struct EngineDefaults {
    pub(super) block_bytes: u64,
    pub(super) queue_depth: u32,
    pub(super) threads: u32,
}

impl EngineDefaults {
    pub(super) fn read() -> EngineDefaults {
        let config = Config::new();
        let number = |key: &str| config.number(key).unwrap_or(0);
        let count = |key: &str| u32::try_from(number(key)).unwrap_or(0);
        EngineDefaults {
            block_bytes: number("block_bytes"),
            queue_depth: count("queue_depth"),
            threads: count("threads"),
        }
    }
}

/// The speeds of one combination.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Cell {
    pub(super) setting: Setting,
    #[serde(skip)]
    pub(super) samples: [Vec<f64>; 3],
    pub(super) out_bytes_per_second: f64,
    pub(super) in_bytes_per_second: f64,
    pub(super) mixed_bytes_per_second: f64,
}

impl Cell {
    pub(super) fn new(setting: Setting) -> Cell {
        Cell {
            setting,
            samples: Default::default(),
            out_bytes_per_second: f64::NAN,
            in_bytes_per_second: f64::NAN,
            mixed_bytes_per_second: f64::NAN,
        }
    }

    /// Takes medians of what was measured so far.
    pub(super) fn settle(&mut self) {
        let [out, read, mixed] = self.samples.clone().map(median);
        self.out_bytes_per_second = out;
        self.in_bytes_per_second = read;
        self.mixed_bytes_per_second = mixed;
    }

    pub(super) fn speed(&self, kind: Kind) -> f64 {
        match kind {
            Kind::Out => self.out_bytes_per_second,
            Kind::In => self.in_bytes_per_second,
            Kind::Mixed => self.mixed_bytes_per_second,
        }
    }

    /// How far apart its samples of one kind lie: the fastest by the slowest.
    pub(super) fn variation(&self) -> f64 {
        let of = |samples: &Vec<f64>| {
            let fastest = samples.iter().copied().fold(0.0, f64::max);
            let slowest = samples.iter().copied().fold(f64::INFINITY, f64::min);
            fastest / slowest
        };
        self.samples.iter().map(of).fold(1.0, f64::max)
    }

    /// What is compared: a step reads and writes at once, and what comes first or last in it is
    /// one of the two alone.
    pub(super) fn score(&self) -> f64 {
        let logs = Kind::ALL.map(|kind| self.speed(kind).ln());
        (logs.iter().sum::<f64>() / 3.0).exp()
    }
}

/// The whole result.
#[derive(Debug, Serialize)]
pub(super) struct Found {
    pub(super) path: String,
    pub(super) machine: String,
    pub(super) engine_version: &'static str,
    pub(super) measured_bytes: u64,
    /// How often every combination was measured.
    pub(super) rounds: usize,
    /// Why a backend or a kind of page is missing.
    pub(super) notes: Vec<String>,
    pub(super) blocks: Vec<u64>,
    pub(super) depths: Vec<u32>,
    pub(super) cells: Vec<Cell>,
    /// The best ones and the defaults, measured against each other; the best one first.
    pub(super) finalists: Vec<Cell>,
    pub(super) best: Setting,
    /// The best one with the backend and the pages that an engine takes by itself.
    pub(super) best_for_deepspeed: Setting,
    pub(super) defaults: Setting,
    /// The best one's score by that of the defaults.
    pub(super) gain: f64,
}

impl Found {
    /// What `tsw_config_load_json` reads.
    pub(super) fn configuration_json(&self) -> Result<String, Failure> {
        let config = self.best.config()?;
        let value = |key: &str| config.get(key).unwrap_or_default();
        let number = |key: &str| config.number(key).unwrap_or_default();
        pretty(&serde_json::json!({
            // Where io_uring is refused the threads do the work.
            "backend": if self.best.backend == "io_uring" { "auto" } else { self.best.backend },
            "block_bytes": number("block_bytes"),
            "queue_depth": number("queue_depth"),
            "threads": number("threads"),
            "huge_pages": value("huge_pages"),
        }))
    }

    /// A DeepSpeed configuration's section `aio`, with the names and types that its code reads.
    pub(super) fn deepspeed_json(&self) -> Result<String, Failure> {
        pretty(&serde_json::json!({
            "aio": {
                "block_size": self.best_for_deepspeed.block_bytes,
                "queue_depth": self.best_for_deepspeed.queue_depth,
                // More of them multiply the depth, and make DeepSpeed pad its files more.
                "intra_op_parallelism": 1,
                "single_submit": false,
                "overlap_events": true,
            }
        }))
    }

    /// The report for people.
    pub(super) fn text(&self) -> String {
        let count = self.cells.len();
        let mut text = format!(
            "{}\n{count} combinations, {}; the best ones again, against each other:\n\n",
            styled(BOLD, &self.path),
            rounds_text(self.rounds)
        );
        let rows = self.finalists.iter().map(|cell| {
            let setting = &cell.setting;
            let mut name = setting.text();
            if *setting == self.defaults {
                name += " (default)";
            }
            let [out, read, mixed] = Kind::ALL.map(|kind| shown_speed(cell.speed(kind)));
            vec![name, out, read, mixed]
        });
        text += &table(&["", "out", "in", "mixed"], rows);
        for note in &self.notes {
            text += &format!("note: {note}\n");
        }
        text += &format!(
            "\nbest: {}\n{}\n",
            styled(BOLD, &self.best.text()),
            self.gain_text()
        );
        text
    }

    /// What the best one brings.
    pub(super) fn gain_text(&self) -> String {
        match (self.best == self.defaults, self.gain) {
            (true, _) => "these are the defaults: nothing needs to be set".to_owned(),
            (false, gain) => {
                format!(
                    "{gain:.2} times as fast as the defaults ({})",
                    self.defaults.text()
                )
            }
        }
    }
}

/// How often everything was measured.
pub(super) fn rounds_text(rounds: usize) -> String {
    match rounds {
        1 => "one round".to_owned(),
        rounds => format!("medians of {rounds} rounds"),
    }
}

fn pretty(value: &serde_json::Value) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|error| Failure::Refused(format!("JSON: {error}")))?;
    Ok(text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(samples: [f64; 3]) -> Cell {
        let mut cell = Cell::new(Setting {
            backend: "io_uring",
            huge_pages: true,
            block_bytes: 1 << 20,
            queue_depth: 32,
        });
        cell.samples = samples.map(|sample| vec![sample, 2.0 * sample, 3.0 * sample]);
        cell.settle();
        cell
    }

    #[test]
    fn a_cell_is_judged_by_the_medians_of_all_kinds() {
        let cell = cell([1.0, 2.0, 4.0]);
        assert_eq!(Kind::ALL.map(|kind| cell.speed(kind)), [2.0, 4.0, 8.0]);
        assert!((cell.score() - 4.0).abs() < 1e-12);
        assert!((cell.variation() - 3.0).abs() < 1e-12);
    }

    #[test]
    fn every_setting_is_a_configuration_of_the_engine() {
        for backend in ["io_uring", "threads"] {
            let setting = Setting {
                backend,
                huge_pages: false,
                block_bytes: 4 << 20,
                queue_depth: 256,
            };
            let config = setting.config().unwrap();
            assert_eq!(config.choice("backend"), Ok(backend));
            assert_eq!(config.number("block_bytes"), Ok(4 << 20));
            assert_eq!(config.number("queue_depth"), Ok(256));
        }
    }
}
