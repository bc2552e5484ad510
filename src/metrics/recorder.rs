//! One shard's recorder, and the storage that it trades with whoever reads.

use std::mem;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::{
    Counters, HandlerCounters, LATENCY_NS_MAX, LATENCY_NS_MIN, REASONS, Slot, empty_histogram,
};

/// Called handlers of which a shard keeps a round-trip histogram of their own. Those called first
/// have one; all later ones share one. Two storages of 229 KB each stand behind every key.
pub const CALLED_KEYS_MAX: usize = 128;

/// The slot that the called handlers beyond [`CALLED_KEYS_MAX`] share.
pub(super) const OTHERS: usize = CALLED_KEYS_MAX;

/// Records what one shard does. Owned by that shard: no lock, no atomic; nothing here blocks.
///
/// The first record of a metric for a handler allocates two histograms (229 KB each): one to record
/// into, and one to go on with after the first [`take`](Recorder::take). After it, recording does
/// not allocate, whatever is taken, as long as the storage that `take` gives out comes back to it.
///
/// All durations are nanoseconds and saturate at [`LATENCY_NS_MAX`].
#[derive(Debug)]
pub struct Recorder {
    /// Totals since the recorder was made. `inline_overruns` and
    /// `demoted` are counted by [`record_inline_run`](Recorder::record_inline_run) and
    /// [`record_demotion`](Recorder::record_demotion); the rest is the reactor's to count.
    pub counters: Counters,
    names: Arc<[String]>,
    current: Interval,
    /// Histograms for the first `take` after a first record, when the storage given has none yet.
    spare: Interval,
    /// Called key to its slot. Local callers choose the keys, no peer: a fast hash is enough.
    called: FxHashMap<u64, usize>,
    /// The key called last and its slot. Calls come in runs to one handler, and a comparison costs
    /// less than a lookup.
    last_called: Option<(u64, usize)>,
    keeps_histograms: bool,
}

impl Recorder {
    /// A recorder for the handlers of these names; a handler's index is its place among them.
    ///
    /// Allocates a few KiB; the histograms follow when they are first used.
    pub fn new(names: Arc<[String]>) -> Self {
        let mut called = FxHashMap::default();
        called.reserve(CALLED_KEYS_MAX);
        Recorder {
            counters: Counters::default(),
            current: Interval::new(names.len()),
            spare: Interval::new(names.len()),
            names,
            called,
            last_called: None,
            keeps_histograms: true,
        }
    }

    /// As [`new`](Recorder::new), but it counts only: it never makes a histogram. For tests that
    /// make shards by the thousand, where the memory for histograms would take most of the time.
    pub fn counting(names: Arc<[String]>) -> Self {
        Recorder {
            keeps_histograms: false,
            ..Recorder::new(names)
        }
    }

    /// There are more handlers now, behind those that there were. Allocates.
    pub fn grow(&mut self, names: Arc<[String]>) {
        for interval in [&mut self.current, &mut self.spare] {
            let handlers = &mut interval.handlers;
            handlers.resize_with(names.len(), HandlerInterval::default);
        }
        self.names = names;
    }

    /// The handlers' names, by index.
    pub fn names(&self) -> &Arc<[String]> {
        &self.names
    }

    /// Records that a handler ran: the time in the handler. An index without a name is ignored.
    #[inline]
    pub fn record_in_handler(&mut self, handler: usize, ns: u64) {
        let Some(current) = self.current.handlers.get_mut(handler) else {
            return;
        };
        current.counters.runs += 1;
        if !self.keeps_histograms {
            return;
        }
        record(
            &mut current.in_handler,
            &mut self.spare.handlers[handler].in_handler,
            ns,
        );
    }

    /// Records an inline run as [`record_in_handler`](Recorder::record_in_handler) does, and holds
    /// it against its budget. True if it overran: it is counted then, and the caller may log it.
    #[inline]
    pub fn record_inline_run(&mut self, handler: usize, ns: u64, budget_ns: u64) -> bool {
        self.record_in_handler(handler, ns);
        let overran = ns > budget_ns;
        self.counters.inline_overruns += u64::from(overran);
        if let Some(current) = self.current.handlers.get_mut(handler) {
            current.counters.overruns += u64::from(overran);
            current.counters.longest_inline_ns = current.counters.longest_inline_ns.max(ns);
        }
        overran
    }

    /// Counts that a handler does not run inline any more.
    #[cold]
    pub fn record_demotion(&mut self, handler: usize) {
        self.counters.demoted += 1;
        if let Some(current) = self.current.handlers.get_mut(handler) {
            current.counters.demotions += 1;
        }
    }

    /// Counts that a run was nacked, under the reason's number on the wire. An index without a name
    /// is ignored.
    pub fn record_nack(&mut self, handler: usize, reason: u16) {
        if let Some(current) = self.current.handlers.get_mut(handler) {
            let known = usize::from(reason) < REASONS;
            let reason = if known { usize::from(reason) } else { 0 };
            current.counters.nacked_by_reason[reason] += 1;
        }
    }

    /// Counts that a message was nacked without a run. An index without a name is ignored.
    pub fn record_refusal(&mut self, handler: usize, reason: u16) {
        if let Some(current) = self.current.handlers.get_mut(handler) {
            let known = usize::from(reason) < REASONS;
            let reason = if known { usize::from(reason) } else { 0 };
            current.counters.refused_by_reason[reason] += 1;
        }
    }

    /// Counts that a message was dropped without a run, or stopped in it. An index without a name
    /// is ignored.
    pub fn record_stop(&mut self, handler: usize, has_begun: bool) {
        if let Some(current) = self.current.handlers.get_mut(handler) {
            current.counters.indeterminate += u64::from(has_begun);
            current.counters.lost += u64::from(!has_begun);
        }
    }

    /// Takes down how many messages of a handler are under way, and the most that were. An index
    /// without a name is ignored.
    pub fn record_under_way(&mut self, handler: usize, now: usize, most: usize) {
        if let Some(current) = self.current.handlers.get_mut(handler) {
            current.counters.under_way_now = now as u64;
            current.counters.under_way_most = most as u64;
        }
    }

    /// Records the time from reading a message to its reply standing in the write buffer. An index
    /// without a name is ignored.
    #[inline]
    pub fn record_read_to_reply(&mut self, handler: usize, ns: u64) {
        let Some(current) = self.current.handlers.get_mut(handler) else {
            return;
        };
        if !self.keeps_histograms {
            return;
        }
        record(
            &mut current.read_to_reply,
            &mut self.spare.handlers[handler].read_to_reply,
            ns,
        );
    }

    /// Records the round trip of a call, by the called handler's key. The keys beyond the first
    /// [`CALLED_KEYS_MAX`] share one histogram.
    #[inline]
    pub fn record_round_trip(&mut self, key: u64, ns: u64) {
        let index = match self.last_called {
            Some((last, index)) if last == key => index,
            _ => self.find_key(key),
        };
        if !self.keeps_histograms {
            return;
        }
        record(
            &mut self.current.round_trips[index],
            &mut self.spare.round_trips[index],
            ns,
        );
    }

    /// Records how long a turn of the shard took.
    #[inline]
    pub fn record_turn(&mut self, ns: u64) {
        if !self.keeps_histograms {
            return;
        }
        record(&mut self.current.turns, &mut self.spare.turns, ns);
    }

    /// Hands out what was recorded since the last `take`, and goes on in `blank`.
    ///
    /// Moves a few pointers per handler and called key; does not allocate, clear or copy a
    /// histogram (unless `blank` was made for fewer handlers than this recorder has). To be called
    /// at a turn's boundary, so that a message is counted and timed in the same interval.
    pub fn take(&mut self, blank: Blank) -> Interval {
        let Blank(mut next) = blank;
        next.handlers
            .resize_with(self.names.len(), HandlerInterval::default);
        let filled = self
            .current
            .handlers
            .iter_mut()
            .zip(&mut self.spare.handlers);
        for (next, (filled, spare)) in next.handlers.iter_mut().zip(filled) {
            filled.counters.add_up();
            next.counters = filled.counters;
            lend(&mut next.in_handler, &mut spare.in_handler);
            lend(&mut next.read_to_reply, &mut spare.read_to_reply);
        }
        for (next, spare) in next.round_trips.iter_mut().zip(&mut self.spare.round_trips) {
            lend(next, spare);
        }
        lend(&mut next.turns, &mut self.spare.turns);
        next.called_keys.clear();
        next.called_keys
            .extend_from_slice(&self.current.called_keys);

        self.current.counters = self.counters;
        mem::replace(&mut self.current, next)
    }

    fn find_key(&mut self, key: u64) -> usize {
        let index = match self.called.get(&key) {
            Some(index) => *index,
            None => self.learn_key(key),
        };
        self.last_called = Some((key, index));
        index
    }

    #[cold]
    fn learn_key(&mut self, key: u64) -> usize {
        let index = self.current.called_keys.len();
        if index >= CALLED_KEYS_MAX {
            return OTHERS;
        }
        self.current.called_keys.push(key);
        self.called.insert(key, index);
        index
    }
}

/// What one shard recorded from one `take` to the next, with its counters' totals at its end.
#[derive(Debug)]
pub struct Interval {
    counters: Counters,
    /// By the handler's index.
    pub(super) handlers: Vec<HandlerInterval>,
    /// The called handlers' keys, in the order in which they were first called.
    pub(super) called_keys: Vec<u64>,
    /// By the place in `called_keys`, and [`OTHERS`]. Always `CALLED_KEYS_MAX + 1` long.
    pub(super) round_trips: Vec<Slot>,
    pub(super) turns: Slot,
}

#[derive(Debug, Default)]
pub(super) struct HandlerInterval {
    pub(super) counters: HandlerCounters,
    pub(super) in_handler: Slot,
    pub(super) read_to_reply: Slot,
}

impl Interval {
    /// The shard's totals as the interval ended: since the recorder was made, not since the last
    /// `take`.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Empties the histograms, so that the storage can go back to [`Recorder::take`].
    ///
    /// Writes 229 KB per histogram that is in use: not for a shard's thread.
    pub fn clear(mut self) -> Blank {
        let handlers = self.handlers.iter_mut();
        let slots =
            handlers.flat_map(|handler| [&mut handler.in_handler, &mut handler.read_to_reply]);
        for histogram in slots
            .chain(&mut self.round_trips)
            .chain([&mut self.turns])
            .flatten()
        {
            // An unused one is empty already; looking is cheaper than clearing.
            if !histogram.is_empty() {
                histogram.reset();
            }
        }
        self.counters = Counters::default();
        self.called_keys.clear();
        Blank(self)
    }

    fn new(handlers: usize) -> Self {
        let mut interval = Interval {
            counters: Counters::default(),
            handlers: Vec::new(),
            called_keys: Vec::with_capacity(CALLED_KEYS_MAX),
            round_trips: Vec::new(),
            turns: None,
        };
        interval
            .handlers
            .resize_with(handlers, HandlerInterval::default);
        interval
            .round_trips
            .resize_with(CALLED_KEYS_MAX + 1, || None);
        interval
    }
}

/// An interval's storage with nothing recorded in it: what [`Recorder::take`] asks for.
#[derive(Debug)]
pub struct Blank(Interval);

impl Blank {
    /// New storage for this many handlers. Allocates a few KiB, no histograms: they come from the
    /// recorder when it takes this over, and stay with the storage.
    pub fn new(handlers: usize) -> Self {
        Blank(Interval::new(handlers))
    }
}

#[inline]
fn record(slot: &mut Slot, spare: &mut Slot, ns: u64) {
    match slot {
        Some(histogram) => histogram.saturating_record(ns.clamp(LATENCY_NS_MIN, LATENCY_NS_MAX)),
        None => record_first(slot, spare, ns),
    }
}

#[cold]
fn record_first(slot: &mut Slot, spare: &mut Slot, ns: u64) {
    *slot = Some(empty_histogram());
    spare.get_or_insert_with(empty_histogram);
    record(slot, spare, ns);
}

fn lend(next: &mut Slot, spare: &mut Slot) {
    if next.is_none() {
        *next = spare.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorder() -> Recorder {
        Recorder::new(Arc::from(["echo".to_owned(), "sum".to_owned()]))
    }

    #[test]
    fn an_interval_holds_what_was_recorded_since_the_last_take_and_totals_since_the_start() {
        let mut recorder = recorder();
        recorder.counters.accepted = 1;
        recorder.record_in_handler(1, 500);
        let first = recorder.take(Blank::new(2));
        recorder.counters.accepted += 2;
        recorder.record_in_handler(1, 700);
        recorder.record_in_handler(1, 900);
        let second = recorder.take(Blank::new(2));

        assert_eq!(first.counters().accepted, 1);
        assert_eq!(second.counters().accepted, 3);
        let runs = |interval: &Interval| {
            let handler = &interval.handlers[1];
            (
                handler.counters.runs,
                handler.in_handler.as_ref().map_or(0, |h| h.len()),
            )
        };
        assert_eq!((runs(&first), runs(&second)), ((1, 1), (3, 2)));
    }

    #[test]
    fn one_that_counts_only_makes_no_histogram() {
        let mut recorder = Recorder::counting(Arc::from(["echo".to_owned()]));
        recorder.record_in_handler(0, 500);
        recorder.record_read_to_reply(0, 500);
        recorder.record_round_trip(7, 500);
        recorder.record_turn(500);
        let interval = recorder.take(Blank::new(1));
        let handler = &interval.handlers[0];
        assert!(interval.turns.is_none());
        assert_eq!(handler.counters.runs, 1);
        assert!(handler.in_handler.is_none() && handler.read_to_reply.is_none());
        assert!(interval.round_trips.iter().all(Option::is_none));
    }

    #[test]
    fn the_longest_inline_run_and_overruns_are_kept() {
        let mut recorder = recorder();
        assert!(!recorder.record_inline_run(0, 100_000, 100_000));
        assert!(recorder.record_inline_run(0, 100_001, 100_000));
        assert!(!recorder.record_inline_run(0, 5, 100_000));
        let interval = recorder.take(Blank::new(2));
        let expected = HandlerCounters {
            accepted: 3,
            handled: 3,
            runs: 3,
            overruns: 1,
            longest_inline_ns: 100_001,
            ..HandlerCounters::default()
        };
        assert_eq!(interval.handlers[0].counters, expected);
        assert_eq!(interval.counters().inline_overruns, 1);
    }

    #[test]
    fn extremes_saturate_and_foreign_indices_are_ignored() {
        let mut recorder = recorder();
        recorder.record_in_handler(0, 0);
        recorder.record_in_handler(0, u64::MAX);
        recorder.record_in_handler(2, 1);
        recorder.record_read_to_reply(usize::MAX, 1);
        let interval = recorder.take(Blank::new(2));
        let histogram = interval.handlers[0].in_handler.as_ref().unwrap();
        assert_eq!(histogram.len(), 2);
        assert_eq!(histogram.min(), LATENCY_NS_MIN);
        assert!(histogram.equivalent(histogram.max(), LATENCY_NS_MAX));
    }

    #[test]
    fn called_keys_beyond_the_bound_share_a_histogram() {
        let mut recorder = recorder();
        let keys = CALLED_KEYS_MAX as u64 + 10;
        for key in (0..keys).chain(0..keys) {
            recorder.record_round_trip(key, 1_000);
        }
        let interval = recorder.take(Blank::new(2));
        let samples = |index: usize| interval.round_trips[index].as_ref().map_or(0, |h| h.len());
        assert_eq!(interval.called_keys.len(), CALLED_KEYS_MAX);
        assert_eq!(
            (samples(0), samples(CALLED_KEYS_MAX - 1), samples(OTHERS)),
            (2, 2, 20)
        );
    }

    #[test]
    fn round_trips_keep_to_their_keys_in_any_order_and_over_intervals() {
        let mut recorder = recorder();
        // Key 0 first: no key may pass for the one called last before there was one.
        let calls = [0, 7, 7, 0, 9, 9, 9, 7];
        calls
            .into_iter()
            .for_each(|key| recorder.record_round_trip(key, 1_000));
        let first = recorder.take(Blank::new(2));
        recorder.record_round_trip(7, 1_000);
        recorder.record_round_trip(0, 1_000);
        let second = recorder.take(Blank::new(2));

        let samples = |interval: &Interval| {
            [0, 1, 2, OTHERS].map(|slot| interval.round_trips[slot].as_ref().map_or(0, |h| h.len()))
        };
        assert_eq!(first.called_keys, [0, 7, 9]);
        assert_eq!(samples(&first), [2, 3, 3, 0]);
        assert_eq!(second.called_keys, [0, 7, 9]);
        assert_eq!(samples(&second), [1, 1, 0, 0]);
    }

    #[test]
    fn storage_made_for_other_handlers_is_fitted() {
        let mut recorder = recorder();
        recorder.record_in_handler(1, 10);
        drop(recorder.take(Blank::new(0)));
        recorder.record_in_handler(1, 10);
        let interval = recorder.take(Blank::new(7));
        assert_eq!(interval.handlers.len(), 2);
        recorder.record_in_handler(1, 10);
        assert_eq!(recorder.take(interval.clear()).handlers[1].counters.runs, 3);
    }
}
