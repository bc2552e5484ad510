//! What works.

use std::{cell::Cell, panic::resume_unwind, rc::Rc, thread, time::Duration};

use bytes::Bytes;
use corelane::{
    client::Call,
    error::{CallError, NotSent},
    handler::{HandlerError, inline_in_place, inline_raw, inline_with, spawned, spawned_raw},
    metrics::Metric,
    wire::Reason,
};

use futures_lite::future::{or, yield_now};
use oneshot::async_channel;

use crate::service::{Setup, Sum, Total, echo, eventually, sleep, sum};

#[track_caller]
pub(crate) fn expect_nack<T: std::fmt::Debug>(
    result: Result<T, CallError>,
    reason: Reason,
    text: &str,
) {
    match result {
        Err(CallError::Nack {
            reason: is,
            text: says,
        }) => {
            assert_eq!(is, reason);
            assert!(says.contains(text), "{says}");
        }
        other => panic!("{other:?} and no nack {reason}"),
    }
}

pub(crate) fn typed_values_come_back_in_both_codecs(setup: &Setup) {
    let (service, caller) = (setup.serve(vec![sum()]), setup.caller());
    let peer = service.connect(&caller);
    let request = Sum { a: -1, b: 43 };
    let json = caller.client().message("sum").json(&request).unwrap();
    let total: Total = json.to(&peer).request().wait().unwrap();
    assert_eq!(total, Total { total: 42 });
    let postcard = caller.client().message("sum").postcard(&request).unwrap();
    let total: Total = postcard.to(&peer).request().wait().unwrap();
    assert_eq!(total, Total { total: 42 });
    // What a person would write, byte for byte.
    let text = caller
        .client()
        .message("sum")
        .json_text(r#" {"b":2, "a":1} "#);
    assert_eq!(
        text.to(&peer).request().wait().unwrap(),
        br#"{"total":3}"#[..]
    );
    let json = caller.client().message("sum").json(&request).unwrap();
    json.to(&peer).confirm().wait().unwrap();
    // The reply is not what the caller takes it for.
    let json = caller.client().message("sum").json(&request).unwrap();
    let wrong: Result<String, CallError> = json.to(&peer).request().wait();
    assert!(matches!(wrong, Err(CallError::Reply(_))), "{wrong:?}");
}

pub(crate) fn bytes_go_raw_and_in_place(setup: &Setup) {
    let reverse = inline_in_place("reverse", |payload, _| {
        payload.reverse();
        Ok(payload.len() / 2)
    });
    let (service, caller) = (setup.serve(vec![echo(), reverse]), setup.caller());
    let peer = service.connect(&caller);
    for payload in [&b""[..], b"a", &[7; 255], &[8; 256], &[9; 70_000]] {
        let message = caller.client().message("echo").raw(payload.to_vec());
        assert_eq!(message.to(&peer).request().wait().unwrap(), payload);
    }
    let message = caller.client().message("reverse").raw("abcd");
    assert_eq!(message.to(&peer).request().wait().unwrap(), b"dc"[..]);
    let empty = caller.client().message("echo").to(&peer).request().wait();
    assert_eq!(empty.unwrap(), b""[..]);
}

pub(crate) fn each_shard_has_a_state_of_its_own(setup: &Setup) {
    let count = inline_with("count", |shard| {
        let (mut count, shard) = (0, shard.shard);
        move |(): (), _| {
            count += 1;
            Ok((shard, count))
        }
    });
    let shards = corelane::placement::probe()
        .unwrap()
        .usable_ids()
        .len()
        .min(2);
    let (service, caller) = (
        setup.serve_with(shards, vec![count], |_| {}),
        setup.caller(),
    );
    for (info, endpoints) in service.runtime.shards() {
        let peer = caller.client().connect(&endpoints[0]).unwrap();
        for count in 1..4 {
            let message = caller.client().message("count").json(&()).unwrap();
            let reply: (usize, u32) = message.to(&peer).request().wait().unwrap();
            assert_eq!(reply, (info.shard, count));
        }
    }
}

pub(crate) fn tasks_sleep_fail_panic_and_need_no_send(setup: &Setup) {
    let local = spawned("local", |ms: u64, cx| async move {
        let not_send = Rc::new(Cell::new(ms));
        cx.sleep(std::time::Duration::from_millis(ms)).await;
        match not_send.get() {
            1 => Err(HandlerError::new("one is an error")),
            2 => resume_unwind(Box::new("two panics")),
            ms => Ok(ms),
        }
    });
    let (service, caller) = (setup.serve(vec![local]), setup.caller());
    let peer = service.connect(&caller);
    let ask = |ms: u64| -> Call<_> {
        let message = caller.client().message("local").json(&ms).unwrap();
        message.to(&peer).request::<u64>().send().unwrap()
    };
    // All at once: none waits for another.
    let (long, error, panic, short) = (ask(100), ask(1), ask(2), ask(3));
    assert_eq!(short.wait(), Ok(3));
    expect_nack(error.wait(), Reason::HandlerFailed, "one is an error");
    expect_nack(panic.wait(), Reason::HandlerPanicked, "two panics");
    assert_eq!(long.wait(), Ok(100));
    let counters = service.runtime.metrics().total();
    assert_eq!((counters.spawned, counters.spawned_now), (4, 0));
    assert!((1..=4).contains(&counters.spawned_most));
}

pub(crate) fn failures_are_nacks_and_the_shard_goes_on(setup: &Setup) {
    let panic = inline_raw("panic", |_, _, _| resume_unwind(Box::new("asked to panic")));
    let (service, caller) = (setup.serve(vec![sum(), panic]), setup.caller());
    let peer = service.connect(&caller);
    let raw = |name: &str| caller.client().message(name).to(&peer).request().wait();
    let json = |request: &Sum| {
        let message = caller.client().message("sum").json(request).unwrap();
        message.to(&peer).request::<Total>().wait()
    };
    for _ in 0..3 {
        expect_nack(raw("panic"), Reason::HandlerPanicked, "asked to panic");
        expect_nack(
            raw("nobody"),
            Reason::UnknownHandler,
            "no handler has the key",
        );
        expect_nack(raw("sum"), Reason::Unsupported, "raw");
        let too_large = json(&Sum { a: i64::MAX, b: 1 });
        expect_nack(too_large, Reason::HandlerFailed, "too large a sum");
        let broken = caller.client().message("sum").json_text("{\"a\":1");
        expect_nack(broken.to(&peer).request().wait(), Reason::Malformed, "json");
        assert_eq!(json(&Sum { a: 1, b: 2 }), Ok(Total { total: 3 }));
    }
    let confirm = caller.client().message("panic").to(&peer).confirm().wait();
    expect_nack(confirm, Reason::HandlerPanicked, "asked to panic");
}

pub(crate) fn any_executor_may_wait(setup: &Setup) {
    let (service, caller) = (setup.serve(vec![echo(), sleep()]), setup.caller());
    let peer = service.connect(&caller);
    // Not a shard's executor, and not one that knows of it.
    let both = futures_lite::future::block_on(async {
        let late = caller.client().message("sleep").json(&20_u64).unwrap();
        let late = late.to(&peer).request::<u64>().send().unwrap();
        let echoed = caller
            .client()
            .message("echo")
            .raw("at once")
            .to(&peer)
            .request()
            .await;
        (echoed, late.await)
    });
    assert_eq!(both, (Ok(Bytes::from("at once")), Ok(20)));
    // Sent on one thread, awaited on another.
    let late = caller.client().message("sleep").json(&20_u64).unwrap();
    let late = late.to(&peer).request::<u64>().send().unwrap();
    assert_eq!(thread::spawn(move || late.wait()).join().unwrap(), Ok(20));
    // Many threads, one client.
    thread::scope(|scope| {
        for number in 0..4_u8 {
            let (client, peer) = (caller.client().clone(), peer.clone());
            scope.spawn(move || {
                for _ in 0..50 {
                    let message = client.message("echo").raw(vec![number; 9]);
                    assert_eq!(message.to(&peer).request().wait().unwrap(), [number; 9][..]);
                }
            });
        }
    });
}

pub(crate) fn a_handler_calls_another_peer(setup: &Setup) {
    let relay = spawned_raw("relay", |endpoint: Bytes, cx| async move {
        let endpoint = String::from_utf8(endpoint.to_vec())?;
        let peer = cx.client().connect(&endpoint)?;
        let sum = Sum { a: 1, b: 2 };
        let total: Total = cx
            .client()
            .message("sum")
            .json(&sum)?
            .to(&peer)
            .request()
            .await?;
        Ok(total.total.to_string().into())
    });
    let (far, near, caller) = (
        setup.serve(vec![sum()]),
        setup.serve(vec![relay]),
        setup.caller(),
    );
    let peer = near.connect(&caller);
    for _ in 0..3 {
        let message = caller.client().message("relay").raw(far.endpoint.clone());
        assert_eq!(message.to(&peer).request().wait().unwrap(), b"3"[..]);
    }
    assert_eq!(far.runtime.metrics().total().handled, 3);
    assert_eq!(near.runtime.metrics().total().answered, 3);
}

pub(crate) fn pipelined_answers_find_their_calls(setup: &Setup) {
    let (service, caller) = (setup.serve(vec![echo(), sleep()]), setup.caller());
    let peer = service.connect(&caller);
    let mut calls = Vec::new();
    for number in 0..500_u32 {
        let message = caller
            .client()
            .message("echo")
            .raw(number.to_le_bytes().to_vec());
        calls.push(message.to(&peer).request().send().unwrap());
    }
    // In whatever order they are waited for.
    for (number, call) in calls.into_iter().enumerate().rev() {
        assert_eq!(call.wait().unwrap(), (number as u32).to_le_bytes()[..]);
    }
    let account = peer.account();
    assert_eq!((account.accepted, account.handled), (500, 500));
}

pub(crate) fn a_guest_runs_on_its_shard_and_its_panic_is_its_own(setup: &Setup) {
    let (service, caller) = (setup.serve(vec![echo()]), setup.caller());
    let peer = service.connect(&caller);
    let guest_peer = peer.clone();
    let reply = caller.run_on(0, |cx| async move {
        let not_send = Rc::new(guest_peer);
        let message = cx.client().message("echo").raw("from the shard");
        message.to(&not_send).request().await
    });
    assert_eq!(reply.wait(), Some(Ok(Bytes::from("from the shard"))));

    let panics = caller.run_on(0, |_| async { resume_unwind(Box::new("in its future")) });
    assert_eq!(panics.wait().map(|(): ()| ()), None);
    let panics = caller.run_on(0, |_| -> std::future::Ready<()> {
        resume_unwind(Box::new("before its future"))
    });
    assert_eq!(panics.wait(), None);
    let message = caller.client().message("echo").raw("alive");
    assert_eq!(message.to(&peer).request().wait().unwrap(), b"alive"[..]);
    eventually("no guest is left", || {
        caller.metrics().total().spawned_now == 0
    });
}

/// A shard parks without its executor while its tasks wait for answers alone: nothing else that a
/// task waits for may be left waiting for that.
pub(crate) fn tasks_of_a_parked_shard_wait_for_whatever_they_like(setup: &Setup) {
    let (service, caller) = (setup.serve(vec![echo(), sleep()]), setup.caller());
    let peer = service.connect(&caller);
    let calls = peer.clone();
    let waits = caller.run_on(0, move |cx| async move {
        // For its turn, again and again.
        for _ in 0..1_000 {
            yield_now().await;
        }
        // For the executor's own timer, alone and beside a call.
        glommio::timer::sleep(Duration::from_millis(5)).await;
        let asleep = || {
            let message = cx.client().message("sleep").json(&300_u64).unwrap();
            let call = message.to(&calls).request::<u64>().send().unwrap();
            async move { Some(call.await) }
        };
        let sooner = or(asleep(), async {
            glommio::timer::sleep(Duration::from_millis(5)).await;
            None
        });
        assert!(sooner.await.is_none(), "the timer came first");
        // For an answer, a sleep by the shard's clock, and both.
        let message = cx.client().message("echo").raw("x").to(&calls);
        message.request().await.unwrap();
        cx.sleep(Duration::from_millis(5)).await;
        let sooner = or(asleep(), async {
            cx.sleep(Duration::from_millis(5)).await;
            None
        });
        sooner.await.is_none()
    });
    assert_eq!(waits.wait(), Some(true));
    // For another thread.
    let (tell, told) = async_channel();
    let told = caller.run_on(0, move |_| async move { told.await.ok() });
    thread::sleep(Duration::from_millis(20));
    tell.send(7).unwrap();
    assert_eq!(told.wait(), Some(Some(7)));
}

pub(crate) fn a_mebibyte_comes_back_and_more_is_refused(setup: &Setup) {
    let (service, caller) = (setup.serve(vec![echo()]), setup.caller());
    let peer = service.connect(&caller);
    let payload: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
    let message = caller.client().message("echo").raw(payload.clone());
    assert!(
        message.to(&peer).request().wait().unwrap() == payload,
        "every byte of it"
    );

    let over = Bytes::from(vec![1; (1 << 20) + 1]);
    let refused = caller
        .client()
        .message("echo")
        .raw(over.clone())
        .to(&peer)
        .one_way();
    let refused = refused.unwrap_err();
    assert_eq!((refused.why, refused.payload), (NotSent::TooLarge, over));

    // Who sends more than the other end takes is told so.
    let small = setup.serve_with(1, vec![echo()], |limits| limits.message_bytes_max = 1_000);
    let peer = small.connect(&caller);
    let ask = |bytes: usize| {
        caller
            .client()
            .message("echo")
            .raw(vec![1; bytes])
            .to(&peer)
            .request()
            .wait()
    };
    assert_eq!(ask(1_000).unwrap().len(), 1_000);
    expect_nack(
        ask(1_001),
        Reason::TooLarge,
        "limits.message_bytes_max is 1000",
    );
    assert_eq!(ask(1_000).unwrap().len(), 1_000);
    let totals = small.runtime.drain();
    let counted = (totals.accepted, totals.handled, totals.nacked);
    assert_eq!(counted, (3, 2, 1));
}

pub(crate) fn names_of_called_handlers_are_learnt(setup: &Setup) {
    let (service, caller) = (setup.serve(vec![echo()]), setup.caller());
    let peer = service.connect(&caller);
    for _ in 0..10 {
        caller
            .client()
            .message("echo")
            .to(&peer)
            .request()
            .wait()
            .unwrap();
        let _ = caller.client().message("nobody").to(&peer).request().wait();
    }
    // The welcome may come after the first answers, in a turn of its own.
    eventually("the name is known", || {
        caller
            .metrics()
            .histogram(Metric::RoundTrip, "echo")
            .is_some()
    });
    let metrics = caller.metrics();
    let round_trips = metrics.histogram(Metric::RoundTrip, "echo").unwrap();
    assert_eq!(round_trips.len(), 10);
    assert_eq!(
        metrics
            .histogram(Metric::RoundTrip, "nobody")
            .map(|it| it.len()),
        None
    );
    let served = service.runtime.metrics();
    assert_eq!(
        served.histogram(Metric::InHandler, "echo").unwrap().len(),
        10
    );
    assert_eq!(
        served.histogram(Metric::ReadToReply, "echo").unwrap().len(),
        10
    );
}

pub(crate) fn one_way_messages_are_accounted_for(setup: &Setup) {
    let (service, caller) = (setup.serve(vec![echo()]), setup.caller());
    let peer = service.connect(&caller);
    let (mut accepted, mut refused) = (0, 0);
    while accepted < 3_000 {
        match caller
            .client()
            .message("echo")
            .raw("one way")
            .to(&peer)
            .one_way()
        {
            Ok(()) => accepted += 1,
            Err(error) => {
                assert_eq!(
                    (error.why, &error.payload[..]),
                    (NotSent::Full, &b"one way"[..])
                );
                refused += 1;
                thread::yield_now();
            }
        }
    }
    eventually("all are handled", || {
        service.runtime.metrics().total().handled == accepted
    });
    // The other end may be quicker than this one's account.
    eventually("all are entered", || {
        let account = peer.account();
        (account.accepted, account.one_way_sent, account.lost) == (accepted, accepted, 0)
    });
    assert_eq!(
        service.runtime.metrics().total().accepted,
        accepted,
        "{refused} were refused"
    );
    // To a handler that is not there they are nacked, to nobody.
    caller
        .client()
        .message("nobody")
        .to(&peer)
        .one_way()
        .unwrap();
    eventually("it is counted", || {
        service.runtime.metrics().total().nacked() == 1
    });
    assert_eq!(
        caller.metrics().total().late_answers,
        0,
        "and nothing came back"
    );
}
