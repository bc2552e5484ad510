//! What goes wrong, and what its caller is told.

use std::time::{Duration, Instant};

use bytes::Bytes;
use corelane::{
    error::{CallError, Indeterminate, NotSent},
    handler::{blocking, inline_raw},
    wire::{HandlerKey, Header, Kind},
};
use tempfile::TempDir;

use crate::service::{PATIENCE, Setup, echo, eventually, sleep};

pub(crate) fn a_deadline_that_passes_is_indeterminate(setup: &Setup) {
    // Nothing stops a thread: the answer comes, too late.
    let nap = blocking("nap", |ms: u64, _cx| {
        std::thread::sleep(Duration::from_millis(ms));
        Ok(ms)
    });
    let (service, caller) = (setup.serve(vec![nap, echo()]), setup.caller());
    let peer = service.connect(&caller);
    // The connection stands, so that the deadline cannot pass before the message has left.
    caller
        .client()
        .message("echo")
        .to(&peer)
        .confirm()
        .wait()
        .unwrap();
    let within = Duration::from_millis(40);
    let begun = Instant::now();
    let message = caller.client().message("nap").json(&300_u64).unwrap();
    let late = message.to(&peer).request::<u64>().within(within).wait();
    assert_eq!(late, Err(CallError::Indeterminate(Indeterminate::Deadline)));
    let took = begun.elapsed();
    assert!(took >= within, "{took:?}");
    assert!(
        took < Duration::from_millis(290),
        "by its deadline, not by the answer: {took:?}"
    );
    eventually("the late answer is counted", || {
        caller.metrics().total().late_answers == 1
    });
    let account = peer.account();
    assert_eq!(
        (account.indeterminate, account.settled()),
        (1, account.accepted)
    );
}

pub(crate) fn any_duration_is_a_deadline(setup: &Setup) {
    let (service, caller) = (setup.serve(vec![echo()]), setup.caller());
    let peer = service.connect(&caller);
    let ask = |within| {
        let message = caller.client().message("echo").raw("x").to(&peer);
        message.request().within(within).wait()
    };
    assert_eq!(ask(Duration::MAX), Ok(Bytes::from("x")));
    assert!(matches!(
        ask(Duration::ZERO),
        Err(CallError::NotSent(_) | CallError::Indeterminate(_) | CallError::Nack { .. })
    ));
    assert_eq!(ask(PATIENCE), Ok(Bytes::from("x")));
}

pub(crate) fn nobody_there_is_not_sent_with_the_payload_back(setup: &Setup) {
    let (directory, caller) = (TempDir::new().unwrap(), setup.caller());
    let peer = caller.client().connect(&setup.nowhere(&directory)).unwrap();
    let within = Duration::from_millis(60);
    let begun = Instant::now();
    let message = caller.client().message("echo").raw("come back").to(&peer);
    match message.request().within(within).wait() {
        Err(CallError::NotSent(error)) => {
            assert_eq!(
                (error.why, &error.payload[..]),
                (NotSent::Deadline, &b"come back"[..])
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(begun.elapsed() >= within && begun.elapsed() < PATIENCE);
    let account = peer.account();
    assert_eq!((account.accepted, account.not_sent), (1, 1));
}

pub(crate) fn a_killed_peer_is_indeterminate_and_the_next_one_is_found(setup: &Setup) {
    let (service, caller) = (setup.serve(vec![sleep(), echo()]), setup.caller());
    let peer = service.connect(&caller);
    let message = caller.client().message("sleep").json(&60_000_u64).unwrap();
    let call = message.to(&peer).request::<u64>().send().unwrap();
    eventually("it runs", || service.runtime.metrics().total().spawned == 1);
    let (endpoint, directory) = (service.endpoint.clone(), service.directory);
    let begun = Instant::now();
    drop(service.runtime);
    assert_eq!(
        call.wait(),
        Err(CallError::Indeterminate(Indeterminate::ConnectionLost))
    );
    assert!(begun.elapsed() < PATIENCE / 2, "long before its deadline");

    // What is sent meanwhile waits for the next one, which has nothing to do with the first.
    let waits = caller.client().message("echo").raw("waited").to(&peer);
    let waits = waits.request().send().unwrap();
    let next = setup.serve_again(&endpoint, vec![echo()]);
    assert_eq!(waits.wait(), Ok(Bytes::from("waited")));
    assert_eq!(
        next.metrics().total().accepted,
        1,
        "nothing is sent again by itself"
    );
    let account = peer.account();
    assert_eq!((account.handled, account.indeterminate), (1, 1));
    drop(directory);
}

/// libzmq's heartbeat timer aborts the process if it finds a connection whose peer has gone and
/// whose input is held back by a full queue (its issues 3596, 3937 and 4364).
pub(crate) fn a_flooding_peer_that_dies_ends_nobody(setup: &Setup) {
    let stuck = inline_raw("stuck", |_, _, _| {
        std::thread::sleep(Duration::from_millis(300));
        Ok(())
    });
    let service = setup.serve_with(1, vec![stuck, echo()], |limits| {
        limits.heartbeat_interval_ms = 20;
        limits.heartbeat_timeout_ms = 2_000;
    });
    let context = zmq::Context::new();
    let flood = context.socket(zmq::DEALER).unwrap();
    flood.set_linger(0).unwrap();
    flood.set_sndhwm(0).unwrap();
    flood.connect(&service.endpoint).unwrap();
    let send = |handler: &str| {
        let header = Header {
            handler: HandlerKey::of(handler),
            ..Header::new(Kind::OneWay, 1)
        };
        flood
            .send_multipart([&header.encode()[..], &[7; 100]], 0)
            .unwrap();
    };
    send("stuck");
    // More than its queue and the kernel's buffers take while it is stuck.
    (0..100_000).for_each(|_| send("echo"));
    std::thread::sleep(Duration::from_millis(100));
    drop(flood);
    std::thread::sleep(Duration::from_millis(300));

    let caller = setup.caller();
    let peer = service.connect(&caller);
    let message = caller.client().message("echo").raw("alive").to(&peer);
    assert_eq!(message.request().wait(), Ok(Bytes::from("alive")));
}

pub(crate) fn a_full_queue_gives_the_payload_back(setup: &Setup) {
    let directory = TempDir::new().unwrap();
    let caller = setup.caller_with(|limits| {
        limits.outgoing_messages_max = 4;
        limits.message_bytes_max = 10_000;
        limits.outgoing_bytes_max = 20_000;
    });
    // Nobody takes anything away.
    let peer = caller.client().connect(&setup.nowhere(&directory)).unwrap();
    let send = |bytes: usize| {
        caller
            .client()
            .message("echo")
            .raw(vec![7; bytes])
            .to(&peer)
            .one_way()
    };
    for _ in 0..4 {
        send(10).unwrap();
    }
    let refused = send(10).unwrap_err();
    assert_eq!(
        (refused.why, refused.payload),
        (NotSent::Full, Bytes::from(vec![7; 10]))
    );
    let call = caller
        .client()
        .message("echo")
        .raw("call")
        .to(&peer)
        .request()
        .send();
    assert_eq!(call.unwrap_err().payload, b"call"[..]);
    // The same by `.await`, for those who do not split it up.
    let call = caller
        .client()
        .message("echo")
        .raw("call")
        .to(&peer)
        .request()
        .wait();
    assert!(matches!(call, Err(CallError::NotSent(error)) if error.why == NotSent::Full));

    // By bytes, and each peer for itself.
    let peer = caller.client().connect(&setup.nowhere(&directory)).unwrap();
    let send = |bytes: usize| {
        caller
            .client()
            .message("echo")
            .raw(vec![7; bytes])
            .to(&peer)
            .one_way()
    };
    send(10_000).unwrap();
    send(10_000).unwrap();
    assert_eq!(send(1).unwrap_err().why, NotSent::Full);
    eventually("both are entered", || peer.account().accepted == 2);
}

pub(crate) fn a_full_inbox_gives_the_payload_and_the_credit_back(setup: &Setup) {
    let service = setup.serve(vec![echo()]);
    let caller = setup.caller_with(|limits| {
        limits.inbox_capacity = 2;
        limits.outgoing_messages_max = 10;
    });
    let (one, other) = (service.connect(&caller), service.connect(&caller));
    let send = |peer| caller.client().message("echo").raw("x").to(peer).one_way();
    // The shard does nothing else until it is let go.
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let stuck = caller.run_on(0, move |_| async move { gone.recv().is_ok() });
    eventually("it is stuck, and its inbox full", || send(&one).is_err());
    for _ in 0..50 {
        let refused = send(&other).unwrap_err();
        assert_eq!(
            (refused.why, &refused.payload[..]),
            (NotSent::Full, &b"x"[..])
        );
    }
    go.send(()).unwrap();
    assert_eq!(stuck.wait(), Some(true));
    eventually("there is room again", || send(&other).is_ok());
}

pub(crate) fn handles_may_be_dropped_in_any_order(setup: &Setup) {
    for order in [
        [0, 1, 2, 3],
        [1, 0, 3, 2],
        [2, 1, 0, 3],
        [3, 2, 1, 0],
        [3, 0, 2, 1],
        [2, 3, 0, 1],
    ] {
        let (service, caller) = (setup.serve(vec![sleep()]), setup.caller());
        let peer = service.connect(&caller);
        let client = caller.client().clone();
        let message = client.message("sleep").json(&60_000_u64).unwrap();
        let call = message.to(&peer).request::<u64>().send().unwrap();
        let (mut service, mut caller) = (Some(service), Some(caller));
        let (mut peer, mut call) = (Some(peer), Some(call));
        for what in order {
            match what {
                0 => drop(call.take()),
                1 => drop(peer.take()),
                2 => drop(caller.take()),
                _ => drop(service.take()),
            }
        }
        drop(client);
    }
    // A call outlives the runtime that it was made with, and is told of it.
    let (service, caller) = (setup.serve(vec![sleep()]), setup.caller());
    let peer = service.connect(&caller);
    let message = caller.client().message("sleep").json(&60_000_u64).unwrap();
    let call = message.to(&peer).request::<u64>().send().unwrap();
    eventually("it runs", || service.runtime.metrics().total().spawned == 1);
    drop((caller, peer));
    assert_eq!(
        call.wait(),
        Err(CallError::Indeterminate(Indeterminate::Stopped))
    );
}
