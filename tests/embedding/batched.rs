//! Batched handlers: what runs a batch, and how each of its messages ends.

use std::time::Duration;

use bytes::Bytes;
use corelane::{
    Runtime,
    client::{Call, Peer, TypedReply},
    handler::{Batch, BatchContext, Handler, HandlerError, Item, batched, batched_raw},
    metrics::Metric,
    wire::Reason,
};

use crate::{
    requests::expect_nack,
    service::{PATIENCE, Setup, echo, eventually},
};

const ENDLESS: Batch = Batch {
    count_max: usize::MAX,
    bytes_max: usize::MAX,
    age_max: Duration::from_secs(3600),
};

/// Replies with the place in the batch and its size; 7 fails, 8 panics, 9 is left alone.
fn place(items: &mut [Item<u64, (usize, usize)>], _: &mut BatchContext<'_>) {
    let count = items.len();
    for (at, item) in items.iter_mut().enumerate() {
        match *item.request() {
            7 => item.answer(Err(HandlerError::new("no sevens"))),
            8 => std::panic::resume_unwind(Box::new("an eight")),
            9 => {}
            _ => item.answer(Ok((at, count))),
        }
    }
}

fn ask(caller: &Runtime, peer: &Peer, handler: &str, n: u64) -> Call<TypedReply<(usize, usize)>> {
    let message = caller.client().message(handler).json(&n).unwrap();
    message.to(peer).request().send().unwrap()
}

pub(crate) fn a_batch_runs_by_count_bytes_or_age(setup: &Setup) {
    let by = |name: &str, batch: Batch| -> Handler { batched(name, batch, place) };
    let service = setup.serve(vec![
        echo(),
        by(
            "count",
            Batch {
                count_max: 3,
                ..ENDLESS
            },
        ),
        // Three digits each.
        by(
            "bytes",
            Batch {
                bytes_max: 7,
                ..ENDLESS
            },
        ),
        by(
            "age",
            Batch {
                age_max: Duration::from_millis(150),
                ..ENDLESS
            },
        ),
    ]);
    let caller = setup.caller();
    let peer = service.connect(&caller);
    for handler in ["count", "bytes"] {
        let calls = [100, 200, 300].map(|n| ask(&caller, &peer, handler, n));
        assert_eq!(calls.map(Call::wait), [Ok((0, 3)), Ok((1, 3)), Ok((2, 3))]);
    }
    let begun = std::time::Instant::now();
    let calls = [1, 2].map(|n| ask(&caller, &peer, "age", n));
    let replies = calls.map(|call| call.wait().unwrap().0);
    assert!(begun.elapsed() >= Duration::from_millis(150));
    assert!(begun.elapsed() < PATIENCE / 2);
    // On a busy machine the second may have come later.
    assert!(replies == [0, 1] || replies == [0, 0], "{replies:?}");
    let metrics = service.runtime.metrics();
    assert_eq!((metrics.total().batched, metrics.total().handled), (8, 8));
    for metric in [Metric::InHandler, Metric::ReadToReply] {
        assert_eq!(metrics.histogram(metric, "count").unwrap().len(), 3);
    }
}

/// Requests, confirmed and one-way messages in one batch, which other peers have a part in.
pub(crate) fn each_message_of_a_batch_ends_on_its_own(setup: &Setup) {
    let batch = Batch {
        count_max: 5,
        ..ENDLESS
    };
    let raw = batched_raw("raw", batch, |items, _cx| {
        for item in items {
            let reply = item.request().clone();
            assert_eq!(item.wants_reply(), reply.len() != 4);
            item.answer(Ok(reply));
        }
    });
    let service = setup.serve(vec![batched("place", batch, place), raw]);
    let (caller, other) = (setup.caller(), setup.caller());
    let (peer, from_other) = (service.connect(&caller), service.connect(&other));
    let request = |n| ask(&caller, &peer, "place", n);
    let (good, bad) = (request(1), request(7));
    let message = caller.client().message("place").json(&9).unwrap();
    let silent = message.to(&peer).confirm().send().unwrap();
    let message = caller.client().message("place").json(&3).unwrap();
    message.to(&peer).one_way().unwrap();
    // What cannot be read is no part of it.
    let message = caller.client().message("place").json(&"text").unwrap();
    let unreadable = message.to(&peer).request::<()>().wait();
    expect_nack(unreadable, Reason::Malformed, "");
    let last = ask(&other, &from_other, "place", 4);
    assert_eq!(last.wait(), Ok((4, 5)));
    assert_eq!(good.wait(), Ok((0, 5)));
    expect_nack(bad.wait(), Reason::HandlerFailed, "no sevens");
    expect_nack(silent.wait(), Reason::HandlerFailed, "no answer");

    let calls = [1, 2, 8, 3, 4].map(request);
    for call in calls {
        expect_nack(call.wait(), Reason::HandlerPanicked, "an eight");
    }

    let long = Bytes::from(vec![5; 100_000]);
    let texts = ["a".into(), long, Bytes::new(), "d".into()];
    let raw = |text: &Bytes| {
        let message = caller.client().message("raw").raw(text.clone());
        message.to(&peer).request().send().unwrap()
    };
    let calls: Vec<_> = texts.iter().map(raw).collect();
    let fifth = caller.client().message("raw").raw("once").to(&peer);
    fifth.confirm().wait().unwrap();
    for (call, text) in calls.into_iter().zip(&texts) {
        assert_eq!(call.wait().as_ref(), Ok(text));
    }
    let total = service.runtime.metrics().total();
    assert_eq!((total.batched, total.batches), (15, 3));
    assert_eq!(
        (total.handled, total.nacked(), total.in_flight()),
        (8, 8, 0)
    );
}

/// Cancelled, late, and those that a drain finds; also from another shard.
pub(crate) fn what_waits_for_a_batch_may_be_cancelled_and_is_drained(setup: &Setup) {
    let there = batched("there", ENDLESS, place).on_shard(1);
    let service = setup.serve_oversubscribed(2, vec![batched("here", ENDLESS, place), there]);
    let caller = setup.caller();
    let peer = caller
        .client()
        .connect_routed(0, &service.endpoint)
        .unwrap();
    let nobody = || {
        let nobody = caller.client().message("nobody").to(&peer).confirm();
        expect_nack(nobody.wait(), Reason::UnknownHandler, "");
    };
    // The connection stands.
    nobody();
    let mut calls = Vec::new();
    let mut sent = 1;
    for handler in ["here", "there"] {
        let first = ask(&caller, &peer, handler, 1);
        let cancelled = ask(&caller, &peer, handler, 2);
        let within = Duration::from_millis(100);
        let message = caller.client().message(handler).json(&3).unwrap();
        let late = message.to(&peer).request::<()>().within(within).send();
        calls.push((first, ask(&caller, &peer, handler, 4)));
        sent += 4;
        // Or refused: on a busy machine one may be late as it arrives.
        eventually("all are collected", || {
            let total = service.runtime.metrics().total();
            total.batched + total.nacked() == sent
        });
        drop(cancelled);
        late.unwrap().wait().unwrap_err();
    }
    // The cancel was sent before this.
    nobody();
    std::thread::sleep(Duration::from_millis(50));
    let begun = std::time::Instant::now();
    let totals = service.runtime.drain();
    assert!(
        begun.elapsed() < PATIENCE / 2,
        "it does not wait for their age"
    );
    for (first, second) in calls {
        assert_eq!((first.wait(), second.wait()), (Ok((0, 2)), Ok((1, 2))));
    }
    assert_eq!((totals.accepted, totals.handled), (10, 4));
    // Late, unknown, and cancelled.
    assert_eq!((totals.nacked, totals.lost), (4, 2));
}
