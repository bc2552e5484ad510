//! Sleeping tasks.
//!
//! A task runs outside of the reactor's turn, so a sleep reads the clock itself.

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::BinaryHeap,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

use quanta::{Clock, Instant};

/// The timers of a shard's tasks. The reactor fires them, so that they work under a virtual clock
/// too.
#[derive(Debug)]
pub struct Timers {
    clock: Clock,
    due: RefCell<BinaryHeap<Reverse<Due>>>,
}

/// A sleep's end, and whom it wakes: kept in one place, which the sleep may change.
#[derive(Debug)]
struct Due(Instant, Rc<RefCell<Waker>>);

impl Timers {
    /// No timers yet; sleeps begin by this clock.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            due: RefCell::default(),
        }
    }

    /// Ends when this time has passed from now.
    pub(super) fn sleep(timers: &Rc<Self>, duration: Duration) -> Sleep {
        let due = timers.clock.now().checked_add(duration);
        Sleep {
            timers: timers.clone(),
            due,
            registered: None,
        }
    }

    /// Wakes the tasks whose time has come, and says how many.
    pub fn fire(&self, now: Instant) -> usize {
        let mut count = 0;
        while self.next_due().is_some_and(|due| due <= now) {
            let timer = self.due.borrow_mut().pop();
            if let Some(Reverse(Due(_, waker))) = timer {
                waker.borrow().wake_by_ref();
                count += 1;
            }
        }
        count
    }

    /// How many wakers it holds of which this is true.
    pub fn count_wakers(&self, is_counted: impl Fn(&Waker) -> bool) -> usize {
        let due = self.due.borrow();
        due.iter()
            .filter(|Reverse(Due(_, waker))| is_counted(&waker.borrow()))
            .count()
    }

    /// When `fire` must be called next.
    pub fn next_due(&self) -> Option<Instant> {
        self.due.borrow().peek().map(|Reverse(Due(due, _))| *due)
    }
}

/// Ends when its time has passed; made by
/// [`TaskContext::sleep`](super::TaskContext::sleep).
#[derive(Debug)]
#[must_use = "a sleep does nothing unless it is awaited"]
pub struct Sleep {
    timers: Rc<Timers>,
    /// `None`: never.
    due: Option<Instant>,
    /// Whom the timer wakes.
    registered: Option<Rc<RefCell<Waker>>>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<()> {
        let Some(due) = self.due else {
            return Poll::Pending;
        };
        if self.timers.clock.now() >= due {
            return Poll::Ready(());
        }
        match &self.registered {
            // It may have moved to another task.
            Some(waker) => waker.borrow_mut().clone_from(cx.waker()),
            None => {
                let waker = Rc::new(RefCell::new(cx.waker().clone()));
                let timer = Reverse(Due(due, waker.clone()));
                self.timers.due.borrow_mut().push(timer);
                self.registered = Some(waker);
            }
        }
        Poll::Pending
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}
