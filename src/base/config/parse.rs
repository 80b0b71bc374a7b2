//! The kinds of values: from text to a checked value and back to its normal form.

use std::path::PathBuf;

/// Longest value in bytes; enough for a list of as many directories as there may be.
const VALUE_BYTES_MAX: usize = 1 << 18;
/// Directories in one list.
const DIRECTORIES_MAX: usize = 64;
/// Characters of a wrong value that a message repeats.
const SHOWN_CHARS_MAX: usize = 64;

/// The suffixes of sizes, largest first, as the normal form writes them.
const SUFFIXES: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

/// The numbers that a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The smallest.
    pub min: u64,
    /// The largest.
    pub max: u64,
    /// Every legal number is a multiple of this; at least 1.
    pub multiple_of: u64,
    /// Whether 0, also written `auto`, leaves the choice to the object.
    pub zero_is_auto: bool,
}

impl Bounds {
    pub(super) const fn new(min: u64, max: u64) -> Bounds {
        Bounds {
            min,
            max,
            multiple_of: 1,
            zero_is_auto: false,
        }
    }

    pub(super) const fn multiple_of(self, multiple_of: u64) -> Bounds {
        Bounds {
            multiple_of,
            ..self
        }
    }

    pub(super) const fn zero_is_auto(self) -> Bounds {
        Bounds {
            zero_is_auto: true,
            ..self
        }
    }

    fn check(&self, number: u64) -> Result<Value, String> {
        if number < self.min || number > self.max {
            return Err("is out of range".to_owned());
        }
        if !number.is_multiple_of(self.multiple_of) {
            return Err(format!("is not a multiple of {}", self.multiple_of));
        }
        Ok(Value::Number(number))
    }

    fn legal(&self, number: impl Fn(u64) -> String) -> String {
        let mut legal = format!("{} to {}", number(self.min), number(self.max));
        if self.multiple_of > 1 {
            legal.push_str(&format!(", a multiple of {}", self.multiple_of));
        }
        if self.zero_is_auto {
            legal.push_str("; 0 is auto");
        }
        legal
    }
}

/// Which values a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One of these words.
    Choice(&'static [&'static str]),
    /// True or false.
    Bool,
    /// A number of bytes: digits, with or without `KiB`, `MiB`, `GiB`, `TiB`, or their first letter.
    Size(Bounds),
    /// A number.
    Count(Bounds),
    /// Directories separated by commas, each with an optional `=weight`. Blanks around one do not
    /// count; `\` makes a following `,`, `=` or `\` part of the name.
    Directories,
    /// A path, or nothing.
    File,
}

/// A directory of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Directory {
    /// The path.
    pub path: PathBuf,
    /// Its share of the bytes relative to the others', positive; `None` where it is to be
    /// measured.
    pub weight: Option<f64>,
}

/// A value that passed the check of its kind.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Choice(&'static str),
    Bool(bool),
    Number(u64),
    Directories(Vec<Directory>),
    File(String),
}

impl Kind {
    /// The value of a text, or why it has none: a phrase that follows the value in a message.
    pub(super) fn parse(&self, text: &str) -> Result<Value, String> {
        if text.len() > VALUE_BYTES_MAX {
            return Err(format!("is longer than {VALUE_BYTES_MAX} bytes"));
        }
        match self {
            Kind::Choice(names) => names
                .iter()
                .find(|name| name.eq_ignore_ascii_case(text.trim()))
                .copied()
                .map(Value::Choice)
                .ok_or_else(|| "is not known".to_owned()),
            Kind::Bool => bool_of(text.trim())
                .map(Value::Bool)
                .ok_or_else(|| "is not known".to_owned()),
            Kind::Size(bounds) if is_auto(bounds, text) => bounds.check(0),
            Kind::Count(bounds) if is_auto(bounds, text) => bounds.check(0),
            Kind::Size(bounds) => bounds.check(size_of(text.trim())?),
            Kind::Count(bounds) => bounds.check(digits(text.trim())?),
            Kind::Directories => directories_of(text).map(Value::Directories),
            Kind::File if text.contains('\0') => Err("holds a NUL".to_owned()),
            Kind::File => Ok(Value::File(text.to_owned())),
        }
    }

    /// The normal form of a value: parsing it gives the value again.
    pub(super) fn text(&self, value: &Value) -> String {
        match value {
            Value::Choice(name) => (*name).to_owned(),
            Value::Bool(flag) => flag.to_string(),
            Value::Number(number) if matches!(self, Kind::Size(_)) => size_text(*number),
            Value::Number(number) => number.to_string(),
            Value::Directories(list) => list
                .iter()
                .map(directory_text)
                .collect::<Vec<_>>()
                .join(","),
            Value::File(path) => path.clone(),
        }
    }

    /// What is legal, in words.
    #[must_use]
    pub fn legal(&self) -> String {
        match self {
            Kind::Choice(names) => names.join("|"),
            Kind::Bool => "true|false|on|off|yes|no|1|0".to_owned(),
            Kind::Size(bounds) => {
                format!(
                    "{} bytes (suffixes KiB, MiB, GiB, TiB)",
                    bounds.legal(size_text)
                )
            }
            Kind::Count(bounds) => bounds.legal(|number| number.to_string()),
            Kind::Directories => format!(
                "up to {DIRECTORIES_MAX} directories separated by commas, each with an optional \
                 =weight; \\, and \\= stand for themselves in a name"
            ),
            Kind::File => "a path, or nothing".to_owned(),
        }
    }
}

fn is_auto(bounds: &Bounds, text: &str) -> bool {
    bounds.zero_is_auto && text.trim().eq_ignore_ascii_case("auto")
}

pub(super) fn bool_of(text: &str) -> Option<bool> {
    let is_one_of = |words: [&str; 4]| words.iter().any(|word| word.eq_ignore_ascii_case(text));
    if is_one_of(["true", "on", "yes", "1"]) {
        Some(true)
    } else if is_one_of(["false", "off", "no", "0"]) {
        Some(false)
    } else {
        None
    }
}

/// A number of digits alone: no sign, no blanks, no fraction.
fn digits(text: &str) -> Result<u64, String> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("is no whole number".to_owned());
    }
    text.parse().map_err(|_| "is out of range".to_owned())
}

/// A number of bytes with or without a suffix, as every key that is a size takes it.
///
/// # Errors
/// Why it is none: a phrase that follows the text in a message.
pub fn size_of(text: &str) -> Result<u64, String> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let number = digits(number)?;
    let suffix = suffix.trim_start();
    if suffix.is_empty() || suffix.eq_ignore_ascii_case("B") {
        return Ok(number);
    }
    let scale = SUFFIXES
        .iter()
        .find(|(name, _)| {
            name.eq_ignore_ascii_case(suffix) || name[..1].eq_ignore_ascii_case(suffix)
        })
        .map(|(_, scale)| *scale);
    match scale {
        Some(scale) => number
            .checked_mul(scale)
            .ok_or_else(|| "is out of range".to_owned()),
        // KB is 1000 bytes to some and 1024 to others: better refused than guessed.
        None => Err(format!("has the unknown suffix {}", shown(suffix))),
    }
}

/// The shortest exact spelling of a size, as [`size_of`] takes it.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    SUFFIXES
        .iter()
        .find(|(_, scale)| bytes != 0 && bytes.is_multiple_of(*scale))
        .map_or_else(
            || bytes.to_string(),
            |(name, scale)| format!("{}{name}", bytes / scale),
        )
}

fn directories_of(text: &str) -> Result<Vec<Directory>, String> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let mut list: Vec<Directory> = Vec::new();
    for element in split_unescaped(text, ',') {
        if list.len() == DIRECTORIES_MAX {
            return Err(format!("lists more than {DIRECTORIES_MAX} directories"));
        }
        let directory = directory_of(element.trim())?;
        if list.iter().any(|other| other.path == directory.path) {
            return Err(format!(
                "lists {} twice",
                shown(&directory.path.to_string_lossy())
            ));
        }
        list.push(directory);
    }
    Ok(list)
}

fn directory_of(element: &str) -> Result<Directory, String> {
    let mut parts = split_unescaped(element, '=');
    let name = unescape(parts.next().unwrap_or_default().trim_end());
    let weight = parts.next().map(str::trim);
    if name.is_empty() {
        return Err("has an empty directory name".to_owned());
    }
    if name.contains('\0') {
        return Err("holds a NUL".to_owned());
    }
    let weight = match weight {
        None => None,
        Some(text) => Some(weight_of(text).filter(|_| parts.next().is_none()).ok_or_else(|| {
            format!(
                "gives {} a weight that is no positive number (write \\= for a = in a name)",
                shown(&name)
            )
        })?),
    };
    Ok(Directory {
        path: name.into(),
        weight,
    })
}

fn weight_of(text: &str) -> Option<f64> {
    text.parse::<f64>()
        .ok()
        .filter(|weight| weight.is_normal() && *weight > 0.0)
}

/// The parts of a text between separators that no backslash precedes.
fn split_unescaped(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    text.split(move |c: char| {
        let found = c == separator && !escaped;
        escaped = c == '\\' && !escaped;
        found
    })
}

/// The name that a text with backslashes stands for. A backslash that precedes nothing special
/// is an ordinary character.
fn unescape(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match rest.peek() {
            Some(&special @ (',' | '=' | '\\')) if c == '\\' => {
                name.push(special);
                rest.next();
            }
            _ => name.push(c),
        }
    }
    name
}

/// The element of a list that stands for a directory with this name.
pub(super) fn escape(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for c in name.chars() {
        if matches!(c, ',' | '=' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

fn directory_text(directory: &Directory) -> String {
    let name = escape(&directory.path.to_string_lossy());
    match directory.weight {
        None => name,
        Some(weight) => format!("{name}={weight}"),
    }
}

/// A value for a message: quoted, on one line, and not longer than a reader needs.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: Kind = Kind::Size(Bounds::new(0, u64::MAX));

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("1KiB", 1 << 10),
            ("1k", 1 << 10),
            ("3 MiB", 3 << 20),
            ("2g", 2 << 30),
            ("2GiB", 2 << 30),
            ("5T", 5 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(SIZE.parse(text), Ok(Value::Number(bytes)), "{text}");
        }
        for text in [
            "",
            "MiB",
            "-1",
            "+1",
            "1.5GiB",
            "1e6",
            "1KB",
            "1MB",
            "1 MiB 2",
            "0x10",
            "1_000",
            "¼",
            "18446744073709551616",
            "16777216TiB",
        ] {
            assert!(SIZE.parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bounds_are_inclusive_and_multiples_are_demanded() {
        let kind = Kind::Size(Bounds::new(4096, 1 << 20).multiple_of(4096));
        for (text, fits) in [
            ("4095", false),
            ("4096", true),
            ("4097", false),
            ("8192", true),
            ("1MiB", true),
            ("1028KiB", false),
            ("auto", false),
        ] {
            assert_eq!(kind.parse(text).is_ok(), fits, "{text}");
        }
        assert_eq!(
            kind.legal(),
            "4KiB to 1MiB, a multiple of 4096 bytes (suffixes KiB, MiB, GiB, TiB)"
        );
        let auto = Kind::Count(Bounds::new(0, 9).zero_is_auto());
        assert_eq!(auto.parse("Auto"), Ok(Value::Number(0)));
        assert_eq!(auto.legal(), "0 to 9; 0 is auto");
    }

    #[test]
    fn lists_of_directories() {
        let parse = |text: &str| match Kind::Directories.parse(text) {
            Ok(Value::Directories(list)) => Some(
                list.into_iter()
                    .map(|one| (one.path.to_string_lossy().into_owned(), one.weight))
                    .collect::<Vec<_>>(),
            ),
            _ => None,
        };
        let one = |path: &str, weight| (path.to_owned(), weight);
        assert_eq!(parse("  "), Some(vec![]));
        assert_eq!(parse("/a"), Some(vec![one("/a", None)]));
        assert_eq!(
            parse("/a=2.5 , b c = 1"),
            Some(vec![one("/a", Some(2.5)), one("b c", Some(1.0))])
        );
        assert_eq!(
            parse(r"/lr\=3,/x\,y,/z\\,/w\v"),
            Some(vec![
                one("/lr=3", None),
                one("/x,y", None),
                one(r"/z\", None),
                one(r"/w\v", None),
            ])
        );
        for text in [
            ",", "/a,", "=1", "/a=", "/a=0", "/a=-1", "/a=inf", "/a=nan", "/a=1=2", "/a=b",
            "/a=1e999", "/a,/a", "/a,/a/", "/a\0b",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        let many = |count: usize| {
            (0..count)
                .map(|i| format!("/d{i}"))
                .collect::<Vec<_>>()
                .join(",")
        };
        assert!(parse(&many(DIRECTORIES_MAX)).is_some());
        assert!(parse(&many(DIRECTORIES_MAX + 1)).is_none());
    }

    #[test]
    fn what_a_message_repeats_is_one_short_line() {
        assert_eq!(shown("a\nb"), "\"a\\nb\"");
        assert!(shown(&"ß".repeat(1 << 16)).len() < 200);
        assert!(Kind::File.parse(&"x".repeat(VALUE_BYTES_MAX + 1)).is_err());
    }

    proptest! {
        #[test]
        fn the_normal_form_of_a_size_is_that_size(bytes in any::<u64>(), shift in 0u32..64) {
            let value = Value::Number(bytes >> shift << shift);
            prop_assert_eq!(SIZE.parse(&SIZE.text(&value)), Ok(value));
        }

        #[test]
        fn an_escaped_name_stands_for_itself(
            name in r"[a-z,=\\/ ]{0,12}[a-z,=\\/]",
            weight in prop::option::of(1e-9f64..1e9),
        ) {
            let name = format!("/{name}");
            let value = Value::Directories(vec![Directory { path: name.into(), weight }]);
            prop_assert_eq!(Kind::Directories.parse(&Kind::Directories.text(&value)), Ok(value));
        }
    }
}
