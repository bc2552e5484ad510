//! Blocking handlers: what runs on the pool's threads, what waits for one, and what becomes of it.

use std::{
    panic::resume_unwind,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use corelane::{
    Runtime,
    client::{Call, Peer, TypedReply},
    error::{CallError, Indeterminate},
    handler::{Handler, HandlerError, blocking, blocking_raw},
    metrics::Metric,
    placement,
    wire::Reason,
};

use crate::{
    requests::expect_nack,
    service::{PATIENCE, Setup, echo, eventually},
};

/// What keeps handlers from returning until it is opened.
#[derive(Default)]
struct Hold {
    begun: AtomicU64,
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Hold {
    fn new() -> Arc<Self> {
        Arc::default()
    }

    fn begun(&self) -> u64 {
        self.begun.load(SeqCst)
    }

    fn open(&self) {
        *self.is_open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    /// Returns its payload, once it is open.
    fn handler(self: &Arc<Self>) -> Handler {
        let hold = self.clone();
        blocking("hold", move |n: u64, _cx| {
            hold.begun.fetch_add(1, SeqCst);
            let is_open = hold.is_open.lock().unwrap();
            let waited = hold.opened.wait_while(is_open, |is_open| !*is_open);
            drop(waited.unwrap());
            Ok(n)
        })
    }
}

fn ask(caller: &Runtime, peer: &Peer, n: u64) -> Call<TypedReply<u64>> {
    let message = caller.client().message("hold").json(&n).unwrap();
    message.to(peer).request().send().unwrap()
}

pub(crate) fn a_shard_goes_on_while_all_threads_block(setup: &Setup) {
    let hold = Hold::new();
    let handlers = vec![echo(), hold.handler()];
    let service = setup.serve_blocking(handlers, (2, 10), |_| {});
    let caller = setup.caller();
    let peer = service.connect(&caller);
    let calls = [1, 2, 3].map(|n| ask(&caller, &peer, n));
    eventually("both threads block", || hold.begun() == 2);
    for _ in 0..500 {
        let message = caller.client().message("echo").raw("x").to(&peer);
        assert_eq!(message.request().wait(), Ok(Bytes::from("x")));
    }
    let total = service.runtime.metrics().total();
    assert_eq!(
        (total.handled, total.blocking, total.blocking_now),
        (500, 3, 3)
    );
    hold.open();
    assert_eq!(calls.map(Call::wait), [Ok(1), Ok(2), Ok(3)]);

    let metrics = service.runtime.metrics();
    let total = metrics.total();
    assert_eq!(
        (total.handled, total.blocking, total.blocking_now),
        (503, 3, 0)
    );
    assert_eq!((total.blocking_most, total.spawned_most), (3, 0));
    for metric in [Metric::InHandler, Metric::ReadToReply] {
        assert_eq!(metrics.histogram(metric, "hold").unwrap().len(), 3);
    }
}

pub(crate) fn a_full_pool_refuses_what_it_does_not_run(setup: &Setup) {
    let hold = Hold::new();
    let service = setup.serve_blocking(vec![hold.handler()], (1, 2), |_| {});
    let caller = setup.caller();
    let peer = service.connect(&caller);
    let first = ask(&caller, &peer, 1);
    eventually("it runs", || hold.begun() == 1);
    let waiting = [2, 3].map(|n| ask(&caller, &peer, n));
    for n in 4..10 {
        let refused = ask(&caller, &peer, n).wait();
        expect_nack(refused, Reason::Overloaded, "blocking.queue_capacity");
    }
    hold.open();
    assert_eq!(first.wait(), Ok(1));
    assert_eq!(waiting.map(Call::wait), [Ok(2), Ok(3)]);
    assert_eq!(
        ask(&caller, &peer, 10).wait(),
        Ok(10),
        "there is room again"
    );
    assert_eq!(hold.begun(), 4);
    let totals = service.runtime.drain();
    assert_eq!((totals.accepted, totals.handled, totals.nacked), (10, 4, 6));
}

pub(crate) fn a_deadline_that_passes_in_the_queue_runs_nothing(setup: &Setup) {
    let hold = Hold::new();
    let service = setup.serve_blocking(vec![hold.handler()], (1, 10), |_| {});
    let caller = setup.caller();
    let peer = service.connect(&caller);
    let first = ask(&caller, &peer, 1);
    eventually("it runs", || hold.begun() == 1);
    let message = caller.client().message("hold").json(&2_u64).unwrap();
    let waiting = message
        .to(&peer)
        .confirm()
        .within(Duration::from_millis(50));
    let late = Err(CallError::Indeterminate(Indeterminate::Deadline));
    assert_eq!(waiting.wait(), late);
    // There its time began when it was read.
    eventually("it waits", || {
        service.runtime.metrics().total().blocking == 2
    });
    thread::sleep(Duration::from_millis(60));
    hold.open();
    assert_eq!(first.wait(), Ok(1));
    eventually("the late nack has come", || {
        caller.metrics().total().late_answers == 1
    });
    assert_eq!(hold.begun(), 1);
    let metrics = service.runtime.metrics();
    let late = usize::from(Reason::DeadlineExceeded.to_u16());
    assert_eq!(metrics.total().nacked_by_reason[late], 1);
    for metric in [Metric::InHandler, Metric::ReadToReply] {
        let ran = metrics.histogram(metric, "hold").unwrap();
        assert_eq!(ran.len(), 1, "only what ran is measured");
    }
}

/// A handler's state that cannot be dropped in peace.
struct Sore;

impl Drop for Sore {
    fn drop(&mut self) {
        resume_unwind(Box::new("it is dropped"));
    }
}

pub(crate) fn what_panics_as_it_goes_ends_no_thread(setup: &Setup) {
    let (hold, sore) = (Hold::new(), Sore);
    let held = hold.clone();
    let handler = blocking("sore", move |n: u64, _cx| {
        let _used = &sore;
        held.begun.fetch_add(1, SeqCst);
        let is_open = held.is_open.lock().unwrap();
        drop(held.opened.wait_while(is_open, |is_open| !*is_open));
        Ok(n)
    });
    let double = blocking("double", |n: u64, _cx| Ok(2 * n));
    let service = setup.serve_blocking(vec![handler, double], (1, 10), |_| {});
    let caller = setup.caller();
    let peer = service.connect(&caller);
    let call = |name: &str| {
        let message = caller.client().message(name).json(&21_u64).unwrap();
        message.to(&peer).request::<u64>()
    };
    let last = call("sore").send().unwrap();
    eventually("it runs", || hold.begun() == 1);
    service.runtime.remove("sore").unwrap();
    hold.open();
    assert_eq!(last.wait(), Ok(21));
    assert_eq!(call("double").wait(), Ok(42), "the thread lives");
}

pub(crate) fn every_end_is_an_answer_and_the_thread_lives(setup: &Setup) {
    let double = blocking("double", |n: u64, _cx| match n {
        0 => Err(HandlerError::new("nothing to double")),
        1 => resume_unwind(Box::new("one panics")),
        n => Ok(2 * n),
    });
    let large = blocking_raw("large", |_payload, _cx| Ok(vec![7; (1 << 20) + 1].into()));
    let service = setup.serve_blocking(vec![double, large], (1, 10), |_| {});
    let caller = setup.caller();
    let peer = service.connect(&caller);
    let message = |name: &str| caller.client().message(name);
    let json = |n: u64| message("double").json(&n).unwrap().to(&peer);
    for _ in 0..3 {
        expect_nack(
            json(0).request::<u64>().wait(),
            Reason::HandlerFailed,
            "nothing to double",
        );
        expect_nack(
            json(1).request::<u64>().wait(),
            Reason::HandlerPanicked,
            "one panics",
        );
        assert_eq!(json(21).request::<u64>().wait(), Ok(42));
        let postcard = message("double").postcard(&21_u64).unwrap().to(&peer);
        assert_eq!(postcard.request::<u64>().wait(), Ok(42));
        let broken = message("double").json_text("{").to(&peer).request().wait();
        expect_nack(broken, Reason::Malformed, "json");
        let raw = message("double").raw("21").to(&peer).request().wait();
        expect_nack(raw, Reason::Unsupported, "raw");
        let too_large = message("large").to(&peer).request().wait();
        expect_nack(too_large, Reason::HandlerFailed, "limits.message_bytes_max");
        assert_eq!(json(21).confirm().wait(), Ok(()));
        expect_nack(json(0).confirm().wait(), Reason::HandlerFailed, "nothing");
        json(21).one_way().unwrap();
        json(1).one_way().unwrap();
    }
    eventually("the one-way messages are handled", || {
        service.runtime.metrics().total().in_flight() == 0
            && service.runtime.metrics().total().accepted == 33
    });
    let totals = service.runtime.drain();
    assert_eq!((totals.handled, totals.nacked), (12, 21));
    assert_eq!(caller.metrics().total().late_answers, 0);
}

pub(crate) fn large_payloads_come_whole_to_a_thread(setup: &Setup) {
    let reverse = blocking_raw("reverse", |payload, _cx| {
        Ok(payload.iter().rev().copied().collect())
    });
    let sum = blocking("sum", |numbers: Vec<u64>, _cx| {
        Ok(numbers.iter().sum::<u64>())
    });
    let service = setup.serve_blocking(vec![reverse, sum, echo()], (2, 10), |_| {});
    let caller = setup.caller();
    let peer = service.connect(&caller);
    let bytes: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
    let numbers: Vec<u64> = (0..100_000).collect();
    for _ in 0..3 {
        let raw = caller.client().message("reverse").raw(bytes.clone());
        let raw = raw.to(&peer).request().send().unwrap();
        let json = caller.client().message("sum").json(&numbers).unwrap();
        let json = json.to(&peer).request::<u64>().send().unwrap();
        // What comes behind them stood in the same buffer.
        let small = caller.client().message("echo").raw("small").to(&peer);
        assert_eq!(small.request().wait(), Ok(Bytes::from("small")));
        assert_eq!(json.wait(), Ok(100_000 * 99_999 / 2));
        let back = raw.wait().unwrap();
        assert!(back.iter().rev().eq(bytes.iter()), "every byte of it");
    }
}

/// Nothing else would wake it before the deadline: the service has no heartbeat to send, and the
/// caller none to answer.
pub(crate) fn the_end_wakes_a_parked_shard(setup: &Setup) {
    let nap = blocking("nap", |ms: u64, _cx| {
        thread::sleep(Duration::from_millis(ms));
        Ok(ms)
    });
    let quiet = |limits: &mut corelane::config::LimitsConfig| {
        limits.heartbeat_timeout_ms = 6_000_000;
        limits.heartbeat_interval_ms = 3_000_000;
    };
    let service = setup.serve_blocking(vec![nap], (1, 10), quiet);
    let caller = setup.caller_with(quiet);
    let peer = service.connect(&caller);
    let begun = Instant::now();
    for ms in [0, 1, 30, 60] {
        let message = caller.client().message("nap").json(&ms).unwrap();
        assert_eq!(message.to(&peer).request::<u64>().wait(), Ok(ms));
    }
    assert!(begun.elapsed() < PATIENCE / 2);
}

/// On a machine with one CPU for all there is nothing to keep off from, but the plan is kept to.
pub(crate) fn threads_keep_off_the_shards_cpus(setup: &Setup) {
    let cpus = blocking("cpus", |(): (), cx| {
        let may = rustix::thread::sched_getaffinity(None)?;
        let may: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU)
            .filter(|&cpu| may.is_set(cpu))
            .collect();
        let name = thread::current().name().unwrap_or_default().to_owned();
        let shard_cpu = cx.shard().cpu;
        Ok((may, rustix::thread::sched_getcpu(), shard_cpu, name))
    });
    let settings = setup.config(setup.serving, 1, |_| {}).check().unwrap();
    let plan = placement::place(&settings).unwrap();
    let service = setup.serve_blocking(vec![cpus], (2, 10), |_| {});
    let caller = setup.caller();
    let peer = service.connect(&caller);
    let message = caller.client().message("cpus").json(&()).unwrap();
    let reply: (Vec<usize>, usize, usize, String) = message.to(&peer).request().wait().unwrap();
    let (may, runs_on, shard_cpu, name) = reply;
    assert_eq!(may, plan.helper_cpus);
    assert_eq!(shard_cpu, plan.shards[0].cpu);
    assert_eq!(name, "corelane-blocking");
    if placement::probe().unwrap().usable_ids().len() == 1 {
        eprintln!("SKIPPED in part: this process may use one CPU only");
        return;
    }
    assert!(!may.contains(&shard_cpu) && runs_on != shard_cpu);
}

pub(crate) fn a_blocking_handler_calls_another(setup: &Setup) {
    let other = setup.serve(vec![echo()]);
    let endpoint = other.endpoint.clone();
    let ask = blocking_raw("ask", move |payload, cx| {
        let peer = cx.client().connect(&endpoint)?;
        let call = cx.client().message("echo").raw(payload).to(&peer);
        let within = cx.remaining().expect("a request has a deadline");
        Ok(call.request().within(within).wait()?)
    });
    let service = setup.serve_blocking(vec![ask], (1, 10), |_| {});
    let caller = setup.caller();
    let peer = service.connect(&caller);
    let message = caller.client().message("ask").raw("passed on").to(&peer);
    assert_eq!(message.request().wait(), Ok(Bytes::from("passed on")));
}

pub(crate) fn a_drain_waits_for_the_pool(setup: &Setup) {
    let hold = Hold::new();
    let service = setup.serve_blocking(vec![hold.handler()], (1, 10), |limits| {
        limits.drain_ms = PATIENCE.as_millis() as u64;
    });
    let caller = setup.caller();
    let peer = service.connect(&caller);
    let calls = [1, 2, 3].map(|n| ask(&caller, &peer, n));
    eventually("one runs, and two wait", || {
        hold.begun() == 1 && service.runtime.metrics().total().blocking == 3
    });
    let drain = thread::spawn(move || service.runtime.drain());
    thread::sleep(Duration::from_millis(100));
    assert!(!drain.is_finished());
    hold.open();
    let totals = drain.join().unwrap();
    assert_eq!((totals.accepted, totals.handled), (3, 3));
    assert_eq!(calls.map(Call::wait), [Ok(1), Ok(2), Ok(3)]);
}

pub(crate) fn a_drain_that_runs_out_leaves_the_rest_alone(setup: &Setup) {
    let hold = Hold::new();
    let service = setup.serve_blocking(vec![hold.handler()], (1, 10), |limits| {
        limits.drain_ms = 100;
    });
    let caller = setup.caller();
    let peer = service.connect(&caller);
    let calls = [1, 2, 3].map(|n| ask(&caller, &peer, n));
    eventually("one runs, and two wait", || {
        hold.begun() == 1 && service.runtime.metrics().total().blocking == 3
    });
    let begun = Instant::now();
    let totals = service.runtime.drain();
    assert!(begun.elapsed() < PATIENCE / 2, "it does not wait for ever");
    assert_eq!((totals.accepted, totals.handled, totals.nacked), (3, 0, 0));
    assert_eq!((totals.indeterminate, totals.lost), (1, 2));
    for call in calls {
        assert!(matches!(call.wait(), Err(CallError::Indeterminate(_))));
    }
    // Its thread, left to itself, ends with it: nothing else is run, and nothing kept.
    hold.open();
    eventually("the thread has ended", || Arc::strong_count(&hold) == 1);
    assert_eq!(hold.begun(), 1);
}
