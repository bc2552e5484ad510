//! Calls through a network that delays, cuts into crumbs, and breaks: each ends once, and what
//! peers account for adds up.

use std::{
    collections::{HashMap, VecDeque},
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use corelane::{
    Config, Runtime,
    config::{EngineKind, IdleStrategy},
    error::{CallError, Indeterminate},
    handler::inline_raw,
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

/// Between a caller and a service. It ends when it is dropped.
struct Proxy {
    endpoint: String,
    cuts: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

/// One connection through it.
struct Passage {
    streams: [TcpStream; 2],
    /// What was read from each.
    read: [VecDeque<u8>; 2],
    left_bytes: usize,
}

impl Proxy {
    fn start(to: SocketAddr, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
        let (cuts, stop) = (Arc::default(), Arc::default());
        let (theirs, stopped) = (Arc::clone(&cuts), Arc::clone(&stop));
        let thread = thread::spawn(move || pass(&listener, to, seed, &theirs, &stopped));
        Self {
            endpoint,
            cuts,
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

fn pass(listener: &TcpListener, to: SocketAddr, seed: u64, cuts: &AtomicU64, stop: &AtomicBool) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut passages: Vec<Passage> = Vec::new();
    while !stop.load(Relaxed) {
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
        passages.retain_mut(|it| it.go_on(&mut random));
        cuts.fetch_add((before - passages.len()) as u64, Relaxed);
        match random.random_range(0..50) {
            0 => thread::sleep(Duration::from_micros(random.random_range(0..2_000))),
            _ => thread::yield_now(),
        }
    }
}

impl Passage {
    /// Moves a crumb each way. False once it is cut, in the middle of whatever there was.
    fn go_on(&mut self, random: &mut SmallRng) -> bool {
        let mut buffer = [0; 4_096];
        for from in [0, 1] {
            match self.streams[from].read(&mut buffer) {
                Ok(0) => return false,
                Ok(bytes) => self.read[from].extend(&buffer[..bytes]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
            let read = &mut self.read[from];
            let bytes = random.random_range(1..=CHUNK_BYTES_MAX).min(read.len());
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
        self.left_bytes > 0
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
    let proxy = Proxy::start(to.parse().unwrap(), seed);
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
