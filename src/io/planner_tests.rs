//! Plans applied to a model file, exactly as the driver applies them to a real one.
#![allow(unsafe_code)]

use proptest::prelude::*;

use super::*;
use crate::base::units::{FILE_OFFSET_MAX, GIB, KIB, MIB, to_u64, to_usize};
use crate::memory::MemoryRange;

/// Memory of one segment, with guards on both sides.
struct Room {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
    padding: usize,
}

const GUARD: u8 = 0xEE;
const PAGE: usize = 4096;

impl Room {
    /// `len` bytes of `fill` at an address that is `skew` behind a page, with zeros behind them.
    fn new(len: usize, padding: usize, skew: usize, fill: u8) -> Room {
        let mut bytes = vec![GUARD; len + padding + 3 * PAGE];
        let start = bytes.as_ptr().align_offset(PAGE) + PAGE + skew % PAGE - PAGE * (skew / PAGE);
        for (index, byte) in bytes[start..start + len].iter_mut().enumerate() {
            *byte = fill.wrapping_add((index % 251) as u8);
        }
        bytes[start + len..start + len + padding].fill(0);
        Room {
            bytes,
            start,
            len,
            padding,
        }
    }

    fn segment(&mut self, file_offset: u64, index: u32) -> Segment {
        let start = self.bytes[self.start..].as_mut_ptr();
        Segment {
            file_offset,
            // SAFETY: the room outlives its segment, and the test alone touches it.
            memory: unsafe { MemoryRange::new(start, self.len + self.padding) },
            padding_bytes: to_u64(self.padding),
            buffer: None,
            index,
            user_tag: 0,
        }
    }

    fn data(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    fn guards_are_whole(&self) -> bool {
        let end = self.start + self.len + self.padding;
        self.bytes[..self.start].iter().all(|byte| *byte == GUARD)
            && self.bytes[end..].iter().all(|byte| *byte == GUARD)
            && self.bytes[end - self.padding..end]
                .iter()
                .all(|byte| *byte == 0)
    }
}

/// What one case is made of.
#[derive(Debug, Clone)]
struct Case {
    /// Gap before, length, address skew, padding.
    pieces: Vec<(u64, usize, usize, usize)>,
    base: u64,
    old_len: u64,
    exact: bool,
    geometry: Geometry,
}

fn gap() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => Just(0_u64),
        2 => 1..600_u64,
        2 => 0..9000_u64,
        1 => Just(4096_u64),
        1 => Just(512_u64),
    ]
}

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![
        1 => Just(0_usize),
        3 => 1..700_usize,
        2 => (0..6_usize).prop_map(|blocks| blocks * PAGE),
        3 => 0..20_480_usize,
    ]
}

fn skew() -> impl Strategy<Value = usize> {
    prop_oneof![
        3 => Just(0_usize),
        1 => Just(512_usize),
        1 => (0..8_usize).prop_map(|eighth| eighth * 512),
        1 => 0..PAGE,
    ]
}

fn padding() -> impl Strategy<Value = usize> {
    prop_oneof![2 => Just(0_usize), 1 => Just(PAGE), 1 => 0..PAGE]
}

fn geometry() -> impl Strategy<Value = Geometry> {
    let align = || prop_oneof![Just(1_u64), Just(512), Just(4096)];
    let memory_align = prop_oneof![Just(1_u64), Just(4), Just(512), Just(4096)];
    let block = prop_oneof![Just(4_u64), Just(8), Just(12), Just(64), Just(1024)];
    let bounce = prop_oneof![Just(4_u64), Just(8), Just(64)];
    (align(), memory_align, block, bounce).prop_map(|(offset, memory, block, bounce)| Geometry {
        offset_align_bytes: offset,
        memory_align_bytes: memory,
        block_bytes: block * KIB,
        bounce_bytes: bounce.min(block) * KIB,
        file_len_bytes: 0,
    })
}

fn case() -> impl Strategy<Value = Case> {
    let base = prop_oneof![
        8 => Just(0_u64),
        1 => Just(4 * GIB - 64 * KIB),
        1 => Just(5 * GIB),
        1 => Just(round_down(FILE_OFFSET_MAX, MIB) - 4 * MIB),
    ];
    let old_len = prop_oneof![
        2 => Just(0_u64),
        2 => 0..90_000_u64,
        1 => (0..20_u64).prop_map(|blocks| blocks * 4096),
        1 => Just(400_000_u64),
    ];
    let pieces = prop::collection::vec((gap(), len(), skew(), padding()), 1..12);
    (pieces, base, old_len, any::<bool>(), geometry()).prop_map(
        |(pieces, base, old_len, exact, geometry)| Case {
            pieces,
            base,
            old_len,
            exact,
            geometry,
        },
    )
}

fn layout(case: &Case, fill: u8) -> (Vec<Room>, Vec<Segment>) {
    let mut offset = case.base;
    let mut rooms = Vec::new();
    let mut offsets = Vec::new();
    for (index, (gap, len, skew, padding)) in case.pieces.iter().enumerate() {
        offset += gap;
        offsets.push(offset);
        offset += to_u64(*len);
        let fill = fill.wrapping_add(17_u8.wrapping_mul(index as u8));
        rooms.push(Room::new(*len, *padding, *skew, fill));
    }
    let segments = rooms
        .iter_mut()
        .zip(offsets)
        .enumerate()
        .map(|(index, (room, offset))| room.segment(offset, index as u32))
        .collect();
    (rooms, segments)
}

fn old_content(len: u64) -> Vec<u8> {
    (0..len).map(|index| (index % 199) as u8 | 1).collect()
}

/// All operations of a plan; a plan that does not end fails.
fn plan(direction: Direction, segments: &[Segment], geometry: &Geometry) -> Vec<Operation> {
    let bytes: u64 = segments.iter().map(Segment::len_bytes).sum();
    let operations_max = bytes / 512 + 4 * to_u64(segments.len()) + 8 + bytes;
    let mut cursor = Cursor::default();
    let mut operations = Vec::new();
    while let Some(operation) = next(&mut cursor, direction, segments, geometry) {
        operations.push(operation);
        assert!(to_u64(operations.len()) <= operations_max, "endless");
    }
    assert_eq!(next(&mut cursor, direction, segments, geometry), None);
    operations
}

/// What holds for each operation by itself.
fn check_shape(operation: &Operation, segments: &[Segment], geometry: &Geometry) {
    let align = geometry.offset_align_bytes;
    assert!(operation.len_bytes > 0);
    assert!(operation.payload_bytes > 0, "moves nothing: {operation:?}");
    assert!(operation.payload_bytes <= operation.len_bytes);
    assert!(operation.required_bytes <= operation.len_bytes);
    assert!(operation.file_offset.is_multiple_of(align));
    assert!(operation.len_bytes.is_multiple_of(align));
    assert!(operation.len_bytes <= geometry.block_bytes.max(align));
    match operation.place {
        Place::Direct { segment_offset } => {
            let segment = &segments[operation.segment];
            let address = to_u64(segment.memory.address()) + segment_offset;
            assert!(address.is_multiple_of(geometry.memory_align_bytes));
            assert_eq!(operation.file_offset, segment.file_offset + segment_offset);
            assert!(
                segment_offset + operation.len_bytes <= to_u64(segment.memory.len()),
                "beyond the segment's memory"
            );
            assert!(!operation.read_first);
        }
        Place::Bounce => assert!(operation.len_bytes <= geometry.bounce_bytes.max(align)),
    }
}

/// Each byte of each segment that an operation moves: (segment, offset, length).
fn moved(
    operation: &Operation,
    direction: Direction,
    segments: &[Segment],
) -> Vec<(usize, u64, u64)> {
    match operation.place {
        Place::Direct { segment_offset } => {
            vec![(operation.segment, segment_offset, operation.payload_bytes)]
        }
        Place::Bounce => {
            let mut pieces = Vec::new();
            for_each_piece(operation, direction, segments, |_, segment, from, len| {
                pieces.push((segment, from, len));
            });
            pieces
        }
    }
}

/// Every payload byte is moved exactly once, and every operation says truly how many it moves.
fn check_coverage(operations: &[Operation], direction: Direction, segments: &[Segment]) {
    let mut counts: Vec<Vec<u8>> = segments
        .iter()
        .map(|segment| vec![0; to_usize(segment.len_bytes()).unwrap()])
        .collect();
    for operation in operations {
        let mut payload = 0;
        for (segment, from, len) in moved(operation, direction, segments) {
            payload += len;
            let from = to_usize(from).unwrap();
            for count in &mut counts[segment][from..from + to_usize(len).unwrap()] {
                *count += 1;
            }
        }
        assert_eq!(payload, operation.payload_bytes, "{operation:?}");
    }
    for (index, counts) in counts.iter().enumerate() {
        assert!(counts.iter().all(|count| *count == 1), "segment {index}");
    }
}

fn check_disjoint(operations: &[Operation]) {
    let mut ranges: Vec<_> = operations
        .iter()
        .map(|operation| (operation.file_offset, operation.file_end()))
        .collect();
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "{pair:?} overlap");
    }
}

/// A block is read first only where bytes of it survive that no segment covers.
fn check_read_first(operation: &Operation, segments: &[Segment], geometry: &Geometry) {
    let end = operation.file_end().min(geometry.file_len_bytes);
    let gap = (operation.file_offset..end).any(|at| {
        !segments
            .iter()
            .any(|segment| segment.file_offset <= at && at < segment.file_end())
    });
    if operation.read_first {
        assert!(gap, "read for nothing: {operation:?}");
        assert_eq!(operation.len_bytes, geometry.offset_align_bytes);
    }
    if matches!(operation.place, Place::Bounce) {
        assert_eq!(operation.read_first, gap, "{operation:?}");
    } else {
        assert!(!gap, "a direct operation overwrites a neighbour");
    }
}

/// Writes as the driver does: read first, zeros, gather; or straight from memory.
fn write(operation: &Operation, segments: &[Segment], disk: &mut Vec<u8>, base: u64) {
    let at = to_usize(operation.file_offset - base).unwrap();
    let len = to_usize(operation.len_bytes).unwrap();
    let mut block = vec![0; len];
    match operation.place {
        Place::Direct { segment_offset } => segments[operation.segment]
            .memory
            .copy_out_of(to_usize(segment_offset).unwrap(), &mut block)
            .unwrap(),
        Place::Bounce => {
            if operation.read_first {
                let there = disk.len().saturating_sub(at).min(len);
                block[..there].copy_from_slice(&disk[at..at + there]);
            }
            for_each_piece(
                operation,
                Direction::Out,
                segments,
                |to, index, from, len| {
                    let to = to_usize(to).unwrap();
                    let part = &mut block[to..to + to_usize(len).unwrap()];
                    let from = to_usize(from).unwrap();
                    segments[index].memory.copy_out_of(from, part).unwrap();
                },
            );
        }
    }
    if disk.len() < at + len {
        disk.resize(at + len, 0);
    }
    disk[at..at + len].copy_from_slice(&block);
}

/// Reads as the driver does; false where the file ends before what is required.
fn read(operation: &Operation, segments: &[Segment], disk: &[u8], base: u64) -> bool {
    let at = to_usize(operation.file_offset - base)
        .unwrap()
        .min(disk.len());
    let len = to_usize(operation.len_bytes).unwrap();
    let there = (disk.len() - at).min(len);
    if to_u64(there) < operation.required_bytes {
        return false;
    }
    match operation.place {
        Place::Direct { segment_offset } => segments[operation.segment]
            .memory
            .copy_into(to_usize(segment_offset).unwrap(), &disk[at..at + there])
            .unwrap(),
        Place::Bounce => for_each_piece(
            operation,
            Direction::In,
            segments,
            |from, index, to, len| {
                let from = at + to_usize(from).unwrap();
                segments[index]
                    .memory
                    .copy_into(
                        to_usize(to).unwrap(),
                        &disk[from..from + to_usize(len).unwrap()],
                    )
                    .unwrap();
            },
        ),
    }
    true
}

fn write_case(case: &Case) {
    let (rooms, segments) = layout(case, 3);
    let list_end = segments.iter().map(Segment::file_end).max().unwrap_or(0) - case.base;
    let final_len = if case.exact {
        list_end
    } else {
        list_end.max(case.old_len)
    };
    let geometry = Geometry {
        file_len_bytes: case.base + case.old_len.min(final_len),
        ..case.geometry
    };
    let mut expected = old_content(case.old_len);
    expected.resize(to_usize(final_len.max(case.old_len)).unwrap(), 0);
    for (room, segment) in rooms.iter().zip(&segments) {
        let at = to_usize(segment.file_offset - case.base).unwrap();
        expected[at..at + room.len].copy_from_slice(room.data());
    }
    expected.resize(to_usize(final_len).unwrap(), 0);

    let operations = plan(Direction::Out, &segments, &geometry);
    check_disjoint(&operations);
    check_coverage(&operations, Direction::Out, &segments);
    let mut disk = old_content(case.old_len);
    for operation in &operations {
        check_shape(operation, &segments, &geometry);
        check_read_first(operation, &segments, &geometry);
        write(operation, &segments, &mut disk, case.base);
    }
    disk.resize(to_usize(final_len).unwrap(), 0);
    assert!(disk == expected, "the file differs from the model");
    assert!(rooms.iter().all(Room::guards_are_whole));
}

fn read_case(case: &Case, stacked: bool) {
    let mut case = case.clone();
    if stacked {
        // Segments of a read may overlap; they are sorted by offset all the same.
        for piece in &mut case.pieces {
            piece.0 /= 3;
        }
    }
    let (rooms, mut segments) = layout(&case, 90);
    if stacked {
        let mut offset = case.base;
        for (segment, piece) in segments.iter_mut().zip(&case.pieces) {
            offset += piece.0;
            segment.file_offset = offset;
        }
    }
    let end = segments
        .iter()
        .filter(|segment| !segment.is_empty())
        .map(Segment::file_end)
        .max();
    let disk = old_content(case.old_len);
    let fits = end.is_none_or(|end| end - case.base <= case.old_len);
    let operations = plan(Direction::In, &segments, &case.geometry);
    check_coverage(&operations, Direction::In, &segments);
    let mut all_there = true;
    for operation in &operations {
        check_shape(operation, &segments, &case.geometry);
        all_there &= read(operation, &segments, &disk, case.base);
    }
    assert_eq!(all_there, fits, "short exactly where the file is");
    assert!(rooms.iter().all(Room::guards_are_whole));
    if fits {
        for (room, segment) in rooms.iter().zip(&segments) {
            let at = to_usize(segment.file_offset - case.base).unwrap();
            assert!(room.len == 0 || room.data() == &disk[at..at + room.len]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(debug_assertions) { 400 } else { 20_000 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_written_plan_leaves_the_model_file(case in case()) {
        write_case(&case);
    }

    #[test]
    fn a_read_plan_delivers_the_model_file(case in case(), stacked in any::<bool>()) {
        read_case(&case, stacked);
    }
}

/// One segment at `offset`, nothing in the file.
fn single(offset: u64, len: usize, geometry: Geometry) -> (Vec<Room>, Vec<Segment>, Geometry) {
    let mut room = Room::new(len, 0, 0, 1);
    let segment = room.segment(offset, 0);
    (vec![room], vec![segment], geometry)
}

const BLOCKS: Geometry = Geometry {
    offset_align_bytes: 4096,
    memory_align_bytes: 4096,
    block_bytes: 1 << 20,
    bounce_bytes: 1 << 20,
    file_len_bytes: 0,
};

#[test]
fn an_aligned_tensor_moves_in_whole_blocks_without_a_copy() {
    let (_rooms, segments, geometry) = single(0, 3 << 20, BLOCKS);
    for direction in [Direction::In, Direction::Out] {
        let operations = plan(direction, &segments, &geometry);
        assert_eq!(operations.len(), 3);
        assert!(
            operations
                .iter()
                .all(|operation| matches!(operation.place, Place::Direct { .. })
                    && operation.len_bytes == 1 << 20)
        );
    }
}

#[test]
fn an_odd_tail_with_padding_is_one_direct_operation() {
    let mut room = Room::new(5600, 4096, 0, 1);
    let segments = [room.segment(0, 0)];
    let operations = plan(Direction::Out, &segments, &BLOCKS);
    assert_eq!(operations.len(), 1);
    assert_eq!(
        (operations[0].len_bytes, operations[0].payload_bytes),
        (8192, 5600)
    );
    // A file that goes on behind the tail forbids it.
    let longer = Geometry {
        file_len_bytes: 5601,
        ..BLOCKS
    };
    let operations = plan(Direction::Out, &segments, &longer);
    assert!(operations.last().unwrap().read_first);
}

#[test]
fn the_last_offsets_a_file_can_have_do_not_overflow() {
    for align in [1, 512, 4096] {
        let geometry = Geometry {
            offset_align_bytes: align,
            memory_align_bytes: align,
            ..BLOCKS
        };
        for len in [1, 511, 4096, 10_000] {
            let offset = FILE_OFFSET_MAX - to_u64(len);
            let (_rooms, segments, geometry) = single(offset, len, geometry);
            for direction in [Direction::In, Direction::Out] {
                let operations = plan(direction, &segments, &geometry);
                check_coverage(&operations, direction, &segments);
                for operation in &operations {
                    check_shape(operation, &segments, &geometry);
                }
            }
        }
    }
}

#[test]
fn empty_segments_alone_plan_nothing() {
    let (_rooms, segments, geometry) = single(77, 0, BLOCKS);
    assert!(plan(Direction::Out, &segments, &geometry).is_empty());
    assert!(plan(Direction::In, &[], &geometry).is_empty());
}
