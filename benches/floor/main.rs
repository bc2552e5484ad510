//! How far above the floor: raw sockets, libzmq and corelane, interleaved round by round on the
//! same two CPUs, each figure beside its ratio to the best raw one of the same run.
//!
//! `cargo bench --bench floor -- --quick` takes under a minute, without `--quick` some fifteen;
//! `--help` names the options. A floor is a few lines of plain Rust: two pinned threads, a socket
//! each, the same bytes. Absolute times of a shared machine say little, ratios to a floor that ran
//! beside them say more.

mod args;
mod axes;
mod contestants;
mod lane;
mod libzmq;
mod machine;
mod meter;
mod raw;
mod report;
mod wire;

use std::{
    error::Error,
    fs,
    process::ExitCode,
    time::{Duration, Instant},
};

use core_affinity::CoreId;
use serde_json::{Value, json};
use tempfile::TempDir;

use self::{
    args::Args,
    axes::Axis,
    contestants::{Transport, field},
    machine::Others,
    meter::Measured,
    report::{Results, Round, Row},
};

/// What all contestants share.
pub(crate) struct Setup {
    client: CoreId,
    server: CoreId,
    /// Of Unix sockets.
    folder: TempDir,
}

impl Setup {
    fn new() -> Result<Self, Box<dyn Error>> {
        let cpus = core_affinity::get_core_ids().unwrap_or_default();
        let [client, server, ..] = cpus[..] else {
            return Err("two CPUs are needed, one for each end".into());
        };
        Ok(Self {
            client,
            server,
            folder: tempfile::tempdir()?,
        })
    }

    pub(crate) fn client_cpu(&self) -> usize {
        self.client.id
    }

    pub(crate) fn server_cpu(&self) -> usize {
        self.server.id
    }

    pub(crate) fn pin_client(&self) {
        core_affinity::set_for_current(self.client);
    }

    pub(crate) fn pin_server(&self) {
        core_affinity::set_for_current(self.server);
    }

    /// `port` is how a contestant calls any free one.
    pub(crate) fn endpoint(&self, transport: Transport, port: &str) -> String {
        match transport {
            Transport::Tcp => format!("tcp://127.0.0.1:{port}"),
            Transport::Ipc => format!("ipc://{}/floor", self.folder.path().display()),
        }
    }
}

fn main() -> ExitCode {
    let run = Args::parse(std::env::args().skip(1))
        .map_err(Box::from)
        .and_then(|args| run(&args));
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("floor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let setup = Setup::new()?;
    let machine = machine::describe();
    let (client, server) = (setup.client_cpu(), setup.server_cpu());
    println!("{machine}\nclient on CPU {client}, server on CPU {server}");
    let mut axes = Vec::new();
    for axis in args.axes() {
        for &transport in &args.transports {
            let results = measure(&setup, args, axis, transport);
            results.print();
            axes.push(results.to_json());
        }
    }
    let report = json!({
        "machine": machine,
        "loadavg_after": machine::load_average(),
        "config": config(args, &setup),
        "axes": axes,
    });
    fs::write(&args.json, serde_json::to_string_pretty(&report)?)
        .map_err(|error| format!("cannot write {}: {error}", args.json.display()))?;
    println!("\nevery round: {}", args.json.display());
    Ok(())
}

fn config(args: &Args, setup: &Setup) -> Value {
    json!({
        "arguments": std::env::args().skip(1).collect::<Vec<_>>(),
        "rounds": args.rounds(),
        "patience_s": args.patience().as_secs_f64(),
        "seconds": args.axes().map(|axis| {
            (axis.name.to_owned(), args.span(axis).measured.as_secs_f64().into())
        }).collect::<serde_json::Map<String, Value>>(),
        "client_cpu": setup.client_cpu(),
        "server_cpu": setup.server_cpu(),
    })
}

/// Every contestant once in each round, in an order that rotates, so that none always runs in the
/// wake of the same other.
fn measure<'a>(setup: &Setup, args: &Args, axis: &'a Axis, transport: Transport) -> Results<'a> {
    let field = field(axis, transport, &machine::congestion());
    let mut rows: Vec<Row> = field
        .into_iter()
        .filter(|it| it.is_floor() || args.wants(&it.name))
        .map(|contestant| Row {
            contestant,
            rounds: Vec::new(),
            disturbed: Vec::new(),
        })
        .collect();
    let mut patience = args.patience();
    for round in 0..args.rounds() {
        for place in 0..rows.len() {
            let at = (round + place) % rows.len();
            let Row {
                contestant,
                rounds,
                disturbed,
            } = &mut rows[at];
            let run = || contestant.run(setup, axis, transport, args.span(axis));
            rounds.push(undisturbed(run, &mut patience, disturbed));
        }
    }
    Results {
        axis,
        transport,
        rows,
    }
}

/// Runs again what others have disturbed, once they are quiet, for as long as there is patience
/// left. Which run counts is decided by what others did, never by how it came out.
fn undisturbed(
    run: impl Fn() -> Result<Measured, String>,
    patience: &mut Duration,
    disturbed: &mut Vec<Round>,
) -> Round {
    loop {
        let others = Others::start();
        let start = Instant::now();
        let outcome = run();
        let round = Round {
            outcome,
            others_cpus: others.cpus(),
        };
        *patience = patience.saturating_sub(start.elapsed());
        if !round.is_disturbed() || patience.is_zero() {
            return round;
        }
        disturbed.push(round);
        machine::wait_for_quiet(patience);
    }
}
