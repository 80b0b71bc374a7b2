//! Configuration: string keys and string values, checked the moment they are set.
//!
//! Owns the table of keys ([`keys`]), the values somebody set, and the reader of JSON. One
//! configuration may be handed to every object; each takes the keys that are its own and ignores
//! the rest. Never touches a file and never asks the machine anything: "auto" stays "auto" until
//! the object that takes the key resolves it.
//!
//! A [`Config`] belongs to one thread at a time. INVARIANT: every value it holds has passed the
//! check of its key, so reading a value of a known key cannot fail.

mod deepspeed;
mod engine;
mod json;
mod keys;
mod nearest;
mod optimizer;
mod parse;

use std::collections::BTreeMap;

use super::error::{Error, Result};

pub use engine::{BackendChoice, DirectIo, EngineOptions, Policy};
pub use keys::{Key, Object, keys};
pub use optimizer::{
    ChecksumMode, GradientPlace, GradientType, OptimizerOptions, Rounding, StoreMode, SyncMode,
};
pub use parse::{Bounds, Directory, Kind, size_of as parse_size, size_text};
use parse::{Value, shown};

/// A set of keys and values. Keys that were not set have their defaults.
///
/// Keys and values are UTF-8 text; a directory whose name is not cannot be configured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Config {
    /// Only what was set.
    values: BTreeMap<&'static str, Value>,
}

impl Config {
    /// A configuration in which every key has its default.
    #[must_use]
    pub fn new() -> Config {
        Config::default()
    }

    /// Sets a key.
    ///
    /// # Errors
    /// `Config` where the key is not known (the message names the nearest one) or the value is
    /// not legal (the message lists what is). The configuration is then unchanged.
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        self.assign("config_set", key, value)
    }

    /// The value of a key as text: what was set, in its normal form, or the default. `None`
    /// where the key is not known.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<String> {
        let key = keys::find(key)?;
        Some(match self.values.get(key.name) {
            Some(value) => key.kind.text(value),
            None => key.default.to_owned(),
        })
    }

    /// Whether somebody set the key, be it to its default.
    #[must_use]
    pub fn is_set(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// Takes the values of a JSON text: our own flat object (`{"queue_depth": 32}`) or a
    /// DeepSpeed configuration, known by its `aio` or `zero_optimization`.
    ///
    /// Keys of DeepSpeed that have no meaning here are accepted and logged.
    ///
    /// # Errors
    /// `Config` where the text is not one JSON object, a key of our own is not known, or a value
    /// is not legal. All or nothing: the configuration is then unchanged.
    pub fn load_json(&mut self, json: &[u8]) -> Result<()> {
        let object = json::parse(json)?;
        let mut loaded = self.clone();
        if deepspeed::is_deepspeed(&object) {
            deepspeed::load(&mut loaded, &object)?;
        } else {
            json::load_flat(&mut loaded, &object)?;
        }
        *self = loaded;
        Ok(())
    }

    /// The value of a key that is a size or a count; 0 is "auto" where the key knows it.
    ///
    /// # Errors
    /// `Config` where the key is not known, `InvalidArgument` where it holds no number.
    pub fn number(&self, key: &str) -> Result<u64> {
        match self.value(key)? {
            Value::Number(number) => Ok(number),
            _ => Err(Error::invalid(format!(
                "configuration key {key} is no number"
            ))),
        }
    }

    /// The value of a key that is true or false.
    ///
    /// # Errors
    /// `Config` where the key is not known, `InvalidArgument` where it is neither.
    pub fn flag(&self, key: &str) -> Result<bool> {
        match self.value(key)? {
            Value::Bool(flag) => Ok(flag),
            _ => Err(Error::invalid(format!(
                "configuration key {key} is no flag"
            ))),
        }
    }

    /// The value of a key that is one of a few words.
    ///
    /// # Errors
    /// `Config` where the key is not known, `InvalidArgument` where it offers no choice.
    pub fn choice(&self, key: &str) -> Result<&'static str> {
        match self.value(key)? {
            Value::Choice(name) => Ok(name),
            _ => Err(Error::invalid(format!(
                "configuration key {key} is no choice"
            ))),
        }
    }

    /// The value of a key that names a file; `None` where it is empty.
    ///
    /// # Errors
    /// `Config` where the key is not known, `InvalidArgument` where it names no file.
    pub fn file(&self, key: &str) -> Result<Option<std::path::PathBuf>> {
        match self.value(key)? {
            Value::File(path) if path.is_empty() => Ok(None),
            Value::File(path) => Ok(Some(path.into())),
            _ => Err(Error::invalid(format!(
                "configuration key {key} is no file"
            ))),
        }
    }

    /// The value of a key that lists directories; empty where none is given.
    ///
    /// # Errors
    /// `Config` where the key is not known, `InvalidArgument` where it lists no directories.
    pub fn directories(&self, key: &str) -> Result<Vec<Directory>> {
        match self.value(key)? {
            Value::Directories(list) => Ok(list),
            _ => Err(Error::invalid(format!(
                "configuration key {key} is no list of directories"
            ))),
        }
    }

    /// The value in effect.
    fn value(&self, key: &str) -> Result<Value> {
        let key = keys::find(key).ok_or_else(|| unknown_key("config", key))?;
        match self.values.get(key.name) {
            Some(value) => Ok(value.clone()),
            None => key
                .kind
                .parse(key.default)
                .map_err(|reason| Error::Internal(format!("the default of {} {reason}", key.name))),
        }
    }

    /// Checks and sets a value. `origin` opens the message: the call, and where in the text the
    /// value stood.
    fn assign(&mut self, origin: &str, key: &str, value: &str) -> Result<()> {
        let key = keys::find(key).ok_or_else(|| unknown_key(origin, key))?;
        let value = key.kind.parse(value).map_err(|reason| {
            let (name, legal) = (key.name, key.kind.legal());
            Error::Config(format!(
                "{origin}: {name} = {} {reason}; legal: {legal}",
                shown(value)
            ))
        })?;
        self.values.insert(key.name, value);
        Ok(())
    }
}

/// The error for a key that nobody knows, with the key that was probably meant.
fn unknown_key(origin: &str, key: &str) -> Error {
    let nearest = nearest::nearest(key, keys().iter().map(|known| known.name));
    let advice = match nearest.and_then(keys::find) {
        Some(known) => format!("the nearest is {} ({})", known.name, known.kind.legal()),
        None => "config_keys lists those there are".to_owned(),
    };
    Error::Config(format!("{origin}: unknown key {}; {advice}", shown(key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_not_set_has_its_default_and_an_unknown_one_has_nothing() {
        let config = Config::new();
        assert_eq!(config.get("queue_depth").as_deref(), Some("32"));
        assert_eq!(config.get("path").as_deref(), Some(""));
        assert_eq!(config.get("no_such_key"), None);
        assert!(!config.is_set("queue_depth"));
    }

    #[test]
    fn a_value_comes_back_in_its_normal_form() {
        let mut config = Config::new();
        for (key, value, text) in [
            ("queue_depth", " 032 ", "32"),
            ("block_bytes", "2048k", "2MiB"),
            ("block_bytes", "12288", "12KiB"),
            ("sqpoll", "Yes", "true"),
            ("sqpoll", "0", "false"),
            ("backend", "IO_URING", "io_uring"),
            ("pinned_bytes", "auto", "0"),
            ("seed", "18446744073709551615", "18446744073709551615"),
            ("path", "/a=2, /b", "/a=2,/b"),
            ("trace", "/tmp/t race", "/tmp/t race"),
        ] {
            config.set(key, value).unwrap();
            assert_eq!(config.get(key).as_deref(), Some(text), "{key}={value}");
            assert!(config.is_set(key));
        }
    }

    #[test]
    fn a_refusal_names_the_key_the_value_and_what_is_legal_and_changes_nothing() {
        let mut config = Config::new();
        config.set("queue_depth", "7").unwrap();
        let before = config.clone();
        for (key, value, message) in [
            (
                "queue_depth",
                "0",
                "config_set: queue_depth = \"0\" is out of range; legal: 1 to 4096",
            ),
            (
                "pin",
                "perhaps",
                "config_set: pin = \"perhaps\" is not known; legal: require|prefer|off",
            ),
            (
                "queue_dept",
                "9",
                "config_set: unknown key \"queue_dept\"; the nearest is queue_depth (1 to 4096)",
            ),
        ] {
            let error = config.set(key, value).unwrap_err();
            assert_eq!(error, Error::Config(message.to_owned()));
        }
        assert_eq!(config, before);
    }

    #[test]
    fn typed_reading_refuses_the_wrong_kind() {
        let config = Config::new();
        assert_eq!(config.number("views_max"), Ok(2));
        assert_eq!(config.flag("pipeline_read"), Ok(true));
        assert_eq!(config.choice("rounding"), Ok("nearest"));
        assert_eq!(config.file("trace"), Ok(None));
        assert_eq!(config.directories("path"), Ok(Vec::new()));
        assert!(matches!(
            config.flag("views_max"),
            Err(Error::InvalidArgument(_))
        ));
        assert!(matches!(config.number("view_max"), Err(Error::Config(_))));
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused_and_never_panics(key in ".{0,20}", value in "\\PC{0,40}") {
            let mut config = Config::new();
            prop_assert!(config.set(&key, &value).is_err() || keys::find(&key).is_some());
            for known in keys() {
                match config.set(known.name, &value) {
                    Ok(()) => {
                        // The normal form stands for the same value.
                        let text = config.get(known.name).unwrap();
                        let mut again = config.clone();
                        again.set(known.name, &text).unwrap();
                        prop_assert_eq!(&again, &config);
                        prop_assert_eq!(again.get(known.name), Some(text));
                    }
                    Err(error) => {
                        let text = error.to_string();
                        prop_assert!(matches!(error, Error::Config(_)));
                        prop_assert!(!text.contains('\n') && text.contains(known.name));
                    }
                }
            }
        }

        #[test]
        fn any_bytes_as_json_are_taken_or_leave_the_configuration_unchanged(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut config = Config::new();
            config.set("threads", "3").unwrap();
            let before = config.clone();
            if config.load_json(&bytes).is_err() {
                prop_assert_eq!(config, before);
            }
        }
    }
}
