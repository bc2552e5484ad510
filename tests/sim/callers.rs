//! A peer that has connected more than once, and what is sent to it as its connections end and as
//! the handles to it come and go: step by step.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use corelane::{
    client::{Client, Peer, RawReply, RemoteAnswer},
    engine::{ConnectionId, Engine, sim::Weather},
    error::{CallError, Indeterminate, NotSent},
    events::{Event, NoEvent},
    handler::{Handler, inline_raw},
    shard::ShardOptions,
    wire::{Header, Hello, Kind},
};
use fastrand::Rng;
use uuid::Uuid;

use crate::{
    scenario::random_limits,
    stranger::Stranger,
    world::{Limits, World},
};

const MS: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(10);
/// Of most of the peers here.
const INSTANCE: u128 = 7;

type Call = corelane::client::Call<RawReply, RemoteAnswer>;
type End = Result<Bytes, CallError>;

/// A process of one shard, and a peer that connects to it as often as it likes.
struct Bench {
    world: World,
    stranger: Stranger,
    client: Client,
}

impl Bench {
    fn new() -> Self {
        Self::with(|_| {})
    }

    /// Four messages fill an outbox, and no more wait beside it.
    fn narrow() -> Self {
        Self::with(|limits| {
            limits.outgoing_messages_max = 4;
            limits.shard.outgoing_messages_max = 2;
        })
    }

    fn with(limit: impl FnOnce(&mut Limits)) -> Self {
        let mut limits = random_limits(&mut Rng::with_seed(0));
        limits.shard = ShardOptions {
            turn_messages_max: 100,
            outstanding_max: 100,
            outgoing_messages_max: 100,
            outgoing_bytes_max: 100_000,
            inbox_capacity: 100,
            shedding: None,
            ..limits.shard
        };
        (limits.outgoing_messages_max, limits.outgoing_bytes_max) = (100, 100_000);
        (limits.heartbeat_timeout, limits.slow_consumer) = (LONG, LONG);
        limits.handshake = LONG;
        limit(&mut limits);
        // Who does not listen keeps the others in the outbox.
        let weather = Weather {
            in_flight_max: 1,
            ..Weather::default()
        };
        let mut world = World::new(0, weather, limits);
        world.add_process(0, 1, true, &[echo()]);
        let stranger = Stranger::new(&world);
        let client = world.processes[0].client.clone();
        Self {
            world,
            stranger,
            client,
        }
    }

    /// Lets all that is under way arrive.
    fn pass(&mut self) {
        self.pass_for(10 * MS);
    }

    fn pass_for(&mut self, time: Duration) {
        self.stranger.pass(&mut self.world, time);
    }

    /// A connection that says nothing yet.
    fn dial(&mut self) -> ConnectionId {
        let endpoint = self.world.processes[0].shards[0].endpoint.parse().unwrap();
        let connection = self.stranger.engine.connect(&endpoint).unwrap();
        self.pass();
        connection
    }

    fn say(&mut self, connection: ConnectionId, header: &Header, payload: &[u8]) {
        let outbox = self.stranger.engine.outbox(connection).expect("is up");
        outbox.push(header, payload).expect("has room");
    }

    fn introduce(&mut self, connection: ConnectionId, instance: u128) {
        let hello = Hello::of_instance(Uuid::from_u128(instance)).encode();
        self.say(connection, &Header::new(Kind::Hello, 0), &hello);
        self.pass();
    }

    /// Another connection of this peer's.
    fn join(&mut self, instance: u128) -> ConnectionId {
        let connection = self.dial();
        self.introduce(connection, instance);
        connection
    }

    fn leave(&mut self, connection: ConnectionId) {
        self.stranger.engine.close(connection);
        self.pass();
    }

    fn peer(&self, instance: u128) -> Peer {
        let found = self.client.peer(Uuid::from_u128(instance));
        found.expect("is known")
    }

    fn call(&self, peer: &Peer) -> Call {
        let request = self.client.message("any").raw("x").to(peer).request();
        request.within(LONG).send().expect("there is room")
    }

    /// A call, and by which connection it has come to the peer.
    fn ask(&mut self, peer: &Peer) -> (Call, ConnectionId) {
        let call = self.call(peer);
        self.pass();
        (call, self.take_request().0)
    }

    /// Has so many requests answered, without listening: one answer leaves, the others do not.
    fn occupy(&mut self, connection: ConnectionId, requests: u64) {
        for correlation in 1..=requests {
            let request = Header {
                handler: "echo".into(),
                deadline_us: 1_000_000,
                ..Header::new(Kind::Request, correlation)
            };
            self.say(connection, &request, b"");
            self.stranger.engine.flush(self.world.now());
            self.world.pass(MS, |_| {});
        }
    }

    /// A message that stays, for the connection is occupied.
    fn send(&mut self, peer: &Peer) {
        let message = self.client.message("any").raw("x").to(peer);
        message.one_way().expect("there is room for one");
        self.world.pass(MS, |_| {});
    }

    fn heard_one_way(&self) -> usize {
        self.stranger.count(Kind::OneWay)
    }

    /// How many messages the shard has for its peers.
    fn depth(&self) -> usize {
        let depths = self.world.processes[0].shards[0].depths();
        depths.expect("it is not over").queued
    }

    /// Where the one request came that the peer has heard since, and its number.
    fn take_request(&mut self) -> (ConnectionId, u64) {
        let heard = std::mem::take(&mut self.stranger.heard);
        let requests = heard.iter().filter(|it| it.1.kind == Kind::Request);
        let requests: Vec<_> = requests.map(|it| (it.0, it.1.correlation)).collect();
        let [request] = requests[..] else {
            panic!("one request, not {requests:?}");
        };
        request
    }

    fn answer(&mut self, (connection, correlation): (ConnectionId, u64)) {
        self.say(connection, &Header::new(Kind::Response, correlation), b"y");
        self.pass();
    }
}

fn echo() -> Handler {
    inline_raw("echo", |payload, reply, _cx| {
        reply.extend_from_slice(payload);
        Ok(())
    })
}

fn end(call: &mut Call) -> Option<End> {
    let mut cx = Context::from_waker(Waker::noop());
    match Pin::new(call).poll(&mut cx) {
        Poll::Ready(end) => Some(end),
        Poll::Pending => None,
    }
}

fn is_lost(call: &mut Call) -> bool {
    let lost = CallError::Indeterminate(Indeterminate::ConnectionLost);
    end(call) == Some(Err(lost))
}

/// Whether it has come back, for this reason.
fn is_back(call: &mut Call, why: NotSent) -> bool {
    matches!(end(call), Some(Err(CallError::NotSent(error))) if error.why == why)
}

#[test]
fn the_latest_connection_is_sent_by_and_each_ends_what_went_by_it() {
    let mut it = Bench::new();
    let first = it.join(INSTANCE);
    let peer = it.peer(INSTANCE);
    let (mut by_first, at) = it.ask(&peer);
    assert_eq!(at, first);
    let second = it.join(INSTANCE);
    let (mut by_second, at) = it.ask(&peer);
    assert_eq!(at, second);
    let third = it.join(INSTANCE);
    let (mut by_third, at) = it.ask(&peer);
    assert_eq!(at, third);

    // Neither the first nor the last.
    it.leave(second);
    assert!(is_lost(&mut by_second));
    assert!(end(&mut by_first).is_none() && end(&mut by_third).is_none());
    let (mut behind, at) = it.ask(&peer);
    assert_eq!(at, third, "it is the latest still");
    it.leave(third);
    assert!(is_lost(&mut by_third) && is_lost(&mut behind));
    assert!(end(&mut by_first).is_none());
    let mut late = it.call(&peer);
    it.pass();
    let request = it.take_request();
    assert_eq!(request.0, first, "the latest that is left");
    it.answer(request);
    assert_eq!(end(&mut late), Some(Ok(Bytes::from("y"))));

    it.leave(first);
    assert!(is_lost(&mut by_first));
    let mut gone = it.call(&peer);
    it.pass();
    assert!(is_back(&mut gone, NotSent::NotConnected));
    assert!(it.client.peer(Uuid::from_u128(INSTANCE)).is_err());
    let fourth = it.join(INSTANCE);
    assert_eq!(it.ask(&peer).1, fourth);
}

/// A connection that nothing has gone by is no better for that.
#[test]
fn the_first_handle_takes_the_latest_of_the_connections() {
    let mut it = Bench::new();
    let (first, second) = (it.join(INSTANCE), it.join(INSTANCE));
    let third = it.join(INSTANCE);
    it.leave(first);
    let peer = it.peer(INSTANCE);
    assert_eq!(it.ask(&peer).1, third);
    it.leave(third);
    assert_eq!(it.ask(&peer).1, second);
}

#[test]
fn who_has_said_goodbye_before_it_is_spoken_of_is_sent_nothing() {
    let mut it = Bench::new();
    let first = it.join(INSTANCE);
    it.say(first, &Header::new(Kind::Goodbye, 0), &[]);
    it.pass();
    let peer = it.peer(INSTANCE);
    let mut call = it.call(&peer);
    it.pass();
    assert!(is_back(&mut call, NotSent::Draining));
    // The next one of its name has said none.
    let second = it.join(INSTANCE);
    assert_eq!(it.ask(&peer).1, second);
}

#[test]
fn a_second_hello_makes_nobody_another() {
    let mut it = Bench::new();
    let mut events = it.client.events();
    let connection = it.join(INSTANCE);
    let Ok(Event::Up(up)) = events.try_recv() else {
        panic!("it has come");
    };
    it.introduce(connection, INSTANCE);
    it.introduce(connection, INSTANCE + 1);
    assert_eq!(events.try_recv(), Err(NoEvent::Yet));
    assert!(it.client.peer(Uuid::from_u128(INSTANCE + 1)).is_err());
    assert_eq!(it.client.peers()[0].connections, std::slice::from_ref(&up));
    it.leave(connection);
    let Ok(Event::Down { peer, .. }) = events.try_recv() else {
        panic!("it has gone");
    };
    assert_eq!(peer, up);
    assert_eq!(it.client.peers(), []);
}

#[test]
fn whom_a_process_has_dialed_is_not_introduced_by_its_hello() {
    let mut it = Bench::new();
    let _dialed = it.client.connect(&it.stranger.endpoint).unwrap();
    it.pass();
    let connection = *it.stranger.up.last().expect("it was dialed");
    let welcome = Hello::of_instance(Uuid::from_u128(INSTANCE)).encode();
    it.say(connection, &Header::new(Kind::Welcome, 0), &welcome);
    it.pass();
    it.introduce(connection, INSTANCE + 1);
    let known: Vec<_> = it.client.peers().iter().map(|it| it.instance).collect();
    assert_eq!(known, [Uuid::from_u128(INSTANCE)]);
}

/// The peer does not listen: what is sent stands behind its answers.
#[test]
fn what_is_sent_ends_soon_after_the_last_of_all_handles_has_gone() {
    for handles in 1..4 {
        let mut it = Bench::narrow();
        let connection = it.join(INSTANCE);
        let mut peer = it.peer(INSTANCE);
        it.pass();
        it.occupy(connection, 5);
        it.send(&peer);
        let depth = it.depth();
        let close_within = it.world.limits.shard.close_within;
        // The next one is asked for before the shard hears that this one has gone, or after.
        for number in 1..handles {
            drop(peer);
            if number == 2 {
                it.world.pass(MS, |_| {});
            }
            peer = it.peer(INSTANCE);
            it.world.pass(MS, |_| {});
        }
        it.world.pass(3 * close_within, |_| {});
        assert_eq!(peer.account().settled(), 0, "{handles}: it is spoken of");
        drop(peer);
        it.world.pass(close_within / 2, |_| {});
        assert_eq!(it.depth(), depth, "{handles}: it has some time left");
        it.world.pass(close_within, |_| {});
        assert_eq!(it.depth(), 0, "{handles}");
        let peer = it.peer(INSTANCE);
        let account = peer.account();
        let ends = (account.one_way_sent, account.settled());
        assert_eq!(ends, (1, 1), "{handles}: what is in the outbox leaves");
        // The connection is not ours to close.
        it.pass();
        assert_eq!(it.heard_one_way(), 1);
        assert_eq!(it.ask(&peer).1, connection);
    }
}

#[test]
fn a_handle_that_comes_while_the_last_one_is_let_go_keeps_what_waits() {
    let mut it = Bench::narrow();
    let connection = it.join(INSTANCE);
    let peer = it.peer(INSTANCE);
    it.pass();
    it.occupy(connection, 5);
    it.send(&peer);
    drop(peer);
    it.world.pass(MS, |_| {});
    let peer = it.peer(INSTANCE);
    it.world
        .pass(3 * it.world.limits.shard.close_within, |_| {});
    assert_eq!(peer.account().settled(), 0, "it waits");
    it.pass();
    assert_eq!(it.heard_one_way(), 1);
    assert_eq!(peer.account().one_way_sent, 1);
}

#[test]
fn what_has_not_left_comes_back_as_its_connection_ends() {
    let mut it = Bench::narrow();
    let (first, second) = (it.join(INSTANCE), it.join(INSTANCE));
    let peer = it.peer(INSTANCE);
    it.pass();
    it.occupy(second, 5);
    let mut call = it.call(&peer);
    it.world.pass(MS, |_| {});
    it.stranger.engine.close(second);
    it.world.pass(MS, |_| {});
    assert!(is_back(&mut call, NotSent::ConnectionLost));
    assert_eq!((peer.account().not_sent, it.depth()), (1, 0));
    assert_eq!(it.ask(&peer).1, first);
}

/// Its requests are answered, and it hears none of it but what has left.
#[test]
fn answers_that_are_lost_with_a_connection_that_is_sent_by_are_counted_once() {
    let mut it = Bench::new();
    let connection = it.join(INSTANCE);
    let peer = it.peer(INSTANCE);
    it.pass();
    it.occupy(connection, 5);
    let client = it.client.clone();
    client.message("any").to(&peer).one_way().unwrap();
    it.world.pass(MS, |_| {});
    it.stranger.engine.close(connection);
    it.pass();
    assert_eq!(peer.account().lost, 1);
    it.world.drain(0, Duration::ZERO);
    it.pass();
    let (total, _) = it.world.processes[0].last_words();
    assert_eq!((total.handled, total.answers_lost), (5, 4));
}

/// Code on the shard has sent before the shard hears of whom it speaks.
#[test]
fn what_a_shards_own_code_sends_at_once_goes_out() {
    let mut it = Bench::new();
    it.join(INSTANCE);
    let client = it.world.processes[0].shards[0].client().unwrap();
    let peer = client.peer(Uuid::from_u128(INSTANCE)).unwrap();
    for _ in 0..3 {
        client.message("any").to(&peer).one_way().unwrap();
    }
    it.pass();
    assert_eq!((it.heard_one_way(), it.depth()), (3, 0));
}

/// All of them come back at one moment, however many peers have gone at once.
#[test]
fn messages_to_all_who_have_gone_come_back_at_once() {
    let mut it = Bench::new();
    let peers: Vec<Peer> = (0..5)
        .map(|n| {
            it.join(INSTANCE + n);
            it.peer(INSTANCE + n)
        })
        .collect();
    it.pass();
    it.world.network.cut_all();
    let calls = peers.iter().map(|peer| it.call(peer));
    let mut calls: Vec<Call> = calls.collect();
    let ends = loop {
        it.world.turn_all();
        let ends: Vec<_> = calls.iter_mut().filter_map(end).collect();
        if !ends.is_empty() {
            break ends;
        }
        it.world.mock.increment(MS / 10);
    };
    assert_eq!(ends.len(), peers.len(), "{ends:?}");
}

/// The inbox is full as the last handle goes, and then the directory forgets how the peer was
/// spoken of: the shard hears of it again under another name.
#[test]
fn who_is_spoken_of_anew_is_sent_to_and_no_longer_under_the_former_name() {
    let mut it = Bench::with(|limits| limits.shard.inbox_capacity = 4);
    let first = it.join(INSTANCE);
    let peer = it.peer(INSTANCE);
    it.pass();
    for _ in 0..4 {
        let message = it.client.message("any").raw("x").to(&peer);
        message.one_way().expect("there is room");
    }
    drop(peer);
    it.leave(first);
    // So many contacts are swept.
    for n in 1..=64 {
        it.join(INSTANCE + n);
        let peer = it.peer(INSTANCE + n);
        it.pass();
        drop(peer);
        it.pass();
    }
    let again = it.join(INSTANCE);
    let peer = it.peer(INSTANCE);
    assert_eq!(peer.account().accepted, 0, "it is spoken of anew");
    it.stranger.heard.clear();
    assert_eq!(it.ask(&peer).1, again);
}
