//! One peer that is stopped, one that asks for much and reads nothing, and a flood of handshakes:
//! what becomes of each, and how little of it a good client feels.
//!
//! `CORELANE_NEIGHBOURS_S=120` measures for so long; what it prints is to be read on a machine that
//! does nothing else.

#[path = "native_engine/plain.rs"]
#[allow(dead_code)] // what other tests need of it
mod plain;

use std::{
    io::Read,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use bytes::Bytes;
use corelane::{
    Config, Runtime,
    client::Peer,
    config::{Cpus, EngineKind, IdleStrategy},
    handler::{TaskContext, inline_raw},
    wire::{HandlerKey, Header, Kind},
};
use plain::{MORE, Plain, frame, greeting, introduction};
use rustix::process::{Pid, Signal, kill_process, setpriority_process};
use serde_json::Value;

const CHILD: &str = "CORELANE_TEST_NEIGHBOUR";
const TEST: &str = "a_good_client_feels_little_of_bad_ones";
/// Far beyond what any step takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than a shard waits for its CPU on a busy machine.
const INTERVAL_MS: u64 = 300;
const TIMEOUT_MS: u64 = 1_500;
const SLOW_CONSUMER_MS: u64 = 300;
/// In all, without that variable.
const SECONDS: u64 = 6;
/// Each has a p99 of its own, and so many follow each other.
const ROUND: Duration = Duration::from_millis(50);
const ROUNDS: usize = 8;
/// How often the other clients that do no harm call.
const GENTLE_PAUSE: Duration = Duration::from_millis(5);
/// The least p90 of all rounds beside a bad peer over the least alone: a machine that does much
/// else adds to most rounds and to all their p99s, and a bad peer that is felt adds to all rounds.
const RATIO_MAX: f64 = 3.0;

/// Shares no CPU with the other, where there are two.
fn config(cpu: usize) -> Config {
    let usable = corelane::placement::probe()
        .expect("a topology")
        .usable_ids();
    Config::default()
        .with_engine(EngineKind::Native)
        .with_shards(1)
        .with_cpus(Cpus::List(vec![usable[cpu % usable.len()]]))
        .with_idle(IdleStrategy::Park)
        .with_limits(|limits| {
            limits.heartbeat_interval_ms = INTERVAL_MS;
            limits.heartbeat_timeout_ms = TIMEOUT_MS;
            limits.slow_consumer_ms = SLOW_CONSUMER_MS;
            limits.message_bytes_max = 64 << 10;
            limits.outgoing_bytes_max = 1 << 20;
            limits.reconnect_min_ms = 10;
            limits.reconnect_max_ms = 50;
            limits.deadline_ms = PATIENCE.as_millis() as u64;
        })
}

fn serve() -> Runtime {
    let echo = inline_raw("echo", |payload, reply, _| {
        reply.extend_from_slice(payload);
        Ok(())
    });
    let config = config(0).with_listen(["tcp://127.0.0.1:0"]);
    Runtime::builder(config)
        .handler(echo)
        .start()
        .expect("starts")
}

fn client(cpu: usize, endpoint: &str) -> (Runtime, Peer) {
    let runtime = Runtime::builder(config(cpu)).start().expect("starts");
    let peer = runtime.client().connect(endpoint).expect("an endpoint");
    assert_eq!(ask(&runtime, &peer, "echo"), Bytes::from("{}"));
    (runtime, peer)
}

fn ask(runtime: &Runtime, peer: &Peer, handler: &str) -> Bytes {
    let message = runtime.client().message(handler).raw("{}").to(peer);
    message.request().wait().expect("is answered")
}

/// Instances that are connected and have said hello.
fn accepted(runtime: &Runtime, peer: &Peer) -> Vec<String> {
    let message = runtime.client().message("_peers").json_text("{}").to(peer);
    let answer = message.request().wait().expect("is answered");
    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
    let accepted = answer["shards"][0]["accepted"].as_array().expect("a list");
    let instances = accepted.iter().map(|it| it["instance"].as_str());
    instances.map(|it| it.expect("a text").to_owned()).collect()
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not reached: {what}");
        thread::sleep(Duration::from_millis(5));
    }
    begun.elapsed()
}

/// A client in a process of its own, that calls now and then, whatever becomes of its calls.
struct Neighbour(Child);

impl Neighbour {
    fn start(endpoint: &str) -> Self {
        let child = Command::new(std::env::current_exe().expect("a path"))
            .args([TEST, "--exact", "--nocapture"])
            .env(CHILD, endpoint)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        Self(child.expect("can be run"))
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.0.id() as i32).expect("a process id");
        kill_process(pid, signal).expect("the child is there");
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Until its parent goes, which closes its stdin.
fn live_beside(endpoint: &str) {
    let (runtime, peer) = client(1, endpoint);
    thread::spawn(move || {
        loop {
            let message = runtime.client().message("echo").raw("x").to(&peer);
            let _ = message.request().wait();
            thread::sleep(GENTLE_PAUSE);
        }
    });
    let _ = std::io::stdin().read(&mut [0]);
}

/// A thread that does harm until it is dropped, and only when nobody else wants the CPU: what is
/// measured is the service's time, not the machine's.
struct Harm {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Harm {
    fn start(
        endpoint: &str,
        mut harm: impl FnMut(&corelane::config::Endpoint) -> u64 + Send + 'static,
    ) -> Self {
        let to = endpoint.parse().expect("an endpoint");
        let (stop, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, counts) = (Arc::clone(&stop), Arc::clone(&done));
        let thread = thread::spawn(move || {
            // Of this thread alone.
            let _ = setpriority_process(None, 19);
            while !stopped.load(Relaxed) {
                counts.fetch_add(harm(&to), Relaxed);
                thread::sleep(Duration::from_micros(500));
            }
        });
        Self {
            stop,
            done,
            thread: Some(thread),
        }
    }

    /// Asks for much and reads nothing; once it is cut it comes again. Counts the cuts.
    fn unread(endpoint: &str) -> Self {
        let mut header = Header::new(Kind::Request, 1);
        header.handler = HandlerKey::of("echo");
        header.deadline_us = 60_000_000;
        let request = [frame(MORE, &header.encode()), frame(0, &[7; 10_000])].concat();
        let mut reader: Option<Plain> = None;
        Self::start(endpoint, move |to| {
            let it = reader.get_or_insert_with(|| {
                let mut plain = Plain::connect(to);
                plain.write(&introduction());
                plain
            });
            if it.push(usize::MAX) {
                it.queue(&request.repeat(4));
            }
            let is_cut = it.is_closed;
            if is_cut {
                reader = None;
            }
            u64::from(is_cut)
        })
    }

    /// Connects, begins a handshake, and leaves it at that; some go at once. Counts them.
    fn flood(endpoint: &str) -> Self {
        let mut begun = Vec::new();
        Self::start(endpoint, move |to| {
            let mut plain = Plain::connect(to);
            plain.write(&greeting(1)[..40]);
            begun.push(plain);
            if begun.len() > 200 {
                begun.drain(..150);
            }
            1
        })
    }

    fn done(&self) -> u64 {
        self.done.load(Relaxed)
    }
}

impl Drop for Harm {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn a_client_that_is_stopped_is_lost_in_time_and_comes_back() {
    let service = serve();
    let (good, peer) = client(1, &service.endpoints()[0]);
    let neighbour = Neighbour::start(&service.endpoints()[0]);
    eventually("it is there", || accepted(&good, &peer).len() == 2);
    for _ in 0..2 {
        neighbour.signal(Signal::STOP);
        let took = eventually("it is lost", || accepted(&good, &peer).len() == 1);
        assert_eq!(accepted(&good, &peer), [good.instance().to_string()]);
        assert!(took < PATIENCE / 4, "{took:?}");
        neighbour.signal(Signal::CONT);
        eventually("it is back", || accepted(&good, &peer).len() == 2);
    }
    drop(neighbour);
    eventually("it has gone", || accepted(&good, &peer).len() == 1);
    let account = peer.account();
    assert_eq!(account.handled, account.accepted, "{account:?}");
    let totals = service.drain();
    assert_eq!(totals.accepted, totals.handled + totals.lost, "{totals:?}");
}

/// Calls one after the other for so long, on its shard. How long each took, sorted.
async fn call(cx: TaskContext, peer: Peer, lasts: Duration) -> Vec<Duration> {
    let client = cx.client();
    let begun = Instant::now();
    let mut took = Vec::new();
    while begun.elapsed() < lasts {
        let sent = Instant::now();
        let message = client.message("echo").raw("sixteen bytes...").to(&peer);
        let answer = message.request().await;
        answer.expect("is answered");
        took.push(sent.elapsed());
    }
    took.sort();
    took
}

/// What rounds came to, in microseconds.
#[derive(Debug)]
#[allow(dead_code)] // printed
struct Felt {
    p90_least: f64,
    p99_least: f64,
    p99_median: f64,
}

impl Felt {
    fn of(rounds: &[[f64; 2]]) -> Self {
        let sorted = |at: usize| {
            let mut all: Vec<f64> = rounds.iter().map(|round| round[at]).collect();
            all.sort_by(f64::total_cmp);
            all
        };
        let (p90, p99) = (sorted(0), sorted(1));
        Self {
            p90_least: p90[0],
            p99_least: p99[0],
            p99_median: p99[p99.len() / 2],
        }
    }
}

#[test]
fn a_good_client_feels_little_of_bad_ones() {
    if let Ok(endpoint) = std::env::var(CHILD) {
        return live_beside(&endpoint);
    }
    let seconds = std::env::var("CORELANE_NEIGHBOURS_S").ok();
    let seconds = seconds.map_or(SECONDS, |text| text.parse().expect("a number"));
    let service = serve();
    let endpoint = service.endpoints()[0].clone();
    let (good, peer) = client(1, &endpoint);
    let neighbour = Neighbour::start(&endpoint);
    eventually("it is there", || accepted(&good, &peer).len() == 2);
    let measure = || -> Vec<[f64; 2]> {
        let round = |_| {
            let peer = peer.clone();
            let task = good.run_on(0, move |cx| call(cx, peer, ROUND));
            let took = task.wait().expect("no call failed");
            [90, 99].map(|percent| 1e6 * took[took.len() * percent / 100].as_secs_f64())
        };
        (0..ROUNDS).map(round).collect()
    };
    let (mut cuts, mut handshakes) = (0, 0);
    // p90 and p99 of each round in microseconds: alone, and beside each.
    let mut rounds: [[Vec<[f64; 2]>; 2]; 3] = Default::default();
    let begun = Instant::now();
    measure();
    while begun.elapsed() < Duration::from_secs(seconds) {
        for (kind, [alone, beside]) in rounds.iter_mut().enumerate() {
            alone.extend(measure());
            match kind {
                0 => {
                    neighbour.signal(Signal::STOP);
                    beside.extend(measure());
                    neighbour.signal(Signal::CONT);
                }
                1 => {
                    let harm = Harm::unread(&endpoint);
                    beside.extend(measure());
                    eventually("it is cut", || harm.done() > 0);
                    cuts += harm.done();
                }
                _ => {
                    let harm = Harm::flood(&endpoint);
                    beside.extend(measure());
                    // And who comes now is let in.
                    drop(client(1, &endpoint));
                    handshakes += harm.done();
                }
            }
        }
    }
    println!(
        "{cuts} cuts, {handshakes} handshakes, {:.0?}",
        begun.elapsed()
    );
    for (name, it) in ["stopped", "unread", "handshakes"].iter().zip(&rounds) {
        let [alone, beside] = it.each_ref().map(|of| Felt::of(of));
        println!("{name}: alone {alone:.1?}; beside {beside:.1?}");
        assert!(beside.p90_least < RATIO_MAX * alone.p90_least, "{name}");
    }
    let account = peer.account();
    assert_eq!(account.handled, account.accepted, "{account:?}");
    assert!(service.metrics().total().slow_consumers >= cuts);
}
