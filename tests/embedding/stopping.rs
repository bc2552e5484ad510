//! Drains, and what comes after.

use std::{
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use corelane::{
    error::{CallError, NotSent},
    handler::inline,
    wire::{HandlerKey, Header, Kind, Reason},
};

use crate::service::{PATIENCE, Setup, echo, eventually, sleep};

pub(crate) fn a_drain_finishes_what_runs_and_its_totals_add_up(setup: &Setup) {
    let (service, caller) = (setup.serve(vec![sleep(), echo()]), setup.caller());
    let peer = service.connect(&caller);
    let calls: Vec<_> = (0..20_u64)
        .map(|_| {
            let message = caller.client().message("sleep").json(&150_u64).unwrap();
            message.to(&peer).request::<u64>().send().unwrap()
        })
        .collect();
    let _ = caller.client().message("nobody").to(&peer).request().wait();
    eventually("all run", || {
        service.runtime.metrics().total().spawned == 20
    });
    let totals = service.runtime.drain();
    assert_eq!(
        (totals.accepted, totals.handled, totals.nacked),
        (21, 20, 1)
    );
    assert_eq!((totals.indeterminate, totals.lost), (0, 0));
    for call in calls {
        assert_eq!(call.wait(), Ok(150), "it was answered before the end");
    }
}

pub(crate) fn a_drain_that_runs_out_of_time_says_so(setup: &Setup) {
    let service = setup.serve_with(1, vec![sleep()], |limits| limits.drain_ms = 100);
    let caller = setup.caller();
    let peer = service.connect(&caller);
    let message = caller.client().message("sleep").json(&60_000_u64).unwrap();
    let call = message.to(&peer).request::<u64>().send().unwrap();
    eventually("it runs", || service.runtime.metrics().total().spawned == 1);
    let begun = Instant::now();
    let totals = service.runtime.drain();
    assert!(begun.elapsed() < PATIENCE / 2);
    assert_eq!((totals.accepted, totals.indeterminate), (1, 1));
    assert!(matches!(call.wait(), Err(CallError::Indeterminate(_))));
}

pub(crate) fn a_shard_that_is_stuck_is_asked_once_and_holds_up_no_drain(setup: &Setup) {
    let (release, held) = mpsc::channel::<()>();
    let (begin, begun) = mpsc::channel();
    let held = Arc::new(Mutex::new(held));
    let stuck = inline("stuck", move |(): (), _| {
        begin.send(()).unwrap();
        // Until the test ends.
        let _ = held.lock().unwrap().recv();
        Ok(())
    });
    let service = setup.serve_with(1, vec![stuck], |it| it.drain_ms = 100);
    let caller = setup.caller();
    let peer = service.connect(&caller);
    let message = caller.client().message("stuck").json(&()).unwrap();
    let _call = message.to(&peer).request::<()>().send().unwrap();
    begun.recv_timeout(PATIENCE).unwrap();
    // More than its commands hold.
    for _ in 0..100 {
        assert_eq!(service.runtime.metrics().silent_shards(), [0]);
    }
    let (done, is_done) = mpsc::channel();
    let drain = thread::spawn(move || {
        let totals = service.runtime.drain();
        done.send(()).unwrap();
        totals
    });
    let in_time = is_done.recv_timeout(PATIENCE);
    drop(release);
    assert_eq!(in_time, Ok(()), "it is not waited for");
    drop(drain.join());
}

pub(crate) fn a_draining_process_refuses_what_is_new(setup: &Setup) {
    let (service, caller) = (setup.serve(vec![sleep(), echo()]), setup.caller());
    let peer = service.connect(&caller);
    // A peer that does not heed the goodbye: it has said no hello.
    let dealer = service.raw_dealer();
    assert_eq!(echo_by(&dealer).kind, Kind::Response);

    let message = caller.client().message("sleep").json(&1_000_u64).unwrap();
    let call = message.to(&peer).request::<u64>().send().unwrap();
    eventually("it runs", || service.runtime.metrics().total().spawned == 1);
    let drain = thread::spawn(move || service.runtime.drain());
    let nack = std::iter::repeat_with(|| echo_by(&dealer)).find(|it| it.kind == Kind::Nack);
    assert_eq!(nack.unwrap().reason, Reason::Draining);
    // Who was told so does not even try.
    eventually("the goodbye has come", || {
        match caller
            .client()
            .message("echo")
            .raw("x")
            .to(&peer)
            .request()
            .wait()
        {
            Err(CallError::NotSent(error)) => {
                assert_eq!(
                    (error.why, &error.payload[..]),
                    (NotSent::Draining, &b"x"[..])
                );
                true
            }
            Err(CallError::Nack { reason, .. }) => {
                assert_eq!(reason, Reason::Draining);
                false
            }
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(call.wait(), Ok(1_000), "what ran before is answered");
    let totals = drain.join().unwrap();
    assert_eq!(totals.accepted, totals.handled + totals.nacked);
    assert!(totals.nacked > 0);
}

/// Asks `echo` as `wire.md` says, without this library's client.
fn echo_by(dealer: &zmq::Socket) -> Header {
    let request = Header {
        handler: HandlerKey::of("echo"),
        deadline_us: 10_000_000,
        ..Header::new(Kind::Request, 1)
    };
    dealer
        .send_multipart([&request.encode()[..], b"x"], 0)
        .unwrap();
    let answer = dealer.recv_multipart(0).expect("an answer, or a nack");
    Header::decode(&answer[0]).unwrap()
}

pub(crate) fn a_stopped_runtime_refuses_with_the_payload_back(setup: &Setup) {
    let (service, caller) = (setup.serve(vec![echo()]), setup.caller());
    let peer = service.connect(&caller);
    let client = caller.client().clone();
    client.message("echo").to(&peer).request().wait().unwrap();
    let totals = caller.drain();
    assert_eq!(totals.accepted, 0);
    let refused = client
        .message("echo")
        .raw("back")
        .to(&peer)
        .one_way()
        .unwrap_err();
    assert_eq!(
        (refused.why, &refused.payload[..]),
        (NotSent::Closed, &b"back"[..])
    );
    assert!(client.connect(&service.endpoint).is_err());
    // And drops are quiet.
    drop((peer, client));
    thread::sleep(Duration::from_millis(1));
}
