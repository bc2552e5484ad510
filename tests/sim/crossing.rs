//! Messages that another shard runs, step by step, where that shard is slow to take them.

use std::time::Duration;

use corelane::{
    engine::sim::Weather,
    shard::{ShardOptions, Shedding},
    wire::{HandlerKey, Header, Hello, Kind, Reason},
};
use fastrand::Rng;
use uuid::Uuid;

use crate::{
    handlers::{ORDER_BYTES, Order, Runs},
    process::Plan,
    scenario::random_limits,
    stranger::Stranger,
    world::World,
};

const MS: Duration = Duration::from_millis(1);
const HOST: &str = "here";
/// What takes longer has waited too long.
const TARGET: Duration = Duration::from_millis(5);

/// A process of two shards, and how many messages its ring takes.
fn world(ring_capacity: usize, shedding: Option<Shedding>) -> (World, Runs) {
    world_with(ring_capacity, shedding, 1 << 20)
}

/// As [`world`], with so many bytes that a shard may hold.
fn world_with(
    ring_capacity: usize,
    shedding: Option<Shedding>,
    buffered_bytes_max: usize,
) -> (World, Runs) {
    let mut limits = random_limits(&mut Rng::with_seed(0));
    limits.shard = ShardOptions {
        turn_messages_max: 16,
        outgoing_messages_max: 100,
        outgoing_bytes_max: 100_000,
        inbox_capacity: 100,
        buffered_bytes_max,
        shedding,
        ..limits.shard
    };
    (limits.outgoing_messages_max, limits.outgoing_bytes_max) = (100, 100_000);
    limits.ring_capacity = ring_capacity;
    limits.heartbeat_timeout = Duration::from_secs(10);
    let mut world = World::new(0, Weather::default(), limits);
    let runs = Runs::new(world.mock.clone());
    let plan = Plan {
        first_cpu: 0,
        tells_shards: true,
        instance: Uuid::from_u128(1),
        endpoints: vec!["tcp://127.0.0.1:0".to_owned(); 2],
        host: HOST.to_owned(),
    };
    world.start(plan, &runs.handlers());
    (world, runs)
}

/// So many calls at once. Each takes a millisecond if it spins.
fn call(stranger: &mut Stranger, handler: &str, count: u64) {
    let order = Order::returning(10_000);
    for correlation in 0..count {
        let header = Header {
            handler: HandlerKey::of(handler),
            deadline_us: 1_000_000,
            ..Header::new(Kind::Confirm, correlation)
        };
        stranger.say(&header, &order.encode());
    }
}

/// The time in the ring counts, of which the shard that runs them sees nothing.
#[test]
fn what_has_waited_in_a_ring_is_as_old_as_it_is() {
    for (stalls, ran) in [(TARGET / 10, 4), (2 * TARGET, 1)] {
        let shedding = Shedding {
            target: TARGET,
            after: MS / 10,
        };
        let (mut world, runs) = world(100, Some(shedding));
        let (mut stranger, _peer) = Stranger::dialed(&mut world);
        let until = world.now() + stalls;
        world.stall(0, Some(1), until);
        call(&mut stranger, "spin.last", 4);
        stranger.pass(&mut world, 50 * MS);
        assert_eq!(runs.take().len(), ran, "after {stalls:?}");
        assert_eq!(stranger.count(Kind::Ack), ran);
        let refused = stranger.heard.iter();
        let refused = refused.filter(|it| it.1.reason == Reason::Overloaded);
        assert_eq!(refused.count(), 4 - ran);
    }
}

/// A connection that brings answers, too, is read on whatever happens: nothing of it is held.
#[test]
fn what_a_full_ring_does_not_take_of_a_dialed_peer_is_refused() {
    let (mut world, runs) = world(2, None);
    let (mut stranger, _peer) = Stranger::dialed(&mut world);
    let until = world.now() + 20 * MS;
    world.stall(0, Some(1), until);
    call(&mut stranger, "run.last", 5);
    stranger.pass(&mut world, 5 * MS);
    let depths = world.processes[0].shards[0].depths().unwrap();
    assert_eq!((depths.held, depths.away), (0, 2));
    assert_eq!(stranger.count(Kind::Nack), 3);
    stranger.pass(&mut world, 50 * MS);
    assert_eq!((runs.take().len(), stranger.count(Kind::Ack)), (2, 2));
}

/// By such a connection nobody is sent to yet, and so it is held back; but as it was dialed it is
/// read on, and no more than one message of it may be held.
#[test]
fn no_more_than_one_message_is_held_of_a_connection_that_is_tried() {
    let (mut world, runs) = world(2, None);
    let (mut tcp, mut ipc) = (
        Stranger::new(&world),
        Stranger::at(&world, "ipc:///of/the/strangers"),
    );
    let client = world.processes[0].client.clone().with_prefer_ipc(true);
    let _peer = client.connect_from(0, &tcp.endpoint).unwrap();
    tcp.pass(&mut world, 5 * MS);
    let hello = Hello {
        host: HOST.to_owned(),
        endpoints: vec![tcp.endpoint.clone(), ipc.endpoint.clone()],
        shards: 1,
        shard: Some(0),
        ..Hello::of_instance(Uuid::from_u128(100))
    };
    tcp.say(&Header::new(Kind::Welcome, 0), &hello.encode());
    tcp.pass(&mut world, MS / 2);
    ipc.pass(&mut world, MS);
    assert_eq!(ipc.count(Kind::Hello), 1, "it is tried");

    let until = world.now() + 20 * MS;
    world.stall(0, Some(1), until);
    call(&mut ipc, "run.last", 5);
    ipc.pass(&mut world, 5 * MS);
    let depths = world.processes[0].shards[0].depths().unwrap();
    assert_eq!((depths.held, depths.away), (1, 2));
    assert_eq!(ipc.count(Kind::Nack), 2);
    ipc.pass(&mut world, 50 * MS);
    assert_eq!((runs.take().len(), ipc.count(Kind::Ack)), (3, 3));
}

/// More bytes than a shard may hold pass alone; held back they cannot be, where all is read.
#[test]
fn what_is_larger_than_a_shard_may_hold_crosses_alone() {
    let (mut world, runs) = world_with(2, None, ORDER_BYTES - 1);
    let (mut stranger, _peer) = Stranger::dialed(&mut world);
    call(&mut stranger, "run.last", 2);
    stranger.pass(&mut world, 5 * MS);
    assert_eq!(runs.take().len(), 1);
    assert_eq!(
        (stranger.count(Kind::Ack), stranger.count(Kind::Nack)),
        (1, 1)
    );
}

/// It is for the deadline then; a cancel that has not left must not be waited for.
#[test]
fn a_cancel_for_which_a_ring_has_no_room_is_dropped() {
    let (mut world, runs) = world(2, None);
    let (mut stranger, _peer) = Stranger::dialed(&mut world);
    let until = world.now() + 20 * MS;
    world.stall(0, Some(1), until);
    call(&mut stranger, "run.last", 2);
    stranger.say(&Header::new(Kind::Cancel, 1), &[]);
    stranger.pass(&mut world, 5 * MS);
    let away = |world: &World| world.processes[0].shards[0].depths().unwrap().away;
    assert_eq!(away(&world), 2);
    stranger.pass(&mut world, 50 * MS);
    assert_eq!((runs.take().len(), away(&world)), (2, 0));
}
