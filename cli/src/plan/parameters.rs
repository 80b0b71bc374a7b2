//! Parameters as they are given: typed, listed in files, or described by a safetensors file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use safetensors::tensor::Metadata;

use crate::failure::Failure;
use crate::sizes::to_u64;

/// BOUND: more parameters than a store of any use has; each takes memory here.
const PARAMETERS_MAX: u64 = 10_000_000;
/// BOUND: the longest header that the format permits.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// BOUND: the longest list.
const LIST_BYTES_MAX: u64 = 1 << 30;

/// Some parameters of the same length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) numel: u64,
    pub(crate) count: u64,
}

/// `ELEMENTS[:COUNT]` or `AxBxC[:COUNT]`.
pub(crate) fn parse_one(text: &str) -> Result<Group, String> {
    let (shape, count) = text.split_once(':').unwrap_or((text, "1"));
    let wrong = || {
        format!(
            "\"{text}\" is no parameter; write ELEMENTS or SHAPE, with or without :COUNT, \
                 for example 4096x4096:32"
        )
    };
    let mut numel = 1_u64;
    for length in shape.split('x') {
        let length: u64 = length.parse().map_err(|_| wrong())?;
        numel = numel
            .checked_mul(length)
            .ok_or_else(|| format!("\"{text}\" has too many elements"))?;
    }
    let count: u64 = count.parse().map_err(|_| wrong())?;
    match (numel, count) {
        (0, _) => Err(format!("\"{text}\" has no elements")),
        (_, 0) => Err(format!("\"{text}\" is none")),
        _ => Ok(Group { numel, count }),
    }
}

/// All parameters, in the order of the kinds of sources.
pub(crate) fn gather(
    typed: &[Group],
    lists: &[PathBuf],
    safetensors: &[PathBuf],
) -> Result<Vec<Group>, Failure> {
    let mut groups = typed.to_vec();
    for path in lists {
        groups.extend(read_list(path)?);
    }
    for path in safetensors {
        groups.extend(read_safetensors(path)?);
    }
    let total = groups
        .iter()
        .try_fold(0_u64, |sum, group| sum.checked_add(group.count))
        .filter(|total| *total <= PARAMETERS_MAX);
    match total {
        None => Err(Failure::wrong(format!(
            "more than {PARAMETERS_MAX} parameters"
        ))),
        Some(0) => Err(Failure::wrong(
            "no parameters; give some, or --from FILE, or --safetensors FILE",
        )),
        Some(_) => Ok(groups),
    }
}

fn read_list(path: &Path) -> Result<Vec<Group>, Failure> {
    match path.as_os_str() == "-" {
        true => list_in(std::io::stdin().lock(), "standard input"),
        false => {
            let file = File::open(path).map_err(Failure::at("open", path))?;
            list_in(BufReader::new(file), &path.display().to_string())
        }
    }
}

fn list_in(source: impl BufRead, name: &str) -> Result<Vec<Group>, Failure> {
    let mut groups = Vec::new();
    let mut len_bytes = 0;
    for (number, line) in (1..).zip(source.take(LIST_BYTES_MAX + 1).lines()) {
        let line = line.map_err(|error| {
            let reason = crate::failure::words_of(&error);
            Failure::Refused(format!("read {name}: {reason}"))
        })?;
        len_bytes += to_u64(line.len()) + 1;
        if len_bytes > LIST_BYTES_MAX {
            return Err(Failure::wrong(format!("{name} is longer than 1 GiB")));
        }
        let said = line.split('#').next().unwrap_or_default();
        for word in said.split_whitespace() {
            let group = parse_one(word);
            groups.push(group.map_err(|why| Failure::wrong(format!("{name}:{number}: {why}")))?);
        }
    }
    Ok(groups)
}

/// The tensors that a safetensors file describes; the file is as long as its header says.
fn read_safetensors(path: &Path) -> Result<Vec<Group>, Failure> {
    let shown = path.display();
    let foreign = |why: &str| Failure::wrong(format!("{shown} is not a safetensors file: {why}"));
    let mut file = File::open(path).map_err(Failure::at("open", path))?;
    let status = file.metadata().map_err(Failure::at("stat", path))?;
    if !status.is_file() {
        return Err(foreign("it is not a regular file"));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length)
        .map_err(|_| foreign("it is too short"))?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > HEADER_BYTES_MAX || header_bytes + 8 > status.len() {
        return Err(foreign("its header is longer than it can be"));
    }
    let mut header = Vec::new();
    let taken = file.take(header_bytes).read_to_end(&mut header);
    taken.map_err(Failure::at("read", path))?;
    // Checks offsets against shapes and types.
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|error| foreign(&error.to_string()))?;
    let expected = header_bytes + 8 + to_u64(metadata.data_len());
    if expected != status.len() {
        let len_bytes = status.len();
        let why = format!("it has {len_bytes} bytes, and its header describes {expected}");
        return Err(foreign(&why));
    }
    let tensors: HashMap<_, _> = metadata.tensors();
    let mut names: Vec<&String> = tensors.keys().collect();
    names.sort();
    let numels = names.into_iter().map(|name| tensors[name].shape.iter());
    // The product was checked with the header. Tensors without elements are no parameters.
    let numels = numels.map(|shape| shape.map(|length| to_u64(*length)).product::<u64>());
    let groups = numels
        .filter(|numel| *numel > 0)
        .map(|numel| Group { numel, count: 1 });
    Ok(groups.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_a_length_or_a_shape_with_or_without_a_count() {
        let group = |numel, count| Ok(Group { numel, count });
        assert_eq!(parse_one("1024"), group(1024, 1));
        assert_eq!(parse_one("4096x4096:32"), group(1 << 24, 32));
        assert_eq!(parse_one("2x3x4"), group(24, 1));
        for text in [
            "",
            "x",
            "4096x",
            "-1",
            "0",
            "12:0",
            "1:x",
            "4096*4096",
            "1.5",
        ] {
            assert!(parse_one(text).is_err(), "{text}");
        }
        assert!(parse_one("18446744073709551615x2").is_err());
    }

    #[test]
    fn a_list_has_words_lines_and_remarks_and_an_error_names_the_line() {
        let text = "# a model\n1024 2x2:3  # biases\n\n7\n";
        let groups = list_in(text.as_bytes(), "list").unwrap();
        let numels: Vec<(u64, u64)> = groups.iter().map(|g| (g.numel, g.count)).collect();
        assert_eq!(numels, [(1024, 1), (4, 3), (7, 1)]);
        let error = list_in("1\n2 three".as_bytes(), "list").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("list:2: \"three\" is no parameter")
        );
    }

    #[test]
    fn too_many_parameters_and_none_are_refused() {
        let many = parse_one("1:18446744073709551615").unwrap();
        assert!(gather(&[many, many], &[], &[]).is_err());
        assert!(gather(&[], &[], &[]).is_err());
    }
}
