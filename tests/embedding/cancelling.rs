//! What nobody waits for any more: its handler is stopped, or does not begin.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use corelane::{
    error::{CallError, Indeterminate},
    handler::{Handler, spawned},
};

use crate::service::{PATIENCE, Setup, echo, eventually};

/// Counts the handlers that have begun, and the futures that were dropped.
#[derive(Default)]
struct Seen {
    begun: AtomicU64,
    dropped: AtomicU64,
}

struct Guard(Arc<Seen>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, SeqCst);
    }
}

/// Never returns by itself.
fn hang(name: &str, seen: &Arc<Seen>) -> Handler {
    let seen = seen.clone();
    spawned(name, move |(): (), cx| {
        seen.begun.fetch_add(1, SeqCst);
        let guard = Guard(seen.clone());
        async move {
            cx.sleep(Duration::from_secs(3600)).await;
            drop(guard);
            Ok(())
        }
    })
}

pub(crate) fn a_dropped_call_stops_its_handler(setup: &Setup) {
    let seen = Arc::new(Seen::default());
    // One runs on another shard than the one that reads its messages.
    let there = hang("there", &seen).on_shard(1);
    let handlers = vec![echo(), hang("hang", &seen), there];
    let service = setup.serve_oversubscribed(2, handlers);
    let caller = setup.caller();
    let peer = caller
        .client()
        .connect_routed(0, &service.endpoint)
        .unwrap();
    let mut count = 0;
    for handler in ["hang", "there", "hang"] {
        let message = caller.client().message(handler).json(&()).unwrap();
        let call = message.to(&peer).request::<()>().send().unwrap();
        count += 1;
        eventually("it runs", || seen.begun.load(SeqCst) == count);
        assert_eq!(seen.dropped.load(SeqCst), count - 1);
        drop(call);
        eventually("it is dropped", || seen.dropped.load(SeqCst) == count);
    }
    // A task of the caller's shard, which has something else to do after the first poll.
    let to = peer.clone();
    let task = caller.run_on(0, move |cx| async move {
        let message = cx.client().message("there").json(&()).unwrap();
        let mut call = pin!(Some(message.to(&to).request::<()>().send().unwrap()));
        let polled = call.as_mut().as_pin_mut().unwrap();
        assert!(matches!(
            polled.poll(&mut Context::from_waker(Waker::noop())),
            Poll::Pending
        ));
        // It has left by the time this is answered.
        let echo = cx.client().message("echo").to(&to);
        echo.confirm().await.unwrap();
        call.set(None);
    });
    task.wait().unwrap();
    eventually("it is dropped, too", || seen.dropped.load(SeqCst) == 4);
    eventually("all are accounted for", || {
        let total = service.runtime.metrics().total();
        total.stopped == 4 && total.in_flight() == 0 && total.spawned_now == 0
    });
    let account = peer.account();
    assert_eq!((account.indeterminate, account.handled), (4, 1));
}

pub(crate) fn a_handler_is_stopped_at_its_deadline(setup: &Setup) {
    let seen = Arc::new(Seen::default());
    let service = setup.serve(vec![hang("hang", &seen), echo()]);
    let caller = setup.caller();
    let peer = service.connect(&caller);
    let first = caller.client().message("echo").to(&peer).confirm();
    first.wait().unwrap();
    let message = caller.client().message("hang").json(&()).unwrap();
    let within = Duration::from_millis(50);
    let late = message.to(&peer).request::<()>().within(within).wait();
    assert_eq!(late, Err(CallError::Indeterminate(Indeterminate::Deadline)));
    eventually("it is dropped", || seen.dropped.load(SeqCst) == 1);
    let begun = std::time::Instant::now();
    let totals = service.runtime.drain();
    assert!(begun.elapsed() < PATIENCE / 2, "nothing runs any more");
    assert_eq!((totals.accepted, totals.handled), (2, 1));
    assert_eq!((totals.indeterminate, totals.lost), (1, 0));
}
