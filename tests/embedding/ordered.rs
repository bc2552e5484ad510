//! Spawned handlers that take one peer's messages one after the other.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use corelane::{
    Runtime,
    client::{Call, Peer, TypedReply},
    error::{CallError, Indeterminate},
    handler::{Handler, spawned},
    wire::Reason,
};

use crate::{
    requests::expect_nack,
    service::{Setup, eventually},
};

/// Holds each message until it is opened, and writes down which have begun and ended.
#[derive(Default)]
struct Line {
    is_open: AtomicBool,
    seen: Mutex<Vec<(&'static str, u64)>>,
}

impl Line {
    /// 99 does not wait.
    fn handler(self: &Arc<Self>, waiting_max: usize) -> Handler {
        let line = self.clone();
        let handler = spawned("line", move |n: u64, cx| {
            let line = line.clone();
            async move {
                line.note("begun", n);
                while n != 99 && !line.is_open.load(SeqCst) {
                    cx.sleep(Duration::from_millis(1)).await;
                }
                line.note("ended", n);
                Ok(n)
            }
        });
        handler.ordered_per_peer(waiting_max)
    }

    fn note(&self, what: &'static str, n: u64) {
        self.seen.lock().unwrap().push((what, n));
    }

    fn seen(&self) -> Vec<(&'static str, u64)> {
        self.seen.lock().unwrap().clone()
    }

    fn has_begun(&self, n: u64) {
        eventually("it begins", || self.seen().contains(&("begun", n)));
    }
}

fn ask(caller: &Runtime, peer: &Peer, n: u64) -> Call<TypedReply<u64>> {
    let message = caller.client().message("line").json(&n).unwrap();
    message.to(peer).request().send().unwrap()
}

pub(crate) fn one_peers_messages_run_one_after_the_other(setup: &Setup) {
    let line = Arc::new(Line::default());
    // By another shard than the one that reads them.
    let service = setup.serve_oversubscribed(2, vec![line.handler(19).on_shard(1)]);
    let (caller, other) = (setup.caller(), setup.caller());
    let routed = |it: &Runtime| it.client().connect_routed(0, &service.endpoint).unwrap();
    let (peer, others) = (routed(&caller), routed(&other));
    let calls: Vec<_> = (0..20).map(|n| ask(&caller, &peer, n)).collect();
    line.has_begun(0);
    assert_eq!(ask(&other, &others, 99).wait(), Ok(99), "another peer's");
    expect_nack(
        ask(&caller, &peer, 20).wait(),
        Reason::Overloaded,
        "19 messages of this peer wait for \"line\" already",
    );
    line.is_open.store(true, SeqCst);
    let answers: Result<Vec<u64>, _> = calls.into_iter().map(Call::wait).collect();
    assert_eq!(answers, Ok((0..20).collect()));
    let mut seen = line.seen();
    seen.retain(|(_, n)| *n != 99);
    let expected = (0..20).flat_map(|n| [("begun", n), ("ended", n)]);
    assert_eq!(seen, expected.collect::<Vec<_>>());
    let totals = service.runtime.drain();
    assert_eq!((totals.accepted, totals.handled), (22, 21));
    assert_eq!((totals.nacked, totals.hopped), (1, 22));
}

pub(crate) fn what_waits_for_its_turn_may_be_late_or_cancelled(setup: &Setup) {
    let line = Arc::new(Line::default());
    let service = setup.serve(vec![line.handler(10)]);
    let caller = setup.caller();
    let peer = service.connect(&caller);
    let first = ask(&caller, &peer, 1);
    line.has_begun(1);
    let message = caller.client().message("line").json(&2_u64).unwrap();
    let within = Duration::from_millis(50);
    let late = message.to(&peer).request::<u64>().within(within).send();
    let (cancelled, last) = (ask(&caller, &peer, 3), ask(&caller, &peer, 4));
    // Its caller's own deadline or the nack, whichever is quicker.
    let late = late.unwrap().wait().expect_err("it does not run");
    let is_late = match &late {
        CallError::Nack { reason, .. } => *reason == Reason::DeadlineExceeded,
        other => *other == CallError::Indeterminate(Indeterminate::Deadline),
    };
    assert!(is_late, "{late}");
    let total = || service.runtime.metrics().total();
    eventually("all have arrived", || total().spawned == 4);
    drop(cancelled);
    eventually("it has left its place", || total().lost == 1);
    eventually("the late one has, too", || total().nacked() == 1);
    line.is_open.store(true, SeqCst);
    assert_eq!((first.wait(), last.wait()), (Ok(1), Ok(4)));
    let ran = [("begun", 1), ("ended", 1), ("begun", 4), ("ended", 4)];
    assert_eq!(line.seen(), ran);
    let totals = service.runtime.drain();
    assert_eq!((totals.handled, totals.nacked, totals.lost), (2, 1, 1));
}

pub(crate) fn a_drain_ends_what_waits_for_its_turn(setup: &Setup) {
    for is_open in [true, false] {
        let line = Arc::new(Line::default());
        let handlers = vec![line.handler(10)];
        let service = setup.serve_with(1, handlers, |it| it.drain_ms = 200);
        let caller = setup.caller();
        let peer = service.connect(&caller);
        let calls = [1, 2, 3].map(|n| ask(&caller, &peer, n));
        eventually("all have arrived", || {
            service.runtime.metrics().total().spawned == 3
        });
        line.has_begun(1);
        line.is_open.store(is_open, SeqCst);
        let totals = service.runtime.drain();
        let ended = (totals.handled, totals.indeterminate, totals.lost);
        match is_open {
            true => {
                assert_eq!(ended, (3, 0, 0));
                assert_eq!(calls.map(Call::wait), [Ok(1), Ok(2), Ok(3)]);
            }
            false => {
                assert_eq!(ended, (0, 1, 2));
                assert_eq!(line.seen(), [("begun", 1)]);
                for call in calls {
                    let end = call.wait().expect_err("it is not answered");
                    assert!(matches!(end, CallError::Indeterminate(_)), "{end}");
                }
            }
        }
    }
}
