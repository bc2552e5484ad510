//! The tasks of a shard: spawned handlers, and guests that the runtime sent.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use futures_lite::FutureExt;
use quanta::Instant;
use slab::Slab;

use super::{
    command::LocalFuture,
    parcel::Parcel,
    underway::{Pulled, Sent, Stoppable, TaskBrake, Underway},
};
use crate::{
    engine::ConnectionId,
    handler::{Begun, Failure, Lane, Spawning},
    route::{Doorbell, Posted},
    wire::{Header, Outbox, Promise},
};

/// Spawns a future on the shard's own thread: glommio's, or a test's.
pub type Spawner = Box<dyn FnMut(LocalFuture)>;

/// What runs, and what has finished and is not answered.
pub(super) struct Tasks {
    spawner: Spawner,
    handlers: usize,
    handlers_most: usize,
    handlers_max: usize,
    guests: Rc<Cell<usize>>,
    finished: Rc<Finished>,
    woken: Arc<Woken>,
    /// Tasks that other threads have woken.
    mail: Receiver<Arc<SeenWaker>>,
    /// The wakers that tasks were given.
    wakers: Rc<RefCell<Slab<Arc<SeenWaker>>>>,
}

/// Wakers that are compared to find out what tasks wait for, at most: that takes a microsecond. So
/// many calls one task may have under way, or 32 tasks one each.
const COMPARISONS_MAX: usize = 1_024;

/// How a message that was not handled inline has ended, to be answered in the reactor's next turn.
pub(super) struct FinishedTask {
    pub(super) origin: Origin,
    pub(super) end: TaskEnd,
}

/// What a task came to.
pub(super) struct TaskEnd {
    pub(super) ran: Ran,
    pub(super) header: Header,
    pub(super) handler: usize,
    pub(super) read: Instant,
    /// Its place among the messages that are under way.
    pub(super) place: usize,
    /// The place in its connection's outbox that its answer has, if it has one.
    pub(super) promise: Option<Promise>,
    /// `None`: it was stopped, and nobody waits for an answer.
    pub(super) result: Option<Result<Bytes, Failure>>,
}

/// Where a message came from, and its answer goes.
pub(super) enum Origin {
    /// A connection of this shard, as it was when it brought the message: one that we have dialed
    /// keeps its id as it is made anew.
    Here {
        connection: ConnectionId,
        epoch: u32,
    },
    /// Another shard, its home, in this parcel.
    There { home: usize, parcel: Box<Parcel> },
}

impl Origin {
    /// The connection that this outbox belongs to, as it is now.
    #[inline]
    pub(super) fn here(connection: ConnectionId, outbox: &Outbox) -> Self {
        let epoch = outbox.epoch();
        Self::Here { connection, epoch }
    }
}

/// Where a handler ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ran {
    /// As a task of the shard.
    AsTask,
    /// Nowhere: it had a task, and its deadline passed, or it was cancelled, before its turn came.
    OutOfTurn,
    /// On a thread of the pool, or of the operator.
    OnThread(Lane),
    /// In the reactor's turn, with its batch.
    InBatch,
    /// Nowhere: its deadline had passed, or it was cancelled, as its batch ran.
    OutOfBatch,
    /// Nowhere: a message for such a thread, whose deadline passed, or whose sender has cancelled
    /// it, before one came to it.
    Nowhere(Lane),
}

impl Ran {
    pub(super) fn is_somewhere(self) -> bool {
        !matches!(self, Ran::Nowhere(_) | Ran::OutOfBatch | Ran::OutOfTurn)
    }
}

#[derive(Default)]
struct Finished {
    tasks: RefCell<VecDeque<FinishedTask>>,
    reactor: RefCell<Option<Waker>>,
}

impl Tasks {
    /// On the thread that the tasks run on, which hears this doorbell.
    pub(super) fn new(spawner: Spawner, handlers_max: usize, doorbell: &Arc<Doorbell>) -> Self {
        let (guests, finished, wakers) = Default::default();
        let (to_mail, mail) = crossbeam_channel::unbounded();
        let woken = Arc::new(Woken {
            is_any_ready: AtomicBool::new(false),
            at_once_on: AtomicUsize::new(this_thread()),
            mail: to_mail,
            doorbell: doorbell.clone(),
        });
        Self {
            spawner,
            handlers: 0,
            handlers_most: 0,
            handlers_max,
            guests,
            finished,
            woken,
            mail,
            wakers,
        }
    }

    /// Whether a task was woken since this was last asked.
    #[inline]
    pub(super) fn take_ready(&self) -> bool {
        // A store only where there is something to take: the line stays this core's.
        let flag = &self.woken.is_any_ready;
        flag.load(Ordering::Acquire) && flag.swap(false, Ordering::AcqRel)
    }

    /// Whether a task was woken and has not run since. One that has ended may have left the flag
    /// set, and nobody takes it while there is none.
    #[inline]
    pub(super) fn has_ready(&self) -> bool {
        self.live() > 0 && self.woken.is_any_ready.load(Ordering::Acquire)
    }

    /// Wakes so many tasks at most that other threads have woken. Returns how many.
    pub(super) fn take_mail(&self, most: usize) -> usize {
        let mail = self.mail.try_iter().take(most);
        mail.map(|waker| waker.arrive()).count()
    }

    /// Whether other threads have woken tasks that do not know yet.
    pub(super) fn has_mail(&self) -> bool {
        !self.mail.is_empty()
    }

    /// From now on tasks are woken only by [`take_mail`](Self::take_mail), those too that this
    /// thread wakes: the executor comes to its end of what it has to do.
    pub(super) fn hold(&self) {
        self.woken.at_once_on.store(NOWHERE, Ordering::Relaxed);
    }

    /// As they were before [`hold`](Self::hold), except those that wait in the mail.
    pub(super) fn release(&self) {
        let here = this_thread();
        self.woken.at_once_on.store(here, Ordering::Relaxed);
    }

    /// Whether each has run, and has not ended since.
    pub(super) fn all_wait(&self) -> bool {
        self.wakers.borrow().len() == self.live()
    }

    /// Whether no task that has run waits for anything but what `count` finds: it is told how many
    /// wakers it may go through, and asked how many it holds of which something is true. Then only
    /// the reactor can wake them, and the executor has nothing to do meanwhile. False if that
    /// would take long to find out.
    pub(super) fn wait_only_for(
        &self,
        count: impl FnOnce(usize, &dyn Fn(&Waker) -> bool) -> Option<usize>,
    ) -> bool {
        let wakers = self.wakers.borrow();
        let most = COMPARISONS_MAX / wakers.len().max(1);
        if wakers.len() > most {
            return false;
        }
        let is_given = |waker: &Waker| {
            let mut given = wakers.iter();
            given.any(|(_, given)| std::ptr::eq(waker.data(), Arc::as_ptr(given).cast()))
        };
        // One stands in the table, one in the task's own context: the others are waited with.
        let waited_with = wakers.iter().map(|(_, given)| Arc::strong_count(given) - 2);
        let waited_with: usize = waited_with.sum();
        count(most, &is_given) == Some(waited_with)
    }

    /// Whether another handler may be spawned.
    pub(super) fn has_room(&self) -> bool {
        self.handlers < self.handlers_max
    }

    /// Spawned handlers that are not answered, and guests.
    pub(super) fn live(&self) -> usize {
        self.handlers + self.guests.get()
    }

    /// Spawned handlers that are not answered.
    pub(super) fn live_handlers(&self) -> usize {
        self.handlers
    }

    /// The most of these that there have been at once.
    pub(super) fn most_handlers(&self) -> usize {
        self.handlers_most
    }

    pub(super) fn spawn(
        &mut self,
        origin: Origin,
        read: Instant,
        spawning: Spawning,
        underway: &mut Underway,
    ) {
        self.handlers += 1;
        self.handlers_most = self.handlers_most.max(self.handlers);
        let finished = self.finished.clone();
        let Spawning {
            handler,
            header,
            deadline,
            begun,
            future,
        } = spawning;
        let brake = TaskBrake::new(self.wakers.clone());
        let sent = Sent::of(&origin, header.correlation);
        let place = underway.add_task(sent, deadline, brake.clone());
        let future = Stoppable::new(future, brake.clone());
        let seen = brake.clone();
        self.start(Some(brake), async move {
            let (ran, result) = outcome(future.await, begun, &seen);
            let end = TaskEnd {
                ran,
                header,
                handler,
                read,
                place,
                promise: None,
                result,
            };
            let task = FinishedTask { origin, end };
            finished.tasks.borrow_mut().push_back(task);
            finished.wake_reactor();
        });
    }

    fn start(&mut self, brake: Option<Rc<TaskBrake>>, future: impl Future<Output = ()> + 'static) {
        self.woken.is_any_ready.store(true, Ordering::Release);
        (self.spawner)(Box::pin(Watched {
            future: Box::pin(future),
            own: None,
            brake,
            woken: self.woken.clone(),
            wakers: self.wakers.clone(),
        }));
    }

    pub(super) fn spawn_guest(&mut self, future: LocalFuture) {
        self.guests.set(self.guests.get() + 1);
        let (guests, finished) = (self.guests.clone(), self.finished.clone());
        self.start(None, async move {
            // Its panic must end nobody else; who waits for its result learns that there is none.
            if AssertUnwindSafe(future).catch_unwind().await.is_err() {
                tracing::error!("a task that the runtime was given has panicked");
            }
            guests.set(guests.get() - 1);
            finished.wake_reactor();
        });
    }

    pub(super) fn has_finished(&self) -> bool {
        !self.finished.tasks.borrow().is_empty()
    }

    pub(super) fn finished_len(&self) -> usize {
        self.finished.tasks.borrow().len()
    }

    /// Of those that wait to be answered, how many ran so.
    pub(super) fn count_finished(&self, is_counted: impl Fn(Ran) -> bool) -> usize {
        let finished = self.finished.tasks.borrow();
        finished.iter().filter(|it| is_counted(it.end.ran)).count()
    }

    pub(super) fn pop_finished(&self) -> Option<FinishedTask> {
        self.finished.tasks.borrow_mut().pop_front()
    }

    pub(super) fn push_back(&self, task: FinishedTask) {
        self.finished.tasks.borrow_mut().push_back(task);
    }

    /// A finished task is answered, or cannot be.
    pub(super) fn retire(&mut self) {
        self.handlers -= 1;
    }

    /// Whom to wake when the next task finishes.
    pub(super) fn register(&self, reactor: &Waker) {
        *self.finished.reactor.borrow_mut() = Some(reactor.clone());
    }
}

/// Where a task's handler ran, and with which result.
fn outcome(
    result: Option<Result<Bytes, Failure>>,
    begun: Option<Begun>,
    brake: &TaskBrake,
) -> (Ran, Option<Result<Bytes, Failure>>) {
    if begun.is_none_or(|it| it.get()) {
        return (Ran::AsTask, result);
    }
    let is_late = brake.pulled() == Some(Pulled::TooLate);
    let too_late = is_late.then(|| Err(Failure::too_late()));
    (Ran::OutOfTurn, result.or(too_late))
}

impl Finished {
    fn wake_reactor(&self) {
        if let Some(reactor) = self.reactor.borrow_mut().take() {
            reactor.wake();
        }
    }
}

/// A task whose wake-ups the reactor sees.
struct Watched<F> {
    future: Pin<Box<F>>,
    own: Option<Own>,
    /// What wakes it to stop it.
    brake: Option<Rc<TaskBrake>>,
    woken: Arc<Woken>,
    wakers: Rc<RefCell<Slab<Arc<SeenWaker>>>>,
}

/// What a task wakes, and is given to be woken by.
struct Own {
    executor: Waker,
    given: Waker,
    /// Its place among all that were given.
    slot: usize,
}

/// What every waker of a shard's tasks knows.
struct Woken {
    /// Set by whatever wakes a task: while it is not, the reactor need not let the executor run.
    is_any_ready: AtomicBool,
    /// The thread, the shard's, on which tasks are put into the executor's queue as they are woken.
    /// [`NOWHERE`] while they are held.
    at_once_on: AtomicUsize,
    /// For the others.
    mail: Sender<Arc<SeenWaker>>,
    doorbell: Arc<Doorbell>,
}

pub(super) struct SeenWaker {
    executor: Waker,
    woken: Arc<Woken>,
    /// It is in the mail, and has not arrived since.
    in_the_mail: Posted,
}

impl SeenWaker {
    /// On the shard's thread.
    fn arrive(&self) {
        // First: whoever wakes the task from here on is in time, or posts it again.
        self.in_the_mail.arrive();
        self.wake_now();
    }

    #[inline]
    fn wake_now(&self) {
        self.executor.wake_by_ref();
        self.woken.is_any_ready.store(true, Ordering::Release);
    }

    /// glommio would learn of it only when it next looks what other threads want, and that it does
    /// when no task has anything to do, the reactor included.
    #[cold]
    fn post(self: &Arc<Self>) {
        if self.in_the_mail.post() {
            // Refused: the shard is over.
            let _ = self.woken.mail.send(self.clone());
            self.woken.doorbell.ring();
        }
    }
}

impl<F> Watched<F> {
    fn give_waker(&mut self, executor: &Waker) {
        let is_new = self
            .own
            .as_ref()
            .is_none_or(|own| !own.executor.will_wake(executor));
        if is_new {
            // Once in its life: an executor's task has one waker.
            self.take_waker_back();
            let given = Arc::new(SeenWaker {
                executor: executor.clone(),
                woken: self.woken.clone(),
                in_the_mail: Posted::default(),
            });
            let slot = self.wakers.borrow_mut().insert(given.clone());
            if let Some(brake) = &self.brake {
                brake.waker.set(Some(slot));
            }
            let (executor, given) = (executor.clone(), given.into());
            self.own = Some(Own {
                executor,
                given,
                slot,
            });
        }
    }

    fn take_waker_back(&mut self) {
        if let Some(own) = self.own.take() {
            if let Some(brake) = &self.brake {
                brake.waker.set(None);
            }
            self.wakers.borrow_mut().remove(own.slot);
        }
    }
}

impl<F: Future<Output = ()>> Future for Watched<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.give_waker(cx.waker());
        let Self { future, own, .. } = &mut *self;
        let given = own.as_ref().map_or(cx.waker(), |own| &own.given);
        future.as_mut().poll(&mut Context::from_waker(given))
    }
}

impl<F> Drop for Watched<F> {
    fn drop(&mut self) {
        self.take_waker_back();
    }
}

impl Wake for SeenWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        match self.woken.at_once_on.load(Ordering::Relaxed) == this_thread() {
            true => self.wake_now(),
            false => self.post(),
        }
    }
}

/// No thread's number.
const NOWHERE: usize = 0;

/// Another number on every thread that lives: cheaper than the thread's id.
#[inline]
fn this_thread() -> usize {
    thread_local!(static PLACE: u8 = const { 0 });
    PLACE.with(|place| std::ptr::from_ref(place).addr())
}

#[cfg(test)]
mod tests;
