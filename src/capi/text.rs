//! Text across the border: names out, paths and keys in, answers into the caller's room.

use std::ffi::{CStr, OsStr, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::guard::{Failure, Outcome};

/// A short name as C reads it: filled up with NUL.
pub(super) type Name = [u8; 40];

/// Makes a [`Name`] at compile time, where one that is too long is an error.
pub(super) const fn name(text: &str) -> Name {
    let mut name: Name = [0; 40];
    let bytes = text.as_bytes();
    assert!(bytes.len() < name.len(), "the name and its NUL must fit");
    let mut index = 0;
    while index < bytes.len() {
        name[index] = bytes[index];
        index += 1;
    }
    name
}

/// The text at `pointer`, which the caller calls `argument`.
///
/// # Safety
/// `pointer` is NULL or a text ending in NUL that stays as it is for `'a`.
pub(super) unsafe fn input<'a>(
    pointer: *const c_char,
    argument: &'static str,
) -> Outcome<&'a CStr> {
    if pointer.is_null() {
        return Err(Failure::null(argument));
    }
    // SAFETY: not NULL, and this function's contract.
    Ok(unsafe { CStr::from_ptr(pointer) })
}

/// The path at `pointer`, which the caller calls `argument`.
///
/// # Safety
/// As [`input`].
pub(super) unsafe fn path_input<'a>(
    pointer: *const c_char,
    argument: &'static str,
) -> Outcome<&'a Path> {
    // SAFETY: this function's contract.
    let text = unsafe { input(pointer, argument) }?;
    Ok(Path::new(OsStr::from_bytes(text.to_bytes())))
}

/// The name at `pointer`, which the caller calls `argument`: text in UTF-8.
///
/// # Safety
/// As [`input`].
pub(super) unsafe fn name_input<'a>(
    pointer: *const c_char,
    argument: &'static str,
) -> Outcome<&'a str> {
    // SAFETY: this function's contract.
    let text = unsafe { input(pointer, argument) }?;
    text.to_str()
        .map_err(|_| Failure::invalid(format!("{argument} is not UTF-8 text")))
}

/// The last place at or before `index` where `text` can be cut.
pub(super) fn boundary_below(text: &str, index: usize) -> usize {
    let index = index.min(text.len());
    (0..=index)
        .rev()
        .find(|place| text.is_char_boundary(*place))
        .unwrap_or(0)
}

/// The first place at or behind `index` where `text` can be cut.
pub(super) fn boundary_above(text: &str, index: usize) -> usize {
    (index..text.len())
        .find(|place| text.is_char_boundary(*place))
        .unwrap_or(text.len())
}

/// Writes as much of `text` as there is room for, and a NUL, and returns the length that all of it
/// needs without the NUL: the rule of `snprintf`. A character is never cut in two.
///
/// # Safety
/// `buf` is NULL or has room for `cap` bytes.
pub(super) unsafe fn output(text: &str, buf: *mut c_char, cap: usize) -> usize {
    if !buf.is_null()
        && let Some(room) = cap.checked_sub(1)
    {
        let part = &text[..boundary_below(text, room)];
        // SAFETY: `part` has at most `cap - 1` bytes, and the NUL follows it; the caller's room
        // cannot overlap a text of ours.
        unsafe {
            std::ptr::copy_nonoverlapping(part.as_ptr(), buf.cast(), part.len());
            buf.add(part.len()).write(0);
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str, cap: usize) -> (usize, Vec<u8>) {
        let mut room = [0x55_u8; 8];
        // SAFETY: `cap` is at most 8.
        let needed = unsafe { output(text, room.as_mut_ptr().cast(), cap) };
        (needed, room.to_vec())
    }

    #[test]
    fn text_is_cut_between_characters_and_always_ended() {
        assert_eq!(written("abc", 8), (3, b"abc\0UUUU".to_vec()));
        assert_eq!(written("abc", 3), (3, b"ab\0UUUUU".to_vec()));
        assert_eq!(written("aßc", 3), (4, b"a\0UUUUUU".to_vec()));
        assert_eq!(written("abc", 1), (3, b"\0UUUUUUU".to_vec()));
        assert_eq!(written("abc", 0), (3, b"UUUUUUUU".to_vec()));
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { output("abc", std::ptr::null_mut(), 9) }, 3);
    }
}
