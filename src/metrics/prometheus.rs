//! A snapshot in Prometheus' text format, for whoever serves it over HTTP.

use std::fmt::{self, Write};

use hdrhistogram::Histogram;

use super::{Counters, HandlerCounters, Metric, REASON_NAMES, REASONS, Snapshot};

/// The quantiles of a summary: those of every table of corelane.
const QUANTILES: [(f64, &str); 5] = [
    (0.5, "0.5"),
    (0.9, "0.9"),
    (0.99, "0.99"),
    (0.999, "0.999"),
    (0.9999, "0.9999"),
];
const NS_PER_S: f64 = 1e9;

impl Snapshot {
    /// All counters, by shard and handler, and the histograms as summaries in seconds, in
    /// Prometheus' text format, version 0.0.4 (`text/plain; version=0.0.4`). Needs the feature
    /// `prometheus`.
    ///
    /// Counters and summaries cover all time since the start, if the snapshot does, as that of
    /// [`Runtime::metrics`](crate::Runtime::metrics) does. Handlers' names are escaped, so that any
    /// will do. Allocates the text, and walks each histogram six times.
    pub fn to_prometheus(&self) -> String {
        let mut text = String::new();
        // A String takes what it is given.
        let _ = self.write_prometheus(&mut text);
        text
    }

    fn write_prometheus(&self, out: &mut String) -> fmt::Result {
        for Family { name, kind, help } in &families(&Counters::default()).map(|it| it.0) {
            head(out, name, kind, help)?;
            for (shard, counters) in self.shards().iter().enumerate() {
                for (family, value) in families(counters) {
                    if family.name == *name {
                        writeln!(out, "corelane_{name}{{shard=\"{shard}\"}} {value}")?;
                    }
                }
            }
        }
        head(out, "nacked_total", COUNTER, "Messages refused or failed.")?;
        for (shard, counters) in self.shards().iter().enumerate() {
            for (reason, count) in REASON_NAMES.iter().zip(counters.nacked_by_reason) {
                let labels = format!("shard=\"{shard}\",reason=\"{reason}\"");
                writeln!(out, "corelane_nacked_total{{{labels}}} {count}")?;
            }
        }
        let silent = "1 if the shard did not answer in time, and is shown as it last was.";
        head(out, "shard_silent", GAUGE, silent)?;
        for shard in 0..self.shards().len() {
            let is_silent = u8::from(self.silent_shards().contains(&shard));
            writeln!(
                out,
                "corelane_shard_silent{{shard=\"{shard}\"}} {is_silent}"
            )?;
        }
        self.write_handlers(out)?;
        for (metric, help) in [
            (Metric::InHandler, "From a handler's call to its return."),
            (
                Metric::ReadToReply,
                "From a message's read to its reply's write.",
            ),
            (Metric::RoundTrip, "From the send of a call to its answer."),
        ] {
            let name = format!("{}_seconds", metric.as_str());
            head(out, &name, "summary", help)?;
            for series in self.series().filter(|it| it.metric == metric) {
                let label = format!("handler=\"{}\"", Label(&series.handler));
                summary(out, &name, &label, series.histogram)?;
            }
        }
        let help = "From the beginning of a shard's turn that worked to its end.";
        head(out, "turn_seconds", "summary", help)?;
        for shard in 0..self.shards().len() {
            if let Some(turns) = self.turns(shard) {
                summary(out, "turn_seconds", &format!("shard=\"{shard}\""), turns)?;
            }
        }
        Ok(())
    }

    fn write_handlers(&self, out: &mut String) -> fmt::Result {
        type Of = fn(&HandlerCounters) -> u64;
        let families: [(&str, &str, Of); 9] = [
            ("accepted_total", "Messages that named it.", |it| {
                it.accepted
            }),
            ("handled_total", "Runs without an error.", |it| it.handled),
            ("runs_total", "Runs that ended.", |it| it.runs),
            ("indeterminate_total", "Runs that were stopped.", |it| {
                it.indeterminate
            }),
            ("lost_total", "Messages dropped without a run.", |it| {
                it.lost
            }),
            ("overruns_total", "Inline runs over their budget.", |it| {
                it.overruns
            }),
            ("demotions_total", "Shards on which it was demoted.", |it| {
                it.demotions
            }),
            ("under_way", "Messages under way now.", |it| {
                it.under_way_now
            }),
            ("under_way_most", "The most of them at once.", |it| {
                it.under_way_most
            }),
        ];
        for (name, help, of) in families {
            let name = format!("handler_{name}");
            let is_total = name.ends_with("_total");
            head(out, &name, if is_total { COUNTER } else { GAUGE }, help)?;
            self.each_handler(|shard, handler, counters| {
                let labels = format!("shard=\"{shard}\",handler=\"{}\"", Label(handler));
                writeln!(out, "corelane_{name}{{{labels}}} {}", of(counters))
            })?;
        }
        let name = "handler_longest_inline_seconds";
        head(out, name, GAUGE, "The longest inline run since the start.")?;
        self.each_handler(|shard, handler, counters| {
            let longest_s = counters.longest_inline_ns as f64 / NS_PER_S;
            let labels = format!("shard=\"{shard}\",handler=\"{}\"", Label(handler));
            writeln!(out, "corelane_{name}{{{labels}}} {longest_s}")
        })?;
        type Reasons = fn(&HandlerCounters) -> &[u64; REASONS];
        let families: [(&str, &str, Reasons); 2] = [
            (
                "handler_nacked_total",
                "Runs that ended with a nack.",
                |it| &it.nacked_by_reason,
            ),
            (
                "handler_refused_total",
                "Messages nacked without a run.",
                |it| &it.refused_by_reason,
            ),
        ];
        for (name, help, of) in families {
            head(out, name, COUNTER, help)?;
            self.each_handler(|shard, handler, counters| {
                let handler = Label(handler);
                // Most reasons never come about.
                let counts = REASON_NAMES.iter().zip(of(counters));
                for (reason, count) in counts.filter(|(_, count)| **count > 0) {
                    let labels =
                        format!("shard=\"{shard}\",handler=\"{handler}\",reason=\"{reason}\"");
                    writeln!(out, "corelane_{name}{{{labels}}} {count}")?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn each_handler(
        &self,
        mut write: impl FnMut(usize, &str, &HandlerCounters) -> fmt::Result,
    ) -> fmt::Result {
        for shard in 0..self.shards().len() {
            for (handler, counters) in self.shard_handlers(shard) {
                write(shard, handler, &counters)?;
            }
        }
        Ok(())
    }
}

const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";

/// What a shard has one number of.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
}

/// Taken apart, so that a new counter that is not shown does not compile.
fn families(counters: &Counters) -> [(Family, u64); 41] {
    let Counters {
        accepted,
        handled,
        nacked_by_reason: _,
        indeterminate,
        lost,
        shed,
        stopped,
        hopped_out,
        hopped_in,
        shards_woken,
        woken,
        spawned,
        spawned_now,
        spawned_most,
        blocking,
        blocking_now,
        blocking_most,
        batched,
        batches,
        batched_now,
        batched_most,
        outstanding_now,
        outstanding_most,
        inbox_now,
        inbox_most,
        ring_now,
        ring_most,
        outgoing_now,
        outgoing_most,
        late_answers,
        malformed,
        inline_overruns,
        demoted,
        calls,
        answered,
        call_nacked,
        call_indeterminate,
        not_sent,
        one_way_sent,
        one_way_lost,
        answers_lost,
        slow_consumers,
    } = *counters;
    let family = |kind, name, help| Family { name, kind, help };
    let total = |name, help, value| (family(COUNTER, name, help), value);
    let gauge = |name, help, value| (family(GAUGE, name, help), value);
    [
        total(
            "accepted_total",
            "Messages whose header was read.",
            accepted,
        ),
        total("handled_total", "Messages whose handler returned.", handled),
        total(
            "indeterminate_total",
            "Messages that may have run.",
            indeterminate,
        ),
        total("lost_total", "Messages dropped after acceptance.", lost),
        total("shed_total", "Those nacked for having waited.", shed),
        total(
            "hopped_out_total",
            "Messages handed to another shard.",
            hopped_out,
        ),
        total(
            "hopped_in_total",
            "Messages that other shards handed over.",
            hopped_in,
        ),
        total(
            "shards_woken_total",
            "Sleeping shards that were woken.",
            shards_woken,
        ),
        total("woken_total", "Times that a parked shard was woken.", woken),
        total(
            "stopped_total",
            "Handlers stopped before their end.",
            stopped,
        ),
        total("batched_total", "Messages collected for batches.", batched),
        total("batches_total", "Batches that were run.", batches),
        total(
            "demoted_total",
            "Inline handlers that were demoted.",
            demoted,
        ),
        total("spawned_total", "Tasks spawned for handlers.", spawned),
        gauge("spawned", "Spawned handlers that run now.", spawned_now),
        gauge("spawned_most", "The most of them at once.", spawned_most),
        total("blocking_total", "Messages handed to the pool.", blocking),
        gauge("blocking", "Those not answered yet.", blocking_now),
        gauge("blocking_most", "The most of them at once.", blocking_most),
        gauge("batched", "Messages that wait for batches.", batched_now),
        gauge("batched_most", "The most of them at once.", batched_most),
        gauge("outstanding", "Calls without an answer.", outstanding_now),
        gauge("outstanding_most", "The most at once.", outstanding_most),
        gauge("inbox", "Submissions that wait.", inbox_now),
        gauge("inbox_most", "The most of them found.", inbox_most),
        gauge("ring", "What waits in the fullest ring.", ring_now),
        gauge("ring_most", "The most found in one.", ring_most),
        gauge("outgoing", "What the fullest outbox holds.", outgoing_now),
        gauge("outgoing_most", "The most in one.", outgoing_most),
        total(
            "late_answers_total",
            "Answers dropped as late or foreign.",
            late_answers,
        ),
        total(
            "malformed_total",
            "Headers that could not be read.",
            malformed,
        ),
        total(
            "inline_overruns_total",
            "Inline runs over their budget.",
            inline_overruns,
        ),
        total("calls_total", "Calls that were to be sent.", calls),
        total(
            "calls_answered_total",
            "Calls that were answered.",
            answered,
        ),
        total("calls_nacked_total", "Calls that were nacked.", call_nacked),
        total(
            "calls_indeterminate_total",
            "Calls without an answer.",
            call_indeterminate,
        ),
        total("calls_not_sent_total", "Calls that never left.", not_sent),
        total(
            "one_way_sent_total",
            "One-way messages that left.",
            one_way_sent,
        ),
        total(
            "one_way_lost_total",
            "One-way messages that never left.",
            one_way_lost,
        ),
        total(
            "answers_lost_total",
            "Answers that were not sent.",
            answers_lost,
        ),
        total(
            "slow_consumers_total",
            "Connections cut as too slow.",
            slow_consumers,
        ),
    ]
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) -> fmt::Result {
    writeln!(out, "# HELP corelane_{name} {help}")?;
    writeln!(out, "# TYPE corelane_{name} {kind}")
}

fn summary(out: &mut String, name: &str, label: &str, ns: &Histogram<u64>) -> fmt::Result {
    for (quantile, text) in QUANTILES {
        let seconds = ns.value_at_quantile(quantile) as f64 / NS_PER_S;
        let labels = format!("{label},quantile=\"{text}\"");
        writeln!(out, "corelane_{name}{{{labels}}} {seconds}")?;
    }
    let sum_s = ns.mean() * ns.len() as f64 / NS_PER_S;
    writeln!(out, "corelane_{name}_sum{{{label}}} {sum_s}")?;
    writeln!(out, "corelane_{name}_count{{{label}}} {}", ns.len())
}

/// A label's value: backslash, quote and line feed are escaped, and nothing else is to be.
struct Label<'a>(&'a str);

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Arc};

    use super::super::{Blank, Recorder};
    use super::*;

    fn snapshot(names: &[&str]) -> Snapshot {
        let names: Arc<[String]> = names.iter().map(|it| (*it).to_owned()).collect();
        let mut snapshot = Snapshot::new(names.clone(), 2);
        for shard in 0..2 {
            let mut recorder = Recorder::new(names.clone());
            recorder.counters.accepted = 5 + shard;
            recorder.counters.count_nack(5);
            for handler in 0..names.len() {
                recorder.record_inline_run(handler, 1_500_000, 1_000);
                recorder.record_nack(handler, 2);
                recorder.record_read_to_reply(handler, 2_000_000);
            }
            recorder.record_round_trip(7, 3_000);
            recorder.record_turn(4_000_000);
            snapshot.add(shard as usize, &recorder.take(Blank::new(names.len())));
        }
        snapshot.set_silent(vec![1]);
        snapshot
    }

    /// `name{label="value",…} number`, read as Prometheus does: the name, its labels, its value.
    fn parse(line: &str) -> (String, Vec<(String, String)>, f64) {
        let (name, rest) = line.split_once('{').expect("labels");
        let mut labels = Vec::new();
        let mut chars = rest.chars();
        loop {
            let label: String = chars.by_ref().take_while(|c| *c != '=').collect();
            assert_eq!(chars.next(), Some('"'), "{line}");
            let mut value = String::new();
            loop {
                match chars.next().expect("a closing quote") {
                    '"' => break,
                    '\\' => value.push(match chars.next() {
                        Some('n') => '\n',
                        Some(c @ ('\\' | '"')) => c,
                        other => panic!("escape {other:?} in {line}"),
                    }),
                    c => value.push(c),
                }
            }
            assert!(is_name(&label), "{line}");
            labels.push((label, value));
            match chars.next() {
                Some(',') => {}
                Some('}') => break,
                other => panic!("{other:?} in {line}"),
            }
        }
        let value = chars.as_str().strip_prefix(' ').expect("one space");
        (name.to_owned(), labels, value.parse().expect("a number"))
    }

    fn is_name(text: &str) -> bool {
        let is_inner = |c: char| c.is_ascii_alphanumeric() || c == '_';
        text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(is_inner)
    }

    #[test]
    fn every_line_is_valid_and_every_name_survives() {
        let names = ["echo", "a\"b\\c\nd", "größe {x=\"1\"}", "\\n"];
        let text = snapshot(&names).to_prometheus();
        assert!(text.ends_with('\n'));
        let (mut typed, mut seen) = (HashSet::new(), HashSet::new());
        let mut handlers = HashSet::new();
        for line in text.lines() {
            if let Some(head) = line.strip_prefix("# TYPE ") {
                let (name, kind) = head.split_once(' ').expect("a type");
                assert!(["counter", "gauge", "summary"].contains(&kind), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                assert!(typed.insert(name.to_owned()), "twice: {line}");
                continue;
            }
            if line.starts_with("# HELP ") {
                continue;
            }
            let (name, labels, value) = parse(line);
            assert!(value.is_finite() && is_name(&name), "{line}");
            let family = name.trim_end_matches("_sum").trim_end_matches("_count");
            assert!(typed.contains(family), "before its type: {line}");
            let of_handlers = labels.iter().filter(|(label, _)| label == "handler");
            handlers.extend(of_handlers.map(|(_, value)| value.clone()));
            assert!(seen.insert((name, labels)), "twice: {line}");
        }
        for name in names {
            assert!(handlers.contains(name), "{name:?}");
        }
        assert_eq!(handlers.len(), names.len() + 1, "and the called one");
    }

    #[test]
    fn values_are_the_snapshots() {
        let text = snapshot(&["echo"]).to_prometheus();
        for line in [
            "corelane_accepted_total{shard=\"0\"} 5",
            "corelane_accepted_total{shard=\"1\"} 6",
            "corelane_nacked_total{shard=\"1\",reason=\"Overloaded\"} 1",
            "corelane_nacked_total{shard=\"1\",reason=\"TooLarge\"} 0",
            "corelane_shard_silent{shard=\"0\"} 0",
            "corelane_shard_silent{shard=\"1\"} 1",
            "corelane_handler_runs_total{shard=\"0\",handler=\"echo\"} 1",
            "corelane_handler_longest_inline_seconds{shard=\"0\",handler=\"echo\"} 0.0015",
            "corelane_in_handler_seconds_count{handler=\"echo\"} 2",
            "corelane_turn_seconds_count{shard=\"1\"} 1",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} in\n{text}");
        }
    }
}
