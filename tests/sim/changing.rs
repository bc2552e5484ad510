//! Handlers that come and go while messages are under way, on several shards.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use corelane::{
    client::Peer,
    engine::sim::Weather,
    error::CallError,
    handler::{Batch, Handler, Item, batched_raw, inline_raw, spawned_raw},
    metrics::Counters,
    shard::{Announcement, Change, ChangeRefused, Changed},
    wire::{HandlerEntry, Hello, Reason},
};
use crossbeam_channel::Receiver;
use fastrand::Rng;
use uuid::Uuid;

use crate::{scenario::random_limits, world::World};

const MS: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(1);
/// Of each kind one here and one on the last shard.
const NAMES: [&str; 8] = [
    "run",
    "run.last",
    "sleep",
    "sleep.last",
    "line",
    "line.last",
    "batch",
    "batch.last",
];

/// Which generation of its handler ran each message.
type Runs = Arc<Mutex<HashMap<u32, u32>>>;

fn id(payload: &[u8]) -> u32 {
    u32::from_le_bytes(payload[..4].try_into().unwrap())
}

fn note(runs: &Runs, payload: &[u8], generation: u32) {
    let before = runs.lock().unwrap().insert(id(payload), generation);
    assert_eq!(before, None, "message {} ran twice", id(payload));
}

fn handler(number: usize, generation: u32, runs: &Runs) -> Handler {
    let (name, runs) = (NAMES[number], runs.clone());
    let task = |runs: Runs| {
        spawned_raw(name, move |payload: Bytes, cx| {
            note(&runs, &payload, generation);
            async move {
                cx.sleep(2 * MS).await;
                Ok(payload)
            }
        })
    };
    let batch = Batch {
        count_max: 3,
        bytes_max: 1 << 10,
        age_max: 3 * MS,
    };
    let handler = match number / 2 {
        0 => inline_raw(name, move |payload, _, _| {
            note(&runs, payload, generation);
            Ok(())
        }),
        1 => task(runs),
        2 => task(runs).ordered_per_peer(3),
        _ => batched_raw(name, batch, move |items: &mut [Item<Bytes, Bytes>], _| {
            for item in items {
                note(&runs, item.request(), generation);
                item.answer(Ok(Bytes::new()));
            }
        }),
    };
    match number % 2 {
        0 => handler,
        _ => handler.on_last_shard(),
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<Bytes, CallError>>>>;

struct Call {
    id: u32,
    handler: usize,
    /// What was served as it was sent: `None` for nothing, and how often that had changed.
    sent_to: (Option<u32>, u64),
    answer: Option<Answer>,
}

/// What the runtime would know of one name.
#[derive(Clone, Copy, Default)]
struct Served {
    index: Option<usize>,
    /// Of the handler that all shards serve.
    generation: Option<u32>,
    /// Grows with each change, twice if shards may differ meanwhile.
    changes: u64,
}

/// Process 0 serves, process 1 calls.
struct Bench {
    world: World,
    runs: Runs,
    peer: Peer,
    served: [Served; NAMES.len()],
    names: Vec<String>,
    generation: u32,
    calls: Vec<Call>,
    sent: u32,
    unknown: usize,
}

impl Bench {
    fn new(seed: u64, shards: usize) -> Self {
        let mut random = Rng::with_seed(seed);
        let mut limits = random_limits(&mut random);
        (limits.outgoing_messages_max, limits.outgoing_bytes_max) = (1_000, 1 << 20);
        limits.shard.outgoing_messages_max = 1_000;
        limits.shard.outgoing_bytes_max = 1 << 20;
        limits.shard.outstanding_max = 1_000;
        limits.shard.inbox_capacity = 1_000;
        let mut world = World::new(seed, Weather::default(), limits);
        world.add_process(0, shards, random.bool(), &[]);
        world.add_process(10, 1, true, &[]);
        let endpoint = world.processes[0].shards[0].endpoint.clone();
        let peer = world.processes[1].client.connect(&endpoint).unwrap();
        let mut it = Self {
            world,
            runs: Runs::default(),
            peer,
            served: Default::default(),
            names: Vec::new(),
            generation: 0,
            calls: Vec::new(),
            sent: 0,
            unknown: 0,
        };
        it.pass(20 * MS);
        it
    }

    /// Has all shards do the same, and waits for that.
    fn tell(&mut self, change: &Change) -> Vec<Changed> {
        let shards = &self.world.processes[0].shards;
        let told: Vec<Receiver<Changed>> =
            shards.iter().map(|it| it.change(change.clone())).collect();
        self.pass(Duration::ZERO);
        let done = told
            .iter()
            .map(|it| it.try_recv().expect("it has answered"));
        done.collect()
    }

    fn announce(&mut self) {
        let shards = self.world.processes[0].shards.len();
        let served = self.served.iter().enumerate();
        let served = served.filter(|(_, it)| it.generation.is_some());
        let hello = Hello {
            shards,
            handlers: served
                .map(|(number, _)| {
                    let affinity = handler(number, 0, &self.runs).affinity(shards);
                    HandlerEntry::new(NAMES[number], affinity)
                })
                .collect(),
            ..Hello::of_instance(Uuid::from_u128(0))
        };
        let announcement = Announcement {
            hello: Arc::new(hello),
            listing: None,
        };
        self.tell(&Change::Announce(announcement));
    }

    fn register(&mut self, number: usize) {
        self.generation += 1;
        self.served[number].changes += 1;
        let index = *self.served[number].index.get_or_insert_with(|| {
            self.names.push(NAMES[number].to_owned());
            self.names.len() - 1
        });
        let handler = handler(number, self.generation, &self.runs);
        let prepared = self.tell(&Change::Prepare { handler, index });
        assert!(prepared.iter().all(|(_, done)| done.is_ok()));
        let names = self.names.clone().into();
        self.tell(&Change::Install { names });
        self.served[number].changes += 1;
        self.served[number].generation = Some(self.generation);
        self.announce();
    }

    fn remove(&mut self, number: usize) {
        self.served[number].changes += 1;
        self.served[number].generation = None;
        self.announce();
        let name = NAMES[number].to_owned();
        self.tell(&Change::Remove { name });
        self.served[number].changes += 1;
    }

    fn send(&mut self, number: usize) {
        self.sent += 1;
        let client = &self.world.processes[1].client;
        let message = client.message(NAMES[number]);
        let message = message.raw(self.sent.to_le_bytes().to_vec()).to(&self.peer);
        let call = message
            .request()
            .within(LONG)
            .send()
            .expect("there is room");
        let Served {
            generation,
            changes,
            ..
        } = self.served[number];
        self.calls.push(Call {
            id: self.sent,
            handler: number,
            sent_to: (generation, changes),
            answer: Some(Box::pin(call)),
        });
    }

    fn pass(&mut self, time: Duration) {
        let until = self.world.now() + time;
        loop {
            self.world.settle(|_| {});
            self.look();
            if !self.world.advance(until) {
                break;
            }
        }
        self.world.settle(|_| {});
        self.look();
    }

    /// Whoever was told that it ran, or that nobody knows it, was told the truth.
    fn look(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        for call in &mut self.calls {
            let Some(answer) = &mut call.answer else {
                continue;
            };
            let Poll::Ready(reply) = answer.as_mut().poll(&mut cx) else {
                continue;
            };
            call.answer = None;
            let ran = self.runs.lock().unwrap().get(&call.id).copied();
            let Served { changes, .. } = self.served[call.handler];
            let (served, before) = call.sent_to;
            match reply {
                Ok(_) if before == changes => assert_eq!((ran, served.is_some()), (served, true)),
                Ok(_) => assert!(ran >= served && ran.is_some(), "by one that had gone"),
                Err(CallError::Nack { reason, .. }) => {
                    assert_eq!(ran, None, "{reason:?}");
                    assert_ne!(reason, Reason::DeadlineExceeded, "it was accepted");
                    let is_unknown = reason == Reason::UnknownHandler;
                    self.unknown += usize::from(is_unknown);
                    let was_there = before == changes && served.is_some();
                    assert!(!(is_unknown && was_there), "all shards served it");
                }
                Err(_) => {}
            }
        }
    }

    fn end(mut self, within: Duration) -> (Counters, usize) {
        self.world.drain(0, within);
        self.pass(within + 2 * LONG);
        let mut total = Counters::default();
        for node in &self.world.processes[0].shards {
            total += node.last_counters().expect("it is over");
        }
        assert_eq!(total.in_flight(), 0, "{total:?}");
        let runs = self.runs.lock().unwrap().len() as u64;
        assert!(total.handled <= runs, "{total:?}");
        assert!(runs <= total.handled + total.indeterminate, "{total:?}");
        (total, self.unknown)
    }
}

#[test]
fn what_comes_and_goes_runs_what_it_has_accepted_and_nothing_else() {
    let (mut handled, mut unknown, mut hopped) = (0, 0, 0);
    for seed in 1..=120 {
        let mut random = Rng::with_seed(seed);
        let mut it = Bench::new(seed, random.usize(1..=3));
        for _ in 0..random.usize(20..100) {
            let number = random.usize(..NAMES.len());
            match (random.u8(..8), it.served[number].generation) {
                (0, Some(_)) => it.remove(number),
                (0 | 1, None) => it.register(number),
                _ => it.send(number),
            }
            if random.bool() {
                it.pass(Duration::from_micros(random.u64(..2_000)));
            }
        }
        let (total, gone) = it.end([LONG, 2 * MS, Duration::ZERO][random.usize(..3)]);
        handled += total.handled;
        hopped += total.hopped_in;
        unknown += gone;
    }
    assert!(
        handled > 500 && unknown > 500 && hopped > 100,
        "{handled}, {unknown}, {hopped}"
    );
}

/// Shard 0 still knows it, and sends over what shard 1 has forgotten by then.
#[test]
fn what_crosses_to_a_handler_that_is_gone_is_unknown() {
    for number in [1, 3, 5, 7] {
        let mut it = Bench::new(2, 2);
        it.register(number);
        let client = &it.world.processes[1].client;
        let endpoint = it.world.processes[0].shards[0].endpoint.clone();
        it.peer = client.connect_routed(0, &endpoint).unwrap();
        it.pass(20 * MS);
        it.send(number);
        it.pass(20 * MS);
        it.send(number);
        let name = NAMES[number].to_owned();
        let told = it.world.processes[0].shards[1].change(Change::Remove { name });
        // So that it may be refused.
        it.served[number].changes += 1;
        it.pass(20 * MS);
        assert_eq!(told.try_recv(), Ok((1, Ok(()))));
        let (total, unknown) = it.end(LONG);
        assert_eq!((total.handled, total.nacked(), unknown), (1, 1, 1));
        assert_eq!(total.hopped_in, 2);
    }
}

#[test]
fn a_draining_shard_takes_nothing_new() {
    let mut it = Bench::new(3, 1);
    it.register(2);
    it.send(2);
    it.pass(Duration::from_micros(500));
    it.world.drain(0, LONG);
    it.world.turn_all();
    let handler = handler(0, 9, &it.runs);
    let told = it.world.processes[0].shards[0].change(Change::Prepare { handler, index: 1 });
    it.world.turn_all();
    assert_eq!(told.try_recv(), Ok((0, Err(ChangeRefused::Stopping))));
}
