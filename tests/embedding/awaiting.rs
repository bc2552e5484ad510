//! `_await_handler`: callers that wait for a handler that is not served yet.

use std::time::{Duration, Instant};

use corelane::{
    Runtime,
    client::{Call, Peer, TypedReply},
    error::{CallError, Indeterminate},
    handler::{Handler, inline},
    wire::{HandlerKey, Reason},
};
use serde_json::{Value, json};

use crate::{
    requests::expect_nack,
    service::{PATIENCE, Service, Setup, echo, eventually},
};

fn await_handler(caller: &Runtime, peer: &Peer, question: &Value) -> Call<TypedReply<Value>> {
    let message = caller.client().message("_await_handler").json(question);
    message.unwrap().to(peer).request().send().unwrap()
}

fn entry(name: &str, affinity: &str) -> Result<Value, CallError> {
    let key = HandlerKey::of(name).to_string();
    Ok(json!({"name": name, "key": key, "affinity": affinity}))
}

fn late() -> Handler {
    inline("late", |n: u64, _| Ok(n + 1)).on_shard(1)
}

/// So many wait.
fn waiting(service: &Service, count: u64) {
    eventually("they wait", || {
        service.runtime.metrics().total().spawned_now == count
    });
}

pub(crate) fn a_handler_is_awaited_until_every_shard_serves_it(setup: &Setup) {
    let service = setup.serve_oversubscribed(2, vec![echo()]);
    let runtime = &service.runtime;
    let caller = setup.caller();
    let peers: Vec<Peer> = runtime
        .shards()
        .map(|(_, endpoints)| caller.client().connect_routed(0, &endpoints[0]).unwrap())
        .collect();
    let question = |name: &str| json!({"name": name, "later": [1, 2]});
    for (name, affinity) in [("echo", "local"), ("_health", "local")] {
        let answer = await_handler(&caller, &peers[1], &question(name)).wait();
        assert_eq!(answer, entry(name, affinity), "it is served");
    }
    // It comes, goes and comes again.
    for round in 1..=2 {
        let ask = |peer| await_handler(&caller, peer, &question("late"));
        let calls: Vec<_> = peers
            .iter()
            .flat_map(|peer| [ask(peer), ask(peer)])
            .collect();
        let other = await_handler(&caller, &peers[0], &question("other"));
        waiting(&service, 5);
        runtime.register(late()).unwrap();
        for call in calls {
            assert_eq!(call.wait(), entry("late", "shard:1"));
        }
        for peer in &peers {
            let message = caller.client().message("late").json(&round).unwrap();
            let answer: Result<u64, _> = message.to(peer).request().wait();
            assert_eq!(answer, Ok(round + 1), "whoever is told may call it");
        }
        waiting(&service, 1);
        drop(other);
        waiting(&service, 0);
        runtime.remove("late").unwrap();
    }
    let total = runtime.metrics().total();
    assert_eq!(
        (total.stopped, total.in_flight(), total.nacked()),
        (2, 0, 0)
    );
}

pub(crate) fn what_awaits_a_handler_ends_as_any_task(setup: &Setup) {
    let service = setup.serve_with(1, vec![echo()], |it| it.spawned_max = 2);
    let caller = setup.caller();
    let peer = service.connect(&caller);
    for question in [
        json!({}),
        json!({"name": 7}),
        json!(null),
        json!({"name": ""}),
    ] {
        let refused = await_handler(&caller, &peer, &question).wait();
        expect_nack(refused, Reason::Malformed, "");
    }
    let question = json!({"name": "late"});
    // Nothing would ever end it.
    let message = caller.client().message("_await_handler").json(&question);
    message.unwrap().to(&peer).one_way().unwrap();
    let call = await_handler(&caller, &peer, &question);
    let message = caller.client().message("_await_handler").json(&question);
    let within = Duration::from_millis(200);
    let request = message.unwrap().to(&peer).request::<Value>().within(within);
    let short = request.send().unwrap();
    waiting(&service, 2);
    let refused = await_handler(&caller, &peer, &question).wait();
    expect_nack(refused, Reason::Overloaded, "limits.spawned_max");
    let late = Err(CallError::Indeterminate(Indeterminate::Deadline));
    assert_eq!(short.wait(), late);
    waiting(&service, 1);
    drop(call);
    waiting(&service, 0);
    let totals = service.runtime.drain();
    assert_eq!((totals.nacked, totals.indeterminate), (6, 2));
    assert_eq!(totals.accepted, 8);
}

pub(crate) fn a_drain_answers_what_awaits_a_handler(setup: &Setup) {
    let service = setup.serve_with(1, vec![echo()], |it| {
        it.drain_ms = PATIENCE.as_millis() as u64
    });
    let caller = setup.caller();
    let peer = service.connect(&caller);
    let call = await_handler(&caller, &peer, &json!({"name": "late"}));
    waiting(&service, 1);
    let begun = Instant::now();
    let totals = service.runtime.drain();
    assert!(begun.elapsed() < PATIENCE / 2, "it is not waited for");
    expect_nack(call.wait(), Reason::Draining, "does not serve \"late\"");
    assert_eq!((totals.accepted, totals.nacked), (1, 1));
}
