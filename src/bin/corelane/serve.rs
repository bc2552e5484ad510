//! `corelane serve`: the demonstration handlers, from the first line of stdout to the last.

use std::{
    error::Error,
    io::{self, Write},
    panic::{self, Location},
    path::PathBuf,
    process::{self, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use corelane::{Config, Runtime, error::StartError, runtime::Totals};
use serde::Serialize;
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
    iterator::Signals,
};
use uuid::Uuid;

use crate::{args::ShardArgs, demo};

/// Where `serve` listens when nobody says where.
const LISTEN: &str = "tcp://127.0.0.1:7400";
/// The signals that stop it, and the exit codes by which shells know them.
const STOPPING: [(i32, i32); 2] = [(SIGINT, 128 + SIGINT), (SIGTERM, 128 + SIGTERM)];

/// Serves the demonstration handlers echo, sum, count, count.read, fail, panic, spin, sleep, block,
/// where, where.one (on the last shard) and where.key (by route key).
///
/// The first line on stdout is a JSON object, {"event":"ready",…}, with the endpoints that are
/// really bound. SIGTERM and SIGINT drain: nothing new is handled, what runs is finished within
/// limits.drain_ms, and the last line is {"event":"stopped",…} with how each accepted message
/// ended, and how many had to hop to another shard; the exit code is 0. A second signal exits at
/// once, with code 143 or 130. So does the first after a peer has called _drain, which does the
/// same where control.allow_drain is true.
///
/// Options go before what the configuration file says.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ServeArgs {
    /// Configuration, in TOML; examples/corelane.toml shows every key.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Where shard 0 listens: tcp://127.0.0.1:7400 (port 0: any free one) or ipc:///path. Shard k
    /// takes port + k and path.k. May be given several times. If neither option nor file names an
    /// endpoint: tcp://127.0.0.1:7400.
    #[arg(long, value_name = "ENDPOINT")]
    listen: Vec<String>,

    /// Number of shards; by default one per listed CPU, or per physical core.
    #[arg(long, value_name = "N")]
    shards: Option<usize>,

    #[command(flatten)]
    shard: ShardArgs,

    /// Directory for HDR histogram logs, which `corelane hist` reads.
    #[arg(long, value_name = "DIR")]
    dump: Option<PathBuf>,

    /// Seconds between two dumps; by default 10.
    #[arg(long, value_name = "SECONDS")]
    dump_interval: Option<u64>,
}

/// Serves until a signal says to stop.
pub(crate) fn run(args: &ServeArgs) -> Result<ExitCode, Box<dyn Error>> {
    // First, so that no signal finds the process without them.
    let is_stopping = Arc::new(AtomicBool::new(false));
    let mut signals = catch_signals(&is_stopping)?;
    log_panics();
    let waiting = signals.handle();
    let runtime = start(args, move || {
        is_stopping.store(true, Ordering::SeqCst);
        waiting.close();
    })?;
    print(&Ready::of(&runtime))?;
    signals.forever().next();
    print(&Stopped {
        event: "stopped",
        totals: runtime.drain(),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The first signal is waited for; the second ends the process from its handler, whatever runs.
fn catch_signals(is_stopping: &Arc<AtomicBool>) -> io::Result<Signals> {
    for (signal, code) in STOPPING {
        flag::register_conditional_shutdown(signal, code, is_stopping.clone())?;
        // Run in the order of registration: the flag is for the next one.
        flag::register(signal, is_stopping.clone())?;
    }
    Signals::new(STOPPING.map(|(signal, _)| signal))
}

/// A handler's panic is its peer's nack and one line of the log. The default hook would write a
/// backtrace, and nothing else runs on the shard meanwhile.
fn log_panics() {
    panic::set_hook(Box::new(|info| {
        let at = info.location().map(Location::to_string).unwrap_or_default();
        let text = info.payload_as_str().unwrap_or_default();
        tracing::error!(at, text, "a panic");
    }));
}

fn start(
    args: &ServeArgs,
    on_drain_request: impl FnOnce() + Send + 'static,
) -> Result<Runtime, StartError> {
    Runtime::builder(config(args)?)
        .handlers(demo::handlers())
        .on_drain_request(on_drain_request)
        .start()
}

fn config(args: &ServeArgs) -> Result<Config, StartError> {
    let mut config = match &args.config {
        Some(file) => Config::from_file(file)?,
        None => Config::default(),
    };
    if !args.listen.is_empty() {
        config = config.with_listen(&args.listen);
    } else if config.listen.endpoints.is_empty() {
        config = config.with_listen([LISTEN]);
    }
    if let Some(shards) = args.shards {
        config = config.with_shards(shards);
    }
    if let Some(directory) = &args.dump {
        config = config.with_dump_dir(directory);
    }
    if let Some(seconds) = args.dump_interval {
        config = config.with_dump_interval_s(seconds);
    }
    Ok(args.shard.apply(config))
}

#[derive(Serialize)]
struct Ready<'a> {
    event: &'static str,
    instance: Uuid,
    pid: u32,
    endpoints: &'a [String],
    shards: Vec<ReadyShard<'a>>,
}

#[derive(Serialize)]
struct ReadyShard<'a> {
    shard: usize,
    cpu: usize,
    endpoints: &'a [String],
}

impl<'a> Ready<'a> {
    fn of(runtime: &'a Runtime) -> Self {
        let shards = runtime.shards().map(|(info, endpoints)| ReadyShard {
            shard: info.shard,
            cpu: info.cpu,
            endpoints,
        });
        Ready {
            event: "ready",
            instance: runtime.instance(),
            pid: process::id(),
            endpoints: runtime.endpoints(),
            shards: shards.collect(),
        }
    }
}

#[derive(Serialize)]
struct Stopped {
    event: &'static str,
    #[serde(flatten)]
    totals: Totals,
}

/// Writes one line and sees it out: a script waits for it.
fn print(event: &impl Serialize) -> Result<(), Box<dyn Error>> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, event)?;
    writeln!(stdout)?;
    stdout.flush()?;
    Ok(())
}
