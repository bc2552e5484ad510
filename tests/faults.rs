//! System calls that fail under the native engine: interrupted, cut short, refused, reset. The
//! kernel and the sockets are real; a seccomp filter of the shard's thread asks this test what
//! becomes of each call.
//!
//! `CORELANE_SEED` chooses which fail; `CORELANE_FAULTY_CALLS=100000` makes so many messages.

#[path = "faults/starts.rs"]
mod starts;
#[path = "faults/supervisor.rs"]
mod supervisor;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use corelane::{
    Config, Runtime,
    client::{Call as Sent, Peer, RawReply},
    config::{EngineKind, IdleStrategy},
    error::{CallError, Indeterminate, NotSent},
    handler::{Handler, inline_in_place},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use supervisor::{Asked, Call, Verdict, supervised};
use tempfile::TempDir;

/// Far beyond what any step takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(10);
const CALLS: u64 = 3_000;
const WINDOW: usize = 4;
/// Beyond what is copied into the write buffer, so that some leave by a vectored write.
const LARGE_BYTES: usize = 100_000;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// With heartbeats so far apart; three of them may be missed.
fn config(heartbeat_ms: u64) -> Config {
    Config::default()
        .with_engine(EngineKind::Native)
        .with_shards(1)
        .with_idle(IdleStrategy::Park)
        .with_limits(|limits| {
            limits.reconnect_min_ms = 1;
            limits.reconnect_max_ms = 10;
            limits.handshake_ms = 2 * heartbeat_ms;
            limits.heartbeat_interval_ms = heartbeat_ms;
            limits.heartbeat_timeout_ms = 3 * heartbeat_ms;
        })
}

/// How often each message was handled, by its number.
type Handled = Arc<Mutex<BTreeMap<u64, u32>>>;

fn echo(handled: &Handled) -> Handler {
    let handled = Arc::clone(handled);
    inline_in_place("echo", move |payload, _| {
        let number = u64::from_le_bytes(payload[..8].try_into().expect("eight bytes"));
        *handled.lock().unwrap().entry(number).or_default() += 1;
        Ok(payload.len())
    })
}

/// Which faults there have been, and whether there are to be more.
#[derive(Default)]
struct Faults {
    seen: Mutex<BTreeMap<(Call, Verdict), u64>>,
    is_over: AtomicBool,
}

/// What may become of calls that nobody but the connection notices.
fn harmless(call: Call) -> &'static [Verdict] {
    use Verdict::{Fail, FailAfter, Short};
    match call {
        Call::Receive => &[Fail(libc::EINTR), Fail(libc::EAGAIN), Short(1), Short(9)],
        Call::Send | Call::SendMessage => &[
            Fail(libc::EINTR),
            Fail(libc::EAGAIN),
            Fail(libc::ENOBUFS),
            Short(1),
            Short(9),
        ],
        Call::Accept => &[Fail(libc::EINTR), Fail(libc::EAGAIN)],
        Call::Connect => &[FailAfter(libc::EINTR)],
        Call::Wait | Call::Poll => &[Fail(libc::EINTR)],
        _ => &[],
    }
}

/// What ends a connection, or keeps one from being made.
fn harmful(call: Call) -> &'static [Verdict] {
    use Verdict::Fail;
    match call {
        Call::Receive => &[
            Fail(libc::ECONNRESET),
            Fail(libc::ETIMEDOUT),
            Fail(libc::ENOMEM),
        ],
        Call::Send | Call::SendMessage => &[
            Fail(libc::ECONNRESET),
            Fail(libc::EPIPE),
            Fail(libc::ENOMEM),
            Fail(libc::EHOSTUNREACH),
        ],
        Call::Accept => &[
            Fail(libc::ECONNABORTED),
            Fail(libc::EMFILE),
            Fail(libc::ENFILE),
            Fail(libc::ENOBUFS),
            Fail(libc::ENOMEM),
            Fail(libc::EPROTO),
        ],
        Call::Connect => &[
            Fail(libc::ECONNREFUSED),
            Fail(libc::ENETUNREACH),
            Fail(libc::EADDRNOTAVAIL),
            Fail(libc::EAGAIN),
        ],
        Call::Socket => &[
            Fail(libc::EMFILE),
            Fail(libc::ENFILE),
            Fail(libc::ENOBUFS),
            Fail(libc::ENOMEM),
        ],
        Call::SocketOption => &[Fail(libc::ENOBUFS)],
        Call::Control => &[Fail(libc::ENOMEM), Fail(libc::ENOSPC)],
        _ => &[],
    }
}

impl Faults {
    /// Of reads and writes one of so many fails, of all other calls one of three; in these ways by
    /// turns.
    fn decide(
        self: &Arc<Self>,
        seed: u64,
        one_of: u32,
        ways: fn(Call) -> &'static [Verdict],
    ) -> impl FnMut(&Asked) -> Verdict + Send + use<> {
        let this = Arc::clone(self);
        let mut random = SmallRng::seed_from_u64(seed);
        let mut turns = BTreeMap::<Call, usize>::new();
        move |asked| {
            let one_of = match asked.call {
                Call::Receive | Call::Send => one_of,
                _ => 3,
            };
            let ways = ways(asked.call);
            if ways.is_empty() || this.is_over.load(Relaxed) || !random.random_ratio(1, one_of) {
                return Verdict::Continue;
            }
            let turn = turns.entry(asked.call).or_default();
            *turn += 1;
            let way = ways[*turn % ways.len()];
            let mut seen = this.seen.lock().unwrap();
            *seen.entry((asked.call, way)).or_default() += 1;
            way
        }
    }

    fn kinds(&self) -> BTreeSet<(Call, Verdict)> {
        self.seen.lock().unwrap().keys().copied().collect()
    }
}

/// Which end's calls fail.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Faulty {
    Serving,
    Calling,
}

impl Faulty {
    /// Those that it makes for its connections, over tcp and ipc.
    fn calls(self) -> &'static [Call] {
        use Call::{Accept, Connect, Control, Receive, Send, SendMessage, Socket, SocketOption};
        match self {
            Faulty::Serving => &[Accept, Receive, Send, SendMessage, Control],
            Faulty::Calling => &[
                Socket,
                Connect,
                SocketOption,
                Receive,
                Send,
                SendMessage,
                Control,
            ],
        }
    }
}

struct World {
    service: Runtime,
    caller: Runtime,
    peer: Peer,
    handled: Handled,
    faults: Arc<Faults>,
    _directory: TempDir,
}

impl World {
    /// `None`, and said so: the kernel allows no filter.
    fn start(
        faulty: Faulty,
        scheme: &str,
        seed: u64,
        (one_of, ways): (u32, fn(Call) -> &'static [Verdict]),
        heartbeat_ms: u64,
    ) -> Option<Self> {
        let directory = TempDir::new().unwrap();
        let listen = match scheme {
            "tcp" => "tcp://127.0.0.1:0".to_owned(),
            _ => format!("ipc://{}/socket", directory.path().display()),
        };
        let (handled, faults) = (Handled::default(), Arc::new(Faults::default()));
        // Nothing fails while they start.
        faults.is_over.store(true, Relaxed);
        let service =
            Runtime::builder(config(heartbeat_ms).with_listen([listen])).handler(echo(&handled));
        let caller = Runtime::builder(config(heartbeat_ms));
        let decide = faults.decide(seed, one_of, ways);
        let started = match faulty {
            Faulty::Serving => supervised(move || service.start().unwrap(), decide)
                .map(|service| (service, caller.start().unwrap())),
            Faulty::Calling => supervised(move || caller.start().unwrap(), decide)
                .map(|caller| (service.start().unwrap(), caller)),
        };
        let (service, caller) = match started {
            Ok(both) => both,
            Err(error) => {
                eprintln!("SKIPPED: the kernel allows no seccomp filter here: {error}");
                return None;
            }
        };
        faults.is_over.store(false, Relaxed);
        let peer = caller.client().connect(&service.endpoints()[0]).unwrap();
        Some(Self {
            service,
            caller,
            peer,
            handled,
            faults,
            _directory: directory,
        })
    }

    fn send(&self, number: u64) -> (Sent<RawReply>, Bytes) {
        let mut payload = vec![number as u8; 8 + (number % 300) as usize];
        if number % 8 == 7 {
            payload.resize(LARGE_BYTES, 3);
        }
        payload[..8].copy_from_slice(&number.to_le_bytes());
        let payload = Bytes::from(payload);
        let message = self.caller.client().message("echo").raw(payload.clone());
        let call = message.to(&self.peer).request().within(PATIENCE).send();
        (call.unwrap(), payload)
    }

    /// Connects many times.
    fn meet_many(&self) {
        for _ in 0..20 {
            let at = &self.service.endpoints()[0];
            let peer = self.caller.client().connect(at).unwrap();
            let message = self.caller.client().message("echo").raw(vec![0; 8]);
            message.to(&peer).request().within(PATIENCE).wait().unwrap();
        }
        self.handled.lock().unwrap().clear();
    }

    /// Makes so many calls, and has each end judged.
    fn call(
        &self,
        numbers: std::ops::Range<u64>,
        judge: &mut impl FnMut(Result<Bytes, CallError>, Bytes),
    ) {
        let mut waiting = VecDeque::new();
        for number in numbers {
            waiting.push_back(self.send(number));
            if waiting.len() == WINDOW {
                let (call, payload) = waiting.pop_front().unwrap();
                judge(call.wait(), payload);
            }
        }
        waiting
            .into_iter()
            .for_each(|(call, payload)| judge(call.wait(), payload));
    }

    /// Nothing fails any more, and nothing is left of it.
    fn recover(self, what: &str) {
        self.faults.is_over.store(true, Relaxed);
        let begun = Instant::now();
        // The last fault may have befallen what waits to be noticed.
        loop {
            let message = self.caller.client().message("echo").raw(vec![0; 8]);
            match message.to(&self.peer).request().within(PATIENCE).wait() {
                Ok(_) => break,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{what}: {error}"),
            }
        }
        for number in 0..100 {
            let message = self.caller.client().message("echo");
            let payload = u64::MAX - number;
            let message = message.raw(payload.to_le_bytes().to_vec());
            let answer = message.to(&self.peer).request().within(PATIENCE).wait();
            assert_eq!(answer.as_deref(), Ok(&payload.to_le_bytes()[..]), "{what}");
        }
        let counters = self.caller.metrics().total();
        assert_eq!(counters.late_answers, 0, "{what}: answered twice");
        let totals = self.service.drain();
        let ended = totals.handled + totals.nacked + totals.indeterminate + totals.lost;
        assert_eq!(totals.accepted, ended, "{what}: {totals:?}");
    }
}

const ENDS: [(Faulty, &str); 4] = [
    (Faulty::Serving, "tcp"),
    (Faulty::Calling, "tcp"),
    (Faulty::Serving, "ipc"),
    (Faulty::Calling, "ipc"),
];

/// EINTR, EAGAIN, ENOBUFS, and reads and writes of a byte. Nobody notices.
#[test]
fn interrupted_and_short_calls_lose_no_connection_and_no_message() {
    let seed = number("CORELANE_SEED", 1);
    let mut seen = BTreeSet::new();
    for (faulty, scheme) in ENDS {
        let what = format!("{faulty:?} over {scheme}, seed {seed}");
        let Some(world) = World::start(faulty, scheme, seed, (3, harmless), 2_000) else {
            return;
        };
        let calls = number("CORELANE_FAULTY_CALLS", CALLS);
        let begun = Instant::now();
        world.meet_many();
        world.call(1..calls + 1, &mut |end, payload| {
            assert_eq!(end, Ok(payload), "{what}")
        });
        let account = world.peer.account();
        assert_eq!(account.handled, calls, "{what}: {account:?}");
        let handled = world.handled.lock().unwrap().clone();
        assert!(handled.values().all(|&times| times == 1), "{what}");
        let injected: u64 = world.faults.seen.lock().unwrap().values().sum();
        let took = begun.elapsed();
        println!("{what}: {injected} faults in {calls} calls, {took:.1?}");
        assert!(injected > calls / 4, "{what}: {injected}");
        seen.extend(world.faults.kinds());
        world.recover(&what);
    }
    let missing = missing(&seen, harmless, &Call::ALL);
    assert_eq!(missing, [], "of {}", seen.len());
}

/// What resets, refuses or exhausts. Each message ends once, and is not handled twice; the rest is
/// as ever.
#[test]
fn calls_that_fail_end_each_message_once_and_the_connection_is_made_again() {
    let seed = number("CORELANE_SEED", 1);
    for (faulty, scheme) in ENDS {
        let what = format!("{faulty:?} over {scheme}, seed {seed}");
        let Some(world) = World::start(faulty, scheme, seed, (15, harmful), 100) else {
            return;
        };
        let mut ended = BTreeMap::<&str, u64>::new();
        let begun = Instant::now();
        let mut judge = |end, payload: Bytes| {
            let number = u64::from_le_bytes(payload[..8].try_into().unwrap());
            let ran = world.handled.lock().unwrap().get(&number).copied();
            let name = match end {
                Ok(answer) => {
                    assert!(answer == payload, "{what}: another call's answer");
                    assert_eq!(ran, Some(1), "{what}: {number} was answered");
                    "handled"
                }
                Err(CallError::Indeterminate(Indeterminate::ConnectionLost)) => "indeterminate",
                Err(CallError::NotSent(error)) if error.why == NotSent::ConnectionLost => {
                    assert!(error.payload == payload, "{what}: {number}");
                    assert_eq!(ran, None, "{what}: {number} was not sent");
                    "not sent"
                }
                Err(other) => panic!("{what}: {number}: {other:?}"),
            };
            *ended.entry(name).or_default() += 1;
        };
        // Until each fault has befallen this end.
        let calls_min = number("CORELANE_FAULTY_CALLS", 100);
        let mut calls = 0;
        while calls < calls_min
            || !missing(&world.faults.kinds(), harmful, faulty.calls()).is_empty()
        {
            world.call(calls + 1..calls + 101, &mut judge);
            calls += 100;
            assert!(
                begun.elapsed() < 10 * PATIENCE,
                "{what}: {:?}",
                world.faults.kinds()
            );
        }
        let handled = world.handled.lock().unwrap().clone();
        assert!(handled.values().all(|&times| times == 1), "{what}");
        let account = world.peer.account();
        let injected: u64 = world.faults.seen.lock().unwrap().values().sum();
        let took = begun.elapsed();
        println!("{what}: {injected} faults in {calls} calls, {took:.1?}: {ended:?}");
        assert_eq!(account.settled(), calls, "{what}: {account:?}");
        assert!(ended["handled"] > calls / 10, "{what}: {ended:?}");
        world.recover(&what);
    }
}

/// What has not come up proves nothing.
fn missing(
    seen: &BTreeSet<(Call, Verdict)>,
    ways: fn(Call) -> &'static [Verdict],
    calls: &[Call],
) -> Vec<(Call, Verdict)> {
    let of = |&call| ways(call).iter().map(move |&way| (call, way));
    let all = calls.iter().flat_map(of);
    all.filter(|it| !seen.contains(it)).collect()
}
