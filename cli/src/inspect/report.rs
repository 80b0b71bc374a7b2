//! What is told of a store.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;
use tensorswap::store::{StoreReader, StoredState};

use super::endurance::DriveReport;
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
    /// Written to `data` and `spare` since the store was made.
    written_bytes: u64,
    /// On the average of all steps; what was initialized counts as well. None before the first.
    written_bytes_per_step: Option<u64>,
    /// Where something was asked about them.
    drives: Option<Vec<DriveReport>>,
    elements_count: u64,
    states: Vec<StateReport>,
    parameters: Vec<ParameterReport>,
    pub(super) verified: Option<Verified>,
}

#[derive(Debug, Serialize)]
pub(super) struct StateReport {
    pub(super) name: String,
    dtype: &'static str,
    disk_dtype: &'static str,
}

impl StateReport {
    pub(super) fn of(state: StoredState<'_>) -> StateReport {
        StateReport {
            name: state.name.to_owned(),
            dtype: state.dtype.name(),
            disk_dtype: state.disk_dtype.name(),
        }
    }
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
        drives: Option<Vec<DriveReport>>,
    ) -> StoreReport {
        let states: Vec<StateReport> = reader.states().map(StateReport::of).collect();
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
            written_bytes: reader.written_bytes(),
            written_bytes_per_step: reader.written_bytes().checked_div(reader.step()),
            drives,
            elements_count: parameters
                .iter()
                .map(|parameter| parameter.elements_count)
                .sum(),
            states,
            parameters,
            verified,
        }
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
    line("states", &states_text(&report.states));
    let count = to_u64(report.parameters.len());
    let elements = grouped(report.elements_count);
    line(
        "parameters",
        &format!("{} with {elements} elements", grouped(count)),
    );
    line("data", &shown(report.data_bytes));
    line("written", &written_text(report));
    for drive in report.drives.iter().flatten() {
        line("drive", &drive.text());
    }
    line("log", &log_text(report));
    line("user data", &shown(to_u64(report.user_data_bytes)));
    let (version, identity) = (report.format_version, &report.identity);
    line("format", &format!("version {version}, store {identity}"));
    if let Some(verified) = &report.verified {
        line("verified", &verified_text(verified));
    }
    text + &parameters_text(report, limit)
}

pub(super) fn states_text(states: &[StateReport]) -> String {
    let states = states
        .iter()
        .map(|state| match state.dtype == state.disk_dtype {
            true => format!("{} ({})", state.name, state.dtype),
            false => format!(
                "{} ({}, {} on storage)",
                state.name, state.dtype, state.disk_dtype
            ),
        });
    states.collect::<Vec<_>>().join(", ")
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

fn written_text(report: &StoreReport) -> String {
    let total = shown(report.written_bytes);
    match report.written_bytes_per_step {
        Some(bytes) => format!("{total} since it was made, {} a step", shown(bytes)),
        None => format!("{total} since it was made"),
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

pub(super) fn verified_text(verified: &Verified) -> String {
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
    let rows = report.parameters.iter().map(|parameter| {
        let zero_states = &parameter.zero_states;
        vec![
            parameter.name.clone().unwrap_or_else(|| "-".to_owned()),
            parameter.id.to_string(),
            grouped(parameter.elements_count),
            shown(parameter.version_bytes),
            parameter.generation.to_string(),
            note(
                report.verified.as_ref(),
                parameter.id,
                zero_states,
                report.states.len(),
            ),
        ]
    });
    let header = ["name", "id", "elements", "one version", "generation", ""];
    parameters_table(&header, rows, limit)
}

/// What is remarkable about a parameter.
pub(super) fn note(
    verified: Option<&Verified>,
    id: u64,
    zero_states: &[String],
    states_len: usize,
) -> String {
    let mut damages = verified.iter().flat_map(|verified| &verified.damages);
    if damages.any(|damage| damage.id == id) {
        return "DAMAGED".to_owned();
    }
    match zero_states {
        [] => String::new(),
        zero if zero.len() == states_len => "all zero".to_owned(),
        zero => format!("zero: {}", zero.join(", ")),
    }
}

/// A table of parameters behind an empty line, with what is left out because of the limit; nothing
/// where there are none.
pub(super) fn parameters_table(
    header: &[&str],
    rows: impl ExactSizeIterator<Item = Vec<String>>,
    limit: usize,
) -> String {
    let count = rows.len();
    if count == 0 {
        return String::new();
    }
    let shown_count = match limit {
        0 => count,
        limit => limit.min(count),
    };
    let mut text = format!("\n{}", table(header, rows.take(shown_count)));
    if shown_count < count {
        let more = count - shown_count;
        let _ = writeln!(text, "and {more} more (--limit 0 shows all)");
    }
    text
}
