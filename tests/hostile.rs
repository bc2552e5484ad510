//! A thousand hostile connections beside one good client, which is answered every time.

#[path = "native_engine/descriptors.rs"]
mod descriptors;
#[path = "hostile/identities.rs"]
mod identities;
#[path = "native_engine/plain.rs"]
#[allow(dead_code)] // what other tests need of it
mod plain;

use std::{
    cell::Cell,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use corelane::{
    Config, Runtime,
    client::Peer,
    config::{EngineKind, IdleStrategy},
    error::{CallError, Indeterminate},
    handler::inline_raw,
    wire::{HandlerKey, Header, Kind},
};
use plain::{COMMAND, MORE, Plain, Said, frame, greeting, head, introduction, ping, ready};
use rand::{Rng, SeedableRng, rngs::SmallRng};

const HOSTILE: usize = 1_000;
const DESCRIPTORS_MIN: u64 = 4_096;
/// Far beyond what any step takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the shard may buffer, doubled as vectors grow, and what a thousand connections are at both
/// ends, for the hostile ones are in this process.
const GROWTH_BYTES_MAX: u64 = 128 << 20;
const MIB: u64 = 1 << 20;

/// What a hostile connection does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Garbage,
    GarbageBehindGreeting,
    GarbageBehindHandshake,
    Silent,
    TruncatedReady,
    Trickle,
    EndlessMore,
    EndlessLength,
    Pings,
    Beginnings,
    Unread,
}

const WAYS: [Way; 11] = [
    Way::Garbage,
    Way::GarbageBehindGreeting,
    Way::GarbageBehindHandshake,
    Way::Silent,
    Way::TruncatedReady,
    Way::Trickle,
    Way::EndlessMore,
    Way::EndlessLength,
    Way::Pings,
    Way::Beginnings,
    Way::Unread,
];

struct Hostile {
    plain: Plain,
    way: Way,
    steps: u64,
}

impl Hostile {
    fn connect(to: &corelane::config::Endpoint, random: &mut SmallRng) -> Self {
        let way = WAYS[random.random_range(0..WAYS.len())];
        let mut plain = Plain::connect(to);
        let mut garbage = vec![0; random.random_range(1..2_000)];
        random.fill(&mut garbage[..]);
        let begin = match way {
            Way::Garbage => garbage,
            Way::GarbageBehindGreeting => [greeting(1), garbage].concat(),
            Way::GarbageBehindHandshake => [introduction(), garbage].concat(),
            Way::Silent => Vec::new(),
            Way::TruncatedReady => {
                let introduction = introduction();
                introduction[..random.random_range(65..introduction.len())].to_vec()
            }
            // A step at a time.
            Way::Trickle => {
                plain.queue(&[introduction(), request(1, b"trickle")].concat());
                Vec::new()
            }
            Way::EndlessLength => {
                let flags = [0, MORE, COMMAND][random.random_range(0..3)];
                let length = (1 << 63) - random.random_range(1..100_u64);
                [introduction(), head(flags, length)].concat()
            }
            // Most of a message, or its heads alone.
            Way::Beginnings => {
                let whole = request(1, &vec![7; 60_000]);
                let bytes = [51, 60, 5_000, 50_000][random.random_range(0..4)];
                [introduction(), whole[..bytes].to_vec()].concat()
            }
            Way::EndlessMore | Way::Pings | Way::Unread => introduction(),
        };
        plain.write(&begin);
        Self {
            plain,
            way,
            steps: 0,
        }
    }

    /// Goes on with it. True once it was answered.
    fn step(&mut self) -> bool {
        self.steps += 1;
        let chunk = if self.way == Way::Trickle {
            1
        } else {
            usize::MAX
        };
        if self.plain.push(chunk) {
            match self.way {
                Way::EndlessMore => self.plain.queue(&frame(MORE, b"more").repeat(100)),
                Way::Pings => self.plain.queue(&ping(9, b"0123456789abcdef").repeat(100)),
                Way::Unread => self.plain.queue(&request(1, &[7; 10_000]).repeat(4)),
                _ => {}
            }
        }
        match self.way {
            // They read nothing at all.
            Way::Pings | Way::Unread => false,
            Way::Trickle => {
                let said = self.plain.take_all();
                said.contains(&Said::Message(1, b"trickle".to_vec()))
            }
            _ => {
                self.plain.read();
                false
            }
        }
    }
}

fn request(correlation: u64, payload: &[u8]) -> Vec<u8> {
    let mut header = Header::new(Kind::Request, correlation);
    header.handler = HandlerKey::of("echo");
    header.deadline_us = 60_000_000;
    [frame(MORE, &header.encode()), frame(0, payload)].concat()
}

fn serve() -> Runtime {
    let config = Config::default()
        .with_engine(EngineKind::Native)
        .with_shards(1)
        .with_idle(IdleStrategy::Park)
        .with_listen(["tcp://127.0.0.1:0"])
        .with_limits(|limits| {
            // So that those who are silent make room for others within the test's time, and what
            // all together may hold is less than what they would.
            limits.handshake_ms = 300;
            limits.slow_consumer_ms = 1_000;
            limits.message_bytes_max = 64 << 10;
            limits.outgoing_bytes_max = MIB;
            limits.buffered_bytes_max = 16 * MIB;
        });
    let echo = inline_raw("echo", |payload, reply, _| {
        reply.extend_from_slice(payload);
        Ok(())
    });
    Runtime::builder(config).handler(echo).start().unwrap()
}

fn caller() -> Runtime {
    let config = Config::default()
        .with_engine(EngineKind::Native)
        .with_shards(1)
        .with_idle(IdleStrategy::Park);
    Runtime::builder(config).start().unwrap()
}

#[track_caller]
fn ask(caller: &Runtime, peer: &Peer, n: u64) {
    let payload = n.to_le_bytes().repeat(8);
    let message = caller
        .client()
        .message("echo")
        .raw(payload.clone())
        .to(peer);
    let answer = message.request().within(PATIENCE).wait();
    assert_eq!(answer.as_deref(), Ok(&payload[..]), "request {n}");
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn a_thousand_hostile_peers_beside_a_good_client_harm_nobody() {
    let maximum = descriptors::raise_limit();
    if maximum.is_some_and(|maximum| maximum < DESCRIPTORS_MIN) {
        eprintln!("SKIPPED: only {maximum:?} descriptors; raise `ulimit -Hn` to {DESCRIPTORS_MIN}");
        return;
    }
    let (service, good) = (serve(), caller());
    let endpoint = &service.endpoints()[0];
    let peer = good.client().connect(endpoint).unwrap();
    let asked = Cell::new(0);
    let ask_good = || {
        ask(&good, &peer, asked.get());
        asked.set(asked.get() + 1);
    };
    (0..1_000).for_each(|_| ask_good());
    let before = resident_bytes();

    let stop = Arc::new(AtomicBool::new(false));
    let rounds = Arc::new(AtomicU64::new(0));
    let attack = {
        let (stop, rounds) = (stop.clone(), rounds.clone());
        let to = endpoint.parse().unwrap();
        thread::spawn(move || attack(&to, &stop, &rounds))
    };
    let mut most = 0;
    let began = Instant::now();
    // Until each has gone on many times; some have come back as another by then.
    while rounds.load(Relaxed) < 500 {
        ask_good();
        most = most.max(resident_bytes());
        assert!(
            !attack.is_finished() && began.elapsed() < 4 * PATIENCE,
            "{rounds:?}"
        );
        thread::sleep(Duration::from_micros(200));
    }
    stop.store(true, Relaxed);
    let seen = attack.join().unwrap();
    println!(
        "{seen:?}; {} good requests; {} KiB more",
        asked.get(),
        most.saturating_sub(before) >> 10
    );
    assert!(seen.reconnected > 500 && seen.trickled > 50, "{seen:?}");
    let growth = most.saturating_sub(before);
    assert!(growth < GROWTH_BYTES_MAX, "{} KiB more", growth >> 10);

    // They are gone; a new client finds everything as it was.
    (0..1_000).for_each(|_| ask_good());
    let late = caller();
    let late_peer = late.client().connect(endpoint).unwrap();
    (0..100).for_each(|n| ask(&late, &late_peer, n));
    drop(late);
    let asked = asked.get();
    let account = peer.account();
    assert_eq!(
        (account.accepted, account.handled),
        (asked, asked),
        "{account:?}"
    );
    let counters = service.metrics().total();
    assert!(counters.slow_consumers > 0, "{counters:?}");
    let ended = counters.handled + counters.nacked() + counters.lost + counters.indeterminate;
    assert_eq!(counters.accepted, ended, "{counters:?}");
    assert!(counters.accepted >= asked + 100 + seen.trickled);
    drop(good);
    let totals = service.drain();
    assert!(totals.accepted >= asked, "{totals:?}");
}

#[derive(Debug, Default)]
struct Attacked {
    reconnected: u64,
    trickled: u64,
}

fn attack(to: &corelane::config::Endpoint, stop: &AtomicBool, rounds: &AtomicU64) -> Attacked {
    let mut random = SmallRng::seed_from_u64(7);
    let mut attacked = Attacked::default();
    let connect = |random: &mut SmallRng| Hostile::connect(to, random);
    let mut hostile: Vec<Hostile> = (0..HOSTILE).map(|_| connect(&mut random)).collect();
    while !stop.load(Relaxed) {
        for it in &mut hostile {
            let is_answered = it.step();
            attacked.trickled += u64::from(is_answered);
            if is_answered || it.plain.is_closed {
                *it = connect(&mut random);
                attacked.reconnected += 1;
            }
        }
        rounds.fetch_add(1, Relaxed);
        thread::sleep(Duration::from_millis(1));
    }
    attacked
}

/// A server that sends what cannot be read is left, and its calls end; but it is dialed again, and
/// whoever is there then is a peer like any other.
#[test]
fn a_server_whose_messages_cannot_be_read_is_left_and_dialed_again() {
    for engine in [EngineKind::Native, EngineKind::Libzmq] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = format!("tcp://{}", listener.local_addr().unwrap());
        let config = Config::default()
            .with_engine(engine)
            .with_shards(1)
            .with_idle(IdleStrategy::Park)
            .with_limits(|limits| limits.reconnect_max_ms = 100);
        let caller = Runtime::builder(config).start().unwrap();
        let peer = caller.client().connect(&at).unwrap();
        let call = || {
            let message = caller.client().message("echo").raw("x").to(&peer);
            message.request().within(PATIENCE).send().unwrap()
        };
        for round in 0..3 {
            let (mut bad, asked) = serve_one(&listener, call);
            let junk = frame(0, b"junk").repeat(3);
            bad.0.write(&junk);
            let lost = Err(CallError::Indeterminate(Indeterminate::ConnectionLost));
            assert_eq!(asked.wait(), lost, "{engine:?} {round}");
            let (mut good, asked) = serve_one(&listener, call);
            let header = Header::new(Kind::Response, good.1);
            let answer = [frame(MORE, &header.encode()), frame(0, b"good")].concat();
            good.0.write(&answer);
            assert_eq!(asked.wait().as_deref(), Ok(&b"good"[..]), "{engine:?}");
        }
        let account = peer.account();
        assert_eq!((account.handled, account.indeterminate), (3, 3));
    }
}

/// Accepts a connection, has a call made, and reads it. Gives its correlation, too.
fn serve_one<C>(listener: &TcpListener, call: impl Fn() -> C) -> ((Plain, u64), C) {
    let began = Instant::now();
    listener.set_nonblocking(true).unwrap();
    let stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(_) => assert!(began.elapsed() < PATIENCE, "it is not dialed"),
        }
        thread::sleep(Duration::from_millis(1));
    };
    let mut plain = Plain::accepted(stream);
    plain.write(&[greeting(1), ready("ROUTER")].concat());
    let call = call();
    let correlation = called(&mut plain);
    ((plain, correlation), call)
}

/// The correlation of the next call.
fn called(plain: &mut Plain) -> u64 {
    let began = Instant::now();
    loop {
        for said in plain.take_all() {
            if let Said::Message(correlation, payload) = said
                && payload == b"x"
            {
                return correlation;
            }
        }
        assert!(began.elapsed() < PATIENCE, "it is not called");
        thread::sleep(Duration::from_millis(1));
    }
}
