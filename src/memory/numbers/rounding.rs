//! Rounding f32 to a narrower type: to the nearest value, or up or down by chance.
//!
//! Stochastic rounding takes the upper neighbour with the probability that makes the expected
//! value exact, so small updates are not lost for ever, as they are with the nearest (Gupta et
//! al., "Deep Learning with Limited Numerical Precision", 2015). The chance is a pure function of
//! a key and the element's index: SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom
//! Number Generators", 2014), whose state after `n` numbers is `key + n·γ`, so that any of its
//! numbers can be computed by itself. A number serves four elements where they become bf16, which
//! drops 16 bits, and two where they become f16.

use super::lanes::vectorized;

/// How a value is brought into a narrower type. Values that the narrow type can express never
/// change; infinities and NaNs stay what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounder {
    /// To the nearest value, ties to even.
    Nearest,
    /// To one of the two neighbours, by chance. Beyond the largest finite value the upper
    /// neighbour is infinity, as it is for the nearest.
    Stochastic {
        /// What the chance depends on besides the element; see [`Rounder::stochastic`].
        key: u64,
        /// Index, within the parameter, of the first value that is converted.
        first: u64,
    },
}

impl Rounder {
    /// Rounding by chance for one state of one parameter in one step, from its first element on.
    pub(crate) fn stochastic(seed: u64, parameter_id: u64, state: usize, step: u64) -> Rounder {
        let state = crate::base::units::to_u64(state);
        let key = [parameter_id, state, step]
            .iter()
            .fold(mix(seed.wrapping_add(GAMMA)), |key, part| {
                mix((key ^ part).wrapping_add(GAMMA))
            });
        Rounder::Stochastic { key, first: 0 }
    }

    /// The same for values that begin `count` elements later.
    #[must_use]
    pub(crate) fn after(self, count: u64) -> Rounder {
        match self {
            Rounder::Nearest => Rounder::Nearest,
            Rounder::Stochastic { key, first } => Rounder::Stochastic {
                key,
                first: first.wrapping_add(count),
            },
        }
    }
}

/// The step between states of SplitMix64: 2^64 divided by the golden ratio, odd.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of SplitMix64: a permutation (variant 13 of David Stafford's).
#[inline(always)]
fn mix(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

vectorized! {
    /// The generator's numbers from the `first` one on.
    fn random(key: u64, first: u64, numbers: &mut [u64]) {
        let mut state = key.wrapping_add(first.wrapping_mul(GAMMA));
        for number in numbers {
            state = state.wrapping_add(GAMMA);
            *number = mix(state);
        }
    }
}

const MAGNITUDE: u32 = 0x7fff_ffff;
const INFINITY: u32 = 0x7f80_0000;
/// The bit of a mantissa that makes a NaN a quiet one.
const QUIET: u32 = 0x0040_0000;

/// One of two values. Unlike `if` it never becomes a jump, which would keep a loop from being
/// vectorized.
#[inline(always)]
fn select(condition: bool, yes: u32, no: u32) -> u32 {
    let mask = 0u32.wrapping_sub(u32::from(condition));
    (yes & mask) | (no & !mask)
}

/// f32 bits to bf16 bits, to the nearest.
#[inline(always)]
pub(super) fn nearest_bf16(bits: u32) -> u16 {
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // A NaN whose payload lies in the lower half must not become an infinity: made quiet.
    let is_nan = bits & MAGNITUDE > INFINITY;
    (select(is_nan, bits | QUIET, rounded) >> 16) as u16
}

/// f32 bits to bf16 bits, by chance.
#[inline(always)]
pub(super) fn stochastic_bf16(bits: u32, random: u16) -> u16 {
    let magnitude = bits & MAGNITUDE;
    // Adding less than one step carries over with just the probability wanted.
    let noise = select(magnitude < INFINITY, u32::from(random), 0);
    let quiet = select(magnitude > INFINITY, QUIET, 0);
    ((bits.wrapping_add(noise) | quiet) >> 16) as u16
}

/// f32 bits to f16 bits, by chance.
///
/// Probabilities are exact down to 2^-31; a value below 2^-31 of the smallest f16 becomes zero
/// more often than it should.
#[inline(always)]
pub(super) fn stochastic_f16(bits: u32, random: u32) -> u16 {
    /// 2^-14, the smallest normal f16.
    const NORMAL: u32 = 0x3880_0000;
    /// 65536: from here on even the lower neighbour is infinity.
    const TOO_LARGE: u32 = 0x4780_0000;
    let magnitude = bits & MAGNITUDE;
    // What is shifted out, and how far. Normal: exponent and mantissa together, brought to the
    // bias of f16. Subnormal: the mantissa, until its unit is 2^-24, the step of subnormal f16.
    let is_normal = magnitude >= NORMAL;
    let biased = magnitude.wrapping_sub((127 - 15) << 23);
    let mantissa = (magnitude & 0x007f_ffff) | 0x0080_0000;
    let value = select(is_normal, biased, mantissa);
    let shift = select(is_normal, 13, 126u32.wrapping_sub(magnitude >> 23));
    let near = shift.min(31);
    let far = (shift - near).min(31);
    let noise = random & ((1 << near) - 1);
    let rounded = (value >> far).wrapping_add(noise) >> near;
    let nan = 0x7e00 | ((magnitude >> 13) & 0x03ff);
    let large = select(magnitude > INFINITY, nan, 0x7c00);
    let kept = select(magnitude >= TOO_LARGE, large, rounded);
    (((bits >> 16) & 0x8000 | kept) & 0xffff) as u16
}
