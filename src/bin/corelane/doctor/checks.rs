//! The checks of what the process may have, and of what is planned: pure functions of facts.

use corelane::{
    config::Cpus,
    placement::{Plan, Topology},
    shard,
};
use serde::Serialize;

use super::facts::{Facts, IoUring, Limit};

/// What is judged: a host, and what is to run there.
pub(super) struct Case<'a> {
    pub(super) facts: &'a Facts,
    pub(super) plan: &'a Plan,
    pub(super) intent: Intent,
}

/// What of the configuration bears on the checks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Intent {
    /// Whether its engine is the native one.
    pub(super) is_native: bool,
    /// Whether it listens where other hosts reach it.
    pub(super) is_remote: bool,
    /// Bytes that one shard may buffer.
    pub(super) buffered_bytes_max: u64,
}

/// One check's outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    /// Stable, for scripts.
    pub(super) name: &'static str,
    pub(super) status: Status,
    /// What was found.
    pub(super) found: String,
    /// Why it matters.
    pub(super) why: &'static str,
    /// What mends it, of a warning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remedy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Ok,
    Warn,
    /// The host does not say.
    Unknown,
}

/// A check before it has its name and its reason.
pub(super) struct Outcome(Status, String, Option<String>);

pub(super) fn fine(found: impl Into<String>) -> Outcome {
    Outcome(Status::Ok, found.into(), None)
}

pub(super) fn warn(found: impl Into<String>, remedy: impl Into<String>) -> Outcome {
    Outcome(Status::Warn, found.into(), Some(remedy.into()))
}

/// The host does not say: why not.
pub(super) fn unknown(why: &str) -> Outcome {
    Outcome(Status::Unknown, why.to_owned(), None)
}

impl Outcome {
    pub(super) fn named(self, name: &'static str, why: &'static str) -> Check {
        let Outcome(status, found, remedy) = self;
        Check {
            name,
            status,
            found,
            why,
            remedy,
        }
    }
}

/// All checks, those first without which nothing starts.
pub(super) fn all(case: &Case<'_>) -> Vec<Check> {
    let mut checks = vec![
        io_uring(case).named(
            "io-uring",
            "each shard parks on one; without it nothing starts",
        ),
        locked_memory(case).named(
            "locked-memory",
            "below 512 KiB a shard's executor does not start",
        ),
        open_files(case).named(
            "open-files",
            "a connection takes one; at the limit none is accepted",
        ),
        oversubscription(case).named(
            "oversubscription",
            "shards that share a CPU wait for each other, for milliseconds if they spin",
        ),
        smt(case).named(
            "smt",
            "two shards on one core have little more than half its speed each",
        ),
        spare_cpu(case).named(
            "spare-cpu",
            "the system, the dumper and libzmq's threads interrupt a shard whose CPU they share",
        ),
        cpu_quota(case).named(
            "cpu-quota",
            "a process that has used up its quota stands still until the period ends, up to 100 ms",
        ),
        memory_limit(case).named(
            "memory-limit",
            "over the limit the kernel kills the process",
        ),
    ];
    checks.extend(super::host::all(case));
    checks
}

impl Case<'_> {
    /// The CPUs of the shards, each once, ascending.
    pub(super) fn shard_cpus(&self) -> Vec<usize> {
        let mut cpus: Vec<usize> = self.plan.shards.iter().map(|place| place.cpu).collect();
        cpus.sort_unstable();
        cpus.dedup();
        cpus
    }

    pub(super) fn apply(&self) -> String {
        format!(
            "tuning/apply.sh --cpus {} --apply",
            list(&self.shard_cpus())
        )
    }
}

/// As the kernel and the configuration write it.
pub(super) fn list(cpus: &[usize]) -> String {
    Cpus::List(cpus.to_vec()).to_string()
}

/// `1 thing`, `2 things`.
pub(super) fn counted(count: usize, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

fn io_uring(case: &Case<'_>) -> Outcome {
    let allow = "sysctl -w kernel.io_uring_disabled=0; in a container allow io_uring_setup, \
                 io_uring_enter and io_uring_register in its seccomp profile";
    match &case.facts.io_uring {
        IoUring::Works => fine("one can be made"),
        IoUring::Setting(0) => fine("kernel.io_uring_disabled is 0; none was made"),
        IoUring::Setting(setting) => warn(format!("kernel.io_uring_disabled is {setting}"), allow),
        IoUring::Refused(why) => warn(why.clone(), allow),
        IoUring::Unknown => unknown("there is no kernel.io_uring_disabled, and none was made"),
    }
}

fn locked_memory(case: &Case<'_>) -> Outcome {
    match case.facts.locked_memory {
        None => unknown("/proc/self/limits says nothing of it"),
        Some(Limit::Unlimited) => fine("unlimited"),
        Some(limit @ Limit::AtMost(bytes)) => {
            let found = format!("{} may be locked", size(bytes));
            match limit.allows(shard::MEMLOCK_BYTES_MIN) {
                true => fine(found),
                false => warn(
                    found,
                    "ulimit -l 512; LimitMEMLOCK=infinity in a systemd unit; --ulimit memlock=-1 \
                     for a container",
                ),
            }
        }
    }
}

/// Fewer connections than this are soon had.
const CONNECTIONS_FEW: u64 = 1_000;

fn open_files(case: &Case<'_>) -> Outcome {
    let needed = shard::descriptors_needed(case.plan.shards.len());
    match case.facts.open_files {
        None => unknown("/proc/self/limits says nothing of them"),
        Some(Limit::Unlimited) => fine("unlimited"),
        Some(limit @ Limit::AtMost(most)) => {
            let left = most.saturating_sub(needed);
            let found = format!("{most}, which leaves {left} for connections");
            match limit.allows(needed + CONNECTIONS_FEW) {
                true => fine(found),
                false => warn(
                    found,
                    "ulimit -n 65536; LimitNOFILE=65536 in a systemd unit; --ulimit nofile=65536 \
                     for a container",
                ),
            }
        }
    }
}

fn oversubscription(case: &Case<'_>) -> Outcome {
    let (shards, cpus) = (case.plan.shards.len(), case.shard_cpus().len());
    let found = format!("{} on {}", counted(shards, "shard"), counted(cpus, "CPU"));
    match shards > cpus {
        true => warn(
            found,
            "ask for one shard per CPU, or take idle.strategy = \"park\" for tests",
        ),
        false => fine(found),
    }
}

fn smt(case: &Case<'_>) -> Outcome {
    let cpus = case.shard_cpus();
    let siblings = |cpu: usize| {
        let cpu = case.facts.topology.cpu(cpu);
        cpu.map_or(&[][..], |cpu| &cpu.smt_siblings[..])
    };
    let shares = |&&cpu: &&usize| siblings(cpu).iter().any(|sibling| cpus.contains(sibling));
    let shared: Vec<usize> = cpus.iter().filter(shares).copied().collect();
    if !shared.is_empty() {
        return warn(
            format!("shards on CPUs {} share cores", list(&shared)),
            "ask for fewer shards, or list one CPU of each core in placement.cpus",
        );
    }
    let is_on = |id: &&usize| case.facts.topology.cpu(**id).is_some_and(|cpu| cpu.online);
    let mut idle: Vec<usize> = cpus
        .iter()
        .flat_map(|&cpu| siblings(cpu).iter().filter(is_on).copied())
        .collect();
    idle.sort_unstable();
    match idle.is_empty() {
        true => fine("each shard has its core to itself"),
        false => fine(format!(
            "no two shards share a core; whatever runs on CPUs {} shares one with a shard",
            list(&idle)
        )),
    }
}

fn spare_cpu(case: &Case<'_>) -> Outcome {
    let cpus = case.shard_cpus();
    let helpers = &case.plan.helper_cpus;
    match helpers.iter().any(|cpu| cpus.contains(cpu)) {
        false => fine(format!(
            "CPUs {} are left to everything else",
            list(helpers)
        )),
        true => warn(
            "shards have every CPU that this process may use",
            "ask for one shard less, or give the process another CPU",
        ),
    }
}

fn cpu_quota(case: &Case<'_>) -> Outcome {
    let Some(cgroup) = &case.facts.cgroup else {
        return unknown("no control group can be read");
    };
    let Some(quota) = cgroup.quota_cpus else {
        return fine("none");
    };
    let cpus = case.shard_cpus().len();
    let found = format!("{quota:.2} CPUs, and shards have {cpus}");
    match quota < cpus as f64 {
        true => warn(
            found,
            "raise cpu.max of the group (CPUQuota= in a systemd unit, --cpus for a container), or \
             better give it a cpuset (--cpuset-cpus) and no quota",
        ),
        false => fine(found),
    }
}

fn memory_limit(case: &Case<'_>) -> Outcome {
    let Some(cgroup) = &case.facts.cgroup else {
        return unknown("no control group can be read");
    };
    let Some(limit) = cgroup.memory_bytes else {
        return fine("none");
    };
    let shards = case.plan.shards.len();
    let needed = case.intent.buffered_bytes_max.saturating_mul(shards as u64);
    let found = format!(
        "{}, and {} may buffer {}",
        size(limit),
        counted(shards, "shard"),
        size(needed)
    );
    match needed > limit {
        true => warn(
            found,
            "raise memory.max of the group (MemoryMax= in a systemd unit, --memory for a \
             container), or lower limits.buffered_bytes_max",
        ),
        false => fine(found),
    }
}

fn size(bytes: u64) -> String {
    const UNITS: [(u32, &str); 3] = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let fits = |(shift, _): &&(u32, &str)| bytes >> shift > 0;
    match UNITS.iter().find(fits) {
        Some((shift, unit)) => {
            let amount = bytes as f64 / f64::from(1_u32 << shift);
            let digits = usize::from(amount.fract() > 0.0);
            format!("{amount:.digits$} {unit}")
        }
        None => format!("{bytes} bytes"),
    }
}

/// How many NUMA nodes have a CPU that is on.
pub(super) fn nodes(topology: &Topology) -> usize {
    let online = topology.cpus.iter().filter(|cpu| cpu.online);
    let mut nodes: Vec<usize> = online.map(|cpu| cpu.numa_node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes.len()
}
