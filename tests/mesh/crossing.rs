//! Messages that arrive at another shard than the one that runs them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use corelane::{
    Runtime,
    config::IdleStrategy,
    error::{CallError, Indeterminate},
    handler::{Handler, HandlerError, inline_in_place, inline_raw, spawned},
    metrics::Counters,
    wire::{Codec, HandlerKey, Header, Kind, Reason, shard_of_key},
};

use crate::{PATIENCE, caller, config, start, start_at};

/// Says on which shard it runs.
fn place(name: &str) -> Handler {
    inline_raw(name, |_, reply, cx| {
        reply.extend_from_slice(&[cx.shard().shard as u8]);
        Ok(())
    })
}

#[test]
fn a_message_runs_on_the_shard_of_its_handler_and_its_answer_comes_back() {
    const SHARDS: usize = 3;
    let runtime = start(
        SHARDS,
        vec![
            place("local"),
            place("one").on_shard(1),
            place("last").on_last_shard(),
            place("key").by_route_key(),
        ],
    );
    let caller = caller(1);
    let mut hops = 0;
    for (info, endpoints) in runtime.shards() {
        let client = caller.client();
        let peer = client.connect_routed(0, &endpoints[0]).unwrap();
        let mut runs_on = |name: &str, key: u64, expected: usize| {
            let request = client.message(name).route_key(key).to(&peer).request();
            assert_eq!(
                request.wait().unwrap(),
                [expected as u8][..],
                "{name} {key}"
            );
            hops += u64::from(expected != info.shard);
        };
        runs_on("local", 0, info.shard);
        runs_on("one", 0, 1);
        runs_on("last", 0, SHARDS - 1);
        for key in [1, 2, 3, 4, 5, u64::MAX] {
            runs_on("key", key, shard_of_key(key, SHARDS));
        }
        let no_key = client.message("key").to(&peer).request().wait();
        let Err(CallError::Nack { reason, text }) = no_key else {
            panic!("{no_key:?}");
        };
        assert_eq!(reason, Reason::Malformed);
        assert!(text.contains("route key"), "{text}");
    }
    let counters = runtime.metrics().total();
    assert_eq!((counters.hopped_out, counters.hopped_in), (hops, hops));
}

/// Each kind of end, and each mode, across a ring.
#[test]
fn ends_come_back_as_they_are() {
    let fails = inline_raw("fail", |_, _, _| Err(HandlerError::new("as asked"))).on_shard(1);
    let panics = inline_raw("panic", |_, _, _| panic!("as asked")).on_shard(1);
    let sleeps = spawned("sleep", |ms: u64, cx| async move {
        cx.sleep(Duration::from_millis(ms)).await;
        Ok(ms)
    });
    let reverse = inline_in_place("reverse", |payload, _| {
        payload.reverse();
        Ok(payload.len())
    });
    let handlers = vec![fails, panics, sleeps.on_shard(1), reverse.on_shard(1)];
    let (runtime, caller) = (start(2, handlers), caller(1));
    let client = caller.client();
    let peer = client.connect_routed(0, &runtime.endpoints()[0]).unwrap();
    for (name, expected) in [
        ("fail", Reason::HandlerFailed),
        ("panic", Reason::HandlerPanicked),
    ] {
        for is_confirm in [false, true] {
            let message = client.message(name).to(&peer);
            let end = match is_confirm {
                true => message.confirm().wait(),
                false => message.request().wait().map(|_| ()),
            };
            let Err(CallError::Nack { reason, text }) = end else {
                panic!("{name}: {end:?}");
            };
            assert_eq!((reason, text.as_str()), (expected, "as asked"));
        }
        client.message(name).to(&peer).one_way().unwrap();
    }
    let slept = client
        .message("sleep")
        .json(&3)
        .unwrap()
        .to(&peer)
        .request();
    assert_eq!(slept.wait(), Ok(3_u64));
    let sleep = client.message("sleep").json(&60_000).unwrap().to(&peer);
    let within = Duration::from_millis(50);
    let late: Result<u64, _> = sleep.request().within(within).wait();
    assert_eq!(late, Err(CallError::Indeterminate(Indeterminate::Deadline)));
    // Large ones go along in the buffer that they were read into.
    for bytes in [0, 1, 255, 256, 16 << 10, 1 << 20] {
        let payload: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
        let reversed: Vec<u8> = payload.iter().rev().copied().collect();
        let request = client.message("reverse").raw(payload).to(&peer).request();
        assert_eq!(request.wait().unwrap(), reversed, "{bytes}");
    }
}

/// A ring of one place to a shard that is busy: whoever fills it waits, and nobody else.
#[test]
fn a_full_ring_holds_back_the_connection_that_fills_it_and_no_other() {
    const MESSAGES: u64 = 50;
    let (go, gone) = mpsc::channel::<()>();
    let gone = Arc::new(std::sync::Mutex::new(gone));
    let stuck = inline_raw("stuck", move |_, _, _| {
        // Until the test lets it go on, once and for all.
        let _ = gone.lock().unwrap().recv();
        Ok(())
    });
    let echo = inline_raw("echo", |payload, reply, _| {
        reply.extend_from_slice(payload);
        Ok(())
    });
    let anywhere = ["tcp://127.0.0.1:0".to_owned()];
    let runtime = start_at(&anywhere, 2, vec![stuck.on_shard(1), echo], |limits| {
        limits.ring_capacity = 1;
        // Who is held back is no slow consumer, however long.
        limits.slow_consumer_ms = 100;
    });
    let caller = caller(1);
    let client = caller.client();
    let connect = || client.connect_routed(0, &runtime.endpoints()[0]).unwrap();
    let (filling, other) = (connect(), connect());
    for _ in 0..MESSAGES {
        client.message("stuck").to(&filling).one_way().unwrap();
    }
    // Behind them on the same connection, so that it waits too.
    let behind = client
        .message("echo")
        .to(&filling)
        .request()
        .send()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    for n in 0..200_u32 {
        let payload = Bytes::copy_from_slice(&n.to_le_bytes());
        let request = client
            .message("echo")
            .raw(payload.clone())
            .to(&other)
            .request();
        assert_eq!(request.wait().unwrap(), payload);
    }
    let before = runtime.metrics().shards()[0].accepted;
    assert!(before < 200 + MESSAGES, "all was read: {before}");
    drop(go);
    behind.wait().unwrap();
    let account = filling.account();
    assert_eq!((account.one_way_sent, account.lost), (MESSAGES, 0));
    let totals = runtime.drain();
    assert_eq!(totals.handled, 200 + MESSAGES + 1, "{totals:?}");
    assert_eq!(totals.accepted, totals.handled);
}

/// Both shards park. What the second takes from its ring gives no sign of life for long: it must
/// wake the first, which sleeps because the ring was full.
#[test]
fn a_shard_that_sleeps_for_want_of_room_is_woken_by_room() {
    const MESSAGES: u64 = 50;
    let begun = Arc::new(AtomicU64::new(0));
    let counted = begun.clone();
    let sleeps = spawned("sleep", move |ms: u64, cx| {
        counted.fetch_add(1, Relaxed);
        async move {
            cx.sleep(Duration::from_millis(ms)).await;
            Ok(())
        }
    });
    let anywhere = ["tcp://127.0.0.1:0".to_owned()];
    let config = config(&anywhere, 2, |limits| {
        limits.ring_capacity = 1;
        limits.turn_messages_max = 1;
        // Nothing else is to wake them.
        limits.heartbeat_interval_ms = 60_000;
        limits.heartbeat_timeout_ms = 180_000;
        limits.drain_ms = 0;
    });
    let builder = Runtime::builder(config.with_idle(IdleStrategy::Park));
    let runtime = builder.handler(sleeps.on_shard(1)).start().unwrap();
    let caller = caller(1);
    let client = caller.client();
    let peer = client.connect_routed(0, &runtime.endpoints()[0]).unwrap();
    for _ in 0..MESSAGES {
        let message = client.message("sleep").json(&600_000).unwrap();
        message.to(&peer).one_way().unwrap();
    }
    let until = Instant::now() + PATIENCE;
    while begun.load(Relaxed) < MESSAGES {
        assert!(Instant::now() < until, "{begun:?} have begun");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_drain_accounts_for_what_is_on_another_shard() {
    const CALLS: u64 = 40;
    let sleeps = spawned("sleep", |ms: u64, cx| async move {
        cx.sleep(Duration::from_millis(ms)).await;
        Ok(ms)
    });
    for (sleep_ms, drain_ms) in [(200, 20_000), (60_000, 100)] {
        let anywhere = ["tcp://127.0.0.1:0".to_owned()];
        let handlers = vec![sleeps.clone().on_shard(1)];
        let runtime = start_at(&anywhere, 2, handlers, |limits| limits.drain_ms = drain_ms);
        let caller = caller(1);
        let client = caller.client();
        let peer = client.connect_routed(0, &runtime.endpoints()[0]).unwrap();
        let calls: Vec<_> = (0..CALLS)
            .map(|_| {
                let message = client.message("sleep").json(&sleep_ms).unwrap().to(&peer);
                message.request::<u64>().send().unwrap()
            })
            .collect();
        let until = Instant::now() + PATIENCE;
        while runtime.metrics().total().hopped_in < CALLS {
            assert!(Instant::now() < until, "they never crossed");
        }
        let totals = runtime.drain();
        assert_eq!(totals.accepted, CALLS);
        let is_short = sleep_ms < drain_ms;
        let expected = if is_short { (CALLS, 0) } else { (0, CALLS) };
        assert_eq!(
            (totals.handled, totals.indeterminate),
            expected,
            "{totals:?}"
        );
        for call in calls {
            assert_eq!(call.wait().is_ok(), is_short);
        }
    }
}

/// By a peer that knows the wire alone: a correlation is all that it must give.
#[test]
fn a_cancel_that_names_no_handler_finds_the_shard_of_its_message() {
    let hang = |name: &str| -> Handler {
        spawned(name, |(): (), cx| async move {
            cx.sleep(Duration::from_secs(3600)).await;
            Ok(())
        })
    };
    let handlers = vec![hang("here").on_shard(0), hang("there").on_shard(2)];
    let runtime = start(3, handlers);
    let socket = zmq::Context::new().socket(zmq::DEALER).unwrap();
    socket.set_linger(0).unwrap();
    socket.connect(&runtime.endpoints()[0]).unwrap();
    let send = |header: Header, payload: &[u8]| {
        let header = header.encode();
        socket.send_multipart([&header[..], payload], 0).unwrap();
    };
    for (correlation, handler) in [(7, "here"), (8, "there"), (9, "there")] {
        let request = Header {
            codec: Codec::Json,
            handler: HandlerKey::of(handler),
            deadline_us: 3_600_000_000,
            ..Header::new(Kind::Request, correlation)
        };
        send(request, b"null");
    }
    let until = |what: &str, holds: &dyn Fn(&Counters) -> bool| {
        let until = Instant::now() + PATIENCE;
        while !holds(&runtime.metrics().total()) {
            assert!(Instant::now() < until, "{what}");
        }
    };
    until("they run", &|total| total.spawned == 3);
    // One of them nobody has sent, or not so.
    for correlation in [1, 7, 8] {
        send(Header::new(Kind::Cancel, correlation), b"");
    }
    until("two are stopped", &|total| total.stopped == 2);
    send(Header::new(Kind::Cancel, 9), b"");
    until("all are stopped", &|total| total.in_flight() == 0);
    let totals = runtime.drain();
    assert_eq!((totals.accepted, totals.indeterminate), (3, 3));
}
