//! Counts: per shard and per handler. All of them are totals since the recorder was made.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// Length of [`Counters::nacked_by_reason`]: the reasons 1 to 10 of the wire, and 0 for any other.
pub const REASONS: usize = 11;

/// What they are called on the wire, by number.
pub const REASON_NAMES: [&str; REASONS] = [
    "Other",
    "UnknownHandler",
    "HandlerFailed",
    "HandlerPanicked",
    "DeadlineExceeded",
    "Overloaded",
    "Draining",
    "Malformed",
    "TooLarge",
    "Unauthorized",
    "Unsupported",
];

/// What one shard did since its recorder was made, or the sum over shards.
///
/// Serving side: every accepted message is accounted for, so that
/// `accepted = handled + nacked() + indeterminate + lost + in_flight()`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Messages of any delivery mode whose header was decoded.
    pub accepted: u64,
    /// Messages whose handler returned without an error.
    pub handled: u64,
    /// Messages refused, or failed in the handler, by the reason's number on the wire. Entry 0
    /// holds reasons that this version does not know. Serialized by name, without zeros.
    #[serde(with = "by_name")]
    pub nacked_by_reason: [u64; REASONS],
    /// Those of them that had waited longer than `limits.shed_target_us`.
    pub shed: u64,
    /// Messages of which this end cannot say whether the handler ran.
    pub indeterminate: u64,
    /// Messages dropped after acceptance: by a lost connection, by shedding, by a cancel, by a
    /// drain's deadline.
    pub lost: u64,
    /// Those of the last two that their senders have cancelled, or whose deadlines passed while
    /// their tasks ran: what had begun is indeterminate, what had not is lost.
    pub stopped: u64,

    /// Messages that were handed to another shard, to run there.
    pub hopped_out: u64,
    /// Messages that other shards have handed over. Those that none has taken when all have ended
    /// are lost, and counted so then.
    pub hopped_in: u64,
    /// Times that another shard slept when this one had something for it, and was woken.
    pub shards_woken: u64,
    /// Times that this shard was parked, or about to be, and another shard or a thread that is none
    /// woke it. What sockets and timers wake is not counted.
    pub woken: u64,
    /// Tasks spawned for handlers.
    pub spawned: u64,
    /// Spawned handlers that run now: a gauge.
    pub spawned_now: u64,
    /// The most of them that have run at once: a high-water mark. In a sum over shards, the sum of
    /// their marks.
    pub spawned_most: u64,
    /// Messages handed to the pool of blocking handlers.
    pub blocking: u64,
    /// Those of them that wait, run or are not answered now: the other gauge.
    pub blocking_now: u64,
    /// Messages that were collected for batched handlers.
    pub batched: u64,
    /// Times that a batch was run.
    pub batches: u64,
    /// The most of them at once: a high-water mark, as `spawned_most`.
    pub blocking_most: u64,
    /// Messages that wait for their batches now: a gauge.
    pub batched_now: u64,
    /// The most of them at once.
    pub batched_most: u64,
    /// Calls whose answers are outstanding now: a gauge.
    pub outstanding_now: u64,
    /// The most of them at once.
    pub outstanding_most: u64,
    /// What other threads have submitted and the shard has not taken yet: a gauge.
    pub inbox_now: u64,
    /// The most that it found there as it looked.
    pub inbox_most: u64,
    /// What waits now in the fullest of the rings from other shards, messages or answers: a gauge.
    pub ring_now: u64,
    /// The most that it found in one of them.
    pub ring_most: u64,
    /// Messages and answers that wait now to leave on the connection where most do: a gauge.
    pub outgoing_now: u64,
    /// The most that waited on one as it was written to.
    pub outgoing_most: u64,
    /// Answers dropped because they were late, duplicate or foreign.
    pub late_answers: u64,
    /// Headers that could not be decoded.
    pub malformed: u64,
    /// Inline runs, and runs of batches, that took longer than their budget.
    pub inline_overruns: u64,
    /// Inline handlers that were demoted, once for each shard: they run as tasks.
    pub demoted: u64,

    /// Calling side: requests and confirmed messages that this shard was given to send. They end as
    /// the four entries that follow.
    pub calls: u64,
    /// Calls that were answered by a response or an ack.
    pub answered: u64,
    /// Calls that were answered by a nack.
    pub call_nacked: u64,
    /// Calls that resolved without an answer after they were sent.
    pub call_indeterminate: u64,
    /// Calls that never left.
    pub not_sent: u64,
    /// One-way messages that were given to a connection.
    pub one_way_sent: u64,
    /// One-way messages that were accepted for sending, and for which no connection came, or the
    /// drain's end first.
    pub one_way_lost: u64,
    /// Answers that were written and not sent: their connection was lost, or took no more.
    pub answers_lost: u64,
    /// Connections that were cut because their queue stayed full too long.
    pub slow_consumers: u64,
}

impl Counters {
    /// Counts a nack under the reason's number on the wire; unknown numbers count as 0.
    #[inline]
    pub fn count_nack(&mut self, reason: u16) {
        let known = usize::from(reason) < REASONS;
        self.nacked_by_reason[if known { usize::from(reason) } else { 0 }] += 1;
    }

    /// Nacks of all reasons.
    pub fn nacked(&self) -> u64 {
        self.nacked_by_reason.iter().sum()
    }

    /// Counts as lost what was handed over and never taken. For the sum over shards that have all
    /// ended.
    pub fn settle_hops(&mut self) {
        self.lost += self.hopped_out.saturating_sub(self.hopped_in);
        self.hopped_in = self.hopped_out;
    }

    /// Accepted messages that are not resolved yet. After a drain it is 0.
    pub fn in_flight(&self) -> u64 {
        let resolved = self.handled + self.nacked() + self.indeterminate + self.lost;
        self.accepted.saturating_sub(resolved)
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        // Taken apart, so that a new field that is not summed does not compile.
        let Counters {
            accepted,
            handled,
            nacked_by_reason,
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
            batched,
            batches,
            blocking_most,
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
        } = other;
        self.accepted += accepted;
        self.handled += handled;
        for (mine, others) in self.nacked_by_reason.iter_mut().zip(nacked_by_reason) {
            *mine += others;
        }
        self.indeterminate += indeterminate;
        self.lost += lost;
        self.shed += shed;
        self.stopped += stopped;
        self.hopped_out += hopped_out;
        self.hopped_in += hopped_in;
        self.shards_woken += shards_woken;
        self.woken += woken;
        self.spawned += spawned;
        self.spawned_now += spawned_now;
        self.spawned_most += spawned_most;
        self.blocking += blocking;
        self.blocking_now += blocking_now;
        self.batched += batched;
        self.batches += batches;
        self.blocking_most += blocking_most;
        self.batched_now += batched_now;
        self.batched_most += batched_most;
        self.outstanding_now += outstanding_now;
        self.outstanding_most += outstanding_most;
        self.inbox_now += inbox_now;
        self.inbox_most += inbox_most;
        self.ring_now += ring_now;
        self.ring_most += ring_most;
        self.outgoing_now += outgoing_now;
        self.outgoing_most += outgoing_most;
        self.late_answers += late_answers;
        self.malformed += malformed;
        self.inline_overruns += inline_overruns;
        self.demoted += demoted;
        self.calls += calls;
        self.answered += answered;
        self.call_nacked += call_nacked;
        self.call_indeterminate += call_indeterminate;
        self.not_sent += not_sent;
        self.one_way_sent += one_way_sent;
        self.one_way_lost += one_way_lost;
        self.answers_lost += answers_lost;
        self.slow_consumers += slow_consumers;
    }
}

/// What one handler did since its recorder was made, or over all shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HandlerCounters {
    /// Messages that named it: `runs + refused() + lost + under_way_now`. On the shard that ran or
    /// refused them; those in the rings between shards are in neither's account.
    pub accepted: u64,
    /// Runs that ended without an error: those neither nacked nor indeterminate.
    pub handled: u64,
    /// Runs that ended, in whatever way.
    pub runs: u64,
    /// Those of them that were nacked, by the reason's number on the wire. Serialized by name,
    /// without zeros.
    #[serde(with = "by_name")]
    pub nacked_by_reason: [u64; REASONS],
    /// Messages that were nacked without a run. Serialized as the others.
    #[serde(with = "by_name")]
    pub refused_by_reason: [u64; REASONS],
    /// Runs that were stopped before their end.
    pub indeterminate: u64,
    /// Messages that were dropped without a run or a nack.
    pub lost: u64,
    /// Messages that run as tasks, wait or run on the pool, or wait for their batch: a gauge. Those
    /// that a drain's end has given up stay in it.
    pub under_way_now: u64,
    /// The most of them at once; over several shards, the sum of their marks.
    pub under_way_most: u64,
    /// Inline runs that took longer than their budget.
    pub overruns: u64,
    /// The longest inline run, in nanoseconds; 0 if none ran inline.
    pub longest_inline_ns: u64,
    /// Shards on which it was demoted: there it runs as a task.
    pub demotions: u64,
}

impl HandlerCounters {
    /// Runs that were nacked, for whatever reason.
    pub fn nacked(&self) -> u64 {
        self.nacked_by_reason.iter().sum()
    }

    /// Messages that were nacked without a run.
    pub fn refused(&self) -> u64 {
        self.refused_by_reason.iter().sum()
    }

    /// Enters what follows from the rest.
    pub(super) fn add_up(&mut self) {
        self.handled = self.runs - self.nacked() - self.indeterminate;
        self.accepted = self.runs + self.refused() + self.lost + self.under_way_now;
    }
}

/// Nacks as a map from the reason's name.
mod by_name {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    use super::{REASON_NAMES, REASONS};

    pub(super) fn serialize<S: Serializer>(
        counts: &[u64; REASONS],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let named = REASON_NAMES.iter().zip(counts);
        serializer.collect_map(named.filter(|(_, count)| **count > 0))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<[u64; REASONS], D::Error> {
        let named = BTreeMap::<String, u64>::deserialize(deserializer)?;
        let mut counts = [0; REASONS];
        for (name, count) in named {
            let known = REASON_NAMES.iter().position(|known| *known == name);
            counts[known.unwrap_or(0)] += count;
        }
        Ok(counts)
    }
}

impl AddAssign for HandlerCounters {
    /// Sums the counts, and keeps the longer of the two longest runs.
    fn add_assign(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.handled += other.handled;
        self.runs += other.runs;
        for (mine, others) in self.nacked_by_reason.iter_mut().zip(other.nacked_by_reason) {
            *mine += others;
        }
        let refused = self.refused_by_reason.iter_mut();
        for (mine, others) in refused.zip(other.refused_by_reason) {
            *mine += others;
        }
        self.indeterminate += other.indeterminate;
        self.lost += other.lost;
        self.under_way_now += other.under_way_now;
        self.under_way_most += other.under_way_most;
        self.overruns += other.overruns;
        self.demotions += other.demotions;
        self.longest_inline_ns = self.longest_inline_ns.max(other.longest_inline_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nacks_are_counted_by_reason_and_unknown_reasons_are_kept_apart() {
        let mut counters = Counters::default();
        for reason in [1, 5, 5, 10, 11, u16::MAX] {
            counters.count_nack(reason);
        }
        assert_eq!(counters.nacked_by_reason, [2, 1, 0, 0, 0, 2, 0, 0, 0, 0, 1]);
        assert_eq!(counters.nacked(), 6);
    }

    #[test]
    fn sums_keep_the_account() {
        let mut one = Counters {
            accepted: 10,
            handled: 6,
            lost: 1,
            ..Counters::default()
        };
        one.count_nack(3);
        let mut sum = one;
        sum += one;
        assert_eq!(
            (sum.accepted, sum.handled, sum.nacked(), sum.lost),
            (20, 12, 2, 2)
        );
        assert_eq!(sum.in_flight(), 2 * one.in_flight());
        assert_eq!(one.in_flight(), 2);
    }
}
