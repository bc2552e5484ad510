//! The tasks of a shard: spawned handlers, and guests that the runtime sent.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    panic::AssertUnwindSafe,
    rc::Rc,
    task::Waker,
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
        let (guests, finished) = Default::default();
        Self {
            spawner,
            handlers: 0,
            handlers_max,
            guests,
            finished,
        }
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
        (self.spawner)(Box::pin(async move {
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
        }));
    }

    pub(super) fn spawn_guest(&mut self, future: LocalFuture) {
        self.guests.set(self.guests.get() + 1);
        let (guests, finished) = (self.guests.clone(), self.finished.clone());
        (self.spawner)(Box::pin(async move {
            // Its panic must end nobody else; who waits for its result learns that there is none.
            if AssertUnwindSafe(future).catch_unwind().await.is_err() {
                tracing::error!("a task that the runtime was given has panicked");
            }
            guests.set(guests.get() - 1);
            finished.wake_reactor();
        }));
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
