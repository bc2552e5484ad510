//! From a configuration to running shards.

use std::{
    sync::{Arc, Mutex},
    thread,
    time::{Duration, SystemTime},
};

use crossbeam_channel::{Receiver, Sender};
use quanta::Clock;
use rustix::thread::CpuSet;
use uuid::Uuid;

use super::{
    Dumper, RunningShard, Runtime,
    collector::Collector,
    listening::{await_listening, describe},
    operator::{Operator, Orders},
    pool::{Pool, join_within},
    roster::{self, Handlers},
    thread::{self as shard_thread, ShardThread},
};
use crate::{
    client::{Client, ClientOptions, Connect, ShardPort, Submission},
    config::{self, Config, Endpoint, Idle, Limits, Settings},
    engine::{
        Engine, EngineOptions, Pauses,
        libzmq::{Context, Libzmq},
        native::{Native, Resolver},
    },
    error::{EngineError, StartError},
    handler::{Handler, Registry, ShardInfo},
    metrics::DumpWriter,
    placement::{self, Place, Plan},
    route::{self, Doorbell, Inbox, Port, Seat, inbox},
    shard::{self, BlockingPorts, Command, Parcel, Parts, Shard, ShardOptions, Shedding},
    wire::Hello,
};

/// Commands that wait for one shard at most.
const COMMANDS_MAX: usize = 64;

/// What the engines of all shards share.
pub(super) enum EngineContext {
    Native(NameThread),
    Libzmq(Context),
}

/// The thread that resolves host names, and where it is asked.
pub(super) struct NameThread {
    /// `None` once it is to end.
    resolver: Option<Resolver>,
    thread: Option<thread::JoinHandle<()>>,
}

/// How long the end of a runtime waits for a name that is being resolved.
const NAME_PATIENCE: Duration = Duration::from_millis(500);

/// By now the shards have ended, and with them whoever asked. A look-up cannot be called off: one
/// that takes long ends on its own, and its thread with it.
impl Drop for NameThread {
    fn drop(&mut self) {
        self.resolver = None;
        join_within(self.thread.take().into_iter().collect(), NAME_PATIENCE);
    }
}

/// What a shard's thread is given.
struct Seed {
    place: Place,
    info: ShardInfo,
    listen: Vec<Endpoint>,
    handlers: Arc<[Handler]>,
    shard_options: ShardOptions,
    engine_options: EngineOptions,
    idle: Idle,
    clock: Clock,
    client: Client,
    connects: Inbox<Connect>,
    submissions: Inbox<Submission>,
    commands: Inbox<Command>,
    jobs: BlockingPorts,
    doorbell: Arc<Doorbell>,
    /// Of all shards, by number.
    doorbells: Arc<[Arc<Doorbell>]>,
    seat: Seat<Parcel>,
    ring_capacity: usize,
    listening: Sender<(usize, Result<Vec<Endpoint>, EngineError>)>,
    /// The hello to say, once every shard listens; disconnected if one of them cannot.
    go: Receiver<Arc<Hello>>,
}

pub(super) fn start(
    config: Config,
    handlers: Vec<Handler>,
    orders: Orders,
) -> Result<Runtime, StartError> {
    let settings = config.check()?;
    let plan = placement::place(&settings)?;
    let listen = settings.listen_by_shard(plan.shards.len())?;
    Registry::check(&handlers, plan.shards.len())?;
    Pool::check(&handlers, &settings)?;
    shard::are_possible(plan.shards.len())?;
    let clock = Clock::new();
    let engine = EngineContext::new(&settings, &plan)?;
    let pool = Pool::start(&handlers, &settings, &plan, &clock)?;
    let pool = pool.map(|pool| Arc::new(Mutex::new(pool)));
    let operators_thread = Pool::start_operator(&plan, &clock)?;
    let instance = Uuid::new_v4();
    let operator = Arc::new(Operator::new(instance, &clock, &settings, orders));
    let built_in = operator.handlers(&handlers, plan.shards.len());
    let all_handlers: Arc<[Handler]> = handlers.iter().cloned().chain(built_in).collect();
    let (ports, inboxes) = make_inboxes(&settings, plan.shards.len());
    let client = make_client(&settings, &ports, &clock);

    let (listening, listens) = crossbeam_channel::unbounded();
    let (mut shards, mut go) = (Vec::new(), Vec::new());
    let doorbells: Arc<[Arc<Doorbell>]> = inboxes.iter().map(|it| it.doorbell.clone()).collect();
    let seats = route::seats(plan.shards.len());
    for ((((place, listen), inboxes), ports), seat) in plan
        .shards
        .iter()
        .zip(listen)
        .zip(inboxes)
        .zip(ports)
        .zip(seats)
    {
        let info = ShardInfo {
            shard: place.shard,
            shards: plan.shards.len(),
            cpu: place.cpu,
            numa_node: place.numa_node,
        };
        let (say, hello) = crossbeam_channel::bounded(1);
        go.push(say);
        let seed = Seed {
            place: *place,
            info,
            listen,
            handlers: all_handlers.clone(),
            shard_options: shard_options(&settings),
            engine_options: engine_options(&settings),
            idle: settings.idle(),
            clock: clock.clone(),
            client: client.clone(),
            connects: inboxes.connects,
            submissions: inboxes.submissions,
            commands: inboxes.commands,
            jobs: BlockingPorts {
                pool: pool
                    .as_ref()
                    .map(|pool| Pool::lock(pool).port(&inboxes.doorbell)),
                operator: Some(operators_thread.port(&inboxes.doorbell)),
            },
            doorbell: inboxes.doorbell,
            doorbells: doorbells.clone(),
            seat,
            ring_capacity: settings.limits().ring_capacity,
            listening: listening.clone(),
            go: hello,
        };
        let thread = match spawn_shard(seed, &engine) {
            Ok(thread) => Some(thread),
            Err(error) => {
                drop(go);
                join(shards);
                return Err(error);
            }
        };
        shards.push(RunningShard {
            info,
            endpoints: Vec::new(),
            commands: ports.commands,
            thread,
        });
    }
    drop(listening);
    // The dump's file last: no other failure then leaves one behind.
    let dump = match await_listening(&mut shards, &listens).and_then(|()| make_dump(&settings)) {
        Ok(dump) => dump,
        Err(error) => {
            drop(go);
            join(shards);
            return Err(error);
        }
    };
    let names: Arc<[String]> = handlers
        .iter()
        .map(|handler| handler.name().to_owned())
        .collect();
    let commands = shards.iter().map(|shard| shard.commands.clone()).collect();
    let has_dump = dump.is_some();
    let collector = Arc::new(Mutex::new(Collector::new(names, commands, dump)));
    // Before any shard serves: whoever asks finds it there.
    operator.collect_from(&collector);
    let hello = Arc::new(describe(instance, &shards, &handlers));
    for say in go {
        let _ = say.send(hello.clone());
    }
    let roster = Handlers::new(roster::Parts {
        handlers,
        shards: shards.iter().map(|shard| shard.commands.clone()).collect(),
        hello,
        collector: collector.clone(),
        client: client.clone(),
        pool: pool.as_ref().map(Arc::downgrade),
    });
    let mut runtime = Runtime {
        instance,
        handlers: roster,
        shards,
        client,
        clock,
        drain: settings.limits().drain,
        collector,
        dumper: None,
        operator,
        _pool: pool,
        _operators_thread: operators_thread,
        _engine: engine,
    };
    if has_dump {
        let interval = settings.metrics().dump_interval;
        runtime.dumper = Some(spawn_dumper(&runtime.collector, interval, &plan)?);
    }
    Ok(runtime)
}

struct Inboxes {
    connects: Inbox<Connect>,
    submissions: Inbox<Submission>,
    commands: Inbox<Command>,
    doorbell: Arc<Doorbell>,
}

struct Ports {
    client: ShardPort,
    commands: Port<Command>,
}

fn make_inboxes(settings: &Settings, shards: usize) -> (Vec<Ports>, Vec<Inboxes>) {
    let pairs = (0..shards).map(|_| {
        let doorbell = Arc::new(Doorbell::default());
        let capacity = settings.limits().inbox_capacity;
        let (to_connect, connects) = inbox(capacity, &doorbell);
        let (to_submit, submissions) = inbox(capacity, &doorbell);
        let (to_command, commands) = inbox(COMMANDS_MAX, &doorbell);
        let client = ShardPort {
            connects: to_connect,
            submissions: to_submit,
        };
        let ports = Ports {
            client,
            commands: to_command,
        };
        (
            ports,
            Inboxes {
                connects,
                submissions,
                commands,
                doorbell,
            },
        )
    });
    pairs.unzip()
}

fn make_client(settings: &Settings, ports: &[Ports], clock: &Clock) -> Client {
    let limits = settings.limits();
    let options = ClientOptions {
        message_bytes_max: limits.message_bytes_max,
        outgoing_messages_max: limits.outgoing_messages_max,
        outgoing_bytes_max: limits.outgoing_bytes_max,
        deadline: limits.deadline,
    };
    let ports = ports.iter().map(|port| port.client.clone()).collect();
    Client::new(ports, clock.clone(), options).with_prefer_ipc(settings.prefer_ipc())
}

fn shard_options(settings: &Settings) -> ShardOptions {
    let limits = settings.limits();
    ShardOptions {
        turn_messages_max: limits.turn_messages_max,
        message_bytes_max: limits.message_bytes_max,
        frames_max: limits.frames_max,
        close_within: limits.drain,
        spawned_max: limits.spawned_max,
        outstanding_max: limits.outstanding_max,
        outgoing_messages_max: limits.outgoing_messages_max,
        outgoing_bytes_max: limits.outgoing_bytes_max,
        buffered_bytes_max: limits.buffered_bytes_max,
        inbox_capacity: limits.inbox_capacity,
        reconnect: Pauses {
            first: limits.reconnect_min,
            longest: limits.reconnect_max,
        },
        inline_budget: limits.inline_budget,
        has_histograms: true,
        shedding: shedding(limits),
    }
}

pub(super) fn shedding(limits: &Limits) -> Option<Shedding> {
    let is_on = !limits.shed_target.is_zero();
    is_on.then_some(Shedding {
        target: limits.shed_target,
        after: limits.shed_after,
    })
}

fn engine_options(settings: &Settings) -> EngineOptions {
    let limits = settings.limits();
    let hwm = match settings.engine() {
        config::Engine::Libzmq(libzmq) => libzmq.hwm,
        config::Engine::Native => 0,
    };
    EngineOptions {
        message_bytes_max: limits.message_bytes_max,
        frames_max: limits.frames_max,
        buffered_bytes_max: limits.buffered_bytes_max,
        slow_consumer: limits.slow_consumer,
        handshake_bytes_max: limits.handshake_bytes_max,
        unauthenticated_max: limits.unauthenticated_max,
        outgoing_messages_max: limits.outgoing_messages_max,
        outgoing_bytes_max: limits.outgoing_bytes_max,
        handshake: limits.handshake,
        heartbeat_interval: limits.heartbeat_interval,
        heartbeat_timeout: limits.heartbeat_timeout,
        reconnect_min: limits.reconnect_min,
        reconnect_max: limits.reconnect_max,
        hwm,
        linger: limits.drain,
    }
}

impl EngineContext {
    fn new(settings: &Settings, plan: &Plan) -> Result<Self, StartError> {
        match settings.engine() {
            config::Engine::Native => {
                let (resolver, serve) = Resolver::new();
                let thread = spawn_helper("corelane-resolver", plan, serve)?;
                Ok(Self::Native(NameThread {
                    resolver: Some(resolver),
                    thread: Some(thread),
                }))
            }
            config::Engine::Libzmq(libzmq) => Context::new(libzmq.io_threads)
                .map(Self::Libzmq)
                .map_err(|cause| StartError::Engine { shard: 0, cause }),
        }
    }
}

fn spawn_shard(seed: Seed, engine: &EngineContext) -> Result<ShardThread, StartError> {
    let place = seed.place;
    let options = seed.engine_options.clone();
    match engine {
        EngineContext::Native(names) => {
            let resolver = names.resolver.clone().expect("has not ended");
            shard_thread::spawn(place, move || async move {
                let engine = Native::new(options, resolver, seed.clock.now());
                run_shard(seed, engine).await;
            })
        }
        EngineContext::Libzmq(context) => {
            let context = context.clone();
            shard_thread::spawn(place, move || async move {
                let engine = Libzmq::new(&context, options);
                drop(context);
                run_shard(seed, engine).await;
            })
        }
    }
}

/// The life of a shard's thread: listen, wait until all do, run.
async fn run_shard<E: Engine>(seed: Seed, engine: Result<E, EngineError>) {
    // First of all: if a handler's factory panics, this thread ends before it has told anything,
    // and the start fails.
    let registry = Registry::new(&seed.handlers, &seed.info);
    // What a handler is made from goes with it, should it be removed.
    drop(seed.handlers);
    let listening = engine.and_then(|mut engine| {
        let endpoints: Result<Vec<Endpoint>, EngineError> = seed
            .listen
            .iter()
            .map(|endpoint| engine.listen(endpoint))
            .collect();
        endpoints.map(|endpoints| (engine, endpoints))
    });
    let (engine, endpoints) = match listening {
        Ok(listening) => listening,
        Err(error) => {
            let _ = seed.listening.send((seed.info.shard, Err(error)));
            return;
        }
    };
    let _ = seed.listening.send((seed.info.shard, Ok(endpoints)));
    drop(seed.listening);
    let Ok(hello) = seed.go.recv() else { return };
    let hello = Hello {
        shard: Some(seed.info.shard),
        ..(*hello).clone()
    };
    // On this thread, so that the rings' memory is touched here first.
    let joining = seed.seat.offer(seed.ring_capacity);
    let Some(mesh) = joining.complete(&seed.doorbells) else {
        return;
    };
    let parts = Parts {
        info: seed.info,
        options: seed.shard_options,
        clock: seed.clock,
        registry,
        connects: seed.connects,
        submissions: seed.submissions,
        commands: seed.commands,
        doorbell: seed.doorbell,
        mesh,
        client: seed.client,
        spawner: shard::spawner(),
        jobs: seed.jobs,
    };
    shard::run(Shard::new(engine, &hello, parts), seed.idle).await;
}

fn make_dump(settings: &Settings) -> Result<Option<DumpWriter>, StartError> {
    Ok(match &settings.metrics().dump_dir {
        Some(directory) => Some(DumpWriter::create(directory, SystemTime::now())?),
        None => None,
    })
}

fn join(shards: Vec<RunningShard>) {
    for thread in shards.into_iter().filter_map(|shard| shard.thread) {
        let _ = thread.join();
    }
}

/// Writes a dump at each interval, from a CPU that no shard has, if there is one.
fn spawn_dumper(
    collector: &Arc<Mutex<Collector>>,
    interval: Duration,
    plan: &Plan,
) -> Result<Dumper, StartError> {
    let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
    let collector = collector.clone();
    let thread = spawn_helper("corelane-dumper", plan, move || {
        // Ends when the other end is dropped.
        while stopped
            .recv_timeout(interval)
            .is_err_and(|error| error.is_timeout())
        {
            let dumped = collector
                .lock()
                .unwrap_or_else(|error| error.into_inner())
                .dump();
            if let Err(error) = dumped {
                tracing::error!(%error, "a dump is not written");
            }
        }
    })?;
    Ok(Dumper { stop, thread })
}

/// A thread that is no shard: kept off the shards' CPUs, if there are others.
pub(super) fn spawn_helper(
    name: &str,
    plan: &Plan,
    run: impl FnOnce() + Send + 'static,
) -> Result<thread::JoinHandle<()>, StartError> {
    let cpus = plan.helper_cpus.clone();
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            keep_to(&cpus);
            run();
        })
        .map_err(StartError::Thread)
}

pub(super) fn keep_to(cpus: &[usize]) {
    let mut set = CpuSet::new();
    for &cpu in cpus.iter().filter(|&&cpu| cpu < CpuSet::MAX_CPU) {
        set.set(cpu);
    }
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::warn!(%error, "a thread may run on any CPU");
    }
}
