//! A queue of events, and its two ends.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use atomic_waker::AtomicWaker;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, TrySendError};

use super::Event;

/// The events of a runtime from one moment on; made by [`Runtime::events`] or by
/// [`Client::events`]. Dropping it ends it.
///
/// [`Runtime::events`]: crate::Runtime::events
/// [`Client::events`]: crate::client::Client::events
pub struct Subscription {
    events: Receiver<Numbered>,
    waiter: Arc<AtomicWaker>,
    /// The number of the next event, if none is missed.
    next: u64,
    /// What comes after those that were missed.
    after: Option<Event>,
}

/// Why there is no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoEvent {
    /// None has happened by now.
    #[error("no event yet")]
    Yet,
    /// The runtime has ended, and all that it told was received.
    #[error("the runtime has ended")]
    Ended,
}

/// An event, and which one it is to its subscription.
pub(super) struct Numbered {
    number: u64,
    event: Event,
}

/// The hub's end of a subscription.
pub(super) struct Outlet {
    events: Sender<Numbered>,
    /// From which the oldest is taken that has no room any more.
    oldest: Receiver<Numbered>,
    waiter: Arc<AtomicWaker>,
    next: u64,
}

pub(super) fn pair(capacity: usize) -> (Outlet, Subscription) {
    let (sender, receiver) = crossbeam_channel::bounded(capacity);
    let waiter = Arc::new(AtomicWaker::new());
    let outlet = Outlet {
        events: sender,
        oldest: receiver.clone(),
        waiter: waiter.clone(),
        next: 0,
    };
    let subscription = Subscription {
        events: receiver,
        waiter,
        next: 0,
        after: None,
    };
    (outlet, subscription)
}

impl Outlet {
    /// Whether anybody is at the other end.
    pub(super) fn is_wanted(&self) -> bool {
        Arc::strong_count(&self.waiter) > 1
    }

    /// So many events are missing here.
    pub(super) fn skip(&mut self, missing: u64) {
        self.next += missing;
    }

    /// Puts an event in, at the price of the oldest if there is no room. Returns whom to wake.
    pub(super) fn push(&mut self, event: Event) -> Option<Waker> {
        let mut event = Numbered {
            number: self.next,
            event,
        };
        self.next += 1;
        while let Err(TrySendError::Full(refused)) = self.events.try_send(event) {
            let _ = self.oldest.try_recv();
            event = refused;
        }
        self.waiter.take()
    }

    /// Ends it. Returns whom to wake.
    pub(super) fn close(self) -> Option<Waker> {
        drop(self.events);
        self.waiter.take()
    }
}

impl Subscription {
    /// Events that wait in one queue at most.
    pub const CAPACITY: usize = 1024;

    /// The next event. Blocks until there is one; `None` once the runtime has ended. Not for a
    /// shard.
    pub fn recv(&mut self) -> Option<Event> {
        if let Some(after) = self.after.take() {
            return Some(after);
        }
        let event = self.events.recv().ok()?;
        Some(self.in_order(event))
    }

    /// The next event, if it comes within this time. Blocks until then at most. Not for a shard.
    pub fn recv_timeout(&mut self, within: Duration) -> Result<Event, NoEvent> {
        if let Some(after) = self.after.take() {
            return Ok(after);
        }
        match self.events.recv_timeout(within) {
            Ok(event) => Ok(self.in_order(event)),
            Err(RecvTimeoutError::Timeout) => Err(NoEvent::Yet),
            Err(RecvTimeoutError::Disconnected) => Err(NoEvent::Ended),
        }
    }

    /// The next event, if it is there. Never blocks.
    pub fn try_recv(&mut self) -> Result<Event, NoEvent> {
        if let Some(after) = self.after.take() {
            return Ok(after);
        }
        match self.events.try_recv() {
            Ok(event) => Ok(self.in_order(event)),
            Err(TryRecvError::Empty) => Err(NoEvent::Yet),
            Err(TryRecvError::Disconnected) => Err(NoEvent::Ended),
        }
    }

    /// The next event, on any executor; `None` once the runtime has ended. Dropped before it has
    /// resolved, it has taken nothing.
    #[expect(
        clippy::should_implement_trait,
        reason = "a stream's `next`, without a trait for streams"
    )]
    pub fn next(&mut self) -> Next<'_> {
        Next(self)
    }

    /// What was missed comes before what follows it.
    fn in_order(&mut self, Numbered { number, event }: Numbered) -> Event {
        let missed = number - self.next;
        self.next = number + 1;
        match missed {
            0 => event,
            _ => {
                self.after = Some(event);
                Event::Missed(missed)
            }
        }
    }
}

/// The next event of a [`Subscription`]; made by [`Subscription::next`].
#[derive(Debug)]
#[must_use = "a future does nothing unless it is awaited"]
pub struct Next<'a>(&'a mut Subscription);

impl Future for Next<'_> {
    type Output = Option<Event>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let subscription = &mut *self.0;
        for is_registered in [false, true] {
            match subscription.try_recv() {
                Ok(event) => return Poll::Ready(Some(event)),
                Err(NoEvent::Ended) => return Poll::Ready(None),
                // One that came before the waker was there woke nobody: look again.
                Err(NoEvent::Yet) if !is_registered => subscription.waiter.register(cx.waker()),
                Err(NoEvent::Yet) => {}
            }
        }
        Poll::Pending
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("queued", &self.events.len())
            .finish_non_exhaustive()
    }
}
