//! Which library this is.

use std::ffi::{CStr, c_char};

/// Number of the binary interface that this header describes. `tsw_abi` tells the library's.
pub const TSW_ABI: u32 = 1;
/// Version of this header: the first of three numbers.
pub const TSW_VERSION_MAJOR: u32 = 0;
/// Version of this header: the second of three numbers.
pub const TSW_VERSION_MINOR: u32 = 1;
/// Version of this header: the third of three numbers.
pub const TSW_VERSION_PATCH: u32 = 0;

const VERSION: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => c"",
    };

/// Tell the number of the binary interface that the library was built with.
///
/// A program that loads the library by name compares it with `TSW_ABI` of the header it was
/// compiled with: while they are equal, every function of that header is there with its meaning.
///
/// Threads: any. Errors: none.
#[unsafe(no_mangle)]
pub extern "C" fn tsw_abi() -> u32 {
    TSW_ABI
}

/// Tell the version of the library as text, such as "0.1.0".
///
/// Ownership: the text is the library's and lives as long as it is loaded.
/// Threads: any. Errors: none.
#[unsafe(no_mangle)]
pub extern "C" fn tsw_version() -> *const c_char {
    VERSION.as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_packages() {
        assert_eq!(VERSION.to_str(), Ok(env!("CARGO_PKG_VERSION")));
        let parts = format!("{TSW_VERSION_MAJOR}.{TSW_VERSION_MINOR}.{TSW_VERSION_PATCH}");
        assert_eq!(parts, env!("CARGO_PKG_VERSION"));
    }
}
