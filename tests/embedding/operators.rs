//! What operators ask: the built-in handlers.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use corelane::{
    Runtime,
    client::Peer,
    error::CallError,
    handler::inline,
    metrics::{Metric, Report},
    wire::{HandlerKey, Header, Kind, Reason},
};
use serde_json::{Value, json};

use crate::{
    requests::expect_nack,
    service::{PATIENCE, Service, Setup, echo, eventually, sleep},
};

fn ask(caller: &Runtime, peer: &Peer, name: &str) -> Result<Value, CallError> {
    let message = caller.client().message(name).json(&json!({})).unwrap();
    message.to(peer).request().wait()
}

fn keys(value: &Value) -> Vec<&str> {
    let object = value.as_object().expect("an object");
    object.keys().map(String::as_str).collect()
}

pub(crate) fn health_and_handlers_are_told(setup: &Setup) {
    let (service, caller) = (setup.serve(vec![echo(), sleep()]), setup.caller());
    let peer = service.connect(&caller);
    let health = ask(&caller, &peer, "_health").unwrap();
    assert_eq!(keys(&health), ["instance", "status", "uptime_s"]);
    assert_eq!(health["status"], "ok");
    assert_eq!(health["instance"], service.runtime.instance().to_string());
    let uptime = health["uptime_s"].as_f64().unwrap();
    assert!((0.0..PATIENCE.as_secs_f64()).contains(&uptime));
    // Without a payload, as bytes: the reply is the same text.
    let raw = caller.client().message("_health").to(&peer).request();
    let raw: Value = serde_json::from_slice(&raw.wait().unwrap()).unwrap();
    assert_eq!(keys(&raw), keys(&health));

    let list = ask(&caller, &peer, "_handlers").unwrap();
    let entry = |name: &str| {
        let key = HandlerKey::of(name).to_string();
        json!({"name": name, "key": key, "affinity": "local"})
    };
    assert_eq!(list["handlers"], json!([entry("echo"), entry("sleep")]));
    for name in list["built_in"].as_array().unwrap() {
        let name = name.as_str().unwrap();
        assert!(name.starts_with('_'), "{name}");
        let message = caller.client().message(name).to(&peer).confirm();
        if let Err(ended) = message.wait() {
            let text = ended.to_string();
            assert!(!text.contains("UnknownHandler"), "{name}: {text}");
        }
    }
    // The operator's thread is not the pool.
    assert_eq!(service.runtime.metrics().total().blocking, 0);
    let totals = service.runtime.drain();
    assert_eq!(totals.accepted, totals.handled + totals.nacked);
    // No name to wait for, no dump_dir, and no leave to drain.
    assert_eq!(totals.nacked, 3);
}

pub(crate) fn questions_that_are_none_are_refused(setup: &Setup) {
    let (service, caller) = (setup.serve(vec![echo()]), setup.caller());
    let peer = service.connect(&caller);
    let message = |name: &str| caller.client().message(name);
    for name in ["_", "_healt", "_health ", "_await_handler_"] {
        let refused = ask(&caller, &peer, name);
        expect_nack(refused, Reason::UnknownHandler, "no handler has the key");
    }
    for name in ["_health", "_metrics"] {
        for text in ["{", "[]", "7", "{}x", "\u{0}"] {
            let refused = message(name).json_text(text).to(&peer).request().wait();
            expect_nack(refused, Reason::Malformed, "a JSON object");
            let raw = message(name).raw(text).to(&peer).request().wait();
            expect_nack(raw, Reason::Malformed, "a JSON object");
        }
        let long = format!("{{\"a\":\"{}\"}}", "a".repeat(5_000));
        let refused = message(name).json_text(long).to(&peer).request().wait();
        expect_nack(refused, Reason::TooLarge, "4096 bytes");
        let postcard = message(name).postcard(&()).unwrap().to(&peer);
        let refused = postcard.request::<Value>().wait();
        expect_nack(refused, Reason::Unsupported, "JSON");
        // Later versions may ask more.
        let more = message(name).json_text(r#"{"later":[1]}"#).to(&peer);
        assert!(more.request().wait().is_ok());
        message(name).to(&peer).one_way().unwrap();
    }
    eventually("the one-way messages have come and are handled", || {
        let total = service.runtime.metrics().total();
        total.accepted == 32 && total.in_flight() == 0
    });
    let totals = service.runtime.drain();
    assert_eq!(
        (totals.accepted, totals.handled, totals.nacked),
        (32, 4, 28)
    );
}

/// Not a byte of a payload, whatever became of its message.
pub(crate) fn metrics_are_numbers_and_names_alone(setup: &Setup) {
    const SECRET: &str = "correct-horse-battery";
    let double = inline("double", |n: u64, _cx| Ok(2 * n));
    let (service, caller) = (setup.serve(vec![echo(), double]), setup.caller());
    let peer = service.connect(&caller);
    let message = |name: &str| caller.client().message(name);
    for _ in 0..10 {
        message("echo")
            .raw(SECRET)
            .to(&peer)
            .request()
            .wait()
            .unwrap();
    }
    let text = format!("\"{SECRET}\"");
    let refused = message("double").json_text(text).to(&peer).request().wait();
    assert!(refused.is_err());
    assert!(
        message("nobody")
            .raw(SECRET)
            .to(&peer)
            .request()
            .wait()
            .is_err()
    );

    let answer = ask(&caller, &peer, "_metrics").unwrap();
    assert!(!answer.to_string().contains(SECRET), "{answer}");
    assert_eq!(answer["instance"], service.runtime.instance().to_string());
    let report: Report = serde_json::from_value(answer).unwrap();
    assert!(report.silent_shards.is_empty());
    assert_eq!(report.in_flight, 1, "itself");
    let counters = report.shards[0].counters;
    assert_eq!((counters.accepted, counters.handled), (13, 10));
    assert_eq!(counters.nacked_by_reason[1], 1);
    let [echo, double] = &report.handlers[..] else {
        panic!("{:?}", report.handlers)
    };
    assert_eq!((echo.name.as_str(), echo.counters.runs), ("echo", 10));
    assert_eq!(echo.in_handler_ns.unwrap().count, 10);
    assert_eq!(echo.read_to_reply_ns.unwrap().count, 10);
    let malformed = usize::from(Reason::Malformed.to_u16());
    assert_eq!(double.counters.nacked_by_reason[malformed], 1);
    assert_eq!(report.shards[0].handlers.len(), 2);
    // The caller knows what its calls took.
    let called = caller.metrics().report().called;
    let echo = called.iter().find(|it| it.name == "echo").unwrap();
    assert_eq!(echo.round_trip_ns.count, 10);

    // Asking leaves no mark in the histograms.
    ask(&caller, &peer, "_metrics").unwrap();
    let snapshot = service.runtime.metrics();
    let names = |metric| {
        let series = snapshot.series().filter(move |it| it.metric == metric);
        series.map(|it| it.handler.into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(Metric::InHandler), ["echo", "double"]);
}

pub(crate) fn a_shard_that_spins_is_named_and_nothing_of_it_is_lost(setup: &Setup) {
    let spin = inline("spin", |ms: u64, _cx| {
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(ms) {}
        Ok(())
    });
    let service = setup.serve_with(2, vec![echo(), spin.on_shard(1)], |_| {});
    let caller = setup.caller();
    let peer = caller
        .client()
        .connect_routed(0, &service.endpoint)
        .unwrap();
    ask(&caller, &peer, "_health").unwrap();
    let message = caller.client().message("spin").json(&2_500_u64).unwrap();
    let spinning = message.to(&peer).request::<()>().send().unwrap();
    thread::sleep(Duration::from_millis(300));
    let begun = Instant::now();
    ask(&caller, &peer, "_health").unwrap();
    ask(&caller, &peer, "_handlers").unwrap();
    let answer = ask(&caller, &peer, "_metrics").unwrap();
    assert_eq!(answer["silent_shards"], json!([1]), "{answer}");
    assert_eq!(answer["shards"].as_array().unwrap().len(), 2);
    if begun.elapsed() < Duration::from_millis(1_150) {
        let peers = ask(&caller, &peer, "_peers").unwrap();
        assert_eq!(peers["silent_shards"], json!([1]), "{peers}");
        assert_eq!(peers["shards"][0]["shard"], 0);
    }
    assert_eq!(spinning.wait(), Ok(()));
    eventually("its run shows", || {
        let answer = ask(&caller, &peer, "_metrics").unwrap();
        let report: Report = serde_json::from_value(answer).unwrap();
        let spin = &report.handlers[1];
        report.silent_shards.is_empty()
            && (spin.counters.runs, spin.counters.overruns) == (1, 1)
            && spin.counters.longest_inline_ns >= 2_400_000_000
            && spin.in_handler_ns.is_some_and(|it| it.count == 1)
    });
}

pub(crate) fn peers_are_listed_by_shard(setup: &Setup) {
    let service = setup.serve_with(2, vec![echo()], |_| {});
    let caller = setup.caller();
    let peer = service.connect(&caller);
    ask(&caller, &peer, "_health").unwrap();
    let peers = ask(&caller, &peer, "_peers").unwrap();
    assert_eq!(peers["silent_shards"], json!([]));
    let shard = &peers["shards"][0];
    assert_eq!(
        (&shard["shard"], &shard["accepted_total"]),
        (&json!(0), &json!(1))
    );
    let accepted = &shard["accepted"][0];
    assert_eq!(accepted["instance"], caller.instance().to_string());
    assert!(accepted["connected_s"].as_f64().unwrap() >= 0.0);
    assert_eq!(peers["shards"][1]["accepted_total"], 0);
    assert_eq!(peers["shards"][1]["shard"], 1);

    // The other end, through a service of its own.
    let own = setup.serve(vec![]);
    let dialed = own.runtime.client().connect(&service.endpoint).unwrap();
    let nowhere = setup.nowhere(&own.directory);
    let nobody = own.runtime.client().connect(&nowhere).unwrap();
    let message = own.runtime.client().message("echo").raw("x").to(&dialed);
    message.request().wait().unwrap();
    let peer = own.connect(&caller);
    let peers = ask(&caller, &peer, "_peers").unwrap();
    let shard = &peers["shards"][0];
    let find = |endpoint: &str| {
        let dialed = shard["dialed"].as_array().unwrap();
        let found = dialed.iter().find(|it| it["endpoint"] == endpoint);
        found.unwrap_or_else(|| panic!("{endpoint} in {peers}"))
    };
    let up = find(&service.endpoint);
    assert_eq!(
        (&up["state"], &up["is_link"]),
        (&json!("up"), &json!(false))
    );
    assert_eq!(up["instance"], service.runtime.instance().to_string());
    assert_eq!(up["account"]["handled"], 1);
    let down = find(&nowhere);
    assert_eq!(
        (&down["state"], &down["instance"]),
        (&json!("down"), &Value::Null)
    );
    drop((dialed, nobody));
}

pub(crate) fn a_dump_is_written_when_asked_for(setup: &Setup) {
    let (service, caller) = (setup.serve(vec![echo()]), setup.caller());
    let peer = service.connect(&caller);
    let refused = ask(&caller, &peer, "_dump");
    expect_nack(refused, Reason::HandlerFailed, "metrics.dump_dir");

    let directory = tempfile::tempdir().unwrap();
    let config = setup.config(setup.serving, 1, |_| {});
    let config = config
        .with_dump_dir(directory.path())
        .with_dump_interval_s(3_600);
    let service = setup.serve_as(vec![echo()], config);
    let peer = service.connect(&caller);
    for _ in 0..3 {
        let message = caller.client().message("echo").raw("payload").to(&peer);
        message.request().wait().unwrap();
    }
    let answer = ask(&caller, &peer, "_dump").unwrap();
    let path = answer["path"].as_str().unwrap();
    assert_eq!(Some(path.into()), service.runtime.dump_path());
    let text = std::fs::read_to_string(path).unwrap();
    assert!(!text.contains("payload") && !text.contains("/_"), "{text}");
    let rows = corelane::metrics::read([path]).unwrap();
    let row = rows.iter().find(|it| it.metric == "in_handler").unwrap();
    assert_eq!((row.handler.as_str(), row.histogram.len()), ("echo", 3));
    // It has turned for each of them at least.
    let row = rows.iter().find(|it| it.metric == "turn").unwrap();
    assert_eq!(row.handler, "shard-0");
    assert!(row.histogram.len() >= 3);
}

pub(crate) fn a_drain_is_asked_for_only_by_leave(setup: &Setup) {
    let caller = setup.caller();
    let refused = |service: &Service, reason, text| {
        let peer = service.connect(&caller);
        expect_nack(ask(&caller, &peer, "_drain"), reason, text);
        assert_eq!(ask(&caller, &peer, "_health").unwrap()["status"], "ok");
    };
    let config = || setup.config(setup.serving, 1, |_| {});
    let (told, tell) = mpsc::channel();
    let telling = |told: mpsc::Sender<()>| move || told.send(()).unwrap();
    let service = setup.serve_telling(vec![echo()], config(), telling(told.clone()));
    refused(&service, Reason::Unauthorized, "control.allow_drain");
    let allowing = || config().with_allow_drain(true);
    let service = setup.serve_as(vec![echo()], allowing());
    refused(&service, Reason::HandlerFailed, "takes no drain requests");
    assert!(tell.try_recv().is_err());

    let service = setup.serve_telling(vec![echo()], allowing(), telling(told));
    let peer = service.connect(&caller);
    for _ in 0..2 {
        assert_eq!(ask(&caller, &peer, "_drain"), Ok(json!({"draining": true})));
    }
    tell.recv_timeout(PATIENCE).unwrap();
    assert!(tell.try_recv().is_err(), "once");
    assert_eq!(service.runtime.drain().handled, 2);
}

pub(crate) fn a_draining_process_still_says_how_it_is(setup: &Setup) {
    let (service, caller) = (setup.serve(vec![sleep(), echo()]), setup.caller());
    let peer = service.connect(&caller);
    // A peer that does not heed the goodbye: it has said no hello.
    let dealer = service.raw_dealer();
    let ask = |name: &str| {
        let request = Header {
            handler: HandlerKey::of(name),
            deadline_us: 10_000_000,
            ..Header::new(Kind::Request, 1)
        };
        let frames = [&request.encode()[..], b""];
        dealer.send_multipart(frames, 0).unwrap();
        let mut answer = dealer.recv_multipart(0).expect("an answer, or a nack");
        let header = Header::decode(&answer[0]).unwrap();
        match header.kind {
            Kind::Response => Ok(serde_json::from_slice::<Value>(&answer.remove(1)).unwrap()),
            _ => Err(header.reason),
        }
    };
    assert_eq!(ask("_health").unwrap()["status"], "ok");
    let message = caller.client().message("sleep").json(&1_500_u64).unwrap();
    let call = message.to(&peer).request::<u64>().send().unwrap();
    eventually("it runs", || service.runtime.metrics().total().spawned == 1);
    let drain = thread::spawn(move || service.runtime.drain());
    eventually("it drains", || {
        ask("_health").unwrap()["status"] == "draining"
    });
    eventually("its shard does", || ask("echo").is_err());
    assert_eq!(ask("echo"), Err(Reason::Draining));
    assert_eq!(ask("_dump"), Err(Reason::Draining));
    assert_eq!(ask("_handlers").unwrap()["handlers"][1]["name"], "echo");
    assert_eq!(ask("_peers").unwrap()["shards"][0]["accepted_total"], 1);
    assert_eq!(ask("_metrics").unwrap()["shards"][0]["spawned_now"], 1);
    assert_eq!(call.wait(), Ok(1_500), "what ran before is answered");
    let totals = drain.join().unwrap();
    assert_eq!(totals.accepted, totals.handled + totals.nacked);
}
