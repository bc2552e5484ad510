//! The correlation table: the calls whose answers are outstanding, and their deadlines.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use quanta::Instant;
use slab::Slab;

use super::caller::Completion;
use crate::{
    peers::PeerId,
    wire::{HandlerKey, Kind},
};

/// Dead deadlines are swept out once they outnumber the live ones by this many: the sweep's cost is
/// then spread over as many calls.
const DEAD_DEADLINES_MAX: usize = 1024;

/// The outstanding calls of one shard. Bounded; a call is found by its correlation and leaves the
/// table once.
#[derive(Debug)]
pub(super) struct Calls {
    slots: Slab<(u32, Outstanding)>,
    /// Deadlines that came in their order, as those do that name the same time: earliest first. A
    /// call that has left the table leaves its deadline behind until it is swept or due.
    ordered: VecDeque<(Instant, u64)>,
    /// The deadlines that came out of order.
    deadlines: BinaryHeap<Reverse<(Instant, u64)>>,
    generation: u32,
    capacity: usize,
    most: usize,
}

/// A call whose answer is outstanding.
#[derive(Debug)]
pub(super) struct Outstanding {
    pub(super) peer: PeerId,
    pub(super) kind: Kind,
    pub(super) handler: HandlerKey,
    pub(super) route_key: u64,
    pub(super) submitted_at: Instant,
    pub(super) deadline: Instant,
    /// It stands in its connection's outbox, or in the stage before it, or has left; else it waits
    /// for room or for the connection.
    pub(super) is_staged: bool,
    pub(super) completion: Completion,
}

impl Calls {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            slots: Slab::new(),
            ordered: VecDeque::new(),
            deadlines: BinaryHeap::new(),
            generation: 0,
            capacity,
            most: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The most that there have been at once.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Whether as many calls are outstanding as may be.
    pub(super) fn is_full(&self) -> bool {
        self.slots.len() >= self.capacity
    }

    /// Adds a call and returns its correlation: a slot, and a generation by which an answer to an
    /// earlier call of the slot is known for what it is.
    pub(super) fn insert(&mut self, call: Outstanding) -> u64 {
        self.generation = self.generation.wrapping_add(1);
        let deadline = call.deadline;
        let slot = self.slots.insert((self.generation, call));
        self.most = self.most.max(self.slots.len());
        let correlation = (u64::from(self.generation) << 32) | slot as u64;
        match self.ordered.back() {
            Some(&(last, _)) if deadline < last => {
                self.deadlines.push(Reverse((deadline, correlation)));
            }
            _ => self.ordered.push_back((deadline, correlation)),
        }
        // Those of calls that were answered before they were due.
        while let Some(&(_, first)) = self.ordered.front()
            && self.get_mut(first).is_none()
        {
            self.ordered.pop_front();
        }
        let dead_max = 2 * self.slots.len() + DEAD_DEADLINES_MAX;
        if self.deadlines.len() > dead_max || self.ordered.len() > dead_max {
            self.sweep();
        }
        correlation
    }

    pub(super) fn get_mut(&mut self, correlation: u64) -> Option<&mut Outstanding> {
        let (generation, call) = self.slots.get_mut(correlation as u32 as usize)?;
        (u64::from(*generation) == correlation >> 32).then_some(call)
    }

    pub(super) fn remove(&mut self, correlation: u64) -> Option<Outstanding> {
        self.get_mut(correlation)?;
        Some(self.slots.remove(correlation as u32 as usize).1)
    }

    /// Takes a call out if it is what it is thought to be.
    #[inline]
    pub(super) fn remove_if(
        &mut self,
        correlation: u64,
        fits: impl FnOnce(&Outstanding) -> bool,
    ) -> Option<Outstanding> {
        if !fits(self.get_mut(correlation)?) {
            return None;
        }
        Some(self.slots.remove(correlation as u32 as usize).1)
    }

    /// The next call whose deadline has passed.
    #[inline]
    pub(super) fn next_expired(&mut self, now: Instant) -> Option<(u64, Outstanding)> {
        while let Some((deadline, is_ordered)) = self.earliest() {
            if deadline > now {
                return None;
            }
            let due = match is_ordered {
                true => self.ordered.pop_front(),
                false => self.deadlines.pop().map(|Reverse(due)| due),
            };
            let (_, correlation) = due?;
            if let Some(call) = self.remove(correlation) {
                return Some((correlation, call));
            }
        }
        None
    }

    /// The earliest deadline, and whether it is one of the ordered.
    #[inline]
    fn earliest(&self) -> Option<(Instant, bool)> {
        let ordered = self.ordered.front().map(|&(at, _)| at);
        let other = self.deadlines.peek().map(|Reverse((at, _))| *at);
        match (ordered, other) {
            (Some(ordered), Some(other)) if other < ordered => Some((other, false)),
            (Some(ordered), _) => Some((ordered, true)),
            (None, other) => other.map(|at| (at, false)),
        }
    }

    /// No call is due before this. It may be the deadline of one that is answered already.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.earliest().map(|(deadline, _)| deadline)
    }

    /// Takes out every call that this peer may have received.
    pub(super) fn take_sent(&mut self, peer: PeerId) -> Vec<Outstanding> {
        let is_sent = |call: &Outstanding| call.peer == peer && call.is_staged;
        let sent = self.slots.iter().filter(|(_, (_, call))| is_sent(call));
        let slots: Vec<usize> = sent.map(|(slot, _)| slot).collect();
        slots
            .into_iter()
            .map(|slot| self.slots.remove(slot).1)
            .collect()
    }

    /// How many places there are, taken or not.
    pub(super) fn places(&self) -> usize {
        self.slots.capacity()
    }

    /// The correlation of the call at this place, if nobody waits for it any more.
    pub(super) fn abandoned_at(&self, place: usize) -> Option<u64> {
        let (generation, call) = self.slots.get(place)?;
        let correlation = (u64::from(*generation) << 32) | place as u64;
        call.completion.is_abandoned().then_some(correlation)
    }

    /// A correlation for a message that nothing answers: no call's.
    pub(super) fn unanswered(&mut self) -> u64 {
        self.generation = self.generation.wrapping_add(1);
        (u64::from(self.generation) << 32) | u64::from(u32::MAX)
    }

    fn sweep(&mut self) {
        let mut deadlines = std::mem::take(&mut self.deadlines).into_vec();
        deadlines.retain(|&Reverse((_, correlation))| self.get_mut(correlation).is_some());
        self.deadlines = deadlines.into();
        let mut ordered = std::mem::take(&mut self.ordered);
        ordered.retain(|&(_, correlation)| self.get_mut(correlation).is_some());
        self.ordered = ordered;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn call(deadline: Instant) -> Outstanding {
        Outstanding {
            peer: PeerId::unique(),
            kind: Kind::Request,
            handler: HandlerKey::of("x"),
            route_key: 0,
            submitted_at: Instant::now(),
            deadline,
            is_staged: false,
            completion: Completion::Remote(oneshot::async_channel().0),
        }
    }

    #[test]
    fn a_correlation_is_good_once_and_never_for_the_slots_next_call() {
        let mut calls = Calls::new(10);
        let first = calls.insert(call(Instant::now()));
        assert!(calls.remove(first).is_some());
        assert!(calls.remove(first).is_none());
        let second = calls.insert(call(Instant::now()));
        assert_eq!(first as u32, second as u32, "the slot is used again");
        assert!(calls.remove(first).is_none() && calls.remove(second).is_some());
        for never in [0, 1, u64::MAX] {
            assert!(calls.remove(never).is_none());
        }
    }

    #[test]
    fn calls_expire_in_the_order_of_their_deadlines() {
        let (mut calls, start) = (Calls::new(100), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let correlations: Vec<u64> = [30, 10, 20]
            .into_iter()
            .map(|ms| calls.insert(call(at(ms))))
            .collect();
        assert_eq!(calls.next_deadline(), Some(at(10)));
        assert!(calls.next_expired(at(9)).is_none());
        calls.remove(correlations[2]);
        let mut expired = || {
            calls
                .next_expired(at(30))
                .map(|(correlation, _)| correlation)
        };
        assert_eq!(expired(), Some(correlations[1]));
        assert_eq!(expired(), Some(correlations[0]));
        assert_eq!(expired(), None);
        calls.insert(call(at(40)));
        assert_eq!((calls.len(), calls.most()), (1, 3));
    }

    #[test]
    fn deadlines_of_answered_calls_do_not_pile_up() {
        let mut calls = Calls::new(10);
        let late = Instant::now() + Duration::from_secs(3600);
        for _ in 0..100_000 {
            let correlation = calls.insert(call(late));
            calls.remove(correlation);
        }
        assert!(calls.ordered.len() <= 2);
        // Nor those behind one that is not answered, or out of order.
        let soon = late - Duration::from_secs(60);
        let _held = [calls.insert(call(late)), calls.insert(call(late))];
        for n in 0..100_000 {
            let deadline = if n % 2 == 0 { late } else { soon };
            let correlation = calls.insert(call(deadline));
            calls.remove(correlation);
        }
        assert!(calls.ordered.len() <= DEAD_DEADLINES_MAX + 8);
        assert!(calls.deadlines.len() <= DEAD_DEADLINES_MAX + 8);
    }
}
