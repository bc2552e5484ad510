//! Calls through a network that delays, cuts into crumbs, and breaks: each ends once, and what
//! peers account for adds up. And through one that swallows everything, or alters it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use corelane::{
    Config, Runtime,
    config::{EngineKind, IdleStrategy, LimitsConfig},
    error::{CallError, Indeterminate},
    handler::{Handler, inline_raw, spawned},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Far beyond what any step takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);
const CALLS: u64 = 600;
/// Calls that are out at once.
const WINDOW: usize = 16;
const PAYLOAD_BYTES_MAX: usize = 600;
/// A connection is cut once so many bytes have gone through it, both ways together.
const CUT_AFTER_BYTES_MAX: usize = 30_000;
const CHUNK_BYTES_MAX: usize = 7;
/// Likewise something is altered.
const ALTERED_AFTER_BYTES_MAX: usize = 6_000;

/// What befalls a connection now and then.
#[derive(Clone, Copy, PartialEq)]
enum Harm {
    None,
    /// It is cut.
    Cut,
    /// A bit flips, or some bytes are left out, and it goes on.
    Alter,
}

/// Between a caller and a service. It ends when it is dropped.
struct Proxy {
    endpoint: String,
    /// How often harm was done.
    cuts: Arc<AtomicU64>,
    /// Whether it forwards nothing and closes nothing.
    swallows: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

/// One connection through it.
struct Passage {
    streams: [TcpStream; 2],
    /// What was read from each.
    read: [VecDeque<u8>; 2],
    /// Until the next harm.
    left_bytes: usize,
}

impl Proxy {
    fn start(to: SocketAddr, seed: u64, harm: Harm) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
        let (stop, swallows) = <(Arc<AtomicBool>, Arc<AtomicBool>)>::default();
        let cuts = Arc::<AtomicU64>::default();
        let shared = (Arc::clone(&cuts), Arc::clone(&stop), Arc::clone(&swallows));
        let thread = thread::spawn(move || {
            let (cuts, stop, swallows) = shared;
            let mut random = SmallRng::seed_from_u64(seed);
            let mut passages = Vec::new();
            while !stop.load(Relaxed) {
                if swallows.load(Relaxed) {
                    thread::sleep(Duration::from_millis(1));
                    continue;
                }
                let done = pass(&listener, to, harm, &mut passages, &mut random);
                cuts.fetch_add(done, Relaxed);
            }
        });
        Self {
            endpoint,
            cuts,
            swallows,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Goes round once. Returns how often harm was done.
fn pass(
    listener: &TcpListener,
    to: SocketAddr,
    harm: Harm,
    passages: &mut Vec<Passage>,
    random: &mut SmallRng,
) -> u64 {
    if let Ok((near, _)) = listener.accept()
        && let Ok(far) = TcpStream::connect(to)
    {
        let streams = [near, far];
        for stream in &streams {
            stream.set_nonblocking(true).unwrap();
            stream.set_nodelay(true).unwrap();
        }
        passages.push(Passage {
            streams,
            read: Default::default(),
            left_bytes: random.random_range(1..CUT_AFTER_BYTES_MAX),
        });
    }
    let before = passages.len();
    let mut altered = 0;
    passages.retain_mut(|it| it.go_on(harm, &mut altered, random));
    match random.random_range(0..50) {
        0 => thread::sleep(Duration::from_micros(random.random_range(0..2_000))),
        _ => thread::yield_now(),
    }
    altered + (before - passages.len()) as u64
}

impl Passage {
    /// Moves a crumb each way. False once it is cut, in the middle of whatever there was.
    fn go_on(&mut self, harm: Harm, altered: &mut u64, random: &mut SmallRng) -> bool {
        let mut buffer = [0; 4_096];
        for from in [0, 1] {
            match self.streams[from].read(&mut buffer) {
                Ok(0) => return false,
                Ok(bytes) => self.read[from].extend(&buffer[..bytes]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
            let read = &mut self.read[from];
            if harm == Harm::Alter && self.left_bytes == 0 && !read.is_empty() {
                alter(read, random);
                *altered += 1;
                self.left_bytes = random.random_range(1..ALTERED_AFTER_BYTES_MAX);
            }
            let bytes_max = match harm {
                Harm::Cut => CHUNK_BYTES_MAX,
                // So that what is out of step is so for many messages.
                Harm::None | Harm::Alter => buffer.len(),
            };
            let bytes = random.random_range(1..=bytes_max).min(read.len());
            let chunk: Vec<u8> = read.iter().take(bytes).copied().collect();
            match self.streams[1 - from].write(&chunk) {
                Ok(written) => {
                    read.drain(..written);
                    self.left_bytes = self.left_bytes.saturating_sub(written);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
        }
        self.left_bytes > 0 || harm != Harm::Cut
    }
}

/// Flips a bit, or leaves out some bytes.
fn alter(bytes: &mut VecDeque<u8>, random: &mut SmallRng) {
    match random.random() {
        true => bytes[0] ^= 1 << random.random_range(0..8),
        false => drop(bytes.drain(..random.random_range(1..=bytes.len().min(50)))),
    }
}

fn config(engine: EngineKind) -> Config {
    Config::default()
        .with_engine(engine)
        .with_shards(1)
        .with_idle(IdleStrategy::Park)
        .with_limits(|limits| {
            limits.reconnect_min_ms = 1;
            limits.reconnect_max_ms = 20;
        })
}

/// How often each message was handled, by its number.
type Handled = Arc<Mutex<HashMap<u64, u32>>>;

fn number(payload: &[u8]) -> u64 {
    u64::from_le_bytes(payload[..8].try_into().unwrap())
}

fn through_a_bad_network(calling: EngineKind, serving: EngineKind, seed: u64) {
    let handled = Handled::default();
    let counts = Arc::clone(&handled);
    let echo = inline_raw("echo", move |payload, reply, _| {
        *counts.lock().unwrap().entry(number(payload)).or_default() += 1;
        reply.extend_from_slice(payload);
        Ok(())
    });
    let service = Runtime::builder(config(serving).with_listen(["tcp://127.0.0.1:0"]))
        .handler(echo)
        .start()
        .unwrap();
    let to = service.endpoints()[0].trim_start_matches("tcp://");
    let proxy = Proxy::start(to.parse().unwrap(), seed, Harm::Cut);
    let caller = Runtime::builder(config(calling)).start().unwrap();
    let peer = caller.client().connect(&proxy.endpoint).unwrap();

    let mut random = SmallRng::seed_from_u64(seed);
    let mut calls = VecDeque::new();
    let mut ended: HashMap<&str, u64> = HashMap::new();
    let mut end = |call: corelane::client::Call<_, _>, payload: Bytes| match call.wait() {
        Ok(answer) => {
            let answer: Bytes = answer;
            assert!(answer == payload, "seed {seed}: another call's answer");
            assert_eq!(handled.lock().unwrap()[&number(&payload)], 1, "seed {seed}");
            *ended.entry("handled").or_default() += 1;
        }
        Err(CallError::Indeterminate(Indeterminate::ConnectionLost)) => {
            *ended.entry("indeterminate").or_default() += 1;
        }
        Err(CallError::NotSent(error)) => {
            assert_eq!(error.payload, payload, "seed {seed}");
            *ended.entry("not sent").or_default() += 1;
        }
        Err(other) => panic!("seed {seed}: {other:?}"),
    };
    for n in 0..CALLS {
        let mut payload = vec![0; random.random_range(8..PAYLOAD_BYTES_MAX)];
        random.fill(&mut payload[..]);
        payload[..8].copy_from_slice(&n.to_le_bytes());
        let payload = Bytes::from(payload);
        let message = caller
            .client()
            .message("echo")
            .raw(payload.clone())
            .to(&peer);
        calls.push_back((message.request().within(PATIENCE).send().unwrap(), payload));
        if calls.len() >= WINDOW {
            let (call, payload) = calls.pop_front().unwrap();
            end(call, payload);
        }
    }
    calls
        .into_iter()
        .for_each(|(call, payload)| end(call, payload));
    let of = |what| ended.get(what).copied().unwrap_or_default();
    let account = peer.account();
    println!(
        "seed {seed}: {} cuts, {account:?}",
        proxy.cuts.load(Relaxed)
    );
    assert_eq!(account.accepted, CALLS, "seed {seed}");
    assert_eq!(account.settled(), CALLS, "seed {seed}: {account:?}");
    assert_eq!(account.handled, of("handled"), "seed {seed}");
    assert_eq!(account.indeterminate, of("indeterminate"), "seed {seed}");
    assert_eq!(account.not_sent, of("not sent"), "seed {seed}");
    assert!(account.handled > CALLS / 4, "seed {seed}: {account:?}");
    assert!(proxy.cuts.load(Relaxed) > 3, "seed {seed}");
    assert!(
        handled.lock().unwrap().values().all(|&times| times == 1),
        "seed {seed}"
    );
    drop(caller);
    drop(proxy);
    let ran = handled.lock().unwrap().len() as u64;
    let counters = service.metrics().total();
    assert_eq!(counters.handled, ran, "seed {seed}");
    assert_eq!(
        (counters.accepted, counters.malformed),
        (ran, 0),
        "seed {seed}"
    );
}

#[test]
fn native_to_native() {
    (0..3).for_each(|seed| through_a_bad_network(EngineKind::Native, EngineKind::Native, seed));
}

#[test]
fn native_to_libzmq() {
    through_a_bad_network(EngineKind::Native, EngineKind::Libzmq, 10);
}

#[test]
fn libzmq_to_native() {
    through_a_bad_network(EngineKind::Libzmq, EngineKind::Native, 20);
}

fn echo() -> Handler {
    inline_raw("echo", |payload, reply, _| {
        reply.extend_from_slice(payload);
        Ok(())
    })
}

/// What a blackhole does, without one: nothing arrives, and nothing is closed.
#[test]
fn a_connection_that_is_half_open_is_lost_at_both_ends_and_made_again() {
    let impatient = |limits: &mut LimitsConfig| {
        limits.heartbeat_interval_ms = 200;
        limits.heartbeat_timeout_ms = 1_000;
        limits.handshake_ms = 1_000;
    };
    let hold = spawned("hold", |(): (), cx| async move {
        cx.sleep(2 * PATIENCE).await;
        Ok(())
    });
    let serving = config(EngineKind::Native).with_limits(impatient);
    let service = Runtime::builder(serving.with_listen(["tcp://127.0.0.1:0"]))
        .handlers([echo(), hold])
        .start()
        .unwrap();
    let to = service.endpoints()[0].trim_start_matches("tcp://");
    let proxy = Proxy::start(to.parse().unwrap(), 1, Harm::None);
    let calling = config(EngineKind::Native).with_limits(impatient);
    let caller = Runtime::builder(calling).start().unwrap();
    let peer = caller.client().connect(&proxy.endpoint).unwrap();
    let ask = |text: &'static str| {
        let message = caller.client().message("echo").raw(text).to(&peer);
        message.request().within(PATIENCE).send().unwrap()
    };
    let direct = caller.client().connect(&service.endpoints()[0]).unwrap();
    let accepted = || {
        let message = caller
            .client()
            .message("_peers")
            .json_text("{}")
            .to(&direct);
        let answer = message.request().within(PATIENCE).wait().unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        answer["shards"][0]["accepted_total"].as_u64().unwrap()
    };
    for round in 0..3 {
        assert_eq!(ask("before").wait(), Ok(Bytes::from("before")));
        let held = caller.client().message("hold").json(&()).unwrap();
        let held = held.to(&peer).request::<()>().within(PATIENCE);
        let held = held.send().unwrap();
        // It is there once what was sent behind it is answered.
        assert_eq!(ask("behind").wait(), Ok(Bytes::from("behind")));
        assert_eq!(accepted(), 2);
        proxy.swallows.store(true, Relaxed);
        let begun = Instant::now();
        let lost = Err(CallError::Indeterminate(Indeterminate::ConnectionLost));
        assert_eq!(held.wait(), lost, "round {round}");
        assert!(begun.elapsed() < PATIENCE / 4, "long before its deadline");
        eventually("it is lost at the other end", || accepted() == 1);
        let waits = ask("waits");
        proxy.swallows.store(false, Relaxed);
        assert_eq!(waits.wait(), Ok(Bytes::from("waits")));
    }
    let account = peer.account();
    assert_eq!((account.handled, account.indeterminate), (9, 3));
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not reached: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// ZMTP has no checksum, so that an altered message may be another message. But whatever the bytes
/// become, each call ends by its deadline, and both ends go on.
#[test]
fn bytes_that_are_altered_or_left_out_end_no_process_and_leave_no_call_waiting() {
    const WITHIN: Duration = Duration::from_millis(100);
    // Lengths that are not believed, and heartbeats that are missed, end what is out of step.
    let narrow = |limits: &mut LimitsConfig| {
        limits.message_bytes_max = 4_096;
        limits.heartbeat_interval_ms = 50;
        limits.heartbeat_timeout_ms = 150;
        limits.handshake_ms = 150;
    };
    for (seed, calling, serving) in [
        (30, EngineKind::Native, EngineKind::Native),
        (31, EngineKind::Native, EngineKind::Native),
        (32, EngineKind::Native, EngineKind::Libzmq),
        (33, EngineKind::Libzmq, EngineKind::Native),
    ] {
        let service = Runtime::builder(
            config(serving)
                .with_limits(narrow)
                .with_listen(["tcp://127.0.0.1:0"]),
        )
        .handler(echo())
        .start()
        .unwrap();
        let to = service.endpoints()[0].trim_start_matches("tcp://");
        let proxy = Proxy::start(to.parse().unwrap(), seed, Harm::Alter);
        let caller = Runtime::builder(config(calling).with_limits(narrow))
            .start()
            .unwrap();
        let peer = caller.client().connect(&proxy.endpoint).unwrap();
        let mut ended: BTreeMap<&str, u64> = BTreeMap::new();
        for n in 0..20 {
            let calls: Vec<_> = (0..30)
                .map(|at| {
                    let payload = vec![at; PAYLOAD_BYTES_MAX / 2];
                    let message = caller.client().message("echo").raw(payload).to(&peer);
                    message.request().within(WITHIN).send().unwrap()
                })
                .collect();
            let begun = Instant::now();
            for call in calls {
                let end = match call.wait() {
                    Ok(_) => "answered",
                    Err(CallError::Indeterminate(_)) => "indeterminate",
                    Err(CallError::NotSent(_)) => "not sent",
                    Err(CallError::Nack { .. }) => "nacked",
                    Err(other) => panic!("seed {seed}: {other:?}"),
                };
                *ended.entry(end).or_default() += 1;
            }
            assert!(begun.elapsed() < PATIENCE, "seed {seed}, {n}");
        }
        let altered = proxy.cuts.load(Relaxed);
        println!("seed {seed}: {altered} times altered; {ended:?}");
        assert!(altered > 0 && ended["answered"] > 0, "seed {seed}");
        // The shard counts an end at the deadline, to which the caller itself may come first.
        let settled = || peer.account().settled() == peer.account().accepted;
        eventually("all are accounted for", settled);
        // Who comes by another way finds everything as it was.
        let direct = caller.client().connect(&service.endpoints()[0]).unwrap();
        let message = caller.client().message("echo").raw("whole").to(&direct);
        let answer = message.request().within(PATIENCE).wait();
        assert_eq!(answer, Ok(Bytes::from("whole")), "seed {seed}");
        drop((peer, direct, caller));
        let totals = service.drain();
        let ended = totals.handled + totals.nacked + totals.indeterminate + totals.lost;
        assert_eq!(totals.accepted, ended, "seed {seed}: {totals:?}");
    }
}
