//! The figures of an engine and of the layers above as text for Prometheus.

use std::collections::HashMap;
use std::sync::Weak;

use super::stats::{DeviceStats, DirectionStats, EngineStats};
use crate::base::observe::prometheus::{Sample, Value, render};

/// A metric of a layer above: its name, its help, and its value.
pub(crate) type Metric = (&'static str, &'static str, Value);

/// The metrics of one source: its kind, its number, and the values.
type Sourced = (&'static str, String, Vec<Metric>);

/// A source of metrics.
pub(crate) trait Metrics: std::fmt::Debug + Send + Sync {
    /// What it is: the label that tells it from others of its kind.
    fn kind(&self) -> &'static str;

    /// The values at this moment.
    fn metrics(&self) -> Vec<Metric>;
}

/// What layers above add to the metrics, each under a number of its own among its kind.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// How many there ever were of each kind.
    made_counts: HashMap<&'static str, u64>,
    living: Vec<(u64, Weak<dyn Metrics>)>,
}

impl Sources {
    /// Adds a source, for as long as it lives.
    pub(super) fn add(&mut self, source: Weak<dyn Metrics>) {
        let Some(kind) = source.upgrade().map(|source| source.kind()) else {
            return;
        };
        self.living.retain(|(_, source)| source.strong_count() > 0);
        let made_count = self.made_counts.entry(kind).or_default();
        let number = *made_count;
        *made_count += 1;
        self.living.push((number, source));
    }

    /// The values of all that live.
    pub(super) fn values(&self) -> Vec<Sourced> {
        let sourced = |(number, source): &(u64, Weak<dyn Metrics>)| {
            let source = source.upgrade()?;
            Some((source.kind(), number.to_string(), source.metrics()))
        };
        self.living.iter().filter_map(sourced).collect()
    }
}

/// The counters in the text format of Prometheus, with those of the layers above, each labelled by
/// its kind and number.
pub(super) fn prometheus(
    stats: &EngineStats,
    devices: &[DeviceStats],
    sources: &[Sourced],
) -> String {
    const OUT: &[(&str, &str)] = &[("direction", "out")];
    const IN: &[(&str, &str)] = &[("direction", "in")];
    let mut samples = Vec::new();
    for (labels, of) in [(OUT, &stats.swap_out), (IN, &stats.swap_in)] {
        samples.extend(direction_samples(labels, of));
    }
    let plain = |name, help, value| Sample {
        name,
        help,
        labels: &[],
        value,
    };
    samples.extend([
        plain(
            "tensorswap_requests_total",
            "Requests taken in.",
            Value::Counter(stats.requests_count),
        ),
        plain(
            "tensorswap_requests_in_flight",
            "Requests under way.",
            Value::Gauge(stats.requests_in_flight_count),
        ),
        plain(
            "tensorswap_in_flight_peak",
            "The most operations that were under way at once.",
            Value::Gauge(stats.in_flight_peak_count),
        ),
        plain(
            "tensorswap_bounced_bytes_total",
            "Bytes that went through a bounce block.",
            Value::Counter(stats.bounced_bytes),
        ),
        plain(
            "tensorswap_open_files",
            "Files that are open.",
            Value::Gauge(stats.open_files_count),
        ),
        plain(
            "tensorswap_pinned_bytes",
            "Bytes of pinned buffers.",
            Value::Gauge(stats.pinned_bytes),
        ),
    ]);
    let names: Vec<_> = devices.iter().map(|of| name_of(of.device)).collect();
    let labels: Vec<_> = names
        .iter()
        .map(|name| [("device", name.as_str())])
        .collect();
    for (of, labels) in devices.iter().zip(&labels) {
        samples.extend(device_samples(labels, of));
    }
    let labels: Vec<_> = sources
        .iter()
        .map(|(kind, number, _)| [(*kind, number.as_str())])
        .collect();
    for ((_, _, metrics), labels) in sources.iter().zip(&labels) {
        samples.extend(metrics.iter().map(|(name, help, value)| Sample {
            name,
            help,
            labels,
            value: *value,
        }));
    }
    render(&samples)
}

/// A device's numbers as `lsblk` and `/proc/self/mountinfo` show them.
fn name_of(device: u64) -> String {
    format!("{}:{}", libc::major(device), libc::minor(device))
}

fn device_samples<'a>(labels: &'a [(&'a str, &'a str)], of: &DeviceStats) -> [Sample<'a>; 3] {
    let sample = |name, help, value| Sample {
        name,
        help,
        labels,
        value: Value::Counter(value),
    };
    let busy_ns = u64::try_from(of.busy.as_nanos()).unwrap_or(u64::MAX);
    [
        sample(
            "tensorswap_device_read_bytes_total",
            "Bytes read from a device, with what only fills blocks.",
            of.read_bytes,
        ),
        sample(
            "tensorswap_device_written_bytes_total",
            "Bytes written to a device, padding included.",
            of.written_bytes,
        ),
        sample(
            "tensorswap_device_busy_nanoseconds_total",
            "Time with at least one operation under way on a device.",
            busy_ns,
        ),
    ]
}

fn direction_samples<'a>(labels: &'a [(&'a str, &'a str)], of: &DirectionStats) -> [Sample<'a>; 7] {
    let sample = |name, help, value| Sample {
        name,
        help,
        labels,
        value,
    };
    [
        sample(
            "tensorswap_operations_total",
            "Operations that ended well.",
            Value::Counter(of.operations_count),
        ),
        sample(
            "tensorswap_bytes_total",
            "Bytes of tensors moved.",
            Value::Counter(of.bytes),
        ),
        sample(
            "tensorswap_in_flight",
            "Operations under way.",
            Value::Gauge(of.in_flight_count),
        ),
        sample(
            "tensorswap_retries_total",
            "Operations submitted again after EINTR or EAGAIN.",
            Value::Counter(of.retries_count),
        ),
        sample(
            "tensorswap_short_transfers_total",
            "Transfers that moved less than asked and were continued.",
            Value::Counter(of.short_transfers_count),
        ),
        sample(
            "tensorswap_fallbacks_total",
            "Files that had to go through the page cache.",
            Value::Counter(of.fallbacks_count),
        ),
        sample(
            "tensorswap_errors_total",
            "Files of requests that failed.",
            Value::Counter(of.errors_count),
        ),
    ]
}
