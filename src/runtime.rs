//! Starts the shards, hands out clients, drains and joins: the only place where threads are made.
//!
//! ```no_run
//! use corelane::{Config, Runtime, handler::inline};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let runtime = Runtime::builder(Config::from_file("corelane.toml")?)
//!     .handler(inline("double", |n: u64, _cx| Ok(2 * n)))
//!     .start()?;
//! let peer = runtime.client().connect(&runtime.endpoints()[0])?;
//! let four: u64 = runtime.client().message("double").json(&2)?.to(&peer).request().wait()?;
//! assert_eq!(four, 4);
//! let totals = runtime.drain();
//! assert_eq!(totals.handled, 1);
//! # Ok(()) }
//! ```

mod collector;
mod listening;
mod operator;
mod pool;
mod roster;
mod start;
mod thread;

use std::{
    fmt,
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender};
use quanta::Clock;
use uuid::Uuid;

pub use self::roster::Handlers;
use self::{
    collector::Collector,
    operator::{Drain, Operator, Orders},
};
use crate::{
    client::Client,
    config::Config,
    error::{DumpError, RegisterError, RemoveError, StartError},
    events::Subscription,
    handler::{Handler, ShardInfo, TaskContext},
    metrics::{Counters, Snapshot},
    route::Port,
    shard::{Command, Drained},
};

/// How much longer than its drain a shard may take to say that it is over.
const GRACE: Duration = Duration::from_secs(1);

/// What a [`Runtime`] is made from.
#[derive(Debug)]
#[must_use = "nothing runs until `start`"]
pub struct RuntimeBuilder {
    config: Config,
    handlers: Vec<Handler>,
    orders: Orders,
}

impl RuntimeBuilder {
    /// Serves this handler on every shard.
    pub fn handler(mut self, handler: Handler) -> Self {
        self.handlers.push(handler);
        self
    }

    /// Serves all of these.
    pub fn handlers(mut self, handlers: impl IntoIterator<Item = Handler>) -> Self {
        self.handlers.extend(handlers);
        self
    }

    /// Lets peers stop this process by the built-in handler `_drain`, if the configuration allows
    /// it (`control.allow_drain`). `tell` is called once, at the first such message, on a thread of
    /// the runtime: it must not block, and is to see to it that the program calls
    /// [`Runtime::drain`]. Without it `_drain` is nacked `HandlerFailed`.
    pub fn on_drain_request(mut self, tell: impl FnOnce() + Send + 'static) -> Self {
        self.orders.drain = Drain::Tell(Box::new(tell));
        self
    }

    /// Checks everything that can be checked, then starts the shards, and returns when each of them
    /// listens. Blocks for some tens of milliseconds. On an error no thread, socket or file is
    /// left.
    pub fn start(self) -> Result<Runtime, StartError> {
        start::start(self.config, self.handlers, self.orders)
    }
}

/// Running shards. Dropping it stops them at once; [`drain`](Self::drain) lets them finish first.
/// Either leaves a blocking handler that does not return to itself, as `drain` says.
pub struct Runtime {
    instance: Uuid,
    handlers: Handlers,
    shards: Vec<RunningShard>,
    client: Client,
    clock: Clock,
    drain: Duration,
    collector: Arc<Mutex<Collector>>,
    dumper: Option<Dumper>,
    operator: Arc<Operator>,
    /// Ended after the shards, which count what it has not finished.
    _pool: Option<Arc<Mutex<pool::Pool>>>,
    /// Likewise.
    _operators_thread: pool::Pool,
    /// Outlives the shards' sockets: ending it waits for what they have not yet written.
    _engine: start::EngineContext,
}

/// A shard as the runtime sees it.
#[derive(Debug)]
struct RunningShard {
    info: ShardInfo,
    endpoints: Vec<String>,
    commands: Port<Command>,
    /// `None` once joined.
    thread: Option<thread::ShardThread>,
}

#[derive(Debug)]
struct Dumper {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

/// How the messages of a runtime's life ended: `accepted` is the sum of `handled`, `nacked`,
/// `indeterminate` and `lost`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Totals {
    /// Messages from peers whose header could be read.
    pub accepted: u64,
    /// Whose handler returned without an error.
    pub handled: u64,
    /// Refused or failed, for whatever reason.
    pub nacked: u64,
    /// Whose handler was still running as the drain's time was over.
    pub indeterminate: u64,
    /// Dropped for want of room for an answer, or waiting for a thread of the blocking handlers as
    /// the drain's time was over: those will not run.
    pub lost: u64,
    /// Of the accepted ones, those that arrived at another shard than the one that runs them.
    pub hopped: u64,
}

impl From<Counters> for Totals {
    fn from(counters: Counters) -> Self {
        Self {
            accepted: counters.accepted,
            handled: counters.handled,
            nacked: counters.nacked(),
            indeterminate: counters.indeterminate,
            lost: counters.lost,
            hopped: counters.hopped_out,
        }
    }
}

impl Runtime {
    /// Begins with a configuration.
    pub fn builder(config: Config) -> RuntimeBuilder {
        RuntimeBuilder {
            config,
            handlers: Vec::new(),
            orders: Orders::default(),
        }
    }

    /// Names this running process in its hello.
    pub fn instance(&self) -> Uuid {
        self.instance
    }

    /// Where shard 0 listens, with the ports really bound: the addresses to write down.
    pub fn endpoints(&self) -> &[String] {
        &self.shards[0].endpoints
    }

    /// Every shard: where it runs, and where it listens.
    pub fn shards(&self) -> impl Iterator<Item = (ShardInfo, &[String])> {
        self.shards
            .iter()
            .map(|shard| (shard.info, shard.endpoints.as_slice()))
    }

    /// Sends from any thread and any executor.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What happens from now on, as [`Client::events`]. The subscription ends with the runtime.
    pub fn events(&self) -> Subscription {
        self.client.events()
    }

    /// Serves one more handler from now on, on every shard: see [`Handlers::register`].
    pub fn register(&self, handler: Handler) -> Result<(), RegisterError> {
        self.handlers.register(handler)
    }

    /// Serves the handler of this name no longer: see [`Handlers::remove`].
    pub fn remove(&self, name: &str) -> Result<(), RemoveError> {
        self.handlers.remove(name)
    }

    /// The handlers, for whoever is to add to them or take from them.
    pub fn handlers(&self) -> &Handlers {
        &self.handlers
    }

    /// Runs a task on a shard, where it may use the shard's own client and need not be `Send`. Its
    /// result is awaited or waited for; if the shard stops first there is none. Blocks only
    /// while the shard's commands are full.
    ///
    /// # Panics
    ///
    /// If there is no such shard.
    pub fn run_on<T, F, Fut>(&self, shard: usize, task: F) -> Running<T>
    where
        F: FnOnce(TaskContext) -> Fut + Send + 'static,
        Fut: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (done, result) = oneshot::async_channel();
        let guest = Box::new(move |cx: TaskContext| -> crate::shard::LocalFuture {
            // Called inside the future, where its panic is the task's own. Whoever waited for the
            // result may have stopped waiting.
            Box::pin(async move { drop(done.send(task(cx).await)) })
        });
        // Refused by a stopped shard, the task is dropped, and its result's channel with it.
        let _ = self.shards[shard].commands.send(Command::Run(guest));
        Running(result)
    }

    /// What all shards have recorded since the start: counters and merged histograms. The shards
    /// are not stopped for it: each hands out what it has at the end of a turn. Blocks until
    /// they have, at most about a second for a shard whose handler does not return; what that
    /// one has not handed out is missing, and the snapshot names it
    /// ([`silent_shards`](Snapshot::silent_shards)).
    pub fn metrics(&self) -> Snapshot {
        self.collector().measure().clone()
    }

    /// Writes the dump's next interval now. Blocks as [`metrics`](Self::metrics) and the file
    /// system do. Does nothing if the config names no `metrics.dump_dir`.
    pub fn dump(&self) -> Result<(), DumpError> {
        self.collector().dump()
    }

    /// The file that dumps go to.
    pub fn dump_path(&self) -> Option<PathBuf> {
        self.collector().dump_path()
    }

    /// Stops gracefully: accepts no connection, says goodbye, finishes what runs, nacks what still
    /// comes, and ends within the config's `limits.drain_ms`. What is left by then is counted
    /// as indeterminate, but for messages that wait for a thread of the blocking handlers: those
    /// will not run, and count as lost. Blocks until all shards have ended and the last dump is
    /// written. A blocking handler that still runs cannot be stopped: after half a second more it
    /// is left to itself, and its thread ends when it returns.
    pub fn drain(mut self) -> Totals {
        self.stop(self.drain)
    }

    fn stop(&mut self, within: Duration) -> Totals {
        self.operator.say_draining();
        self.handlers.stop();
        let (done, drained) = crossbeam_channel::unbounded();
        let until = self.clock.now() + within;
        let deadline = std::time::Instant::now() + within + GRACE;
        let drain = || Command::Drain {
            until,
            done: done.clone(),
        };
        let is_told = |shard: &&RunningShard| shard.commands.try_send(drain()).is_ok();
        let untold: Vec<_> = self.shards.iter().filter(|it| !is_told(it)).collect();
        for shard in untold {
            // Its commands are full: one of its handlers takes long.
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            let _ = shard.commands.send_within(drain(), left);
        }
        drop(done);
        let counters = self.collect_last_words(&drained, deadline);
        self.client.hub().close();
        if let Some(Dumper { stop, thread }) = self.dumper.take() {
            drop(stop);
            let _ = thread.join();
        }
        if let Err(error) = self.collector().dump_rest() {
            tracing::error!(%error, "the last dump is not written");
        }
        counters.into()
    }

    fn collect_last_words(
        &mut self,
        drained: &Receiver<Drained>,
        deadline: std::time::Instant,
    ) -> Counters {
        while let Ok(last) = drained.recv_deadline(deadline) {
            if let Some(thread) = self.shards[last.shard].thread.take() {
                let _ = thread.join();
            }
            self.collector().enter_last(last);
        }
        for shard in self.shards.iter().filter(|shard| shard.thread.is_some()) {
            let shard = shard.info.shard;
            tracing::error!(
                shard,
                "a shard did not stop in time: one of its handlers does not return"
            );
        }
        let mut counters = self.collector().counters();
        counters.settle_hops();
        counters
    }

    fn collector(&self) -> MutexGuard<'_, Collector> {
        self.collector
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends what runs as indeterminate, at once.
impl Drop for Runtime {
    fn drop(&mut self) {
        if self.shards.iter().any(|shard| shard.thread.is_some()) {
            self.stop(Duration::ZERO);
        }
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime")
            .field("instance", &self.instance)
            .field("shards", &self.shards)
            .finish_non_exhaustive()
    }
}

/// A task that runs on a shard; made by [`Runtime::run_on`].
#[derive(Debug)]
#[must_use = "a task's result comes only to who waits for it"]
pub struct Running<T>(oneshot::AsyncReceiver<T>);

impl<T> Running<T> {
    /// Blocks this thread until the task has ended. `None` if its shard stopped first, or the task
    /// panicked.
    pub fn wait(self) -> Option<T> {
        futures_lite::future::block_on(self)
    }
}

impl<T> Future for Running<T> {
    type Output = Option<T>;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<T>> {
        std::pin::Pin::new(&mut self.0).poll(cx).map(Result::ok)
    }
}
