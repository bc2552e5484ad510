//! What one message costs in encodings, tasks and allocations: counted, not believed.
//!
//! A file of its own, because the allocator that counts is the whole process's: both ends of a
//! message are in it, libzmq's own allocations are not.
#![allow(unsafe_code)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use corelane::{
    Config, Runtime,
    client::Peer,
    config::IdleStrategy,
    handler::{Batch, Item, TaskContext, batched, batched_raw, inline, inline_raw},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static ENCODES: AtomicU64 = AtomicU64::new(0);
static DECODES: AtomicU64 = AtomicU64::new(0);

/// The counts are the process's, so one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

struct Counting;

// SAFETY: every call goes to `System` unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's promises are passed on as they are.
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A number that counts how often it is encoded and decoded.
#[derive(Debug, PartialEq)]
struct Counted(u64);

impl Serialize for Counted {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ENCODES.fetch_add(1, Relaxed);
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Counted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        DECODES.fetch_add(1, Relaxed);
        u64::deserialize(deserializer).map(Counted)
    }
}

fn start() -> (Runtime, Peer) {
    let config = Config::default()
        .with_shards(1)
        // Parking allocates, and how often a shard parks is the machine's business.
        .with_idle(IdleStrategy::Spin)
        .with_listen(["tcp://127.0.0.1:0"]);
    let runtime = Runtime::builder(config)
        .handler(inline("next", |n: Counted, _| Ok(Counted(n.0 + 1))))
        .handler(inline_raw("echo", |payload, reply, _| {
            reply.extend_from_slice(payload);
            Ok(())
        }))
        .start()
        .unwrap();
    let peer = runtime.client().connect(&runtime.endpoints()[0]).unwrap();
    (runtime, peer)
}

#[test]
fn a_typed_request_and_its_response_are_two_encodes_two_decodes_and_no_task() {
    const REQUESTS: u64 = 100;
    let _alone = ALONE
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let (runtime, peer) = start();
    let client = runtime.client();
    for postcard in [false, true] {
        let before = (ENCODES.load(Relaxed), DECODES.load(Relaxed));
        for n in 0..REQUESTS {
            let message = client.message("next");
            let message = match postcard {
                true => message.postcard(&Counted(n)).unwrap(),
                false => message.json(&Counted(n)).unwrap(),
            };
            let next: Counted = message.to(&peer).request().wait().unwrap();
            assert_eq!(next, Counted(n + 1));
        }
        assert_eq!(
            ENCODES.load(Relaxed) - before.0,
            2 * REQUESTS,
            "postcard: {postcard}"
        );
        assert_eq!(
            DECODES.load(Relaxed) - before.1,
            2 * REQUESTS,
            "postcard: {postcard}"
        );
    }
    // Nobody waits for its reply, so that it is not even encoded.
    let before = (ENCODES.load(Relaxed), DECODES.load(Relaxed));
    let confirm = client.message("next").json(&Counted(1)).unwrap();
    confirm.to(&peer).confirm().wait().unwrap();
    assert_eq!(ENCODES.load(Relaxed) - before.0, 1);
    assert_eq!(DECODES.load(Relaxed) - before.1, 1);

    let counters = runtime.metrics().total();
    assert_eq!((counters.handled, counters.spawned), (2 * REQUESTS + 1, 0));
}

/// Nothing on a message's way allocates, at either end, once buffers, tables and histograms have
/// grown to their size.
const MODES: [Mode; 5] = [
    Mode::OneWay,
    Mode::Confirm,
    Mode::Request,
    Mode::TypedRequest,
    Mode::JsonRequest,
];

/// One-way messages that may wait for each other.
const ONE_WAY_AT_ONCE: u64 = 500;

#[derive(Clone, Copy, Debug)]
enum Mode {
    OneWay,
    Confirm,
    Request,
    TypedRequest,
    JsonRequest,
}

/// A parcel that crosses is used again, and so is the buffer of its answer. Shards that are awake
/// are not woken, either.
#[test]
fn nothing_is_allocated_per_hop_and_nobody_is_woken() {
    const MESSAGES: u64 = 3_000;
    let _alone = ALONE
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let cpus = corelane::placement::probe().unwrap().usable_ids();
    let spin = cpus.len() >= 2;
    let mut config = Config::default()
        .with_shards(2)
        .with_oversubscribe(true)
        .with_idle(match spin {
            true => IdleStrategy::Spin,
            false => IdleStrategy::Adaptive,
        })
        .with_listen(["tcp://127.0.0.1:0"]);
    // On one CPU the other shard's turn must come.
    config.idle.yield_us = 1_000_000;
    let next = inline("next", |n: Counted, _| Ok(Counted(n.0 + 1)));
    let echo = inline_raw("echo", |payload, reply, _| {
        reply.extend_from_slice(payload);
        Ok(())
    });
    let stall = inline("stall", |(): (), _| {
        std::thread::sleep(Duration::from_millis(100));
        Ok(())
    });
    let handlers = [next, echo, stall].map(|it| it.on_shard(1));
    let builder = Runtime::builder(config).handlers(handlers);
    let runtime = builder.start().unwrap();
    let endpoint = &runtime.endpoints()[0];
    let peer = runtime.client().connect_routed(0, endpoint).unwrap();
    let to = peer.clone();
    let crowd = runtime.run_on(0, move |cx| crowd(cx, to));
    crowd.wait().expect("the task ended");
    for mode in MODES {
        // A machine that is busy enough may let more wait than the crowd, at any time. What is
        // allocated per hop is so in every round.
        let counts = rounds(&runtime, &peer, mode, MESSAGES);
        let least = counts.iter().copied().min().unwrap_or(u64::MAX);
        assert!(
            least <= PER_ROUND_MAX,
            "{mode:?}: {counts:?} for {MESSAGES}"
        );
    }
    let counters = runtime.metrics().total();
    assert_eq!(counters.hopped_in, counters.accepted);
    match spin {
        true => assert_eq!(counters.shards_woken, 0),
        false => eprintln!("SKIPPED: that nobody is woken takes two CPUs to spin on"),
    }
}

/// As many parcels are made as are ever under way at once. Has as many wait for the other shard as
/// may in a round, where that is not there for a while.
async fn crowd(cx: TaskContext, peer: Peer) {
    let client = cx.client();
    let stall = client.message("stall").json(&()).unwrap();
    stall.to(&peer).one_way().unwrap();
    for _ in 0..ONE_WAY_AT_ONCE {
        let message = client.message("echo").raw_copy(&[7; 64]);
        message.to(&peer).one_way().unwrap();
    }
    client.message("echo").to(&peer).confirm().await.unwrap();
}

/// What a round allocates beside its messages.
const PER_ROUND_MAX: u64 = 16;

#[test]
fn nothing_is_allocated_per_message() {
    const MESSAGES: u64 = 3_000;
    let _alone = ALONE
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let (runtime, peer) = start();
    for mode in MODES {
        for count in rounds(&runtime, &peer, mode, MESSAGES) {
            // The round's own task, its channel and its last message.
            assert!(count <= PER_ROUND_MAX, "{mode:?}: {count} for {MESSAGES}");
        }
    }
}

/// Replies share buffers, and what is collected stays where it has grown.
#[test]
fn nothing_is_allocated_per_message_of_a_batch() {
    const MESSAGES: u64 = 3_000;
    let _alone = ALONE
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let config = Config::default()
        .with_shards(1)
        .with_idle(IdleStrategy::Spin)
        .with_listen(["tcp://127.0.0.1:0"]);
    let batch = Batch {
        count_max: 8,
        bytes_max: 1 << 20,
        age_max: Duration::ZERO,
    };
    let next = batched("next", batch, |items: &mut [Item<Counted, Counted>], _| {
        for item in items {
            let next = Counted(item.request().0 + 1);
            item.answer(Ok(next));
        }
    });
    let echo = batched_raw("echo", batch, |items, _| {
        for item in items {
            let reply = item.request().clone();
            item.answer(Ok(reply));
        }
    });
    let builder = Runtime::builder(config).handlers([next, echo]);
    let runtime = builder.start().unwrap();
    let peer = runtime.client().connect(&runtime.endpoints()[0]).unwrap();
    for mode in MODES {
        for count in rounds(&runtime, &peer, mode, MESSAGES) {
            let most = PER_ROUND_MAX + MESSAGES / 100;
            assert!(count <= most, "{mode:?}: {count} for {MESSAGES}");
        }
    }
    let total = runtime.metrics().total();
    assert_eq!(total.batched, total.accepted);
    println!("{} messages in {} batches", total.batched, total.batches);
}

/// glommio looks for its timers, its I/O and other threads' wake-ups so often at least.
const LOOKS_EVERY_MS: u64 = 100;
/// What it allocates each time.
const PER_LOOK: u64 = 3;

/// How often so many messages allocate, in some rounds of them.
fn rounds(runtime: &Runtime, peer: &Peer, mode: Mode, messages: u64) -> Vec<u64> {
    let mut counts = Vec::new();
    // The first round warms up: buffers, tables and histograms grow to their size.
    for round in 0..4 {
        let (before, began) = (ALLOCATIONS.load(Relaxed), Instant::now());
        let peer = peer.clone();
        let sent = runtime.run_on(0, move |cx| send(cx, peer, mode, messages));
        sent.wait().expect("the task ended");
        let count = ALLOCATIONS.load(Relaxed) - before;
        // By the time and not by the message: a busy machine makes a round take many of these.
        let looks = began.elapsed().as_millis() as u64 / LOOKS_EVERY_MS;
        let beside = looks * PER_LOOK * runtime.shards().count() as u64;
        if round > 0 {
            counts.push(count.saturating_sub(beside));
        }
    }
    let per_message = counts.iter().map(|&count| count as f64 / messages as f64);
    let per_message: Vec<String> = per_message.map(|it| format!("{it:.2}")).collect();
    println!("{mode:?}: {} allocations a message", per_message.join(", "));
    counts
}

async fn send(cx: TaskContext, peer: Peer, mode: Mode, messages: u64) {
    let client = cx.client();
    for n in 0..messages {
        let raw = || client.message("echo").raw_copy(&[7; 64]).to(&peer);
        match mode {
            Mode::OneWay => {
                // An answer says that the queue is empty again.
                if n % ONE_WAY_AT_ONCE == 0 {
                    client.message("echo").to(&peer).confirm().await.unwrap();
                }
                raw().one_way().unwrap();
            }
            Mode::Confirm => raw().confirm().await.unwrap(),
            Mode::Request => assert_eq!(raw().request().await.unwrap().len(), 64),
            Mode::TypedRequest | Mode::JsonRequest => {
                let message = client.message("next");
                let message = match mode {
                    Mode::JsonRequest => message.json(&Counted(n)).unwrap(),
                    _ => message.postcard(&Counted(n)).unwrap(),
                };
                let next: Counted = message.to(&peer).request().await.unwrap();
                assert_eq!(next.0, n + 1);
            }
        }
    }
    client.message("echo").to(&peer).confirm().await.unwrap();
}
