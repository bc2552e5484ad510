//! Handlers that are registered and removed while the service runs.

use std::{
    panic::resume_unwind,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use corelane::{
    Runtime,
    client::{Call, Peer, TypedReply},
    error::{RegisterError, RegistryError, RemoveError},
    events::Event,
    handler::{
        Batch, Handler, Item, batched, blocking, inline, inline_raw_with, inline_with, spawned,
    },
    metrics::Metric,
    wire::{FEATURE_UPDATES, Header, Hello, Kind, Reason},
};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    requests::expect_nack,
    service::{PATIENCE, Service, Setup, echo, eventually},
};

fn ask(caller: &Runtime, peer: &Peer, name: &str, n: u64) -> Call<TypedReply<u64>> {
    let message = caller.client().message(name).json(&n).unwrap();
    message.to(peer).request().send().unwrap()
}

fn unknown(caller: &Runtime, peer: &Peer, name: &str) {
    let answer = ask(caller, peer, name, 1).wait();
    expect_nack(answer, Reason::UnknownHandler, "no handler has the key");
}

fn listed(caller: &Runtime, peer: &Peer) -> Vec<String> {
    let message = caller.client().message("_handlers").to(peer).request();
    let list: Value = serde_json::from_slice(&message.wait().unwrap()).unwrap();
    let names = list["handlers"].as_array().unwrap().iter();
    names
        .map(|it| it["name"].as_str().unwrap().to_owned())
        .collect()
}

/// Counts on its own shard, from a factor on.
fn counting(name: &str, from: u64) -> Handler {
    inline_with(name, move |_| {
        let mut count = from;
        move |n: u64, _| {
            count += n;
            Ok(count)
        }
    })
}

pub(crate) fn handlers_come_and_go_on_every_shard(setup: &Setup) {
    let service = setup.serve_oversubscribed(2, vec![echo()]);
    let runtime = &service.runtime;
    let mut events = runtime.events();
    let caller = setup.caller();
    let routed = |shard: usize| {
        let (_, endpoints) = runtime.shards().nth(shard).unwrap();
        let client = caller.client();
        client.connect_routed(0, &endpoints[0]).unwrap()
    };
    let peers = [routed(0), routed(1)];
    for peer in &peers {
        unknown(&caller, peer, "late");
    }
    runtime.register(counting("late", 10)).unwrap();
    // Each shard has a state of its own.
    for expected in [11, 12] {
        for peer in &peers {
            assert_eq!(ask(&caller, peer, "late", 1).wait(), Ok(expected));
            assert_eq!(listed(&caller, peer), ["echo", "late"]);
        }
    }
    assert_eq!(runtime.handlers().names(), ["echo", "late"]);
    runtime
        .register(counting("last", 100).on_last_shard())
        .unwrap();
    for expected in [101, 102] {
        assert_eq!(ask(&caller, &peers[0], "last", 1).wait(), Ok(expected));
    }
    runtime.remove("late").unwrap();
    for peer in &peers {
        unknown(&caller, peer, "late");
        assert_eq!(listed(&caller, peer), ["echo", "last"]);
    }
    // Its successor begins anew, and its figures go on.
    runtime.register(counting("late", 20)).unwrap();
    assert_eq!(ask(&caller, &peers[0], "late", 1).wait(), Ok(21));
    assert_eq!(listed(&caller, &peers[0]), ["echo", "late", "last"]);

    let metrics = runtime.metrics();
    let runs: Vec<_> = metrics
        .handlers()
        .map(|it| (it.name, it.counters.runs))
        .collect();
    assert_eq!(runs, [("echo", 0), ("late", 5), ("last", 2)]);
    for (name, count) in [("late", 5), ("last", 2)] {
        for metric in [Metric::InHandler, Metric::ReadToReply] {
            let histogram = metrics.histogram(metric, name).unwrap();
            assert_eq!(histogram.len(), count, "{name}");
        }
    }
    let seen: Vec<Event> = std::iter::from_fn(|| events.try_recv().ok())
        .filter(|it| !matches!(it, Event::Up(_)))
        .collect();
    let registered = |name: &str| Event::HandlerRegistered { name: name.into() };
    let removed = |name: &str| Event::HandlerRemoved { name: name.into() };
    let expected = [
        registered("late"),
        registered("last"),
        removed("late"),
        registered("late"),
    ];
    assert_eq!(seen, expected);
    let totals = service.runtime.drain();
    assert_eq!(
        (totals.nacked, totals.indeterminate, totals.lost),
        (4, 0, 0)
    );
}

pub(crate) fn what_cannot_be_served_is_served_nowhere(setup: &Setup) {
    let config = setup.config(setup.serving, 2, |_| {});
    let config = config.with_oversubscribe(true);
    let config = config.with_blocking(|it| it.threads = 0);
    let service = setup.serve_as(vec![echo(), counting("8yn0iYCKYHlIj4-BwPqk", 0)], config);
    let runtime = &service.runtime;
    let caller = setup.caller();
    let peer = service.connect(&caller);
    let refused = |handler: Handler| match runtime.register(handler).unwrap_err() {
        RegisterError::Refused(why) => why,
        other => panic!("{other}"),
    };
    let named = |name: &str| counting(name, 0);
    assert!(matches!(
        refused(named("echo")),
        RegistryError::Twice { .. }
    ));
    assert!(matches!(
        refused(named("_x")),
        RegistryError::Reserved { .. }
    ));
    assert!(matches!(refused(named("")), RegistryError::Length { .. }));
    let collision = refused(named("GReLUrM4wMqfg9yzV3KQ"));
    assert!(matches!(collision, RegistryError::Collision { .. }));
    let nowhere = refused(named("far").on_shard(2));
    assert!(matches!(
        nowhere,
        RegistryError::NoSuchShard { shard: 2, .. }
    ));
    let no_threads = runtime.register(blocking("block", |(): (), _| Ok(())));
    let name = "block".to_owned();
    assert_eq!(no_threads, Err(RegisterError::NoThreads { name }));

    // The other shard has made its state by then, and drops it.
    let state = Arc::new(());
    let held = state.clone();
    let panicking = inline_raw_with("late", move |shard| {
        let held = held.clone();
        if shard.shard == 1 {
            resume_unwind(Box::new("no state to be had"));
        }
        move |_, _, _| {
            let _ = &held;
            Ok(())
        }
    });
    let error = runtime.register(panicking).unwrap_err();
    assert_eq!(
        error.to_string(),
        "handler \"late\": its factory panicked on shard 1: no state to be had"
    );
    eventually("nothing of it is left", || Arc::strong_count(&state) == 1);
    unknown(&caller, &peer, "late");
    assert_eq!(listed(&caller, &peer), runtime.handlers().names());
    runtime.register(counting("late", 5)).unwrap();
    assert_eq!(ask(&caller, &peer, "late", 1).wait(), Ok(6));

    let name = || "nobody".to_owned();
    let unknown = runtime.remove("nobody");
    assert_eq!(unknown, Err(RemoveError::Unknown { name: name() }));
    let reserved = runtime.remove("_health").unwrap_err();
    assert!(
        matches!(reserved, RemoveError::Reserved { .. }),
        "{reserved}"
    );
    runtime.remove("late").unwrap();
    let again = runtime.remove("late").unwrap_err();
    assert!(matches!(again, RemoveError::Unknown { .. }), "{again}");

    let handlers = runtime.handlers().clone();
    service.runtime.drain();
    assert_eq!(
        handlers.register(counting("x", 1)),
        Err(RegisterError::Stopping)
    );
    assert_eq!(handlers.remove("echo"), Err(RemoveError::Stopping));
}

/// A runtime that was started without one has no thread for it until then.
pub(crate) fn the_first_blocking_handler_may_come_later(setup: &Setup) {
    let service = setup.serve_oversubscribed(2, vec![echo()]);
    let caller = setup.caller();
    let peer = service.connect(&caller);
    for name in ["first", "second"] {
        let handler = blocking(name, |(): (), _| {
            let thread = std::thread::current();
            Ok(thread.name().map(str::to_owned))
        });
        service.runtime.register(handler.on_shard(1)).unwrap();
        let message = caller.client().message(name).json(&()).unwrap();
        let thread: Option<String> = message.to(&peer).request().wait().unwrap();
        assert_eq!(thread.as_deref(), Some("corelane-blocking"));
    }
    let totals = service.runtime.drain();
    assert_eq!((totals.handled, totals.nacked, totals.lost), (2, 0, 0));
}

/// Tasks that run and that wait for their turn, a batch, and a thread of the pool.
pub(crate) fn what_was_accepted_before_a_removal_is_handled(setup: &Setup) {
    let gate = Arc::new(AtomicBool::new(false));
    let state = Arc::new(());
    let task = |name: &str, state: &Arc<()>| {
        let (gate, state) = (gate.clone(), state.clone());
        spawned(name, move |n: u64, cx| {
            let (gate, state) = (gate.clone(), state.clone());
            async move {
                while !gate.load(SeqCst) {
                    cx.sleep(Duration::from_millis(1)).await;
                }
                drop(state);
                Ok(n)
            }
        })
    };
    let (held, open) = (state.clone(), gate.clone());
    let pool = blocking("pool", move |n: u64, _| {
        let _ = &held;
        while !open.load(SeqCst) {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(n)
    });
    let batch = Batch {
        count_max: 100,
        bytes_max: 1 << 20,
        age_max: PATIENCE,
    };
    let held = state.clone();
    let batch = batched("batch", batch, move |items: &mut [Item<u64, u64>], _| {
        let _ = &held;
        for item in items {
            let n = *item.request();
            item.answer(Ok(n));
        }
    });
    let service = setup.serve_blocking(vec![echo(), pool], (1, 10), |_| {});
    let runtime = &service.runtime;
    for handler in [
        task("task", &state),
        task("line", &state).ordered_per_peer(5),
        batch,
    ] {
        runtime.register(handler).unwrap();
    }
    let caller = setup.caller();
    let peer = service.connect(&caller);
    let names = ["task", "line", "batch", "pool"];
    let calls = names.map(|name| [1, 2, 3].map(|n| ask(&caller, &peer, name, n)));
    let total = || runtime.metrics().total();
    eventually("all have arrived", || {
        let total = total();
        (total.spawned, total.batched, total.blocking) == (6, 3, 3)
    });
    let shared = Arc::downgrade(&state);
    drop(state);
    for name in names {
        runtime.remove(name).unwrap();
        unknown(&caller, &peer, name);
    }
    let users = |state: &Weak<()>| state.strong_count();
    assert!(users(&shared) > 0, "what is under way has it");
    gate.store(true, SeqCst);
    for calls in calls {
        assert_eq!(calls.map(Call::wait), [Ok(1), Ok(2), Ok(3)]);
    }
    eventually("its state has gone", || users(&shared) == 0);
    let totals = service.runtime.drain();
    assert_eq!(
        (totals.accepted, totals.handled, totals.nacked),
        (16, 12, 4)
    );
}

pub(crate) fn connected_peers_learn_what_is_served(setup: &Setup) {
    let service = setup.serve_oversubscribed(2, vec![echo()]);
    let caller = setup.caller();
    let peer = service.connect(&caller);
    let message = caller.client().message("echo").raw("x").to(&peer);
    assert_eq!(message.request().wait(), Ok(Bytes::from("x")));
    let handler = counting("late", 0).on_shard(1);
    service.runtime.register(handler).unwrap();
    let hops = || service.runtime.metrics().total().hopped_out;
    eventually("it is sent straight to the shard that runs it", || {
        let before = hops();
        ask(&caller, &peer, "late", 1).wait().unwrap();
        hops() == before
    });
    // Another way now: it is learned, too, and correct meanwhile.
    service.runtime.remove("late").unwrap();
    let handler = counting("late", 0).on_shard(0);
    service.runtime.register(handler).unwrap();
    eventually("its new way is learnt", || {
        let before = hops();
        ask(&caller, &peer, "late", 1).wait().unwrap();
        hops() == before
    });
    assert_eq!(service.runtime.drain().nacked, 0);
}

/// One that never said so might take it for an answer.
pub(crate) fn only_who_asks_for_it_is_told_of_changes(setup: &Setup) {
    let service = setup.serve(vec![echo()]);
    let old = introduced(&service, &[]);
    let new = introduced(&service, &["later", FEATURE_UPDATES]);
    service.runtime.register(counting("late", 0)).unwrap();
    let request = Header {
        handler: "echo".into(),
        deadline_us: u32::MAX,
        ..Header::new(Kind::Request, 7)
    };
    for (dealer, told) in [(&old, false), (&new, true)] {
        dealer
            .send_multipart([&request.encode()[..], b"x"], 0)
            .unwrap();
        if told {
            let (header, mut payload) = receive(dealer);
            assert_eq!((header.kind, header.correlation), (Kind::Welcome, 0));
            let hello = Hello::decode(&mut payload).unwrap();
            let names: Vec<_> = hello.handlers.iter().map(|it| it.name.as_str()).collect();
            assert_eq!(names, ["echo", "late"]);
            assert_eq!(hello.instance, service.runtime.instance());
        }
        let (header, payload) = receive(dealer);
        assert_eq!((header.kind, &payload[..]), (Kind::Response, &b"x"[..]));
    }
    // Whoever comes now is told at once.
    let hello = Hello::of_instance(Uuid::from_u128(3));
    let dealer = service.raw_dealer();
    let header = Header::new(Kind::Hello, 1).encode();
    dealer
        .send_multipart([&header[..], &hello.encode()], 0)
        .unwrap();
    let (_, mut payload) = receive(&dealer);
    assert_eq!(Hello::decode(&mut payload).unwrap().handlers.len(), 2);
}

fn introduced(service: &Service, features: &[&str]) -> zmq::Socket {
    let dealer = service.raw_dealer();
    let hello = Hello {
        features: features.iter().map(|it| (*it).to_owned()).collect(),
        ..Hello::of_instance(Uuid::from_u128(2))
    };
    let header = Header::new(Kind::Hello, 1).encode();
    dealer
        .send_multipart([&header[..], &hello.encode()], 0)
        .unwrap();
    assert_eq!(receive(&dealer).0.kind, Kind::Welcome);
    dealer
}

fn receive(dealer: &zmq::Socket) -> (Header, Vec<u8>) {
    let mut frames = dealer.recv_multipart(0).expect("an answer");
    let payload = frames.pop().expect("a payload");
    (Header::decode(&frames[0]).expect("a header"), payload)
}

/// Its handler blocks for longer than a change waits for its shard.
#[test]
fn a_silent_shard_keeps_a_handler_from_being_registered() {
    let setup = crate::native_over_ipc::SETUP;
    let begun = Arc::new(AtomicBool::new(false));
    let seen = begun.clone();
    let block = inline("block", move |ms: u64, _| {
        seen.store(true, SeqCst);
        thread::sleep(Duration::from_millis(ms));
        Ok(ms)
    });
    let service = setup.serve_oversubscribed(2, vec![echo(), block.on_shard(1)]);
    let caller = setup.caller();
    // By the shard that goes on: the other's peers lose patience.
    let client = caller.client();
    let peer = client.connect_routed(0, &service.endpoint).unwrap();
    let blocking = ask(&caller, &peer, "block", 6_000);
    eventually("it blocks", || begun.load(SeqCst));
    let silent = service.runtime.register(counting("late", 0));
    let name = "late".to_owned();
    assert_eq!(silent, Err(RegisterError::Silent { name, shard: 1 }));
    assert_eq!(blocking.wait(), Ok(6_000));
    unknown(&caller, &peer, "late");
    service.runtime.register(counting("late", 7)).unwrap();
    assert_eq!(ask(&caller, &peer, "late", 1).wait(), Ok(8));
}

/// Four threads change what is served, and each sees its own change at once; others are served
/// meanwhile, and all adds up.
pub(crate) fn many_threads_may_change_what_is_served_under_load(setup: &Setup) {
    const ROUNDS: u64 = 8;
    let service = setup.serve_oversubscribed(2, vec![echo()]);
    let caller = setup.caller();
    let peer = service.connect(&caller);
    let is_over = AtomicBool::new(false);
    let echoed = AtomicU64::new(0);
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !is_over.load(SeqCst) {
                let message = caller.client().message("echo").raw("x").to(&peer);
                assert_eq!(message.request().wait(), Ok(Bytes::from("x")));
                echoed.fetch_add(1, SeqCst);
            }
        });
        let changing: Vec<_> = (0..4_usize)
            .map(|number| {
                let (service, caller, peer) = (&service, &caller, &peer);
                scope.spawn(move || {
                    let name = format!("late-{number}");
                    let handlers = service.runtime.handlers();
                    for round in 0..ROUNDS {
                        let handler = inline(&name, move |n: u64, _| Ok(n + round));
                        let handler = handler.on_shard(number % 2);
                        handlers.register(handler).unwrap();
                        assert_eq!(ask(caller, peer, &name, 5).wait(), Ok(5 + round));
                        handlers.remove(&name).unwrap();
                        unknown(caller, peer, &name);
                    }
                })
            })
            .collect();
        let changed = changing.into_iter().map(|it| it.join());
        let changed: Result<Vec<()>, _> = changed.collect();
        is_over.store(true, SeqCst);
        load.join().unwrap();
        changed.unwrap();
    });
    let rows = service.runtime.metrics().handlers().count();
    assert_eq!(rows, 5, "a name has one row, however often it comes");
    let totals = service.runtime.drain();
    assert_eq!(totals.handled, echoed.into_inner() + 4 * ROUNDS);
    assert_eq!(totals.accepted, totals.handled + totals.nacked);
    assert_eq!(totals.nacked, 4 * ROUNDS);
}
