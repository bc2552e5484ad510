//! `_await_handler`: tells a caller of a handler as soon as it is served.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use rustc_hash::FxHashMap;
use serde::Deserialize;
use slab::Slab;

use super::{
    Handler, TaskContext, built_in::check_question, dispatch::TaskFuture, failure::Failure,
    registry::could_be_served, spawned::Spawned,
};
use crate::{
    codec::Decoder,
    wire::{Codec, HandlerEntry, Reason},
};

/// What a shard says that it serves, and the tasks that wait for more. Changes when every shard
/// serves it, so who is told finds it everywhere.
#[derive(Default)]
pub struct Board {
    built_in: Vec<HandlerEntry>,
    /// Those and the users', by name.
    served: RefCell<FxHashMap<String, HandlerEntry>>,
    /// As many as `limits.spawned_max` allows.
    waiters: RefCell<Slab<Waiter>>,
    is_closed: Cell<bool>,
}

struct Waiter {
    name: Rc<str>,
    waker: Waker,
}

/// Tasks of a shard that wait at once: one that waits for what never comes leaves room for the
/// handlers' own.
const WAITING_MAX: usize = 1024;

/// The built-in handler of that name: a task, until the handler is served that it is asked for, or
/// what ends any task.
pub(crate) fn await_handler() -> Handler {
    let handler = Handler::awaiting("_await_handler").concurrency(WAITING_MAX);
    handler.built_in(false)
}

/// A shard's instance of it.
pub(super) struct AwaitHandler(pub(super) Rc<Board>);

#[derive(Deserialize)]
struct Question {
    name: String,
}

impl Spawned for AwaitHandler {
    fn call(
        &mut self,
        codec: Codec,
        payload: &mut [u8],
        _: &mut Decoder,
        cx: TaskContext,
    ) -> Result<TaskFuture, Failure> {
        check_question(codec, payload)?;
        let refused = |text: &str| Failure {
            reason: Reason::Malformed,
            text: text.to_owned(),
        };
        if !cx.wants_reply() {
            // Nobody would stop it, and no deadline.
            return Err(refused("only a request may wait for a handler"));
        }
        let Question { name } = serde_json::from_slice(payload)
            .map_err(|_| refused("it takes {\"name\":…}, a text"))?;
        if !could_be_served(&name) {
            return Err(refused("no handler can have this name"));
        }
        let served = Served {
            board: self.0.clone(),
            name: name.into(),
            place: None,
        };
        Ok(Box::pin(async move {
            let entry = served.await?;
            let text = serde_json::to_vec(&entry).expect("texts are JSON");
            Ok(text.into())
        }))
    }
}

impl Board {
    pub(super) fn new(built_in: Vec<HandlerEntry>, users: Vec<HandlerEntry>) -> Self {
        let board = Self {
            built_in,
            ..Self::default()
        };
        board.set(users);
        board
    }

    /// From now on users' handlers are these.
    pub fn set(&self, users: Vec<HandlerEntry>) {
        let all = self.built_in.iter().cloned().chain(users);
        *self.served.borrow_mut() = all.map(|it| (it.name.clone(), it)).collect();
        let served = self.served.borrow();
        self.wake(|name| served.contains_key(name));
    }

    /// Nothing more will be served: whoever waits is told so.
    pub fn close(&self) {
        self.is_closed.set(true);
        self.wake(|_| true);
    }

    /// How many wakers it holds of which this is true.
    pub fn count_wakers(&self, is_counted: impl Fn(&Waker) -> bool) -> usize {
        let waiters = self.waiters.borrow();
        waiters
            .iter()
            .filter(|(_, it)| is_counted(&it.waker))
            .count()
    }

    fn wake(&self, is_meant: impl Fn(&str) -> bool) {
        let waiters = self.waiters.borrow();
        let meant = waiters.iter().filter(|(_, it)| is_meant(&it.name));
        meant.for_each(|(_, it)| it.waker.wake_by_ref());
    }
}

/// Waits until a handler is served.
struct Served {
    board: Rc<Board>,
    name: Rc<str>,
    /// Among the waiters, once it waits.
    place: Option<usize>,
}

impl Future for Served {
    type Output = Result<HandlerEntry, Failure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { board, name, place } = &mut *self;
        if let Some(entry) = board.served.borrow().get(&**name) {
            return Poll::Ready(Ok(entry.clone()));
        }
        if board.is_closed.get() {
            return Poll::Ready(Err(Failure {
                reason: Reason::Draining,
                text: format!("this process is stopping, and does not serve {name:?}"),
            }));
        }
        let mut waiters = board.waiters.borrow_mut();
        match place {
            Some(place) => waiters[*place].waker.clone_from(cx.waker()),
            None => {
                let (name, waker) = (name.clone(), cx.waker().clone());
                *place = Some(waiters.insert(Waiter { name, waker }));
            }
        }
        Poll::Pending
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.board.waiters.borrow_mut().remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
        task::Wake,
    };

    use super::*;
    use crate::wire::Affinity;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn who_waits_is_woken_where_it_was_last_polled_and_leaves_nothing() {
        let board = Rc::new(Board::default());
        let (first, last) = (Arc::new(Woken::default()), Arc::new(Woken::default()));
        let waits = |name: &str| Served {
            board: board.clone(),
            name: name.into(),
            place: None,
        };
        {
            let (mut late, mut other) = (pin!(waits("late")), pin!(waits("other")));
            for woken in [&first, &last] {
                let waker = woken.clone().into();
                let mut cx = Context::from_waker(&waker);
                assert!(late.as_mut().poll(&mut cx).is_pending());
                assert!(other.as_mut().poll(&mut cx).is_pending());
            }
            assert_eq!(board.count_wakers(|_| true), 2);
            board.set(vec![HandlerEntry::new("late", Affinity::Local)]);
            assert_eq!([&first, &last].map(|it| it.0.load(Relaxed)), [0, 1]);
            let mut cx = Context::from_waker(Waker::noop());
            assert!(late.as_mut().poll(&mut cx).is_ready());
        }
        assert_eq!(board.count_wakers(|_| true), 0);
    }
}
