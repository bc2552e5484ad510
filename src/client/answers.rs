//! How a shard's own tasks hear of their calls: a slot each, used again, and no channel.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use slab::Slab;

use super::call::Outcome;

/// The calls of a shard's own tasks that are not yet told of their outcome.
#[derive(Debug, Default)]
pub(super) struct Answers {
    slots: RefCell<Slab<Slot>>,
    /// The correlations of calls under way that nobody waits for any more. No more than there are
    /// calls: each comes here once, and the reactor takes it.
    abandoned: RefCell<Vec<u64>>,
    /// To be woken when there is something for it to do, if it is parked.
    reactor: RefCell<Option<Waker>>,
    is_reactor_parked: Cell<bool>,
}

#[derive(Debug)]
enum Slot {
    /// Whom to wake, once somebody waits.
    Awaited(Option<Waker>),
    /// Nobody waits any more.
    Forgotten,
    Here(Outcome),
}

impl Answers {
    /// A place for an outcome, and whoever is to wait for it.
    pub(super) fn open(answers: &Rc<Self>) -> (usize, LocalAnswer) {
        let slot = answers.slots.borrow_mut().insert(Slot::Awaited(None));
        let answers = answers.clone();
        let answer = LocalAnswer {
            answers,
            slot,
            correlation: 0,
        };
        (slot, answer)
    }

    /// Whom to wake when there is something to do.
    pub(super) fn register(&self, reactor: &Waker) {
        *self.reactor.borrow_mut() = Some(reactor.clone());
        self.is_reactor_parked.set(true);
    }

    #[inline]
    pub(super) fn wake_reactor(&self) {
        if self.is_reactor_parked.replace(false)
            && let Some(reactor) = self.reactor.borrow_mut().take()
        {
            reactor.wake();
        }
    }

    /// Whether nobody waits any more for some call that is under way.
    #[inline]
    pub(super) fn has_abandoned(&self) -> bool {
        !self.abandoned.borrow().is_empty()
    }

    /// The correlation of such a call.
    pub(super) fn pop_abandoned(&self) -> Option<u64> {
        self.abandoned.borrow_mut().pop()
    }

    /// Calls that are not yet told of their outcome.
    pub(super) fn len(&self) -> usize {
        self.slots.borrow().len()
    }

    /// How many wakers it holds of which this is true.
    pub(super) fn count_wakers(&self, is_counted: impl Fn(&Waker) -> bool) -> usize {
        let slots = self.slots.borrow();
        let wakers = slots.iter().filter_map(|(_, slot)| match slot {
            Slot::Awaited(waker) => waker.as_ref(),
            Slot::Forgotten | Slot::Here(_) => None,
        });
        wakers.filter(|waker| is_counted(waker)).count()
    }

    /// The outcome has come.
    pub(super) fn give(&self, slot: usize, outcome: Outcome) {
        let mut slots = self.slots.borrow_mut();
        match slots.get_mut(slot) {
            Some(place @ Slot::Awaited(_)) => {
                let awaited = std::mem::replace(place, Slot::Here(outcome));
                // A waker may do anything but see the slots borrowed.
                drop(slots);
                if let Slot::Awaited(Some(waker)) = awaited {
                    waker.wake();
                }
            }
            _ => drop(slots.try_remove(slot)),
        }
    }
}

/// Waits for the outcome of a call on the shard that sends it. `!Send`.
#[derive(Debug)]
pub(super) struct LocalAnswer {
    answers: Rc<Answers>,
    slot: usize,
    correlation: u64,
}

impl LocalAnswer {
    /// Says which call it is.
    #[inline]
    pub(super) fn belongs_to(&mut self, correlation: u64) {
        self.correlation = correlation;
    }
}

impl Future for LocalAnswer {
    type Output = Option<Outcome>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Outcome>> {
        let mut slots = self.answers.slots.borrow_mut();
        let Some(slot) = slots.get_mut(self.slot) else {
            return Poll::Ready(None);
        };
        match slot {
            Slot::Awaited(Some(waker)) => {
                waker.clone_from(cx.waker());
                Poll::Pending
            }
            Slot::Awaited(none) => {
                *none = Some(cx.waker().clone());
                Poll::Pending
            }
            Slot::Here(_) | Slot::Forgotten => match std::mem::replace(slot, Slot::Forgotten) {
                Slot::Here(outcome) => Poll::Ready(Some(outcome)),
                _ => Poll::Ready(None),
            },
        }
    }
}

impl Drop for LocalAnswer {
    fn drop(&mut self) {
        let mut slots = self.answers.slots.borrow_mut();
        let Some(slot) = slots.get_mut(self.slot) else {
            return;
        };
        // The slot of a call under way is freed when its outcome comes.
        let unheard = match slot {
            Slot::Awaited(_) => {
                self.answers.abandoned.borrow_mut().push(self.correlation);
                std::mem::replace(slot, Slot::Forgotten)
            }
            Slot::Here(_) | Slot::Forgotten => slots.remove(self.slot),
        };
        drop(slots);
        if matches!(unheard, Slot::Awaited(_)) {
            self.answers.wake_reactor();
        }
        drop(unheard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Indeterminate;

    fn poll(answer: &mut LocalAnswer) -> Poll<Option<Outcome>> {
        Pin::new(answer).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn an_outcome_is_told_once_and_its_slot_is_used_again() {
        let answers = Rc::new(Answers::default());
        for _ in 0..3 {
            let (slot, mut answer) = Answers::open(&answers);
            assert_eq!(slot, 0);
            assert!(poll(&mut answer).is_pending() && poll(&mut answer).is_pending());
            answers.give(slot, Outcome::Indeterminate(Indeterminate::Deadline));
            assert!(matches!(poll(&mut answer), Poll::Ready(Some(_))));
            assert!(matches!(poll(&mut answer), Poll::Ready(None)));
        }
    }

    #[test]
    fn whoever_stops_waiting_leaves_no_slot_behind() {
        let answers = Rc::new(Answers::default());
        let (early, answer) = Answers::open(&answers);
        drop(answer);
        let (late, answer) = Answers::open(&answers);
        for slot in [early, late] {
            answers.give(slot, Outcome::Indeterminate(Indeterminate::Stopped));
        }
        drop(answer);
        assert!(answers.slots.borrow().is_empty());
    }
}
