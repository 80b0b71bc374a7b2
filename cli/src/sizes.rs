//! Sizes and speeds: from what is typed, and as they are shown.

use bytesize::ByteSize;
use tensorswap::base::units::FILE_OFFSET_MAX;

pub(crate) use crate::drive::figures::GIB;

/// A number of bytes: as the configuration takes it (`64KiB`, `2M`), and in the decimal units that
/// drives are sold in (`3.84TB`).
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let exact = tensorswap::base::config::parse_size(text);
    // One letter is 1024-based, as in the configuration; a byte size crate would take it for 1000.
    let is_decimal = text.len() > 2 && text.ends_with(['B', 'b']);
    let bytes = match (exact, is_decimal) {
        (Ok(bytes), _) => Some(bytes),
        (Err(_), true) => text.parse::<ByteSize>().ok().map(|size| size.as_u64()),
        (Err(_), false) => None,
    };
    bytes
        // What overflows comes out as the largest number.
        .filter(|bytes| *bytes <= FILE_OFFSET_MAX)
        .ok_or_else(|| "no size; write for example 65536, 64KiB, 1.5GiB or 3.84TB".to_owned())
}

/// A size of at least one block of direct I/O, and a multiple of it.
pub(crate) fn block_size(text: &str) -> Result<u64, String> {
    match size(text)? {
        0 => Err("must not be 0".to_owned()),
        bytes if bytes % 4096 != 0 => Err("is not a multiple of 4096".to_owned()),
        bytes if bytes > 1 << 40 => Err("is more than 1TiB".to_owned()),
        bytes => Ok(bytes),
    }
}

/// A speed: a size each second, with or without `/s`.
pub(crate) fn speed(text: &str) -> Result<f64, String> {
    let text = text.trim();
    match size(text.strip_suffix("/s").unwrap_or(text))? {
        0 => Err("must not be 0".to_owned()),
        bytes => Ok(as_f64(bytes)),
    }
}

/// A positive number.
pub(crate) fn positive(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("no positive number".to_owned()),
    }
}

/// A length in memory as bytes of a file.
pub(crate) fn to_u64(len: usize) -> u64 {
    // `usize` is at most 64 bits on every target with io_uring.
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// For arithmetic on figures; the last bits of sizes beyond 8 PiB go.
pub(crate) fn as_f64(number: u64) -> f64 {
    number as f64
}

/// Bytes as people read them.
pub(crate) fn shown(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        _ => ByteSize(bytes).display().iec().to_string(),
    }
}

/// An exact size in its shortest spelling, as options take it.
pub(crate) fn exact(bytes: u64) -> String {
    tensorswap::base::config::size_text(bytes)
}

/// A speed as people read it.
pub(crate) fn shown_speed(bytes_per_second: f64) -> String {
    match bytes_per_second {
        speed if !speed.is_finite() => "-".to_owned(),
        speed if speed < 0.1 * GIB => format!("{:.1} MiB/s", speed / (GIB / 1024.0)),
        speed => format!("{:.2} GiB/s", speed / GIB),
    }
}

/// Seconds as people read them.
pub(crate) fn shown_seconds(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => format!("{:.0} µs", s * 1e6),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// Days as people read them.
pub(crate) fn shown_days(days: f64) -> String {
    match days {
        days if days < 730.0 => format!("{days:.0} days"),
        days => format!("{:.1} years", days / 365.0),
    }
}

/// A whole number in groups of three digits.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_taken_as_the_configuration_and_as_drives_spell_them() {
        for (text, bytes) in [
            ("65536", 65536),
            ("64KiB", 65536),
            ("2M", 2 << 20),
            (" 1 GiB ", 1 << 30),
            ("1.5GiB", 3 << 29),
            ("3.84TB", 3_840_000_000_000),
            ("7PB", 7_000_000_000_000_000),
            ("1KB", 1000),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "-1",
            "1.5",
            "12 parsecs",
            "GiB",
            "1e400TB",
            "99999999999PiB",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(speed("3GiB/s"), Ok(3.0 * GIB));
        assert!(speed("0").is_err() && positive("0").is_err() && positive("nan").is_err());
        assert!(block_size("4095").is_err() && block_size("0").is_err());
        assert_eq!(block_size("1MiB"), Ok(1 << 20));
    }

    #[test]
    fn numbers_are_shown_as_people_read_them() {
        assert_eq!(grouped(1_234_567), "1 234 567");
        assert_eq!(
            (grouped(0), grouped(999)),
            ("0".to_owned(), "999".to_owned())
        );
        assert_eq!(
            (shown(512), shown(1536)),
            ("512 B".to_owned(), "1.5 KiB".to_owned())
        );
        assert_eq!(shown_speed(1.5 * GIB), "1.50 GiB/s");
        assert_eq!(shown_speed(f64::NAN), "-");
        assert_eq!(shown_seconds(0.25), "250 ms");
    }
}
