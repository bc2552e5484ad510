//! What a run must say of where it ran, and of what else ran there.

use std::{
    fs, thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use crate::meter::process_cpu_time;

/// The machine's default, for new sockets.
pub(crate) fn congestion() -> String {
    read("/proc/sys/net/ipv4/tcp_congestion_control")
}

pub(crate) fn describe() -> Value {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    json!({
        "time_s": since_epoch.unwrap_or_default().as_secs(),
        "kernel": read("/proc/sys/kernel/osrelease"),
        "cpu": cpu_model(),
        "cpus": thread::available_parallelism().map_or(0, usize::from),
        "congestion_control": congestion(),
        "clocksource": read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "loadavg": load_average(),
    })
}

/// Counts this process too.
pub(crate) fn load_average() -> String {
    read("/proc/loadavg")
}

/// The CPU time that others took while something was measured.
pub(crate) struct Others {
    since: Instant,
    machine: Duration,
    own: Duration,
}

impl Others {
    pub(crate) fn start() -> Self {
        Self {
            since: Instant::now(),
            machine: machine_cpu_time(),
            own: process_cpu_time(),
        }
    }

    /// In CPUs, a hypervisor's other guests among them.
    pub(crate) fn cpus(&self) -> f64 {
        let machine = machine_cpu_time().saturating_sub(self.machine);
        let own = process_cpu_time() - self.own;
        machine.saturating_sub(own).as_secs_f64() / self.since.elapsed().as_secs_f64()
    }
}

/// More than this, in CPUs, and others have disturbed a run.
pub(crate) const DISTURBANCE: f64 = 0.1;

/// Sleeps until others leave the machine alone, or the patience is used up.
pub(crate) fn wait_for_quiet(patience: &mut Duration) {
    const LOOK: Duration = Duration::from_millis(300);
    while !patience.is_zero() {
        let others = Others::start();
        thread::sleep(LOOK.min(*patience));
        *patience = patience.saturating_sub(LOOK);
        if others.cpus() < DISTURBANCE {
            return;
        }
    }
}

/// All that was not idle: user, nice, system, interrupts, stolen. In ticks of 10 ms, which every
/// Linux shows whatever its own tick.
fn machine_cpu_time() -> Duration {
    let stat = read("/proc/stat");
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    let busy = [0, 1, 2, 5, 6, 7].map(|field| ticks.get(field).copied().unwrap_or(0));
    Duration::from_millis(busy.iter().sum::<u64>() * 10)
}

fn cpu_model() -> String {
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split_once(':'));
    model
        .map_or("unknown", |(_, model)| model.trim())
        .to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}
