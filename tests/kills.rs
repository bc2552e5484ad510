//! A server that is killed with SIGKILL under load, over and over, and comes back where it was:
//! what its callers were told is held against what its handlers wrote down before they returned.
//!
//! `CORELANE_KILLS=1000` kills it a thousand times; `CORELANE_SEED` chooses when.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use corelane::{
    Config, Runtime,
    client::{Acked, Call, Peer, RawReply},
    config::IdleStrategy,
    error::{CallError, Indeterminate},
    handler::{Handler, blocking_raw, inline_raw, spawned_raw},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tempfile::TempDir;

const CHILD: &str = "CORELANE_TEST_KILLED";
const TEST: &str = "a_server_that_is_killed_a_thousand_times_never_makes_a_call_lie";
/// Far beyond what any step takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the test's command line may ask for more of.
const KILLS: u64 = 100;
/// Calls of one thread that are out at once.
const WINDOW: usize = 64;
/// Longest time between a server's first answer and its end.
const LIFE_US_MAX: u64 = 15_000;
/// More than one write takes, so that some are cut in their middle.
const LARGE_BYTES: usize = 300_000;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// One run of a handler, as its file keeps it: which message, and in which life of the server. One
/// write each, behind what is there: the kernel has it once the call returns, whatever is killed.
#[derive(Clone, Copy)]
struct Run {
    message: u64,
    life: u32,
}

impl Run {
    const BYTES: usize = 12;

    fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.message.to_le_bytes());
        bytes[8..].copy_from_slice(&self.life.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Self {
        let (message, life) = bytes.split_at(8);
        Self {
            message: u64::from_le_bytes(message.try_into().expect("eight bytes")),
            life: u32::from_le_bytes(life.try_into().expect("four bytes")),
        }
    }
}

fn handlers(file: File, life: u32) -> [Handler; 3] {
    let file = Arc::new(file);
    let run = move |payload: &[u8]| {
        let message = u64::from_le_bytes(payload[..8].try_into().expect("eight bytes"));
        let run = Run { message, life }.encode();
        assert_eq!((&*file).write(&run).expect("is written"), run.len());
        run
    };
    let (inline, spawned, blocking) = (run.clone(), run.clone(), run);
    [
        inline_raw("inline", move |payload, reply, _| {
            reply.extend_from_slice(&inline(payload));
            Ok(())
        }),
        spawned_raw("spawned", move |payload: Bytes, cx| {
            let run = spawned.clone();
            async move {
                cx.sleep(Duration::from_micros(500)).await;
                Ok(Bytes::copy_from_slice(&run(&payload)))
            }
        }),
        blocking_raw("blocking", move |payload: Bytes, _| {
            Ok(Bytes::copy_from_slice(&blocking(&payload)))
        }),
    ]
}

fn config() -> Config {
    Config::default()
        .with_shards(1)
        .with_idle(IdleStrategy::Park)
        .with_limits(|limits| {
            limits.reconnect_min_ms = 1;
            limits.reconnect_max_ms = 5;
        })
}

/// In a process of its own, until it is killed; or until its parent goes, which closes its stdin.
fn serve(arguments: &str) {
    let mut parts = arguments.split(' ');
    let mut next = || parts.next().expect("three arguments");
    let (life, file, endpoints) = (next().parse().expect("a number"), next(), next());
    let file = OpenOptions::new().append(true).open(file);
    let runtime = Runtime::builder(config().with_listen(endpoints.split(',')))
        .handlers(handlers(file.expect("is there"), life))
        .start();
    match runtime {
        Ok(runtime) => {
            println!("READY {}", runtime.endpoints().join(" "));
            let _ = std::io::stdin().read(&mut [0]);
        }
        Err(error) => println!("REFUSED {error}"),
    }
}

/// A life of the server. It ends, at the latest, when this is dropped.
struct Killed(Child);

impl Killed {
    fn start(life: u32, file: &Path, endpoints: &[String]) -> (Self, Vec<String>) {
        let arguments = format!("{life} {} {}", file.display(), endpoints.join(","));
        let begun = Instant::now();
        loop {
            let child = Command::new(std::env::current_exe().expect("a path"))
                .args([TEST, "--exact", "--nocapture"])
                .env(CHILD, &arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn();
            let mut killed = Self(child.expect("can be run"));
            let stdout = BufReader::new(killed.0.stdout.take().expect("is piped"));
            let mut lines = stdout.lines().map_while(Result::ok);
            let said = lines.find_map(|line| Some(line.split_once("READY ")?.1.to_owned()));
            if let Some(bound) = said {
                return (killed, bound.split(' ').map(str::to_owned).collect());
            }
            // Between two lives its port is anybody's.
            assert!(begun.elapsed() < PATIENCE, "it does not start");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a caller was told of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    /// By a response, in which life it ran.
    Answered(u32),
    /// By an ack.
    Acked,
    /// It did not run.
    Nacked,
    NotSent,
    Indeterminate,
    /// Nothing: it was one-way.
    Nothing,
}

enum Waiting {
    Request(Call<RawReply>),
    Confirm(Call<Acked>),
}

impl Waiting {
    fn wait(self, message: u64) -> Told {
        let error = match self {
            Self::Request(call) => match call.wait() {
                Ok(reply) => {
                    let run = Run::decode(&reply);
                    assert_eq!(run.message, message, "another call's answer");
                    return Told::Answered(run.life);
                }
                Err(error) => error,
            },
            Self::Confirm(call) => match call.wait() {
                Ok(()) => return Told::Acked,
                Err(error) => error,
            },
        };
        match error {
            CallError::Indeterminate(Indeterminate::ConnectionLost) => Told::Indeterminate,
            CallError::NotSent(error) => {
                assert_eq!(error.payload[..8], message.to_le_bytes());
                Told::NotSent
            }
            CallError::Nack { .. } => Told::Nacked,
            other => panic!("message {message}: {other:?}"),
        }
    }
}

/// Sends every `step`th number as a message until it is stopped. What each was told is at its
/// place; `life` is the last one that has answered.
fn call(
    runtime: &Runtime,
    peer: &Peer,
    first: u64,
    stop: &AtomicBool,
    life: &AtomicU32,
) -> Vec<Told> {
    let client = runtime.client();
    let mut told = Vec::new();
    let mut waiting: VecDeque<(u64, Waiting)> = VecDeque::new();
    let take = |waiting: &mut VecDeque<(u64, Waiting)>, told: &mut Vec<Told>| {
        let Some((at, call)) = waiting.pop_front() else {
            return false;
        };
        let end = call.wait(first + 2 * at);
        if let Told::Answered(in_life) = end {
            life.fetch_max(in_life, Relaxed);
        }
        told[at as usize] = end;
        true
    };
    for at in 0.. {
        if stop.load(Relaxed) {
            break;
        }
        let handler = ["inline", "inline", "spawned", "blocking"][at as usize % 4];
        let mut payload = (first + 2 * at).to_le_bytes().to_vec();
        if at % 61 == 0 {
            payload.resize(LARGE_BYTES, 7);
        }
        let message = client.message(handler).raw(payload).to(peer);
        told.push(Told::Nothing);
        match at % 5 {
            // What a full queue gives back has not run.
            0 => {
                if message.one_way().is_err() {
                    told[at as usize] = Told::NotSent;
                }
            }
            1 | 2 => match message.confirm().within(PATIENCE).send() {
                Ok(call) => waiting.push_back((at, Waiting::Confirm(call))),
                Err(_) => told[at as usize] = Told::NotSent,
            },
            _ => match message.request().within(PATIENCE).send() {
                Ok(call) => waiting.push_back((at, Waiting::Request(call))),
                Err(_) => told[at as usize] = Told::NotSent,
            },
        }
        if waiting.len() >= WINDOW {
            take(&mut waiting, &mut told);
        }
    }
    while take(&mut waiting, &mut told) {}
    told
}

/// Which life ran each message. None may have run twice.
fn read_runs(file: &Path) -> BTreeMap<u64, u32> {
    let bytes = std::fs::read(file).expect("is there");
    assert_eq!(bytes.len() % Run::BYTES, 0, "each run is written whole");
    let mut runs = BTreeMap::new();
    for run in bytes.chunks_exact(Run::BYTES).map(Run::decode) {
        let before = runs.insert(run.message, run.life);
        assert_eq!(before, None, "message {} ran twice", run.message);
    }
    runs
}

#[test]
fn a_server_that_is_killed_a_thousand_times_never_makes_a_call_lie() {
    if let Ok(arguments) = std::env::var(CHILD) {
        return serve(&arguments);
    }
    let (kills, seed) = (number("CORELANE_KILLS", KILLS), number("CORELANE_SEED", 1));
    let mut random = SmallRng::seed_from_u64(seed);
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("runs");
    File::create(&file).expect("a file");
    let ipc = format!("ipc://{}", directory.path().join("socket").display());
    let anywhere = ["tcp://127.0.0.1:0".to_owned(), ipc];
    let (mut server, endpoints) = Killed::start(1, &file, &anywhere);

    let caller = Runtime::builder(config()).start().expect("starts");
    let peers = [0, 1].map(|at| {
        caller
            .client()
            .connect(&endpoints[at])
            .expect("an endpoint")
    });
    let stop = AtomicBool::new(false);
    let lives = [AtomicU32::new(0), AtomicU32::new(0)];
    let begun = Instant::now();
    let told = thread::scope(|scope| {
        let calls = [0, 1].map(|at| {
            let (caller, peer, stop, life) = (&caller, &peers[at], &stop, &lives[at]);
            scope.spawn(move || call(caller, peer, at as u64, stop, life))
        });
        let _stop = StopOnDrop(&stop);
        for life in 1..=kills as u32 {
            let born = Instant::now();
            // Each has answered over both ways before it dies.
            while lives.iter().any(|last| last.load(Relaxed) < life) {
                let is_over = calls.iter().any(|it| it.is_finished());
                assert!(
                    !is_over && born.elapsed() < PATIENCE,
                    "life {life}, seed {seed}"
                );
                thread::sleep(Duration::from_micros(100));
            }
            thread::sleep(Duration::from_micros(random.random_range(0..LIFE_US_MAX)));
            drop(server);
            server = Killed::start(life + 1, &file, &endpoints).0;
        }
        stop.store(true, Relaxed);
        let told = calls.map(|it| it.join().expect("no call lied"));
        drop(server);
        told
    });
    let took = begun.elapsed();
    let runs = read_runs(&file);
    let mut counts: [BTreeMap<&str, u64>; 2] = Default::default();
    for (first, told) in told.iter().enumerate() {
        for (at, &told) in told.iter().enumerate() {
            let message = (first + 2 * at) as u64;
            let ran = runs.get(&message).copied();
            let name = match told {
                Told::Answered(life) => {
                    assert_eq!(ran, Some(life), "message {message} was answered");
                    "handled"
                }
                Told::Acked => {
                    assert!(ran.is_some(), "message {message} was acked and never ran");
                    "handled"
                }
                Told::Nacked | Told::NotSent => {
                    assert_eq!(ran, None, "message {message} ran: {told:?}");
                    if told == Told::Nacked {
                        "nacked"
                    } else {
                        "not sent"
                    }
                }
                // Zero times or once.
                Told::Indeterminate => "indeterminate",
                Told::Nothing => "one way",
            };
            *counts[first].entry(name).or_default() += 1;
        }
    }
    println!(
        "{kills} kills in {took:.1?}, seed {seed}: {} runs; tcp {:?}; ipc {:?}",
        runs.len(),
        counts[0],
        counts[1]
    );
    for (peer, counts) in peers.iter().zip(&counts) {
        let of = |name| counts.get(name).copied().unwrap_or_default();
        let account = peer.account();
        assert_eq!(account.settled(), account.accepted, "{account:?}");
        assert_eq!(account.handled, of("handled"), "{account:?}");
        assert_eq!(account.nacked, of("nacked"), "{account:?}");
        assert_eq!(account.indeterminate, of("indeterminate"), "{account:?}");
        let one_way = account.one_way_sent + account.lost;
        assert_eq!(one_way, of("one way"), "{account:?}");
        // Under load a kill finds something under way all but always.
        assert!(account.indeterminate >= kills / 4, "{account:?}");
    }
    let counters = caller.metrics().total();
    assert_eq!(counters.late_answers, 0, "nothing is answered twice");
    assert_eq!(counters.outstanding_now, 0, "{counters:?}");
}

/// So that a panic of the test ends its threads.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
