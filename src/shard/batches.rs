//! Messages that wait for their batch, and the running of batches.

use bytes::Bytes;
use quanta::Instant;

use super::{
    Core,
    tasks::{FinishedTask, Origin, Ran, TaskEnd},
    turn::nanos,
    underway::Sent,
};
use crate::{
    handler::{Failure, Lent},
    wire::{Header, Kind, Promise},
};

/// What waits for its batch, by handler. Each is bounded by its handler's own limits.
pub(super) struct Batches {
    collected: Vec<Collected>,
    /// When the first of them is to run at the latest.
    next_due: Option<Instant>,
    waiting: usize,
    most_waiting: usize,
    /// Messages whose batch has run, and that are not answered.
    unanswered: usize,
    /// Answers of the batch that runs; kept for its memory.
    told: Vec<Option<Result<Bytes, Failure>>>,
}

#[derive(Default)]
struct Collected {
    waiting: Vec<Waiting>,
    bytes: usize,
    due: Option<Instant>,
    most: usize,
}

/// A message that waits for its batch; its payload is with the handler.
pub(super) struct Waiting {
    pub(super) origin: Origin,
    pub(super) header: Header,
    pub(super) read: Instant,
    pub(super) deadline: Option<Instant>,
    /// The place that its answer has, if it came in on this shard and is answered.
    pub(super) promise: Option<Promise>,
    pub(super) is_cancelled: bool,
}

impl Batches {
    pub(super) fn new(handlers: usize) -> Self {
        Self {
            collected: (0..handlers).map(|_| Collected::default()).collect(),
            next_due: None,
            waiting: 0,
            most_waiting: 0,
            unanswered: 0,
            told: Vec::new(),
        }
    }

    /// When a batch must run though nothing arrives.
    #[inline]
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.next_due
    }

    /// The most messages that have waited at once.
    pub(super) fn most_waiting(&self) -> usize {
        self.most_waiting
    }

    /// A handler's messages that wait, and the most that have at once.
    pub(super) fn waiting_for(&self, handler: usize) -> (usize, usize) {
        let collected = self.collected.get(handler);
        collected.map_or((0, 0), |it| (it.waiting.len(), it.most))
    }

    /// Messages that wait, and messages that have run and are not answered.
    pub(super) fn under_way(&self) -> (usize, usize) {
        (self.waiting, self.unanswered)
    }

    /// A message is answered, or cannot be.
    pub(super) fn retire(&mut self) {
        self.unanswered -= 1;
    }

    /// The sender of a message wants no answer any more: it will not run. False if none such
    /// waits. Looks at all that wait.
    pub(super) fn cancel(&mut self, sent: &Sent) -> bool {
        if self.waiting == 0 {
            return false;
        }
        let mut waiting = self.collected.iter_mut().flat_map(|it| &mut it.waiting);
        let found = waiting.find(|it| {
            it.header.kind != Kind::OneWay && Sent::of(&it.origin, it.header.correlation) == *sent
        });
        found.map(|it| it.is_cancelled = true).is_some()
    }

    /// There are so many handlers now.
    pub(super) fn grow(&mut self, handlers: usize) {
        self.collected.resize_with(handlers, Collected::default);
    }

    fn find_next_due(&mut self) {
        self.next_due = self.collected.iter().filter_map(|it| it.due).min();
    }
}

impl Core {
    /// A message of so many bytes has joined its handler's batch, which may run now.
    pub(super) fn join_batch(&mut self, handler: usize, waiting: Waiting, bytes: usize) {
        let Some(limits) = self.registry.batch_limits(handler) else {
            return;
        };
        self.recorder.counters.batched += 1;
        let batches = &mut self.batches;
        let collected = &mut batches.collected[handler];
        if collected.waiting.is_empty() {
            collected.due = waiting.read.checked_add(limits.age_max);
            batches.next_due = batches.next_due.into_iter().chain(collected.due).min();
        }
        collected.waiting.push(waiting);
        collected.bytes += bytes;
        collected.most = collected.most.max(collected.waiting.len());
        batches.waiting += 1;
        batches.most_waiting = batches.most_waiting.max(batches.waiting);
        if collected.waiting.len() >= limits.count_max || collected.bytes >= limits.bytes_max {
            self.run_batch(handler);
        }
    }

    /// Runs the batches whose first message has waited for long enough. Returns how many.
    #[inline]
    pub(super) fn run_due_batches(&mut self, now: Instant) -> usize {
        match self.batches.next_due {
            Some(due) if due <= now => self.run_batches(Some(now)),
            _ => 0,
        }
    }

    /// Runs the batches that are due by this time, or all. Returns how many.
    pub(super) fn run_batches(&mut self, due_by: Option<Instant>) -> usize {
        let mut count = 0;
        for handler in 0..self.batches.collected.len() {
            let collected = &self.batches.collected[handler];
            let is_due = match (collected.due, due_by) {
                (Some(due), Some(now)) => due <= now,
                (None, Some(_)) => false,
                (_, None) => !collected.waiting.is_empty(),
            };
            if is_due {
                self.run_batch(handler);
                count += 1;
            }
        }
        count
    }

    /// Runs what this handler has collected, whatever it is.
    pub(super) fn run_batch_of(&mut self, handler: usize) {
        if !self.batches.collected[handler].waiting.is_empty() {
            self.run_batch(handler);
        }
    }

    /// Runs what a handler has collected. Its messages are answered as tasks are, in this turn.
    fn run_batch(&mut self, handler: usize) {
        let mut collected = std::mem::take(&mut self.batches.collected[handler]);
        let began = self.clock.now();
        let mut told = std::mem::take(&mut self.batches.told);
        told.resize_with(collected.waiting.len(), || None);
        let lent = Lent {
            shard: &self.info,
            client: &self.local_client,
            asker: &None,
            timers: &self.timers,
            may_spawn: false,
            reply_bytes_max: self.options.message_bytes_max,
        };
        let is_late = |it: &Waiting| it.deadline.is_some_and(|deadline| deadline <= began);
        let is_live = &mut |number: usize| {
            let waiting = &collected.waiting[number];
            !waiting.is_cancelled && !is_late(waiting)
        };
        let tell = &mut |number: usize, answer| told[number] = Some(answer);
        self.registry
            .run_batch(handler, &lent, began, is_live, tell);
        self.record_batch(handler, began, told.iter().flatten().count());

        let count = collected.waiting.len();
        for (waiting, answer) in collected.waiting.drain(..).zip(told.drain(..)) {
            let (ran, result) = match answer {
                Some(answer) => (Ran::InBatch, Some(answer)),
                None if waiting.is_cancelled => (Ran::OutOfBatch, None),
                None => (Ran::OutOfBatch, Some(Err(Failure::too_late()))),
            };
            let end = TaskEnd {
                ran,
                header: waiting.header,
                handler,
                read: waiting.read,
                place: 0,
                promise: waiting.promise,
                result,
            };
            self.tasks.push_back(FinishedTask {
                origin: waiting.origin,
                end,
            });
        }
        self.batches.told = told;
        self.batches.waiting -= count;
        self.batches.unanswered += count;
        let waiting = collected.waiting;
        self.batches.collected[handler] = Collected {
            waiting,
            bytes: 0,
            due: None,
            most: collected.most,
        };
        self.batches.find_next_due();
    }

    /// Each message's time in the handler is that of the batch; it is one run against the budget.
    fn record_batch(&mut self, handler: usize, began: Instant, messages: usize) {
        let ended = self.clock.now();
        // The next message of this poll begins now.
        self.read_at = self.read_at.map(|_| ended);
        if messages == 0 {
            return;
        }
        self.recorder.counters.batches += 1;
        let ran_ns = nanos(ended.saturating_duration_since(began));
        let is_over = self
            .recorder
            .record_inline_run(handler, ran_ns, self.inline_budget_ns);
        for _ in 1..messages {
            self.recorder.record_in_handler(handler, ran_ns);
        }
        if is_over {
            self.outran(handler, ran_ns);
        }
    }
}
