//! Processes of some shards each on one simulated network, and the time that they share.

use std::{rc::Rc, sync::Arc, time::Duration};

use corelane::{
    engine::sim::{Network, Weather},
    handler::Handler,
    shard::ShardOptions,
};
use quanta::{Clock, Instant, Mock};
use uuid::Uuid;

use crate::{
    process::{Plan, Process},
    rude::Rude,
    tampered::Plant,
};

/// Rounds at one moment after which the shards are held to be going in circles.
const ROUNDS_MAX: usize = 10_000;

/// The limits of a world's processes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) shard: ShardOptions,
    pub(crate) outgoing_messages_max: usize,
    pub(crate) outgoing_bytes_max: usize,
    pub(crate) pool_threads: usize,
    pub(crate) pool_queue: usize,
    pub(crate) reconnect: Duration,
    pub(crate) ring_capacity: usize,
    pub(crate) heartbeat_timeout: Duration,
    pub(crate) handshake: Duration,
    pub(crate) slow_consumer: Duration,
}

pub(crate) struct World {
    pub(crate) clock: Clock,
    pub(crate) network: Network,
    pub(crate) processes: Vec<Process>,
    pub(crate) strangers: Vec<Rude>,
    pub(crate) mock: Arc<Mock>,
    /// Those of the processes that are added from now on.
    pub(crate) limits: Limits,
    /// The bug that is planted, if any.
    pub(crate) plant: Rc<Plant>,
}

impl World {
    pub(crate) fn new(seed: u64, weather: Weather, limits: Limits) -> Self {
        let (clock, mock) = Clock::mock();
        // Not at zero: a time before the beginning would go unnoticed.
        mock.increment(Duration::from_secs(1));
        Self {
            clock,
            mock,
            network: Network::new(seed, weather),
            processes: Vec::new(),
            strangers: Vec::new(),
            limits,
            plant: Rc::default(),
        }
    }

    /// One with a bug in it.
    pub(crate) fn with(self, plant: Rc<Plant>) -> Self {
        Self { plant, ..self }
    }

    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Adds a process whose shard `k` runs as `ShardInfo { shard: k, cpu: first_cpu + k }`. One
    /// that does not tell of its shards is called by one connection, and routes what comes by it.
    pub(crate) fn add_process(
        &mut self,
        first_cpu: usize,
        shards: usize,
        tells_shards: bool,
        handlers: &[Handler],
    ) {
        let plan = Plan {
            first_cpu,
            tells_shards,
            instance: Uuid::from_u128(first_cpu as u128),
            endpoints: vec!["tcp://127.0.0.1:0".to_owned(); shards],
            host: String::new(),
        };
        self.start(plan, handlers);
    }

    /// Starts a process, at the end of the others.
    pub(crate) fn start(&mut self, plan: Plan, handlers: &[Handler]) {
        let process = Process::start(plan, handlers, self);
        self.processes.push(process);
    }

    /// One turn of every shard. True if any of them did something.
    pub(crate) fn turn_all(&mut self) -> bool {
        let now = self.now();
        let mut worked = false;
        for process in &mut self.processes {
            worked |= process.turn(now, &self.network);
        }
        for stranger in &mut self.strangers {
            worked |= stranger.turn(now);
        }
        worked
    }

    /// Turns all shards until none has anything left to do at this moment; `observe` looks on after
    /// each round.
    pub(crate) fn settle(&mut self, mut observe: impl FnMut(Instant)) {
        // A call that expires is no work, but a task that waited for it may go on.
        let mut quiet_rounds = 0;
        for _ in 0..ROUNDS_MAX {
            quiet_rounds = if self.turn_all() { 0 } else { quiet_rounds + 1 };
            observe(self.now());
            if quiet_rounds == 2 {
                return;
            }
        }
        panic!("after {ROUNDS_MAX} rounds at one moment there is still work");
    }

    /// Lets the time go on to the next moment at which a shard wants to be woken, but not beyond
    /// `until`. False once that is reached.
    pub(crate) fn advance(&mut self, until: Instant) -> bool {
        let now = self.now();
        let wakes = self.processes.iter().filter_map(|it| it.next_wake(now));
        let wakes = wakes.chain(self.strangers.iter().filter_map(Rude::next_wake));
        let next = wakes.min().map_or(until, |next| next.min(until));
        assert!(
            next > now || until <= now,
            "a shard without work wants to be woken at once: it would never sleep"
        );
        self.mock.increment(next.saturating_duration_since(now));
        next < until
    }

    /// Lets so much time pass; `look` looks on whenever all has settled.
    pub(crate) fn pass(&mut self, time: Duration, mut look: impl FnMut(&Self)) {
        let until = self.now() + time;
        loop {
            self.settle(|_| {});
            look(self);
            if !self.advance(until) {
                break;
            }
        }
        self.settle(|_| {});
        look(self);
    }

    /// Has a process stop gracefully, or at once with `Duration::ZERO`.
    pub(crate) fn drain(&mut self, process: usize, within: Duration) {
        let until = self.now() + within;
        for node in &mut self.processes[process].shards {
            node.drain(until);
        }
    }

    /// Ends a process at once, as by kill -9.
    pub(crate) fn crash(&mut self, process: usize) {
        self.processes[process].crash();
    }

    /// Stops one shard of a process, or all of it, until then.
    pub(crate) fn stall(&mut self, process: usize, shard: Option<usize>, until: Instant) {
        let now = self.now();
        let process = &mut self.processes[process];
        for (number, node) in process.shards.iter_mut().enumerate() {
            if shard.is_none_or(|shard| shard == number) {
                node.stall(now, until, &self.network);
            }
        }
    }
}
