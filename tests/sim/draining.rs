//! Drains whose time is over while answers wait, step by step.

use std::time::Duration;

use corelane::{engine::sim::Weather, shard::ShardOptions, wire::Reason};
use fastrand::Rng;

use crate::{
    handlers::{Conduct, Order, Runs},
    load::{Mode, Sent},
    scenario::random_limits,
    world::World,
};

const MS: Duration = Duration::from_millis(1);

/// The process stands still until both the deadline and the drain's time have passed, and its
/// connection takes no answer then: the message has not run, and is not said to have, perhaps.
#[test]
fn what_was_too_late_for_its_batch_is_lost_and_not_indeterminate() {
    let mut limits = random_limits(&mut Rng::with_seed(0));
    limits.shard = ShardOptions {
        turn_messages_max: 100,
        outstanding_max: 100,
        outgoing_messages_max: 100,
        inbox_capacity: 100,
        buffered_bytes_max: 1 << 20,
        ..limits.shard
    };
    (limits.outgoing_messages_max, limits.outgoing_bytes_max) = (100, 100_000);
    limits.heartbeat_timeout = Duration::from_secs(1);
    limits.ring_capacity = 1;
    let mut world = World::new(0, Weather::default(), limits);
    let runs = Runs::new(world.mock.clone());
    world.add_process(0, 2, false, &runs.handlers());
    world.add_process(2, 1, true, &[]);
    let endpoint = world.processes[0].shards[0].endpoint.clone();
    let client = world.processes[1].client.clone();
    let peer = client.connect(&endpoint).unwrap();
    pass(&mut world, 10 * MS);

    // Both cross, to be collected there; the way back has room for one.
    let send = |world: &World, sequence| {
        let order = Order {
            id: sequence,
            lane: 0,
            sequence,
            conduct: Conduct::Return,
            takes_us: 0,
        };
        let message = client.message("gather.last");
        let (now, within) = (world.now(), 200 * MS / 1_000);
        Sent::send(message, order, Mode::Request, (0, &peer), now, within).unwrap()
    };
    let calls = [send(&world, 0), send(&world, 1)];
    pass(&mut world, 100 * MS / 1_000);
    let until = world.now() + 10 * MS;
    world.stall(0, None, until);
    world.drain(0, 5 * MS);
    pass(&mut world, 20 * MS);
    drop(calls);
    assert!(runs.take().is_empty(), "their deadlines had passed");
    let mut total = corelane::metrics::Counters::default();
    for node in &world.processes[0].shards {
        total += node.last_counters().expect("it is over");
    }
    total.settle_hops();
    assert_eq!((total.accepted, total.in_flight()), (2, 0), "{total:?}");
    assert_eq!(total.indeterminate, 0, "{total:?}");
    let late = total.nacked_by_reason[usize::from(Reason::DeadlineExceeded.to_u16())];
    assert!(total.lost > 0, "one had no way back: {total:?}");
    assert_eq!(late + total.lost, 2, "{total:?}");
}

fn pass(world: &mut World, time: Duration) {
    let until = world.now() + time;
    world.settle(|_| {});
    while world.advance(until) {
        world.settle(|_| {});
    }
    world.settle(|_| {});
}
