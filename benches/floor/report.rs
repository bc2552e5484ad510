//! Medians of the rounds' figures and of their ratios to the floor of the same round.

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::{
    axes::{Axis, Figure, Metric},
    contestants::{Contestant, Transport},
    machine::DISTURBANCE,
    meter::{Measured, new_histogram},
};

/// Everything that was measured on one axis over one transport.
pub(crate) struct Results<'a> {
    pub(crate) axis: &'a Axis,
    pub(crate) transport: Transport,
    pub(crate) rows: Vec<Row>,
}

/// A contestant and its rounds, in their order.
pub(crate) struct Row {
    pub(crate) contestant: Contestant,
    pub(crate) rounds: Vec<Round>,
    /// Runs that were repeated; they count for nothing, and stand in the JSON.
    pub(crate) disturbed: Vec<Round>,
}

pub(crate) struct Round {
    pub(crate) outcome: Result<Measured, String>,
    /// CPUs that others used meanwhile.
    pub(crate) others_cpus: f64,
}

impl Results<'_> {
    pub(crate) fn print(&self) {
        let Self {
            axis, transport, ..
        } = self;
        println!("\n{} over {transport}", axis.name);
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        table.set_header([
            "contestant",
            "figure",
            "median",
            "min .. max",
            "all rounds",
            "samples",
            "× floor",
            "bar",
            "",
        ]);
        for metric in self.axis.metrics {
            for row in &self.rows {
                table.add_row(self.cells(metric, row));
            }
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        println!("{table}");
        for row in &self.rows {
            let failed: Vec<_> = row.failures().collect();
            if let Some(why) = failed.first() {
                let (name, times) = (&row.contestant.name, failed.len());
                println!("{name}: {times} of {} rounds: {why}", row.rounds.len());
            }
        }
        let repeated: usize = self.rows.iter().map(|row| row.disturbed.len()).sum();
        let rounds = self.rows.iter().flat_map(|row| &row.rounds);
        let disturbed = rounds.filter(|round| round.is_disturbed());
        let cpus: Vec<f64> = disturbed.map(|round| round.others_cpus).collect();
        if repeated > 0 {
            println!("{repeated} runs were disturbed by other processes, and repeated");
        }
        if let Some(median) = median(&cpus) {
            let runs = cpus.len();
            println!("{runs} runs above WERE DISTURBED: others used {median:.2} CPUs meanwhile");
        }
    }

    fn cells(&self, metric: &Metric, row: &Row) -> [String; 9] {
        let figure = metric.figure;
        let name = row.contestant.name.clone();
        let of_rounds = row.figures(figure);
        let Some(median) = median(&of_rounds) else {
            let why = row.failures().next().unwrap_or_default().to_owned();
            return [&name, figure.name(), &why, "", "", "", "", "", ""].map(String::from);
        };
        let least = of_rounds.iter().copied().fold(f64::INFINITY, f64::min);
        let most = of_rounds.iter().copied().fold(0.0, f64::max);
        let merged = row.merged();
        let is_quantile = matches!(figure, Figure::P50Us | Figure::P999Us) && !merged.is_empty();
        let merged_figure = match figure {
            Figure::P50Us => figure.text(merged.value_at_quantile(0.5) as f64 / 1e3),
            _ => figure.text(merged.value_at_quantile(0.999) as f64 / 1e3),
        };
        let ratio = self.ratio(metric, row);
        let ratio_text = ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let (bar, verdict) = match ratio {
            Some(ratio) if row.contestant.is_corelane() => {
                let verdict = if metric.is_met_by(ratio) {
                    "met"
                } else {
                    "missed"
                };
                (metric.bar_text(), verdict)
            }
            _ => (String::new(), ""),
        };
        [
            name,
            figure.name().into(),
            figure.text(median),
            format!("{} .. {}", figure.text(least), figure.text(most)),
            if is_quantile {
                merged_figure
            } else {
                String::new()
            },
            if is_quantile {
                merged.len().to_string()
            } else {
                String::new()
            },
            ratio_text,
            bar,
            verdict.into(),
        ]
    }

    /// The median of the rounds' ratios to the same round of the best floor: the one whose median
    /// is the best.
    fn ratio(&self, metric: &Metric, row: &Row) -> Option<f64> {
        let floor = self.best_floor(metric.figure)?;
        let pairs = row.rounds.iter().zip(&floor.rounds);
        let ratios: Vec<f64> = pairs
            .filter_map(|(round, floor)| {
                Some(round.figure(metric.figure)? / floor.figure(metric.figure)?)
            })
            .collect();
        median(&ratios)
    }

    fn best_floor(&self, figure: Figure) -> Option<&Row> {
        let floors = self.rows.iter().filter(|row| row.contestant.is_floor());
        let known = floors.filter_map(|row| Some((median(&row.figures(figure))?, row)));
        let best = match figure.is_better_low() {
            true => known.min_by(|a, b| a.0.total_cmp(&b.0)),
            false => known.max_by(|a, b| a.0.total_cmp(&b.0)),
        };
        best.map(|(_, row)| row)
    }

    pub(crate) fn to_json(&self) -> Value {
        let rows: Vec<Value> = self.rows.iter().map(|row| self.row_json(row)).collect();
        json!({
            "axis": self.axis.name,
            "transport": self.transport.to_string(),
            "contestants": rows,
        })
    }

    fn row_json(&self, row: &Row) -> Value {
        let mut summary = Map::new();
        for metric in self.axis.metrics {
            let ratio = self.ratio(metric, row);
            let of_metric = json!({
                "median": median(&row.figures(metric.figure)),
                "ratio_to_floor": ratio,
                "bar": metric.bar,
                "met": ratio.map(|ratio| metric.is_met_by(ratio)),
            });
            summary.insert(metric.figure.key().into(), of_metric);
        }
        let merged = row.merged();
        if !merged.is_empty() {
            let us = |quantile| merged.value_at_quantile(quantile) as f64 / 1e3;
            let of_all = json!({
                "p50_us": us(0.5), "p90_us": us(0.9), "p99_us": us(0.99), "p99.9_us": us(0.999),
                "max_us": merged.max() as f64 / 1e3, "samples": merged.len(),
            });
            summary.insert("merged".into(), of_all);
        }
        let rounds = |rounds: &[Round]| -> Vec<Value> {
            rounds.iter().map(|round| self.round_json(round)).collect()
        };
        json!({
            "name": row.contestant.name,
            "is_floor": row.contestant.is_floor(),
            "summary": summary,
            "rounds": rounds(&row.rounds),
            "disturbed": rounds(&row.disturbed),
        })
    }

    fn round_json(&self, round: &Round) -> Value {
        let mut figures = Map::new();
        figures.insert("others_cpus".into(), round.others_cpus.into());
        match &round.outcome {
            Err(why) => {
                figures.insert("failed".into(), why.as_str().into());
            }
            Ok(measured) => {
                for Metric { figure, .. } in self.axis.metrics {
                    figures.insert(figure.key().into(), figure.of(measured).into());
                }
                figures.insert("messages".into(), measured.count.into());
                figures.insert("samples".into(), measured.latency.len().into());
            }
        }
        Value::Object(figures)
    }
}

impl Round {
    pub(crate) fn is_disturbed(&self) -> bool {
        self.others_cpus > DISTURBANCE
    }

    fn figure(&self, figure: Figure) -> Option<f64> {
        let measured = self.outcome.as_ref().ok()?;
        Some(figure.of(measured))
    }
}

impl Row {
    fn figures(&self, figure: Figure) -> Vec<f64> {
        let rounds = self.rounds.iter();
        rounds.filter_map(|round| round.figure(figure)).collect()
    }

    fn failures(&self) -> impl Iterator<Item = &str> {
        let rounds = self.rounds.iter();
        rounds.filter_map(|round| round.outcome.as_ref().err().map(String::as_str))
    }

    /// Percentiles of all rounds are those of the merged histogram.
    fn merged(&self) -> Histogram<u64> {
        let mut merged = new_histogram();
        for measured in self.rounds.iter().flat_map(|round| &round.outcome) {
            merged
                .add(&measured.latency)
                .expect("they have the same bounds");
        }
        merged
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        even if even.is_multiple_of(2) => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
        _ => Some(sorted[middle]),
    }
}
