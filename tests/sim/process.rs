//! One process: its shards, and all that glommio, the runtime and the kernel would be to them.

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
    client::{Client, ClientOptions, Connect, LocalClient, ShardPort},
    engine::{Engine, EngineOptions, sim::Network},
    handler::{Handler, Registry, ShardInfo},
    metrics::{Counters, Snapshot},
    peers::PeerShared,
    route::{self, Doorbell, Inbox, Port, inbox},
    shard::{
        BlockingPort, BlockingPorts, Change, Changed, Command, Depths, Drained, LocalFuture, Parts,
        Shard,
    },
    wire::{HandlerEntry, Hello},
};
use crossbeam_channel::Receiver;
use quanta::Instant;
use uuid::Uuid;

use crate::{
    check::owed_max,
    pool::Pool,
    tampered::{Plant, Tampered},
    world::{Limits, World},
};

/// What a process is to be.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) first_cpu: usize,
    pub(crate) tells_shards: bool,
    /// What it calls itself.
    pub(crate) instance: Uuid,
    /// Where each of its shards listens; port 0 for a free one.
    pub(crate) endpoints: Vec<String>,
    /// Where it runs, by its own words.
    pub(crate) host: String,
}

pub(crate) struct Process {
    pub(crate) client: Client,
    pub(crate) pool: Pool,
    pub(crate) shards: Vec<Node>,
    /// As it was started.
    pub(crate) plan: Plan,
    /// Its handlers'.
    pub(crate) names: Arc<[String]>,
    pub(crate) is_crashed: bool,
    /// It had nothing to do when it was told to stop.
    pub(crate) is_idle: bool,
}

/// A shard, and all that glommio and the runtime would be to it.
pub(crate) struct Node {
    /// Its engine's, on the network.
    pub(crate) number: usize,
    pub(crate) endpoint: String,
    /// `None` once it is over: its inboxes are gone then.
    shard: Option<Shard<Tampered>>,
    tasks: Rc<RefCell<VecDeque<Task>>>,
    commands: Port<Command>,
    drained: Option<Receiver<Drained>>,
    /// Its last turn did something: then another follows at once.
    worked: bool,
    /// When it wanted to be woken, after that turn.
    wakes_at: Option<Instant>,
    /// Until then it takes no turn.
    stalled_until: Option<Instant>,
    /// The connections that are asked for, on their way to the shard.
    asked: Option<Inbox<Connect>>,
    connect: Port<Connect>,
    /// What callers share with it, by connection that was asked for.
    shared: Vec<Arc<PeerShared>>,
    plant: Rc<Plant>,
}

impl Process {
    pub(crate) fn start(plan: Plan, handlers: &[Handler], world: &World) -> Self {
        let limits = world.limits;
        let Plan {
            first_cpu,
            tells_shards,
            instance,
            ref endpoints,
            ref host,
        } = plan;
        let shards = endpoints.len();
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
            // Between the two the test looks on.
            let (connects, asked) = inbox(64, &doorbell);
            let (connect, to_connect) = inbox(64, &doorbell);
            let (submissions, to_submit) = inbox(limits.shard.inbox_capacity, &doorbell);
            ports.push(ShardPort {
                connects,
                submissions,
            });
            doorbells.push(doorbell.clone());
            inboxes.push((doorbell, (asked, connect, to_connect), to_submit));
        }
        let seats = route::seats(shards).into_iter();
        let joining: Vec<_> = seats.map(|seat| seat.offer(limits.ring_capacity)).collect();
        let mut meshes = joining
            .into_iter()
            .map(|it| it.complete(&doorbells).expect("all have offered"));
        let client = Client::new(ports, world.clock.clone(), client_options);
        let sizes = (limits.pool_threads, limits.pool_queue);
        let (pool, jobs) = Pool::new(first_cpu as u64, sizes, limits.shard.shedding);
        let under_way_max = limits.pool_queue + limits.pool_threads;
        let count = shards;
        let engines: Vec<(Tampered, String)> = endpoints
            .iter()
            .map(|at| {
                let engine = world.network.engine(engine_options(&limits));
                let (most, owed) = (limits.outgoing_messages_max, owed_max(&limits, shards));
                let mut engine = Tampered::new(engine, most, owed, world.plant.clone());
                let at = at.parse().expect("is an endpoint");
                let endpoint = engine.listen(&at).expect("is free");
                (engine, endpoint.to_string())
            })
            .collect();
        let entry = |it: &Handler| HandlerEntry::new(it.name(), it.affinity(count));
        let hello = Hello {
            endpoints: engines.iter().map(|(_, it)| it.clone()).collect(),
            shards: if tells_shards { count } else { 0 },
            handlers: handlers.iter().map(entry).collect(),
            host: host.clone(),
            ..Hello::of_instance(instance)
        };
        let shards = inboxes.into_iter().zip(engines).enumerate();
        let shards = shards.map(|(number, (inboxes, (engine, endpoint)))| {
            let (doorbell, (asked, connect, connects), submissions) = inboxes;
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
                clock: world.clock.clone(),
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
                number: engine.node(),
                wakes_at: None,
                stalled_until: None,
                asked: Some(asked),
                connect,
                shared: Vec::new(),
                plant: world.plant.clone(),
                endpoint,
                shard: Some(Shard::new(engine, &hello, parts)),
                tasks,
                commands,
                drained: None,
                worked: true,
            }
        });
        let shards: Vec<Node> = shards.collect();
        let endpoints = shards.iter().map(|node| node.endpoint.clone()).collect();
        Self {
            client,
            pool,
            shards,
            plan: Plan { endpoints, ..plan },
            names: handlers.iter().map(|it| it.name().to_owned()).collect(),
            is_crashed: false,
            is_idle: false,
        }
    }

    /// One turn of what there is. True if anything happened.
    pub(crate) fn turn(&mut self, now: Instant, network: &Network) -> bool {
        let mut worked = false;
        for node in &mut self.shards {
            worked |= node.turn(now, network);
        }
        worked | (!self.is_crashed && self.pool.turn(now))
    }

    /// When it must be turned though nothing arrives.
    pub(crate) fn next_wake(&self, now: Instant) -> Option<Instant> {
        let nodes = self.shards.iter().filter_map(|node| node.next_wake(now));
        let pool = self.pool.next_end().filter(|_| !self.is_crashed);
        nodes.chain(pool).min()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.shards[0].is_draining()
    }

    /// Whether it takes part: it has not crashed, drained or been told to.
    pub(crate) fn is_running(&self) -> bool {
        !self.is_crashed && !self.is_draining()
    }

    /// What its shards have counted in their lives, in all and by handler. Told once, and only by a
    /// process that is over.
    pub(crate) fn last_words(&self) -> (Counters, Snapshot) {
        let mut total = Counters::default();
        let mut metrics = Snapshot::new(self.names.clone(), self.shards.len());
        for node in &self.shards {
            assert!(node.is_over(), "a shard outlived its drain");
            let words = node.last_words().expect("a shard that is over says so");
            total += words.counters;
            metrics.add(words.shard, &words.interval);
        }
        total.settle_hops();
        (total, metrics)
    }

    /// Ends at once, as by kill -9.
    pub(crate) fn crash(&mut self) {
        self.is_crashed = true;
        self.shards.iter_mut().for_each(Node::crash);
    }
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

impl Node {
    /// A turn, unless the shard would sleep now. True if it did something.
    pub(crate) fn turn(&mut self, now: Instant, network: &Network) -> bool {
        if let Some(until) = self.stalled_until {
            if now < until {
                return false;
            }
            self.stalled_until = None;
            network.resume(self.number);
        }
        self.pass_connects();
        let has_polled = self.poll_tasks();
        let Some(shard) = &mut self.shard else {
            return false;
        };
        let wakes = self.wakes_at.into_iter().chain(shard.next_wake(now));
        let is_due = wakes.min().is_some_and(|at| at <= now);
        if !(self.worked || has_polled || is_due) && shard.may_park() {
            return false;
        }
        self.take_turn(now)
    }

    fn pass_connects(&mut self) {
        let Self {
            asked,
            connect,
            shared,
            plant,
            ..
        } = self;
        while let Some(asked) = asked.as_ref().and_then(Inbox::pop) {
            shared.push(asked.shared.clone());
            plant.share(asked.shared.clone());
            let passed = connect.try_send(asked);
            assert!(passed.is_ok(), "the shard takes all of them in each turn");
        }
    }

    /// What it holds, unless it is over.
    pub(crate) fn depths(&self) -> Option<Depths> {
        self.shard.as_ref().map(Shard::depths)
    }

    /// Messages for which callers hold credit.
    pub(crate) fn credited(&self) -> usize {
        self.shared.iter().map(|it| it.credit.waiting()).sum()
    }

    /// Takes no turn until then, as if a handler spun or the process was stopped.
    pub(crate) fn stall(&mut self, now: Instant, until: Instant, network: &Network) {
        if !self.is_over() {
            network.pause(self.number, now);
            self.stalled_until = self.stalled_until.max(Some(until));
        }
    }

    pub(crate) fn stalled_until(&self) -> Option<Instant> {
        self.stalled_until
    }

    /// When it must be turned though nothing arrives.
    pub(crate) fn next_wake(&self, now: Instant) -> Option<Instant> {
        let shard = self.shard.as_ref()?;
        self.stalled_until.or_else(|| shard.next_wake(now))
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
        self.wakes_at = shard.next_wake(now);
        if turn.is_over {
            (self.shard, self.asked) = (None, None);
            self.tasks.borrow_mut().clear();
        }
        turn.worked || turn.is_over
    }

    /// For code on the shard; nobody is there once it is over.
    pub(crate) fn client(&self) -> Option<&LocalClient> {
        self.shard.as_ref().map(Shard::client)
    }

    /// Has it change what it serves; it tells the receiver when it has.
    pub(crate) fn change(&self, change: Change) -> Receiver<Changed> {
        let (reply, changed) = crossbeam_channel::unbounded();
        let told = self.commands.try_send(Command::Change { change, reply });
        assert!(told.is_ok(), "a shard takes commands until it is over");
        changed
    }

    /// Tells it to stop, gracefully or, without time, at once.
    pub(crate) fn drain(&mut self, until: Instant) {
        let (done, drained) = crossbeam_channel::unbounded();
        self.drained = Some(drained);
        let told = self.commands.try_send(Command::Drain { until, done });
        assert!(told.is_ok(), "a shard takes commands until it is over");
    }

    /// Ends at once, as by kill -9.
    pub(crate) fn crash(&mut self) {
        self.tasks.borrow_mut().clear();
        (self.shard, self.asked) = (None, None);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.drained.is_some()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.shard.is_none()
    }

    /// What the shard counted in its life, once it is over.
    pub(crate) fn last_counters(&self) -> Option<Counters> {
        Some(self.last_words()?.counters)
    }

    /// The same, for each handler, too. Told once.
    fn last_words(&self) -> Option<Drained> {
        self.drained.as_ref()?.try_recv().ok()
    }
}

pub(crate) fn engine_options(limits: &Limits) -> EngineOptions {
    let second = Duration::from_secs(1);
    EngineOptions {
        message_bytes_max: limits.shard.message_bytes_max,
        frames_max: 16,
        buffered_bytes_max: 256 << 20,
        slow_consumer: limits.slow_consumer,
        handshake_bytes_max: 4096,
        unauthenticated_max: 128,
        outgoing_messages_max: limits.outgoing_messages_max,
        outgoing_bytes_max: limits.outgoing_bytes_max,
        handshake: limits.handshake,
        heartbeat_interval: limits.heartbeat_timeout / 3,
        heartbeat_timeout: limits.heartbeat_timeout,
        reconnect_min: limits.reconnect,
        reconnect_max: limits.reconnect,
        hwm: 1000,
        linger: second,
    }
}
