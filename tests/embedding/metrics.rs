//! What operators may want to know of shards and handlers, by each of the ways to ask for it.

use std::{thread, time::Duration};

use corelane::{
    client::Peer,
    handler::{Batch, HandlerError, batched_raw, blocking, inline, spawned},
    metrics::Counters,
};
use serde_json::{Value, json};

use crate::service::{Setup, echo, eventually};

/// In JSON, in Prometheus' text, in process, and what it is at least.
type Figure = (&'static str, &'static str, fn(&Counters) -> u64, u64);

/// Of shard 0.
const SHARD: [Figure; 23] = [
    ("accepted", "accepted_total", |it| it.accepted, 14),
    ("handled", "handled_total", |it| it.handled, 6),
    (
        "indeterminate",
        "indeterminate_total",
        |it| it.indeterminate,
        1,
    ),
    ("lost", "lost_total", |it| it.lost, 1),
    ("spawned", "spawned_total", |it| it.spawned, 2),
    ("spawned_now", "spawned", |it| it.spawned_now, 1),
    ("spawned_most", "spawned_most", |it| it.spawned_most, 1),
    ("blocking", "blocking_total", |it| it.blocking, 2),
    ("blocking_now", "blocking", |it| it.blocking_now, 0),
    ("blocking_most", "blocking_most", |it| it.blocking_most, 2),
    ("batched", "batched_total", |it| it.batched, 2),
    ("batched_now", "batched", |it| it.batched_now, 2),
    ("batched_most", "batched_most", |it| it.batched_most, 2),
    ("hopped_out", "hopped_out_total", |it| it.hopped_out, 3),
    (
        "shards_woken",
        "shards_woken_total",
        |it| it.shards_woken,
        1,
    ),
    ("woken", "woken_total", |it| it.woken, 1),
    ("ring_now", "ring", |it| it.ring_now, 0),
    ("ring_most", "ring_most", |it| it.ring_most, 1),
    ("inbox_now", "inbox", |it| it.inbox_now, 0),
    ("inbox_most", "inbox_most", |it| it.inbox_most, 1),
    ("outgoing_now", "outgoing", |it| it.outgoing_now, 0),
    ("outgoing_most", "outgoing_most", |it| it.outgoing_most, 1),
    (
        "outstanding_most",
        "outstanding_most",
        |it| it.outstanding_most,
        1,
    ),
];

/// Figures of handlers on shard 0: in JSON, in Prometheus' text, and what it is.
const HANDLERS: [(&str, &str, &str, u64); 17] = [
    ("echo", "accepted", "accepted_total", 4),
    ("echo", "handled", "handled_total", 4),
    ("fail", "accepted", "accepted_total", 1),
    ("fail", "handled", "handled_total", 0),
    ("fail", "runs", "runs_total", 1),
    ("one", "accepted", "accepted_total", 3),
    ("one", "runs", "runs_total", 1),
    ("one", "indeterminate", "indeterminate_total", 1),
    ("one", "under_way_now", "under_way", 1),
    ("one", "under_way_most", "under_way_most", 1),
    ("block", "accepted", "accepted_total", 2),
    ("block", "handled", "handled_total", 1),
    ("block", "lost", "lost_total", 1),
    ("block", "under_way_most", "under_way_most", 2),
    ("gather", "under_way_now", "under_way", 2),
    ("gather", "accepted", "accepted_total", 2),
    ("stall", "overruns", "overruns_total", 1),
];

pub(crate) fn each_figure_is_told_in_three_ways(setup: &Setup) {
    let waits = Batch {
        count_max: 100,
        bytes_max: 1 << 20,
        age_max: Duration::from_secs(60),
    };
    let handlers = vec![
        echo(),
        inline("far", |(): (), _cx| Ok(())).on_shard(1),
        inline("fail", |(): (), _cx| {
            Err::<(), _>(HandlerError::new("as asked"))
        }),
        inline("stall", |ms: u64, _cx| {
            thread::sleep(Duration::from_millis(ms));
            Ok(())
        }),
        spawned("one", |(): (), cx| async move {
            cx.sleep(Duration::from_secs(60)).await;
            Ok(())
        })
        .concurrency(1),
        blocking("block", |ms: u64, _cx| {
            thread::sleep(Duration::from_millis(ms));
            Ok(())
        }),
        batched_raw("gather", waits, |_, _cx| {}),
    ];
    let config = setup.config(setup.serving, 2, |_| {});
    let config = config.with_blocking(|it| it.threads = 1);
    let service = setup.serve_as(handlers, config);
    let caller = setup.caller();
    let peer = caller
        .client()
        .connect_routed(0, &service.endpoint)
        .unwrap();
    let send = |name: &str, payload: Value| {
        let message = caller.client().message(name).json(&payload).unwrap();
        message.to(&peer).request::<Value>().send().unwrap()
    };
    let shard = || service.runtime.metrics().shards()[0];

    for _ in 0..3 {
        send("echo", json!(7)).wait().unwrap();
        send("far", json!(null)).wait().unwrap();
        // So that the other shard sleeps when the next one comes.
        thread::sleep(Duration::from_millis(5));
    }
    assert!(send("fail", json!(null)).wait().is_err());
    assert!(send("nobody", json!(null)).wait().is_err());
    send("stall", json!(3)).wait().unwrap();
    // The queue of submissions, and of calls, is that of who calls: the service calls itself.
    let own = service.runtime.client().connect(&service.endpoint).unwrap();
    let message = service.runtime.client().message("echo").raw("x").to(&own);
    message.request().wait().unwrap();

    let stopped = send("one", json!(null));
    eventually("it runs", || shard().spawned == 1);
    assert!(send("one", json!(null)).wait().is_err(), "one at once");
    drop(stopped);
    eventually("it is stopped", || shard().indeterminate == 1);
    let running = send("one", json!(null));
    eventually("another runs", || shard().spawned == 2);

    let (blocks, waits) = (send("block", json!(300)), send("block", json!(0)));
    eventually("one waits", || shard().blocking == 2);
    drop(waits);
    blocks.wait().unwrap();
    eventually("it was dropped", || shard().lost == 1);
    for _ in 0..2 {
        let message = caller.client().message("gather").raw("x").to(&peer);
        message.one_way().unwrap();
    }
    eventually("both wait", || shard().batched_now == 2);

    let snapshot = service.runtime.metrics();
    let text = snapshot.to_prometheus();
    let answer = ask(&caller, &peer);
    let line = |line: &str| assert!(text.lines().any(|it| it == line), "{line} in\n{text}");
    let counters = snapshot.shards()[0];
    let of_shard = &answer["shards"][0];
    for (field, family, of, least) in SHARD {
        let value = of(&counters);
        assert!(value >= least, "{field}: {value}, in process");
        line(&format!("corelane_{family}{{shard=\"0\"}} {value}"));
        let told = of_shard[field].as_u64().unwrap();
        assert!(told >= least, "{field}: {told}, by _metrics");
    }
    let overloaded = "shard=\"0\",reason=\"Overloaded\"";
    line(&format!("corelane_nacked_total{{{overloaded}}} 1"));
    assert_eq!(counters.nacked_by_reason[5], 1);
    assert_eq!(of_shard["nacked_by_reason"]["Overloaded"], 1);

    // As serde has it, so that each field is looked at under its name.
    let in_process = serde_json::to_value(snapshot.report()).unwrap();
    let find = |report: &Value, name: &str| {
        let handlers = report["shards"][0]["handlers"].as_array().unwrap();
        handlers.iter().find(|it| it["name"] == name).cloned()
    };
    for (handler, field, family, value) in HANDLERS {
        for report in [&in_process, &answer] {
            let found = find(report, handler).unwrap();
            assert_eq!(found[field], value, "{field} of {found}");
        }
        let labels = format!("shard=\"0\",handler=\"{handler}\"");
        line(&format!("corelane_handler_{family}{{{labels}}} {value}"));
    }
    for report in [&in_process, &answer] {
        let of = |name| find(report, name).unwrap();
        assert_eq!(of("fail")["nacked_by_reason"]["HandlerFailed"], 1);
        assert_eq!(of("one")["refused_by_reason"]["Overloaded"], 1);
        assert!(of("stall")["longest_inline_ns"].as_u64() >= Some(3_000_000));
    }
    let labels = "shard=\"0\",handler=\"one\",reason=\"Overloaded\"";
    line(&format!("corelane_handler_refused_total{{{labels}}} 1"));

    let turns = snapshot.turns(0).unwrap();
    assert!(turns.max() >= 3_000_000, "one of them has stalled");
    let count = turns.len();
    line(&format!(
        "corelane_turn_seconds_count{{shard=\"0\"}} {count}"
    ));
    assert!(of_shard["turn_ns"]["count"].as_u64() >= Some(count));
    drop(running);
}

fn ask(caller: &corelane::Runtime, peer: &Peer) -> Value {
    let message = caller.client().message("_metrics").json(&json!({}));
    message.unwrap().to(peer).request().wait().unwrap()
}
