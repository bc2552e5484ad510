//! When batches run, step by step.

use std::time::Duration;

use bytes::Bytes;
use corelane::{
    client::Peer,
    engine::sim::Weather,
    handler::{Batch, Handler, Item, batched_raw},
    shard::ShardOptions,
};
use fastrand::Rng;

use crate::{scenario::random_limits, world::World};

const MS: Duration = Duration::from_millis(1);

/// A batch of 10 bytes, or of this age.
fn batch(name: &str, age_max: Duration) -> Handler {
    let limits = Batch {
        count_max: 100,
        bytes_max: 10,
        age_max,
    };
    batched_raw(name, limits, |items: &mut [Item<Bytes, Bytes>], _| {
        items.iter_mut().for_each(|it| it.answer(Ok(Bytes::new())));
    })
}

#[test]
fn each_batch_runs_at_its_own_time_and_counts_its_own_bytes() {
    let mut limits = random_limits(&mut Rng::with_seed(0));
    limits.shard = ShardOptions {
        turn_messages_max: 100,
        outgoing_messages_max: 100,
        inbox_capacity: 100,
        shedding: None,
        ..limits.shard
    };
    (limits.outgoing_messages_max, limits.outgoing_bytes_max) = (100, 100_000);
    limits.heartbeat_timeout = Duration::from_secs(10);
    let mut world = World::new(0, Weather::default(), limits);
    world.add_process(0, 1, true, &[batch("soon", 2 * MS), batch("late", 8 * MS)]);
    world.add_process(2, 1, true, &[]);
    let endpoint = &world.processes[0].shards[0].endpoint;
    let client = world.processes[1].client.clone();
    let peer: Peer = client.connect(endpoint).unwrap();
    world.pass(20 * MS, |_| {});
    let send = |handler: &str, bytes: usize| {
        let message = client.message(handler).raw(vec![0; bytes]).to(&peer);
        message.confirm().send().unwrap()
    };
    let mut calls = Vec::new();
    for round in 0..3 {
        let done = 4 * round;
        calls.extend([send("soon", 1), send("late", 1)]);
        world.pass(MS, |_| {});
        assert_eq!(peer.account().handled, done, "none is due");
        world.pass(2 * MS, |_| {});
        assert_eq!(peer.account().handled, done + 1, "one is");
        world.pass(7 * MS, |_| {});
        assert_eq!(peer.account().handled, done + 2);
        calls.extend([send("late", 5), send("late", 5)]);
        world.pass(MS, |_| {});
        assert_eq!(peer.account().handled, done + 4, "it is full");
    }
}
