//! What ends a drain and what it waits for, what becomes of what comes meanwhile, and of answers
//! that wait as its time is over: step by step.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use corelane::{
    client::{Peer, RawReply, RemoteAnswer},
    engine::sim::Weather,
    error::{CallError, NotSent},
    events::NoEvent,
    handler::{Handler, inline_raw, spawned_raw},
    metrics::Counters,
    shard::ShardOptions,
    wire::{Header, Hello, Kind, Reason},
};
use fastrand::Rng;
use uuid::Uuid;

use crate::{
    handlers::{Conduct, Order, Runs},
    load::{Mode, Sent},
    scenario::random_limits,
    stranger::Stranger,
    world::{Limits, World},
};

const MS: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(1);

fn wide_limits() -> Limits {
    let mut limits = random_limits(&mut Rng::with_seed(0));
    limits.shard = ShardOptions {
        turn_messages_max: 100,
        outstanding_max: 100,
        outgoing_messages_max: 100,
        outgoing_bytes_max: 100_000,
        spawned_max: 100,
        inbox_capacity: 100,
        buffered_bytes_max: 1 << 20,
        shedding: None,
        ..limits.shard
    };
    (limits.outgoing_messages_max, limits.outgoing_bytes_max) = (100, 100_000);
    (limits.heartbeat_timeout, limits.slow_consumer) = (LONG, LONG);
    limits.handshake = LONG;
    limits.ring_capacity = 1;
    limits
}

/// Process 0 serves, by two shards that it does not tell of; process 1 has connections to the
/// first.
struct Bench {
    world: World,
    peers: Vec<Peer>,
}

type Call = corelane::client::Call<RawReply, RemoteAnswer>;

impl Bench {
    fn new(weather: Weather, connections: usize) -> Self {
        let mut world = World::new(0, weather, wide_limits());
        let echo = |name| {
            inline_raw(name, |payload, reply, _cx| {
                reply.extend_from_slice(payload);
                Ok(())
            })
        };
        let nap = |name| {
            spawned_raw(name, |payload: Bytes, cx| async move {
                cx.sleep(100 * MS).await;
                Ok(payload)
            })
        };
        let handlers: [Handler; 4] = [
            echo("echo"),
            echo("echo.last").on_last_shard(),
            nap("nap"),
            nap("nap.last").on_last_shard(),
        ];
        world.add_process(0, 2, false, &handlers);
        world.add_process(2, 1, true, &handlers);
        let endpoint = world.processes[0].shards[0].endpoint.clone();
        let client = world.processes[1].client.clone();
        let connect = |_| client.connect(&endpoint).unwrap();
        let peers = (0..connections).map(connect).collect();
        world.pass(10 * MS, |_| {});
        Self { world, peers }
    }

    fn ask(&self, peer: usize, handler: &str) -> Call {
        let message = self.world.processes[1].client.message(handler).raw("x");
        let request = message.to(&self.peers[peer]).request();
        request.within(LONG).send().unwrap()
    }

    fn pass(&mut self, time: Duration) {
        self.world.pass(time, |_| {});
    }

    fn is_over(&self) -> bool {
        self.world.processes[0].shards.iter().all(|it| it.is_over())
    }

    fn total(&self) -> Counters {
        self.world.processes[0].last_words().0
    }
}

/// How a call has ended, if it has.
fn end(call: &mut Call) -> Option<Result<Bytes, CallError>> {
    let mut cx = Context::from_waker(Waker::noop());
    match Pin::new(call).poll(&mut cx) {
        Poll::Ready(reply) => Some(reply),
        Poll::Pending => None,
    }
}

fn is_nack(end: &Option<Result<Bytes, CallError>>, expected: Reason) -> bool {
    matches!(end, Some(Err(CallError::Nack { reason, .. })) if *reason == expected)
}

/// The shard that they are for stands still for longer than a drain lingers; the ring there has
/// room for one of them.
#[test]
fn a_drain_waits_for_what_has_gone_to_another_shard_or_is_to() {
    for connections in [1, 3] {
        let mut it = Bench::new(Weather::default(), connections);
        let until = it.world.now() + 100 * MS;
        it.world.stall(0, Some(1), until);
        let ask = |peer| it.ask(peer, "echo.last");
        let mut calls: Vec<Call> = (0..connections).map(ask).collect();
        it.pass(MS);
        let depths = it.world.processes[0].shards[0].depths().unwrap();
        assert_eq!((depths.away, depths.held), (1, connections - 1));
        it.world.drain(0, LONG);
        // Who comes now finds nobody listening.
        let endpoint = it.world.processes[0].shards[0].endpoint.clone();
        it.world.add_process(9, 1, true, &[]);
        let late = it.world.processes[2].client.clone();
        let mut events = late.events();
        let _peer = late.connect(&endpoint).unwrap();
        it.pass(120 * MS);
        assert_eq!(events.try_recv(), Err(NoEvent::Yet));
        let draining = calls.iter_mut().filter_map(|call| match end(call) {
            Some(Err(CallError::Nack { reason, .. })) => Some(reason),
            _ => None,
        });
        assert_eq!(
            draining.collect::<Vec<_>>(),
            vec![Reason::Draining; connections]
        );
        assert!(!it.is_over(), "it has just answered");
        it.pass(50 * MS);
        assert!(it.is_over(), "and waits no longer");
        let total = it.total();
        assert_eq!(
            (total.accepted, total.nacked()),
            (connections as u64, connections as u64)
        );
    }
}

/// What is held back for it is refused, and what it had begun is not waited for.
#[test]
fn a_shard_that_has_ended_keeps_no_other_waiting() {
    let mut it = Bench::new(Weather::default(), 3);
    let _begun = it.ask(0, "nap.last");
    it.pass(MS);
    let until = it.world.now() + 10 * MS;
    it.world.stall(0, Some(1), until);
    let ask = |peer| it.ask(peer, "echo.last");
    let mut calls: Vec<Call> = (0..3).map(ask).collect();
    it.pass(MS);
    let depths = it.world.processes[0].shards[0].depths().unwrap();
    assert_eq!((depths.away, depths.held), (2, 2));
    let now = it.world.now();
    it.world.processes[0].shards[1].drain(now);
    it.pass(20 * MS);
    for call in &mut calls {
        let ended = end(call);
        assert!(is_nack(&ended, Reason::Draining), "{ended:?}");
    }
    let until = it.world.now() + LONG;
    it.world.processes[0].shards[0].drain(until);
    it.pass(100 * MS);
    assert!(it.is_over());
    let total = it.total();
    let counted = (total.accepted, total.nacked(), total.indeterminate);
    assert_eq!(counted, (4, 3, 1));
}

/// It has asked before it was told to stop, and asks nothing new.
#[test]
fn a_drain_waits_for_answers_and_sends_nothing_new() {
    let mut it = Bench::new(Weather::default(), 1);
    let client = it.world.processes[1].client.clone();
    let mut call = it.ask(0, "nap");
    it.pass(MS);
    it.world.drain(1, LONG);
    it.world.turn_all();
    let mut refused = it.ask(0, "nap");
    let local = it.world.processes[1].shards[0].client().unwrap();
    let message = || local.message("nap").raw("own").to(&it.peers[0]);
    let own = [
        message().one_way().unwrap_err(),
        message().request().send().unwrap_err(),
    ];
    assert!(
        own.iter()
            .all(|it| it.why == NotSent::Closed && it.payload == "own")
    );
    it.pass(200 * MS);
    match end(&mut refused) {
        Some(Err(CallError::NotSent(error))) => assert_eq!(error.why, NotSent::Closed),
        other => panic!("{other:?}"),
    }
    assert_eq!(end(&mut call), Some(Ok("x".into())));
    assert!(it.world.processes[1].shards[0].is_over());
    let (total, _) = it.world.processes[1].last_words();
    assert_eq!((total.answered, total.not_sent), (1, 1));
    drop(client);
}

/// What is on its way as it begins to drain.
#[test]
fn what_comes_before_the_goodbye_is_heard_is_nacked() {
    let slow = Weather {
        delay_min: 10 * MS,
        delay_max: 11 * MS,
        ..Weather::default()
    };
    let mut it = Bench::new(slow, 1);
    it.pass(100 * MS);
    it.world.drain(0, LONG);
    it.world.turn_all();
    let mut call = it.ask(0, "echo");
    it.pass(200 * MS);
    let ended = end(&mut call);
    assert!(is_nack(&ended, Reason::Draining), "{ended:?}");
    assert_eq!(it.total().accepted, 1);
}

/// The caller stands still for longer than a drain lingers, and few answers are under way at once.
#[test]
fn a_drain_waits_for_a_peer_to_take_its_answers() {
    let narrow = Weather {
        in_flight_max: 2,
        ..Weather::default()
    };
    let mut it = Bench::new(narrow, 1);
    let mut calls: Vec<Call> = (0..8).map(|_| it.ask(0, "nap")).collect();
    it.pass(50 * MS);
    let until = it.world.now() + 150 * MS;
    it.world.stall(1, None, until);
    it.world.drain(0, LONG);
    it.pass(400 * MS);
    for call in &mut calls {
        assert_eq!(end(call), Some(Ok("x".into())));
    }
    assert_eq!(it.total().handled, 8);
}

/// The shorter of two times counts, and whoever asked is told.
#[test]
fn a_second_drain_does_not_prolong_the_first() {
    for within in [[30 * MS, 80 * MS], [80 * MS, 30 * MS]] {
        let mut it = Bench::new(Weather::default(), 1);
        let mut call = it.ask(0, "nap");
        it.pass(MS);
        for within in within {
            it.world.drain(0, within);
            it.pass(MS);
        }
        it.pass(25 * MS);
        assert!(!it.is_over());
        it.pass(10 * MS);
        assert!(it.is_over());
        assert_eq!(it.total().indeterminate, 1);
        assert!(end(&mut call).is_some_and(|it| it.is_err()));
    }
}

/// It was dialed, and had not said who it is when the others were told.
#[test]
fn who_says_hello_to_a_draining_process_is_told_so() {
    let mut world = World::new(0, Weather::default(), wide_limits());
    let nap = spawned_raw("nap", |payload: Bytes, cx| async move {
        cx.sleep(100 * MS).await;
        Ok(payload)
    });
    world.add_process(0, 1, true, &[nap]);
    let (mut stranger, _peer) = Stranger::dialed(&mut world);
    let nap = Header {
        handler: "nap".into(),
        deadline_us: 1_000_000,
        ..Header::new(Kind::Request, 1)
    };
    stranger.say(&nap, b"");
    stranger.pass(&mut world, 5 * MS);
    world.drain(0, LONG);
    stranger.pass(&mut world, 5 * MS);
    assert_eq!(stranger.count(Kind::Goodbye), 0, "nobody knows it");
    let hello = Hello::of_instance(Uuid::from_u128(7)).encode();
    stranger.say(&Header::new(Kind::Hello, 2), &hello);
    stranger.pass(&mut world, 5 * MS);
    let told = (stranger.count(Kind::Welcome), stranger.count(Kind::Goodbye));
    assert_eq!(told, (1, 1));
}

/// The process stands still until both the deadline and the drain's time have passed, and its
/// connection takes no answer then: the message has not run, and is not said to have, perhaps.
#[test]
fn what_was_too_late_for_its_batch_is_lost_and_not_indeterminate() {
    let mut world = World::new(0, Weather::default(), wide_limits());
    let runs = Runs::new(world.mock.clone());
    world.add_process(0, 2, false, &runs.handlers());
    world.add_process(2, 1, true, &[]);
    let endpoint = world.processes[0].shards[0].endpoint.clone();
    let client = world.processes[1].client.clone();
    let peer = client.connect(&endpoint).unwrap();
    world.pass(10 * MS, |_| {});

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
    world.pass(100 * MS / 1_000, |_| {});
    let until = world.now() + 10 * MS;
    world.stall(0, None, until);
    world.drain(0, 5 * MS);
    world.pass(20 * MS, |_| {});
    drop(calls);
    assert!(runs.take().is_empty(), "their deadlines had passed");
    let (total, _) = world.processes[0].last_words();
    assert_eq!((total.accepted, total.in_flight()), (2, 0), "{total:?}");
    assert_eq!(total.indeterminate, 0, "{total:?}");
    let late = total.nacked_by_reason[usize::from(Reason::DeadlineExceeded.to_u16())];
    assert!(total.lost > 0, "one had no way back: {total:?}");
    assert_eq!(late + total.lost, 2, "{total:?}");
}

/// The shard that reads stands still, and its ring takes one answer: of two whose deadlines pass in
/// their line one is nacked, and the other waits for room until the drain's time is over. It has
/// not run, and is not said to have, perhaps.
#[test]
fn what_never_had_its_turn_is_lost_and_not_indeterminate() {
    let mut world = World::new(0, Weather::default(), wide_limits());
    let line = spawned_raw("line", |_: Bytes, cx| async move {
        cx.sleep(Duration::from_secs(1)).await;
        Ok(Bytes::new())
    });
    let line = line.ordered_per_peer(10).on_last_shard();
    world.add_process(0, 2, false, &[line]);
    world.add_process(2, 1, true, &[]);
    let endpoint = world.processes[0].shards[0].endpoint.clone();
    let client = world.processes[1].client.clone();
    let peer = client.connect(&endpoint).unwrap();
    world.pass(10 * MS, |_| {});
    let send = |within| {
        let message = client.message("line").raw("").to(&peer);
        message.request().within(within).send().unwrap()
    };
    let calls = [100 * MS, 10 * MS, 10 * MS].map(send);
    world.pass(5 * MS, |_| {});

    let until = world.now() + 30 * MS;
    world.stall(0, Some(0), until);
    world.pass(10 * MS, |_| {});
    world.drain(0, 5 * MS);
    world.pass(50 * MS, |_| {});
    drop(calls);
    let (total, _) = world.processes[0].last_words();
    assert_eq!((total.accepted, total.hopped_in), (3, 3), "{total:?}");
    let late = total.nacked_by_reason[usize::from(Reason::DeadlineExceeded.to_u16())];
    assert_eq!((late, total.lost, total.indeterminate), (1, 1, 1));
}
