//! The checks of the host's own settings: pure functions of facts.

use super::{
    checks::{Case, Check, Outcome, counted, fine, list, nodes, unknown, warn},
    facts::Interrupt,
};

/// All of them.
pub(super) fn all(case: &Case<'_>) -> Vec<Check> {
    vec![
        isolation(case).named(
            "isolation",
            "whatever else the scheduler runs on a shard's CPU delays its messages",
        ),
        tick(case).named(
            "tick",
            "the scheduler's tick interrupts a shard 100 to 1,000 times a second",
        ),
        interrupts(case).named(
            "interrupts",
            "a shard stands still while its CPU serves a device",
        ),
        governor(case).named(
            "governor",
            "a core that has slowed down takes its time to be fast again when a message comes",
        ),
        huge_pages(case).named(
            "huge-pages",
            "with \"always\" the kernel stops threads to clear and to gather pages of 2 MiB",
        ),
        clock(case).named(
            "clock",
            "each turn reads the clock; one without a vDSO costs a system call",
        ),
        numa_balancing(case).named(
            "numa-balancing",
            "it unmaps pages to see who uses them: page faults, on threads that are pinned anyway",
        ),
        congestion(case).named(
            "congestion-control",
            "BBR paces loopback to two thirds of what cubic moves",
        ),
        busy_poll(case).named(
            "busy-poll",
            "at 0 what a network card has received waits for its interrupt",
        ),
    ]
}

/// Those of `cpus` that are not in `list`.
fn missing(cpus: &[usize], list: &[usize]) -> Vec<usize> {
    cpus.iter()
        .copied()
        .filter(|cpu| !list.contains(cpu))
        .collect()
}

fn isolation(case: &Case<'_>) -> Outcome {
    let cpus = case.shard_cpus();
    if case
        .facts
        .cgroup
        .as_ref()
        .is_some_and(|cgroup| cgroup.owns_cpus)
    {
        return fine("the cpuset's CPUs are in no other group");
    }
    let Some(isolated) = &case.facts.isolated else {
        return unknown("/sys/devices/system/cpu/isolated is not there");
    };
    let shared = missing(&cpus, isolated);
    match shared.is_empty() {
        true => fine(format!("CPUs {} are isolated", list(&cpus))),
        false => warn(
            format!("anything may be scheduled on CPUs {}", list(&shared)),
            format!(
                "boot with isolcpus={0}, or AllowedCPUs= for the other systemd slices",
                list(&cpus)
            ),
        ),
    }
}

fn tick(case: &Case<'_>) -> Outcome {
    let cpus = case.shard_cpus();
    let Some(tickless) = &case.facts.tickless else {
        return unknown("/sys/devices/system/cpu/nohz_full is not there: the kernel has none");
    };
    let ticking = missing(&cpus, tickless);
    match ticking.is_empty() {
        true => fine(format!(
            "CPUs {} have none while one thread runs",
            list(&cpus)
        )),
        false => warn(
            format!("CPUs {} have one", list(&ticking)),
            format!("boot with nohz_full={0} rcu_nocbs={0}", list(&cpus)),
        ),
    }
}

fn interrupts(case: &Case<'_>) -> Outcome {
    let cpus = case.shard_cpus();
    let Some(interrupts) = &case.facts.interrupts else {
        return unknown("/proc/interrupts cannot be read");
    };
    let served = |interrupt: &Interrupt| -> u64 {
        let here = interrupt.cpus.iter().filter(|cpu| cpus.contains(cpu));
        here.filter_map(|cpu| interrupt.counts.get(cpu)).sum()
    };
    let mut busy: Vec<(u64, &Interrupt)> = interrupts
        .iter()
        .map(|interrupt| (served(interrupt), interrupt))
        .filter(|(count, _)| *count > 0)
        .collect();
    if busy.is_empty() {
        return fine(format!("no device is served on CPUs {}", list(&cpus)));
    }
    busy.sort_by_key(|(count, interrupt)| (std::cmp::Reverse(*count), interrupt.number));
    let shown = busy.iter().take(3).map(|(count, interrupt)| {
        format!("{} {} {count} times", interrupt.number, interrupt.source)
    });
    let found = format!(
        "{} on CPUs {}: {}{}",
        counted(busy.len(), "device interrupt"),
        list(&cpus),
        shown.collect::<Vec<_>>().join(", "),
        if busy.len() > 3 { ", …" } else { "" }
    );
    let others = missing(&case.facts.topology.usable_ids(), &cpus);
    match others.is_empty() {
        true => warn(
            found,
            "leave a CPU to the system: there is none to move them to",
        ),
        false => warn(found, format!("{}; and stop irqbalance", case.apply())),
    }
}

fn governor(case: &Case<'_>) -> Outcome {
    let cpus = case.shard_cpus();
    let governors = &case.facts.governors;
    let known: Vec<(usize, &str)> = cpus
        .iter()
        .filter_map(|cpu| Some((*cpu, governors.get(cpu)?.as_str())))
        .collect();
    if known.is_empty() {
        return unknown("no cpufreq: a virtual machine's clock is its host's");
    }
    let slow: Vec<(usize, &str)> = known
        .into_iter()
        .filter(|(_, governor)| *governor != "performance")
        .collect();
    let Some((_, first)) = slow.first() else {
        return fine("performance");
    };
    let ids: Vec<usize> = slow.iter().map(|(cpu, _)| *cpu).collect();
    warn(format!("{first} on CPUs {}", list(&ids)), case.apply())
}

fn huge_pages(case: &Case<'_>) -> Outcome {
    match case.facts.huge_pages.as_deref() {
        None => unknown("/sys/kernel/mm/transparent_hugepage is not there"),
        Some("always") => warn("always", case.apply()),
        Some(other) => fine(other),
    }
}

/// Those that user space reads without the kernel.
const CLOCKS: [&str; 4] = [
    "tsc",
    "kvm-clock",
    "hyperv_clocksource_tsc_page",
    "arch_sys_counter",
];

fn clock(case: &Case<'_>) -> Outcome {
    match case.facts.clock_source.as_deref() {
        None => unknown("/sys/devices/system/clocksource is not there"),
        Some(name) if CLOCKS.contains(&name) => fine(name),
        Some(name) => warn(
            name,
            "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource, where \
             available_clocksource has it; boot with clocksource=tsc to keep it",
        ),
    }
}

fn numa_balancing(case: &Case<'_>) -> Outcome {
    let nodes = nodes(&case.facts.topology);
    if nodes < 2 {
        return fine("one node: nothing to balance");
    }
    match case.facts.numa_balancing {
        None => unknown("there is no kernel.numa_balancing: the kernel has none"),
        Some(0) => fine(format!("off, on {nodes} nodes")),
        Some(_) => warn(format!("on, on {nodes} nodes"), case.apply()),
    }
}

fn congestion(case: &Case<'_>) -> Outcome {
    let Some(name) = case.facts.congestion_control.as_deref() else {
        return unknown("there is no net.ipv4.tcp_congestion_control");
    };
    let mut allowed = case.facts.congestion_allowed.iter();
    let leaves = allowed.any(|name| ["cubic", "reno"].contains(&name.as_str()));
    match (name.starts_with("bbr"), case.intent.is_native) {
        (false, _) => fine(name),
        (true, true) if leaves => fine(format!(
            "{name}; within the host the native engine takes cubic or reno instead"
        )),
        (true, _) => warn(
            name,
            "sysctl -w net.ipv4.tcp_congestion_control=cubic, after a measurement between hosts; \
             or listen at ipc:// for peers on this host",
        ),
    }
}

fn busy_poll(case: &Case<'_>) -> Outcome {
    let (Some(read), Some(poll)) = (case.facts.busy_read_us, case.facts.busy_poll_us) else {
        return unknown("there is no net.core.busy_read: the kernel has none");
    };
    let found = format!("net.core.busy_read = {read}, net.core.busy_poll = {poll}");
    match (case.intent.is_remote, read) {
        (false, _) => fine(format!("{found}; nothing listens beyond this host")),
        (true, 0) => warn(
            found,
            "sysctl -w net.core.busy_read=50 net.core.busy_poll=50, and compare corelane hist",
        ),
        (true, _) => fine(found),
    }
}
