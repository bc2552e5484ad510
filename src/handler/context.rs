//! What a handler knows of its call and of where it runs.

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

use crate::client::LocalClient;

/// The shard that a handler runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardInfo {
    /// Its number, from 0.
    pub shard: usize,
    /// The CPU that it is pinned to.
    pub cpu: usize,
    /// The NUMA node of that CPU.
    pub numa_node: usize,
}

/// The call that an inline handler answers.
#[derive(Debug)]
pub struct Context<'a> {
    pub(super) shard: &'a ShardInfo,
    pub(super) client: &'a LocalClient,
    pub(super) now: Instant,
    pub(super) deadline: Option<Instant>,
    pub(super) route_key: u64,
    pub(super) wants_reply: bool,
}

impl Context<'_> {
    /// Where it runs.
    pub fn shard(&self) -> &ShardInfo {
        self.shard
    }

    /// When the reactor began with this message.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// By when the caller wants its answer.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The route key of the message; 0 for none.
    pub fn route_key(&self) -> u64 {
        self.route_key
    }

    /// Whether the caller waits for a reply: a one-way or confirmed message's is thrown away.
    pub fn wants_reply(&self) -> bool {
        self.wants_reply
    }

    /// Sends from this shard. To wait for an answer takes a spawned handler; an inline one can send
    /// one-way messages.
    pub fn client(&self) -> &LocalClient {
        self.client
    }
}

/// The call that a spawned handler answers, and what a task on a shard has to live on.
#[derive(Clone, Debug)]
pub struct TaskContext {
    pub(crate) shard: Rc<ShardInfo>,
    pub(crate) client: LocalClient,
    pub(crate) timers: Rc<Timers>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) route_key: u64,
}

impl TaskContext {
    /// Where it runs.
    pub fn shard(&self) -> &ShardInfo {
        &self.shard
    }

    /// By when the caller wants its answer.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The route key of the message; 0 for none.
    pub fn route_key(&self) -> u64 {
        self.route_key
    }

    /// Sends from this shard; the answers may be awaited.
    pub fn client(&self) -> &LocalClient {
        &self.client
    }

    /// Waits, by the shard's clock: the task goes on in the first turn after this time has passed.
    /// A time that the clock cannot count, centuries, never passes.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        let due = self.timers.clock.now().checked_add(duration);
        Sleep {
            timers: self.timers.clone(),
            due,
            registered: None,
        }
    }
}

/// The timers of a shard's tasks. The reactor fires them, so that they work under a virtual clock
/// too.
#[derive(Debug)]
pub struct Timers {
    clock: Clock,
    due: RefCell<BinaryHeap<Reverse<Due>>>,
}

#[derive(Debug)]
struct Due(Instant, Waker);

impl Timers {
    /// No timers yet; sleeps begin by this clock.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            due: RefCell::default(),
        }
    }

    /// Wakes the tasks whose time has come, and says how many.
    pub fn fire(&self, now: Instant) -> usize {
        let mut count = 0;
        while self.next_due().is_some_and(|due| due <= now) {
            let timer = self.due.borrow_mut().pop();
            if let Some(Reverse(Due(_, waker))) = timer {
                waker.wake();
                count += 1;
            }
        }
        count
    }

    /// When `fire` must be called next.
    pub fn next_due(&self) -> Option<Instant> {
        self.due.borrow().peek().map(|Reverse(Due(due, _))| *due)
    }
}

/// Ends when its time has passed; made by [`TaskContext::sleep`].
#[derive(Debug)]
#[must_use = "a sleep does nothing unless it is awaited"]
pub struct Sleep {
    timers: Rc<Timers>,
    /// `None`: never.
    due: Option<Instant>,
    /// Whom the timer wakes.
    registered: Option<Waker>,
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
        // Again for a future that has moved to another task.
        let is_registered = |waker: &Waker| waker.will_wake(cx.waker());
        if !self.registered.as_ref().is_some_and(is_registered) {
            let waker = cx.waker().clone();
            let timer = Reverse(Due(due, waker.clone()));
            self.timers.due.borrow_mut().push(timer);
            self.registered = Some(waker);
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
