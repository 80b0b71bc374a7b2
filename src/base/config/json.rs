//! JSON: the reader, and our own flat object.
//!
//! Only what configurations hold is kept: scalars and objects. A key that appears twice is an
//! error at every depth that is read, because whichever value won would surprise somebody.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::parse::shown;
use super::{Config, keys, unknown_key};
use crate::base::error::{Error, Result};

/// Longest text in bytes. BOUND: what is parsed takes a small multiple of it in memory.
const JSON_BYTES_MAX: usize = 1 << 20;

/// The name of the call in messages.
pub(super) const ORIGIN: &str = "config_load_json";

/// An object: its values by key.
pub(super) type Object = BTreeMap<String, Node>;

/// A JSON value, as far as configurations use it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Null,
    Bool(bool),
    /// A number, written out: whole ones as digits without exponent.
    Number(String),
    Text(String),
    List,
    Object(Object),
}

impl Node {
    /// The text that stands for a scalar; `None` for the others.
    pub(super) fn scalar(&self) -> Option<String> {
        match self {
            Node::Bool(flag) => Some(flag.to_string()),
            Node::Number(text) | Node::Text(text) => Some(text.clone()),
            Node::Null | Node::List | Node::Object(_) => None,
        }
    }

    /// What it is, in words.
    pub(super) fn what(&self) -> &'static str {
        match self {
            Node::Null => "null",
            Node::Bool(_) => "true or false",
            Node::Number(_) => "a number",
            Node::Text(_) => "a string",
            Node::List => "a list",
            Node::Object(_) => "an object",
        }
    }
}

/// The object that a JSON text is.
///
/// # Errors
/// `Config` where it is not exactly one object.
pub(super) fn parse(json: &[u8]) -> Result<Object> {
    if json.len() > JSON_BYTES_MAX {
        let len = json.len();
        return Err(Error::Config(format!(
            "{ORIGIN}: {len} bytes are too long for a configuration ({JSON_BYTES_MAX} at most)"
        )));
    }
    match serde_json::from_slice(json) {
        Ok(Node::Object(object)) => Ok(object),
        Ok(node) => Err(Error::Config(format!(
            "{ORIGIN}: the text is {}, not an object",
            node.what()
        ))),
        Err(error) => Err(Error::Config(format!("{ORIGIN}: {error}"))),
    }
}

/// Takes our own flat object.
///
/// # Errors
/// `Config` at the first key that is not known or value that is not legal.
pub(super) fn load_flat(config: &mut Config, object: &Object) -> Result<()> {
    for (name, node) in object {
        match node.scalar() {
            Some(text) => config.assign(ORIGIN, name, &text)?,
            None => return Err(no_scalar(name, node)),
        }
    }
    Ok(())
}

/// The error for a value that is neither string, number, true nor false.
fn no_scalar(name: &str, node: &Node) -> Error {
    match keys::find(name) {
        None => unknown_key(ORIGIN, name),
        Some(key) => {
            let (what, legal) = (node.what(), key.kind.legal());
            Error::Config(format!("{ORIGIN}: {} is {what}; legal: {legal}", key.name))
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Number(value.to_string()))
    }

    // DeepSpeed's users write sizes as 1e8, which reaches us as a float. Every whole float has an
    // exact decimal form, so no conversion is needed; too large a one is refused by its key.
    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Number(if value.fract() == 0.0 {
            format!("{value:.0}")
        } else {
            value.to_string()
        }))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Node::List)
    }

    // BOUND: serde_json refuses objects nested deeper than 128.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut object = Object::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value()?;
            match object.entry(key) {
                Entry::Vacant(free) => free.insert(value),
                Entry::Occupied(taken) => {
                    let key = shown(taken.key());
                    return Err(A::Error::custom(format_args!(
                        "the key {key} appears twice"
                    )));
                }
            };
        }
        Ok(Node::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(json: &str) -> Result<Config> {
        let mut config = Config::new();
        config.load_json(json.as_bytes()).map(|()| config)
    }

    fn message(json: &[u8]) -> String {
        let mut config = Config::new();
        config.set("rank", "5").unwrap();
        let before = config.clone();
        let error = config.load_json(json).unwrap_err();
        assert!(matches!(error, Error::Config(_)));
        assert_eq!(config, before, "a failed load changed the configuration");
        let message = error.to_string();
        assert!(
            message.starts_with("config_load_json") && !message.contains('\n'),
            "{message}"
        );
        message
    }

    #[test]
    fn strings_numbers_and_truth_values_are_taken() {
        let config = load(
            r#" {"queue_depth": 64, "block_bytes": 1.048576e6, "sqpoll": true, "pin": "off",
                 "pinned_bytes": "2GiB", "seed": 18446744073709551615, "cache_bytes": 1e9,
                 "path": "/a=1,/b", "pipeline_read": 0} "#,
        )
        .unwrap();
        for (key, text) in [
            ("queue_depth", "64"),
            ("block_bytes", "1MiB"),
            ("sqpoll", "true"),
            ("pin", "off"),
            ("pinned_bytes", "2GiB"),
            ("seed", "18446744073709551615"),
            ("cache_bytes", "1000000000"),
            ("path", "/a=1,/b"),
            ("pipeline_read", "false"),
        ] {
            assert_eq!(config.get(key).as_deref(), Some(text), "{key}");
        }
        assert_eq!(load("{}"), Ok(Config::new()));
    }

    #[test]
    fn a_bad_value_or_key_is_refused_with_what_is_legal() {
        for (json, part) in [
            (
                r#"{"rank": 1, "queue_depth": 1e9}"#,
                "queue_depth = \"1000000000\" is out of range",
            ),
            (
                r#"{"rank": 1, "queue_depth": 2.5}"#,
                "queue_depth = \"2.5\" is no whole number",
            ),
            (r#"{"rank": 1, "queue_depth": -3}"#, "legal: 1 to 4096"),
            (r#"{"rank": 1, "cache_bytes": 1e300}"#, "is out of range"),
            (
                r#"{"rank": 1, "queue_depth": null}"#,
                "queue_depth is null; legal: 1 to 4096",
            ),
            (r#"{"rank": 1, "path": ["/a"]}"#, "path is a list"),
            (r#"{"rank": 1, "threads": {}}"#, "threads is an object"),
            (
                r#"{"rank": 1, "block_size": 4096}"#,
                "unknown key \"block_size\"; the nearest is",
            ),
            (
                r#"{"rank": 1, "block_size": []}"#,
                "unknown key \"block_size\"; the nearest is",
            ),
            (r#"{"rank": 1, "rank": 2}"#, "\"rank\" appears twice"),
        ] {
            let message = message(json.as_bytes());
            assert!(message.contains(part), "{json}: {message}");
        }
    }

    #[test]
    fn what_is_no_single_object_is_refused() {
        for (json, part) in [
            (&b""[..], "EOF"),
            (b"[]", "the text is a list"),
            (b"7", "the text is a number"),
            (b"\"aio\"", "the text is a string"),
            (b"{\"rank\": 1", "EOF"),
            (b"{\"rank\": 1} x", "trailing characters"),
            (b"{\"rank\": 1}\0", "trailing characters"),
            (b"{\"rank\": 1e400}", "out of range"),
            (b"{\"path\": \"\xff\xfe\"}", "unicode"),
            (b"\xef\xbb\xbf{}", "expected value"),
            (b"{rank: 1}", "key must be a string"),
        ] {
            let message = message(json);
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn depth_and_length_are_bounded() {
        let deep = format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000));
        assert!(message(deep.as_bytes()).contains("recursion limit"));
        let lists = format!(
            "{{\"path\": {}{}}}",
            "[".repeat(100_000),
            "]".repeat(100_000)
        );
        assert!(message(lists.as_bytes()).contains("path is a list"));
        let long = format!("{{\"path\": \"{}\"}}", "x".repeat(JSON_BYTES_MAX));
        assert!(message(long.as_bytes()).contains("too long"));
    }
}
