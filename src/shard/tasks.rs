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
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use bytes::Bytes;
use futures_lite::FutureExt;
use quanta::Instant;

use super::command::LocalFuture;
use crate::{
    engine::ConnectionId,
    handler::{Failure, Spawning},
    wire::Header,
};

/// Spawns a future on the shard's own thread: glommio's, or a test's.
pub type Spawner = Box<dyn FnMut(LocalFuture)>;

/// What runs, and what has finished and is not answered.
pub(super) struct Tasks {
    spawner: Spawner,
    handlers: usize,
    handlers_max: usize,
    guests: Rc<Cell<usize>>,
    finished: Rc<Finished>,
    /// Set by whatever wakes one of them: while it is not, the reactor need not let the executor
    /// run.
    is_any_ready: Arc<AtomicBool>,
}

/// A spawned handler's end, to be answered in the reactor's next turn.
pub(super) struct FinishedTask {
    pub(super) connection: ConnectionId,
    pub(super) header: Header,
    pub(super) handler: usize,
    pub(super) read: Instant,
    pub(super) result: Result<Bytes, Failure>,
}

#[derive(Default)]
struct Finished {
    tasks: RefCell<VecDeque<FinishedTask>>,
    reactor: RefCell<Option<Waker>>,
}

impl Tasks {
    pub(super) fn new(spawner: Spawner, handlers_max: usize) -> Self {
        let (guests, finished, is_any_ready) = Default::default();
        Self {
            spawner,
            handlers: 0,
            handlers_max,
            guests,
            finished,
            is_any_ready,
        }
    }

    /// Whether a task was woken since this was last asked.
    #[inline]
    pub(super) fn take_ready(&self) -> bool {
        // A store only where there is something to take: the line stays this core's.
        self.is_any_ready.load(Ordering::Acquire) && self.is_any_ready.swap(false, Ordering::AcqRel)
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

    pub(super) fn spawn(&mut self, connection: ConnectionId, read: Instant, spawning: Spawning) {
        self.handlers += 1;
        let finished = self.finished.clone();
        let Spawning {
            handler,
            header,
            future,
        } = spawning;
        self.start(async move {
            let result = future.await;
            let task = FinishedTask {
                connection,
                header,
                handler,
                read,
                result,
            };
            finished.tasks.borrow_mut().push_back(task);
            finished.wake_reactor();
        });
    }

    fn start(&mut self, future: impl Future<Output = ()> + 'static) {
        self.is_any_ready.store(true, Ordering::Release);
        (self.spawner)(Box::pin(Watched {
            future: Box::pin(future),
            wakers: None,
            is_any_ready: self.is_any_ready.clone(),
        }));
    }

    pub(super) fn spawn_guest(&mut self, future: LocalFuture) {
        self.guests.set(self.guests.get() + 1);
        let (guests, finished) = (self.guests.clone(), self.finished.clone());
        self.start(async move {
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
    /// The executor's waker, and the one that the task is given in its place.
    wakers: Option<(Waker, Waker)>,
    is_any_ready: Arc<AtomicBool>,
}

struct SeenWaker {
    executor: Waker,
    is_any_ready: Arc<AtomicBool>,
}

impl<F: Future<Output = ()>> Future for Watched<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let wakers = match &mut this.wakers {
            Some(wakers) if wakers.0.will_wake(cx.waker()) => wakers,
            // Once in its life: an executor's task has one waker.
            wakers => wakers.insert((
                cx.waker().clone(),
                Arc::new(SeenWaker {
                    executor: cx.waker().clone(),
                    is_any_ready: this.is_any_ready.clone(),
                })
                .into(),
            )),
        };
        this.future
            .as_mut()
            .poll(&mut Context::from_waker(&wakers.1))
    }
}

impl Wake for SeenWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // First, so that whoever sees the flag finds the task in the executor's queue or comes to
        // it: the executor is on this thread, or runs at an interval anyway.
        self.executor.wake_by_ref();
        self.is_any_ready.store(true, Ordering::Release);
    }
}
