//! A checked configuration.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::MemoryPolicy;
use super::source::Blame;
use super::{
    BlockingConfig, CPU_MAX, Config, ControlConfig, Cpus, Endpoint, EngineConfig, EngineKind,
    IdleConfig, IdleStrategy, Limits, MetricsConfig, Order,
};
use crate::error::{ConfigError, ConfigPlace, EndpointError, PlacementError};

/// What the runtime uses: derived once by [`Config::check`], and unchangeable from then on.
#[derive(Debug, Clone)]
pub struct Settings {
    policy: Policy,
    listen: Vec<Endpoint>,
    engine: Engine,
    idle: Idle,
    blocking: Blocking,
    limits: Limits,
    metrics: Metrics,
    control: Control,
    prefer_ipc: bool,
    /// Kept for the lines of errors that only the machine can show: a CPU, a last shard's port.
    config: Config,
}

/// How many shards, and where.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// At least 1; `None`: as many as the CPUs say, see [`Config::shards`].
    pub shards: Option<usize>,
    /// Which CPUs may be used, and in a list, in which order.
    pub cpus: Cpus,
    /// Which come first with [`Cpus::Auto`].
    pub order: Order,
    /// Whether several shards may share a CPU.
    pub oversubscribe: bool,
    /// Where a shard's memory comes from, where there are several nodes.
    pub memory: MemoryPolicy,
}

/// What moves the messages, with what that engine needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Engine {
    /// The shard's own sockets.
    Native,
    /// The `zmq` crate.
    Libzmq(LibzmqSettings),
}

/// Settings of the `libzmq` engine, in the types that libzmq takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LibzmqSettings {
    /// I/O threads per context; at least 1.
    pub io_threads: i32,
    /// Messages per peer and direction; at least 1, since 0 would mean no bound to libzmq.
    pub hwm: i32,
}

/// What a shard does when it has nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Looks again at once, for ever.
    Spin,
    /// Looks for `spin`, then yields between looks for `yielding`, then parks.
    Adaptive {
        /// Time before the first yield.
        spin: Duration,
        /// Time from there to the parking.
        yielding: Duration,
    },
    /// Parks at once.
    Park,
}

/// The pool of blocking handlers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Blocking {
    /// How many; 0: no handler may be blocking.
    pub threads: usize,
    /// Messages that wait for one of them; at least 1.
    pub queue_capacity: usize,
}

/// Histograms on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metrics {
    /// Where; `None`: nowhere. Not yet checked to exist.
    pub dump_dir: Option<PathBuf>,
    /// Time between two dumps; at least a second.
    pub dump_interval: Duration,
}

/// What peers may tell this process to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Control {
    /// To stop as by SIGTERM.
    pub allow_drain: bool,
}

impl Settings {
    /// How many shards are wanted, and where.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Bounds on memory, time and counts.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What moves the messages.
    pub fn engine(&self) -> Engine {
        self.engine
    }

    /// What a shard does when it has nothing to do.
    pub fn idle(&self) -> Idle {
        self.idle
    }

    /// The pool of blocking handlers.
    pub fn blocking(&self) -> Blocking {
        self.blocking
    }

    /// Histograms on disk.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Whether processes of this host are reached by ipc, though they were dialed by tcp.
    pub fn prefer_ipc(&self) -> bool {
        self.prefer_ipc
    }

    /// What peers may tell this process to do.
    pub fn control(&self) -> Control {
        self.control
    }

    /// Where shard 0 listens: host names resolved, in the order of the configuration.
    pub fn listen(&self) -> &[Endpoint] {
        &self.listen
    }

    /// Where each of `shards` shards listens: one list per shard, each in the order of the
    /// configuration.
    ///
    /// Errors: the last shard's port or path is impossible, or two shards would listen on the same
    /// one. [`Config::check`] has found these already if the configuration says how many shards.
    pub fn listen_by_shard(&self, shards: usize) -> Result<Vec<Vec<Endpoint>>, ConfigError> {
        listen_by_shard(&self.listen, shards, &Blame::new(&self.config))
    }

    /// Gives what placement found an error with file, key and line.
    pub(crate) fn refuse_placement(&self, cause: PlacementError) -> ConfigError {
        let blame = Blame::new(&self.config);
        let at = match cause.is_about_shards() {
            true => blame.either("shards", "placement.cpus"),
            false => blame.place("placement.cpus"),
        };
        ConfigError::Placement { at, cause }
    }

    /// Where a key stands, for an error that only the handlers can show.
    pub(crate) fn place_of(&self, key: &str) -> ConfigPlace {
        Blame::new(&self.config).place(key)
    }

    pub(super) fn check(config: Config) -> Result<Self, ConfigError> {
        let blame = Blame::new(&config);
        let policy = check_policy(&config, &blame)?;
        let limits = config.limits.check(&blame)?;
        let engine = check_engine(&config.engine, &blame)?;
        let idle = check_idle(&config.idle, &blame)?;
        let blocking = check_blocking(&config.blocking, &blame)?;
        let metrics = check_metrics(&config.metrics, &blame)?;
        let ControlConfig { allow_drain } = config.control;
        // Last, since it may ask a name server.
        let listen = check_listen(&config, &blame)?;
        listen_by_shard(&listen, shards_known(&policy), &blame)?;
        Ok(Self {
            policy,
            listen,
            engine,
            idle,
            blocking,
            limits,
            metrics,
            control: Control { allow_drain },
            prefer_ipc: config.client.prefer_ipc,
            config,
        })
    }
}

fn check_policy(config: &Config, blame: &Blame<'_>) -> Result<Policy, ConfigError> {
    let placement = |key, cause| {
        Err(ConfigError::Placement {
            at: blame.place(key),
            cause,
        })
    };
    if config.shards == Some(0) {
        return placement("shards", PlacementError::NoShards);
    }
    // Before anything is counted up to it.
    if let Some(shards) = config.shards.filter(|&shards| shards > CPU_MAX) {
        return Err(ConfigError::OutOfRange {
            at: blame.place("shards"),
            why: format!("{shards} shards are more than Linux can have CPUs"),
            remedy: "ask for one per CPU at most, or remove the line".to_owned(),
        });
    }
    if let Cpus::List(list) = &config.placement.cpus {
        let mut seen = HashSet::new();
        let may_share = config.placement.oversubscribe;
        let repeated = list.iter().find(|&&cpu| !seen.insert(cpu));
        if let Some(&cpu) = repeated.filter(|_| !may_share) {
            return placement("placement.cpus", PlacementError::NamedTwice { cpu });
        }
        let is_too_many = |shards| shards > list.len() && !may_share;
        if list.is_empty() || config.shards.is_some_and(is_too_many) {
            let cause = PlacementError::TooManyShards {
                shards: config.shards.unwrap_or(1),
                cpus: list.len(),
                usable: super::format_list(list),
            };
            let at = blame.either("shards", "placement.cpus");
            return Err(ConfigError::Placement { at, cause });
        }
    }
    Ok(Policy {
        shards: config.shards,
        cpus: config.placement.cpus.clone(),
        order: config.placement.policy,
        oversubscribe: config.placement.oversubscribe,
        memory: config.placement.memory,
    })
}

/// How many shards the configuration alone says that there will be, at least.
fn shards_known(policy: &Policy) -> usize {
    match (policy.shards, &policy.cpus) {
        (Some(shards), _) => shards,
        (None, Cpus::List(list)) => list.len(),
        (None, Cpus::Auto) => 1,
    }
}

fn check_engine(engine: &EngineConfig, blame: &Blame<'_>) -> Result<Engine, ConfigError> {
    let defaults = EngineConfig::default().libzmq;
    let count = |key, value, max, default| {
        blame.check_range(key, value, 1..=max, default)?;
        Ok(i32::try_from(value).unwrap_or(i32::MAX))
    };
    match engine.name {
        EngineKind::Native => Ok(Engine::Native),
        EngineKind::Libzmq => Ok(Engine::Libzmq(LibzmqSettings {
            // More than this would be most CPUs of any machine, for one shard.
            io_threads: count(
                "engine.libzmq.io_threads",
                engine.libzmq.io_threads,
                64,
                defaults.io_threads,
            )?,
            hwm: count(
                "engine.libzmq.hwm",
                engine.libzmq.hwm,
                1 << 24,
                defaults.hwm,
            )?,
        })),
    }
}

fn check_idle(idle: &IdleConfig, blame: &Blame<'_>) -> Result<Idle, ConfigError> {
    // Who wants to spin for more than a second wants `strategy = "spin"`.
    const SECOND_US: u64 = 1_000_000;
    let defaults = IdleConfig::default();
    blame.check_range(
        "idle.spin_us",
        idle.spin_us,
        0..=SECOND_US,
        defaults.spin_us,
    )?;
    blame.check_range(
        "idle.yield_us",
        idle.yield_us,
        0..=SECOND_US,
        defaults.yield_us,
    )?;
    Ok(match idle.strategy {
        IdleStrategy::Spin => Idle::Spin,
        IdleStrategy::Adaptive => Idle::Adaptive {
            spin: Duration::from_micros(idle.spin_us),
            yielding: Duration::from_micros(idle.yield_us),
        },
        IdleStrategy::Park => Idle::Park,
    })
}

fn check_blocking(blocking: &BlockingConfig, blame: &Blame<'_>) -> Result<Blocking, ConfigError> {
    // Far beyond use, as the ceilings of the limits are.
    const THREADS_MAX: u64 = 4_096;
    const QUEUE_MAX: u64 = 1 << 20;
    let defaults = BlockingConfig::default();
    let count = |key, value, range, default| {
        blame.check_range(key, value, range, default)?;
        Ok(usize::try_from(value).unwrap_or(usize::MAX))
    };
    Ok(Blocking {
        threads: count(
            "blocking.threads",
            blocking.threads,
            0..=THREADS_MAX,
            defaults.threads,
        )?,
        queue_capacity: count(
            "blocking.queue_capacity",
            blocking.queue_capacity,
            1..=QUEUE_MAX,
            defaults.queue_capacity,
        )?,
    })
}

fn check_metrics(metrics: &MetricsConfig, blame: &Blame<'_>) -> Result<Metrics, ConfigError> {
    const DAY_S: u64 = 86_400;
    let default = MetricsConfig::default().dump_interval_s;
    blame.check_range(
        "metrics.dump_interval_s",
        metrics.dump_interval_s,
        1..=DAY_S,
        default,
    )?;
    if metrics.dump_dir.as_deref() == Some(Path::new("")) {
        return Err(ConfigError::WrongValue {
            at: blame.place("metrics.dump_dir"),
            why: "is empty, which names no directory".to_owned(),
            remedy: "remove the line to write no dumps, or write \".\" for the current directory"
                .to_owned(),
        });
    }
    Ok(Metrics {
        dump_dir: metrics.dump_dir.clone(),
        dump_interval: Duration::from_secs(metrics.dump_interval_s),
    })
}

fn check_listen(config: &Config, blame: &Blame<'_>) -> Result<Vec<Endpoint>, ConfigError> {
    let mut resolved = Vec::new();
    for (i, text) in config.listen.endpoints.iter().enumerate() {
        let at = || blame.place(&endpoint_key(i));
        let endpoint = text
            .parse()
            .and_then(|endpoint: Endpoint| endpoint.resolve())
            .map_err(|cause| ConfigError::Endpoint { at: at(), cause })?;
        if !endpoint.is_local() && !config.listen.allow_insecure_remote {
            return Err(ConfigError::InsecureRemote {
                at: at(),
                endpoint: endpoint.to_string(),
            });
        }
        resolved.push(endpoint);
    }
    Ok(resolved)
}

fn listen_by_shard(
    listen: &[Endpoint],
    shards: usize,
    blame: &Blame<'_>,
) -> Result<Vec<Vec<Endpoint>>, ConfigError> {
    let mut taken = HashSet::new();
    let mut by_shard = Vec::new();
    for shard in 0..shards {
        let mut of_shard = Vec::new();
        for (i, endpoint) in listen.iter().enumerate() {
            let at = || blame.place(&endpoint_key(i));
            let own = endpoint
                .for_shard(shard)
                .map_err(|cause| ConfigError::Endpoint { at: at(), cause })?;
            let any_port = matches!(own, Endpoint::Tcp { port: 0, .. });
            if !any_port && !taken.insert(own.clone()) {
                let cause = EndpointError::TakenTwice {
                    endpoint: own.to_string(),
                    shard,
                };
                return Err(ConfigError::Endpoint { at: at(), cause });
            }
            of_shard.push(own);
        }
        by_shard.push(of_shard);
    }
    Ok(by_shard)
}

fn endpoint_key(i: usize) -> String {
    format!("listen.endpoints[{i}]")
}
