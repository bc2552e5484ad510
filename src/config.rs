//! Configuration: one TOML file, checked once, before any thread starts.
//!
//! [`Config`] is what people write: every key is optional, unknown keys are refused, and a program
//! may set the fields too. [`Config::check`] turns it into [`Settings`], which cannot be changed
//! any more and hold durations, resolved addresses and limits that do not contradict each other.
//! `examples/corelane.toml` shows every key with its default.
//!
//! Whether the machine has the CPUs is asked later, by [`crate::placement`]: nothing here reads the
//! machine, except that [`Config::from_file`] reads its file, and that host names are resolved.

mod cpus;
mod endpoint;
mod limits;
mod names;
mod settings;
mod source;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;
pub use cpus::{CPU_MAX, Cpus};
pub(crate) use cpus::{format_list, parse_list};
pub use endpoint::{Endpoint, Host, IPC_PATH_BYTES_MAX};
pub use limits::{Limits, LimitsConfig};
use names::named;
pub use settings::{Blocking, Control, Engine, Idle, LibzmqSettings, Metrics, Policy, Settings};
use source::Source;

/// A configuration as people write it. Every field has a default; none is checked before
/// [`check`](Self::check).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Config {
    /// How many shards. Left out: one per CPU of a listed `placement.cpus`, or one per physical
    /// core that the process may use with `"auto"`; where it may use performance cores, none on
    /// efficiency cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shards: Option<usize>,
    /// Which CPUs the shards get.
    pub placement: PlacementConfig,
    /// Where the process listens.
    pub listen: ListenConfig,
    /// What moves the messages.
    pub engine: EngineConfig,
    /// What a shard does when it has nothing to do.
    pub idle: IdleConfig,
    /// The threads of blocking handlers.
    pub blocking: BlockingConfig,
    /// Bounds on memory, time and counts.
    pub limits: LimitsConfig,
    /// Histograms on disk.
    pub metrics: MetricsConfig,
    /// What peers may tell this process to do.
    pub control: ControlConfig,
    /// Connections to other processes.
    pub client: ClientConfig,
    /// The text that this was read from, for the lines in errors.
    #[serde(skip)]
    source: Source,
}

/// `[placement]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct PlacementConfig {
    /// `"auto"`, a list such as `"0-3,8"`, or an array. A list is used in its order: shard k on
    /// the k-th CPU.
    pub cpus: Cpus,
    /// Which CPUs come first with `"auto"`; a list has its own order.
    pub policy: Order,
    /// Allows several shards on one CPU: more shards than CPUs, which then start over from the
    /// first, and a CPU listed twice. For tests and small machines: such shards wait for one
    /// another.
    pub oversubscribe: bool,
    /// Where a shard's memory comes from, on a machine of several NUMA nodes.
    pub memory: MemoryPolicy,
}

/// `[listen]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ListenConfig {
    /// `tcp://host:port` and `ipc:///path`, where shard 0 listens; shard k listens on port + k and
    /// `path.k`. Empty: the process listens nowhere, and only calls others.
    pub endpoints: Vec<String>,
    /// Allows endpoints that other hosts can reach, although peers are not authenticated.
    pub allow_insecure_remote: bool,
}

/// `[engine]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct EngineConfig {
    /// Which engine.
    pub name: EngineKind,
    /// `[engine.libzmq]`
    pub libzmq: LibzmqConfig,
}

/// `[engine.libzmq]`: ignored by any other engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LibzmqConfig {
    /// I/O threads that libzmq starts beside the shards, per context.
    pub io_threads: u64,
    /// High-water mark of each socket, in messages per peer and direction.
    pub hwm: u64,
}

/// `[idle]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct IdleConfig {
    /// Spin for ever, spin and yield and then park, or park at once.
    pub strategy: IdleStrategy,
    /// How long an `adaptive` shard spins before it yields, in microseconds.
    pub spin_us: u64,
    /// How long it then yields the CPU between looks, before it parks, in microseconds.
    pub yield_us: u64,
}

/// `[blocking]`: one pool for all shards, started only if a handler is blocking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct BlockingConfig {
    /// Threads, kept off the shards' CPUs where there are others; so many blocking handlers run at
    /// once. 0: none, and registering a blocking handler is an error at start.
    pub threads: u64,
    /// Messages that wait for one of these threads; at this many, nack `Overloaded`. One shard has
    /// no more than these and `threads` under way, its unsent answers included. Each holds its
    /// payload, which no limit in bytes counts.
    pub queue_capacity: u64,
}

/// `[metrics]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct MetricsConfig {
    /// Directory for HdrHistogram logs. Left out: none are written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dump_dir: Option<PathBuf>,
    /// Seconds between two dumps.
    pub dump_interval_s: u64,
}

/// `[client]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ClientConfig {
    /// Whether a process that is dialed by tcp at a loopback address, and runs on this host and
    /// listens by ipc, too, is reached by ipc.
    pub prefer_ipc: bool,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self { prefer_ipc: true }
    }
}

/// `[control]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ControlConfig {
    /// Whether `_drain` stops the process as SIGTERM does, for whoever may connect. Else it is
    /// nacked `Unauthorized`.
    pub allow_drain: bool,
}

named! {
    /// What moves ZMTP messages for a shard.
    #[derive(Default)]
    #[non_exhaustive]
    EngineKind: "engine" {
        /// ZMTP on the shard's own sockets: no other thread.
        #[default]
        Native = "native",
        /// The `zmq` crate, which is libzmq: its own I/O threads own the sockets.
        Libzmq = "libzmq",
    }
}

named! {
    /// What a shard does when it has nothing to do.
    #[derive(Default)]
    IdleStrategy: "idle strategy" {
        /// Looks again at once, for ever: lowest latency, a whole CPU.
        Spin = "spin",
        /// Spins, then yields, then parks.
        #[default]
        Adaptive = "adaptive",
        /// Parks at once: no CPU while idle, and a wake-up on every first message.
        Park = "park",
    }
}

named! {
    /// Which CPUs come first when the process may use more than it needs.
    #[derive(Default)]
    Order: "placement policy" {
        /// Fill one NUMA node, its physical cores before their siblings, then the next.
        #[default]
        Compact = "compact",
        /// One from each NUMA node in turn, all physical cores before any sibling.
        Spread = "spread",
        /// The CPUs of `spread`, as evenly divided, but the shards of one node numbered in a row.
        PerNode = "per-node",
    }
}

named! {
    /// Where a shard's memory comes from, on a machine of several NUMA nodes.
    #[derive(Default)]
    MemoryPolicy: "memory policy" {
        /// From the shard's own node while it has any, whatever policy the process was started
        /// with. What the kernel refuses of it is logged.
        #[default]
        Local = "local",
        /// From the shard's own node alone: when that has none left, the kernel kills. A start
        /// fails if it is refused.
        Bind = "bind",
        /// As the process was started, by `numactl` for one.
        Inherit = "inherit",
    }
}

impl Default for LibzmqConfig {
    fn default() -> Self {
        // libzmq's own defaults.
        Self {
            io_threads: 1,
            hwm: 1_000,
        }
    }
}

impl Default for IdleConfig {
    fn default() -> Self {
        // 20 µs of spinning cost nothing against spinning for ever in the design's measurement
        // (6.6 against 6.5 µs a round trip while busy).
        Self {
            strategy: IdleStrategy::default(),
            spin_us: 20,
            yield_us: 50,
        }
    }
}

impl Default for BlockingConfig {
    fn default() -> Self {
        Self {
            threads: 4,
            queue_capacity: 256,
        }
    }
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self {
            dump_dir: None,
            dump_interval_s: 10,
        }
    }
}

/// Two configurations are equal when they say the same, wherever they were written.
impl PartialEq for Config {
    fn eq(&self, other: &Self) -> bool {
        let Self {
            shards,
            placement,
            listen,
            engine,
            idle,
            blocking,
            limits,
            metrics,
            control,
            client,
            source: _,
        } = self;
        *shards == other.shards
            && *placement == other.placement
            && *listen == other.listen
            && *engine == other.engine
            && *idle == other.idle
            && *blocking == other.blocking
            && *limits == other.limits
            && *metrics == other.metrics
            && *control == other.control
            && *client == other.client
    }
}

impl Config {
    /// Reads a TOML file. Blocks while it does.
    ///
    /// Errors: the file cannot be read or is over 1 MiB, is no TOML, has an unknown key or a value
    /// of the wrong type. Whether the values can work is for [`check`](Self::check).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        source::read(path.as_ref())?.parse()
    }

    /// Reads TOML from a string, which errors call `<text>`.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        Source::text("<text>", text).parse()
    }

    /// Checks every value alone and against the others, and derives what the runtime uses.
    ///
    /// Blocks only to resolve host names. Does not look at the machine's CPUs: for those see
    /// [`placement::place`](crate::placement::place).
    pub fn check(self) -> Result<Settings, ConfigError> {
        Settings::check(self)
    }

    /// Sets the number of shards.
    pub fn with_shards(mut self, shards: usize) -> Self {
        self.shards = Some(shards);
        self
    }

    /// Sets which CPUs the shards get.
    pub fn with_cpus(mut self, cpus: Cpus) -> Self {
        self.placement.cpus = cpus;
        self
    }

    /// Sets which CPUs come first with [`Cpus::Auto`].
    pub fn with_policy(mut self, policy: Order) -> Self {
        self.placement.policy = policy;
        self
    }

    /// Allows several shards on one CPU.
    pub fn with_oversubscribe(mut self, allow: bool) -> Self {
        self.placement.oversubscribe = allow;
        self
    }

    /// Sets where a shard's memory comes from.
    pub fn with_memory(mut self, memory: MemoryPolicy) -> Self {
        self.placement.memory = memory;
        self
    }

    /// Sets where to listen, in place of what was there. [`check`](Self::check) parses them.
    pub fn with_listen<E: Into<String>>(mut self, endpoints: impl IntoIterator<Item = E>) -> Self {
        self.listen.endpoints = endpoints.into_iter().map(Into::into).collect();
        self
    }

    /// Allows endpoints that other hosts can reach, although peers are not authenticated.
    pub fn with_insecure_remote(mut self, allow: bool) -> Self {
        self.listen.allow_insecure_remote = allow;
        self
    }

    /// Sets the engine.
    pub fn with_engine(mut self, engine: EngineKind) -> Self {
        self.engine.name = engine;
        self
    }

    /// Sets what a shard does when it has nothing to do.
    pub fn with_idle(mut self, strategy: IdleStrategy) -> Self {
        self.idle.strategy = strategy;
        self
    }

    /// Changes the pool of blocking handlers: `.with_blocking(|blocking| blocking.threads = 16)`.
    pub fn with_blocking(mut self, change: impl FnOnce(&mut BlockingConfig)) -> Self {
        change(&mut self.blocking);
        self
    }

    /// Changes limits: `.with_limits(|limits| limits.ring_capacity = 64)`.
    pub fn with_limits(mut self, change: impl FnOnce(&mut LimitsConfig)) -> Self {
        change(&mut self.limits);
        self
    }

    /// Has histograms written to a directory.
    pub fn with_dump_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.metrics.dump_dir = Some(dir.into());
        self
    }

    /// Whether processes of this host are reached by ipc, though they were dialed by tcp.
    pub fn with_prefer_ipc(mut self, prefer: bool) -> Self {
        self.client.prefer_ipc = prefer;
        self
    }

    /// Lets peers stop the process by `_drain`.
    pub fn with_allow_drain(mut self, allow: bool) -> Self {
        self.control.allow_drain = allow;
        self
    }

    /// Sets the seconds between two dumps.
    pub fn with_dump_interval_s(mut self, seconds: u64) -> Self {
        self.metrics.dump_interval_s = seconds;
        self
    }
}
