//! Spawned handlers that take one peer's messages one after the other: seeded, with several peers,
//! hops, cancelled calls, deadlines and drains; and step by step.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use corelane::{
    client::Peer,
    engine::sim::Weather,
    error::CallError,
    handler::{Handler, HandlerError, spawned, spawned_raw},
    metrics::Counters,
    shard::ShardOptions,
    wire::Reason,
};
use fastrand::Rng;

use crate::{scenario::random_limits, world::World};

const MS: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(1);
/// How many wait behind the one that runs.
const WAITING_MAX: usize = 3;
const HANDLERS: [&str; 3] = ["line", "line.last", "line.key"];

type Line = (u32, usize);

/// What has run, seen from inside the handlers.
#[derive(Default)]
struct Seen {
    running: HashSet<Line>,
    last_begun: HashMap<Line, u32>,
    begun: HashSet<u32>,
    ended: u64,
}

/// Says that a line is free again, however its handler ended.
struct Running(Arc<Mutex<Seen>>, Line);

impl Drop for Running {
    fn drop(&mut self) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.running.remove(&self.1);
        seen.ended += 1;
    }
}

impl Seen {
    fn begin(seen: &Arc<Mutex<Self>>, line: Line, id: u32) -> Running {
        let mut it = seen.lock().unwrap();
        assert!(it.running.insert(line), "two of line {line:?} at once");
        assert!(it.begun.insert(id), "message {id} runs twice");
        let last = it.last_begun.insert(line, id);
        assert!(last < Some(id), "{id} began after {last:?} of {line:?}");
        Running(seen.clone(), line)
    }
}

/// One that is told who sends, a number that ascends, how long it takes, and how it ends.
fn handlers(seen: &Arc<Mutex<Seen>>) -> Vec<Handler> {
    let make = |number: usize, name: &str| {
        let seen = seen.clone();
        let line = spawned_raw(name, move |payload: Bytes, cx| {
            let word =
                |at: usize| u32::from_le_bytes(payload[4 * at..4 * at + 4].try_into().unwrap());
            let [peer, id, takes_us, conduct] = [0, 1, 2, 3].map(word);
            let running = Seen::begin(&seen, (peer, number), id);
            async move {
                cx.sleep(Duration::from_micros(takes_us.into())).await;
                drop(running);
                match conduct {
                    0 => Ok(Bytes::new()),
                    1 => Err(HandlerError::new("is to fail")),
                    _ => std::panic::resume_unwind(Box::new("is to panic")),
                }
            }
        });
        line.ordered_per_peer(WAITING_MAX)
    };
    let [line, last, key] = [0, 1, 2].map(|number| make(number, HANDLERS[number]));
    vec![line, last.on_last_shard(), key.by_route_key()]
}

type Answer = Pin<Box<dyn Future<Output = Result<Bytes, CallError>>>>;

struct Call {
    id: u32,
    answer: Option<Answer>,
    end: Option<Result<(), Option<Reason>>>,
}

impl Call {
    fn poll(&mut self) {
        let Some(answer) = &mut self.answer else {
            return;
        };
        let mut cx = Context::from_waker(Waker::noop());
        if let Poll::Ready(reply) = answer.as_mut().poll(&mut cx) {
            self.answer = None;
            self.end = Some(match reply {
                Ok(_) => Ok(()),
                Err(CallError::Nack { reason, .. }) => Err(Some(reason)),
                Err(_) => Err(None),
            });
        }
    }
}

/// Process 0 serves; each of the others is one peer.
struct Bench {
    world: World,
    seen: Arc<Mutex<Seen>>,
    peers: Vec<Peer>,
    calls: Vec<Call>,
    next_id: u32,
}

impl Bench {
    fn new(seed: u64, shards: usize, peers: usize) -> Self {
        Self::with(seed, shards, peers, |_| {})
    }

    fn with(seed: u64, shards: usize, peers: usize, adapt: impl FnOnce(&mut ShardOptions)) -> Self {
        let mut random = Rng::with_seed(seed);
        let mut limits = random_limits(&mut random);
        limits.shard = ShardOptions {
            outgoing_messages_max: 1_000,
            outgoing_bytes_max: 1 << 20,
            outstanding_max: 1_000,
            inbox_capacity: 1_000,
            ..limits.shard
        };
        (limits.outgoing_messages_max, limits.outgoing_bytes_max) = (1_000, 1 << 20);
        if seed == 0 {
            limits.shard.spawned_max = 1_000;
            limits.shard.buffered_bytes_max = 1 << 20;
        }
        adapt(&mut limits.shard);
        let mut world = World::new(seed, Weather::default(), limits);
        let seen = Arc::default();
        world.add_process(0, shards, random.bool(), &handlers(&seen));
        let endpoint = world.processes[0].shards[0].endpoint.clone();
        let mut connected = Vec::new();
        for peer in 0..peers {
            world.add_process(10 + peer, 1, true, &[]);
            let client = &world.processes[1 + peer].client;
            connected.push(match random.bool() {
                true => client.connect(&endpoint).unwrap(),
                false => client.connect_routed(0, &endpoint).unwrap(),
            });
        }
        let mut it = Self {
            world,
            seen,
            peers: connected,
            calls: Vec::new(),
            next_id: 0,
        };
        it.pass(20 * MS);
        it
    }

    /// Takes so long, and ends so; 0 returns.
    fn send(&mut self, (peer, handler): Line, takes: Duration, conduct: u32, within: Duration) {
        let id = self.next_id;
        self.next_id += 1;
        let words = [peer, id, takes.as_micros() as u32, conduct];
        let payload: Vec<u8> = words.iter().flat_map(|it| it.to_le_bytes()).collect();
        let client = &self.world.processes[1 + peer as usize].client;
        let message = client.message(HANDLERS[handler]).route_key(7).raw(payload);
        let request = message.to(&self.peers[peer as usize]).request();
        let call = request.within(within).send().expect("there is room");
        self.calls.push(Call {
            id,
            answer: Some(Box::pin(call)),
            end: None,
        });
    }

    fn pass(&mut self, time: Duration) {
        let until = self.world.now() + time;
        loop {
            self.world.settle(|_| {});
            self.calls.iter_mut().for_each(Call::poll);
            if !self.world.advance(until) {
                break;
            }
        }
        self.world.settle(|_| {});
        self.calls.iter_mut().for_each(Call::poll);
    }

    fn begun(&self) -> usize {
        self.seen.lock().unwrap().begun.len()
    }

    /// What the serving process has counted, having seen that it adds up and that callers were told
    /// the truth.
    fn end(mut self, within: Duration) -> Counters {
        self.world.drain(0, within);
        self.pass(within + LONG);
        let mut total = Counters::default();
        for node in &self.world.processes[0].shards {
            total += node.last_counters().expect("it is over");
        }
        assert_eq!(total.in_flight(), 0, "{total:?}");
        assert_eq!(total.spawned_now, 0);
        let seen = self.seen.lock().unwrap();
        let nacks = |reason: Reason| total.nacked_by_reason[usize::from(reason.to_u16())];
        let ran = total.handled + nacks(Reason::HandlerFailed) + nacks(Reason::HandlerPanicked);
        assert_eq!(
            seen.begun.len() as u64,
            ran + total.indeterminate,
            "{total:?}"
        );
        assert_eq!(
            (seen.ended, seen.running.len()),
            (seen.begun.len() as u64, 0)
        );
        for call in &self.calls {
            let has_run = seen.begun.contains(&call.id);
            match call.end {
                Some(Ok(()) | Err(Some(Reason::HandlerFailed | Reason::HandlerPanicked))) => {
                    assert!(has_run, "{} did not run", call.id);
                }
                Some(Err(Some(reason))) => assert!(!has_run, "{} ran: {reason:?}", call.id),
                Some(Err(None)) | None => {}
            }
        }
        total
    }
}

#[test]
fn each_peers_messages_run_one_after_the_other_whatever_happens() {
    let (mut overloaded, mut late, mut lost, mut hopped) = (0, 0, 0, 0);
    for seed in 1..=150 {
        let mut random = Rng::with_seed(seed);
        let shards = random.usize(1..=3);
        let mut it = Bench::new(seed, shards, random.usize(1..=3));
        for _ in 0..random.usize(10..60) {
            let line = (random.u32(..it.peers.len() as u32), random.usize(..3));
            let takes = Duration::from_micros(random.u64(..5_000));
            let within = match random.bool() {
                true => Duration::from_micros(random.u64(1_000..10_000)),
                false => LONG,
            };
            it.send(line, takes, random.u32(..6).saturating_sub(3), within);
            if random.u8(..4) == 0 {
                let at = random.usize(..it.calls.len());
                it.calls[at].answer = None;
            }
            it.pass(Duration::from_micros(random.u64(..2_500)));
        }
        let time = [LONG, 2 * MS, Duration::ZERO][random.usize(..3)];
        let total = it.end(time);
        let nacks = |reason: Reason| total.nacked_by_reason[usize::from(reason.to_u16())];
        overloaded += nacks(Reason::Overloaded);
        late += nacks(Reason::DeadlineExceeded);
        lost += total.lost;
        hopped += total.hopped_in;
    }
    let came_about = [overloaded, late, lost, hopped];
    assert!(came_about.iter().all(|count| *count > 20), "{came_about:?}");
}

#[test]
fn different_peers_run_at_once_and_no_more_wait_than_may() {
    for handler in 0..3 {
        let mut it = Bench::new(0, 2, 2);
        for _ in 0..6 {
            it.send((0, handler), 10 * MS, 0, LONG);
        }
        it.send((1, handler), 10 * MS, 0, LONG);
        it.pass(5 * MS);
        assert_eq!(it.begun(), 2, "one of each");
        it.pass(50 * MS);
        let ends: Vec<_> = it.calls.iter().map(|it| it.end).collect();
        let refused = Some(Err(Some(Reason::Overloaded)));
        assert_eq!(ends[..4], [Some(Ok(())); 4]);
        assert_eq!(ends[4..6], [refused; 2]);
        assert_eq!(ends[6], Some(Ok(())));
        let total = it.end(LONG);
        assert_eq!((total.handled, total.nacked()), (5, 2));
    }
}

/// In bytes, of which those that run hold none and one alone may be more; and in tasks. As they end
/// there is room again.
#[test]
fn what_waits_is_bounded_in_bytes_and_in_tasks() {
    // A message has 16 bytes.
    for (bytes_max, spawned_max, admitted) in [(10, 100, 2), (40, 100, 3), (1_000, 2, 2)] {
        let mut it = Bench::with(0, 1, 1, |it| {
            (it.buffered_bytes_max, it.spawned_max) = (bytes_max, spawned_max);
        });
        for round in 0..3 {
            it.send((0, 0), 10 * MS, 0, LONG);
            it.pass(MS);
            for _ in 1..4 {
                it.send((0, 0), 10 * MS, 0, LONG);
            }
            it.pass(50 * MS);
            let ends = it.calls[4 * round..].iter().map(|it| it.end);
            let mut expected = [Some(Err(Some(Reason::Overloaded))); 4];
            expected[..admitted].fill(Some(Ok(())));
            assert_eq!(ends.collect::<Vec<_>>(), expected, "round {round}");
        }
        it.end(LONG);
    }
}

#[test]
fn what_waits_may_be_late_or_cancelled_and_what_is_behind_it_goes_on() {
    for handler in 0..3 {
        let mut it = Bench::new(0, 2, 1);
        it.send((0, handler), 30 * MS, 0, LONG);
        it.send((0, handler), MS, 0, 10 * MS);
        it.send((0, handler), MS, 0, LONG);
        it.send((0, handler), MS, 0, LONG);
        it.pass(5 * MS);
        it.calls[2].answer = None;
        it.pass(20 * MS);
        assert_eq!(it.begun(), 1, "none but the first has begun");
        // Those two have left their places.
        it.send((0, handler), MS, 0, LONG);
        it.send((0, handler), MS, 0, LONG);
        it.pass(50 * MS);
        let ends: Vec<_> = it.calls.iter().map(|it| it.end).collect();
        let own_deadline = Some(Err(None));
        let done = Some(Ok(()));
        assert_eq!(ends, [done, own_deadline, None, done, done, done]);
        let total = it.end(LONG);
        assert_eq!((total.handled, total.lost, total.stopped), (4, 1, 1));
        let late = usize::from(Reason::DeadlineExceeded.to_u16());
        assert_eq!(total.nacked_by_reason[late], 1);
    }
}

/// The one that runs is stopped at its deadline, and the next begins.
#[test]
fn a_stopped_message_lets_the_next_one_begin() {
    let mut it = Bench::new(0, 1, 1);
    it.send((0, 0), LONG, 0, 10 * MS);
    it.send((0, 0), MS, 0, LONG);
    it.pass(5 * MS);
    assert_eq!(it.begun(), 1);
    it.pass(10 * MS);
    assert_eq!(it.calls[1].end, Some(Ok(())));
    let total = it.end(LONG);
    assert_eq!((total.handled, total.indeterminate), (1, 1));
}

#[test]
fn a_lost_connection_stops_nothing_and_a_new_one_has_a_line_of_its_own() {
    let mut it = Bench::new(0, 1, 1);
    it.send((0, 0), 20 * MS, 0, LONG);
    it.send((0, 0), MS, 0, LONG);
    it.pass(5 * MS);
    it.world.network.cut_all();
    it.pass(10 * MS);
    assert_eq!((it.calls[0].end, it.begun()), (Some(Err(None)), 1));
    it.pass(50 * MS);
    assert_eq!(it.begun(), 2, "what had arrived has run");
    let total = it.end(LONG);
    assert_eq!((total.handled, total.answers_lost), (2, 2));
}

#[test]
fn a_drain_finishes_what_waits_or_counts_it_as_lost() {
    for (time, expected) in [(LONG, (3, 0, 0)), (15 * MS, (1, 1, 1))] {
        for handler in 0..3 {
            let mut it = Bench::new(0, 2, 1);
            for _ in 0..3 {
                it.send((0, handler), 10 * MS, 0, LONG);
            }
            it.pass(MS);
            let total = it.end(time);
            let counted = (total.handled, total.indeterminate, total.lost);
            assert_eq!(counted, expected, "within {time:?}");
        }
    }
}

/// Typed ones decode at their turn, and say what cannot be decoded.
#[test]
fn a_typed_message_is_decoded_at_its_turn() {
    let mut it = Bench::new(0, 1, 1);
    let handler = spawned("typed", |n: u32, _cx| async move { Ok(n + 1) }).ordered_per_peer(1);
    it.world.add_process(20, 1, true, &[handler]);
    let endpoint = it.world.processes[2].shards[0].endpoint.clone();
    let client = it.world.processes[1].client.clone();
    let peer = client.connect(&endpoint).unwrap();
    let good = client.message("typed").json(&7_u32).unwrap().to(&peer);
    let bad = client.message("typed").json(&"x").unwrap().to(&peer);
    let mut good = Box::pin(good.request::<u32>().send().unwrap());
    let mut bad = Box::pin(bad.request::<u32>().send().unwrap());
    it.pass(20 * MS);
    let mut cx = Context::from_waker(Waker::noop());
    assert_eq!(good.as_mut().poll(&mut cx), Poll::Ready(Ok(8)));
    let Poll::Ready(Err(CallError::Nack { reason, .. })) = bad.as_mut().poll(&mut cx) else {
        panic!("it is refused");
    };
    assert_eq!(reason, Reason::Malformed);
}
