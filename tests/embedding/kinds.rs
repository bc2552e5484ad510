//! What handlers may ask for: so many at once, the time that remains, to be demoted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use corelane::{
    client::Call,
    handler::{Handler, HandlerError, blocking, inline, inline_in_place, spawned},
    wire::Reason,
};

use crate::{
    requests::expect_nack,
    service::{Setup, echo, eventually},
};

pub(crate) fn no_more_run_at_once_than_a_handler_allows(setup: &Setup) {
    let is_open = Arc::new(AtomicBool::new(false));
    let (task, thread) = (is_open.clone(), is_open.clone());
    let task = spawned("task", move |n: u64, cx| {
        let is_open = task.clone();
        async move {
            while !is_open.load(SeqCst) {
                cx.sleep(Duration::from_millis(1)).await;
            }
            Ok(n)
        }
    });
    let thread = blocking("thread", move |n: u64, _cx| {
        while !thread.load(SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(n)
    });
    let handlers = vec![echo(), task.concurrency(2), thread.concurrency(2)];
    // One of the two blocking ones waits for the thread, and counts all the same.
    let service = setup.serve_blocking(handlers, (1, 10), |_| {});
    let caller = setup.caller();
    let peer = service.connect(&caller);
    let ask = |handler: &str, n: u64| {
        let message = caller.client().message(handler).json(&n).unwrap();
        message.to(&peer).request::<u64>().send().unwrap()
    };
    for handler in ["task", "thread"] {
        is_open.store(false, SeqCst);
        let calls = [1, 2].map(|n| ask(handler, n));
        for n in 3..6 {
            let refused = ask(handler, n).wait();
            let text = format!("{handler:?} runs at most 2 messages at once");
            expect_nack(refused, Reason::Overloaded, &text);
        }
        is_open.store(true, SeqCst);
        assert_eq!(calls.map(Call::wait), [Ok(1), Ok(2)]);
        // There is room again, and a cancelled one makes room, too.
        assert_eq!(ask(handler, 6).wait(), Ok(6));
    }
    is_open.store(false, SeqCst);
    let calls = [1, 2].map(|n| ask("task", n));
    let echo = caller.client().message("echo").to(&peer).confirm();
    echo.wait().unwrap();
    drop(calls);
    eventually("they are stopped", || {
        service.runtime.metrics().total().stopped == 2
    });
    is_open.store(true, SeqCst);
    assert_eq!(ask("task", 7).wait(), Ok(7));
}

/// Three services: each calls the next, and names no deadline.
pub(crate) fn calls_of_a_handler_end_with_the_call_that_it_serves(setup: &Setup) {
    const NAP: Duration = Duration::from_millis(60);
    let last = inline("remaining", |(): (), cx| {
        let deadline = cx.deadline().expect("a request has one");
        Ok(deadline.saturating_duration_since(cx.now()))
    });
    let far = setup.serve(vec![last]);
    let endpoint = far.endpoint.clone();
    let second = blocking("remaining", move |(): (), cx| {
        thread::sleep(NAP);
        let peer = cx.client().connect(&endpoint)?;
        let message = cx.client().message("remaining").json(&())?;
        Ok(message.to(&peer).request::<Duration>().wait()?)
    });
    let middle = setup.serve(vec![second]);
    let endpoint = middle.endpoint.clone();
    let relay = |name: &str, own: Option<Duration>| -> Handler {
        let endpoint = endpoint.clone();
        spawned(name, move |(): (), cx| {
            let endpoint = endpoint.clone();
            async move {
                cx.sleep(NAP).await;
                let remaining = cx.remaining().expect("a request has a deadline");
                let peer = cx.client().connect(&endpoint)?;
                let message = cx.client().message("remaining").json(&())?;
                let request = message.to(&peer).request::<Duration>();
                let far: Duration = match own {
                    Some(own) => request.within(own).await?,
                    None => request.await?,
                };
                Ok((remaining, far))
            }
        })
    };
    let own = Duration::from_secs(15);
    let near = setup.serve(vec![relay("relay", None), relay("own", Some(own))]);
    let caller = setup.caller();
    let peer = near.connect(&caller);
    let within = Duration::from_secs(10);
    let ask = |handler: &str| {
        let message = caller.client().message(handler).json(&()).unwrap();
        let request = message.to(&peer).request::<(Duration, Duration)>();
        request.within(within).wait().unwrap()
    };
    let (near, far) = ask("relay");
    assert!(
        near <= within - NAP && far <= near - NAP,
        "{near:?}, {far:?}"
    );
    let (near, far) = ask("own");
    assert!(near <= within - NAP && far > within, "{near:?}, {far:?}");
}

/// Each of the first two outruns its budget, and the third message is a task's.
pub(crate) fn a_handler_that_outruns_its_budget_is_demoted(setup: &Setup) {
    let slow = |n: &u64| match n {
        0 => thread::sleep(Duration::from_millis(3)),
        1 => std::panic::resume_unwind(Box::new("a one")),
        _ => {}
    };
    let typed = inline("typed", move |n: u64, cx| {
        slow(&n);
        match n {
            2 => Err(HandlerError::new("a two")),
            _ => Ok((n, cx.wants_reply())),
        }
    });
    let in_place = inline_in_place("place", |payload, _cx| {
        thread::sleep(Duration::from_millis(3));
        payload.reverse();
        Ok(payload.len() - 1)
    });
    let handlers = vec![
        echo(),
        typed.demote_after(2).concurrency(100),
        in_place.demote_after(2),
    ];
    let service = setup.serve_with(1, handlers, |limits| limits.inline_budget_us = 2_000);
    let caller = setup.caller();
    let peer = service.connect(&caller);
    let ask = |n: u64| {
        let message = caller.client().message("typed").json(&n).unwrap();
        message.to(&peer).request::<(u64, bool)>().send().unwrap()
    };
    let reverse = || {
        let message = caller.client().message("place").raw("abc").to(&peer);
        message.request().wait()
    };
    for round in 0..5_u64 {
        assert_eq!(ask(0).wait(), Ok((0, true)));
        assert_eq!(reverse(), Ok(Bytes::from("cb")));
        let demoted = service.runtime.metrics().total().demoted;
        assert_eq!(demoted, if round == 0 { 0 } else { 2 });
    }
    // What a task may come to is as it was.
    expect_nack(ask(1).wait(), Reason::HandlerPanicked, "a one");
    expect_nack(ask(2).wait(), Reason::HandlerFailed, "a two");
    let message = caller.client().message("typed").json("text").unwrap();
    let unreadable = message.to(&peer).request::<()>().wait();
    expect_nack(unreadable, Reason::Malformed, "");
    let message = caller.client().message("typed").json(&3).unwrap();
    message.to(&peer).confirm().wait().unwrap();
    assert_eq!(ask(4).wait(), Ok((4, true)));
    let metrics = service.runtime.metrics();
    let total = metrics.total();
    assert_eq!((total.inline_overruns, total.spawned), (4, 11));
    for handler in metrics.handlers().filter(|it| it.name != "echo") {
        let counters = handler.counters;
        assert_eq!((counters.overruns, counters.demotions), (2, 1));
    }
}
