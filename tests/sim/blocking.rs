//! The pool of blocking handlers, step by step: a full queue, a deadline in it, a drain.

use std::time::Duration;

use corelane::{
    client::Peer,
    engine::sim::Weather,
    metrics::Counters,
    shard::{ShardOptions, Shedding},
    wire::Reason,
};
use fastrand::Rng;

use crate::{
    handlers::{Conduct, Order, Runs},
    load::{End, Mode, Sent},
    scenario::random_limits,
    world::World,
};

/// Two may wait, and nothing runs as yet.
#[test]
fn a_full_pool_refuses_and_what_it_took_runs_in_order() {
    let mut it = Blocked::new(5, 100);
    let refused = |end| end == Some(End::Nack(Reason::Overloaded));
    assert_eq!(it.ends()[..2], [None, None]);
    assert!(
        it.ends()[2..].iter().all(|end| refused(*end)),
        "{:?}",
        it.ends()
    );
    assert!(it.runs.take().is_empty());

    it.world.processes[0].pool.threads = 1;
    it.pass(Duration::from_millis(40));
    assert_eq!(it.ends()[..2], [Some(End::Answered); 2]);
    let ran: Vec<u32> = it.runs.take().iter().map(|run| run.order.id).collect();
    assert_eq!(ran, [0, 1]);
    let total = it.drain(Duration::from_secs(1));
    assert_eq!((total.accepted, total.handled, total.nacked()), (5, 2, 3));
    assert_eq!((total.blocking, total.in_flight()), (2, 0));
}

/// One runs and one waits as the time is over.
#[test]
fn a_drain_counts_what_runs_as_indeterminate_and_what_waits_as_lost() {
    let mut it = Blocked::new(3, 100);
    it.world.processes[0].pool.threads = 1;
    it.world.turn_all();
    assert_eq!(it.runs.take().len(), 1);
    let total = it.drain(Duration::ZERO);
    assert_eq!((total.accepted, total.nacked()), (3, 1));
    assert_eq!(
        (total.indeterminate, total.lost, total.in_flight()),
        (1, 1, 0)
    );
    // The thread comes to the other one when nobody waits for it any more.
    it.pass(Duration::from_millis(200));
    assert!(it.runs.take().is_empty(), "it has not run");
}

/// Its deadline passes while it waits.
#[test]
fn what_waits_for_a_thread_beyond_its_deadline_does_not_run() {
    let mut it = Blocked::new(1, 100);
    it.pass(Duration::from_millis(200));
    it.world.processes[0].pool.threads = 1;
    it.world.settle(|_| {});
    assert!(it.runs.take().is_empty());
    let total = it.drain(Duration::from_secs(1));
    let late = usize::from(Reason::DeadlineExceeded.to_u16());
    assert_eq!((total.accepted, total.nacked_by_reason[late]), (1, 1));
}

/// It is for the thread to refuse it: the shard has handed it over.
#[test]
fn what_waits_for_a_thread_longer_than_it_may_does_not_run() {
    let shedding = Shedding {
        target: Duration::from_millis(5),
        after: Duration::ZERO,
    };
    let mut it = Blocked::with(2, 100, Some(shedding));
    let pool = &mut it.world.processes[0].pool;
    (pool.threads, pool.takes_us) = (1, 100..101);
    it.pass(Duration::from_millis(1));
    assert_eq!(it.ends(), [Some(End::Nack(Reason::Overloaded)); 2]);
    assert!(it.runs.take().is_empty());
    it.send(1);
    it.pass(Duration::from_millis(20));
    assert_eq!(it.ends()[2], Some(End::Answered), "it has not waited");
    let total = it.drain(Duration::from_secs(1));
    assert_eq!((total.shed, total.nacked(), total.handled), (2, 2, 1));
    assert_eq!((total.blocking, total.in_flight()), (3, 0));
}

/// A queue that is long for a moment may be: before anything has run, and after a time without
/// work.
#[test]
fn a_pool_that_was_idle_refuses_nothing_at_once() {
    let shedding = Shedding {
        target: Duration::from_millis(5),
        after: Duration::from_millis(30),
    };
    let mut it = Blocked::with(0, 100, Some(shedding));
    it.world.processes[0].pool.takes_us = 100..101;
    for round in 1..=3 {
        it.world.processes[0].pool.threads = 0;
        it.send(2);
        it.pass(Duration::from_millis(20));
        it.world.processes[0].pool.threads = 1;
        it.pass(Duration::from_millis(40));
        assert_eq!(it.ends(), vec![Some(End::Answered); 2 * round]);
    }
}

/// They run, and the queue is empty; but there would be no room for the ends of more.
#[test]
fn a_shard_has_no_more_jobs_under_way_than_its_inbox_holds() {
    let mut it = Blocked::new(2, 100);
    let pool = &mut it.world.processes[0].pool;
    (pool.threads, pool.takes_us) = (100, 5_000..5_001);
    it.world.turn_all();
    assert_eq!(it.runs.take().len(), 2);
    it.send(3);
    it.pass(Duration::from_millis(1));
    assert_eq!(it.ends()[..2], [None; 2]);
    assert_eq!(it.ends()[2..], [Some(End::Nack(Reason::Overloaded)); 3]);
    it.pass(Duration::from_millis(10));
    assert_eq!(it.ends()[..2], [Some(End::Answered); 2]);
    it.send(1);
    it.pass(Duration::from_millis(10));
    assert_eq!(it.ends()[5], Some(End::Answered), "there is room again");
}

/// Both come with one ring after the other, and nobody rings for the second again.
#[test]
fn two_ends_at_once_are_taken_by_turns_of_one() {
    let mut it = Blocked::new(2, 1);
    it.world.processes[0].pool.threads = 2;
    it.world.turn_all();
    it.world.mock.increment(Duration::from_millis(10));
    let blocking = |it: &Blocked| it.world.processes[0].shards[0].depths().unwrap().blocking;
    // The threads end after the shard's turn.
    it.world.turn_all();
    assert_eq!(blocking(&it), 2);
    it.world.turn_all();
    assert_eq!(blocking(&it), 1, "one in a turn");
    it.pass(Duration::from_millis(10));
    assert_eq!(it.ends(), [Some(End::Answered); 2]);
}

/// For longer than it lingers anyway.
#[test]
fn a_drain_waits_for_what_runs() {
    let mut it = Blocked::new(1, 100);
    let pool = &mut it.world.processes[0].pool;
    (pool.threads, pool.takes_us) = (1, 60_000..60_001);
    let total = it.drain(Duration::from_millis(200));
    assert_eq!((total.accepted, total.handled), (1, 1));
    assert_eq!(it.ends(), [Some(End::Answered)]);
}

/// Process 1 has sent requests to `block` of process 0, whose pool has room for two and no thread.
struct Blocked {
    world: World,
    runs: Runs,
    peer: Peer,
    calls: Vec<Sent>,
}

impl Blocked {
    fn new(requests: usize, turn_messages_max: usize) -> Self {
        Self::with(requests, turn_messages_max, None)
    }

    fn with(requests: usize, turn_messages_max: usize, shedding: Option<Shedding>) -> Self {
        let mut limits = random_limits(&mut Rng::with_seed(0));
        limits.shard = ShardOptions {
            turn_messages_max,
            outstanding_max: 100,
            outgoing_messages_max: 100,
            outgoing_bytes_max: 100_000,
            inbox_capacity: 100,
            shedding,
            ..limits.shard
        };
        (limits.outgoing_messages_max, limits.outgoing_bytes_max) = (100, 100_000);
        (limits.pool_threads, limits.pool_queue) = (0, 2);
        let mut world = World::new(0, Weather::default(), limits);
        let runs = Runs::new(world.mock.clone());
        world.add_process(0, 1, true, &runs.handlers());
        world.add_process(1, 1, true, &[]);
        let endpoint = &world.processes[0].shards[0].endpoint;
        let peer = world.processes[1].client.connect(endpoint).unwrap();
        let calls = Vec::new();
        let mut it = Self {
            world,
            runs,
            peer,
            calls,
        };
        it.send(requests);
        it.pass(Duration::from_millis(20));
        it
    }

    fn send(&mut self, requests: usize) {
        let (now, within) = (self.world.now(), Duration::from_millis(100));
        for _ in 0..requests {
            let id = self.calls.len() as u32;
            let order = Order {
                id,
                lane: 0,
                sequence: id,
                conduct: Conduct::Return,
                takes_us: 0,
            };
            let message = self.world.processes[1].client.message("block");
            let to = (0, &self.peer);
            let sent = Sent::send(message, order, Mode::Request, to, now, within);
            self.calls.push(sent.unwrap());
        }
    }

    /// How each of them has ended, so far.
    fn ends(&self) -> Vec<Option<End>> {
        self.calls.iter().map(|call| call.end).collect()
    }

    /// Lets this much time pass.
    fn pass(&mut self, time: Duration) {
        let until = self.world.now() + time;
        loop {
            self.world.settle(|_| {});
            let now = self.world.now();
            for call in self.calls.iter_mut().filter(|call| call.is_pending()) {
                call.poll(now);
            }
            if now >= until {
                return;
            }
            self.world.advance(until);
        }
    }

    /// Stops process 0, and says what it has counted.
    fn drain(&mut self, within: Duration) -> Counters {
        self.world.drain(0, within);
        self.pass(within);
        let counters = self.world.processes[0].shards[0].last_counters();
        counters.expect("it is over")
    }
}
