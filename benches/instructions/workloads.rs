//! What is counted. Each workload does as many messages as it is told, in one thread, without a
//! system call and the same way each time, and returns how many it did.

use std::{
    future::{Future, IntoFuture},
    hint::black_box,
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use corelane::{
    handler::{Arrival, Dispatch, Lent, Registry, Timers},
    wire::{Codec, Header, Outbox, Received},
};

use crate::world::{
    PAYLOAD, TURN_MESSAGES_MAX, World, clock, doorbells, handlers, meshes, request, shard_info,
};

/// A figure's name, and what does the messages.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) run: fn(u64) -> u64,
    /// In a few words, for the table.
    pub(crate) what: &'static str,
}

const fn workload(name: &'static str, run: fn(u64) -> u64, what: &'static str) -> Workload {
    Workload { name, run, what }
}

/// Messages of one turn, where there is more than one.
const MANY: usize = TURN_MESSAGES_MAX;

pub(crate) const WORKLOADS: [Workload; 20] = [
    workload("header-decode", header_decode, "a header is decoded"),
    workload(
        "header-encode",
        header_encode,
        "header and 64 B into an outbox",
    ),
    workload(
        "dispatch-raw",
        dispatch_raw,
        "lookup, raw handler, 64 B reply",
    ),
    workload(
        "dispatch-json",
        dispatch_json,
        "the same, typed, JSON both ways",
    ),
    workload("hop-by-1", hop::<1>, "over a ring and back"),
    workload("hop-by-32", hop::<MANY>, "the same, 32 at a time"),
    workload(
        "echo-1-shard-by-1",
        echo::<1, 1>,
        "a turn that echoes one message",
    ),
    workload("echo-1-shard-by-32", echo::<1, MANY>, "the same, 32 a turn"),
    workload(
        "echo-2-shards-by-1",
        echo::<2, 1>,
        "two shards, nothing crosses",
    ),
    workload(
        "echo-2-shards-by-32",
        echo::<2, MANY>,
        "the same, 32 a turn",
    ),
    workload(
        "echo-4-shards-by-1",
        echo::<4, 1>,
        "four shards, nothing crosses",
    ),
    workload(
        "echo-4-shards-by-32",
        echo::<4, MANY>,
        "the same, 32 a turn",
    ),
    workload(
        "cross-by-1",
        cross::<1>,
        "runs on the other shard: two turns",
    ),
    workload("cross-by-32", cross::<MANY>, "the same, 32 in two turns"),
    workload("call-by-1", call, "a request, its answer, and the turn"),
    workload("send-by-32", send, "32 one-way messages and a turn"),
    workload("idle-1-shard", idle::<1>, "a turn that finds nothing"),
    workload("idle-2-shards", idle::<2>, "the same, beside another shard"),
    workload("idle-4-shards", idle::<4>, "the same, beside three"),
    workload("idle-16-shards", idle::<16>, "the same, beside fifteen"),
];

/// Two that must cost the same for each message: what one shard does does not depend on how many
/// there are, as long as nothing crosses.
pub(crate) const SCALING: [[&str; 2]; 2] = [
    ["echo-1-shard-by-32", "echo-2-shards-by-32"],
    ["echo-1-shard-by-32", "echo-4-shards-by-32"],
];

pub(crate) fn named(name: &str) -> Option<&'static Workload> {
    WORKLOADS.iter().find(|it| it.name == name)
}

fn header_decode(messages: u64) -> u64 {
    let frame = request("echo", Codec::Raw).encode();
    let mut done = 0;
    for _ in 0..messages {
        let decoded = black_box(Header::decode(black_box(&frame)));
        done += u64::from(decoded.is_ok());
    }
    done
}

fn header_encode(messages: u64) -> u64 {
    let header = request("echo", Codec::Raw);
    let mut outbox = Outbox::new(1_000, 4 << 20);
    let mut done = 0;
    for _ in 0..messages {
        let pushed = outbox.push(black_box(&header), black_box(&PAYLOAD));
        pushed.expect("the outbox is emptied each time");
        done += outbox.advance(outbox.bytes()) as u64;
    }
    done
}

fn dispatch_raw(messages: u64) -> u64 {
    dispatch(messages, request("echo", Codec::Raw), &PAYLOAD)
}

fn dispatch_json(messages: u64) -> u64 {
    dispatch(messages, request("sum", Codec::Json), br#"{"a":1,"b":2}"#)
}

fn dispatch(messages: u64, header: Header, payload: &[u8]) -> u64 {
    let (clock, _) = clock();
    let now = clock.now();
    let info = Rc::new(shard_info(0, 1));
    let mut registry = Registry::new(&handlers(), &info);
    let (timers, world) = (Rc::new(Timers::new(clock)), World::serving(1, "echo"));
    let (frame, mut payload) = (header.encode(), payload.to_vec());
    let mut outbox = Outbox::new(1_000, 4 << 20);
    let mut done = 0;
    for _ in 0..messages {
        let arrival = Arrival {
            header: black_box(header),
            message: &mut Received::apart(&frame, &mut payload),
            outbox: &mut outbox,
            deadline: Some(now + Duration::from_secs(30)),
            now,
        };
        let lent = Lent {
            shard: &info,
            client: world.shards[0].client(),
            asker: &None,
            timers: &timers,
            may_spawn: true,
            reply_bytes_max: 1 << 20,
        };
        let dispatched = registry.dispatch(arrival, &lent);
        assert!(matches!(dispatched, Dispatch::Handled(_)), "{dispatched:?}");
        done += outbox.advance(outbox.bytes()) as u64;
    }
    done
}

/// So many at a time are asked, taken, given back and taken back.
fn hop<const BATCH: usize>(messages: u64) -> u64 {
    let mut meshes = meshes::<u64>(&doorbells(2));
    let [here, there] = &mut meshes[..] else {
        unreachable!("there are two")
    };
    let (mut at_home, mut abroad) = (Vec::new(), Vec::new());
    at_home.extend((0..BATCH as u64).map(Box::new));
    let mut done = 0;
    for _ in 0..messages / BATCH as u64 {
        for item in at_home.drain(..) {
            here.ask(1, item).expect("the ring is empty");
        }
        here.publish();
        there.take_asked(0, BATCH, &mut abroad);
        for item in abroad.drain(..) {
            there.give_back(0, item).expect("the ring is empty");
        }
        there.publish();
        done += here.take_back(1, &mut at_home) as u64;
    }
    done
}

/// Each shard reads, handles and answers so many messages in each of its turns.
fn echo<const SHARDS: usize, const BATCH: usize>(messages: u64) -> u64 {
    let mut world = World::serving(SHARDS, "echo");
    for _ in 0..messages / (SHARDS * BATCH) as u64 {
        for shard in 0..SHARDS {
            world.send(shard, BATCH);
        }
        world.turn_all();
    }
    world.echoed()
}

/// What one shard reads runs on the other, and its answer leaves in the first one's next turn.
fn cross<const BATCH: usize>(messages: u64) -> u64 {
    let mut world = World::serving(2, "far");
    for _ in 0..messages / BATCH as u64 {
        world.send(0, BATCH);
        world.turn_all();
    }
    world.turn_all();
    world.echoed()
}

/// A task's call, answered in the turn that sends it. What the task's executor would do is not in
/// it.
fn call(messages: u64) -> u64 {
    let (mut world, client, peer) = World::calling();
    let mut cx = Context::from_waker(Waker::noop());
    let mut done = 0;
    for _ in 0..messages {
        let request = client.message("echo").raw_copy(&PAYLOAD).to(&peer);
        let mut call = pin!(request.request().into_future());
        assert!(call.as_mut().poll(&mut cx).is_pending(), "not yet sent");
        world.turn_all();
        match call.poll(&mut cx) {
            Poll::Ready(Ok(reply)) if *reply == PAYLOAD => done += 1,
            other => panic!("{other:?} is no echo"),
        }
    }
    done
}

fn send(messages: u64) -> u64 {
    let (mut world, client, peer) = World::calling();
    let before = world.sent();
    for _ in 0..messages / MANY as u64 {
        for _ in 0..MANY {
            let message = client.message("echo").raw_copy(&PAYLOAD).to(&peer);
            message.one_way().expect("the queue is empty");
        }
        world.turn_all();
    }
    world.sent() - before
}

/// A message stands for a turn.
fn idle<const SHARDS: usize>(turns: u64) -> u64 {
    let mut world = World::serving(SHARDS, "echo");
    let rounds = turns / SHARDS as u64;
    for _ in 0..rounds {
        world.turn_all();
    }
    assert_eq!(world.echoed(), 0, "nobody has sent anything");
    rounds * SHARDS as u64
}
