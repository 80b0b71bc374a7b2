//! The ticket table against a model, the shell around it with threads, and, under `--cfg loom`,
//! every interleaving of who completes and who waits.

use super::*;
use crate::base::error::Status;
use crate::io::request::Failure;

fn good(bytes_done: u64) -> Outcome {
    Outcome {
        bytes_done,
        failure: None,
    }
}

fn bad(tag: u64) -> Outcome {
    Outcome {
        bytes_done: 0,
        failure: Some(Failure {
            error: Error::Internal(format!("failure {tag}")),
            index: tag,
            user_tag: tag,
        }),
    }
}

fn is_readable(fd: RawFd) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one structure, which outlives the call; the tickets keep the descriptor open.
    #[allow(unsafe_code)]
    let ready = unsafe { libc::poll(&raw mut poll, 1, 0) };
    ready == 1
}

#[cfg(not(loom))]
mod sequential {
    use std::collections::{HashMap, HashSet};
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::base::sync::lock;

    const ZERO: Option<Duration> = Some(Duration::ZERO);

    #[derive(Debug, Clone)]
    enum Step {
        Open,
        Complete { which: usize, fails: bool },
        Withdraw { which: usize },
        BeginWait { which: usize },
        EndWait { which: usize },
        Take { which: usize },
        Next,
        BeginAll,
        EndAll { which: usize },
        AbandonAll { which: usize },
        Stale { which: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        let which = || 0..64_usize;
        prop_oneof![
            5 => Just(Step::Open),
            5 => (which(), any::<bool>())
                .prop_map(|(which, fails)| Step::Complete { which, fails }),
            1 => which().prop_map(|which| Step::Withdraw { which }),
            3 => which().prop_map(|which| Step::BeginWait { which }),
            2 => which().prop_map(|which| Step::EndWait { which }),
            3 => which().prop_map(|which| Step::Take { which }),
            3 => Just(Step::Next),
            1 => Just(Step::BeginAll),
            1 => which().prop_map(|which| Step::EndAll { which }),
            1 => which().prop_map(|which| Step::AbandonAll { which }),
            1 => which().prop_map(|which| Step::Stale { which }),
        ]
    }

    #[derive(Debug, Clone)]
    struct Known {
        ticket: Ticket,
        tag: u64,
        /// What it ended with, and how many ended before it.
        done: Option<(Outcome, u64)>,
        waited: bool,
    }

    #[derive(Debug)]
    struct All {
        id: u64,
        pending: HashSet<Ticket>,
        /// Tag, which grows with each submission, and error.
        errors: Vec<(u64, Error)>,
    }

    #[derive(Debug, Default)]
    struct Model {
        alive: Vec<Known>,
        ended: Vec<Ticket>,
        opened: u64,
        completions: u64,
        alls: Vec<All>,
    }

    fn expect(known: &Known, completion: &Completion) {
        let (outcome, _) = known.done.clone().unwrap();
        let failure = outcome.failure;
        assert_eq!(completion.ticket, known.ticket);
        assert_eq!(completion.bytes_done, outcome.bytes_done);
        assert_eq!(
            completion.failed_index,
            failure.as_ref().map(|failure| failure.index)
        );
        let tag = failure
            .as_ref()
            .map_or(known.tag, |failure| failure.user_tag);
        assert_eq!(completion.user_tag, tag);
        assert_eq!(
            completion.outcome,
            failure.map_or(Ok(()), |failure| Err(failure.error))
        );
    }

    impl Model {
        fn pick(&self, which: usize) -> Option<usize> {
            (!self.alive.is_empty()).then(|| which % self.alive.len())
        }

        fn remove(&mut self, at: usize) -> Known {
            let known = self.alive.remove(at);
            self.ended.push(known.ticket);
            known
        }

        fn apply(&mut self, step: &Step, table: &mut Table, slots: usize) {
            match step {
                Step::Open => self.open(table, slots),
                Step::Complete { which, fails } => self.complete(*which, *fails, table),
                Step::Withdraw { which } => {
                    if let Some(at) = self.pick(*which)
                        && self.alive[at].done.is_none()
                        && !self.alive[at].waited
                    {
                        let known = self.remove(at);
                        table.withdraw(known.ticket);
                        for all in &mut self.alls {
                            all.pending.remove(&known.ticket);
                        }
                    }
                }
                Step::BeginWait { which } => {
                    if let Some(at) = self.pick(*which) {
                        let begun = table.begin_wait(self.alive[at].ticket);
                        let status = begun.err().map(|error| error.status());
                        let expected = self.alive[at].waited.then_some(Status::Busy);
                        assert_eq!(status, expected);
                        self.alive[at].waited = true;
                    }
                }
                Step::EndWait { which } => {
                    if let Some(at) = self.pick(*which)
                        && self.alive[at].waited
                    {
                        table.end_wait(self.alive[at].ticket);
                        self.alive[at].waited = false;
                    }
                }
                Step::Take { which } => {
                    if let Some(at) = self.pick(*which)
                        && self.alive[at].waited
                    {
                        let taken = table.take_done(self.alive[at].ticket);
                        assert_eq!(taken.is_some(), self.alive[at].done.is_some());
                        if let Some(completion) = taken {
                            expect(&self.remove(at), &completion);
                        }
                    }
                }
                Step::Next => self.next(table),
                Step::BeginAll | Step::EndAll { .. } | Step::AbandonAll { .. } => {
                    self.wait_all(step, table);
                }
                Step::Stale { which } => {
                    if !self.ended.is_empty() {
                        let ticket = self.ended[which % self.ended.len()];
                        assert_eq!(table.check(ticket), Err(Error::BadTicket(ticket)));
                        assert_eq!(table.begin_wait(ticket), Err(Error::BadTicket(ticket)));
                        assert_eq!(table.take_done(ticket), None);
                        table.withdraw(ticket);
                        table.end_wait(ticket);
                    }
                }
            }
        }

        fn open(&mut self, table: &mut Table, slots: usize) {
            self.opened += 1;
            match table.open(self.opened) {
                Ok(ticket) => {
                    assert!(self.alive.len() < slots);
                    assert_ne!(ticket, 0);
                    assert!(!self.ended.contains(&ticket), "a number was used again");
                    assert!(self.alive.iter().all(|known| known.ticket != ticket));
                    self.alive.push(Known {
                        ticket,
                        tag: self.opened,
                        done: None,
                        waited: false,
                    });
                }
                Err(error) => {
                    assert_eq!(self.alive.len(), slots);
                    assert_eq!(error.status(), Status::Busy);
                }
            }
        }

        fn complete(&mut self, which: usize, fails: bool, table: &mut Table) {
            let Some(at) = self.pick(which) else {
                return;
            };
            let known = &mut self.alive[at];
            if known.done.is_some() {
                return;
            }
            let outcome = if fails {
                bad(known.tag)
            } else {
                good(known.tag)
            };
            let news = table.complete(known.ticket, outcome.clone());
            assert_eq!(news.waited, known.waited);
            self.completions += 1;
            known.done = Some((outcome.clone(), self.completions));
            let mut drained = false;
            for all in &mut self.alls {
                if all.pending.remove(&known.ticket) {
                    drained |= all.pending.is_empty();
                    if let Some(failure) = &outcome.failure {
                        all.errors.push((known.tag, failure.error.clone()));
                    }
                }
            }
            assert_eq!(news.drained, drained);
        }

        fn next(&mut self, table: &mut Table) {
            let oldest = (0..self.alive.len())
                .filter(|at| !self.alive[*at].waited)
                .filter_map(|at| Some((self.alive[at].done.as_ref()?.1, at)))
                .min();
            let taken = table.take_next();
            assert_eq!(taken.is_some(), oldest.is_some());
            if let (Some(completion), Some((_, at))) = (taken, oldest) {
                expect(&self.remove(at), &completion);
            }
        }

        fn wait_all(&mut self, step: &Step, table: &mut Table) {
            if let Step::BeginAll = step {
                let errors = self.alive.iter().filter_map(|known| {
                    let failure = known.done.as_ref()?.0.failure.as_ref()?;
                    Some((known.tag, failure.error.clone()))
                });
                self.alls.push(All {
                    id: table.begin_wait_all(),
                    errors: errors.collect(),
                    pending: self
                        .alive
                        .iter()
                        .filter(|known| known.done.is_none())
                        .map(|known| known.ticket)
                        .collect(),
                });
                return;
            }
            let (Step::EndAll { which } | Step::AbandonAll { which }) = step else {
                return;
            };
            if self.alls.is_empty() {
                return;
            }
            let at = which % self.alls.len();
            if let Step::AbandonAll { .. } = step {
                let all = self.alls.remove(at);
                assert_eq!(table.abandon_wait_all(all.id), all.pending.len());
                return;
            }
            let ended = table.end_wait_all_if_done(self.alls[at].id);
            assert_eq!(ended.is_some(), self.alls[at].pending.is_empty());
            if let Some(outcome) = ended {
                let all = self.alls.remove(at);
                let first = all.errors.into_iter().min_by_key(|(tag, _)| *tag);
                assert_eq!(outcome, first.map_or(Ok(()), |(_, error)| Err(error)));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 500,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn the_table_does_what_the_model_does(
            slots in 1..6_u32,
            steps in prop::collection::vec(step(), 1..120),
        ) {
            let mut table = Table::new(slots, 7);
            let mut model = Model::default();
            for step in &steps {
                model.apply(step, &mut table, slots as usize);
                let deliverable = model
                    .alive
                    .iter()
                    .any(|known| known.done.is_some() && !known.waited);
                prop_assert_eq!(table.deliverable(), deliverable);
                for known in &model.alive {
                    prop_assert_eq!(table.check(known.ticket), Ok(()));
                }
            }
        }

        #[test]
        fn the_descriptor_is_readable_exactly_while_something_can_be_delivered(
            slots in 1..5_u32,
            early in any::<bool>(),
            steps in prop::collection::vec((0..6_u8, 0..64_usize), 1..60),
        ) {
            let tickets = Tickets::new(slots, 1);
            let mut fd = early.then(|| tickets.event_fd().unwrap());
            let (mut pending, mut done) = (Vec::new(), HashMap::new());
            for (what, which) in steps {
                match what {
                    0 => if let Ok(ticket) = tickets.open(10, 0) { pending.push(ticket) },
                    1 if !pending.is_empty() => {
                        let ticket = pending.swap_remove(which % pending.len());
                        Sink::progress(&tickets, ticket, 4);
                        prop_assert_eq!(Tickets::progress(&tickets, ticket), Ok((4, 10)));
                        tickets.complete(ticket, good(which as u64));
                        done.insert(ticket, which as u64);
                    }
                    2 if !pending.is_empty() => {
                        let ticket = pending[which % pending.len()];
                        let waited = tickets.wait(ticket, ZERO);
                        prop_assert_eq!(waited.unwrap_err().status(), Status::TimedOut);
                    }
                    3 => if let Some(ticket) = done.keys().next().copied() {
                        let completion = tickets.wait(ticket, None).unwrap();
                        prop_assert_eq!(done.remove(&ticket), Some(completion.bytes_done));
                        prop_assert_eq!(
                            tickets.wait(ticket, None), Err(Error::BadTicket(ticket))
                        );
                    },
                    4 => {
                        let before = done.len();
                        let cap = which % 4;
                        let count = tickets.poll(cap, &mut |completion| {
                            assert!(done.remove(&completion.ticket).is_some());
                        });
                        prop_assert_eq!(count, cap.min(before));
                    }
                    5 if !pending.is_empty() => {
                        tickets.withdraw(pending.swap_remove(which % pending.len()));
                    }
                    _ => {}
                }
                let fd = *fd.get_or_insert_with(|| tickets.event_fd().unwrap());
                prop_assert_eq!(is_readable(fd), !done.is_empty());
                prop_assert_eq!(
                    tickets.wait_all(ZERO).is_ok(), pending.is_empty()
                );
            }
        }
    }

    #[test]
    fn numbers_that_were_never_given_out_are_refused() {
        let tickets = Tickets::new(4, 5);
        let real = tickets.open(1, 0).unwrap();
        let stranger = Tickets::new(4, 6);
        let foreign = stranger.open(1, 0).unwrap();
        for ticket in [
            0,
            1,
            5,
            u64::MAX,
            foreign,
            real + 1,
            real ^ (1 << 40),
            real | 0xF_FFFF,
        ] {
            let refused = Error::BadTicket(ticket);
            assert_eq!(tickets.wait(ticket, ZERO), Err(refused.clone()));
            assert_eq!(tickets.cancel(ticket), Err(refused.clone()));
            assert_eq!(Tickets::progress(&tickets, ticket), Err(refused));
        }
        assert_eq!(tickets.cancel(real), Ok(()));
        assert!(tickets.is_cancelled(real));
    }

    #[test]
    fn a_flag_of_the_ticket_before_is_not_inherited() {
        let tickets = Tickets::new(1, 0);
        let first = tickets.open(8, 0).unwrap();
        tickets.cancel(first).unwrap();
        Sink::progress(&tickets, first, 8);
        tickets.complete(first, good(8));
        tickets.wait(first, None).unwrap();
        let second = tickets.open(3, 0).unwrap();
        assert!(!tickets.is_cancelled(second));
        assert_eq!(Tickets::progress(&tickets, second), Ok((0, 3)));
        assert_eq!(tickets.cancel(first), Err(Error::BadTicket(first)));
    }

    #[test]
    fn a_second_waiter_is_refused_and_poll_leaves_the_ticket_to_the_first() {
        let tickets = Tickets::new(2, 0);
        let ticket = tickets.open(1, 0).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| tickets.wait(ticket, None));
            // In one turn at the table, or the waiter would meet this one as the first.
            let is_free = || {
                let mut table = lock(&tickets.table);
                let begun = table.begin_wait(ticket).is_ok();
                if begun {
                    table.end_wait(ticket);
                }
                begun
            };
            while is_free() {
                std::thread::yield_now();
            }
            let second = tickets.wait(ticket, None).unwrap_err();
            assert_eq!(second.status(), Status::Busy);
            assert_eq!(tickets.poll(9, &mut |_| panic!("delivered twice")), 0);
            tickets.complete(ticket, good(1));
            assert_eq!(waiter.join().unwrap().unwrap().bytes_done, 1);
        });
        assert_eq!(tickets.poll(9, &mut |_| panic!("delivered twice")), 0);
    }

    #[test]
    fn wait_all_is_not_held_up_by_what_came_after_it() {
        let tickets = Tickets::new(4, 0);
        let first = tickets.open(1, 0).unwrap();
        std::thread::scope(|scope| {
            let all = scope.spawn(|| tickets.wait_all(None));
            while !lock(&tickets.table).is_anyone_waiting_for_all() {
                std::thread::yield_now();
            }
            let later = tickets.open(1, 0).unwrap();
            tickets.complete(first, bad(3));
            assert!(all.join().unwrap().is_err());
            assert_eq!(
                tickets.wait(later, ZERO).unwrap_err().status(),
                Status::TimedOut
            );
        });
    }

    #[test]
    fn many_threads_get_each_ticket_once() {
        const EACH: usize = 2000;
        let tickets = Tickets::new(64, 0);
        let (send, receive) = std::sync::mpsc::channel();
        let receive = std::sync::Mutex::new(receive);
        let delivered = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (tickets, delivered, send) = (&tickets, &delivered, send.clone());
                scope.spawn(move || {
                    let mut count = 0;
                    while count < EACH {
                        let Ok(ticket) = tickets.open(1, count as u64) else {
                            let polled = tickets.poll(4, &mut |_| {});
                            delivered.fetch_add(polled as u64, Ordering::Relaxed);
                            std::thread::yield_now();
                            continue;
                        };
                        count += 1;
                        send.send(ticket).unwrap();
                        if thread == 0 {
                            match tickets.wait(ticket, None) {
                                Ok(completion) => {
                                    assert_eq!(completion.ticket, ticket);
                                    delivered.fetch_add(1, Ordering::Relaxed);
                                }
                                Err(error) => assert_eq!(error, Error::BadTicket(ticket)),
                            }
                        } else {
                            let polled = tickets.poll(4, &mut |_| {});
                            delivered.fetch_add(polled as u64, Ordering::Relaxed);
                        }
                    }
                });
            }
            drop(send);
            scope.spawn(|| {
                let receive = receive.lock().unwrap();
                while let Ok(ticket) = receive.recv() {
                    tickets.complete(ticket, good(1));
                }
            });
        });
        let rest = tickets.poll(usize::MAX, &mut |_| {});
        assert_eq!(delivered.into_inner() + rest as u64, 3 * EACH as u64);
    }
}

/// Run with `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target-loom cargo test --release --lib
/// ticket -- loom`.
#[cfg(loom)]
mod loom {
    use std::sync::Arc;

    use ::loom::model;
    use ::loom::thread;

    use super::*;

    fn one() -> (Arc<Tickets>, Ticket) {
        let tickets = Arc::new(Tickets::new(1, 0));
        let ticket = tickets.open(1, 0).unwrap();
        (tickets, ticket)
    }

    fn in_thread(
        tickets: &Arc<Tickets>,
        body: impl FnOnce(&Tickets) + 'static,
    ) -> thread::JoinHandle<()> {
        let tickets = Arc::clone(tickets);
        thread::spawn(move || body(&tickets))
    }

    #[test]
    fn a_waiter_is_always_woken() {
        model(|| {
            let (tickets, ticket) = one();
            let driver = in_thread(&tickets, move |tickets| tickets.complete(ticket, good(5)));
            assert_eq!(tickets.wait(ticket, None).unwrap().bytes_done, 5);
            driver.join().unwrap();
            assert_eq!(tickets.wait(ticket, None), Err(Error::BadTicket(ticket)));
        });
    }

    #[test]
    fn poll_and_wait_never_both_deliver() {
        model(|| {
            let (tickets, ticket) = one();
            let driver = in_thread(&tickets, move |tickets| tickets.complete(ticket, good(5)));
            let poller = {
                let tickets = Arc::clone(&tickets);
                thread::spawn(move || tickets.poll(1, &mut |_| {}))
            };
            let waited = match tickets.wait(ticket, None) {
                Ok(_) => 1,
                Err(error) => {
                    assert_eq!(error, Error::BadTicket(ticket));
                    0
                }
            };
            driver.join().unwrap();
            assert_eq!(waited + poller.join().unwrap(), 1);
        });
    }

    #[test]
    fn of_two_waiters_one_gets_it_and_nobody_sleeps_for_ever() {
        model(|| {
            let (tickets, ticket) = one();
            let driver = in_thread(&tickets, move |tickets| tickets.complete(ticket, good(5)));
            let other = {
                let tickets = Arc::clone(&tickets);
                thread::spawn(move || tickets.wait(ticket, None))
            };
            let mine = tickets.wait(ticket, None);
            let theirs = other.join().unwrap();
            driver.join().unwrap();
            assert_eq!(u8::from(mine.is_ok()) + u8::from(theirs.is_ok()), 1);
            for refused in [mine, theirs].into_iter().filter_map(Result::err) {
                assert!(matches!(refused.status(), Status::Busy | Status::BadTicket));
            }
        });
    }

    #[test]
    fn wait_all_returns_when_the_last_one_is_done() {
        model(|| {
            let tickets = Arc::new(Tickets::new(2, 0));
            let first = tickets.open(1, 0).unwrap();
            let second = tickets.open(1, 0).unwrap();
            let one = in_thread(&tickets, move |tickets| tickets.complete(first, good(1)));
            let two = in_thread(&tickets, move |tickets| tickets.complete(second, bad(9)));
            let outcome = tickets.wait_all(None);
            assert_eq!(outcome, Err(Error::Internal("failure 9".to_owned())));
            one.join().unwrap();
            two.join().unwrap();
            assert_eq!(tickets.poll(9, &mut |_| {}), 2);
        });
    }

    #[test]
    fn wait_all_learns_of_a_withdrawn_ticket() {
        model(|| {
            let (tickets, ticket) = one();
            let caller = in_thread(&tickets, move |tickets| tickets.withdraw(ticket));
            assert_eq!(tickets.wait_all(None), Ok(()));
            caller.join().unwrap();
            assert_eq!(tickets.wait(ticket, None), Err(Error::BadTicket(ticket)));
            assert!(tickets.open(1, 0).is_ok(), "its place is free again");
        });
    }

    #[test]
    fn a_wait_for_a_slot_used_again_is_not_ended_by_the_ticket_before() {
        model(|| {
            let (tickets, first) = one();
            let driver = in_thread(&tickets, move |tickets| tickets.complete(first, good(1)));
            tickets.wait(first, None).unwrap();
            let second = tickets.open(1, 0).unwrap();
            let next = in_thread(&tickets, move |tickets| tickets.complete(second, good(2)));
            assert_eq!(tickets.wait(second, None).unwrap().bytes_done, 2);
            driver.join().unwrap();
            next.join().unwrap();
        });
    }

    #[test]
    fn the_descriptor_agrees_with_the_table_after_every_race() {
        model(|| {
            let (tickets, ticket) = one();
            let driver = in_thread(&tickets, move |tickets| tickets.complete(ticket, good(5)));
            let poller = {
                let tickets = Arc::clone(&tickets);
                thread::spawn(move || tickets.poll(1, &mut |_| {}))
            };
            let fd = tickets.event_fd().unwrap();
            driver.join().unwrap();
            let polled = poller.join().unwrap();
            assert_eq!(is_readable(fd), polled == 0);
        });
    }
}
