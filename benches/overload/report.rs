//! What is printed.

use std::fs;

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde_json::{Value, json};

use crate::{
    flood::Phase,
    scenario::{Measured, Scenario},
};

pub(crate) fn print(scenario: &Scenario, it: &Measured) {
    println!("\n{}: peak {:.0}/s", scenario.name, it.peak_per_s);
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header([
        "",
        "offered/s",
        "answered/s",
        "nacked/s",
        "not sent/s",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
    ]);
    for (name, phase) in [
        ("half of the peak", &it.half),
        ("0.9 of it", &it.near),
        ("far above it", &it.over),
    ] {
        table.add_row(cells(name, phase));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    let back = it.back_after_ms.unwrap_or(f64::INFINITY);
    let allowed_mib = it.resident_before_mib + 1.1 * it.budget_mib;
    let bars = [
        (
            it.goodput >= 0.9,
            format!("goodput {:.1}% of peak, bar 90%", 100.0 * it.goodput),
        ),
        (
            it.p99_ratio <= 2.0,
            format!("p99 {:.2}× that at 0.9 of the peak, bar 2×", it.p99_ratio),
        ),
        (
            it.resident_most_mib <= allowed_mib,
            format!(
                "resident {:.1} MiB, {:.1} before; bar {allowed_mib:.1}: that, a budget of {} MiB \
                 and 10% of it",
                it.resident_most_mib, it.resident_before_mib, it.budget_mib
            ),
        ),
        (
            back <= 20.0,
            format!("back to normal {back:.1} ms after the end, bar 20 ms"),
        ),
    ];
    for (holds, text) in bars {
        let verdict = match (scenario.has_bars, holds) {
            (false, _) => "    ",
            (true, true) => "ok  ",
            (true, false) => "MISS",
        };
        println!("{verdict} {text}");
    }
    let cost_ns = it.cost_per_refusal_ns;
    let cost = match cost_ns.is_finite() && cost_ns > 0.0 {
        true => {
            format!("; a refusal costs {cost_ns:.0} ns, if all that is missing to the peak is it")
        }
        false => String::new(),
    };
    println!("     {} shed{cost}", it.shed);
}

fn cells(name: &str, phase: &Phase) -> Vec<String> {
    let rates = [
        phase.offered_per_s,
        phase.answered_per_s,
        phase.nacked_per_s,
        phase.not_sent_per_s,
    ];
    let times = [phase.p50_us, phase.p99_us, phase.p99_9_us, phase.max_us];
    let rates = rates.iter().map(|rate| format!("{rate:.0}"));
    let times = times.iter().map(|us| format!("{:.2}", us / 1e3));
    let name = std::iter::once(name.to_owned());
    name.chain(rates).chain(times).collect()
}

pub(crate) fn machine(cpus: &[usize]) -> Value {
    let read = |path: &str| {
        fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let cpuinfo = read("/proc/cpuinfo");
    let mut models = cpuinfo.lines();
    let model = models.find_map(|line| line.strip_prefix("model name"));
    json!({
        "kernel": read("/proc/sys/kernel/osrelease"),
        "cpu": model.unwrap_or_default().trim_start_matches([' ', '\t', ':']),
        "cpus": cpus,
        "loadavg": read("/proc/loadavg"),
    })
}
