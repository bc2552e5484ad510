//! What a shard holds, step by step, where its limits say how much that may be.

use std::time::Duration;

use corelane::{
    client::Peer,
    engine::{Engine, sim::Weather},
    shard::ShardOptions,
    wire::{HandlerKey, Header, Kind},
};
use fastrand::Rng;

use crate::{
    handlers::{Conduct, ORDER_BYTES, Order, Runs},
    scenario::random_limits,
    stranger::Stranger,
    world::World,
};

const CONNECTIONS: usize = 5;
const EACH: usize = 10;

/// The ring has room for all, the shard's memory has not; and the shard that they go to does
/// nothing for a while.
#[test]
fn what_goes_to_another_shard_stays_within_the_bytes_that_a_shard_may_hold() {
    let mut limits = random_limits(&mut Rng::with_seed(0));
    limits.shard = ShardOptions {
        turn_messages_max: 16,
        outgoing_messages_max: 100,
        outgoing_bytes_max: 100_000,
        inbox_capacity: 100,
        buffered_bytes_max: 2 * ORDER_BYTES,
        ..limits.shard
    };
    (limits.outgoing_messages_max, limits.outgoing_bytes_max) = (100, 100_000);
    limits.ring_capacity = 100;
    limits.heartbeat_timeout = Duration::from_secs(1);
    let mut world = World::new(0, Weather::default(), limits);
    let runs = Runs::new(world.mock.clone());
    world.add_process(0, 2, false, &runs.handlers());
    world.add_process(2, 1, true, &[]);
    let endpoint = world.processes[0].shards[0].endpoint.clone();
    let client = world.processes[1].client.clone();
    let connect = |_| client.connect(&endpoint).unwrap();
    let peers: Vec<Peer> = (0..CONNECTIONS).map(connect).collect();
    world.pass(Duration::from_millis(10), |_| {});

    let until = world.now() + Duration::from_millis(10);
    world.stall(0, Some(1), until);
    for sequence in 0..EACH {
        for (lane, peer) in peers.iter().enumerate() {
            let order = order(lane as u32, sequence as u32);
            let message = client.message("run.last").raw(order.encode().to_vec());
            message.to(peer).one_way().unwrap();
        }
    }
    let mut most = 0;
    world.pass(Duration::from_millis(50), |world| {
        let depths = world.processes[0].shards[0].depths().unwrap();
        assert!(depths.away <= 2 && depths.held <= CONNECTIONS, "{depths:?}");
        most = most.max(depths.held);
    });
    assert_eq!(most, CONNECTIONS, "each connection was held back");
    assert_eq!(runs.take().len(), CONNECTIONS * EACH, "and went on");
}

/// The process has dialed, and what it has dialed it always reads: a peer that calls there and
/// takes no answers gets no more of them into memory than the outbox holds.
#[test]
fn who_takes_no_answers_does_not_fill_the_memory_of_whoever_dialed_it() {
    let mut limits = random_limits(&mut Rng::with_seed(0));
    limits.shard = ShardOptions {
        turn_messages_max: 16,
        outgoing_messages_max: 8,
        outgoing_bytes_max: 100_000,
        buffered_bytes_max: 1 << 20,
        ..limits.shard
    };
    (limits.outgoing_messages_max, limits.outgoing_bytes_max) = (8, 100_000);
    (limits.ring_capacity, limits.slow_consumer) = (3, Duration::from_secs(1));
    limits.heartbeat_timeout = Duration::from_secs(1);
    let weather = Weather {
        in_flight_max: 1,
        ..Weather::default()
    };
    let mut world = World::new(0, weather, limits);
    let runs = Runs::new(world.mock.clone());
    world.add_process(0, 2, true, &runs.handlers());
    let (mut stranger, _peer) = Stranger::dialed(&mut world);

    let mut most = 0;
    for correlation in 1..=100 {
        let header = Header {
            handler: HandlerKey::of("run.last"),
            deadline_us: 1_000_000,
            ..Header::new(Kind::Confirm, correlation)
        };
        stranger.say(&header, &order(0, correlation as u32).encode());
        stranger.engine.flush(world.now());
        world.pass(Duration::from_micros(200), |world| {
            most = most.max(world.plant.outbox_most());
        });
    }
    assert!((8..=16).contains(&most), "{most} messages in an outbox");
    let ran = runs.take().len();
    assert!((8..=16).contains(&ran), "{ran} have run");
    // What had no room for an answer is lost, in its handler's account, too.
    world.drain(0, Duration::ZERO);
    world.pass(Duration::from_millis(1), |_| {});
    let (total, metrics) = world.processes[0].last_words();
    let mut handlers = metrics.handlers();
    let of_it = handlers.find(|it| it.name == "run.last").unwrap().counters;
    assert_eq!((total.accepted, total.handled), (100, ran as u64));
    assert_eq!(total.lost + total.nacked(), 100 - ran as u64);
    assert_eq!((of_it.handled, of_it.lost), (total.handled, total.lost));
    assert_eq!(of_it.refused(), total.nacked());
    assert!(total.lost > 0);
}

fn order(lane: u32, sequence: u32) -> Order {
    Order {
        id: 0,
        lane,
        sequence,
        conduct: Conduct::Return,
        takes_us: 0,
    }
}
