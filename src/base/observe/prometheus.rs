//! Metrics as text, in the exposition format of Prometheus, version 0.0.4.

use std::fmt::Write as _;

use super::TimerSnapshot;

/// The value of a sample, which also is the kind of its metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// Only grows.
    Counter(u64),
    /// Goes up and down.
    Gauge(u64),
    /// Durations in nanoseconds: two quantiles, sum and count.
    Summary(TimerSnapshot),
}

impl Value {
    const fn kind(&self) -> &'static str {
        match self {
            Value::Counter(_) => "counter",
            Value::Gauge(_) => "gauge",
            Value::Summary(_) => "summary",
        }
    }
}

/// One value of a metric. Samples of one metric share name, help and kind, and differ in labels.
#[derive(Debug, Clone, Copy)]
pub struct Sample<'a> {
    /// Name of the metric: letters, digits, `_` and `:`, no digit first.
    pub name: &'a str,
    /// What it counts, in one sentence.
    pub help: &'a str,
    /// Names and values that tell the samples of one metric apart.
    pub labels: &'a [(&'a str, &'a str)],
    /// The value.
    pub value: Value,
}

/// The text for a list of samples. Metrics come in the order in which they first appear, each
/// with all of its samples, its help and its kind, as the format demands.
#[must_use]
pub fn render(samples: &[Sample<'_>]) -> String {
    let mut text = String::new();
    for (index, first) in samples.iter().enumerate() {
        if samples[..index]
            .iter()
            .any(|earlier| earlier.name == first.name)
        {
            continue;
        }
        debug_assert!(
            is_name(first.name),
            "{:?} is no name of a metric",
            first.name
        );
        let (name, kind) = (first.name, first.value.kind());
        let help = first.help.replace('\\', "\\\\").replace('\n', "\\n");
        put(
            &mut text,
            format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"),
        );
        for sample in samples[index..].iter().filter(|sample| sample.name == name) {
            debug_assert_eq!(sample.value.kind(), kind, "{name} is of two kinds");
            put_sample(&mut text, sample);
        }
    }
    text
}

fn put_sample(text: &mut String, sample: &Sample<'_>) {
    match sample.value {
        Value::Counter(value) | Value::Gauge(value) => {
            put_line(text, sample, "", None, value);
        }
        Value::Summary(timer) => {
            put_line(text, sample, "", Some("0.5"), timer.p50_ns);
            put_line(text, sample, "", Some("0.99"), timer.p99_ns);
            put_line(text, sample, "_sum", None, timer.total_ns);
            put_line(text, sample, "_count", None, timer.count);
        }
    }
}

fn put_line(
    text: &mut String,
    sample: &Sample<'_>,
    suffix: &str,
    quantile: Option<&str>,
    value: u64,
) {
    put(text, format_args!("{}{suffix}", sample.name));
    let quantile = quantile.map(|quantile| ("quantile", quantile));
    let mut opening = '{';
    for (label, label_value) in sample.labels.iter().copied().chain(quantile) {
        debug_assert!(is_name(label), "{label:?} is no name of a label");
        let escaped = label_value
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n");
        put(text, format_args!("{opening}{label}=\"{escaped}\""));
        opening = ',';
    }
    if opening == ',' {
        text.push('}');
    }
    put(text, format_args!(" {value}\n"));
}

/// Appends; writing to a string cannot fail.
fn put(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    let _ = text.write_fmt(arguments);
}

fn is_name(name: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':';
    name.bytes().all(is_part)
        && name
            .bytes()
            .next()
            .is_some_and(|byte| !byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_metric_are_gathered_under_one_head() {
        let sample = |name, labels, value| Sample {
            name,
            help: "Bytes\nof \\ all.",
            labels,
            value,
        };
        let text = render(&[
            sample("tsw_bytes", &[("direction", "out")], Value::Counter(7)),
            sample("tsw_depth", &[], Value::Gauge(3)),
            sample(
                "tsw_bytes",
                &[("direction", "in"), ("path", "a\"\\\nb")],
                Value::Counter(u64::MAX),
            ),
        ]);
        let expected = "# HELP tsw_bytes Bytes\\nof \\\\ all.\n\
             # TYPE tsw_bytes counter\n\
             tsw_bytes{direction=\"out\"} 7\n\
             tsw_bytes{direction=\"in\",path=\"a\\\"\\\\\\nb\"} 18446744073709551615\n\
             # HELP tsw_depth Bytes\\nof \\\\ all.\n\
             # TYPE tsw_depth gauge\n\
             tsw_depth 3\n";
        assert_eq!(text, expected);
        assert_eq!(render(&[]), "");
    }

    #[test]
    fn a_timer_is_a_summary() {
        let timer = TimerSnapshot {
            count: 2,
            total_ns: 30,
            min_ns: 10,
            max_ns: 20,
            p50_ns: 10,
            p99_ns: 20,
        };
        let labels = [("timer", "swap_in_state")];
        let value = Value::Summary(timer);
        let text = render(&[Sample {
            name: "tsw_ns",
            help: "Time.",
            labels: &labels,
            value,
        }]);
        let expected = "# HELP tsw_ns Time.\n# TYPE tsw_ns summary\n\
             tsw_ns{timer=\"swap_in_state\",quantile=\"0.5\"} 10\n\
             tsw_ns{timer=\"swap_in_state\",quantile=\"0.99\"} 20\n\
             tsw_ns_sum{timer=\"swap_in_state\"} 30\n\
             tsw_ns_count{timer=\"swap_in_state\"} 2\n";
        assert_eq!(text, expected);
    }
}
