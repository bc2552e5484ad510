//! Ten times too much load on the real thing, for half a second. `tests/sim/overload.rs` holds what
//! is promised to figures, in virtual time; `cargo bench --bench overload` measures them.

use std::{
    collections::VecDeque,
    thread,
    time::{Duration, Instant},
};

use corelane::{
    Config, Runtime,
    client::{LocalCall, Peer, RawReply},
    config::IdleStrategy,
    error::CallError,
    handler::{TaskContext, inline_raw},
    wire::Reason,
};
use futures_lite::future::{poll_once, yield_now};

/// It sleeps, so that it takes no CPU from whatever else is tested now.
const WORK: Duration = Duration::from_millis(1);
const FLOOD: Duration = Duration::from_millis(500);
const TARGET_US: u64 = 20_000;

/// What came of a flood.
struct Flood {
    answered: usize,
    refused: usize,
    median: Duration,
    shed: u64,
}

fn config() -> Config {
    Config::default()
        .with_shards(1)
        .with_oversubscribe(true)
        .with_idle(IdleStrategy::Park)
}

fn send(cx: &TaskContext, peer: &Peer) -> Option<LocalCall<RawReply>> {
    let message = cx.client().message("work").raw_copy(b"x").to(peer);
    message
        .request()
        .within(Duration::from_secs(20))
        .send()
        .ok()
}

/// How long a number of requests take, one after the other.
async fn one_by_one(cx: TaskContext, peer: Peer) -> Duration {
    let began = Instant::now();
    for _ in 0..100 {
        let call = send(&cx, &peer).expect("room for one");
        call.await.expect("is answered");
    }
    began.elapsed() / 100
}

/// Sends one each so often, whatever comes back, and waits for all.
async fn flood(cx: TaskContext, peer: Peer, every: Duration) -> (Vec<Duration>, usize) {
    let (mut took, mut refused) = (Vec::new(), 0);
    let mut flights: VecDeque<(Instant, LocalCall<RawReply>)> = VecDeque::new();
    let (mut due, end) = (Instant::now(), Instant::now() + FLOOD);
    while due < end || !flights.is_empty() {
        while due < end && due <= Instant::now() {
            match send(&cx, &peer) {
                Some(call) => flights.push_back((due, call)),
                None => refused += 1,
            }
            due += every;
        }
        while let Some((due, call)) = flights.front_mut() {
            let Some(reply) = poll_once(call).await else {
                break;
            };
            match reply {
                Ok(_) => took.push(due.elapsed()),
                Err(CallError::Nack {
                    reason: Reason::Overloaded,
                    ..
                }) => refused += 1,
                Err(error) => panic!("{error}"),
            }
            flights.pop_front();
        }
        match flights.is_empty() {
            true => yield_now().await,
            false => cx.sleep(Duration::from_micros(500)).await,
        }
    }
    (took, refused)
}

fn run(shed_target_us: u64) -> (Duration, Flood) {
    let server = config().with_listen(["tcp://127.0.0.1:0"]);
    let server = server.with_limits(|limits| {
        limits.turn_messages_max = 4;
        limits.inline_budget_us = 1_000_000;
        limits.shed_target_us = shed_target_us;
    });
    let work = inline_raw("work", |payload, reply, _cx| {
        thread::sleep(WORK);
        reply.extend_from_slice(payload);
        Ok(())
    });
    let server = Runtime::builder(server).handler(work).start().unwrap();
    let caller = config().with_limits(|limits| limits.outgoing_messages_max = 100_000);
    let caller = Runtime::builder(caller).start().unwrap();
    let peer = caller.client().connect(&server.endpoints()[0]).unwrap();
    let other = Runtime::builder(config()).start().unwrap();
    let operator = other.client().connect(&server.endpoints()[0]).unwrap();
    let to = peer.clone();
    let one = caller.run_on(0, move |cx| one_by_one(cx, to));
    let one = one.wait().expect("it does not panic");
    let flooding = caller.run_on(0, move |cx| flood(cx, peer, one / 10));
    // Who asks how it is is answered, though everybody else is refused.
    for _ in 0..10 {
        thread::sleep(FLOOD / 20);
        let message = other.client().message("_health").to(&operator);
        message.request().wait().expect("an answer");
    }
    let (mut took, refused) = flooding.wait().expect("it does not panic");
    let counters = server.metrics().total();
    let totals = server.drain();
    assert_eq!(totals.accepted, totals.handled + totals.nacked);
    assert_eq!(counters.nacked_by_reason[5], counters.shed);
    took.sort_unstable();
    let flood = Flood {
        answered: took.len(),
        refused,
        median: took[took.len() / 2],
        shed: counters.shed,
    };
    (one, flood)
}

/// Bounds are wide, and held against the same machine without shedding, some seconds apart.
#[test]
fn a_flood_costs_those_who_are_admitted_less_than_they_would_wait_otherwise() {
    let (_, all) = run(0);
    assert_eq!((all.shed, all.refused), (0, 0));
    let (one, flooded) = run(TARGET_US);
    assert_eq!(flooded.shed, flooded.refused as u64);
    assert!(flooded.refused > flooded.answered, "{}", flooded.refused);
    let peak = FLOOD.as_secs_f64() / one.as_secs_f64();
    assert!(
        flooded.answered as f64 >= 0.5 * peak,
        "{} of {peak}",
        flooded.answered
    );
    assert!(
        flooded.median * 3 <= all.median,
        "{:?}, {:?} without",
        flooded.median,
        all.median
    );
}
