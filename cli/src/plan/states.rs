//! The types of the states of every parameter.

use tensorswap::base::dtype::Dtype;

/// In memory and on storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StateTypes(pub(crate) Vec<(Dtype, Dtype)>);

/// Types separated by commas, `f32,f32:bf16` for one that is kept in another type on storage.
pub(crate) fn parse(text: &str) -> Result<StateTypes, String> {
    let states = text.split(',').map(|state| match state.split_once(':') {
        None => one(state).map(|dtype| (dtype, dtype)),
        Some((memory, disk)) => Ok((one(memory)?, one(disk)?)),
    });
    states.collect::<Result<_, _>>().map(StateTypes)
}

fn one(text: &str) -> Result<Dtype, String> {
    let text = text.trim();
    let found = Dtype::ALL
        .iter()
        .find(|dtype| dtype.name().eq_ignore_ascii_case(text));
    found.copied().ok_or_else(|| {
        let names: Vec<&str> = Dtype::ALL.iter().map(|dtype| dtype.name()).collect();
        format!("\"{text}\" is no type; there are {}", names.join(", "))
    })
}

impl StateTypes {
    /// As it is typed.
    pub(crate) fn text(&self) -> String {
        let states = self.0.iter().map(|(memory, disk)| match memory == disk {
            true => memory.name().to_owned(),
            false => format!("{}:{}", memory.name(), disk.name()),
        });
        states.collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_as_they_are_shown() {
        for text in ["f32,f32,f32", "f32,f32:bf16,f32:bf16", "bf16"] {
            assert_eq!(parse(text).unwrap().text(), text);
        }
        assert_eq!(parse("F32, bf16").unwrap().text(), "f32,bf16");
        for text in ["", "f33", "f32,", "f32:", "f32:bf16:f16"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
