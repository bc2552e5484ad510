//! What a bench prints.

use std::{
    error::Error,
    io::{self, Write},
    path::Path,
    time::Duration,
};

use comfy_table::{CellAlignment, Table, presets::UTF8_HORIZONTAL_ONLY};
use corelane::metrics::{Metric, Percentiles, Snapshot};
use serde::Serialize;

use super::{BenchArgs, load::Tally};
use crate::{args::Mode, one_line};

/// The figures of a run, in the order in which they are printed.
#[derive(Serialize, Clone, Copy, Debug)]
pub(super) struct Report {
    mode: Mode,
    size: u64,
    /// `answered + nacked + indeterminate`, or the one-way messages that were given to the
    /// connection.
    sent: u64,
    answered: u64,
    nacked: u64,
    indeterminate: u64,
    /// From the first message to the last answer.
    seconds: f64,
    /// Messages that came to their end: with an answer or a nack; for one-way ones, sent before an
    /// answered message on the same connection.
    per_second: f64,
    /// Of the answered ones.
    latency_us: Percentiles,
    /// User and system time of this process, by message sent.
    cpu_us_per_message: f64,
}

impl Report {
    pub(super) fn new(args: &BenchArgs, tally: &Tally, snapshot: &Snapshot, cpu: Duration) -> Self {
        let took = tally.took();
        let ended = match args.mode {
            Mode::OneWay => tally.sent - tally.indeterminate,
            _ => tally.answered + tally.nacked,
        };
        let latency_us = snapshot.percentiles(Metric::RoundTrip, &args.handler);
        Report {
            mode: args.mode,
            size: args.size,
            sent: tally.sent,
            answered: tally.answered,
            nacked: tally.nacked,
            indeterminate: tally.indeterminate,
            seconds: round(took.as_secs_f64(), 6),
            per_second: round(ratio(ended as f64, took.as_secs_f64()), 1),
            latency_us: latency_us.unwrap_or_default(),
            cpu_us_per_message: round(ratio(cpu.as_secs_f64() * 1e6, tally.sent as f64), 3),
        }
    }

    /// Prints to stdout; with `--json` nothing but the object, and what else is to be said to
    /// stderr.
    pub(super) fn print(
        &self,
        args: &BenchArgs,
        tally: &Tally,
        dump: Option<&Path>,
    ) -> Result<(), Box<dyn Error>> {
        let mut out = io::stdout().lock();
        if args.json {
            serde_json::to_writer(&mut out, self)?;
            writeln!(out)?;
        } else {
            writeln!(out, "{}\n{}", self.counts(), self.latencies())?;
            let seconds = args.warm_up.as_secs_f64();
            writeln!(out, "after a warm-up of {seconds} s, which is not counted")?;
            if let Some(path) = dump {
                writeln!(out, "latencies: {}", path.display())?;
            }
        }
        out.flush()?;
        notes(tally)
            .iter()
            .for_each(|note| eprintln!("corelane: {note}"));
        Ok(())
    }

    fn counts(&self) -> Table {
        let heads = [
            "mode",
            "bytes",
            "sent",
            "answered",
            "nacked",
            "indeterminate",
            "seconds",
            "per second",
            "cpu µs each",
        ];
        table(
            heads.map(String::from).into(),
            vec![
                self.mode.as_str().to_owned(),
                self.size.to_string(),
                self.sent.to_string(),
                self.answered.to_string(),
                self.nacked.to_string(),
                self.indeterminate.to_string(),
                format!("{:.3}", self.seconds),
                format!("{:.0}", self.per_second),
                format!("{:.2}", self.cpu_us_per_message),
            ],
        )
    }

    fn latencies(&self) -> Table {
        let heads = Percentiles::HEADS.into_iter().chain(["samples"]);
        let samples = [self.latency_us.samples.to_string()];
        let cells = self.latency_us.cells().into_iter().chain(samples);
        table(heads.map(String::from).collect(), cells.collect())
    }
}

/// What the figures do not say by themselves.
fn notes(tally: &Tally) -> Vec<String> {
    let mut notes = Vec::new();
    if tally.late > 0 {
        let (late, latest) = (tally.late, tally.latest);
        notes.push(format!(
            "{late} messages left over 1 ms after they were due, the latest {latest:.1?} after; \
             their latencies count from when they were due"
        ));
    }
    if tally.refused > 0 {
        let refused = tally.refused;
        notes.push(format!(
            "{refused} messages were refused by a full queue; they are not among those sent"
        ));
    }
    if tally.unsent > 0 {
        let unsent = tally.unsent;
        notes.push(format!(
            "{unsent} messages never left; they are not among those sent"
        ));
    }
    if let Some(why) = &tally.ended_early {
        notes.push(format!("ended early: {}", one_line(why)));
    }
    notes
}

fn table(heads: Vec<String>, cells: Vec<String>) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY);
    table.set_header(heads).add_row(cells);
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// 0 of nothing is 0, which JSON can express.
fn ratio(of: f64, to: f64) -> f64 {
    if to > 0.0 { of / to } else { 0.0 }
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}
