//! A service and its callers, started small: parking shards, for the tests share the CPUs.

use std::time::{Duration, Instant};

use corelane::{
    Config, Runtime,
    client::Peer,
    config::{EngineKind, IdleStrategy, LimitsConfig},
    handler::{Handler, HandlerError, inline, inline_raw, spawned},
    runtime::RuntimeBuilder,
};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

/// Far beyond what any step takes, on a busy machine too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What a case is run with.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) serving: EngineKind,
    pub(crate) calling: EngineKind,
    pub(crate) transport: Transport,
}

#[derive(Clone, Copy)]
pub(crate) enum Transport {
    Tcp,
    Ipc,
}

/// A runtime that listens. Its directory goes after it.
pub(crate) struct Service {
    pub(crate) runtime: Runtime,
    pub(crate) endpoint: String,
    pub(crate) directory: TempDir,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sum {
    pub(crate) a: i64,
    pub(crate) b: i64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Total {
    pub(crate) total: i64,
}

impl Setup {
    /// A service of one shard.
    pub(crate) fn serve(&self, handlers: Vec<Handler>) -> Service {
        self.serve_with(1, handlers, |_| {})
    }

    pub(crate) fn serve_with(
        &self,
        shards: usize,
        handlers: Vec<Handler>,
        limits: impl FnOnce(&mut LimitsConfig),
    ) -> Service {
        self.serve_as(handlers, self.config(self.serving, shards, limits))
    }

    /// A service of one shard with so many threads for blocking handlers, and so long a queue.
    pub(crate) fn serve_blocking(
        &self,
        handlers: Vec<Handler>,
        (threads, queue_capacity): (u64, u64),
        limits: impl FnOnce(&mut LimitsConfig),
    ) -> Service {
        let config = self.config(self.serving, 1, limits);
        let config = config.with_blocking(|it| {
            it.threads = threads;
            it.queue_capacity = queue_capacity;
        });
        self.serve_as(handlers, config)
    }

    /// A service of more shards than this machine may have CPUs.
    pub(crate) fn serve_oversubscribed(&self, shards: usize, handlers: Vec<Handler>) -> Service {
        let config = self.config(self.serving, shards, |_| {});
        self.serve_as(handlers, config.with_oversubscribe(true))
    }

    pub(crate) fn serve_as(&self, handlers: Vec<Handler>, config: Config) -> Service {
        self.serve_built(config, |builder| builder.handlers(handlers))
    }

    /// A service that tells when it is asked to drain.
    pub(crate) fn serve_telling(
        &self,
        handlers: Vec<Handler>,
        config: Config,
        tell: impl FnOnce() + Send + 'static,
    ) -> Service {
        self.serve_built(config, |builder| {
            builder.handlers(handlers).on_drain_request(tell)
        })
    }

    fn serve_built(
        &self,
        config: Config,
        build: impl FnOnce(RuntimeBuilder) -> RuntimeBuilder,
    ) -> Service {
        let directory = TempDir::new().expect("a directory");
        let listen = match self.transport {
            Transport::Tcp => "tcp://127.0.0.1:0".to_owned(),
            Transport::Ipc => format!("ipc://{}/socket", directory.path().display()),
        };
        let builder = build(Runtime::builder(config.with_listen([listen])));
        let runtime = builder.start().unwrap_or_else(|error| panic!("{error}"));
        Service {
            endpoint: runtime.endpoints()[0].clone(),
            runtime,
            directory,
        }
    }

    /// Another service where this one was.
    pub(crate) fn serve_again(&self, endpoint: &str, handlers: Vec<Handler>) -> Runtime {
        let config = self.config(self.serving, 1, |_| {});
        start(config.with_listen([endpoint]), handlers)
    }

    /// A runtime that only calls.
    pub(crate) fn caller(&self) -> Runtime {
        self.caller_with(|_| {})
    }

    pub(crate) fn caller_with(&self, limits: impl FnOnce(&mut LimitsConfig)) -> Runtime {
        start(self.config(self.calling, 1, limits), Vec::new())
    }

    /// An endpoint where nobody listens.
    pub(crate) fn nowhere(&self, directory: &TempDir) -> String {
        match self.transport {
            // tcpmux: privileged, so that no test beside this one is given it.
            Transport::Tcp => "tcp://127.0.0.1:1".to_owned(),
            Transport::Ipc => format!("ipc://{}/nobody", directory.path().display()),
        }
    }

    pub(crate) fn config(
        &self,
        engine: EngineKind,
        shards: usize,
        limits: impl FnOnce(&mut LimitsConfig),
    ) -> Config {
        Config::default()
            .with_engine(engine)
            .with_shards(shards)
            .with_idle(IdleStrategy::Park)
            .with_limits(|it| {
                it.reconnect_min_ms = 10;
                it.reconnect_max_ms = 50;
                it.deadline_ms = PATIENCE.as_millis() as u64;
                limits(it);
            })
    }
}

impl Service {
    /// A caller, connected to this service.
    pub(crate) fn connect(&self, caller: &Runtime) -> Peer {
        caller
            .client()
            .connect(&self.endpoint)
            .expect("an endpoint")
    }

    /// A bare ZeroMQ peer of this service. It says no hello, and so it heeds no goodbye.
    pub(crate) fn raw_dealer(&self) -> zmq::Socket {
        let dealer = zmq::Context::new().socket(zmq::DEALER).unwrap();
        dealer.set_rcvtimeo(PATIENCE.as_millis() as i32).unwrap();
        dealer.set_linger(0).unwrap();
        dealer.connect(&self.endpoint).unwrap();
        dealer
    }
}

fn start(config: Config, handlers: Vec<Handler>) -> Runtime {
    Runtime::builder(config)
        .handlers(handlers)
        .start()
        .unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn echo() -> Handler {
    inline_raw("echo", |payload, reply, _| {
        reply.extend_from_slice(payload);
        Ok(())
    })
}

pub(crate) fn sum() -> Handler {
    inline("sum", |sum: Sum, _| {
        let total = sum.a.checked_add(sum.b);
        let total = total.ok_or_else(|| HandlerError::new("too large a sum"))?;
        Ok(Total { total })
    })
}

/// Sleeps for so many milliseconds and returns them.
pub(crate) fn sleep() -> Handler {
    spawned("sleep", |ms: u64, cx| async move {
        cx.sleep(Duration::from_millis(ms)).await;
        Ok(ms)
    })
}

/// Waits until it holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
