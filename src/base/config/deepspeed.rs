//! The part of a DeepSpeed configuration that means something here.
//!
//! Source of the names: DeepSpeed's "aio" and "zero_optimization.offload_optimizer" sections, as
//! its documentation, its code and its tuning tool spell them.

use super::json::{Node, ORIGIN, Object};
use super::parse::escape;
use super::{Config, keys};
use crate::base::error::{Error, Result};
use crate::base::observe::events;

/// What a key of DeepSpeed is to us.
enum Meaning {
    /// The same as a key of ours. Of several for one key, the first in the table is taken.
    Key(&'static str),
    /// One directory, which may hold the characters that separate ours.
    Path,
    /// `pin_memory`: true asks for locked memory, false does without.
    Pin,
    /// Nothing, and why.
    Nothing(&'static str),
}

/// The section `aio`. DeepSpeed's code reads `intra_op_parallelism`, its documentation says
/// `thread_count` and its tuning tool prints `num_threads`: all three are meant the same.
const AIO: &[(&str, Meaning)] = &[
    ("block_size", Meaning::Key("block_bytes")),
    ("queue_depth", Meaning::Key("queue_depth")),
    ("intra_op_parallelism", Meaning::Key("threads")),
    ("thread_count", Meaning::Key("threads")),
    ("num_threads", Meaning::Key("threads")),
    (
        "single_submit",
        Meaning::Nothing("operations are submitted in batches"),
    ),
    (
        "overlap_events",
        Meaning::Nothing("the queue is refilled on every completion"),
    ),
    ("use_gds", Meaning::Nothing("transfers go to host memory")),
];

/// The section `zero_optimization.offload_optimizer`.
const OFFLOAD_OPTIMIZER: &[(&str, Meaning)] = &[
    ("nvme_path", Meaning::Path),
    ("pipeline_read", Meaning::Key("pipeline_read")),
    ("pipeline_write", Meaning::Key("pipeline_write")),
    ("pin_memory", Meaning::Pin),
    (
        "device",
        Meaning::Nothing("what the optimizer is given is kept on storage"),
    ),
    (
        "buffer_count",
        Meaning::Nothing("buffers are cut to each record from pinned_bytes"),
    ),
    (
        "buffer_size",
        Meaning::Nothing("buffers are cut to each record from pinned_bytes"),
    ),
    (
        "fast_init",
        Meaning::Nothing("initialization is always fast"),
    ),
    (
        "ratio",
        Meaning::Nothing("the whole state is kept on storage"),
    ),
    (
        "super_offload",
        Meaning::Nothing("the update is the caller's"),
    ),
    (
        "cpuadam_cores_perc",
        Meaning::Nothing("the update is the caller's"),
    ),
];

/// Whether an object is a DeepSpeed configuration rather than our own.
pub(super) fn is_deepspeed(object: &Object) -> bool {
    object.contains_key("aio") || object.contains_key("zero_optimization")
}

/// Takes what means something here.
///
/// # Errors
/// `Config` where a value that means something is not legal.
pub(super) fn load(config: &mut Config, object: &Object) -> Result<()> {
    for name in object.keys() {
        match name.as_str() {
            "aio" | "zero_optimization" => {}
            name if keys::find(name).is_some() => events::config_key_ignored(
                name,
                "a DeepSpeed configuration sets our keys in its own sections",
            ),
            name => events::config_key_foreign(name),
        }
    }
    if let Some(aio) = section(object, "aio", "aio")? {
        load_section(config, "aio", aio, AIO)?;
    }
    let Some(zero) = section(object, "zero_optimization", "zero_optimization")? else {
        return Ok(());
    };
    if zero.contains_key("offload_param") {
        events::config_key_ignored(
            "zero_optimization.offload_param",
            "parameters for the forward pass are not swapped here",
        );
    }
    let path = "zero_optimization.offload_optimizer";
    match section(zero, "offload_optimizer", path)? {
        Some(offload) => load_section(config, path, offload, OFFLOAD_OPTIMIZER),
        None => Ok(()),
    }
}

/// The section with this name. Absent is the same as null, and as the truth value that older
/// configurations have in its place.
fn section<'a>(object: &'a Object, name: &str, path: &str) -> Result<Option<&'a Object>> {
    match object.get(name) {
        None | Some(Node::Null | Node::Bool(_)) => Ok(None),
        Some(Node::Object(section)) => Ok(Some(section)),
        Some(node) => Err(Error::Config(format!(
            "{ORIGIN}: {path} is {}, not an object",
            node.what()
        ))),
    }
}

/// Takes one section by its table.
fn load_section(
    config: &mut Config,
    path: &str,
    section: &Object,
    table: &[(&str, Meaning)],
) -> Result<()> {
    for name in section.keys() {
        if !table.iter().any(|(known, _)| known == name) {
            events::config_key_unknown(&format!("{path}.{name}"));
        }
    }
    let mut taken: Vec<&str> = Vec::new();
    for (name, meaning) in table {
        let Some(node) = section.get(*name).filter(|node| **node != Node::Null) else {
            continue;
        };
        let origin = format!("{ORIGIN}: {path}.{name}");
        match meaning {
            Meaning::Nothing(why) => events::config_key_ignored(&format!("{path}.{name}"), why),
            Meaning::Key(key) if taken.contains(key) => {
                events::config_key_ignored(
                    &format!("{path}.{name}"),
                    "another name of it is given",
                );
            }
            Meaning::Key(key) => {
                taken.push(key);
                config.assign(&origin, key, &scalar(&origin, node)?)?;
            }
            Meaning::Path => config.assign(&origin, "path", &escape(&scalar(&origin, node)?))?,
            Meaning::Pin => {
                let pin = pin_of(&origin, &scalar(&origin, node)?)?;
                config.assign(&origin, "pin", pin)?;
            }
        }
    }
    Ok(())
}

fn scalar(origin: &str, node: &Node) -> Result<String> {
    node.scalar().ok_or_else(|| {
        Error::Config(format!(
            "{origin} is {}, not a string, number or truth value",
            node.what()
        ))
    })
}

/// Our value of `pin` for a truth value. True is only a wish: DeepSpeed's users set it without
/// knowing the limit of locked memory.
fn pin_of(origin: &str, text: &str) -> Result<&'static str> {
    match super::parse::bool_of(text) {
        Some(true) => Ok("prefer"),
        Some(false) => Ok("off"),
        None => {
            let text = super::parse::shown(text);
            Err(Error::Config(format!(
                "{origin} = {text} is not known; legal: true|false"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What DeepSpeed's documentation shows for ZeRO-Infinity, with the values of its examples.
    const EXAMPLE: &str = r#"{
        "train_batch_size": "auto",
        "fp16": {"enabled": true, "loss_scale_window": 1000},
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW", "params": {"betas": [0.8, 0.999]}},
        "zero_optimization": {
            "stage": 3,
            "sub_group_size": 1e9,
            "offload_optimizer": {
                "device": "nvme", "nvme_path": "/local_nvme/run=1,a", "pin_memory": true,
                "buffer_count": 4, "buffer_size": 1e8, "fast_init": false, "ratio": 1.0,
                "pipeline_read": true, "pipeline_write": "false"
            },
            "offload_param": {"device": "nvme", "nvme_path": "/local_nvme", "buffer_size": 1e8}
        },
        "aio": {
            "block_size": 262144, "queue_depth": 32, "thread_count": 1,
            "intra_op_parallelism": 4.0, "single_submit": "false", "overlap_events": true,
            "use_gds": false
        }
    }"#;

    #[test]
    fn an_example_of_deepspeed_is_understood() {
        let mut config = Config::new();
        config.load_json(EXAMPLE.as_bytes()).unwrap();
        for (key, text) in [
            ("block_bytes", "256KiB"),
            ("queue_depth", "32"),
            ("threads", "4"),
            ("path", r"/local_nvme/run\=1\,a"),
            ("pin", "prefer"),
            ("pipeline_read", "true"),
            ("pipeline_write", "false"),
        ] {
            assert!(config.is_set(key), "{key}");
            assert_eq!(config.get(key).as_deref(), Some(text), "{key}");
        }
        assert!(!config.is_set("pinned_bytes"));
        let directories = config.directories("path").unwrap();
        assert_eq!(directories[0].path.to_str(), Some("/local_nvme/run=1,a"));
    }

    #[test]
    fn sections_that_are_absent_null_or_from_older_versions_are_nothing() {
        for json in [
            r#"{"aio": null}"#,
            r#"{"aio": {}, "queue_depth": 7}"#,
            r#"{"zero_optimization": true}"#,
            r#"{"zero_optimization": {"stage": 2, "offload_optimizer": null}}"#,
            r#"{"aio": {"queue_depth": null, "no_such_key": [1]}}"#,
        ] {
            let mut config = Config::new();
            config.load_json(json.as_bytes()).unwrap();
            assert_eq!(config, Config::new(), "{json}");
        }
    }

    #[test]
    fn any_of_the_three_names_sets_the_threads() {
        for name in ["intra_op_parallelism", "thread_count", "num_threads"] {
            let mut config = Config::new();
            config
                .load_json(format!(r#"{{"aio": {{"{name}": 6}}}}"#).as_bytes())
                .unwrap();
            assert_eq!(config.number("threads"), Ok(6), "{name}");
        }
    }

    #[test]
    fn a_bad_value_names_where_it_stands_and_nothing_is_taken() {
        for (json, part) in [
            (
                r#"{"aio": {"queue_depth": 8, "block_size": 1e6}}"#,
                "aio.block_size: block_bytes = \"1000000\" is not a multiple of 4096",
            ),
            (
                r#"{"aio": {"queue_depth": "auto"}}"#,
                "aio.queue_depth: queue_depth = \"auto\" is no",
            ),
            (
                r#"{"aio": {"queue_depth": [8]}}"#,
                "aio.queue_depth is a list",
            ),
            (r#"{"aio": [1]}"#, "aio is a list, not an object"),
            (
                r#"{"aio": {"queue_depth": 8}, "zero_optimization": 3}"#,
                "zero_optimization is a number",
            ),
            (
                r#"{"aio": {"queue_depth": 8}, "zero_optimization": {"offload_optimizer": "nvme"}}"#,
                "zero_optimization.offload_optimizer is a string",
            ),
            (
                r#"{"aio": {"queue_depth": 8}, "zero_optimization": {"offload_optimizer": {"pin_memory": 3}}}"#,
                "offload_optimizer.pin_memory = \"3\" is not known; legal: true|false",
            ),
            (
                r#"{"aio": {"queue_depth": 8, "queue_depth": 9}}"#,
                "\"queue_depth\" appears twice",
            ),
        ] {
            let mut config = Config::new();
            let error = config.load_json(json.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(part), "{json}: {error}");
            assert!(error.to_string().starts_with(ORIGIN), "{error}");
            assert_eq!(config, Config::new());
        }
    }
}
