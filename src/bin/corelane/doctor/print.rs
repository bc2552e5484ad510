//! The report for people.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use comfy_table::{Table, presets::UTF8_HORIZONTAL_ONLY};
use corelane::placement::{CoreKind, Cpu, Memory, Plan, Topology};

use super::{
    Report,
    checks::{Status, counted, list},
};
use crate::one_line;

/// Tables of the machine and the plan, then each check.
pub(super) fn report(out: &mut impl Write, report: &Report<'_>) -> io::Result<()> {
    writeln!(out, "Machine\n{}\n", machine(report.topology))?;
    writeln!(out, "Plan\n{}", plan(report.plan))?;
    writeln!(
        out,
        "other threads: CPUs {}\n",
        list(&report.plan.helper_cpus)
    )?;
    writeln!(out, "Checks")?;
    for check in report.checks {
        let status = match check.status {
            Status::Ok => "OK",
            Status::Warn => "WARN",
            Status::Unknown => "SKIP",
        };
        // Names of devices are the host's: nothing of them steers the terminal.
        writeln!(
            out,
            "{status:<4}  {:<18}  {}",
            check.name,
            one_line(&check.found)
        )?;
        if let Some(remedy) = &check.remedy {
            writeln!(out, "{:26}why: {}", "", check.why)?;
            writeln!(out, "{:26}do:  {remedy}", "")?;
        }
    }
    let (warnings, unknown) = (report.warnings, report.unknown);
    writeln!(
        out,
        "\n{}, {unknown} skipped, {} OK; tuning/README.md says what each brings",
        counted(warnings, "warning"),
        report.checks.len() - warnings - unknown
    )
}

/// A row per NUMA node.
fn machine(topology: &Topology) -> Table {
    let mut nodes: BTreeMap<usize, Vec<&Cpu>> = BTreeMap::new();
    for cpu in &topology.cpus {
        nodes.entry(cpu.numa_node).or_default().push(cpu);
    }
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "node",
        "sockets",
        "cores",
        "CPUs",
        "efficiency",
        "offline",
        "not allowed",
    ]);
    for (node, cpus) in nodes {
        let those = |wanted: &dyn Fn(&Cpu) -> bool| {
            let found = cpus.iter().filter(|cpu| wanted(cpu));
            let mut ids: Vec<usize> = found.map(|cpu| cpu.id).collect();
            ids.sort_unstable();
            ids
        };
        let is_first = |cpu: &Cpu| cpu.smt_siblings.iter().all(|&sibling| sibling > cpu.id);
        let mut sockets: Vec<usize> = cpus.iter().map(|cpu| cpu.package).collect();
        sockets.sort_unstable();
        sockets.dedup();
        table.add_row([
            node.to_string(),
            list(&sockets),
            those(&is_first).len().to_string(),
            list(&those(&|_| true)),
            list(&those(&|cpu| cpu.kind == CoreKind::Efficiency)),
            list(&those(&|cpu| !cpu.online)),
            list(&those(&|cpu| cpu.online && !cpu.allowed)),
        ]);
    }
    table
}

/// A row per NUMA node: shards and CPUs in the same order.
fn plan(plan: &Plan) -> Table {
    let mut nodes: BTreeMap<usize, (Vec<usize>, Vec<usize>, Memory)> = BTreeMap::new();
    for place in &plan.shards {
        let (shards, cpus, _) =
            nodes
                .entry(place.numa_node)
                .or_insert((Vec::new(), Vec::new(), place.memory));
        shards.push(place.shard);
        cpus.push(place.cpu);
    }
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY);
    table.set_header(["shards", "CPUs", "node", "memory"]);
    for (node, (shards, cpus, memory)) in nodes {
        let memory = match memory {
            Memory::Inherit => "as the process was started",
            Memory::Local => "its node's first",
            Memory::Bind(_) => "its node's alone",
        };
        table.add_row([
            list(&shards),
            list(&cpus),
            node.to_string(),
            memory.to_owned(),
        ]);
    }
    table
}
