//! Turns on one device: who may start an operation there next. Pure.
//!
//! Reads, for which somebody waits, go before writes, but one operation in four is left to writes.
//! Foreground goes before background, but one operation in sixteen is left to background. So none
//! starves. While there is foreground work, background has a small share of the depth; after it,
//! its allowance grows with every operation that ends, so that a short gap between two requests
//! does not fill the device's queue.

use std::collections::VecDeque;

use crate::io::request::{Direction, Priority};

/// Reads between two writes while both wait.
const READS_IN_A_ROW_MAX: u32 = 3;
/// Foreground operations between two of the background while both wait.
const FOREGROUND_IN_A_ROW_MAX: u32 = 15;
/// What background has of the depth beside foreground work: this part of it, and at least one
/// operation.
const BACKGROUND_PART: usize = 16;

/// The running tasks of one priority that have operations still to plan, and what is in flight.
#[derive(Debug, Default)]
struct Class {
    readers: VecDeque<usize>,
    writers: VecDeque<usize>,
    in_flight: usize,
    /// Operations started since a writer last had its turn before readers.
    reads_in_a_row: u32,
}

impl Class {
    fn queue(&mut self, direction: Direction) -> &mut VecDeque<usize> {
        match direction {
            Direction::In => &mut self.readers,
            Direction::Out => &mut self.writers,
        }
    }

    /// Whether nobody waits to start an operation.
    fn is_empty(&self) -> bool {
        self.readers.is_empty() && self.writers.is_empty()
    }

    /// Who goes first, and who where that one waits for nothing.
    fn order(&self, priority: Priority) -> [(Priority, Direction); 2] {
        let order = if self.reads_in_a_row < READS_IN_A_ROW_MAX || self.writers.is_empty() {
            [Direction::In, Direction::Out]
        } else {
            [Direction::Out, Direction::In]
        };
        order.map(|direction| (priority, direction))
    }
}

/// The running tasks on one device, and what they have in flight.
#[derive(Debug)]
pub(super) struct Turns {
    depth: usize,
    foreground: Class,
    background: Class,
    /// Foreground operations started since background last had its turn.
    foreground_in_a_row: u32,
    /// Operations that background may have in flight now.
    background_max: usize,
}

impl Turns {
    /// Of a device without work, on which `depth` operations may be in flight.
    pub(super) fn new(depth: usize) -> Turns {
        Turns {
            depth,
            foreground: Class::default(),
            background: Class::default(),
            foreground_in_a_row: 0,
            background_max: depth,
        }
    }

    fn class(&mut self, priority: Priority) -> &mut Class {
        match priority {
            Priority::Foreground => &mut self.foreground,
            Priority::Background => &mut self.background,
        }
    }

    /// Takes in a task whose operations may be planned.
    pub(super) fn push(&mut self, priority: Priority, direction: Direction, task: usize) {
        self.class(priority).queue(direction).push_back(task);
    }

    /// The oldest task of a kind with operations still to plan.
    pub(super) fn front(&mut self, priority: Priority, direction: Direction) -> Option<usize> {
        self.class(priority).queue(direction).front().copied()
    }

    /// Takes that task out: it has nothing more to start.
    pub(super) fn pop(&mut self, priority: Priority, direction: Direction) {
        self.class(priority).queue(direction).pop_front();
    }

    /// Operations in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.foreground.in_flight + self.background.in_flight
    }

    /// Whether a task waits to start operations, and the depth leaves room for one.
    pub(super) fn is_open(&self) -> bool {
        self.in_flight() < self.depth && !(self.foreground.is_empty() && self.background.is_empty())
    }

    /// Which kinds of task may start an operation now that there is room, best first.
    pub(super) fn order(&self) -> impl Iterator<Item = (Priority, Direction)> + use<> {
        let foreground = Some(self.foreground.order(Priority::Foreground));
        let background = (self.background.in_flight < self.background_max)
            .then(|| self.background.order(Priority::Background));
        let order = if self.foreground_in_a_row < FOREGROUND_IN_A_ROW_MAX {
            [foreground, background]
        } else {
            [background, foreground]
        };
        order.into_iter().flatten().flatten()
    }

    /// Notes that an operation was started.
    pub(super) fn started(&mut self, priority: Priority, direction: Direction) {
        match priority {
            Priority::Foreground => {
                self.foreground_in_a_row = self.foreground_in_a_row.saturating_add(1);
                self.background_max = (self.depth / BACKGROUND_PART).max(1);
            }
            Priority::Background => self.foreground_in_a_row = 0,
        }
        let class = self.class(priority);
        class.in_flight += 1;
        class.reads_in_a_row = match direction {
            Direction::In => class.reads_in_a_row.saturating_add(1),
            Direction::Out => 0,
        };
    }

    /// Notes that nothing of an operation is in flight any more.
    pub(super) fn landed(&mut self, priority: Priority) {
        self.class(priority).in_flight -= 1;
        if priority == Priority::Background
            && self.foreground.in_flight == 0
            && self.foreground.is_empty()
        {
            self.background_max = (self.background_max + 1).min(self.depth);
        }
    }
}

#[cfg(test)]
#[path = "turns_tests.rs"]
mod tests;
