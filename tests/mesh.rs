//! Several shards on whatever CPUs there are: messages that cross, clients that know where to send
//! them, rings that are full, and ends in the middle of it.

#[path = "mesh/aware.rs"]
mod aware;
#[path = "mesh/crossing.rs"]
mod crossing;
#[path = "mesh/storm.rs"]
mod storm;

use std::time::Duration;

use corelane::{
    Config, Runtime,
    config::{IdleStrategy, LimitsConfig},
    handler::Handler,
};

/// Far beyond what any step takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(30);

/// So many shards that listen at these endpoints, sharing CPUs where there are fewer.
fn start_at(
    endpoints: &[String],
    shards: usize,
    handlers: Vec<Handler>,
    limits: impl FnOnce(&mut LimitsConfig),
) -> Runtime {
    let config = config(endpoints, shards, limits);
    let builder = Runtime::builder(config).handlers(handlers);
    builder.start().expect("starts")
}

fn config(endpoints: &[String], shards: usize, limits: impl FnOnce(&mut LimitsConfig)) -> Config {
    let deadline_ms = PATIENCE.as_millis() as u64;
    Config::default()
        .with_shards(shards)
        .with_oversubscribe(true)
        .with_idle(IdleStrategy::Adaptive)
        .with_listen(endpoints.iter().cloned())
        .with_limits(|limits| limits.deadline_ms = deadline_ms)
        .with_limits(limits)
}

fn start(shards: usize, handlers: Vec<Handler>) -> Runtime {
    let anywhere = ["tcp://127.0.0.1:0".to_owned()];
    start_at(&anywhere, shards, handlers, |_| {})
}

/// A runtime that only calls.
fn caller(shards: usize) -> Runtime {
    start_at(&[], shards, Vec::new(), |_| {})
}

/// A number that a long run is given by the environment.
fn number(variable: &str, default: u64) -> u64 {
    let text = std::env::var(variable).ok();
    text.map_or(default, |text| text.parse().expect("a number"))
}
