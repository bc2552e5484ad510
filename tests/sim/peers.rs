//! Calls to processes that have connected, by their own connections, while those are cut.

use std::{
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use corelane::{
    client::{Peer, RawReply, RemoteAnswer},
    engine::sim::Weather,
    error::{CallError, Indeterminate, NotSent},
    events::{Event, NoEvent},
    handler::{Handler, inline_raw},
    wire::{Header, Hello, Kind},
};
use uuid::Uuid;

use crate::{scenario, stranger::Stranger, world::World};

type Call = corelane::client::Call<RawReply, RemoteAnswer>;

/// How often each end must have come about over all seeds, or they would show nothing.
const ENDS_MIN: usize = 5;

#[test]
fn calls_by_accepted_connections_end_once_and_are_accounted_for() {
    let mut ends = [0; 4];
    for seed in 0..60 {
        let counts = call_the_caller(seed);
        for (sum, count) in ends.iter_mut().zip(counts) {
            *sum += count;
        }
    }
    for (end, name) in ends.iter().zip(["answered", "lost", "away", "late"]) {
        assert!(*end >= ENDS_MIN, "{name} came about only {end} times");
    }
}

fn echo() -> Handler {
    inline_raw("echo", |payload, reply, _cx| {
        reply.extend_from_slice(payload);
        Ok(())
    })
}

fn call_the_caller(seed: u64) -> [usize; 4] {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut limits = scenario::random_limits(&mut random);
    limits.shard.message_bytes_max = 1 << 20;
    let mut world = World::new(seed, Weather::default(), limits);
    world.add_process(0, 1, true, &[echo()]);
    world.add_process(16, 1, true, &[echo()]);
    let endpoint = world.processes[1].shards[0].endpoint.clone();
    let dialed = world.processes[0].client.connect(&endpoint).unwrap();
    run_for(&mut world, Duration::from_millis(50));

    let client = world.processes[1].client.clone();
    let mut peer: Option<Peer> = None;
    let (mut calls, mut counts): (Vec<Call>, _) = (Vec::new(), [0; 4]);
    let mut ended = Vec::new();
    for _ in 0..200 {
        match random.u8(..) {
            0..8 => world.network.cut_all(),
            8..16 => peer = None,
            _ => {
                let found = client.peer(Uuid::from_u128(0));
                peer = peer.or(found.ok());
                if let Some(peer) = &peer {
                    let message = client.message("echo").raw(vec![1; random.usize(..2_000)]);
                    let request = message.to(peer).request();
                    calls.extend(request.within(Duration::from_millis(20)).send());
                }
            }
        }
        run_for(&mut world, Duration::from_micros(random.u64(..300)));
        poll_all(&mut calls, &mut ended);
    }
    run_for(&mut world, Duration::from_secs(1));
    poll_all(&mut calls, &mut ended);
    assert!(
        calls.is_empty(),
        "seed {seed}: {} calls never end",
        calls.len()
    );
    for end in ended {
        let at = match end {
            Ok(_) => 0,
            Err(CallError::Indeterminate(Indeterminate::ConnectionLost)) => 1,
            Err(CallError::NotSent(error)) if error.why == NotSent::ConnectionLost => 1,
            Err(CallError::NotSent(error)) if error.why == NotSent::NotConnected => 2,
            Err(CallError::Indeterminate(Indeterminate::Deadline)) => 3,
            Err(CallError::NotSent(error)) => {
                let is_expected = matches!(error.why, NotSent::Deadline | NotSent::Outstanding);
                assert!(is_expected, "seed {seed}: {error}");
                3
            }
            // Its handle was dropped, and as much time has passed.
            Err(CallError::Indeterminate(Indeterminate::Stopped)) => 3,
            Err(other) => panic!("seed {seed}: {other}"),
        };
        counts[at] += 1;
    }
    // All that was taken has ended, and no credit is kept.
    let peer = client
        .peer(Uuid::from_u128(0))
        .expect("has connected again");
    let account = peer.account();
    assert_eq!(
        account.accepted,
        account.settled(),
        "seed {seed}: {account:?}"
    );
    let all = (0..limits.outgoing_messages_max).map(|_| {
        let message = client.message("echo").raw("again").to(&peer);
        message.one_way()
    });
    let room = all.take_while(Result::is_ok).count();
    let bounds = [
        limits.shard.inbox_capacity,
        limits.outgoing_messages_max,
        limits.outgoing_bytes_max / "again".len(),
    ];
    let most = bounds.into_iter().min().expect("there are some");
    assert!(room >= most, "seed {seed}: {room} of {most}");
    drop(dialed);
    counts
}

/// A process is dialed and let go in one breath: its welcome comes after, and has what waits go by
/// a connection to a further shard, which must end with the others.
#[test]
fn a_link_that_is_begun_after_the_last_handle_went_is_closed_with_it() {
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut limits = scenario::random_limits(&mut random);
        // A handle that finds the inbox full closes nothing.
        limits.shard.inbox_capacity = 20;
        let mut world = World::new(seed, Weather::default(), limits);
        world.add_process(0, 1, true, &[]);
        world.add_process(16, 2, true, &[echo().on_last_shard()]);
        let endpoint = world.processes[1].shards[0].endpoint.clone();
        let client = world.processes[0].client.clone();
        let dialed = client.connect(&endpoint).unwrap();
        let message = client.message("echo").raw("x").to(&dialed);
        message.one_way().unwrap();
        drop(dialed);
        run_for(
            &mut world,
            limits.shard.close_within + Duration::from_secs(1),
        );
        let left = world.processes[1].client.peers();
        assert!(left.is_empty(), "seed {seed}: {left:?}");
    }
}

/// The peer connects once more just as its last handle goes: whoever speaks of it then is heard.
#[test]
fn who_connects_as_its_last_handle_goes_is_sent_to_again() {
    for seed in 0..20 {
        for rounds in 0..12 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut limits = scenario::random_limits(&mut random);
            limits.shard.message_bytes_max = 1 << 20;
            limits.shard.inbox_capacity = 20;
            let mut world = World::new(seed, Weather::default(), limits);
            world.add_process(0, 1, true, &[echo()]);
            world.add_process(16, 1, true, &[echo()]);
            let endpoint = world.processes[1].shards[0].endpoint.clone();
            let caller = world.processes[0].client.clone();
            let client = world.processes[1].client.clone();
            let _dialed = caller.connect(&endpoint).unwrap();
            run_for(&mut world, Duration::from_millis(50));
            let peer = client.peer(Uuid::from_u128(0)).unwrap();
            run_for(&mut world, Duration::from_millis(1));
            let _again = caller.connect(&endpoint).unwrap();
            for _ in 0..rounds {
                world.turn_all();
                world.mock.increment(Duration::from_micros(10));
            }
            let message = client.message("echo").raw("x").to(&peer);
            message.one_way().unwrap();
            drop(peer);
            run_for(&mut world, limits.shard.close_within * 3);
            let peer = client.peer(Uuid::from_u128(0)).unwrap();
            let call = client.message("echo").raw("x").to(&peer).request();
            let mut calls = vec![call.within(Duration::from_secs(1)).send().unwrap()];
            run_for(&mut world, Duration::from_secs(2));
            let mut ended = Vec::new();
            poll_all(&mut calls, &mut ended);
            let [Ok(_)] = &ended[..] else {
                panic!("seed {seed}, {rounds} rounds: {ended:?}");
            };
        }
    }
}

/// It says goodbye again and again, and comes back.
#[test]
fn a_dialed_peer_is_told_of_as_it_comes_drains_and_goes() {
    let mut limits = scenario::random_limits(&mut fastrand::Rng::with_seed(0));
    (limits.outgoing_messages_max, limits.outgoing_bytes_max) = (100, 100_000);
    limits.shard.outgoing_messages_max = 100;
    limits.heartbeat_timeout = Duration::from_secs(1);
    let mut world = World::new(0, Weather::default(), limits);
    world.add_process(0, 1, true, &[]);
    let mut stranger = Stranger::new(&world);
    let client = world.processes[0].client.clone();
    let mut events = client.events();
    let _peer = client.connect(&stranger.endpoint).unwrap();
    let instance = Uuid::from_u128(7);
    let hello = Hello::of_instance(instance).encode();
    let step = Duration::from_millis(5);
    for _ in 0..3 {
        stranger.pass(&mut world, Duration::from_millis(30));
        stranger.say(&Header::new(Kind::Welcome, 0), &hello);
        stranger.pass(&mut world, step);
        let Ok(Event::Up(up)) = events.try_recv() else {
            panic!("it has come");
        };
        assert_eq!(up.instance, instance);
        let known = client.peers();
        assert_eq!(known[0].connections, std::slice::from_ref(&up));
        for _ in 0..3 {
            stranger.say(&Header::new(Kind::Goodbye, 0), &[]);
            stranger.pass(&mut world, step);
        }
        assert_eq!(events.try_recv(), Ok(Event::Draining(up.clone())));
        assert_eq!(events.try_recv(), Err(NoEvent::Yet));
        world.network.cut_all();
        stranger.pass(&mut world, step / 5);
        let Ok(Event::Down { peer, .. }) = events.try_recv() else {
            panic!("it has gone");
        };
        assert_eq!(peer, up);
        assert_eq!(client.peers(), []);
    }
}

fn run_for(world: &mut World, time: Duration) {
    let until = world.now() + time;
    loop {
        world.settle(|_| {});
        if !world.advance(until) {
            return world.settle(|_| {});
        }
    }
}

fn poll_all(calls: &mut Vec<Call>, ended: &mut Vec<Result<Bytes, CallError>>) {
    let mut cx = Context::from_waker(Waker::noop());
    calls.retain_mut(|call| match pin!(call).poll(&mut cx) {
        Poll::Pending => true,
        Poll::Ready(end) => {
            ended.push(end);
            false
        }
    });
}
