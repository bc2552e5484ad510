//! `corelane top`: what a process's shards and handlers do, by its `_metrics`.

use std::{
    collections::HashMap,
    error::Error,
    io::{self, IsTerminal, Write},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};
use corelane::{
    Config, Runtime,
    client::{Client, Peer},
    config::Endpoint,
    error::CallError,
    metrics::{Counters, HandlerCounters, Latency, Report},
};
use serde::Deserialize;

use crate::{
    args::{seconds, within_ms},
    one_line,
};

/// Oftener than this, what is shown is mostly what it costs to show it.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// To the upper left, and nothing below.
const REDRAW: &str = "\u{1b}[H\u{1b}[J";

const NACKED: u8 = 1;
const UNANSWERED: u8 = 2;

/// Shows what each shard and each handler of a process does, again and again, until it is stopped.
///
/// It calls the built-in handler _metrics. Rates are per second, between two answers; in the first
/// table, since the process started. Percentiles are of the time in the handler, since the start,
/// in microseconds. A shard with a "!" has not answered, since one of its handlers does not return:
/// its row is old.
///
/// Where stdout is no terminal, each table follows the one before. The exit code is 1 after a nack,
/// and 2 if there is no answer to the first question.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct TopArgs {
    /// Where the process listens: tcp://host:port or ipc:///path.
    endpoint: Endpoint,

    /// Seconds between two questions.
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "1")]
    interval: Duration,

    /// Shows one table, and ends.
    #[arg(long)]
    once: bool,

    /// The time that an answer may take.
    #[arg(long, value_name = "MS", value_parser = within_ms, default_value = "5000")]
    within: Duration,
}

#[derive(Deserialize, Clone, Debug)]
struct Answer {
    instance: String,
    uptime_s: f64,
    #[serde(flatten)]
    report: Report,
}

/// Asks and shows.
pub(crate) fn run(args: &TopArgs) -> Result<ExitCode, Box<dyn Error>> {
    let runtime = Runtime::builder(Config::default().with_shards(1)).start()?;
    let client = runtime.client();
    let peer = client.connect(&args.endpoint.to_string())?;
    let mut stdout = io::stdout().lock();
    let redraws = stdout.is_terminal() && !args.once;
    let mut before: Option<Answer> = None;
    loop {
        let asked = Instant::now();
        match ask(client, &peer, args.within) {
            Ok(payload) => {
                let answer: Answer = serde_json::from_slice(&payload)
                    .map_err(|error| format!("{}: no _metrics: {error}", args.endpoint))?;
                // Another process since: nothing to compare with.
                let before = before.replace(answer.clone());
                let before = before.filter(|it| it.instance == answer.instance);
                let text = show(&args.endpoint.to_string(), before.as_ref(), &answer);
                let redraw = if redraws { REDRAW } else { "" };
                writeln!(stdout, "{redraw}{text}")?;
                stdout.flush()?;
            }
            Err(error) => {
                eprintln!("{}", one_line(&error.to_string()));
                match error {
                    CallError::Nack { .. } => return Ok(ExitCode::from(NACKED)),
                    // It may come back.
                    _ if before.is_some() && !args.once => {}
                    _ => return Ok(ExitCode::from(UNANSWERED)),
                }
            }
        }
        if args.once {
            return Ok(ExitCode::SUCCESS);
        }
        thread::sleep(
            args.interval
                .max(INTERVAL_MIN)
                .saturating_sub(asked.elapsed()),
        );
    }
}

fn ask(client: &Client, peer: &Peer, within: Duration) -> Result<Vec<u8>, CallError> {
    let message = client.message("_metrics").to(peer);
    Ok(message.request().within(within).wait()?.into())
}

fn show(endpoint: &str, before: Option<&Answer>, now: &Answer) -> String {
    let (since_s, what) = match before {
        Some(before) => (now.uptime_s - before.uptime_s, "since the table before"),
        None => (now.uptime_s, "since its start"),
    };
    let rates = Rates { since_s };
    format!(
        "{endpoint}  {}  up {:.0} s  in flight {}  rates: {what}\n{}\n{}",
        now.instance.escape_debug(),
        now.uptime_s,
        now.report.in_flight,
        shards(before, now, rates),
        handlers(before, now, rates),
    )
}

/// Differences of totals, per second.
#[derive(Clone, Copy)]
struct Rates {
    since_s: f64,
}

impl Rates {
    fn cell(self, before: u64, now: u64) -> String {
        // Two answers within one millisecond tell no rate.
        let rate = now.saturating_sub(before) as f64 / self.since_s.max(1e-3);
        format!("{rate:.0}")
    }
}

fn shards(before: Option<&Answer>, now: &Answer, rates: Rates) -> Table {
    let mut table = table(&[
        "shard",
        "accepted/s",
        "handled/s",
        "nacked/s",
        "lost",
        "hops in/s",
        "woken/s",
        "tasks",
        "pool",
        "overruns",
        "turn p99 µs",
        "max µs",
    ]);
    for shard in &now.report.shards {
        let earlier = before.and_then(|it| it.report.shards.get(shard.shard));
        let old = earlier.map(|it| it.counters).unwrap_or_default();
        let new = shard.counters;
        let rate = |of: fn(&Counters) -> u64| rates.cell(of(&old), of(&new));
        let turn = |of: fn(&Latency) -> u64| {
            shard
                .turn_ns
                .as_ref()
                .map_or(String::new(), |it| us(of(it)))
        };
        let is_silent = now.report.silent_shards.contains(&shard.shard);
        table.add_row([
            format!("{}{}", shard.shard, if is_silent { " !" } else { "" }),
            rate(|it| it.accepted),
            rate(|it| it.handled),
            rate(Counters::nacked),
            (new.lost + new.indeterminate).to_string(),
            rate(|it| it.hopped_in),
            rate(|it| it.shards_woken),
            new.spawned_now.to_string(),
            new.blocking_now.to_string(),
            new.inline_overruns.to_string(),
            turn(|it| it.p99),
            turn(|it| it.max),
        ]);
    }
    table
}

fn handlers(before: Option<&Answer>, now: &Answer, rates: Rates) -> Table {
    let mut table = table(&[
        "handler",
        "runs/s",
        "nacked/s",
        "overruns",
        "longest µs",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "max µs",
    ]);
    let earlier = before.iter().flat_map(|it| &it.report.handlers);
    let earlier: HashMap<&str, HandlerCounters> =
        earlier.map(|it| (it.name.as_str(), it.counters)).collect();
    for handler in &now.report.handlers {
        let name = handler.name.as_str();
        let old = earlier.get(name).copied().unwrap_or_default();
        let new = handler.counters;
        let latency = handler.in_handler_ns;
        let percentile =
            |of: fn(&Latency) -> u64| latency.as_ref().map_or(String::new(), |it| us(of(it)));
        table.add_row([
            // A name comes from a peer: what would steer the terminal is shown escaped.
            name.escape_debug().to_string(),
            rates.cell(old.runs, new.runs),
            rates.cell(old.nacked(), new.nacked()),
            new.overruns.to_string(),
            us(new.longest_inline_ns),
            percentile(|it| it.p50),
            percentile(|it| it.p99),
            percentile(|it| it.p99_9),
            percentile(|it| it.max),
        ]);
    }
    table
}

fn us(ns: u64) -> String {
    format!("{:.1}", ns as f64 / 1e3)
}

fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY);
    table.set_header(heads);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(uptime_s: f64, accepted: u64, runs: u64) -> Answer {
        let text = format!(
            r#"{{"instance":"i","uptime_s":{uptime_s},"silent_shards":[1],"in_flight":3,
            "shards":[{{"shard":0,"accepted":{accepted}}},{{"shard":1}}],
            "handlers":[{{"name":"a\u001bb","runs":{runs}}}]}}"#
        );
        serde_json::from_str(&text).expect("an answer")
    }

    #[test]
    fn rates_are_differences_and_names_steer_nothing() {
        let first = answer(10.0, 1_000, 50);
        let alone = show("ipc:///a", None, &first);
        assert!(alone.contains("since its start"), "{alone}");
        assert!(alone.contains(" 100 ") && alone.contains(" 5 "), "{alone}");
        assert!(
            alone.contains("1 !") && alone.contains("in flight 3"),
            "{alone}"
        );
        assert!(
            !alone.contains('\u{1b}') && alone.contains("a\\u{1b}b"),
            "{alone}"
        );
        let second = answer(12.0, 1_500, 90);
        let both = show("ipc:///a", Some(&first), &second);
        assert!(both.contains(" 250 ") && both.contains(" 20 "), "{both}");
    }
}
