//! Messages whose handlers run or wait beside the reactor, so that they can be stopped: by whoever
//! sent them, or by their deadline.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use quanta::Instant;
use slab::Slab;

use super::{
    Core,
    tasks::{Origin, SeenWaker},
};
use crate::{engine::ConnectionId, handler::Failure, wire::Header};

/// Every message of this shard that runs as a task, or waits or runs on the pool, until its end.
///
/// As many as `limits.spawned_max` and the pool's queue allow. Nothing that a peer chooses makes a
/// look-up slow.
#[derive(Default)]
pub(super) struct Underway {
    entries: Slab<Entry>,
    by_message: BTreeMap<Sent, usize>,
    /// The deadlines of tasks. A message for the pool is looked at by the thread that comes to it.
    deadlines: BTreeSet<(Instant, usize)>,
}

struct Entry {
    sent: Sent,
    deadline: Option<Instant>,
    brake: Brake,
}

/// What a message is known by: its correlation, on the connection that it came in on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sent {
    /// The shard that read it, if it is not this one.
    pub(super) home: Option<usize>,
    pub(super) connection: ConnectionId,
    pub(super) correlation: u64,
}

impl Sent {
    pub(super) fn of(origin: &Origin, correlation: u64) -> Self {
        let (home, connection) = match origin {
            Origin::Here { connection, .. } => (None, *connection),
            Origin::There { home, parcel } => (Some(*home), parcel.connection),
        };
        Self {
            home,
            connection,
            correlation,
        }
    }
}

/// How a message is stopped.
enum Brake {
    Task(Rc<TaskBrake>),
    Job(Claim),
}

/// Tells a task that its handler's future is to be dropped.
pub(super) struct TaskBrake {
    pulled: Cell<Option<Pulled>>,
    /// The task's place among the wakers that were given, once it was polled.
    pub(super) waker: Cell<Option<usize>>,
    wakers: Rc<RefCell<Slab<Arc<SeenWaker>>>>,
}

/// Why a task is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pulled {
    /// Its sender wants no answer any more.
    Cancelled,
    /// Its deadline has passed.
    TooLate,
}

/// A job belongs to whoever takes this first: a thread, to run it, or its shard, to have it not
/// run.
#[derive(Clone, Debug, Default)]
pub(super) struct Claim(Arc<AtomicBool>);

impl Claim {
    /// True once.
    pub(super) fn take(&self) -> bool {
        !self.0.swap(true, Relaxed)
    }
}

impl TaskBrake {
    pub(super) fn new(wakers: Rc<RefCell<Slab<Arc<SeenWaker>>>>) -> Rc<Self> {
        Rc::new(Self {
            pulled: Cell::new(None),
            waker: Cell::new(None),
            wakers,
        })
    }

    /// Why it was pulled, if it was.
    pub(super) fn pulled(&self) -> Option<Pulled> {
        self.pulled.get()
    }

    fn pull(&self, why: Pulled) {
        self.pulled.set(Some(why));
        let slot = self.waker.get();
        // One that was never polled stands in the executor's queue anyway.
        let waker = slot.and_then(|slot| self.wakers.borrow().get(slot).cloned());
        if let Some(waker) = waker {
            std::task::Wake::wake(waker);
        }
    }
}

impl Underway {
    /// A task has begun. Returns its place.
    pub(super) fn add_task(
        &mut self,
        sent: Sent,
        deadline: Option<Instant>,
        brake: Rc<TaskBrake>,
    ) -> usize {
        let place = self.add(sent, deadline, Brake::Task(brake));
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, place));
        }
        place
    }

    /// A job waits for the pool. Returns its place.
    pub(super) fn add_job(&mut self, sent: Sent, claim: Claim) -> usize {
        self.add(sent, None, Brake::Job(claim))
    }

    fn add(&mut self, sent: Sent, deadline: Option<Instant>, brake: Brake) -> usize {
        let place = self.entries.insert(Entry {
            sent,
            deadline,
            brake,
        });
        // Of two with one correlation the later one: the sender has broken the rules.
        self.by_message.insert(sent, place);
        place
    }

    /// A message has ended.
    pub(super) fn remove(&mut self, place: usize) {
        let Some(Entry { sent, deadline, .. }) = self.entries.try_remove(place) else {
            return;
        };
        if self.by_message.get(&sent) == Some(&place) {
            self.by_message.remove(&sent);
        }
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, place));
        }
    }

    /// Its sender wants no answer any more. False if there is no such message.
    pub(super) fn cancel(&mut self, sent: &Sent) -> bool {
        let place = self.by_message.get(sent);
        let Some(entry) = place.and_then(|&place| self.entries.get(place)) else {
            return false;
        };
        match &entry.brake {
            Brake::Task(brake) => brake.pull(Pulled::Cancelled),
            // A thread that was quicker goes on: nothing stops a thread.
            Brake::Job(claim) => drop(claim.take()),
        }
        true
    }

    /// Stops the tasks whose deadlines have passed.
    #[inline]
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(&(deadline, place)) = self.deadlines.first()
            && deadline <= now
        {
            self.deadlines.pop_first();
            if let Some(Entry {
                brake: Brake::Task(brake),
                ..
            }) = self.entries.get(place)
            {
                brake.pull(Pulled::TooLate);
            }
        }
    }

    /// When `expire` must be called next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }
}

/// A handler's future, until its end or until its brake is pulled: then it ends with `None`, and
/// the future is dropped in the task's own next poll.
pub(super) struct Stoppable {
    future: Option<Pin<Box<dyn Future<Output = TaskResult>>>>,
    brake: Rc<TaskBrake>,
}

type TaskResult = Result<Bytes, Failure>;

impl Stoppable {
    pub(super) fn new(
        future: Pin<Box<dyn Future<Output = TaskResult>>>,
        brake: Rc<TaskBrake>,
    ) -> Self {
        let future = Some(future);
        Self { future, brake }
    }
}

impl Future for Stoppable {
    type Output = Option<TaskResult>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.brake.pulled.get().is_some() {
            let future = self.future.take();
            // What it holds is a user's, and may panic as it goes.
            if catch_unwind(AssertUnwindSafe(|| drop(future))).is_err() {
                tracing::error!("a handler that was stopped has panicked as it was dropped");
            }
            return Poll::Ready(None);
        }
        match &mut self.future {
            Some(future) => future.as_mut().poll(cx).map(Some),
            None => Poll::Ready(None),
        }
    }
}

impl Core {
    /// Stops a message that runs or waits on this shard. False if there is none such.
    pub(super) fn cancel_here(&mut self, sent: &Sent) -> bool {
        self.underway.cancel(sent) || self.batches.cancel(sent)
    }

    /// The sender of a message needs no answer to it any more: what is not handled by now is
    /// stopped, here or on the shard that it was sent over to.
    #[cold]
    pub(super) fn on_cancel(&mut self, now: Instant, connection: ConnectionId, header: &Header) {
        let sent = Sent {
            home: None,
            connection,
            correlation: header.correlation,
        };
        if self.cancel_here(&sent) {
            return;
        }
        let shards = match header.handler.get() {
            // Its sender does not say where it was to run.
            0 => 0..self.info.shards,
            _ => match self.registry.elsewhere(header) {
                Some(shard) => shard..shard + 1,
                None => return,
            },
        };
        let own = self.info.shard;
        for shard in shards.filter(|&shard| shard != own) {
            self.send_cancel_over(now, shard, connection, header);
        }
    }
}
