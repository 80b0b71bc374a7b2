//! Where records lie in pinned memory. Pure: knows offsets, never touches the memory.
//!
//! The arena is cut into *lanes*, each with room for the largest record, and every record lies
//! within one lane. Callers hold at most `views_max` views, which touch at most as many lanes. With
//! at least that many lanes, there is always one that holds none as long as another view may be
//! asked for: what is in it can be written, dropped or handed out, so the next record finds room.
//! A free list over all of the memory could not promise that: a few views in the wrong places
//! would leave no hole that is large enough, whatever is dropped around them.
//!
//! Behind the lanes lies the room of the *residents*, records that stay in memory for good.

use std::collections::HashMap;
use std::ops::Range;

use range_alloc::RangeAllocator;

use crate::base::error::{Error, Result};

/// The shape of an arena.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ArenaPlan {
    pub(super) lanes_count: u64,
    pub(super) lane_bytes: u64,
    /// Records that stay for good, with their sizes.
    pub(super) residents: Vec<(u32, u64)>,
}

impl ArenaPlan {
    /// All of the memory.
    pub(super) fn total_bytes(&self) -> u64 {
        let residents: u64 = self.residents.iter().map(|(_, bytes)| bytes).sum();
        self.lanes_count * self.lane_bytes + residents
    }
}

/// What decides the shape.
#[derive(Debug, Clone, Copy)]
pub(super) struct Demand {
    pub(super) views_max: u32,
    /// What the caller allows for the lanes; `None` takes what the pipeline needs.
    pub(super) pinned_bytes: Option<u64>,
    /// Records on their way to and from storage, besides the views.
    pub(super) pipelined_count: u64,
    pub(super) cache_bytes: u64,
}

/// Computes the arena for records of these sizes, in the order of registration.
///
/// # Errors
/// `Budget` where the caller allows less than the views need; it names the bytes.
pub(super) fn plan(sizes: &[u64], demand: Demand) -> Result<ArenaPlan> {
    let largest = sizes.iter().copied().max().unwrap_or(0);
    if largest == 0 {
        return Ok(ArenaPlan {
            lanes_count: 0,
            lane_bytes: 0,
            residents: Vec::new(),
        });
    }
    let mut residents = Vec::new();
    let mut left_bytes = demand.cache_bytes;
    for (index, bytes) in (0_u32..).zip(sizes) {
        // No bytes: a parameter of an earlier run that is not there in this one.
        if *bytes > 0 && *bytes <= left_bytes {
            left_bytes -= bytes;
            residents.push((index, *bytes));
        }
    }
    let count = crate::base::units::to_u64(sizes.len());
    let views = u64::from(demand.views_max).min(count);
    let too_many = || Error::Budget(format!("{views} views of {largest} bytes are too many"));
    let needed = views.checked_mul(largest).ok_or_else(too_many)?;
    let total = match demand.pinned_bytes {
        Some(allowed) if allowed < needed => {
            return Err(Error::Budget(format!(
                "pinned_bytes is {allowed}, and {needed} bytes are needed: {views} views \
                 (views_max) of the largest record, {largest} bytes"
            )));
        }
        Some(allowed) => allowed,
        None => needed.max(sum_of_largest(
            sizes,
            views.saturating_add(demand.pipelined_count),
        )),
    };
    let lanes_count = (total / largest).min(count).max(1);
    // Records are cut in blocks, so a lane is too.
    let lane_bytes = total / lanes_count / crate::store::BLOCK_BYTES * crate::store::BLOCK_BYTES;
    let all: u64 = sizes.iter().sum();
    Ok(ArenaPlan {
        lanes_count,
        lane_bytes: lane_bytes.min(all),
        residents,
    })
}

fn sum_of_largest(sizes: &[u64], count: u64) -> u64 {
    let mut sizes = sizes.to_vec();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    sizes
        .iter()
        .take(count)
        .fold(0, |sum, size| sum.saturating_add(*size))
}

/// Which parts of the pinned memory are taken.
#[derive(Debug)]
pub(super) struct Arena {
    lanes: Vec<RangeAllocator<u64>>,
    lane_bytes: u64,
    /// Where the residents lie, by record.
    residents: HashMap<u32, u64>,
    /// The residents with their sizes, as the plan had them.
    resident_sizes: Vec<(u32, u64)>,
    used_bytes: u64,
    peak_bytes: u64,
    /// Where the next search begins, so that lanes are filled in turn.
    turn: usize,
}

impl Arena {
    pub(super) fn new(plan: &ArenaPlan) -> Arena {
        let mut residents = HashMap::with_capacity(plan.residents.len());
        let mut offset = plan.lanes_count * plan.lane_bytes;
        for (index, bytes) in &plan.residents {
            residents.insert(*index, offset);
            offset += bytes;
        }
        let lane = |index: u64| {
            RangeAllocator::new(index * plan.lane_bytes..(index + 1) * plan.lane_bytes)
        };
        Arena {
            lanes: (0..plan.lanes_count).map(lane).collect(),
            lane_bytes: plan.lane_bytes,
            residents,
            resident_sizes: plan.residents.clone(),
            used_bytes: 0,
            peak_bytes: 0,
            turn: 0,
        }
    }

    /// Whether this record stays in memory for good.
    pub(super) fn is_resident(&self, record: u32) -> bool {
        self.residents.contains_key(&record)
    }

    /// Takes room for a record; `None` where no lane has any.
    pub(super) fn take(&mut self, record: u32, len_bytes: u64) -> Option<Range<u64>> {
        let place = match self.residents.get(&record) {
            Some(offset) => *offset..offset + len_bytes,
            None => {
                let count = self.lanes.len();
                let order = (0..count).map(|step| (self.turn + step) % count);
                let mut found = None;
                for lane in order {
                    if let Ok(place) = self.lanes[lane].allocate_range(len_bytes) {
                        found = Some((lane, place));
                        break;
                    }
                }
                let (lane, place) = found?;
                self.turn = lane;
                place
            }
        };
        self.used_bytes += len_bytes;
        self.peak_bytes = self.peak_bytes.max(self.used_bytes);
        Some(place)
    }

    /// Gives room back.
    pub(super) fn free(&mut self, record: u32, place: Range<u64>) {
        self.used_bytes -= place.end - place.start;
        if !self.residents.contains_key(&record) {
            let lane = usize::try_from(place.start / self.lane_bytes).unwrap_or(usize::MAX);
            if let Some(lane) = self.lanes.get_mut(lane) {
                lane.free_range(place);
            }
        }
    }

    /// Bytes of all lanes.
    pub(super) fn lanes_bytes(&self) -> u64 {
        crate::base::units::to_u64(self.lanes.len()) * self.lane_bytes
    }

    /// Whether records of these sizes find room as the plan demands.
    pub(super) fn suits(&self, plan: &ArenaPlan) -> bool {
        self.lane_bytes >= plan.lane_bytes
            && crate::base::units::to_u64(self.lanes.len()) >= plan.lanes_count
            && self.resident_sizes == plan.residents
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    pub(super) fn peak_bytes(&self) -> u64 {
        self.peak_bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEMAND: Demand = Demand {
        views_max: 2,
        pinned_bytes: None,
        pipelined_count: 2,
        cache_bytes: 0,
    };

    #[test]
    fn a_budget_that_cannot_hold_the_views_names_the_bytes() {
        let demand = Demand {
            pinned_bytes: Some(8191),
            ..DEMAND
        };
        let error = plan(&[4096, 4096, 4096], demand).unwrap_err();
        assert!(error.to_string().contains("8192 bytes"), "{error}");
        let enough = Demand {
            pinned_bytes: Some(8192),
            ..DEMAND
        };
        assert_eq!(plan(&[4096; 3], enough).unwrap().total_bytes(), 8192);
    }

    #[test]
    fn a_single_record_needs_room_once() {
        assert_eq!(plan(&[8192], DEMAND).unwrap().total_bytes(), 8192);
    }

    #[test]
    fn equal_records_get_a_lane_for_each_that_is_on_its_way() {
        let plan = plan(&[8192; 100], DEMAND).unwrap();
        assert_eq!((plan.lanes_count, plan.lane_bytes), (4, 8192));
    }

    #[test]
    fn residents_lie_behind_the_lanes() {
        let demand = Demand {
            cache_bytes: 12288,
            ..DEMAND
        };
        let plan = plan(&[8192, 8192, 4096, 4096], demand).unwrap();
        assert_eq!(plan.residents, [(0, 8192), (2, 4096)]);
        let mut arena = Arena::new(&plan);
        let lanes = arena.lanes_bytes();
        assert_eq!(arena.take(2, 4096), Some(lanes + 8192..lanes + 12288));
        assert_eq!(plan.total_bytes(), lanes + 12288);
    }

    proptest! {
        /// Any number of views below the bound, wherever they came to lie, leaves room for the
        /// largest record once all that is no view is dropped.
        #[test]
        fn views_never_block_the_next_record(
            blocks in prop::collection::vec(1..40_u64, 1..30),
            views_max in 1..5_u32,
            extra in 0..100_u64,
            choices in prop::collection::vec(any::<prop::sample::Index>(), 40),
        ) {
            let sizes: Vec<u64> = blocks.iter().map(|count| count * 4096).collect();
            let largest = *sizes.iter().max().unwrap();
            let views = u64::from(views_max).min(sizes.len() as u64);
            let demand = Demand {
                views_max,
                pinned_bytes: Some(views * largest + extra * 4096),
                ..DEMAND
            };
            let plan = plan(&sizes, demand).unwrap();
            prop_assert!(plan.total_bytes() <= demand.pinned_bytes.unwrap());
            let mut arena = Arena::new(&plan);
            let mut held: Vec<(u32, Range<u64>)> = Vec::new();
            for choice in &choices {
                let record = choice.index(sizes.len()) as u32;
                match arena.take(record, sizes[record as usize]) {
                    Some(place) => {
                        let apart = held.iter().all(|(_, other)| {
                            other.end <= place.start || place.end <= other.start
                        });
                        prop_assert!(apart);
                        prop_assert!(place.end <= plan.total_bytes());
                        held.push((record, place));
                    }
                    None => {
                        let (record, place) = held.swap_remove(choice.index(held.len()));
                        arena.free(record, place);
                    }
                }
            }
            // All but `views - 1` are dropped; the largest record must find room.
            while held.len() as u64 > views - 1 {
                let (record, place) = held.swap_remove(choices[0].index(held.len()));
                arena.free(record, place);
            }
            prop_assert!(arena.take(0, largest).is_some());
        }
    }

    #[test]
    fn an_arena_does_not_suit_a_plan_with_other_residents() {
        let demand = Demand {
            views_max: 1,
            pinned_bytes: None,
            pipelined_count: 0,
            cache_bytes: 8192,
        };
        // The first record is not there yet, then it is, and takes the room of the second one.
        let before = plan(&[0, 8192, 8192], demand).unwrap();
        let after = plan(&[8192, 8192, 8192], demand).unwrap();
        assert_eq!(before.residents, [(1, 8192)]);
        assert_eq!(after.residents, [(0, 8192)]);
        let arena = Arena::new(&before);
        assert!(arena.suits(&before) && !arena.suits(&after));
    }
}
