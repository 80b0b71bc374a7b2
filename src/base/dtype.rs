//! Element types of tensors: numbers frozen in the C contract, sizes and names.
//!
//! The numbers are part of the ABI and never change. Conversions live with the code that needs
//! them; here are only the facts about a type.

use super::error::{Error, Result};

macro_rules! dtypes {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $size:literal, $name:literal;)*) => {
        /// The element type of a tensor.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Dtype { $($(#[$doc])* $variant = $number),* }

        impl Dtype {
            /// Every type, in the order of its number.
            pub const ALL: &'static [Dtype] = &[$(Dtype::$variant),*];

            /// Size of one element in bytes.
            #[must_use]
            pub const fn size_bytes(self) -> u64 {
                match self { $(Dtype::$variant => $size),* }
            }

            /// The name as the configuration and messages spell it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Dtype::$variant => $name),* }
            }
        }
    };
}

dtypes! {
    /// Raw bytes; as the type of a buffer: anything goes.
    Bytes = 0, 1, "bytes";
    /// IEEE 754 binary32.
    F32 = 1, 4, "f32";
    /// IEEE 754 binary16.
    F16 = 2, 2, "f16";
    /// bfloat16: the upper half of a binary32.
    Bf16 = 3, 2, "bf16";
    /// IEEE 754 binary64.
    F64 = 4, 8, "f64";
    /// 8-bit float, 4 exponent and 3 mantissa bits.
    F8E4m3 = 5, 1, "f8_e4m3";
    /// 8-bit float, 5 exponent and 2 mantissa bits.
    F8E5m2 = 6, 1, "f8_e5m2";
    /// Signed 8-bit integer.
    I8 = 7, 1, "i8";
    /// Signed 16-bit integer.
    I16 = 8, 2, "i16";
    /// Signed 32-bit integer.
    I32 = 9, 4, "i32";
    /// Signed 64-bit integer.
    I64 = 10, 8, "i64";
    /// Unsigned 8-bit integer.
    U8 = 11, 1, "u8";
    /// Unsigned 16-bit integer.
    U16 = 12, 2, "u16";
    /// Unsigned 32-bit integer.
    U32 = 13, 4, "u32";
    /// Unsigned 64-bit integer.
    U64 = 14, 8, "u64";
    /// One byte, 0 or 1.
    Bool = 15, 1, "bool";
}

impl Dtype {
    /// The type with this number.
    ///
    /// # Errors
    /// `InvalidArgument` where no type has it.
    pub fn from_number(number: u32) -> Result<Dtype> {
        usize::try_from(number)
            .ok()
            .and_then(|index| Dtype::ALL.get(index))
            .copied()
            .ok_or_else(|| Error::invalid(format!("{number} is no dtype (0 to 15 are)")))
    }

    /// The number of this type in the C contract.
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// Bytes of `numel` elements.
    ///
    /// # Errors
    /// `InvalidArgument` where the product exceeds what a file offset can express.
    pub fn bytes_of(self, numel: u64) -> Result<u64> {
        numel
            .checked_mul(self.size_bytes())
            .filter(|bytes| *bytes <= super::units::FILE_OFFSET_MAX)
            .ok_or_else(|| {
                Error::invalid(format!("{numel} elements of {} are too many", self.name()))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_positions() {
        for (index, dtype) in Dtype::ALL.iter().enumerate() {
            assert_eq!(dtype.number() as usize, index);
            assert_eq!(Dtype::from_number(dtype.number()), Ok(*dtype));
        }
        assert!(Dtype::from_number(16).is_err());
        assert!(Dtype::from_number(u32::MAX).is_err());
    }

    #[test]
    fn an_absurd_count_is_an_error_and_never_wraps() {
        assert_eq!(Dtype::F32.bytes_of(1 << 40), Ok(1 << 42));
        assert!(Dtype::F64.bytes_of(u64::MAX / 4).is_err());
        assert!(Dtype::Bytes.bytes_of(u64::MAX).is_err());
    }
}
