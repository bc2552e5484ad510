//! `corelane bench`: load on a peer, from pinned shards, and what it took.

mod departures;
mod flights;
mod load;
mod report;
mod watch;

use std::{
    error::Error,
    num::NonZero,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use corelane::{
    Config, Runtime,
    config::Endpoint,
    metrics::{Counters, DumpWriter, Snapshot},
    wire::HandlerKey,
};
use rustix::time::{ClockId, clock_gettime};

use self::{
    departures::{Extent, Pace},
    load::{Load, Message, Tally},
    report::Report,
};
use crate::args::{Mode, ShardArgs, route_key, seconds, within_ms};

/// Beyond this the peer could not keep the correlations apart from a leak.
const OUTSTANDING_MAX: i64 = 1 << 20;
const RATE_MAX: i64 = 1_000_000_000;
/// The wire counts a payload in 32 bits; this leaves room for a header in every limit.
const SIZE_BYTES_MAX: i64 = 1 << 30;
const DURATION: Duration = Duration::from_secs(10);

/// Measures a peer: latency and messages per second, as seen from pinned shards of this process.
///
/// With --outstanding a closed loop: each answer makes room for the next message. With --rate an
/// open loop: messages are due on a schedule that waits for nobody, and a latency counts from when
/// its message was due, so that a stall shows in all messages that it delayed. What left late or
/// was refused by a full queue is told.
///
/// One-way messages have no latency: they are counted, and a confirmed message on the same
/// connection, sent last, tells when all of them have arrived.
///
/// A warm-up of the same load goes before; nothing of it is in the figures or the dump. The exit
/// code is 1 if the load ended before it was meant to.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct BenchArgs {
    /// Where the peer listens: tcp://host:port or ipc:///path.
    #[arg(long, value_name = "ENDPOINT")]
    connect: Endpoint,

    /// The handler's name.
    #[arg(long, value_name = "NAME", default_value = "echo")]
    handler: String,

    /// The route key of all messages, for a handler that is sharded by key.
    #[arg(long, value_name = "N", value_parser = route_key)]
    route_key: Option<NonZero<u64>>,

    /// How messages are delivered.
    #[arg(long, value_enum, default_value_t = Mode::Request)]
    mode: Mode,

    /// Bytes of each payload, which is raw.
    #[arg(long, value_name = "BYTES", default_value_t = 64,
          value_parser = clap::value_parser!(u64).range(..=SIZE_BYTES_MAX as u64))]
    size: u64,

    /// Closed loop: so many requests or confirms under way at once, over all shards. One-way
    /// messages fill the queue instead.
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "rate",
          value_parser = clap::value_parser!(u64).range(1..=OUTSTANDING_MAX as u64))]
    outstanding: u64,

    /// Open loop: so many messages due per second, over all shards.
    #[arg(long, value_name = "PER_S",
          value_parser = clap::value_parser!(u64).range(1..=RATE_MAX as u64))]
    rate: Option<u64>,

    /// Seconds to measure; by default 10.
    #[arg(long, value_name = "S", value_parser = seconds, conflicts_with = "count")]
    duration: Option<Duration>,

    /// Messages to measure, instead of a duration.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Seconds of the same load before the measurement.
    #[arg(long, value_name = "S", value_parser = seconds, default_value = "0.5")]
    warm_up: Duration,

    /// The deadline of each message.
    #[arg(long, value_name = "MS", value_parser = within_ms, default_value = "5000")]
    within: Duration,

    #[command(flatten)]
    shard: ShardArgs,

    /// Directory for an HDR histogram log of the latencies, which `corelane hist` reads.
    #[arg(long, value_name = "DIR")]
    dump: Option<PathBuf>,

    /// Prints one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// Runs the load and prints what it took.
pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode, Box<dyn Error>> {
    let mut dump = match &args.dump {
        Some(directory) => Some(DumpWriter::create(directory, SystemTime::now())?),
        None => None,
    };
    let runtime = Runtime::builder(config(args)).start()?;
    let mut loads = make_loads(args, &runtime)?;
    let reached = run_phase(args, &runtime, &mut loads, Phase::Connect)?;
    if let Some(why) = reached.ended_early {
        return Err(why.into());
    }
    run_phase(args, &runtime, &mut loads, Phase::WarmUp)?;
    loads.iter_mut().for_each(Load::forget);

    let (began, cpu_before) = (SystemTime::now(), cpu_used());
    let tally = run_phase(args, &runtime, &mut loads, Phase::Measure)?;
    let cpu = cpu_used().saturating_sub(cpu_before);

    let snapshot = merge(args, loads);
    if let Some(dump) = &mut dump {
        dump.write(&snapshot, began, SystemTime::now())?;
    }
    let dump_path = dump.as_ref().map(DumpWriter::path);
    Report::new(args, &tally, &snapshot, cpu).print(args, &tally, dump_path)?;
    Ok(match tally.ended_early {
        None => ExitCode::SUCCESS,
        Some(_) => ExitCode::FAILURE,
    })
}

/// A run has three, each with all shards at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// One message by each shard: whether there is anybody.
    Connect,
    WarmUp,
    Measure,
}

impl Phase {
    fn pace(self, args: &BenchArgs, shards: usize) -> Pace {
        match (self, args.rate) {
            (Phase::Connect, _) => Pace::Closed {
                outstanding: shards as u64,
            },
            (_, Some(per_s)) => Pace::Open { per_s },
            (_, None) => Pace::Closed {
                outstanding: args.outstanding,
            },
        }
    }

    fn extent(self, args: &BenchArgs, shards: usize) -> Extent {
        match (self, args.count) {
            (Phase::Connect, _) => Extent::Count(shards as u64),
            (Phase::WarmUp, _) => Extent::For(args.warm_up),
            (Phase::Measure, Some(count)) => Extent::Count(count),
            (Phase::Measure, None) => Extent::For(args.duration.unwrap_or(DURATION)),
        }
    }
}

/// Runs a phase on every shard, and adds up what came of it.
fn run_phase(
    args: &BenchArgs,
    runtime: &Runtime,
    loads: &mut Vec<Load>,
    phase: Phase,
) -> Result<Tally, Box<dyn Error>> {
    let shards = loads.len();
    let extent = phase.extent(args, shards);
    let pace = phase.pace(args, shards);
    let progress = Arc::new(watch::Progress::new(shards));
    let running = loads.drain(..).enumerate().map(|(shard, load)| {
        let progress = progress.clone();
        runtime.run_on(shard, move |cx| {
            load.run(
                cx,
                pace.share(shard, shards),
                extent.share(shard, shards),
                progress,
            )
        })
    });
    let running: Vec<_> = running.collect();
    let is_watched = phase == Phase::Measure && !args.json;
    let mut total = Tally::default();
    for (load, tally) in watch::wait(running, &progress, extent, is_watched) {
        loads.push(load);
        total.add(tally);
    }
    match loads.len() == shards {
        true => Ok(total),
        false => Err("a shard stopped before its load had ended; the log says why".into()),
    }
}

fn make_loads(args: &BenchArgs, runtime: &Runtime) -> Result<Vec<Load>, Box<dyn Error>> {
    let shards = runtime.shards().count();
    if args.rate.is_none() && args.outstanding < shards as u64 {
        return Err(format!(
            "--outstanding {} leaves some of the {shards} shards without work; raise it, or name \
             fewer --cpus",
            args.outstanding
        )
        .into());
    }
    let message = Message {
        handler: args.handler.as_str().into(),
        route_key: args.route_key.map_or(0, NonZero::get),
        payload: Bytes::from(vec![b'x'; usize::try_from(args.size)?]),
        mode: args.mode,
        within: args.within,
    };
    let endpoint = args.connect.to_string();
    let connect = |shard| {
        let peer = runtime.client().connect_from(shard, &endpoint)?;
        Ok(Load::new(message.clone(), peer))
    };
    (0..shards).map(connect).collect()
}

/// Limits that the load fits into: what is measured is the way of the messages, not a queue.
fn config(args: &BenchArgs) -> Config {
    let config = match args.shard.lists_cpus() {
        true => Config::default(),
        false => Config::default().with_shards(1),
    };
    // Header and framing of one message.
    let message_bytes = args.size + 128;
    // The way that was asked for is the one that is measured.
    let config = args.shard.apply(config).with_prefer_ipc(false);
    config.with_limits(|limits| {
        let under_way = args.outstanding;
        limits.message_bytes_max = limits.message_bytes_max.max(args.size);
        limits.outgoing_messages_max = limits.outgoing_messages_max.max(under_way);
        limits.inbox_capacity = limits.inbox_capacity.max(under_way);
        limits.outstanding_max = limits.outstanding_max.max(under_way);
        let queued_bytes = message_bytes.saturating_mul(under_way);
        limits.outgoing_bytes_max = limits.outgoing_bytes_max.max(queued_bytes);
        limits.buffered_bytes_max = limits.buffered_bytes_max.max(limits.outgoing_bytes_max);
    })
}

/// The samples of all shards: the printed percentiles and the dump are both made from these.
fn merge(args: &BenchArgs, loads: Vec<Load>) -> Snapshot {
    let mut snapshot = Snapshot::new(Arc::from([]), loads.len());
    snapshot.name_called(HandlerKey::of(&args.handler).get(), &args.handler);
    for (shard, load) in loads.into_iter().enumerate() {
        snapshot.add(shard, &load.into_interval());
    }
    // A bench serves nobody.
    debug_assert_eq!(snapshot.total(), Counters::default());
    snapshot
}

/// User and system time of all threads of this process, as getrusage has it.
fn cpu_used() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
