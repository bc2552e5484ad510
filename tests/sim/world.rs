//! Processes of some shards each on one simulated network, and the time that they share.

use std::{
    cell::RefCell,
    collections::VecDeque,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Wake},
    time::Duration,
};

use corelane::{
    client::{Client, ClientOptions, LocalClient, ShardPort},
    engine::{
        Engine, EngineOptions,
        sim::{Network, Sim, Weather},
    },
    handler::{Handler, Registry, ShardInfo},
    metrics::Counters,
    route::{self, Doorbell, Port, inbox},
    shard::{
        BlockingPort, BlockingPorts, Command, Drained, LocalFuture, Parts, Shard, ShardOptions,
    },
    wire::{HandlerEntry, Hello},
};
use crossbeam_channel::Receiver;
use quanta::{Clock, Instant, Mock};
use uuid::Uuid;

use crate::pool::Pool;

/// Rounds at one moment after which the shards are held to be going in circles.
const ROUNDS_MAX: usize = 10_000;

/// The limits of all processes of a world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) shard: ShardOptions,
    pub(crate) outgoing_messages_max: usize,
    pub(crate) outgoing_bytes_max: usize,
    pub(crate) pool_threads: usize,
    pub(crate) pool_queue: usize,
    pub(crate) reconnect: Duration,
    pub(crate) ring_capacity: usize,
}

pub(crate) struct World {
    pub(crate) clock: Clock,
    pub(crate) network: Network,
    pub(crate) processes: Vec<Process>,
    pub(crate) mock: Arc<Mock>,
    limits: Limits,
}

pub(crate) struct Process {
    pub(crate) client: Client,
    pub(crate) pool: Pool,
    pub(crate) shards: Vec<Node>,
}

/// A shard, and all that glommio and the runtime would be to it.
pub(crate) struct Node {
    pub(crate) endpoint: String,
    /// `None` once it is over: its inboxes are gone then.
    shard: Option<Shard<Sim>>,
    tasks: Rc<RefCell<VecDeque<Task>>>,
    commands: Port<Command>,
    drained: Option<Receiver<Drained>>,
    /// Its last turn did something: then another follows at once.
    worked: bool,
}

/// A task in a shard's executor. It is polled only when it was woken: a wake-up that the library
/// forgot is one that never comes.
struct Task {
    future: LocalFuture,
    woken: Arc<Woken>,
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

impl Task {
    fn new(future: LocalFuture) -> Self {
        let woken = Arc::new(Woken(AtomicBool::new(true)));
        Self { future, woken }
    }

    /// True if it has ended.
    fn poll(&mut self) -> bool {
        self.woken.0.store(false, Relaxed);
        let waker = self.woken.clone().into();
        let mut cx = Context::from_waker(&waker);
        self.future.as_mut().poll(&mut cx).is_ready()
    }
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
            limits,
        }
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
        let limits = self.limits;
        let client_options = ClientOptions {
            message_bytes_max: limits.shard.message_bytes_max,
            outgoing_messages_max: limits.outgoing_messages_max,
            outgoing_bytes_max: limits.outgoing_bytes_max,
            deadline: Duration::from_secs(30),
        };
        let (mut ports, mut inboxes) = (Vec::new(), Vec::new());
        let mut doorbells = Vec::new();
        for _ in 0..shards {
            let doorbell = Arc::new(Doorbell::default());
            let (connects, to_connect) = inbox(64, &doorbell);
            let (submissions, to_submit) = inbox(limits.shard.inbox_capacity, &doorbell);
            ports.push(ShardPort {
                connects,
                submissions,
            });
            doorbells.push(doorbell.clone());
            inboxes.push((doorbell, to_connect, to_submit));
        }
        let seats = route::seats(shards).into_iter();
        let joining: Vec<_> = seats.map(|seat| seat.offer(limits.ring_capacity)).collect();
        let mut meshes = joining
            .into_iter()
            .map(|it| it.complete(&doorbells).expect("all have offered"));
        let client = Client::new(ports, self.clock.clone(), client_options);
        let (pool, jobs) = Pool::new(first_cpu as u64, limits.pool_threads, limits.pool_queue);
        let under_way_max = limits.pool_queue + limits.pool_threads;
        let count = shards;
        let engines: Vec<(Sim, String)> = (0..count)
            .map(|_| {
                let mut engine = self.network.engine(engine_options(&limits));
                let anywhere = "tcp://127.0.0.1:0".parse().expect("is an endpoint");
                let endpoint = engine.listen(&anywhere).expect("the network has ports");
                (engine, endpoint.to_string())
            })
            .collect();
        let entry = |it: &Handler| HandlerEntry::new(it.name(), it.affinity(count));
        let hello = Hello {
            endpoints: engines.iter().map(|(_, it)| it.clone()).collect(),
            shards: if tells_shards { count } else { 0 },
            handlers: handlers.iter().map(entry).collect(),
            ..Hello::of_instance(Uuid::from_u128(first_cpu as u128))
        };
        let shards = inboxes.into_iter().zip(engines).enumerate();
        let shards = shards.map(|(number, (inboxes, (engine, endpoint)))| {
            let (doorbell, connects, submissions) = inboxes;
            let info = ShardInfo {
                shard: number,
                shards: count,
                cpu: first_cpu + number,
                numa_node: 0,
            };
            let hello = Hello {
                shard: Some(number),
                ..hello.clone()
            };
            let (commands, to_command) = inbox(16, &doorbell);
            let blocking = BlockingPort::new(jobs.clone(), under_way_max, &doorbell);
            let tasks = Rc::new(RefCell::new(VecDeque::new()));
            let spawned = tasks.clone();
            let parts = Parts {
                info,
                options: limits.shard,
                clock: self.clock.clone(),
                registry: Registry::new(handlers, &info),
                connects,
                submissions,
                commands: to_command,
                doorbell,
                mesh: meshes.next().expect("is one for each"),
                client: client.clone(),
                spawner: Box::new(move |task| spawned.borrow_mut().push_back(Task::new(task))),
                jobs: BlockingPorts {
                    pool: Some(blocking),
                    operator: None,
                },
            };
            Node {
                endpoint,
                shard: Some(Shard::new(engine, &hello, parts)),
                tasks,
                commands,
                drained: None,
                worked: true,
            }
        });
        let shards = shards.collect();
        self.processes.push(Process {
            client,
            pool,
            shards,
        });
    }

    /// One turn of every shard. True if any of them did something.
    pub(crate) fn turn_all(&mut self) -> bool {
        let now = self.now();
        let mut worked = false;
        for process in &mut self.processes {
            for node in &mut process.shards {
                worked |= node.turn(now);
            }
            worked |= process.pool.turn(now);
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
        let nodes = self.processes.iter().flat_map(|process| &process.shards);
        let wakes = nodes.filter_map(|node| node.shard.as_ref()?.next_wake(now));
        let ends = self.processes.iter().filter_map(|it| it.pool.next_end());
        let next = wakes
            .chain(ends)
            .min()
            .map_or(until, |next| next.min(until));
        assert!(
            next > now || until <= now,
            "a shard without work wants to be woken at once: it would never sleep"
        );
        self.mock.increment(next.saturating_duration_since(now));
        next < until
    }

    /// Has a process stop gracefully, or at once with `Duration::ZERO`.
    pub(crate) fn drain(&mut self, process: usize, within: Duration) {
        let until = self.now() + within;
        for node in &mut self.processes[process].shards {
            let (done, drained) = crossbeam_channel::unbounded();
            node.drained = Some(drained);
            let told = node.commands.try_send(Command::Drain { until, done });
            assert!(told.is_ok(), "a shard takes commands until it is over");
        }
    }
}

impl Node {
    /// A turn, unless the shard would sleep now. True if it did something.
    fn turn(&mut self, now: Instant) -> bool {
        let has_polled = self.poll_tasks();
        let Some(shard) = &mut self.shard else {
            return false;
        };
        let is_due = shard.next_wake(now).is_some_and(|at| at <= now);
        if !(self.worked || has_polled || is_due) && shard.may_park() {
            return false;
        }
        self.take_turn(now)
    }

    /// As glommio would between two turns. True if any was woken.
    fn poll_tasks(&mut self) -> bool {
        let live = self.tasks.borrow().len();
        let mut has_polled = false;
        for _ in 0..live {
            let Some(mut task) = self.tasks.borrow_mut().pop_front() else {
                break;
            };
            let is_woken = task.woken.0.load(Relaxed);
            has_polled |= is_woken;
            if !(is_woken && task.poll()) {
                self.tasks.borrow_mut().push_back(task);
            }
        }
        has_polled
    }

    fn take_turn(&mut self, now: Instant) -> bool {
        let Some(shard) = &mut self.shard else {
            return false;
        };
        let turn = shard.turn(now);
        self.worked = turn.worked;
        if turn.is_over {
            self.shard = None;
            self.tasks.borrow_mut().clear();
        }
        turn.worked || turn.is_over
    }

    /// For code on the shard; nobody is there once it is over.
    pub(crate) fn client(&self) -> Option<&LocalClient> {
        self.shard.as_ref().map(Shard::client)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.drained.is_some()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.shard.is_none()
    }

    /// What the shard counted in its life, once it is over.
    pub(crate) fn last_counters(&self) -> Option<Counters> {
        Some(self.drained.as_ref()?.try_recv().ok()?.counters)
    }
}

fn engine_options(limits: &Limits) -> EngineOptions {
    let second = Duration::from_secs(1);
    EngineOptions {
        message_bytes_max: limits.shard.message_bytes_max,
        frames_max: 16,
        buffered_bytes_max: 256 << 20,
        slow_consumer: second,
        handshake_bytes_max: 4096,
        unauthenticated_max: 128,
        outgoing_messages_max: limits.outgoing_messages_max,
        outgoing_bytes_max: limits.outgoing_bytes_max,
        handshake: second,
        heartbeat_interval: second,
        heartbeat_timeout: 3 * second,
        reconnect_min: limits.reconnect,
        reconnect_max: limits.reconnect,
        hwm: 1000,
        linger: second,
    }
}
