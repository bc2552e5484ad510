//! Ten times too much load: what it costs those who are admitted.
//!
//! A server of one shard on one CPU, a client on another that sends at its own pace, whatever comes
//! back. Each scenario finds the server's peak by a closed loop, measures latencies just below it
//! and at half of it, sends ten times the peak, and then little again to see when all is as before.
//! Latencies count from when a request was due, and all of its time in the client's own queue is in
//! them.
//!
//! `cargo bench --bench overload` floods for a minute, `-- --quick` for two seconds each.

mod flood;
mod report;
mod scenario;

use std::{error::Error, fs, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use serde_json::json;

use self::scenario::{Kind, Scenario};

#[derive(Debug, Parser)]
#[command(name = "overload")]
struct Args {
    /// How long the first scenario, which the bars are held against, is flooded. The others: a
    /// tenth of that.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Two seconds each.
    #[arg(long)]
    quick: bool,
    /// How many times the peak.
    #[arg(long, default_value_t = 10.0)]
    times: f64,
    /// Only scenarios whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// Where to write the figures.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/overload.json"))]
    json: PathBuf,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The first one has the bars. 100 µs: at ten times the peak a refusal may cost one ninth of that
/// nine times, and a microsecond is 9%.
const SCENARIOS: [Scenario; 6] = [
    Scenario {
        name: "inline, 100 µs of CPU",
        kind: Kind::Inline,
        work: Duration::from_micros(100),
        target: Duration::from_millis(2),
        has_bars: true,
    },
    Scenario {
        name: "the same, without shedding",
        kind: Kind::Inline,
        work: Duration::from_micros(100),
        target: Duration::ZERO,
        has_bars: false,
    },
    Scenario {
        name: "inline, 50 µs",
        kind: Kind::Inline,
        work: Duration::from_micros(50),
        target: Duration::from_millis(1),
        has_bars: false,
    },
    Scenario {
        name: "inline, 20 µs",
        kind: Kind::Inline,
        work: Duration::from_micros(20),
        target: Duration::from_millis(1),
        has_bars: false,
    },
    Scenario {
        name: "spawned, 100 µs",
        kind: Kind::Spawned,
        work: Duration::from_micros(100),
        target: Duration::from_millis(2),
        has_bars: false,
    },
    Scenario {
        name: "blocking, 1 ms of sleep, 1 thread",
        kind: Kind::Blocking,
        work: Duration::from_millis(1),
        target: Duration::from_millis(20),
        has_bars: false,
    },
];

fn main() -> ExitCode {
    let mut args = Args::parse();
    if args.quick {
        args.seconds = 2.0;
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("overload: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let cpus = corelane::placement::probe()?.usable_ids();
    let machine = report::machine(&cpus);
    println!("{machine}");
    let pair = (cpus[0], *cpus.get(1).unwrap_or(&cpus[0]));
    if pair.0 == pair.1 {
        println!("FEWER CPUS THAN ENDS: these figures are the scheduler's");
    }
    let mut rows = Vec::new();
    for scenario in SCENARIOS.iter().filter(|it| it.name.contains(&args.only)) {
        let seconds = match scenario.has_bars || args.quick {
            true => args.seconds,
            false => (args.seconds / 10.0).max(2.0),
        };
        let span = Duration::try_from_secs_f64(seconds)?;
        let measured = scenario.measure(pair, span, args.times)?;
        report::print(scenario, &measured);
        rows.push(json!({ "scenario": scenario.name, "measured": measured }));
    }
    let all = json!({ "machine": machine, "times": args.times, "scenarios": rows });
    fs::write(&args.json, serde_json::to_string_pretty(&all)?)
        .map_err(|error| format!("cannot write {}: {error}", args.json.display()))?;
    println!("\nevery figure: {}", args.json.display());
    Ok(())
}
