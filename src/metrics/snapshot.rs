//! The merge of several shards' intervals, readable in process.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use hdrhistogram::Histogram;
use rustc_hash::FxHashMap;

use super::recorder::OTHERS;
use super::{Counters, HandlerCounters, Interval, Metric, Percentiles, Slot, merge};

/// The name under which the called handlers beyond [`CALLED_KEYS_MAX`](super::CALLED_KEYS_MAX) are
/// shown together.
pub const OTHER_HANDLERS: &str = "*";

/// Names kept for called keys; a key beyond them shows as its 16 hex digits.
const KEY_NAMES_MAX: usize = 4_096;

/// What several shards did: histograms merged over all that was added, counters per shard.
///
/// Intervals of one shard may be added one after the other: the histograms then cover all of them
/// together, and the counters are the latest, for they are totals.
///
/// Nothing here blocks. Each histogram that is first needed allocates 229 KB.
#[derive(Clone, Debug)]
pub struct Snapshot {
    names: Arc<[String]>,
    key_names: FxHashMap<u64, String>,
    shards: Vec<Counters>,
    /// By shard, then by the handler's index.
    handler_counters: Vec<Vec<HandlerCounters>>,
    /// By the handler's index: time in the handler, and from read to reply.
    handlers: Vec<(Slot, Slot)>,
    /// By called key; sorted, so that tables and dumps have one order.
    round_trips: BTreeMap<u64, Slot>,
    other_round_trips: Slot,
    /// By shard.
    turns: Vec<Slot>,
    silent: Vec<usize>,
}

/// One handler in a [`Snapshot`].
#[derive(Clone, Copy, Debug)]
pub struct HandlerView<'a> {
    /// The name that it was registered with.
    pub name: &'a str,
    /// Totals over all shards.
    pub counters: HandlerCounters,
    /// Time in the handler, in nanoseconds; none if it did not run.
    pub in_handler: Option<&'a Histogram<u64>>,
    /// From read to reply written, in nanoseconds; none if it did not reply.
    pub read_to_reply: Option<&'a Histogram<u64>>,
}

/// One histogram of a [`Snapshot`] and what it measures: a tag of a dump.
#[derive(Clone, Debug)]
pub struct Series<'a> {
    /// What is measured.
    pub metric: Metric,
    /// The handler's name; for turns the shard as `shard-0`; for a called key without a known name
    /// its 16 hex digits; for the called keys beyond the bound [`OTHER_HANDLERS`].
    pub handler: Cow<'a, str>,
    /// Nanoseconds; never empty.
    pub histogram: &'a Histogram<u64>,
}

impl Snapshot {
    /// An empty snapshot of so many shards, whose recorders were made with these names.
    pub fn new(names: Arc<[String]>, shards: usize) -> Self {
        let mut handlers = Vec::new();
        handlers.resize_with(names.len(), Default::default);
        Snapshot {
            key_names: FxHashMap::default(),
            shards: vec![Counters::default(); shards],
            handler_counters: vec![vec![HandlerCounters::default(); names.len()]; shards],
            handlers,
            round_trips: BTreeMap::new(),
            other_round_trips: None,
            turns: vec![None; shards],
            silent: Vec::new(),
            names,
        }
    }

    /// There are more handlers now, behind those that there were. To be called before an interval
    /// of them is added.
    pub fn grow(&mut self, names: Arc<[String]>) {
        for counters in &mut self.handler_counters {
            counters.resize(names.len(), HandlerCounters::default());
        }
        self.handlers.resize_with(names.len(), Default::default);
        self.names = names;
    }

    /// Adds what a shard recorded in an interval. A shard or a handler that the snapshot was not
    /// made for is left out.
    pub fn add(&mut self, shard: usize, interval: &Interval) {
        let Some(counters) = self.shards.get_mut(shard) else {
            return;
        };
        *counters = *interval.counters();
        for (mine, new) in self.handler_counters[shard]
            .iter_mut()
            .zip(&interval.handlers)
        {
            *mine = new.counters;
        }
        for ((in_handler, read_to_reply), new) in self.handlers.iter_mut().zip(&interval.handlers) {
            merge_slot(in_handler, &new.in_handler);
            merge_slot(read_to_reply, &new.read_to_reply);
        }
        for (key, new) in interval.called_keys.iter().zip(&interval.round_trips) {
            merge_slot(self.round_trips.entry(*key).or_default(), new);
        }
        merge_slot(&mut self.other_round_trips, &interval.round_trips[OTHERS]);
        merge_slot(&mut self.turns[shard], &interval.turns);
    }

    /// Empties the histograms and keeps their storage, for the next interval. Counters stay: they
    /// are totals. Writes 229 KB per histogram in use.
    pub fn clear_histograms(&mut self) {
        let handlers = self
            .handlers
            .iter_mut()
            .flat_map(|(first, second)| [first, second]);
        let called = self
            .round_trips
            .values_mut()
            .chain([&mut self.other_round_trips]);
        handlers
            .chain(called)
            .chain(&mut self.turns)
            .flatten()
            .for_each(|histogram| histogram.reset());
    }

    /// Says which name a called key stands for, so that its round trips show under it. Beyond 4,096
    /// names, new ones are not kept.
    pub fn name_called(&mut self, key: u64, name: &str) {
        if self.key_names.len() < KEY_NAMES_MAX || self.key_names.contains_key(&key) {
            self.key_names.insert(key, name.to_owned());
        }
    }

    /// Says which shards have not answered when they were last asked.
    pub fn set_silent(&mut self, shards: Vec<usize>) {
        self.silent = shards;
    }

    /// The shards that did not hand out what they had, for they had ended, or one of their handlers
    /// did not return in time. They are shown as they last were; what is missing comes with the
    /// next snapshot that they are in.
    pub fn silent_shards(&self) -> &[usize] {
        &self.silent
    }

    /// The counters by shard: totals since their recorders were made.
    pub fn shards(&self) -> &[Counters] {
        &self.shards
    }

    /// The sum over all shards.
    pub fn total(&self) -> Counters {
        let mut total = Counters::default();
        self.shards.iter().for_each(|counters| total += *counters);
        total
    }

    /// The served handlers, by index, those that never ran or were removed included.
    pub fn handlers(&self) -> impl Iterator<Item = HandlerView<'_>> {
        let named = self.names.iter().zip(&self.handlers).enumerate();
        named.map(|(index, (name, (in_handler, read_to_reply)))| {
            let mut counters = HandlerCounters::default();
            self.handler_counters
                .iter()
                .for_each(|by_handler| counters += by_handler[index]);
            let in_handler = recorded(in_handler);
            HandlerView {
                name,
                counters,
                in_handler,
                read_to_reply: recorded(read_to_reply),
            }
        })
    }

    /// The served handlers on one shard, by index; none if there is no such shard.
    pub fn shard_handlers(&self, shard: usize) -> impl Iterator<Item = (&str, HandlerCounters)> {
        let counters = self.handler_counters.get(shard).into_iter().flatten();
        let names = self.names.iter().map(String::as_str);
        names.zip(counters.copied())
    }

    /// How long the turns of a shard took, in nanoseconds: [`Metric::Turn`]. None if it had nothing
    /// to do yet, or there is no such shard.
    pub fn turns(&self, shard: usize) -> Option<&Histogram<u64>> {
        self.turns.get(shard).and_then(recorded)
    }

    /// Every histogram in which something was recorded: the served handlers' by index, the called
    /// handlers' by key, the turns by shard. Its items are what a dump writes, a tag each.
    pub fn series(&self) -> impl Iterator<Item = Series<'_>> {
        let served = self.handlers().flat_map(|view| {
            let metrics = [
                (Metric::InHandler, view.in_handler),
                (Metric::ReadToReply, view.read_to_reply),
            ];
            metrics.map(|(metric, histogram)| (metric, Cow::Borrowed(view.name), histogram))
        });
        let called = self
            .round_trips
            .iter()
            .map(|(key, slot)| (self.key_name(*key), slot));
        let called = called.chain([(Cow::Borrowed(OTHER_HANDLERS), &self.other_round_trips)]);
        let called = called.map(|(name, slot)| (Metric::RoundTrip, name, recorded(slot)));
        let turns = self.turns.iter().enumerate().map(|(shard, slot)| {
            let name = Cow::Owned(format!("shard-{shard}"));
            (Metric::Turn, name, recorded(slot))
        });
        served
            .chain(called)
            .chain(turns)
            .filter_map(|(metric, handler, histogram)| {
                Some(Series {
                    metric,
                    handler,
                    histogram: histogram?,
                })
            })
    }

    /// One histogram by metric and handler's name; none if nothing was recorded. Looks through all.
    pub fn histogram(&self, metric: Metric, handler: &str) -> Option<&Histogram<u64>> {
        let mut series = self.series();
        series
            .find(|it| it.metric == metric && it.handler == handler)
            .map(|it| it.histogram)
    }

    /// The percentiles of one metric and handler, in microseconds; none if nothing was recorded.
    pub fn percentiles(&self, metric: Metric, handler: &str) -> Option<Percentiles> {
        self.histogram(metric, handler).map(Percentiles::from)
    }

    fn key_name(&self, key: u64) -> Cow<'_, str> {
        match self.key_names.get(&key) {
            Some(name) => Cow::Borrowed(name),
            None => Cow::Owned(format!("{key:016x}")),
        }
    }
}

fn merge_slot(into: &mut Slot, from: &Slot) {
    if let Some(from) = from {
        merge(into, from);
    }
}

fn recorded(slot: &Slot) -> Option<&Histogram<u64>> {
    slot.as_deref().filter(|histogram| !histogram.is_empty())
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::super::{Blank, Recorder, empty_histogram};
    use super::*;

    const KEY: u64 = 0x00ab_cdef_0123_4567;

    #[test]
    fn merging_shards_and_intervals_equals_recording_all_into_one() {
        let seed = 0x5eed_0001;
        let mut rng = SmallRng::seed_from_u64(seed);
        let names: Arc<[String]> = Arc::from(["echo".to_owned(), "sum".to_owned()]);
        let mut shards: Vec<_> = (0..3).map(|_| Recorder::new(names.clone())).collect();
        let mut storage: Vec<_> = (0..3).map(|_| Some(Blank::new(2))).collect();
        let mut snapshot = Snapshot::new(names, 3);
        let mut one: Vec<_> = (0..5).map(|_| empty_histogram()).collect();

        for _ in 0..4 {
            for (shard, recorder) in shards.iter_mut().enumerate() {
                for _ in 0..rng.random_range(0..2_000) {
                    let ns = rng.random_range(0..60) * 10_u64.pow(rng.random_range(0..9)) + 1;
                    recorder.counters.accepted += 1;
                    let which = rng.random_range(0..5);
                    match which {
                        0 | 1 => recorder.record_in_handler(which, ns),
                        2 | 3 => recorder.record_read_to_reply(which - 2, ns),
                        _ => recorder.record_round_trip(KEY, ns),
                    }
                    one[which].record(ns).unwrap();
                }
                let interval = recorder.take(storage[shard].take().unwrap());
                snapshot.add(shard, &interval);
                storage[shard] = Some(interval.clear());
            }
        }

        let hex = format!("{KEY:016x}");
        let merged = [
            snapshot.histogram(Metric::InHandler, "echo"),
            snapshot.histogram(Metric::InHandler, "sum"),
            snapshot.histogram(Metric::ReadToReply, "echo"),
            snapshot.histogram(Metric::ReadToReply, "sum"),
            snapshot.histogram(Metric::RoundTrip, &hex),
        ];
        for (which, (merged, one)) in merged.into_iter().zip(&one).enumerate() {
            assert_eq!(merged, Some(&**one), "histogram {which}, seed {seed:#x}");
        }
        let samples: u64 = one.iter().map(|histogram| histogram.len()).sum();
        assert_eq!(snapshot.total().accepted, samples);
        let runs: u64 = snapshot.handlers().map(|view| view.counters.runs).sum();
        assert_eq!(runs, one[0].len() + one[1].len());
    }

    #[test]
    fn counters_are_the_latest_of_each_shard_and_histograms_can_start_anew() {
        let names: Arc<[String]> = Arc::from(["echo".to_owned()]);
        let mut recorder = Recorder::new(names.clone());
        let mut snapshot = Snapshot::new(names, 2);
        recorder.counters.handled = 5;
        recorder.record_inline_run(0, 2_000, 1_000);
        let interval = recorder.take(Blank::new(1));
        snapshot.add(0, &interval);
        snapshot.add(1, &interval);
        snapshot.add(2, &interval); // no such shard
        recorder.counters.handled = 7;
        recorder.record_inline_run(0, 500, 1_000);
        let interval = recorder.take(interval.clear());
        snapshot.clear_histograms();
        snapshot.add(1, &interval);

        assert_eq!(
            snapshot
                .shards()
                .iter()
                .map(|it| it.handled)
                .collect::<Vec<_>>(),
            [5, 7]
        );
        assert_eq!(snapshot.total().handled, 12);
        let echo = snapshot.handlers().next().unwrap();
        let expected = HandlerCounters {
            accepted: 3,
            handled: 3,
            runs: 3,
            overruns: 2,
            longest_inline_ns: 2_000,
            ..HandlerCounters::default()
        };
        assert_eq!(echo.counters, expected);
        assert_eq!(echo.in_handler.map(Histogram::len), Some(1));
        assert_eq!(
            snapshot
                .percentiles(Metric::InHandler, "echo")
                .unwrap()
                .samples,
            1
        );
        assert_eq!(snapshot.histogram(Metric::ReadToReply, "echo"), None);
    }

    #[test]
    fn a_called_key_shows_under_its_name_once_it_is_known() {
        let names: Arc<[String]> = Arc::from([]);
        let mut recorder = Recorder::new(names.clone());
        let mut snapshot = Snapshot::new(names, 1);
        recorder.record_round_trip(KEY, 10);
        snapshot.add(0, &recorder.take(Blank::new(0)));
        let shown = |snapshot: &Snapshot| snapshot.series().next().unwrap().handler.into_owned();
        assert_eq!(shown(&snapshot), "00abcdef01234567");
        snapshot.name_called(KEY, "sum");
        assert_eq!(shown(&snapshot), "sum");
    }
}
