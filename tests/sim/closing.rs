//! Connections that are not to be kept or not to be had, and what was to go by them.

use std::time::Duration;

use corelane::{
    engine::sim::Weather,
    events::Event,
    handler::inline_raw,
    wire::{HandlerEntry, Header, Hello, Kind},
};
use fastrand::Rng;
use uuid::Uuid;

use crate::{scenario::random_limits, stranger::Stranger, world::World};

const MS: Duration = Duration::from_millis(1);
const MESSAGES: usize = 5;

/// It is patient with a peer that takes one message at a time, as long as it says.
#[test]
fn what_was_sent_leaves_before_its_connection_is_closed_or_is_given_up_in_time() {
    for (listens_in_time, heard) in [(true, MESSAGES), (false, 0)] {
        let (mut world, mut stranger) = bench();
        let patience = world.limits.shard.close_within;
        let client = world.processes[0].client.clone();
        let peer = client.connect(&stranger.endpoint).unwrap();
        // It does without a welcome by then.
        stranger.pass(&mut world, 300 * MS);
        for _ in 0..MESSAGES {
            let message = client.message("any").raw("x").to(&peer);
            message.one_way().unwrap();
        }
        drop(peer);
        let silent = match listens_in_time {
            true => patience / 2,
            false => patience + MS,
        };
        world.pass(silent, |_| {});
        stranger.pass(&mut world, patience);
        assert_eq!(stranger.count(Kind::OneWay), heard);
        // One that is still dialed would have come up again by then.
        stranger.pass(&mut world, Duration::from_secs(1));
        assert_eq!(stranger.up.len(), 1);
        assert_eq!(client.peers(), []);
    }
}

#[test]
fn who_is_let_go_of_is_told_of_as_gone() {
    let (mut world, mut stranger) = bench();
    let client = world.processes[0].client.clone();
    let mut events = client.events();
    let peer = client.connect(&stranger.endpoint).unwrap();
    stranger.pass(&mut world, 5 * MS);
    let hello = Hello::of_instance(Uuid::from_u128(7)).encode();
    stranger.say(&Header::new(Kind::Welcome, 0), &hello);
    stranger.pass(&mut world, 5 * MS);
    assert!(matches!(events.try_recv(), Ok(Event::Up(_))));
    drop(peer);
    stranger.pass(&mut world, 5 * MS);
    let event = events.try_recv();
    assert!(matches!(event, Ok(Event::Down { .. })), "{event:?}");
}

/// Who has said goodbye is not sent to, welcome or not.
#[test]
fn a_goodbye_ends_the_wait_for_a_welcome() {
    let (mut world, mut stranger) = bench();
    let client = world.processes[0].client.clone();
    let peer = client.connect(&stranger.endpoint).unwrap();
    stranger.pass(&mut world, 5 * MS);
    stranger.say(&Header::new(Kind::Goodbye, 0), &[]);
    stranger.pass(&mut world, 300 * MS);
    let sent = client.message("any").raw("x").to(&peer).one_way();
    stranger.pass(&mut world, 300 * MS);
    assert_eq!(stranger.count(Kind::OneWay), 0, "{sent:?}");
}

/// A shard of the peer's is not to be reached: what is for it goes by the main connection, at once
/// if no connection can be begun, or after a while.
#[test]
fn what_is_for_a_shard_that_is_not_reached_goes_by_the_main_connection() {
    for is_refused in [true, false] {
        let (mut world, mut stranger) = bench();
        let far = inline_raw("far", |_, _, _| Ok(())).on_last_shard();
        let client = world.processes[0].client.clone();
        let peer = client.connect(&stranger.endpoint).unwrap();
        stranger.pass(&mut world, 5 * MS);
        let hello = Hello {
            endpoints: vec![stranger.endpoint.clone(), "tcp://127.0.0.1:9".to_owned()],
            shards: 2,
            shard: Some(0),
            handlers: vec![HandlerEntry::new(far.name(), far.affinity(2))],
            ..Hello::of_instance(Uuid::from_u128(7))
        };
        if is_refused {
            world.plant.refuse_connections(1);
        }
        stranger.say(&Header::new(Kind::Welcome, 0), &hello.encode());
        stranger.pass(&mut world, 5 * MS);
        let message = client.message("far").raw("x").to(&peer);
        message.one_way().unwrap();
        stranger.pass(&mut world, 100 * MS);
        let at_once = usize::from(is_refused);
        assert_eq!(stranger.count(Kind::OneWay), at_once);
        stranger.pass(&mut world, Duration::from_secs(1));
        assert_eq!(stranger.count(Kind::OneWay), 1, "refused: {is_refused}");
    }
}

/// A process that serves nothing, and what it may dial.
fn bench() -> (World, Stranger) {
    let mut limits = random_limits(&mut Rng::with_seed(0));
    limits.shard.outgoing_messages_max = 100;
    limits.shard.inbox_capacity = 100;
    (limits.outgoing_messages_max, limits.outgoing_bytes_max) = (100, 100_000);
    limits.heartbeat_timeout = Duration::from_secs(10);
    limits.slow_consumer = Duration::from_secs(10);
    let weather = Weather {
        in_flight_max: 1,
        ..Weather::default()
    };
    let mut world = World::new(0, weather, limits);
    world.add_process(0, 1, true, &[]);
    let stranger = Stranger::new(&world);
    (world, stranger)
}
