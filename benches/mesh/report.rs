//! Medians of the rounds' figures, and of their ratios to a figure of the same round.

use std::fs;

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde::Serialize;
use serde_json::{Value, json};

/// One figure of every round.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    name: String,
    rounds: Vec<f64>,
    ratios: Vec<f64>,
    mark: &'static str,
}

impl Row {
    pub(crate) fn new(name: &str, rounds: Vec<f64>) -> Self {
        Self {
            name: name.to_owned(),
            rounds,
            ratios: Vec::new(),
            mark: "",
        }
    }

    /// With its ratio to these, round by round.
    pub(crate) fn over(self, floor: &[f64]) -> Self {
        let pairs = self.rounds.iter().zip(floor);
        let ratios = pairs.map(|(figure, floor)| figure / floor).collect();
        Self { ratios, ..self }
    }

    pub(crate) fn marked(self, mark: &'static str) -> Self {
        Self { mark, ..self }
    }
}

pub(crate) fn print(rows: &[Row]) {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header(["", "median", "min .. max", "× floor or linear", ""]);
    for row in rows {
        let (least, most) = (bound(&row.rounds, f64::min), bound(&row.rounds, f64::max));
        let ratio = match row.ratios.is_empty() {
            true => String::new(),
            false => text(median(&row.ratios)),
        };
        table.add_row([
            row.name.clone(),
            text(median(&row.rounds)),
            format!("{} .. {}", text(least), text(most)),
            ratio,
            row.mark.to_owned(),
        ]);
    }
    for column in table.column_iter_mut().skip(1).take(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn bound(figures: &[f64], least_or_most: fn(f64, f64) -> f64) -> f64 {
    let figures = figures.iter().copied();
    figures.reduce(least_or_most).unwrap_or(f64::NAN)
}

/// Three digits say what such a machine can say.
fn text(figure: f64) -> String {
    match figure {
        _ if figure == 0.0 => "0".to_owned(),
        _ if figure < 10.0 => format!("{figure:.2}"),
        _ if figure < 100.0 => format!("{figure:.1}"),
        _ => format!("{figure:.0}"),
    }
}

pub(crate) fn machine(cpus: &[usize]) -> Value {
    let read = |path: &str| {
        fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    json!({
        "kernel": read("/proc/sys/kernel/osrelease"),
        "cpu": model.unwrap_or_default().trim_start_matches([' ', '\t', ':']),
        "cpus": cpus,
        "loadavg": read("/proc/loadavg"),
    })
}
