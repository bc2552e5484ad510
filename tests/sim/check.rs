//! What must hold after a scenario, whatever happened in it.

use std::collections::HashMap;

use corelane::{
    error::Indeterminate,
    metrics::{Counters, HandlerCounters, HandlerView, Snapshot},
    peers::AccountSnapshot,
    shard::Depths,
    wire::Reason,
};

use crate::{
    handlers::{BATCH_COUNT_MAX, Conduct, ORDER_BYTES, Run},
    ledger::Ledger,
    load::{End, Mode, Sent},
    rude::STRANGER_IDS,
    scenario::BATCH_LANES,
    world::Limits,
};

/// At most one run each, in the order of sending on each connection; and who was told of a run, or
/// of none, was told the truth.
pub(crate) fn check_runs(sent: &[Sent], runs: &[Run], ledger: &Ledger) {
    let mut ran: HashMap<u32, u32> = HashMap::new();
    // A connection that one end has given up may still bring the other what was under way.
    let mut last_of_lane: HashMap<_, u32> = HashMap::new();
    for Run { order, beside, .. } in runs {
        let cable = ledger.cable_of(order.id);
        for &other in beside {
            assert_ne!(
                ledger.cable_of(other),
                cable,
                "{order:?} ran beside {other}"
            );
        }
        let count = ran.entry(order.id).or_default();
        *count += 1;
        assert_eq!(*count, 1, "{order:?} ran twice");
        if let Some(last) = last_of_lane.insert((order.lane, cable), order.sequence) {
            assert!(
                order.sequence > last,
                "{order:?} started after {last} of its lane"
            );
        }
    }
    for it in sent {
        let count = ran.remove(&it.order.id).unwrap_or(0);
        let must_have_run = match it.end {
            // One-way: nobody is told.
            None => continue,
            Some(End::Answered) => true,
            Some(End::Nack(Reason::HandlerFailed | Reason::HandlerPanicked)) => true,
            Some(End::Nack(_) | End::NotSent(_)) => false,
            // Nobody was told, and either may be.
            Some(End::Indeterminate(_) | End::Cancelled | End::Crashed) => continue,
        };
        assert_eq!(count == 1, must_have_run, "{:?}: {:?}", it.order, it.end);
        let conduct = match it.end {
            Some(End::Answered) => Conduct::Return,
            Some(End::Nack(Reason::HandlerFailed)) => Conduct::Fail,
            // All of its batch are told so.
            Some(End::Nack(Reason::HandlerPanicked)) if it.order.lane & BATCH_LANES != 0 => {
                continue;
            }
            Some(End::Nack(Reason::HandlerPanicked)) => Conduct::Panic,
            _ => continue,
        };
        assert_eq!(it.order.conduct, conduct, "{:?}: {:?}", it.order, it.end);
    }
    let is_strangers = |id: u32| id >= STRANGER_IDS;
    ran.retain(|&id, _| !is_strangers(id));
    assert!(ran.is_empty(), "ran although it was refused: {ran:?}");
}

/// What ran had arrived at that process, on a connection of its own; what was answered had its
/// answer come back by the connection that it had left by; what was never sent has not left.
pub(crate) fn check_passages(
    sent: &[Sent],
    runs: &[Run],
    ledger: &Ledger,
    process_of: impl Fn(usize) -> usize,
) {
    for Run { order, process, .. } in runs {
        let arrived = ledger.arrived_at(order.id).map(&process_of);
        assert_eq!(
            arrived,
            Some(*process),
            "{order:?} ran in process {process}"
        );
    }
    for it in sent {
        let id = it.order.id;
        match it.end {
            Some(End::Answered | End::Nack(_)) => {
                assert!(ledger.is_answered(id), "{:?}: {:?}", it.order, it.end);
            }
            Some(End::Indeterminate(why)) => {
                let answered = ledger.answered_in(id);
                let is_late = answered.is_none_or(|round| round > it.ended_in);
                assert!(is_late, "{:?}: {why:?}, but there was an answer", it.order);
            }
            Some(End::NotSent(_)) => assert!(!ledger.has_left(id), "{:?}", it.order),
            _ => {}
        }
    }
}

/// What a peer's account says is what its callers saw.
pub(crate) fn check_account(sent: &[Sent], peer: usize, account: AccountSnapshot) {
    let mut seen = AccountSnapshot {
        // Which of the two a one-way message came to, nobody but the account knows.
        one_way_sent: account.one_way_sent,
        lost: account.lost,
        ..AccountSnapshot::default()
    };
    let (mut one_way, mut cancelled) = (0, 0);
    for it in sent.iter().filter(|it| it.peer == peer) {
        seen.accepted += 1;
        match it.end {
            None => one_way += 1,
            Some(End::Cancelled) => cancelled += 1,
            Some(End::Crashed) => unreachable!("its handle is gone"),
            Some(End::Answered) => seen.handled += 1,
            Some(End::Nack(_)) => seen.nacked += 1,
            Some(End::Indeterminate(Indeterminate::Stopped)) => seen.indeterminate += 1,
            Some(End::Indeterminate(_)) => seen.indeterminate += 1,
            Some(End::NotSent(_)) => seen.not_sent += 1,
        }
    }
    // A cancelled call ends once, as whatever it had come to when its shard saw that.
    for (seen, account) in [
        (&mut seen.handled, account.handled),
        (&mut seen.nacked, account.nacked),
        (&mut seen.indeterminate, account.indeterminate),
        (&mut seen.not_sent, account.not_sent),
    ] {
        let more = account.saturating_sub(*seen).min(cancelled);
        cancelled -= more;
        *seen += more;
    }
    assert_eq!((seen, cancelled), (account, 0), "peer {peer}");
    assert_eq!(one_way, account.one_way_sent + account.lost, "peer {peer}");
}

/// The counters of a process's shards add up among themselves, with what arrived and ran there, and
/// with what its callers saw.
pub(crate) fn check_counters(
    sent: &[&Sent],
    runs: usize,
    arrived: u64,
    dropped: u64,
    total: &Counters,
) {
    // Nor is there an end too many.
    let ends = total.handled + total.nacked() + total.indeterminate + total.lost;
    assert_eq!(ends, total.accepted, "{total:?}");
    assert_eq!((total.spawned_now, total.blocking_now), (0, 0), "{total:?}");
    let nacks = |reason: Reason| total.nacked_by_reason[usize::from(reason.to_u16())];
    let ended = total.handled + nacks(Reason::HandlerFailed) + nacks(Reason::HandlerPanicked);
    assert_eq!(runs as u64, ended + total.indeterminate, "{total:?}");
    assert_eq!(total.accepted, arrived, "{total:?}");

    // Whose future was dropped before its end may have done anything, and is counted so.
    assert!(dropped <= total.indeterminate, "{dropped}, {total:?}");
    assert!(
        total.stopped <= dropped + total.lost,
        "{dropped}, {total:?}"
    );

    let is = |wanted: fn(&End) -> bool| {
        let ends = sent.iter().filter_map(|it| it.end);
        ends.filter(wanted).count() as u64
    };
    let one_way = sent.iter().filter(|it| it.mode == Mode::OneWay).count() as u64;
    let calls = sent.len() as u64 - one_way;
    assert_eq!(total.calls, calls, "{total:?}");
    let ended = [
        (total.answered, is(|end| *end == End::Answered)),
        (total.call_nacked, is(|end| matches!(end, End::Nack(_)))),
        (total.not_sent, is(|end| matches!(end, End::NotSent(_)))),
        (
            total.call_indeterminate,
            is(|end| matches!(end, End::Indeterminate(_))),
        ),
    ];
    let mut unseen = is(|end| *end == End::Cancelled);
    for (counted, seen) in ended {
        assert!((seen..=seen + unseen).contains(&counted), "{total:?}");
        unseen -= counted - seen;
    }
    assert_eq!(unseen, 0, "{total:?}");
    assert_eq!(
        total.one_way_sent + total.one_way_lost,
        one_way,
        "{total:?}"
    );
    assert_eq!(total.malformed, 0, "{total:?}");
}

/// The handlers' accounts are the shards', but for what names no handler; and each has all that
/// arrived for it, if nothing was cut short as the process ended.
pub(crate) fn check_handlers(
    metrics: &Snapshot,
    arrived: impl Fn(&str) -> u64,
    was_idle: bool,
    total: &Counters,
) {
    let mut sum = HandlerCounters::default();
    for HandlerView { name, counters, .. } in metrics.handlers() {
        let (arrived, accepted) = (arrived(name), counters.accepted);
        assert!(accepted <= arrived, "{name}: {arrived}, {counters:?}");
        if was_idle {
            let expected = (arrived, 0);
            let seen = (accepted, counters.under_way_now);
            assert_eq!(seen, expected, "{name}: {counters:?}");
        }
        sum += counters;
    }
    // A batch has run though a drain's end has cut off its answers.
    let cut_off = if was_idle { 0 } else { total.indeterminate };
    let handled = total.handled..=total.handled + cut_off;
    assert!(handled.contains(&sum.handled), "{sum:?}, {total:?}");
    let runs_end_so = [Reason::HandlerFailed, Reason::HandlerPanicked];
    let runs_end_so = runs_end_so.map(|it| usize::from(it.to_u16()));
    for (reason, &nacked) in total.nacked_by_reason.iter().enumerate() {
        let (ran, refused) = (sum.nacked_by_reason[reason], sum.refused_by_reason[reason]);
        match runs_end_so.contains(&reason) {
            true => assert_eq!((ran, refused), (nacked, 0), "{reason}: {total:?}"),
            false => assert!(ran == 0 && refused <= nacked, "{reason}: {total:?}"),
        }
    }
    assert!(sum.lost <= total.lost, "{} lost: {total:?}", sum.lost);
    let (stopped, given_up) = (sum.indeterminate, sum.under_way_now);
    let unanswered = sum.handled - total.handled;
    let indeterminate = stopped..=stopped + given_up + unanswered;
    assert!(indeterminate.contains(&total.indeterminate), "{total:?}");
}

/// A simulated process has up to three shards.
const FURTHER_SHARDS_MAX: usize = 2;
/// `gather` and `gather.last`.
const BATCHES: usize = 2;

/// How many messages a shard of so many may have read at most that something else will answer:
/// batches, and the other shards.
pub(crate) fn owed_max(limits: &Limits, shards: usize) -> usize {
    let batched = BATCHES * BATCH_COUNT_MAX;
    batched + (shards - 1) * away_max(limits)
}

/// How many may be away at most at one other shard: on their way there or back, or there.
fn away_max(limits: &Limits) -> usize {
    let batched = BATCHES * BATCH_COUNT_MAX;
    let pool_max = limits.pool_queue + limits.pool_threads;
    2 * limits.ring_capacity + limits.shard.spawned_max + batched + pool_max
}

/// What a shard holds is within its limits.
pub(crate) fn check_depths(depths: &Depths, limits: &Limits, shards: usize) {
    let shard = &limits.shard;
    assert!(depths.outstanding <= shard.outstanding_max, "{depths:?}");
    assert!(depths.spawned <= shard.spawned_max, "{depths:?}");
    let pool_max = limits.pool_queue + limits.pool_threads;
    assert!(depths.blocking <= pool_max, "{depths:?}");
    // The outbox, other threads' messages and own tasks' each have a bound of their own; and what
    // waited for a connection to a further shard may have come to the main one.
    let queued_max = (3 + FURTHER_SHARDS_MAX) * limits.outgoing_messages_max + 1;
    assert!(depths.queued_most <= queued_max, "{depths:?}");
    // A large one passes alone, and each connection may have one that waits.
    let bytes_max = shard.buffered_bytes_max + (1 + depths.held) * ORDER_BYTES;
    assert!(depths.crossing_bytes <= bytes_max, "{depths:?}");
    assert!(depths.away <= (shards - 1) * away_max(limits), "{depths:?}");
    if shards == 1 {
        assert_eq!(depths.held, 0, "{depths:?}");
    }
}
