//! One seed's life: processes that call each other through delays and cuts, and then drain.

use std::{rc::Rc, time::Duration};

use corelane::{
    client::Peer,
    engine::{Pauses, sim::Weather},
    metrics::Counters,
    shard::{Depths, ShardOptions, Shedding},
};
use fastrand::Rng;
use quanta::Instant;
use uuid::Uuid;

use crate::{
    check,
    handlers::{Conduct, Order, Run, Runs},
    ledger::Ledger,
    load::{Mode, Sent},
    process::{Plan, Process},
    rude::{Rude, STRANGER},
    tampered::Plant,
    world::{Limits, World},
};

/// What happened, a line each, with its time in nanoseconds.
pub(crate) type Trace = Vec<String>;

/// Longer than any deadline, sleep and reconnect of a scenario together.
const LONG: Duration = Duration::from_millis(300);

/// Set in the lanes of messages for blocking handlers.
const POOL_LANES: u32 = 1 << 31;
/// Set in the lanes of messages for batched ones.
pub(crate) const BATCH_LANES: u32 = 1 << 30;
/// Set in the lanes of messages for ordered ones.
const LINE_LANES: u32 = 1 << 28;

pub(crate) struct Scenario {
    pub(crate) random: Rng,
    pub(crate) world: World,
    /// By process.
    runs: Vec<Runs>,
    ledger: Ledger,
    pub(crate) peers: Vec<Connected>,
    /// Calls under way.
    pub(crate) pending: Vec<Sent>,
    /// One-way messages, and calls that have ended.
    pub(crate) sent: Vec<Sent>,
    /// Of processes that are over, those whose place another one has taken.
    pub(crate) succeeded: Vec<usize>,
    next_id: u32,
    next_lane: u32,
    trace: Trace,
}

/// A connection that a shard was asked to make.
pub(crate) struct Connected {
    /// `None` once the handle is dropped.
    pub(crate) peer: Option<Peer>,
    pub(crate) process: usize,
    pub(crate) to: String,
    /// The lanes of what is sent through the inbox, and of what is sent on the shard itself, each
    /// by where it runs.
    lanes: [[(u32, u32); PLACES]; 2],
}

/// Where a message may run: where it arrives, on the last shard, where one of two route keys lives.
const PLACES: usize = 4;
/// The handlers' names, and where they run.
const HANDLERS: [(&str, usize); 22] = [
    ("run", 0),
    ("run", 0),
    ("spin", 0),
    ("spin", 0),
    ("spin.last", 1),
    ("sleep", 0),
    ("sleep.few", 0),
    ("block", 0),
    ("block.last", 1),
    ("gather", 0),
    ("gather", 0),
    ("gather.last", 1),
    ("line", 0),
    ("line", 0),
    ("line.last", 1),
    ("line.key", 3),
    ("nobody", 0),
    ("run.last", 1),
    ("sleep.last", 1),
    ("run.key", 2),
    ("run.key", 3),
    ("sleep.key", 2),
];
/// By place; of three shards, they belong to different ones.
const ROUTE_KEYS: [u64; PLACES] = [0, 0, 1, 3];

/// Runs the scenario of this seed, checks all of it, and tells what happened.
pub(crate) fn simulate(seed: u64) -> Trace {
    simulate_with(seed, Rc::default())
}

/// The same in a world with a bug.
pub(crate) fn simulate_with(seed: u64, plant: Rc<Plant>) -> Trace {
    let mut scenario = Scenario::new(seed, plant);
    for _ in 0..scenario.random.usize(20..120) {
        scenario.act();
        let pause = match scenario.random.u8(..4) {
            0 => Duration::ZERO,
            1 => Duration::from_micros(scenario.random.u64(..50)),
            _ => Duration::from_micros(scenario.random.u64(..2_000)),
        };
        scenario.pass(pause);
    }
    scenario.end()
}

impl Scenario {
    fn new(seed: u64, plant: Rc<Plant>) -> Self {
        let mut random = Rng::with_seed(seed);
        let weather = Weather {
            delay_min: Duration::from_micros(random.u64(..20)),
            delay_max: Duration::from_micros(random.u64(20..3_000)),
            in_flight_max: random.usize(1..40),
        };
        let limits = random_limits(&mut random);
        let world = World::new(seed, weather, limits).with(plant);
        let ledger = Ledger::of(&world.network);
        let mut scenario = Self {
            random,
            world,
            runs: Vec::new(),
            ledger,
            peers: Vec::new(),
            pending: Vec::new(),
            sent: Vec::new(),
            succeeded: Vec::new(),
            next_id: 0,
            next_lane: 0,
            trace: vec![format!("{limits:?} {weather:?}")],
        };
        let has_twins = scenario.random.u8(..8) == 0;
        let mut cpus = 0;
        for process in 0..scenario.random.usize(2..=3) {
            let shards = scenario.random.usize(1..=3);
            let instance = if has_twins { 0 } else { process };
            let plan = Plan {
                first_cpu: cpus,
                tells_shards: scenario.random.bool(),
                instance: Uuid::from_u128(instance as u128),
                endpoints: vec!["tcp://127.0.0.1:0".to_owned(); shards],
                host: String::new(),
            };
            scenario.start(plan);
            cpus += shards;
        }
        if scenario.random.u8(..3) == 0 {
            scenario.invite_stranger(seed);
        }
        if has_twins {
            scenario.note("fault: twins".to_owned());
        }
        scenario.connect_everywhere();
        scenario
    }

    pub(crate) fn start(&mut self, plan: Plan) {
        let runs = match self.runs.first() {
            Some(first) => first.of_process(self.runs.len()),
            None => Runs::new(self.world.mock.clone()),
        };
        self.world.start(plan, &runs.handlers());
        self.runs.push(runs);
    }

    fn invite_stranger(&mut self, seed: u64) {
        let lie = self.world.processes[0].shards[0].endpoint.clone();
        let runs = self.runs[0].of_process(STRANGER);
        let rude = Rude::new(&self.world, seed, runs, lie);
        self.ledger.add_stranger(rude.stranger.engine.node());
        self.world.strangers.push(rude);
        self.note("fault: stranger".to_owned());
    }

    /// From a shard of each process to every shard of every process, itself included, and to where
    /// nobody listens.
    fn connect_everywhere(&mut self) {
        let endpoints = self.endpoints();
        for process in 0..self.world.processes.len() {
            for to in &endpoints {
                self.connect(process, to.clone());
            }
        }
    }

    /// Where shards listen or have listened, and where nobody does.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        let processes = &self.world.processes;
        let nodes = processes.iter().flat_map(|process| &process.shards);
        let mut endpoints: Vec<String> = nodes.map(|node| node.endpoint.clone()).collect();
        let strangers = self.world.strangers.iter();
        endpoints.extend(strangers.map(|it| it.stranger.endpoint.clone()));
        endpoints.push("tcp://127.0.0.1:9999".to_owned());
        endpoints
    }

    pub(crate) fn connect(&mut self, process: usize, to: String) {
        let client = &self.world.processes[process].client;
        // Refused by a stopped process: then there is no handle to speak of.
        let Ok(peer) = client.connect(&to) else {
            return;
        };
        let mut lanes = [[(0, 0); PLACES]; 2];
        for (lane, _) in lanes.as_flattened_mut() {
            *lane = self.next_lane;
            self.next_lane += 1;
        }
        self.peers.push(Connected {
            peer: Some(peer),
            process,
            to,
            lanes,
        });
    }

    pub(crate) fn send(&mut self) {
        let at = self.random.usize(..self.peers.len());
        let random = &mut self.random;
        let connected = &mut self.peers[at];
        let Some(peer) = &connected.peer else { return };
        let is_local = random.bool();
        let (handler, place) = HANDLERS[random.usize(..HANDLERS.len())];
        let (lane, sequence) = &mut connected.lanes[usize::from(is_local)][place];
        *sequence += 1;
        let order = Order {
            id: self.next_id,
            // What waits for the pool, a batch or its turn may be overtaken by what does not.
            lane: *lane | lanes_of(handler),
            sequence: *sequence,
            conduct: random
                .choice([
                    Conduct::Return,
                    Conduct::Return,
                    Conduct::Fail,
                    Conduct::Panic,
                ])
                .expect("is not empty"),
            takes_us: random.u32(..5_000),
        };
        self.next_id += 1;
        let mode = [Mode::OneWay, Mode::Confirm, Mode::Request][random.usize(..3)];
        let within = Duration::from_micros(random.u64(1..20_000));
        let now = self.world.clock.now();
        let to = (at, peer);
        let process = &self.world.processes[connected.process];
        let node = &process.shards[peer.shard()];
        let result = if is_local {
            let Some(client) = node.client() else {
                return;
            };
            let message = client.message(handler).route_key(ROUTE_KEYS[place]);
            Sent::send(message, order, mode, to, now, within)
        } else {
            let message = process.client.message(handler).route_key(ROUTE_KEYS[place]);
            Sent::send(message, order, mode, to, now, within)
        };
        if crate::is_replay() {
            println!("{order:?} {mode:?} {handler} by {at}, by a task: {is_local}, {within:?}");
        }
        match result {
            Ok(mut sent) if sent.is_pending() => {
                if let Some(until) = node.stalled_until() {
                    sent.excuse(until);
                }
                self.pending.push(sent);
            }
            Ok(sent) => self.sent.push(sent),
            Err(why) => self.note(format!("{} refused: {why:?}", order.id)),
        }
    }

    /// Lets this much time pass.
    fn pass(&mut self, time: Duration) {
        let until = self.world.now() + time;
        loop {
            // Handlers that spin take time while the shards settle.
            let began = self.world.now();
            let (pending, sent, trace) = (&mut self.pending, &mut self.sent, &mut self.trace);
            let ledger = &self.ledger;
            self.world.settle(|now| {
                let round = ledger.end_round();
                for mut ended in pending.extract_if(.., |it| it.poll(began)) {
                    let (id, end) = (ended.order.id, ended.end_name());
                    log(trace, now, &format!("{id} {end}"));
                    ended.ended_in = round;
                    sent.push(ended);
                }
            });
            self.check_depths();
            let now = self.world.now();
            let overdue = self.pending.iter().find(|it| it.is_overdue(now));
            assert!(overdue.is_none(), "{:?}", overdue.map(|it| it.order));
            if now >= until {
                return;
            }
            self.world.advance(until);
        }
    }

    /// Waits for what is under way, compares the books, drains whoever still runs, and compares
    /// again.
    fn end(mut self) -> Trace {
        self.pass(LONG);
        assert!(self.pending.is_empty(), "a call never ended");
        // One-way messages wait for as long as it takes to connect: who hears them may call then.
        self.world.strangers.iter_mut().for_each(Rude::hush);
        self.pass(LONG / 2);
        self.check_quiet();
        for process in 0..self.world.processes.len() {
            if self.world.processes[process].is_running() {
                let within = Duration::from_millis(100);
                self.world.processes[process].is_idle = true;
                self.world.drain(process, within);
            }
        }
        self.pass(LONG);
        let runs = self.runs[0].take();
        check::check_runs(&self.sent, &runs, &self.ledger);
        let process_of = |engine| self.process_of(engine);
        check::check_passages(&self.sent, &runs, &self.ledger, process_of);
        for (at, connected) in self.peers.iter().enumerate() {
            if let Some(peer) = &connected.peer {
                check::check_account(&self.sent, at, peer.account());
            }
        }
        let mut total = Counters::default();
        for process in 0..self.world.processes.len() {
            if !self.world.processes[process].is_crashed {
                total += self.check_process(process, &runs);
            }
        }
        self.note_lost();
        if total.late_answers > 0 {
            self.note("late answers".to_owned());
        }
        self.note(format!("{total:?}"));
        self.trace
    }

    fn check_depths(&self) {
        for process in &self.world.processes {
            for node in &process.shards {
                if let Some(depths) = node.depths() {
                    check::check_depths(&depths, &self.world.limits, process.shards.len());
                }
            }
        }
    }

    /// Whoever holds credit has a message that has not left: only those to nobody remain by now.
    /// And nothing else is under way.
    fn check_quiet(&self) {
        let processes = self.world.processes.iter();
        for node in processes.flat_map(|process| &process.shards) {
            if let Some(depths) = node.depths() {
                let credited = node.credited();
                assert!(
                    credited <= depths.queued,
                    "credit for {credited}: {depths:?}"
                );
                let mut others = depths;
                (others.queued, others.queued_most) = (0, 0);
                assert_eq!(others, Depths::default());
            }
        }
    }

    /// Compares the books of a process that was drained with what it did.
    fn check_process(&self, number: usize, runs: &[Run]) -> Counters {
        let process = &self.world.processes[number];
        let (total, metrics) = process.last_words();
        let nodes = || process.shards.iter().map(|node| node.number);
        let arrived = nodes().map(|it| self.ledger.count_arrived(it)).sum();
        let arrived_for = |handler: &str| {
            let nodes = process.shards.iter().map(|node| node.number);
            nodes
                .map(|it| self.ledger.count_arrived_for(it, handler))
                .sum()
        };
        check::check_handlers(&metrics, arrived_for, process.is_idle, &total);
        let is_its = |sent: &&Sent| self.peers[sent.peer].process == number;
        let sent: Vec<&Sent> = self.sent.iter().filter(is_its).collect();
        let runs = runs.iter().filter(|run| run.process == number).count();
        let stopped = self.runs[number].stopped();
        check::check_counters(&sent, runs, arrived, stopped, &total);
        total
    }

    /// The process that an engine belongs to.
    fn process_of(&self, engine: usize) -> usize {
        let processes = self.world.processes.iter();
        let is_its = |process: &Process| process.shards.iter().any(|it| it.number == engine);
        processes.map(is_its).position(|it| it).unwrap_or(STRANGER)
    }

    /// How connections were lost, a line for each reason.
    fn note_lost(&mut self) {
        for why in self.world.plant.take_lost() {
            self.note(why);
        }
    }

    pub(crate) fn note(&mut self, what: String) {
        log(&mut self.trace, self.world.now(), &what);
    }
}

fn lanes_of(handler: &str) -> u32 {
    match handler {
        _ if handler.starts_with("block") => POOL_LANES,
        _ if handler.starts_with("gather") => BATCH_LANES,
        _ if handler.starts_with("line") => LINE_LANES,
        _ => 0,
    }
}

/// Adds a line to a trace; one that is replayed shows it at once.
fn log(trace: &mut Trace, now: Instant, what: &str) {
    let line = format!("{now:?} {what}");
    if crate::is_replay() {
        println!("{line}");
    }
    trace.push(line);
}

pub(crate) fn random_limits(random: &mut Rng) -> Limits {
    let small = random.bool();
    let size = |random: &mut Rng, small_max: usize| match small {
        true => random.usize(1..=small_max),
        false => 1_000,
    };
    let outgoing_messages_max = size(random, 8);
    let outgoing_bytes_max = random.usize(100..100_000);
    Limits {
        shard: ShardOptions {
            frames_max: 16,
            close_within: Duration::from_millis(100),
            turn_messages_max: random.usize(1..16),
            message_bytes_max: 1 << 10,
            spawned_max: size(random, 3),
            outstanding_max: size(random, 30),
            outgoing_messages_max,
            outgoing_bytes_max,
            inbox_capacity: size(random, 20),
            reconnect: Pauses {
                first: Duration::from_millis(10),
                longest: Duration::from_millis(100),
            },
            inline_budget: Duration::from_micros(100),
            has_histograms: false,
            shedding: random.bool().then(|| Shedding {
                target: Duration::from_micros(random.u64(50..2_000)),
                after: Duration::from_micros(random.u64(100..5_000)),
            }),
            buffered_bytes_max: match random.u8(..4) {
                0 => random.usize(1..100),
                _ => 1 << 20,
            },
        },
        outgoing_messages_max,
        outgoing_bytes_max,
        pool_threads: random.usize(1..4),
        pool_queue: size(random, 4),
        reconnect: Duration::from_micros(random.u64(1_000..10_000)),
        ring_capacity: random.usize(1..=3),
        heartbeat_timeout: Duration::from_millis(random.u64(10..40)),
        handshake: Duration::from_millis(random.u64(10..40)),
        slow_consumer: Duration::from_micros(random.u64(500..20_000)),
    }
}
