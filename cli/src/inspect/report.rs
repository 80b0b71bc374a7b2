//! What is told of a store.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;
use tensorswap::store::StoreReader;

use super::usage::Usage;
use super::verify::Verified;
use crate::output::{BAD, BOLD, DOUBTFUL, GOOD, shown_path, styled, table};
use crate::sizes::{grouped, shown, to_u64};

/// All that there is to tell.
#[derive(Debug, Serialize)]
pub(crate) struct StoreReport {
    path: String,
    format_version: u32,
    identity: String,
    usage: Usage,
    step: u64,
    commits_count: u64,
    user_data_bytes: usize,
    log_bytes: u64,
    torn_log_bytes: u64,
    data_bytes: u64,
    elements_count: u64,
    states: Vec<StateReport>,
    parameters: Vec<ParameterReport>,
    verified: Option<Verified>,
}

#[derive(Debug, Serialize)]
struct StateReport {
    name: String,
    dtype: &'static str,
    disk_dtype: &'static str,
}

#[derive(Debug, Serialize)]
struct ParameterReport {
    id: u64,
    name: Option<String>,
    elements_count: u64,
    /// Bytes of one version on storage; there is room for two.
    version_bytes: u64,
    offset_bytes: Option<u64>,
    generation: u32,
    zero_states: Vec<String>,
    has_checksums: bool,
}

impl StoreReport {
    pub(crate) fn new(
        path: &Path,
        reader: &StoreReader,
        usage: Usage,
        verified: Option<Verified>,
    ) -> StoreReport {
        let states: Vec<StateReport> = reader
            .states()
            .map(|state| StateReport {
                name: state.name.to_owned(),
                dtype: state.dtype.name(),
                disk_dtype: state.disk_dtype.name(),
            })
            .collect();
        let zero_states = |bits: u8| {
            let named = states.iter().enumerate();
            let zero = named.filter(|(index, _)| bits & (1 << index) != 0);
            zero.map(|(_, state)| state.name.clone()).collect()
        };
        let parameters: Vec<ParameterReport> = reader
            .parameters()
            .map(|parameter| ParameterReport {
                id: parameter.id,
                name: parameter.name.map(str::to_owned),
                elements_count: parameter.numel,
                version_bytes: parameter.extent_bytes,
                offset_bytes: parameter.offset_bytes,
                generation: parameter.generation,
                zero_states: match parameter.generation {
                    0 => zero_states(u8::MAX),
                    _ => zero_states(parameter.zero_states),
                },
                has_checksums: parameter.is_checked,
            })
            .collect();
        let identity = reader.identity();
        StoreReport {
            path: shown_path(path),
            format_version: reader.format_version(),
            identity: identity.iter().map(|byte| format!("{byte:02x}")).collect(),
            usage,
            step: reader.step(),
            commits_count: reader.commits_count(),
            user_data_bytes: reader.user_data().len(),
            log_bytes: reader.log_bytes(),
            torn_log_bytes: reader.torn_bytes(),
            data_bytes: reader.data_bytes(),
            elements_count: parameters
                .iter()
                .map(|parameter| parameter.elements_count)
                .sum(),
            states,
            parameters,
            verified,
        }
    }

    /// Whether nothing was found that should not be.
    pub(crate) fn is_well(&self) -> bool {
        let verified = self.verified.as_ref();
        verified.is_none_or(|verified| verified.damages.is_empty())
    }
}

/// The report for people.
pub(crate) fn text_of(report: &StoreReport, limit: usize) -> String {
    let mut text = format!("{}\n\n", styled(BOLD, &report.path));
    let mut line = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {name:<12} {value}");
    };
    line(
        "step",
        &format!("{} ({} commits)", report.step, report.commits_count),
    );
    line("used by", &usage_text(report.usage));
    let states = report
        .states
        .iter()
        .map(|state| match state.dtype == state.disk_dtype {
            true => format!("{} ({})", state.name, state.dtype),
            false => format!(
                "{} ({}, {} on storage)",
                state.name, state.dtype, state.disk_dtype
            ),
        });
    line("states", &states.collect::<Vec<_>>().join(", "));
    let count = to_u64(report.parameters.len());
    let elements = grouped(report.elements_count);
    line(
        "parameters",
        &format!("{} with {elements} elements", grouped(count)),
    );
    line("data", &shown(report.data_bytes));
    line("log", &log_text(report));
    line("user data", &shown(to_u64(report.user_data_bytes)));
    let (version, identity) = (report.format_version, &report.identity);
    line("format", &format!("version {version}, store {identity}"));
    if let Some(verified) = &report.verified {
        line("verified", &verified_text(verified));
    }
    if !report.parameters.is_empty() {
        text += "\n";
        text += &parameters_text(report, limit);
    }
    text
}

fn usage_text(usage: Usage) -> String {
    match usage {
        Usage::Free => "nobody".to_owned(),
        Usage::InUse { pid: Some(pid) } => {
            format!("process {pid}; what follows was committed last")
        }
        Usage::InUse { pid: None } => "another process; what follows was committed last".to_owned(),
        Usage::LeftByKilled => "nobody; the last process was killed before it closed it".to_owned(),
        Usage::Unknown => "not known (no lock file, or no /proc/locks)".to_owned(),
    }
}

fn log_text(report: &StoreReport) -> String {
    match report.torn_log_bytes {
        0 => shown(report.log_bytes),
        torn => format!(
            "{}, of which {} belong to a commit that did not end (ignored)",
            shown(report.log_bytes),
            shown(torn)
        ),
    }
}

fn verified_text(verified: &Verified) -> String {
    let mut lines = Vec::new();
    let compared = shown(verified.compared_bytes);
    match verified.damages.len() {
        0 => lines.push(styled(GOOD, &format!("{compared}, all as written"))),
        1 => lines.push(styled(
            BAD,
            &format!("{compared} as written, 1 parameter damaged"),
        )),
        count => lines.push(styled(
            BAD,
            &format!("{compared} as written, {count} parameters damaged"),
        )),
    }
    if verified.unchecked_count > 0 {
        let count = verified.unchecked_count;
        lines.push(styled(
            DOUBTFUL,
            &format!("{count} parameters have no checksums (checksum=off)"),
        ));
    }
    if verified.unsettled_count > 0 {
        let count = verified.unsettled_count;
        lines.push(styled(
            DOUBTFUL,
            &format!("{count} parameters changed too often to be compared"),
        ));
    }
    lines.extend(verified.damages.iter().map(|damage| damage.message.clone()));
    lines.join("\n               ")
}

fn parameters_text(report: &StoreReport, limit: usize) -> String {
    let shown_count = match limit {
        0 => report.parameters.len(),
        limit => limit.min(report.parameters.len()),
    };
    let damaged = |id: u64| {
        let verified = report.verified.as_ref();
        verified.is_some_and(|verified| verified.damages.iter().any(|damage| damage.id == id))
    };
    let rows = report.parameters.iter().take(shown_count).map(|parameter| {
        let mut note = match parameter.zero_states.as_slice() {
            [] => String::new(),
            zero if zero.len() == report.states.len() => "all zero".to_owned(),
            zero => format!("zero: {}", zero.join(", ")),
        };
        if damaged(parameter.id) {
            note = "DAMAGED".to_owned();
        }
        vec![
            parameter.name.clone().unwrap_or_else(|| "-".to_owned()),
            parameter.id.to_string(),
            grouped(parameter.elements_count),
            shown(parameter.version_bytes),
            parameter.generation.to_string(),
            note,
        ]
    });
    let header = ["name", "id", "elements", "one version", "generation", ""];
    let mut text = table(&header, rows);
    let more = report.parameters.len() - shown_count;
    if more > 0 {
        let _ = writeln!(text, "and {more} more (--limit 0 shows all)");
    }
    text
}
