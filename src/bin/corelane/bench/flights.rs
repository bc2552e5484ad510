//! Many calls under way in one task: each is polled only when its own answer has come.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

use quanta::Instant;

/// Calls under way, each with the time that its latency counts from. Allocates only while more are
/// under way than ever before.
pub(super) struct Flights<F> {
    slots: Vec<Slot<F>>,
    free: Vec<usize>,
    tower: Arc<Tower>,
}

struct Slot<F> {
    flight: Option<(F, Instant)>,
    /// Tells the tower this slot's number.
    waker: Waker,
}

/// What the wakers, which must be `Sync`, share with the task. Nobody contends for the lock: the
/// shard that answers a call is the one that waits for it.
#[derive(Default)]
struct Tower(Mutex<Signals>);

#[derive(Default)]
struct Signals {
    /// In the order of the signals, so that no answer waits for later ones.
    landed: VecDeque<usize>,
    task: Option<Waker>,
}

struct SlotWaker {
    slot: usize,
    tower: Arc<Tower>,
}

impl<F: Future + Unpin> Flights<F> {
    pub(super) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            tower: Arc::default(),
        }
    }

    pub(super) fn under_way(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Adds a call. It is first polled by the next `land`.
    pub(super) fn launch(&mut self, flight: F, since: Instant) {
        let slot = self.free.pop().unwrap_or_else(|| self.add_slot());
        self.slots[slot].flight = Some((flight, since));
        self.tower.signals().landed.push_back(slot);
    }

    /// Waits for the next call that ends, and returns since when it was under way. Never ends while
    /// none is.
    pub(super) fn land(&mut self) -> impl Future<Output = (Instant, F::Output)> {
        poll_fn(|cx| self.poll_land(cx))
    }

    fn poll_land(&mut self, cx: &mut Context<'_>) -> Poll<(Instant, F::Output)> {
        loop {
            let Some(slot) = self.tower.next_signal(cx) else {
                return Poll::Pending;
            };
            let Slot { flight, waker } = &mut self.slots[slot];
            // Told twice: by its launch, and by an answer that was faster than its first poll.
            let Some((future, since)) = flight else {
                continue;
            };
            if let Poll::Ready(output) = Pin::new(future).poll(&mut Context::from_waker(waker)) {
                let since = *since;
                *flight = None;
                self.free.push(slot);
                return Poll::Ready((since, output));
            }
        }
    }

    fn add_slot(&mut self) -> usize {
        let slot = self.slots.len();
        let tower = self.tower.clone();
        self.slots.push(Slot {
            flight: None,
            waker: Waker::from(Arc::new(SlotWaker { slot, tower })),
        });
        slot
    }
}

impl Tower {
    /// A slot to be polled; without one, the task is woken by the next.
    fn next_signal(&self, cx: &Context<'_>) -> Option<usize> {
        let mut signals = self.signals();
        let slot = signals.landed.pop_front();
        if slot.is_none() {
            match &mut signals.task {
                Some(task) => task.clone_from(cx.waker()),
                None => signals.task = Some(cx.waker().clone()),
            }
        }
        slot
    }

    fn signals(&self) -> MutexGuard<'_, Signals> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut signals = self.tower.signals();
        signals.landed.push_back(self.slot);
        let task = signals.task.take();
        drop(signals);
        if let Some(task) = task {
            task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use futures_lite::future::{block_on, poll_once};

    use super::*;

    /// Ends with its number once it was let go.
    struct Held(u32, Rc<Cell<bool>>, Rc<Cell<Option<Waker>>>);

    impl Future for Held {
        type Output = u32;

        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u32> {
            self.2.set(Some(cx.waker().clone()));
            match self.1.get() {
                true => Poll::Ready(self.0),
                false => Poll::Pending,
            }
        }
    }

    #[test]
    fn flights_land_in_the_order_of_their_answers_and_free_their_slots() {
        let mut flights = Flights::new();
        let now = quanta::Clock::mock().0.now();
        let gates: Vec<_> = (0..3)
            .map(|_| (Rc::new(Cell::new(false)), Rc::new(Cell::new(None::<Waker>))))
            .collect();
        for (number, (gate, waker)) in (0..).zip(&gates) {
            flights.launch(Held(number, gate.clone(), waker.clone()), now);
        }
        assert!(block_on(poll_once(flights.land())).is_none());
        for number in [2, 0, 1] {
            let (gate, waker) = &gates[number];
            gate.set(true);
            let waker = waker.take().expect("was polled");
            waker.wake_by_ref();
            waker.wake(); // twice does no harm
            assert_eq!(block_on(flights.land()).1, number as u32);
            assert!(block_on(poll_once(flights.land())).is_none());
        }
        assert_eq!(flights.under_way(), 0);
        let open = Rc::new(Cell::new(true));
        for round in 0..10 {
            flights.launch(Held(round, open.clone(), Rc::default()), now);
            assert_eq!(block_on(flights.land()).1, round);
        }
        assert_eq!(flights.slots.len(), 3, "slots are used again");
    }
}
