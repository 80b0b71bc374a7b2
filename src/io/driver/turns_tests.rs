use proptest::prelude::*;

use super::*;

type Kind = (Priority, Direction);

const KINDS: [Kind; 4] = [
    (Priority::Foreground, Direction::In),
    (Priority::Foreground, Direction::Out),
    (Priority::Background, Direction::In),
    (Priority::Background, Direction::Out),
];

/// A device whose tasks are counts of operations left, and what it has in flight.
struct Simulation {
    turns: Turns,
    left: Vec<usize>,
    in_flight: Vec<(usize, Kind)>,
    started: Vec<Kind>,
}

impl Simulation {
    fn new(depth: usize) -> Simulation {
        Simulation {
            turns: Turns::new(depth),
            left: Vec::new(),
            in_flight: Vec::new(),
            started: Vec::new(),
        }
    }

    fn push(&mut self, kind: Kind, operations: usize) {
        self.turns.push(kind.0, kind.1, self.left.len());
        self.left.push(operations);
    }

    /// As the driver does: until the depth is reached or nobody can start anything.
    fn fill(&mut self) {
        while self.turns.is_open() {
            if !self.turns.order().any(|kind| self.start(kind)) {
                return;
            }
        }
    }

    fn start(&mut self, kind: Kind) -> bool {
        while let Some(task) = self.turns.front(kind.0, kind.1) {
            if self.left[task] > 0 {
                self.left[task] -= 1;
                self.turns.started(kind.0, kind.1);
                self.in_flight.push((task, kind));
                self.started.push(kind);
                return true;
            }
            self.turns.pop(kind.0, kind.1);
        }
        false
    }

    fn land(&mut self, index: usize) {
        let index = index % self.in_flight.len();
        let (_, (priority, _)) = self.in_flight.swap_remove(index);
        self.turns.landed(priority);
    }

    fn in_flight_of(&self, priority: Priority) -> usize {
        let is_of = |(_, kind): &&(usize, Kind)| kind.0 == priority;
        self.in_flight.iter().filter(is_of).count()
    }

    /// Operations of a kind that could be started.
    fn waiting(&mut self, kind: Kind) -> usize {
        let queue = self.turns.class(kind.0).queue(kind.1);
        queue.iter().map(|task| self.left[*task]).sum()
    }
}

proptest! {
    #[test]
    fn the_depth_is_kept_nobody_starves_and_background_stays_small_beside_foreground(
        depth in 1_usize..40,
        steps in prop::collection::vec((0_usize..4, 0_usize..50, 0_usize..100), 1..300),
    ) {
        let share = (depth / BACKGROUND_PART).max(1);
        let mut simulation = Simulation::new(depth);
        let mut beside = 0;
        for (kind, operations, lands) in steps {
            if operations < 12 {
                simulation.push(KINDS[kind], operations * 5);
            }
            let earlier = simulation.started.len();
            let background = simulation.in_flight_of(Priority::Background);
            let could = KINDS.map(|kind| simulation.waiting(kind) > 0);
            simulation.fill();
            let busy = simulation.in_flight.len();
            prop_assert!(busy <= depth);
            let waiting = KINDS.map(|kind| simulation.waiting(kind));
            if busy < depth {
                prop_assert_eq!(waiting[0] + waiting[1], 0, "foreground uses all of the depth");
                prop_assert!(
                    waiting[2] + waiting[3] == 0
                        || simulation.in_flight_of(Priority::Background) >= share
                );
            }
            let started = &simulation.started[earlier..];
            let foreground = started.iter().filter(|kind| kind.0 == Priority::Foreground).count();
            let first = started.iter().position(|kind| kind.0 == Priority::Foreground);
            let before = first.unwrap_or(started.len());
            let later = started.len() - before - foreground;
            prop_assert!(later == 0 || background + before + later <= share);
            beside = match foreground < started.len() || !(could[2] || could[3]) {
                true => 0,
                false if background == 0 => beside + foreground,
                false => beside,
            };
            prop_assert!(beside <= 15, "background had no turn for {beside} operations");
            for _ in 0..lands.min(simulation.in_flight.len()) {
                simulation.land(lands);
            }
        }
        simulation.fill();
        while !simulation.in_flight.is_empty() {
            simulation.land(0);
            simulation.fill();
        }
        prop_assert!(simulation.left.iter().all(|left| *left == 0), "all of it ends");
    }
}

#[test]
fn one_in_four_is_a_write_and_one_in_sixteen_is_background_at_any_depth() {
    for depth in [1, 32] {
        let mut simulation = Simulation::new(depth);
        for kind in KINDS {
            simulation.push(kind, 1000);
        }
        simulation.fill();
        for _ in 0..640 {
            simulation.land(0);
            simulation.fill();
        }
        let count = |kind: Kind| simulation.started.iter().filter(|it| **it == kind).count();
        let all = simulation.started.len();
        assert!(
            KINDS.iter().all(|kind| count(*kind) < 1000),
            "all still wait"
        );
        let writes = count(KINDS[1]) + count(KINDS[3]);
        assert!(
            (all / 4 - 2..=all / 4 + 2).contains(&writes),
            "{writes} of {all}"
        );
        let background = count(KINDS[2]) + count(KINDS[3]);
        assert!(
            (all / 16 - 2..=all / 16 + 2).contains(&background),
            "{background} of {all}"
        );
    }
}

#[test]
fn background_grows_to_the_depth_when_it_is_alone_and_shrinks_for_foreground() {
    let mut simulation = Simulation::new(32);
    simulation.push(KINDS[0], 1);
    simulation.fill();
    simulation.push(KINDS[2], 1000);
    simulation.fill();
    assert_eq!(simulation.in_flight_of(Priority::Background), 2);
    // Foreground has ended: with every operation that ends, one more is in flight.
    simulation.land(0);
    for expected in 3..=32 {
        simulation.land(0);
        simulation.fill();
        assert_eq!(simulation.in_flight_of(Priority::Background), expected);
    }
    simulation.land(0);
    simulation.fill();
    assert_eq!(simulation.in_flight.len(), 32, "and no more than the depth");
    // Foreground is back: it takes what background gives free, down to its share.
    simulation.push(KINDS[0], 1000);
    while simulation.in_flight_of(Priority::Background) > 2 {
        let at = |(_, kind): &(usize, Kind)| kind.0 == Priority::Background;
        let at = simulation.in_flight.iter().position(at).unwrap();
        let started = simulation.started.len();
        simulation.land(at);
        simulation.fill();
        assert_eq!(simulation.started[started..], [KINDS[0]]);
    }
}
