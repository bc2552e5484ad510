//! Calls that go on whatever becomes of their server, and whether what their callers were told is
//! what the server's handlers wrote down.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    thread::{self, Scope, ScopedJoinHandle},
    time::{Duration, Instant},
};

use bytes::Bytes;
use corelane::{
    Runtime,
    client::{Acked, Call, Peer, RawReply},
    error::{CallError, Indeterminate},
    handler::{Handler, blocking_raw, inline_raw, spawned_raw},
};

/// Far beyond what any step takes, on a busy machine too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Calls of one thread that are out at once.
const WINDOW: usize = 64;
/// More than one write takes, so that some are cut in their middle.
const LARGE_BYTES: usize = 300_000;

pub(crate) fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// One run of a handler, as its file keeps it: which message, and in which life of the server. One
/// write each, behind what is there: the kernel has it once the call returns, whatever is killed.
#[derive(Clone, Copy)]
pub(crate) struct Run {
    pub(crate) message: u64,
    pub(crate) life: u32,
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

/// Which handler a message is for, by its place among a thread's messages.
const HANDLERS: [&str; 4] = ["inline", "inline", "spawned", "blocking"];

/// Each writes its run down, and answers with it. Now and then a message is for `slow`, which
/// sleeps for so long before it does.
pub(crate) fn handlers(file: File, life: u32, slow: Duration) -> [Handler; 4] {
    let file = Arc::new(file);
    let run = move |payload: &[u8]| {
        let message = u64::from_le_bytes(payload[..8].try_into().expect("eight bytes"));
        let run = Run { message, life }.encode();
        assert_eq!((&*file).write(&run).expect("is written"), run.len());
        run
    };
    let (inline, blocking) = (run.clone(), run.clone());
    let spawned = |name: &str, sleep| {
        let run = run.clone();
        spawned_raw(name, move |payload: Bytes, cx| {
            let run = run.clone();
            async move {
                cx.sleep(sleep).await;
                Ok(Bytes::copy_from_slice(&run(&payload)))
            }
        })
    };
    [
        inline_raw("inline", move |payload, reply, _| {
            reply.extend_from_slice(&inline(payload));
            Ok(())
        })
        .on_last_shard(),
        spawned("spawned", Duration::from_micros(500)),
        spawned("slow", slow),
        blocking_raw("blocking", move |payload: Bytes, _| {
            Ok(Bytes::copy_from_slice(&blocking(&payload)))
        }),
    ]
}

/// What a caller was told of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Told {
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

/// A thread's calls to one peer: it sends every second number as a message until it is stopped.
struct Caller<'a> {
    runtime: &'a Runtime,
    peer: &'a Peer,
    /// 0 or 1.
    first: u64,
    stop: &'a AtomicBool,
    /// The last life of the server that has answered.
    life: &'a AtomicU32,
}

/// A thread for each of the two peers, which calls it until both are stopped.
pub(crate) fn call_both<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    runtime: &'env Runtime,
    peers: &'env [Peer; 2],
    stop: &'env AtomicBool,
    lives: &'env [AtomicU32; 2],
) -> [ScopedJoinHandle<'scope, Vec<Told>>; 2] {
    [0, 1].map(|at| {
        let caller = Caller {
            runtime,
            peer: &peers[at],
            first: at as u64,
            stop,
            life: &lives[at],
        };
        scope.spawn(move || caller.call())
    })
}

impl Caller<'_> {
    /// What each message was told, in their order.
    fn call(&self) -> Vec<Told> {
        let mut told = Vec::new();
        let mut waiting: VecDeque<(usize, Waiting)> = VecDeque::new();
        while !self.stop.load(Relaxed) {
            let at = told.len();
            told.push(Told::Nothing);
            match self.send(at) {
                Ok(Some(call)) => waiting.push_back((at, call)),
                Ok(None) => {}
                // It comes back at once, from a full queue.
                Err(()) => {
                    told[at] = Told::NotSent;
                    thread::sleep(Duration::from_micros(100));
                }
            }
            if waiting.len() >= WINDOW {
                self.take(&mut waiting, &mut told);
            }
        }
        while !waiting.is_empty() {
            self.take(&mut waiting, &mut told);
        }
        told
    }

    fn message(&self, at: usize) -> u64 {
        self.first + 2 * at as u64
    }

    fn send(&self, at: usize) -> Result<Option<Waiting>, ()> {
        let handler = match at % 97 {
            0 => "slow",
            _ => HANDLERS[at % HANDLERS.len()],
        };
        let mut payload = self.message(at).to_le_bytes().to_vec();
        if at.is_multiple_of(61) {
            payload.resize(LARGE_BYTES, 7);
        }
        let message = self.runtime.client().message(handler).raw(payload);
        let message = message.to(self.peer);
        let sent = match at % 5 {
            0 => message.one_way().map(|()| None),
            1 | 2 => {
                let call = message.confirm().within(PATIENCE).send();
                call.map(|call| Some(Waiting::Confirm(call)))
            }
            _ => {
                let call = message.request().within(PATIENCE).send();
                call.map(|call| Some(Waiting::Request(call)))
            }
        };
        sent.map_err(drop)
    }

    fn take(&self, waiting: &mut VecDeque<(usize, Waiting)>, told: &mut [Told]) {
        if let Some((at, call)) = waiting.pop_front() {
            told[at] = call.wait(self.message(at));
            match told[at] {
                Told::Answered(life) => drop(self.life.fetch_max(life, Relaxed)),
                // A peer that drains, most likely: there is no use in hurrying.
                Told::NotSent => thread::sleep(Duration::from_micros(100)),
                _ => {}
            }
        }
    }
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

/// How the messages of one caller ended.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) handled: u64,
    pub(crate) nacked: u64,
    pub(crate) not_sent: u64,
    pub(crate) indeterminate: u64,
    pub(crate) one_way: u64,
}

/// Holds what both callers were told against the runs in this file, and against their accounts.
/// Returns how many runs there were, and how the messages of each caller ended.
pub(crate) fn judge(file: &Path, peers: &[Peer; 2], told: &[Vec<Told>; 2]) -> (u64, [Tally; 2]) {
    let runs = read_runs(file);
    let mut tallies = [Tally::default(), Tally::default()];
    for (first, told) in told.iter().enumerate() {
        for (at, &told) in told.iter().enumerate() {
            let message = (first + 2 * at) as u64;
            tallies[first].enter(message, told, runs.get(&message).copied());
        }
    }
    for (peer, tally) in peers.iter().zip(&tallies) {
        // Counted on its shard, a moment after its callers were told.
        let begun = Instant::now();
        while peer.account().settled() != peer.account().accepted {
            assert!(begun.elapsed() < PATIENCE, "{:?}", peer.account());
            thread::sleep(Duration::from_millis(1));
        }
        tally.agrees_with(peer);
    }
    (runs.len() as u64, tallies)
}

impl Tally {
    fn enter(&mut self, message: u64, told: Told, ran: Option<u32>) {
        match told {
            Told::Answered(life) => {
                assert_eq!(ran, Some(life), "message {message} was answered");
                self.handled += 1;
            }
            Told::Acked => {
                assert!(ran.is_some(), "message {message} was acked and never ran");
                self.handled += 1;
            }
            Told::Nacked => {
                assert_eq!(ran, None, "message {message} was nacked and ran");
                self.nacked += 1;
            }
            Told::NotSent => {
                assert_eq!(ran, None, "message {message} was not sent and ran");
                self.not_sent += 1;
            }
            // Zero times or once.
            Told::Indeterminate => self.indeterminate += 1,
            Told::Nothing => self.one_way += 1,
        }
    }

    fn agrees_with(&self, peer: &Peer) {
        let account = peer.account();
        assert_eq!(account.handled, self.handled, "{account:?} {self:?}");
        assert_eq!(account.nacked, self.nacked, "{account:?} {self:?}");
        let indeterminate = account.indeterminate;
        assert_eq!(indeterminate, self.indeterminate, "{account:?} {self:?}");
        let one_way = account.one_way_sent + account.lost;
        assert_eq!(one_way, self.one_way, "{account:?} {self:?}");
    }
}

/// So that a panic of the test ends its threads.
pub(crate) struct StopOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
