//! What operators ask: the built-in handlers, whose names begin with `_`.
//!
//! | name | answers | while draining |
//! |---|---|---|
//! | `_health` | `{"status":"ok"\|"draining","instance":…,"uptime_s":…}` | yes |
//! | `_handlers` | `{"handlers":[…],"built_in":[…]}`; the first list is `welcome`'s | yes |
//! | `_await_handler` | an entry of that list, once the handler of this `name` is served | no |
//! | `_metrics` | a [`Report`], with `instance` and `uptime_s` | yes |
//! | `_peers` | `{"silent_shards":[…],"shards":[…]}`: of each shard the accepted and dialed peers | yes |
//! | `_dump` | `{"path":…}`, once the file is written | no |
//! | `_drain` | `{"draining":true}`, and the program is told; see [`RuntimeBuilder::on_drain_request`] | yes |
//!
//! [`RuntimeBuilder::on_drain_request`]: super::RuntimeBuilder::on_drain_request
//!
//! All take an empty payload or a JSON object, raw or as JSON, and answer JSON in the request's
//! codec. The first two run inline, on the shard that reads them. `_await_handler` runs as a
//! spawned handler does, within the same bounds. The others wait for shards or the file system, on
//! a thread of their own behind a queue of 16: what is beyond that is nacked `Overloaded`. Their
//! messages count as any others; but they have no histograms and no rows, so that a service that is
//! watched measures itself and not who watches.

use std::{
    fmt,
    io::{self, Write},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use quanta::{Clock, Instant};
use serde::Serialize;
use uuid::Uuid;

use super::{collector::Collector, listening::entries};
use crate::{
    config::Settings,
    handler::{Context, Failure, Handler, await_handler, built_in, built_in_job},
    metrics::Report,
    shard::ShardPeers,
    wire::{HandlerEntry, Reason},
};

/// Peers that `_peers` lists in all, of each kind: they take about half of a
/// message of the default limit.
const PEERS_LISTED: usize = 1_024;
/// And of each shard at least.
const PEERS_LISTED_MIN: usize = 16;

/// The names of all of them, as `_handlers` lists them.
const BUILT_IN: [&str; 7] = [
    "_await_handler",
    "_drain",
    "_dump",
    "_handlers",
    "_health",
    "_metrics",
    "_peers",
];

/// The built-in handler that lists these, and all built-in ones. Another takes its place whenever
/// these change, so that no shard looks at what another thread writes.
pub(super) fn listing(handlers: Vec<HandlerEntry>) -> Handler {
    let text = json(&Listing {
        handlers,
        built_in: BUILT_IN,
    });
    built_in("_handlers", true, move |_, reply| reply.write_all(&text))
}

/// What the built-in handlers know.
pub(super) struct Operator {
    instance: Uuid,
    clock: Clock,
    started: Instant,
    is_draining: AtomicBool,
    /// Set before any shard serves.
    collector: OnceLock<Arc<Mutex<Collector>>>,
    allows_drain: bool,
    orders: Mutex<Orders>,
}

/// What the program does when it is told to.
#[derive(Default)]
pub(super) struct Orders {
    pub(super) drain: Drain,
}

/// What `_drain` does.
#[derive(Default)]
pub(super) enum Drain {
    /// The program has not said.
    #[default]
    Nothing,
    /// It is to be told.
    Tell(Box<dyn FnOnce() + Send>),
    /// It was told.
    Told,
}

impl Operator {
    pub(super) fn new(instance: Uuid, clock: &Clock, settings: &Settings, orders: Orders) -> Self {
        Self {
            instance,
            started: clock.now(),
            clock: clock.clone(),
            is_draining: AtomicBool::new(false),
            collector: OnceLock::new(),
            allows_drain: settings.control().allow_drain,
            orders: Mutex::new(orders),
        }
    }

    /// The built-in handlers, beside these of a process of so many shards.
    pub(super) fn handlers(self: &Arc<Self>, users: &[Handler], shards: usize) -> Vec<Handler> {
        let mut handlers = vec![
            self.reading("_health", |it, cx, reply| it.health(cx.now(), reply)),
            self.job("_metrics", true, Self::metrics),
            self.job("_peers", true, Self::peers),
            self.job("_dump", false, Self::dump),
            self.job("_drain", true, Self::drain),
        ];
        handlers.push(listing(entries(users, shards)));
        handlers.push(await_handler());
        debug_assert!(
            handlers.iter().all(|it| BUILT_IN.contains(&it.name())),
            "each is listed"
        );
        handlers
    }

    /// Lets the handlers ask the shards.
    pub(super) fn collect_from(&self, collector: &Arc<Mutex<Collector>>) {
        let _ = self.collector.set(collector.clone());
    }

    /// From now on the process drains.
    pub(super) fn say_draining(&self) {
        self.is_draining.store(true, Relaxed);
    }

    fn reading(
        self: &Arc<Self>,
        name: &str,
        answer: impl Fn(&Self, &Context<'_>, &mut dyn Write) -> io::Result<()>
        + Clone
        + Send
        + Sync
        + 'static,
    ) -> Handler {
        let operator = self.clone();
        built_in(name, true, move |cx, reply| answer(&operator, cx, reply))
    }

    fn job(
        self: &Arc<Self>,
        name: &str,
        while_draining: bool,
        answer: impl Fn(&Self) -> Result<Bytes, Failure> + Send + Sync + 'static,
    ) -> Handler {
        let operator = self.clone();
        built_in_job(name, while_draining, move |_| answer(&operator))
    }

    fn health(&self, now: Instant, reply: &mut dyn Write) -> io::Result<()> {
        let health = Health {
            status: match self.is_draining.load(Relaxed) {
                true => "draining",
                false => "ok",
            },
            instance: self.instance,
            uptime_s: seconds(now.saturating_duration_since(self.started)),
        };
        Ok(serde_json::to_writer(reply, &health)?)
    }

    fn metrics(&self) -> Result<Bytes, Failure> {
        let report = self.collector()?.measure().report();
        Ok(json(&Metrics {
            instance: self.instance,
            uptime_s: seconds(self.clock.now().saturating_duration_since(self.started)),
            report,
        }))
    }

    fn peers(&self) -> Result<Bytes, Failure> {
        let mut collector = self.collector()?;
        let listed_max = (PEERS_LISTED / collector.shards()).max(PEERS_LISTED_MIN);
        let shards = collector.list_peers(listed_max);
        let is_silent = |shard: &usize| shards.iter().all(|list| list.shard != *shard);
        Ok(json(&Peers {
            silent_shards: (0..collector.shards()).filter(is_silent).collect(),
            shards,
        }))
    }

    fn drain(&self) -> Result<Bytes, Failure> {
        if !self.allows_drain {
            return Err(Failure {
                reason: Reason::Unauthorized,
                text: "the configuration does not say control.allow_drain = true".to_owned(),
            });
        }
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut orders.drain, Drain::Told) {
            Drain::Tell(tell) => tell(),
            Drain::Told => {}
            Drain::Nothing => {
                orders.drain = Drain::Nothing;
                return Err(failed("the program takes no drain requests"));
            }
        }
        Ok(json(&Draining { draining: true }))
    }

    fn dump(&self) -> Result<Bytes, Failure> {
        let mut collector = self.collector()?;
        let Some(path) = collector.dump_path() else {
            return Err(failed("the configuration names no metrics.dump_dir"));
        };
        collector
            .dump()
            .map_err(|error| failed(error.to_string()))?;
        Ok(json(&Dumped {
            path: path.display().to_string(),
        }))
    }

    fn collector(&self) -> Result<MutexGuard<'_, Collector>, Failure> {
        let collector = self.collector.get();
        let collector = collector.ok_or_else(|| failed("the process is starting"))?;
        Ok(collector.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Serialize)]
struct Listing {
    handlers: Vec<HandlerEntry>,
    built_in: [&'static str; BUILT_IN.len()],
}

#[derive(Serialize)]
struct Health {
    status: &'static str,
    instance: Uuid,
    uptime_s: f64,
}

#[derive(Serialize)]
struct Metrics {
    instance: Uuid,
    uptime_s: f64,
    #[serde(flatten)]
    report: Report,
}

#[derive(Serialize)]
struct Peers {
    silent_shards: Vec<usize>,
    shards: Vec<ShardPeers>,
}

#[derive(Serialize)]
struct Draining {
    draining: bool,
}

#[derive(Serialize)]
struct Dumped {
    path: String,
}

fn failed(text: impl Into<String>) -> Failure {
    Failure {
        reason: Reason::HandlerFailed,
        text: text.into(),
    }
}

fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value)
        .expect("numbers, texts and lists are JSON")
        .into()
}

/// To the millisecond: what people read.
fn seconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1e3
}

impl fmt::Debug for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operator").finish_non_exhaustive()
    }
}

impl fmt::Debug for Orders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Orders").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::REASON_NAMES;

    #[test]
    fn metrics_call_the_reasons_as_the_wire_does() {
        for (number, name) in REASON_NAMES.iter().enumerate().skip(1) {
            let number = u16::try_from(number).expect("a small number");
            assert_eq!(format!("{:?}", Reason::from_u16(number)), *name);
        }
    }
}
