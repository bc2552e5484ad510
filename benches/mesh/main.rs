//! What it costs to have many shards: a hop beside two bare rings, and messages a second on one,
//! two and more shards with none, half and all of them crossing, beside what bare sockets make of
//! as many CPUs.
//!
//! `cargo bench --bench mesh -- --quick` takes some ten seconds, without `--quick` a minute or two.
//! All variants run in each round, one after the other, and ratios are those of one round.

mod raw;
mod report;
mod rings;
mod shards;

use std::{error::Error, fs, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use serde_json::json;

use self::{report::Row, rings::Rings, shards::Run};

/// A hop beside two bare rings, and messages a second over shards.
#[derive(Debug, Parser)]
#[command(name = "mesh")]
struct Args {
    /// How often each variant runs.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long each time, in seconds.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Shards at most; one, two, four and so on up to it. Without it: up to twice the CPUs.
    #[arg(long)]
    shards: Option<usize>,
    /// Three rounds of 0.1 s.
    #[arg(long)]
    quick: bool,
    /// Where to write every round's figures.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/mesh.json"))]
    json: PathBuf,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let mut args = Args::parse();
    if args.quick {
        (args.rounds, args.seconds) = (3, 0.1);
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mesh: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let cpus = corelane::placement::probe()?.usable_ids();
    let machine = report::machine(&cpus);
    println!("{machine}");
    let span = Duration::try_from_secs_f64(args.seconds)?;
    let rings = measure_rings(args, &cpus, span);
    let shards = measure_shards(args, &cpus, span)?;
    let report = json!({
        "machine": machine,
        "rounds": args.rounds,
        "seconds": args.seconds,
        "rings": rings,
        "shards": shards,
    });
    fs::write(&args.json, serde_json::to_string_pretty(&report)?)
        .map_err(|error| format!("cannot write {}: {error}", args.json.display()))?;
    println!("\nevery round: {}", args.json.display());
    Ok(())
}

fn measure_rings(args: &Args, cpus: &[usize], span: Duration) -> Vec<Row> {
    let pair = (cpus[0], *cpus.get(1).unwrap_or(&cpus[0]));
    println!("\nrings between CPU {} and CPU {}", pair.0, pair.1);
    if pair.0 == pair.1 {
        println!("FEWER CPUS THAN ENDS: these figures are the scheduler's");
    }
    let rounds: Vec<Rings> = (0..args.rounds).map(|_| Rings::run(pair, span)).collect();
    let figures = |figure: fn(&Rings) -> f64| rounds.iter().map(figure).collect::<Vec<_>>();
    let raw_hop = figures(|it| it.raw_hop_ns);
    let raw_rate = figures(|it| it.raw_million_per_s);
    let rows = vec![
        Row::new(
            "two bare rtrb rings, a number there and back, ns",
            raw_hop.clone(),
        ),
        Row::new(
            "a hop there and back, 64 bytes read and written, ns",
            figures(|it| it.hop_ns),
        )
        .over(&raw_hop),
        Row::new("wake-up calls meanwhile", figures(|it| it.woken as f64)),
        Row::new(
            "one bare rtrb ring, numbers in batches, million/s",
            raw_rate.clone(),
        ),
        Row::new(
            "hops in batches, there and back, million/s",
            figures(|it| it.unread_million_per_s),
        )
        .over(&raw_rate),
        Row::new(
            "the same, 64 bytes of each read and written at both ends, million/s",
            figures(|it| it.million_per_s),
        )
        .over(&raw_rate),
    ];
    report::print(&rows);
    rows
}

fn measure_shards(args: &Args, cpus: &[usize], span: Duration) -> Result<Vec<Row>, Box<dyn Error>> {
    let most = args.shards.unwrap_or(2 * cpus.len());
    let counts: Vec<usize> = (0..).map(|n| 1 << n).take_while(|&n| n <= most).collect();
    let mut runs = Vec::new();
    for &shards in &counts {
        let crossing = if shards == 1 { &[0][..] } else { &[0, 50, 100] };
        runs.extend(crossing.iter().map(|&percent| Run::busy(shards, percent)));
    }
    runs.push(Run::alone(0));
    runs.push(Run::alone(100));
    runs.push(Run::parking());
    println!(
        "\nrequests of 64 bytes, shards that serve themselves over tcp, {} under way each",
        shards::DEPTH
    );
    let mut bare = vec![Vec::new(); counts.len()];
    let mut rates = vec![Vec::new(); runs.len()];
    let mut woken = Vec::new();
    // CPUs differ, by who else uses them: each is the first in its round.
    let mut cpus = cpus.to_vec();
    for _ in 0..args.rounds {
        for (&threads, bare) in counts.iter().zip(&mut bare) {
            bare.push(raw::measure(threads, &cpus, span)?);
        }
        for (run, rates) in runs.iter().zip(&mut rates) {
            let measured = run.measure(&cpus, span)?;
            rates.push(measured.figure(run));
            if run.is_parking {
                woken.push(measured.woken_per_message());
            }
        }
        cpus.rotate_left(1);
    }
    let row = |name: &str, count: usize, rates: Vec<f64>, one: &[f64]| {
        let mut row = Row::new(name, rates);
        if count > 1 {
            let linear: Vec<f64> = one.iter().map(|rate| rate * count as f64).collect();
            row = row.over(&linear);
        }
        match count > cpus.len() {
            true => row.marked("FEWER CPUS THAN THREADS"),
            false => row,
        }
    };
    let (one_bare, one) = (bare[0].clone(), rates[0].clone());
    let mut rows: Vec<Row> = Vec::new();
    for (&threads, bare) in counts.iter().zip(bare) {
        let name = format!("{threads} threads, bare sockets, million/s");
        rows.push(row(&name, threads, bare, &one_bare));
    }
    for (run, rates) in runs.iter().zip(rates) {
        rows.push(match run.is_busy() {
            true => row(&run.name(), run.shards, rates, &one),
            false => Row::new(&run.name(), rates),
        });
    }
    rows.push(Row::new("shards woken per message meanwhile", woken));
    report::print(&rows);
    Ok(rows)
}
