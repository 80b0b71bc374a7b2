use half::{bf16, f16};
use proptest::prelude::*;

use super::*;

const TYPES: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::Bf16];

fn size(dtype: Dtype) -> usize {
    dtype.size_bytes() as usize
}

/// One value as f32, by the scalar software conversions of `half`.
fn widen(bytes: &[u8], dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F32 => f32::from_ne_bytes(bytes.try_into().unwrap()),
        Dtype::F16 => f16::from_ne_bytes(bytes.try_into().unwrap()).to_f32_const(),
        _ => bf16::from_ne_bytes(bytes.try_into().unwrap()).to_f32_const(),
    }
}

fn narrow(value: f32, dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => value.to_ne_bytes().to_vec(),
        Dtype::F16 => f16::from_f32_const(value).to_ne_bytes().to_vec(),
        _ => bf16::from_f32_const(value).to_ne_bytes().to_vec(),
    }
}

fn values_of(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    let each = bytes.chunks_exact(size(dtype));
    each.map(|bytes| widen(bytes, dtype)).collect()
}

/// Equal as bits, or both NaN: which NaN is not promised.
fn same(left: f32, right: f32) -> bool {
    left.to_bits() == right.to_bits() || (left.is_nan() && right.is_nan())
}

fn all_same(left: &[f32], right: &[f32]) -> bool {
    left.len() == right.len() && left.iter().zip(right).all(|(l, r)| same(*l, *r))
}

/// Any bits, and values that are interesting to the narrow types.
fn any_bits() -> impl Strategy<Value = u32> {
    prop_oneof![
        any::<u32>(),
        // Around the range of f16: 2^-26 to 2^17.
        (0x3280_0000..0x4800_0000_u32, any::<bool>())
            .prop_map(|(bits, negative)| bits | (u32::from(negative) << 31)),
        // Ties and near ties.
        (
            any::<u16>(),
            prop::sample::select(vec![0x7fff_u32, 0x8000, 0x8001, 0, 1, 0xffff])
        )
            .prop_map(|(high, low)| (u32::from(high) << 16) | low),
        (
            any::<u16>(),
            prop::sample::select(vec![0x0fff_u32, 0x1000, 0x1001, 0])
        )
            .prop_map(|(value, low)| f16::from_bits(value).to_f32().to_bits() | low),
        prop::sample::select(vec![
            0,
            1 << 31,
            0x7f80_0000,
            0xff80_0000,
            0x7f80_0001,
            0x7fff_ffff
        ]),
    ]
}

/// Values of a type as bytes, beginning at an odd address or not.
fn any_values(dtype: Dtype) -> impl Strategy<Value = Vec<u8>> {
    let len = prop_oneof![
        0..40_usize,
        lanes::CHUNK - 2..lanes::CHUNK + 3,
        2 * lanes::CHUNK..2 * lanes::CHUNK + 50,
    ];
    len.prop_flat_map(move |len| prop::collection::vec(any_bits(), len))
        .prop_map(move |bits| match dtype {
            Dtype::F32 => bits.iter().flat_map(|bits| bits.to_ne_bytes()).collect(),
            _ => bits
                .iter()
                .flat_map(|bits| narrow(f32::from_bits(*bits), dtype))
                .collect(),
        })
}

fn any_type() -> impl Strategy<Value = Dtype> {
    prop::sample::select(TYPES.to_vec())
}

fn typed_values() -> impl Strategy<Value = (Dtype, Vec<u8>)> {
    any_type().prop_flat_map(|dtype| (Just(dtype), any_values(dtype)))
}

/// `bytes` at `start` bytes behind an aligned address, in a buffer of `len` more.
fn misaligned(bytes: &[u8], start: usize, len: usize) -> Vec<u8> {
    let mut buffer = vec![0xa5; start + len];
    buffer[start..start + bytes.len()].copy_from_slice(bytes);
    buffer
}

fn convert_at(
    bytes: &[u8],
    from: Dtype,
    to: Dtype,
    rounder: Rounder,
    starts: (usize, usize),
) -> Vec<u8> {
    let source = misaligned(bytes, starts.0, bytes.len());
    let len = bytes.len() / size(from) * size(to);
    let mut target = vec![0xa5; starts.1 + len + 3];
    let part = &mut target[starts.1..starts.1 + len];
    convert(&source[starts.0..], from, part, to, rounder).unwrap();
    assert!(target[..starts.1].iter().all(|byte| *byte == 0xa5));
    assert!(target[starts.1 + len..].iter().all(|byte| *byte == 0xa5));
    target[starts.1..starts.1 + len].to_vec()
}

fn convert_here(bytes: &[u8], from: Dtype, to: Dtype, rounder: Rounder, start: usize) -> Vec<u8> {
    let numel = bytes.len() / size(from);
    let mut region = misaligned(bytes, start, numel * 4);
    convert_in_place(&mut region[start..], numel, from, to, rounder).unwrap();
    region[start..start + numel * size(to)].to_vec()
}

proptest! {
    // Each case has some thousand values.
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn conversions_agree_with_the_scalar_ones(
        (from, bytes) in typed_values(),
        to in any_type(),
        starts in (0..5_usize, 0..5_usize),
    ) {
        let expected: Vec<f32> = values_of(&bytes, from)
            .into_iter()
            .map(|value| widen(&narrow(value, to), to))
            .collect();
        let there = convert_at(&bytes, from, to, Rounder::Nearest, starts);
        prop_assert!(all_same(&values_of(&there, to), &expected));
        let here = convert_here(&bytes, from, to, Rounder::Nearest, starts.0);
        prop_assert!(there == here, "in place differs from out of place");
    }

    #[test]
    fn a_value_becomes_one_of_its_two_neighbours(
        bits in prop::collection::vec(any_bits(), 1..200),
        to in prop::sample::select(vec![Dtype::F16, Dtype::Bf16]),
        seed in any::<u64>(),
    ) {
        let bytes: Vec<u8> = bits.iter().flat_map(|bits| bits.to_ne_bytes()).collect();
        let rounder = Rounder::stochastic(seed, 7, 1, 3);
        let narrowed = convert_at(&bytes, Dtype::F32, to, rounder, (0, 0));
        for (bits, result) in bits.iter().zip(narrowed.chunks_exact(2)) {
            let value = f32::from_bits(*bits);
            let result_value = widen(result, to);
            let (lower, upper) = neighbours(value, to);
            prop_assert!(
                same(result_value, lower) || same(result_value, upper),
                "{value:e} became {result_value:e}, not {lower:e} or {upper:e}"
            );
        }
    }

    #[test]
    fn the_chance_depends_on_key_and_element_alone(
        bytes in any_values(Dtype::F32),
        to in prop::sample::select(vec![Dtype::F16, Dtype::Bf16]),
        seed in any::<u64>(),
        cut in any::<prop::sample::Index>(),
        first in prop_oneof![Just(0), Just(1), Just(u64::from(u32::MAX)), any::<u64>()],
        start in 0..5_usize,
    ) {
        let rounder = Rounder::stochastic(seed, 1, 0, 9).after(first);
        let whole = convert_at(&bytes, Dtype::F32, to, rounder, (0, 0));
        prop_assert!(whole == convert_here(&bytes, Dtype::F32, to, rounder, start));
        let cut = cut.index(bytes.len() / 4 + 1);
        let (head, tail) = bytes.split_at(cut * 4);
        let mut pieces = convert_at(head, Dtype::F32, to, rounder, (start, 1));
        let rest = rounder.after(cut as u64);
        pieces.extend(convert_at(tail, Dtype::F32, to, rest, (1, start)));
        prop_assert!(whole == pieces);
    }

    #[test]
    fn accumulation_adds_in_f32_and_rounds_once(
        (into_type, into) in typed_values(),
        (from_type, from) in typed_values(),
        start in 0..5_usize,
    ) {
        let count = (into.len() / size(into_type)).min(from.len() / size(from_type));
        let into = &into[..count * size(into_type)];
        let from = &from[..count * size(from_type)];
        let expected: Vec<f32> = values_of(into, into_type)
            .iter()
            .zip(values_of(from, from_type))
            .map(|(left, right)| widen(&narrow(left + right, into_type), into_type))
            .collect();
        let mut buffer = misaligned(into, start, into.len());
        let source = misaligned(from, 3, from.len());
        accumulate(&mut buffer[start..], into_type, &source[3..], from_type).unwrap();
        prop_assert!(all_same(&values_of(&buffer[start..], into_type), &expected));
    }

    #[test]
    fn squares_of_finite_values_are_summed_and_the_rest_counted(
        (dtype, bytes) in typed_values(),
        start in 0..5_usize,
    ) {
        let (mut sum, mut nonfinite_count) = (0.0, 0);
        for value in values_of(&bytes, dtype) {
            if value.is_finite() {
                sum += f64::from(value) * f64::from(value);
            } else {
                nonfinite_count += 1;
            }
        }
        let found = sum_of_squares(&bytes, dtype).unwrap();
        prop_assert_eq!(found.nonfinite_count, nonfinite_count);
        prop_assert!((found.sum - sum).abs() <= sum * 1e-12, "{} {sum}", found.sum);
        let moved = misaligned(&bytes, start, bytes.len());
        let again = sum_of_squares(&moved[start..], dtype).unwrap();
        prop_assert_eq!(again.sum.to_bits(), found.sum.to_bits());
    }
}

/// The values of a narrow type on both sides of `value`, found by stepping through its bits;
/// twice the value itself where the type has it.
fn neighbours(value: f32, to: Dtype) -> (f32, f32) {
    let of_bits = |bits: u16| match to {
        Dtype::F16 => f16::from_bits(bits).to_f32_const(),
        _ => bf16::from_bits(bits).to_f32_const(),
    };
    let nearest = u16::from_ne_bytes(narrow(value, to).try_into().unwrap());
    let near = of_bits(nearest);
    if same(near, value) || value.is_infinite() {
        return (near, near);
    }
    // Bits of one sign are ordered by magnitude, so the neighbour is one more or one less.
    let other = if near.abs() > value.abs() {
        nearest - 1
    } else {
        nearest + 1
    };
    (near, of_bits(other))
}

#[test]
fn every_value_of_a_narrow_type_survives_a_round_trip() {
    for (narrow_type, is_nan) in [
        (
            Dtype::F16,
            (|bits| f16::from_bits(bits).is_nan()) as fn(u16) -> bool,
        ),
        (Dtype::Bf16, |bits| bf16::from_bits(bits).is_nan()),
    ] {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_ne_bytes).collect();
        for rounder in [Rounder::Nearest, Rounder::stochastic(1, 2, 3, 4)] {
            let mut region = misaligned(&bytes, 1, 4 << 16);
            let region = &mut region[1..];
            convert_in_place(region, 1 << 16, narrow_type, Dtype::F32, rounder).unwrap();
            for (bits, wide) in (0..=u16::MAX).zip(region.chunks_exact(4)) {
                let expected = widen(&bits.to_ne_bytes(), narrow_type);
                assert!(same(widen(wide, Dtype::F32), expected), "{bits:#x}");
            }
            convert_in_place(region, 1 << 16, Dtype::F32, narrow_type, rounder).unwrap();
            for (bits, back) in (0..=u16::MAX).zip(region.chunks_exact(2)) {
                let back = u16::from_ne_bytes(back.try_into().unwrap());
                // A signalling NaN may come back quiet.
                assert!(
                    back == bits || (is_nan(bits) && is_nan(back)),
                    "{bits:#x} {back:#x}"
                );
            }
        }
    }
}

#[test]
fn f16_overflows_to_infinity_from_half_a_step_beyond_its_range() {
    let cases = [
        (65504.0, 65504.0),
        (65519.99, 65504.0),
        (65520.0, f32::INFINITY),
        (-1e9, f32::NEG_INFINITY),
    ];
    for (value, expected) in cases {
        let bytes = f32::to_ne_bytes(value);
        let narrowed = convert_at(&bytes, Dtype::F32, Dtype::F16, Rounder::Nearest, (0, 0));
        assert_eq!(widen(&narrowed, Dtype::F16), expected, "{value}");
    }
}

/// The mean of many roundings of one value lies within five standard deviations of the value;
/// the standard deviation of one is at most half a step.
#[test]
fn the_expected_value_is_the_exact_one() {
    const COUNT: usize = 1 << 17;
    for (to, value, step) in [
        (Dtype::Bf16, 1.001_f32, 2f64.powi(-7)),
        (Dtype::Bf16, -3.3e-39, 2f64.powi(-133)),
        (Dtype::Bf16, 123_456.7, 512.0),
        (Dtype::F16, 1.000_2, 2f64.powi(-10)),
        (Dtype::F16, -2048.3, 2.0),
        (Dtype::F16, 3.3e-6, 2f64.powi(-24)),
        (Dtype::F16, 2e-8, 2f64.powi(-24)),
    ] {
        let bytes = value.to_ne_bytes().repeat(COUNT);
        for step_number in 0..3 {
            let rounder = Rounder::stochastic(11, 5, 0, step_number);
            let narrowed = convert_at(&bytes, Dtype::F32, to, rounder, (0, 0));
            let sum: f64 = values_of(&narrowed, to).iter().map(|v| f64::from(*v)).sum();
            let mean = sum / COUNT as f64;
            let bound = 5.0 * 0.5 * step / (COUNT as f64).sqrt();
            assert!(
                (mean - f64::from(value)).abs() <= bound,
                "{} {value:e}: mean {mean:e}",
                to.name()
            );
        }
    }
}

#[test]
fn every_part_of_the_key_changes_the_chance() {
    let bytes = 1.003_f32.to_ne_bytes().repeat(256);
    let rounded = |rounder| convert_at(&bytes, Dtype::F32, Dtype::Bf16, rounder, (0, 0));
    let base = rounded(Rounder::stochastic(1, 2, 3, 4));
    assert_eq!(base, rounded(Rounder::stochastic(1, 2, 3, 4)));
    for other in [
        Rounder::stochastic(0, 2, 3, 4),
        Rounder::stochastic(1, 3, 2, 4),
        Rounder::stochastic(1, 2, 4, 3),
        Rounder::stochastic(1, 2, 3, 5),
        Rounder::stochastic(1, 2, 3, 4).after(1),
    ] {
        assert_ne!(base, rounded(other), "{other:?}");
    }
}

/// The published first numbers of the generator: the seed 1234567, as in Rosetta Code's task.
#[test]
fn the_generator_is_splitmix64() {
    let mut numbers = [0; 5];
    rounding::random(1_234_567, 0, &mut numbers);
    let published = [
        6_457_827_717_110_365_317,
        3_203_168_211_198_807_973,
        9_817_491_932_198_370_423,
        4_593_380_528_125_082_431,
        16_408_922_859_458_223_821,
    ];
    assert_eq!(numbers, published);
    let mut later = [0; 2];
    rounding::random(1_234_567, 3, &mut later);
    assert_eq!(later, published[3..]);
}

#[test]
fn other_types_and_lengths_are_refused_and_change_nothing() {
    let mut region = [7; 16];
    let refused = convert_in_place(&mut region, 2, Dtype::F64, Dtype::F32, Rounder::Nearest);
    assert!(matches!(
        refused,
        Err(crate::base::error::Error::Unsupported { .. })
    ));
    assert!(convert_in_place(&mut region, 5, Dtype::Bf16, Dtype::F32, Rounder::Nearest).is_err());
    assert!(convert_in_place(&mut region, 2, Dtype::I8, Dtype::I8, Rounder::Nearest).is_ok());
    let from = [1; 8];
    assert!(
        convert(
            &from,
            Dtype::F32,
            &mut region[..6],
            Dtype::F16,
            Rounder::Nearest
        )
        .is_err()
    );
    assert!(
        convert(
            &from,
            Dtype::F32,
            &mut region[..6],
            Dtype::F32,
            Rounder::Nearest
        )
        .is_err()
    );
    assert!(accumulate(&mut region[..12], Dtype::F32, &from[..4], Dtype::F16).is_err());
    assert!(accumulate(&mut region[..8], Dtype::I32, &from, Dtype::I32).is_err());
    assert!(sum_of_squares(&from[..7], Dtype::F16).is_err());
    assert_eq!(region, [7; 16]);
}
