//! A snapshot as plain numbers: what `_metrics` answers and `corelane top` shows.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{Counters, HandlerCounters, Metric, Snapshot};

/// What a [`Snapshot`] holds, in JSON: counters by shard and handler, and percentiles in
/// nanoseconds. Members that a reader does not know may be added; those that a writer does not know
/// are 0 or empty.
///
/// Names of handlers and numbers, and nothing else: no payload, nor any part of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Shards that are shown as they last were: [`Snapshot::silent_shards`].
    pub silent_shards: Vec<usize>,
    /// Accepted messages of all shards that are not resolved yet.
    pub in_flight: u64,
    /// By number.
    pub shards: Vec<ShardReport>,
    /// The handlers that users have registered, in that order, over all shards.
    pub handlers: Vec<HandlerReport>,
    /// The handlers that this process has called, wherever they run.
    pub called: Vec<CalledReport>,
}

/// One shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShardReport {
    /// Its number.
    pub shard: usize,
    /// Totals since it started.
    #[serde(flatten)]
    pub counters: Counters,
    /// [`Metric::Turn`]; none if it had nothing to do yet.
    pub turn_ns: Option<Latency>,
    /// The handlers that have run on it.
    pub handlers: Vec<ShardHandlerReport>,
}

/// One handler on one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ShardHandlerReport {
    /// Its name.
    pub name: String,
    /// Totals since the shard started.
    #[serde(flatten)]
    pub counters: HandlerCounters,
}

/// One handler on all shards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HandlerReport {
    /// Its name.
    pub name: String,
    /// Totals since the start.
    #[serde(flatten)]
    pub counters: HandlerCounters,
    /// [`Metric::InHandler`]; none if it did not run.
    pub in_handler_ns: Option<Latency>,
    /// [`Metric::ReadToReply`]; none if it did not reply.
    pub read_to_reply_ns: Option<Latency>,
}

/// One handler that was called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CalledReport {
    /// As [`Series::handler`](super::Series::handler).
    pub name: String,
    /// [`Metric::RoundTrip`].
    pub round_trip_ns: Latency,
}

/// Percentiles of a histogram, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    /// How many samples stand behind it.
    pub count: u64,
    /// The median.
    pub p50: u64,
    /// Nine in ten were no longer than this.
    pub p90: u64,
    /// 99 in 100.
    pub p99: u64,
    /// 999 in 1,000.
    #[serde(rename = "p99.9")]
    pub p99_9: u64,
    /// 9,999 in 10,000.
    #[serde(rename = "p99.99")]
    pub p99_99: u64,
    /// The longest.
    pub max: u64,
}

impl Snapshot {
    /// What it holds as plain numbers. Allocates, and walks each histogram five times.
    pub fn report(&self) -> Report {
        let called = self.series().filter(|it| it.metric == Metric::RoundTrip);
        Report {
            silent_shards: self.silent_shards().to_vec(),
            in_flight: self.total().in_flight(),
            shards: (0..self.shards().len()).map(|it| self.shard(it)).collect(),
            handlers: self
                .handlers()
                .map(|view| HandlerReport {
                    name: view.name.to_owned(),
                    counters: view.counters,
                    in_handler_ns: view.in_handler.map(Latency::from),
                    read_to_reply_ns: view.read_to_reply.map(Latency::from),
                })
                .collect(),
            called: called
                .map(|it| CalledReport {
                    name: it.handler.into_owned(),
                    round_trip_ns: it.histogram.into(),
                })
                .collect(),
        }
    }

    fn shard(&self, shard: usize) -> ShardReport {
        let handlers = self.shard_handlers(shard);
        let has_run = handlers.filter(|(_, counters)| *counters != HandlerCounters::default());
        ShardReport {
            shard,
            counters: self.shards()[shard],
            turn_ns: self.turns(shard).map(Latency::from),
            handlers: has_run
                .map(|(name, counters)| ShardHandlerReport {
                    name: name.to_owned(),
                    counters,
                })
                .collect(),
        }
    }
}

impl From<&Histogram<u64>> for Latency {
    /// Walks it once per percentile; does not allocate.
    fn from(ns: &Histogram<u64>) -> Self {
        // By quantile, as `Percentiles` does, and why.
        Latency {
            count: ns.len(),
            p50: ns.value_at_quantile(0.5),
            p90: ns.value_at_quantile(0.9),
            p99: ns.value_at_quantile(0.99),
            p99_9: ns.value_at_quantile(0.999),
            p99_99: ns.value_at_quantile(0.9999),
            max: ns.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Blank, Recorder};
    use super::*;

    #[test]
    fn a_report_is_read_back_as_it_was_written() {
        let names: Arc<[String]> = Arc::from(["echo".to_owned(), "idle".to_owned()]);
        let mut recorder = Recorder::new(names.clone());
        recorder.counters.accepted = 4;
        recorder.counters.handled = 2;
        recorder.counters.count_nack(5);
        for us in 1..=1_000 {
            recorder.record_inline_run(0, us * 1_000, 900_000);
        }
        recorder.record_nack(0, 2);
        recorder.record_round_trip(7, 10);
        let mut snapshot = Snapshot::new(names, 2);
        snapshot.add(1, &recorder.take(Blank::new(2)));
        snapshot.set_silent(vec![0]);

        let report = snapshot.report();
        assert_eq!((report.in_flight, &report.silent_shards), (1, &vec![0]));
        assert!(report.shards[0].handlers.is_empty());
        let on_shard = &report.shards[1].handlers;
        assert_eq!((on_shard.len(), on_shard[0].name.as_str()), (1, "echo"));
        let echo = &report.handlers[0];
        assert_eq!((echo.counters.runs, echo.counters.overruns), (1_000, 100));
        assert_eq!((echo.counters.nacked(), echo.read_to_reply_ns), (1, None));
        let latency = echo.in_handler_ns.expect("it ran");
        assert!((500_000..=500_500).contains(&latency.p50), "{latency:?}");
        assert!((990_000..=991_000).contains(&latency.p99), "{latency:?}");
        assert_eq!(latency.count, 1_000);
        assert_eq!(report.handlers[1].in_handler_ns, None);
        assert_eq!(report.called[0].round_trip_ns.count, 1);

        let text = serde_json::to_string(&report).expect("JSON");
        assert!(
            text.contains(r#""nacked_by_reason":{"Overloaded":1}"#),
            "{text}"
        );
        assert!(text.contains(r#""p99.9":"#), "{text}");
        let read: Report = serde_json::from_str(&text).expect("a report");
        assert_eq!(read, report);
        let empty: Report = serde_json::from_str(r#"{"later":[]}"#).expect("a report");
        assert_eq!(empty, Report::default());
    }
}
