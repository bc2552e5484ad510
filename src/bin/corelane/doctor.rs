//! `corelane doctor`: what the machine is, where the shards would run, and what on this host would
//! slow them down.

mod cgroup;
mod checks;
mod facts;
mod host;
mod print;
#[cfg(test)]
mod tests;

use std::{
    error::Error,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use corelane::{
    Config,
    config::Settings,
    placement::{self, Plan, Topology},
};
use serde::Serialize;

use self::{
    checks::{Case, Check, Intent, Status},
    facts::Facts,
};
use crate::args::ShardArgs;

/// With `--strict`, for a host that has something to mend.
const WARNED: u8 = 1;

/// Shows the machine, where a configuration's shards would run on it, and what on this host would
/// slow them down, with what mends it.
///
/// Each check is OK, WARN, or SKIP where the host does not say. Nothing is changed and nothing is
/// started. The exit code is 0 whatever was found, or with --strict 1 if a check warns; what keeps
/// `corelane serve` from starting on these CPUs is an error here, too, with code 2.
///
/// --json prints one object: version (1), topology.cpus, plan.shards, plan.helper_cpus, checks (an
/// array of name, status "ok", "warn" or "unknown", found, why and, of a warning, remedy), warnings
/// and unknown (counts).
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct DoctorArgs {
    /// Configuration, in TOML, as `corelane serve` takes it; by default an empty one.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Number of shards; by default one per listed CPU, or per physical core.
    #[arg(long, value_name = "N")]
    shards: Option<usize>,

    #[command(flatten)]
    shard: ShardArgs,

    /// Prints one JSON object instead of tables.
    #[arg(long)]
    json: bool,

    /// Exits with code 1 if a check warns.
    #[arg(long)]
    strict: bool,

    /// Reads a copy of another machine's /proc and /sys below this directory. proc/self/status says
    /// which CPUs the process may use.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    topology: &'a Topology,
    plan: &'a Plan,
    checks: &'a [Check],
    warnings: usize,
    unknown: usize,
}

/// Looks, and prints to stdout.
pub(crate) fn run(args: &DoctorArgs) -> Result<ExitCode, Box<dyn Error>> {
    // As a start does it: whatever is wrong with the configuration comes before the machine.
    let settings = settings(args)?;
    let facts = match &args.root {
        None => Facts::of_this_machine()?,
        Some(root) => Facts::of_copy(root)?,
    };
    let plan = placement::place_on(&facts.topology, &settings)?;
    settings.listen_by_shard(plan.shards.len())?;
    let checks = checks::all(&Case {
        facts: &facts,
        plan: &plan,
        intent: intent(&settings),
    });
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let report = Report {
        version: 1,
        topology: &facts.topology,
        plan: &plan,
        checks: &checks,
        warnings: count(Status::Warn),
        unknown: count(Status::Unknown),
    };
    let mut out = io::stdout().lock();
    match args.json {
        true => {
            serde_json::to_writer(&mut out, &report)?;
            writeln!(out)?;
        }
        false => print::report(&mut out, &report)?,
    }
    out.flush()?;
    Ok(match args.strict && report.warnings > 0 {
        true => ExitCode::from(WARNED),
        false => ExitCode::SUCCESS,
    })
}

fn settings(args: &DoctorArgs) -> Result<Settings, Box<dyn Error>> {
    let mut config = match &args.config {
        Some(file) => Config::from_file(file)?,
        None => Config::default(),
    };
    if let Some(shards) = args.shards {
        config = config.with_shards(shards);
    }
    Ok(args.shard.apply(config).check()?)
}

fn intent(settings: &Settings) -> Intent {
    let limits = settings.limits();
    Intent {
        is_native: matches!(settings.engine(), corelane::config::Engine::Native),
        is_remote: settings
            .listen()
            .iter()
            .any(|endpoint| !endpoint.is_local()),
        buffered_bytes_max: limits.buffered_bytes_max as u64,
    }
}
