//! What the simulated processes serve: handlers that write down what they ran, and end as their
//! message says.

use std::{
    panic::resume_unwind,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use corelane::handler::{
    Batch, Handler, HandlerError, batched_raw, blocking_raw, inline_raw, spawned_raw,
};
use quanta::Mock;

/// A message's payload. Also its reply, byte for byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) id: u32,
    /// Messages of one lane are sent one after the other by one way to one peer.
    pub(crate) lane: u32,
    pub(crate) sequence: u32,
    pub(crate) conduct: Conduct,
    /// How long `sleep` sleeps; `spin` spins for a tenth of it.
    pub(crate) takes_us: u32,
}

/// How a handler is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Conduct {
    Return,
    Fail,
    Panic,
}

/// A handler that ran.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) order: Order,
    /// In which process.
    pub(crate) process: usize,
    /// Those of its lane that had not ended, if its handler takes one at a time.
    pub(crate) beside: Vec<u32>,
}

/// The handlers that ran, in the order in which they started, as one process's handlers know them.
#[derive(Clone)]
pub(crate) struct Runs {
    process: usize,
    started: Arc<Mutex<Vec<Run>>>,
    time: Arc<Mock>,
    /// Those of `line` that have not ended.
    in_line: Arc<Mutex<Vec<Order>>>,
    /// Futures of this process's `sleep` and `line` that were dropped before their end.
    stopped: Arc<AtomicU64>,
}

/// Counts as it is dropped, unless its handler came to its end.
struct Guard {
    runs: Runs,
    id: u32,
    has_ended: bool,
}

impl Guard {
    fn end(mut self) {
        self.has_ended = true;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.has_ended {
            self.runs.stopped.fetch_add(1, Relaxed);
        }
        let mut in_line = self.runs.in_line.lock().unwrap();
        in_line.retain(|order| order.id != self.id);
    }
}

pub(crate) const ORDER_BYTES: usize = 20;
/// So many messages are a batch, if not fewer.
pub(crate) const BATCH_COUNT_MAX: usize = 4;

impl Order {
    /// One of no lane, that returns.
    pub(crate) fn returning(takes_us: u32) -> Self {
        Self {
            id: 0,
            lane: 0,
            sequence: 0,
            conduct: Conduct::Return,
            takes_us,
        }
    }

    pub(crate) fn encode(&self) -> [u8; ORDER_BYTES] {
        let words = [
            self.id,
            self.lane,
            self.sequence,
            self.conduct as u32,
            self.takes_us,
        ];
        let mut bytes = [0; ORDER_BYTES];
        for (at, word) in bytes.chunks_exact_mut(4).zip(words) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Self {
        assert_eq!(bytes.len(), ORDER_BYTES, "a payload came whole");
        let word = |at: usize| u32::from_le_bytes(bytes[4 * at..4 * at + 4].try_into().unwrap());
        Self {
            id: word(0),
            lane: word(1),
            sequence: word(2),
            conduct: [Conduct::Return, Conduct::Fail, Conduct::Panic][word(3) as usize],
            takes_us: word(4),
        }
    }
}

impl Conduct {
    /// Panics without a word on stderr, which thousands of them would flood.
    fn follow(self) -> Result<(), HandlerError> {
        match self {
            Conduct::Return => Ok(()),
            Conduct::Fail => Err(HandlerError::new("as asked")),
            Conduct::Panic => resume_unwind(Box::new("as asked")),
        }
    }
}

impl Runs {
    pub(crate) fn new(time: Arc<Mock>) -> Self {
        let (started, stopped, in_line) = Default::default();
        Self {
            process: 0,
            started,
            in_line,
            time,
            stopped,
        }
    }

    /// The same book, as the process of this number writes it.
    pub(crate) fn of_process(&self, process: usize) -> Self {
        Self {
            process,
            stopped: Arc::default(),
            ..self.clone()
        }
    }

    /// `run` and `spin` are inline, `sleep` is spawned, `line` is that and ordered, `block` is
    /// blocking, `gather` is batched; all do as their [`Order`] says. Those with `.last` run on the
    /// last shard, those with `.key` by route key.
    pub(crate) fn handlers(&self) -> Vec<Handler> {
        vec![
            self.block("block"),
            self.block("block.last").on_last_shard(),
            self.gather("gather"),
            self.gather("gather.last").on_last_shard(),
            self.line("line").ordered_per_peer(3),
            self.line("line.last").ordered_per_peer(3).on_last_shard(),
            self.line("line.key").ordered_per_peer(1).by_route_key(),
            self.run("run"),
            self.run("run.last").on_last_shard(),
            self.run("run.key").by_route_key(),
            self.sleep("sleep"),
            self.sleep("sleep.few").concurrency(2),
            self.sleep("sleep.last").on_last_shard(),
            self.sleep("sleep.key").by_route_key(),
            self.spin("spin"),
            self.spin("spin.last").on_last_shard(),
        ]
    }

    fn spin(&self, name: &str) -> Handler {
        let runs = self.clone();
        inline_raw(name, move |payload, reply, _cx| {
            let order = runs.enter(payload);
            let takes = Duration::from_micros(order.takes_us.into());
            runs.time.increment(takes / 10);
            reply.extend_from_slice(payload);
            order.conduct.follow()
        })
    }

    fn block(&self, name: &str) -> Handler {
        let runs = self.clone();
        blocking_raw(name, move |payload, _cx| {
            let order = runs.enter(&payload);
            order.conduct.follow().map(|()| payload)
        })
    }

    fn run(&self, name: &str) -> Handler {
        let runs = self.clone();
        inline_raw(name, move |payload, reply, _cx| {
            let order = runs.enter(payload);
            // What was written before an error or a panic must not reach the caller.
            reply.extend_from_slice(payload);
            order.conduct.follow()
        })
    }

    /// A batch panics as a whole if one of its messages says so.
    fn gather(&self, name: &str) -> Handler {
        let runs = self.clone();
        let batch = Batch {
            count_max: BATCH_COUNT_MAX,
            bytes_max: 3 * ORDER_BYTES + 1,
            age_max: Duration::from_micros(700),
        };
        batched_raw(name, batch, move |items, _cx| {
            let orders: Vec<Order> = items.iter().map(|it| runs.enter(it.request())).collect();
            for (item, order) in items.iter_mut().zip(orders) {
                let reply = item.request().clone();
                item.answer(order.conduct.follow().map(|()| reply));
            }
        })
    }

    fn sleep(&self, name: &str) -> Handler {
        self.sleep_after(name, Self::enter)
    }

    fn line(&self, name: &str) -> Handler {
        self.sleep_after(name, Self::enter_line)
    }

    fn sleep_after(&self, name: &str, enter: fn(&Self, &[u8]) -> Order) -> Handler {
        let runs = self.clone();
        spawned_raw(name, move |payload: Bytes, cx| {
            let order = enter(&runs, &payload);
            let guard = runs.guard(order.id);
            async move {
                cx.sleep(Duration::from_micros(order.takes_us.into())).await;
                guard.end();
                order.conduct.follow().map(|()| payload)
            }
        })
    }

    fn guard(&self, id: u32) -> Guard {
        Guard {
            runs: self.clone(),
            id,
            has_ended: false,
        }
    }

    pub(crate) fn take(&self) -> Vec<Run> {
        std::mem::take(&mut *self.started.lock().unwrap())
    }

    /// How many handlers were dropped before their end.
    pub(crate) fn stopped(&self) -> u64 {
        self.stopped.load(Relaxed)
    }

    pub(crate) fn enter(&self, payload: &[u8]) -> Order {
        self.enter_beside(payload, Vec::new())
    }

    /// Looks who else of its lane has entered so, and has not ended.
    fn enter_line(&self, payload: &[u8]) -> Order {
        let lane = Order::decode(payload).lane;
        let mut in_line = self.in_line.lock().unwrap();
        let others = in_line.iter().filter(|order| order.lane == lane);
        let order = self.enter_beside(payload, others.map(|order| order.id).collect());
        in_line.push(order);
        order
    }

    fn enter_beside(&self, payload: &[u8], beside: Vec<u32>) -> Order {
        let order = Order::decode(payload);
        let process = self.process;
        if crate::is_replay() {
            println!("  {} runs in {process}", order.id);
        }
        self.started.lock().unwrap().push(Run {
            order,
            process,
            beside,
        });
        order
    }
}
