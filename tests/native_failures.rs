//! Peers that are stopped, killed or stuck, as processes, and what the native engine makes of it.

#[path = "native_failures/blackhole.rs"]
mod blackhole;
#[path = "cli/process.rs"]
#[allow(dead_code)] // what the command's own tests need of it
mod process;

use std::time::{Duration, Instant};

use bytes::Bytes;
use corelane::{
    Config, Runtime,
    client::Peer,
    config::{EngineKind, IdleStrategy},
    error::{CallError, Indeterminate},
};
use process::{PATIENCE, Served};
use rustix::process::Signal;
use tempfile::TempDir;

const INTERVAL_MS: u64 = 100;
const TIMEOUT_MS: u64 = 300;

/// A runtime that calls, whose peers are lost after 300 ms of silence.
fn caller() -> Runtime {
    let config = Config::default()
        .with_engine(EngineKind::Native)
        .with_shards(1)
        .with_idle(IdleStrategy::Park)
        .with_limits(|limits| {
            limits.heartbeat_interval_ms = INTERVAL_MS;
            limits.heartbeat_timeout_ms = TIMEOUT_MS;
            limits.reconnect_min_ms = 10;
            limits.reconnect_max_ms = 50;
            limits.deadline_ms = PATIENCE.as_millis() as u64;
        });
    Runtime::builder(config).start().unwrap()
}

/// `corelane serve` with the same heartbeats.
fn serve(listen: &str) -> Served {
    serve_on(1, listen)
}

fn serve_on(shards: usize, listen: &str) -> Served {
    let directory = TempDir::new().unwrap();
    let config = directory.path().join("config.toml");
    let text = format!(
        "[limits]\nheartbeat_interval_ms = {INTERVAL_MS}\nheartbeat_timeout_ms = {TIMEOUT_MS}\n\
         [placement]\noversubscribe = true\n"
    );
    std::fs::write(&config, text).unwrap();
    let config = config.to_str().expect("UTF-8");
    let listen = ["--config", config, "--listen", listen];
    let shards = shards.to_string();
    let shard = ["--shards", &shards, "--engine", "native", "--idle", "park"];
    // The file is read by the time that it is ready.
    Served::start_exactly(&[&listen[..], &shard].concat())
}

/// Stops it, and waits until none of its threads runs any more.
fn stop(served: &Served) {
    served.signal(Signal::STOP);
    let tasks = format!("/proc/{}/task", served.pid());
    let is_stopped = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        // The state stands behind the name, which stands in parentheses.
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('T'))
    };
    let begun = Instant::now();
    while !std::fs::read_dir(&tasks).unwrap().all(is_stopped) {
        assert!(begun.elapsed() < PATIENCE, "it does not stop");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn connect(caller: &Runtime, to: &str) -> Peer {
    caller.client().connect(to).unwrap()
}

fn echo(caller: &Runtime, peer: &Peer) -> Result<Bytes, CallError> {
    let message = caller.client().message("echo").raw("x").to(peer);
    message.request().wait()
}

fn assert_echoes(caller: &Runtime, peer: &Peer) {
    assert_eq!(echo(caller, peer), Ok(Bytes::from("x")));
}

#[test]
fn a_stopped_peer_is_lost_in_time_and_found_again_when_it_goes_on() {
    let (stopped, other) = (serve("tcp://127.0.0.1:0"), serve("tcp://127.0.0.1:0"));
    let caller = caller();
    let peer = connect(&caller, &stopped.endpoint("tcp"));
    let beside = connect(&caller, &other.endpoint("tcp"));
    assert_echoes(&caller, &peer);
    assert_echoes(&caller, &beside);
    stop(&stopped);
    let begun = Instant::now();
    let call = caller.client().message("echo").raw("late").to(&peer);
    let call = call.request().send().unwrap();
    let ended = call.wait();
    // Long before its deadline, for a heartbeat was not answered.
    let took = begun.elapsed();
    assert_eq!(
        ended,
        Err(CallError::Indeterminate(Indeterminate::ConnectionLost))
    );
    assert!(took < PATIENCE / 4, "{took:?}");
    (0..100).for_each(|_| assert_echoes(&caller, &beside));
    assert_eq!(beside.account().indeterminate, 0);

    stopped.signal(Signal::CONT);
    assert_echoes(&caller, &peer);
    let account = peer.account();
    assert_eq!(
        (account.handled, account.indeterminate),
        (2, 1),
        "{account:?}"
    );
    assert_eq!(account.accepted, account.settled());
    // Longer than its peers are patient, once more, with nothing asked of it.
    stop(&stopped);
    std::thread::sleep(Duration::from_millis(4 * TIMEOUT_MS));
    stopped.signal(Signal::CONT);
    assert_echoes(&caller, &peer);
}

#[test]
fn a_killed_server_ends_its_calls_and_its_successor_gets_the_next_ones() {
    let first = serve("tcp://127.0.0.1:0");
    let endpoint = first.endpoint("tcp");
    let caller = caller();
    let peer = connect(&caller, &endpoint);
    assert_echoes(&caller, &peer);
    let sleep = caller.client().message("sleep");
    let sleep = sleep.json(&serde_json::json!({ "ms": 600_000 })).unwrap();
    let call = sleep
        .to(&peer)
        .request::<serde_json::Value>()
        .send()
        .unwrap();
    // It is there once what was sent behind it is answered.
    assert_echoes(&caller, &peer);
    let begun = Instant::now();
    drop(first);
    let lost = CallError::Indeterminate(Indeterminate::ConnectionLost);
    assert_eq!(call.wait().unwrap_err(), lost);
    assert!(begun.elapsed() < PATIENCE / 4);
    // Waits for whoever comes next.
    let waits = caller.client().message("echo").raw("waits").to(&peer);
    let waits = waits.request().send().unwrap();
    let second = serve(&endpoint);
    assert_eq!(second.endpoint("tcp"), endpoint);
    assert_eq!(waits.wait(), Ok(Bytes::from("waits")));
    assert_echoes(&caller, &peer);
    let account = peer.account();
    assert_eq!(
        (account.handled, account.indeterminate),
        (4, 1),
        "{account:?}"
    );
    let stopped = second.stop();
    assert_eq!(stopped["handled"], 2, "nothing is sent again by itself");
}

/// A shard that runs a handler for a second reads nothing meanwhile: its peers were not silent. It
/// answers no PING either, so that its peers need more patience than it.
#[test]
fn a_handler_that_spins_for_a_second_loses_its_shard_no_peer() {
    let busy = serve("tcp://127.0.0.1:0");
    let patient = || {
        let config = Config::default()
            .with_engine(EngineKind::Native)
            .with_shards(1)
            .with_idle(IdleStrategy::Park)
            .with_limits(|limits| limits.heartbeat_timeout_ms = PATIENCE.as_millis() as u64);
        Runtime::builder(config).start().unwrap()
    };
    let (spinning, quiet) = (patient(), patient());
    let spins = connect(&spinning, &busy.endpoint("tcp"));
    let waits: Vec<Peer> = (0..8)
        .map(|_| connect(&quiet, &busy.endpoint("tcp")))
        .collect();
    waits.iter().for_each(|peer| assert_echoes(&quiet, peer));
    for _ in 0..2 {
        let spin = spinning.client().message("spin");
        let spin = spin.json(&serde_json::json!({ "us": 1_000_000 })).unwrap();
        spin.to(&spins)
            .request::<serde_json::Value>()
            .wait()
            .unwrap();
    }
    waits.iter().for_each(|peer| assert_echoes(&quiet, peer));
    // It parted with nobody, and says so.
    let log = std::fs::read_to_string(busy.directory().join("stderr")).unwrap();
    assert!(!log.contains("connection lost"), "{log}");
    let stopped = busy.stop();
    assert_eq!(stopped["handled"], 8 + 8 + 2);
}

/// Its peers are as patient as they are by default: three seconds. Its own patience is less than a
/// third of the second.
#[test]
fn a_handler_that_spins_for_a_second_is_named_and_other_shards_go_on() {
    let busy = serve_on(2, "tcp://127.0.0.1:0");
    let caller = Runtime::builder(
        Config::default()
            .with_engine(EngineKind::Native)
            .with_shards(1)
            .with_idle(IdleStrategy::Park),
    );
    let caller = caller.start().unwrap();
    let client = caller.client();
    let shard_at = |shard: usize| {
        let endpoint = busy.ready["shards"][shard]["endpoints"][0].as_str();
        client.connect_routed(0, endpoint.unwrap()).unwrap()
    };
    let (spins, quiet, other) = (shard_at(0), shard_at(0), shard_at(1));
    for peer in [&spins, &quiet, &other] {
        assert_echoes(&caller, peer);
    }
    let spin = client.message("spin");
    let spin = spin.json(&serde_json::json!({ "us": 1_000_000 })).unwrap();
    let spin = spin.to(&spins).request::<serde_json::Value>();
    let waits = spin.send().unwrap();
    let answered_meanwhile = std::thread::scope(|scope| {
        let ended = scope.spawn(|| waits.wait().unwrap());
        let mut count = 0;
        while !ended.is_finished() {
            assert_echoes(&caller, &other);
            count += 1;
        }
        count
    });
    assert!(answered_meanwhile > 20, "{answered_meanwhile}");
    // Nobody has parted with anybody: no connection was made again.
    for peer in [&spins, &quiet, &other] {
        assert_echoes(&caller, peer);
        assert_eq!(peer.account().indeterminate, 0);
    }
    let peers = ask(&caller, &other, "_peers");
    let connected_s = |shard: &serde_json::Value| -> Vec<f64> {
        let accepted = shard["accepted"].as_array().unwrap().iter();
        accepted
            .map(|it| it["connected_s"].as_f64().unwrap())
            .collect()
    };
    let shards = peers["shards"].as_array().unwrap().iter();
    let since: Vec<f64> = shards.flat_map(connected_s).collect();
    assert_eq!(since.len(), 3, "{peers}");
    assert!(since.iter().all(|&it| it >= 1.0), "{peers}");

    let metrics = ask(&caller, &other, "_metrics");
    let handlers = metrics["handlers"].as_array().unwrap();
    let spin = handlers.iter().find(|it| it["name"] == "spin").unwrap();
    assert_eq!(spin["overruns"], 1, "{spin}");
    assert!(spin["longest_inline_ns"].as_u64() >= Some(1_000_000_000));
    let log = std::fs::read_to_string(busy.directory().join("stderr")).unwrap();
    let outran = |line: &&str| line.contains("outran its inline budget");
    let said: Vec<&str> = log.lines().filter(outran).collect();
    assert!(
        said.iter()
            .any(|it| it.contains("handler=\"spin\"") && it.contains("shard=0")),
        "{log}"
    );
    assert!(!log.contains("connection lost"), "{log}");
}

fn ask(caller: &Runtime, peer: &Peer, question: &str) -> serde_json::Value {
    let message = caller.client().message(question).json_text("{}").to(peer);
    serde_json::from_slice(&message.request().wait().unwrap()).unwrap()
}
